"""Statistics where the tensor is, against float64 numpy; what runs on CUDA is run on the CPU."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from ranktap import reduce
from ranktap_wire.records import HISTOGRAM_BUCKETS, MOMENTS

FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
OTHERS = [torch.bool, torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64]


def on_host(tensor: Tensor) -> list[float]:
    return list(reduce.moments(tensor))


def as_on_a_device(tensor: Tensor) -> list[float]:
    """What runs on CUDA, on the CPU: there is no GPU here."""
    return reduce._device_row(reduce._flat(tensor)).tolist()


BOTH = pytest.mark.parametrize("row_of", [on_host, as_on_a_device])


def reference(tensor: Tensor) -> list[float]:
    values = tensor.detach().double().numpy().ravel()
    finite = values[np.isfinite(values)]
    return [
        finite.size,
        finite.sum(),
        (finite * finite).sum(),
        finite.min(initial=math.inf),
        finite.max(initial=-math.inf),
        int((finite == 0).sum()),
        values.size - finite.size,
        0.0,
    ]


def assert_row(row: list[float], wanted: list[float], *, rounding: float = 1e-5) -> None:
    for name, got, want in zip(MOMENTS, row, wanted, strict=True):
        if name in ("sum", "sum_squares"):
            # A sum of both signs is as exact as its summands' sizes allow.
            scale = math.sqrt(wanted[0] * wanted[2]) if name == "sum" else wanted[2]
            assert got == pytest.approx(want, rel=rounding, abs=rounding * scale), name
        else:
            assert got == want, name


@st.composite
def tensors(draw: st.DrawFn, *, finite: bool = False) -> Tensor:
    dtype = draw(st.sampled_from(FLOATS + OTHERS))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6))
    size = math.prod(shape)
    if dtype.is_floating_point:
        elements = st.one_of(
            st.floats(-8, 8, width=32),
            st.sampled_from([0.0, -0.0, 1e-30, -3e-38, 1.0, 65504.0, 1e30]),
            *([] if finite else [st.sampled_from([math.nan, math.inf, -math.inf])]),
        )
    else:
        elements = st.integers(0, 1 if dtype is torch.bool else 127)
    made = torch.tensor(draw(st.lists(elements, min_size=size, max_size=size)), dtype=dtype)
    made = made.reshape(shape)
    if draw(st.booleans()):
        made = made.transpose(0, -1) if made.dim() > 1 else made
    return made


@BOTH
@settings(deadline=None, max_examples=300)
@given(tensor=tensors())
def test_moments_equal_numpys_in_float64(
    row_of: Callable[[Tensor], list[float]], tensor: Tensor
) -> None:
    assert_row(row_of(tensor), reference(tensor))


@BOTH
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_moments_of_a_large_tensor_are_right_to_float32s_rounding(
    row_of: Callable[[Tensor], list[float]], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    tensor = (torch.randn(3, 200_001) * 0.01 + 0.5).to(dtype)
    tensor[1, 7] = 0
    assert_row(row_of(tensor), reference(tensor), rounding=1e-6)


@pytest.mark.parametrize("dtype", [*FLOATS, torch.int32], ids=str)
def test_chunks_of_a_tensor_add_up_to_it(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """Types that are neither float32 nor float64 go through one buffer, a chunk after the other."""
    monkeypatch.setattr(reduce, "CHUNK", 3_000)
    torch.manual_seed(0)
    tensor = (torch.randn(10_007) * 9).to(dtype)
    tensor[5_000] = 0
    assert_row(on_host(tensor), reference(tensor))
    assert counts_of(tensor) == expected_counts(tensor)


@BOTH
def test_zeros_of_both_signs_count(row_of: Callable[[Tensor], list[float]]) -> None:
    assert row_of(torch.tensor([0.0, -0.0, 1.0, -1.0]))[reduce.ZEROS] == 2
    assert_row(row_of(torch.tensor([0.0, -0.0])), [2, 0, 0, 0, 0, 2, 0, 0])


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_squares_that_float32_cannot_hold_are_added_up_all_the_same(scale: float) -> None:
    tensor = torch.randn(1_000) * scale
    assert_row(on_host(tensor), reference(tensor))


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x.to(memory_format=torch.channels_last),
        lambda x: x.transpose(1, 3),
        lambda x: x[:, ::2],
        lambda x: x[:, :1].expand(-1, 5, -1, -1),
        lambda x: torch.view_as_complex(torch.stack((x, x), -1).contiguous()).conj().imag,
    ],
    ids=["channels last", "transposed", "sliced", "expanded", "negated view"],
)
def test_memory_in_another_order_changes_nothing(make: Callable[[Tensor], Tensor]) -> None:
    tensor = make(torch.randn(4, 6, 5, 7))
    assert_row(on_host(tensor), reference(tensor))
    assert counts_of(tensor) == expected_counts(tensor)


def test_dense_memory_is_not_copied() -> None:
    tensor = torch.randn(4, 6, 5, 7).to(memory_format=torch.channels_last)
    assert reduce._flat(tensor).data_ptr() == tensor.data_ptr()


def test_a_sparse_gradient_has_the_zeros_that_it_leaves_out() -> None:
    dense = torch.zeros(5, 4)
    dense[1], dense[3] = 2.0, -1.0
    indices = torch.tensor([[1, 3, 3]])
    values = torch.stack((dense[1], dense[3] * 0.25, dense[3] * 0.75))
    sparse = torch.sparse_coo_tensor(indices, values, (5, 4), check_invariants=True)
    assert_row(on_host(sparse), reference(dense))
    assert counts_of(sparse) == expected_counts(dense)


@pytest.mark.parametrize(
    "name", ["float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"]
)
def test_float8_where_torch_has_it(name: str) -> None:
    if not hasattr(torch, name):
        pytest.skip(f"torch {torch.__version__} has no {name}")
    tensor = torch.tensor([0.0, 1.5, -2.0, 0.25]).to(getattr(torch, name))
    assert reduce.why_not(tensor) is None
    assert_row(on_host(tensor), reference(tensor.float()))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: torch.zeros(2, dtype=torch.complex64), "complex64"),
        (lambda: torch.zeros(2, device="meta"), "meta"),
        (lambda: torch.eye(2).to_sparse_csr(), "sparse_csr"),
        (lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "qint8"),
    ],
    ids=["complex", "meta", "sparse_csr", "quantized"],
)
@pytest.mark.filterwarnings("ignore")  # torch's own: that these layouts are new, or are going
def test_what_has_no_statistics_says_why(make: Callable[[], Tensor], reason: str) -> None:
    assert reason in (reduce.why_not(make()) or "")


@settings(deadline=None, max_examples=100)
@given(tensors(), tensors())
def test_rows_of_parts_add_up_to_the_row_of_the_whole(left: Tensor, right: Tensor) -> None:
    whole = torch.cat((left.reshape(-1).double(), right.reshape(-1).double()))
    merged = reduce.merge(reduce.moments(left), reduce.moments(right))
    assert_row(merged, reference(whole))
    rows = [torch.tensor(reduce.moments(part), dtype=torch.float64) for part in (left, right)]
    on_device = reduce.merge(*rows)
    assert on_device.tolist() == pytest.approx(merged, nan_ok=True)


def test_a_reference_is_the_others_sum_of_squares() -> None:
    update, weight = torch.full((4,), 0.5), torch.full((4,), 2.0)
    row = reduce.with_reference(reduce.moments(update), reduce.moments(weight))
    assert row[reduce.SQUARES] == 1.0
    assert row[reduce.REFERENCE] == 16.0
    rows = [torch.tensor(reduce.moments(each)) for each in (update, weight)]
    assert reduce.with_reference(*rows).tolist() == row


def counts_of(tensor: Tensor) -> list[int]:
    """The buckets, with those that are not finite as one: a NaN may have any bits."""
    return as_one(reduce.bit_counts(tensor).numpy())


def as_one(counts: np.ndarray[Any, Any]) -> list[int]:
    finite = np.arange(HISTOGRAM_BUCKETS) % 2048 < 2040
    return [*counts[finite].tolist(), int(counts[~finite].sum())]


def expected_counts(tensor: Tensor) -> list[int]:
    values = tensor.detach().double().numpy().ravel()
    with np.errstate(over="ignore"):
        singles = values.astype(np.float32)
    beyond = np.isinf(singles) & np.isfinite(values)
    largest = np.finfo(np.float32).max
    singles[beyond] = np.copysign(largest, values[beyond]).astype(np.float32)
    return as_one(np.bincount(singles.view(np.uint32) >> 20, minlength=HISTOGRAM_BUCKETS))


@settings(deadline=None, max_examples=200)
@given(tensors())
def test_bit_counts_equal_numpys(tensor: Tensor) -> None:
    assert counts_of(tensor) == expected_counts(tensor)


def test_float64_beyond_float32_is_in_the_outermost_finite_bucket() -> None:
    tensor = torch.tensor([1e300, -1e300, math.inf, math.nan], dtype=torch.float64)
    counts = reduce.bit_counts(tensor)
    assert counts.nonzero().ravel().tolist() == [2039, 2040, 2044, 2048 + 2039]


def test_the_devices_way_of_counting_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """`histc` in place of `bincount`, on the CPU: there is no GPU here."""
    cells = torch.randint(0, HISTOGRAM_BUCKETS, (100_000,))
    found = torch.histc(cells.float(), bins=HISTOGRAM_BUCKETS, min=0, max=HISTOGRAM_BUCKETS)
    assert found.long().tolist() == torch.bincount(cells, minlength=HISTOGRAM_BUCKETS).tolist()


def test_statistics_do_not_touch_the_graph() -> None:
    weight = torch.ones(3, requires_grad=True)
    output: Any = weight * 2
    row = reduce.moments(output)
    counts = reduce.bit_counts(output)
    assert not counts.requires_grad
    assert all(isinstance(number, int | float) for number in row)
    assert output._version == 0
