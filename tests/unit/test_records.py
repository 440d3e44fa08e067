"""Records in memory: what their bytes say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ranktap_wire.records import DTYPES, Across, Style, join_name, scalar_code, split_name
from tests.support.messages import blob, columns

# -- names and codes --------------------------------------------------------------------


@given(st.text(max_size=9), st.text(st.characters(exclude_characters="\t"), max_size=9))
def test_a_name_is_split_into_what_it_was_joined_of(sub_run: str, tag: str) -> None:
    assert split_name(join_name(sub_run, tag)) == (sub_run, tag)


def test_the_name_of_a_tag_of_the_run_itself_is_the_tag() -> None:
    assert join_name("", "loss") == "loss"


@pytest.mark.parametrize("style", Style)
@pytest.mark.parametrize("policy", Across)
def test_policy_and_style_share_a_byte(policy: Across, style: Style) -> None:
    made = columns([1.0], ("a",))
    made.across[0] = scalar_code(policy, style)
    assert (made.policy.tolist(), made.style.tolist()) == ([policy], [style])


# -- elements ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [name for name in DTYPES if name not in ("bfloat16", "utf8")])
def test_elements_come_back_in_their_dtype_and_shape(dtype: str) -> None:
    array = np.arange(6).reshape(2, 3).astype(dtype)
    read = blob(dtype=dtype, shape=(2, 3), data=array).array()
    assert read.dtype == array.dtype
    assert read.tolist() == array.tolist()


@given(st.lists(st.floats(width=32), max_size=20))
def test_bfloat16_comes_back_as_the_float32_that_it_was_cut_from(values: list[float]) -> None:
    bits = np.array(values, np.float32).view(np.uint32) & np.uint32(0xFFFF0000)
    data = (bits >> np.uint32(16)).astype(np.uint16)
    read = blob(dtype="bfloat16", shape=(len(values),), data=data).array()
    assert read.dtype == np.float32
    assert read.view(np.uint32).tolist() == bits.tolist()
