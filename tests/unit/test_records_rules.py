"""The rules of names, runs, steps and numbers: each refuses what it says."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ranktap_wire import rules
from ranktap_wire.records import HISTOGRAM_ACROSS, SCALAR_ACROSS, STEP_MAX, STEP_MIN, Across


def refused(start: str, error: type[Exception] = ValueError) -> Any:
    return pytest.raises(error, match=rf"(?s)^{re.escape(start)}")


# -- names ------------------------------------------------------------------------------


@pytest.mark.parametrize("tag", ["a", "a/b/c", "loss (train)", "é" * 500, "日本", "‮", " "])
def test_a_tag_may_be_any_text_without_control_characters(tag: str) -> None:
    assert rules.check_tag(tag) == tag


@pytest.mark.parametrize(
    ("tag", "error", "start"),
    [
        (None, TypeError, "tag: expected a string, got None (NoneType)"),
        (b"a", TypeError, "tag: expected a string, got b'a' (bytes)"),
        ("", ValueError, "tag: expected a string that is not empty, got ''"),
        ("a" * 1_001, ValueError, "tag: expected at most 1000 bytes of UTF-8, got 1001 ('aaaa"),
        ("é" * 501, ValueError, "tag: expected at most 1000 bytes of UTF-8, got 1002"),
        ("\ud800", ValueError, r"tag: expected Unicode text, got '\ud800'"),
        ("a\nb", ValueError, r"tag: expected no control characters, got 'a\nb'"),
        ("\x1b[2J", ValueError, r"tag: expected no control characters, got '\x1b[2J'"),
    ],
)
def test_a_tag_that_is_none_is_refused(tag: Any, error: type[Exception], start: str) -> None:
    with refused(start, error):
        rules.check_tag(tag)


@pytest.mark.parametrize("code", [*range(0x20), *range(0x7F, 0xA0)])
def test_every_control_character_is_refused_wherever_there_is_text(code: int) -> None:
    for check in (rules.check_tag, rules.check_run, rules.check_suffix):
        with pytest.raises(ValueError, match="expected no control characters"):
            check(f"a{chr(code)}b")


@pytest.mark.parametrize(
    "run",
    [".", "a", "a/b", "Nov18_host/lr=0.1", "a.b", "a..b", "%2F", "~", "a b", "/".join("a" * 16)],
)
def test_a_run_is_a_relative_path_of_plain_names(run: str) -> None:
    assert rules.check_run(run) == run


@pytest.mark.parametrize(
    ("run", "error", "start"),
    [
        (None, TypeError, "run: expected a string, got None (NoneType)"),
        (7, TypeError, "run: expected a string, got 7 (int)"),
        ("", ValueError, "run: expected names with '/' between, none of them empty"),
        ("/etc/passwd", ValueError, "run: expected names with '/' between, none of them empty"),
        ("a//b", ValueError, "run: expected names with '/' between, none of them empty"),
        ("a/", ValueError, "run: expected names with '/' between, none of them empty"),
        ("..", ValueError, "run: expected names"),
        ("../a", ValueError, "run: expected names"),
        ("a/../../b", ValueError, "run: expected names"),
        ("./a", ValueError, "run: expected names"),
        ("a/./b", ValueError, "run: expected names"),
        (".ranktap", ValueError, "run: expected names"),
        (".ranktap/runs", ValueError, "run: expected names"),
        ("a/.hidden", ValueError, "run: expected names"),
        (" a", ValueError, "run: expected names"),
        ("a/ ..", ValueError, "run: expected names"),
        ("a\u3000", ValueError, "run: expected names"),
        ("a\\b", ValueError, r"run: expected no backslash, got 'a\\b'"),
        ("a\0b", ValueError, r"run: expected no control characters, got 'a\x00b'"),
        ("a" * 201, ValueError, "run: expected at most 200 bytes of UTF-8, got 201"),
        ("/".join("a" * 17), ValueError, "run: expected at most 16 names between '/', got 17"),
        ("%" * 81, ValueError, "run: expected a shorter name or fewer '/', got"),
        ("\udc80", ValueError, r"run: expected Unicode text, got '\udc80'"),
    ],
)
def test_a_run_that_could_leave_the_logdir_is_refused(
    run: Any, error: type[Exception], start: str
) -> None:
    with refused(start, error):
        rules.check_run(run)


@pytest.mark.parametrize("sub_run", [".", "..", "a/../..", "/a", "", "a\tb", ".hidden", 7])
def test_a_sub_run_that_could_leave_its_run_or_be_it_is_refused(sub_run: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"^sub-run: expected"):
        rules.check_sub_run(sub_run)
    assert rules.check_sub_run("a/b c") == "a/b c"


@pytest.mark.parametrize("name", ["loss", "a/b\tloss", "a b\t loss"])
def test_a_name_is_a_tag_or_a_sub_run_and_a_tag(name: str) -> None:
    assert rules.check_name(name) == name


@pytest.mark.parametrize(
    ("name", "error", "start"),
    [
        (None, TypeError, "tag: expected a string, got None"),
        ("", ValueError, "tag: expected a string that is not empty"),
        ("a\t", ValueError, "tag: expected a string that is not empty"),
        ("\ta", ValueError, "sub-run: expected names with '/' between"),
        ("a\tb\tc", ValueError, "tag: expected no control characters"),
        ("../a\tb", ValueError, "sub-run: expected names with '/' between"),
        ("a\t" + "b" * 1_001, ValueError, "tag: expected at most 1000 bytes of UTF-8, got 1001"),
        ("a" * 201 + "\tb", ValueError, "sub-run: expected at most 200 bytes of UTF-8, got 201"),
    ],
)
def test_a_name_of_which_a_part_is_wrong_is_refused(
    name: Any, error: type[Exception], start: str
) -> None:
    with refused(start, error):
        rules.check_name(name)


TEXT = st.text(st.sampled_from("a%/2F5Eé."), max_size=90)


@given(TEXT)
def test_the_directory_of_a_run_that_may_be_fits_a_file_system_and_tells_the_run(run: str) -> None:
    try:
        rules.check_run(run)
    except ValueError:
        pass
    else:
        # Worst: many characters of two bytes and many that are escaped to three.
        assert len(rules.run_directory_name(run).encode()) <= 255
    name = rules.run_directory_name(run)
    assert "/" not in name
    assert rules.run_of_directory_name(name) == run


def test_a_run_of_escaped_and_wide_characters_still_fits_a_file_name() -> None:
    with refused("run: expected a shorter name"):
        rules.check_run("é" * 72 + "%" * 56)


@given(TEXT, TEXT)
def test_two_runs_never_share_a_directory(one: str, other: str) -> None:
    same = rules.run_directory_name(one) == rules.run_directory_name(other)
    assert same == (one == other)


@pytest.mark.parametrize(
    ("suffix", "error", "start"),
    [
        (None, TypeError, "filename_suffix: expected a string, got None"),
        ("a" * 65, ValueError, "filename_suffix: expected at most 64 bytes of UTF-8, got 65"),
        ("/../../a", ValueError, "filename_suffix: expected no '/', got '/../../a'"),
        ("a\0", ValueError, "filename_suffix: expected no control characters"),
    ],
)
def test_a_suffix_that_cannot_end_a_file_name_is_refused(
    suffix: Any, error: type[Exception], start: str
) -> None:
    with refused(start, error):
        rules.check_suffix(suffix)
    assert rules.check_suffix(".node-1") == ".node-1"


# -- numbers ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "step", [0, -1, STEP_MIN, STEP_MAX, np.int64(7), np.uint8(7), np.array(7)], ids=repr
)
def test_a_step_may_be_any_integer_of_64_bits(step: Any) -> None:
    assert rules.check_step(step) == int(step)
    assert type(rules.check_step(step)) is int


@pytest.mark.parametrize(
    ("step", "error", "start"),
    [
        (True, TypeError, "step: expected an integer, got True (bool)"),
        (np.bool_(True), TypeError, "step: expected an integer"),
        (1.0, TypeError, "step: expected an integer, got 1.0 (float)"),
        ("1", TypeError, "step: expected an integer, got '1' (str)"),
        (None, TypeError, "step: expected an integer, got None"),
        (np.array([1, 2]), TypeError, "step: expected an integer"),
        (STEP_MAX + 1, ValueError, "step: expected an integer of 64 bits, got 9223372036854775808"),
        (STEP_MIN - 1, ValueError, "step: expected an integer of 64 bits"),
    ],
)
def test_a_step_that_is_no_integer_of_64_bits_is_refused(
    step: Any, error: type[Exception], start: str
) -> None:
    with refused(start, error):
        rules.check_step(step)


@pytest.mark.parametrize(
    ("walltime", "error", "start"),
    [
        (math.nan, ValueError, "walltime: expected a finite number of seconds, got nan"),
        (math.inf, ValueError, "walltime: expected a finite number of seconds, got inf"),
        (10**400, ValueError, "walltime: expected seconds since 1970, got 1"),
        (True, TypeError, "walltime: expected seconds since 1970, got True (bool)"),
        ("now", TypeError, "walltime: expected seconds since 1970, got 'now' (str)"),
        (1j, TypeError, "walltime: expected seconds since 1970, got 1j (complex)"),
    ],
)
def test_a_wall_time_that_stops_tensorboard_is_refused(
    walltime: Any, error: type[Exception], start: str
) -> None:
    with refused(start, error):
        rules.check_walltime(walltime)
    assert rules.check_walltime(np.float32(1.5)) == 1.5


@pytest.mark.parametrize("across", ["median", "", None, 3, ["mean"]])
def test_a_policy_that_there_is_not_is_refused_with_those_there_are(across: Any) -> None:
    with refused("across: expected one of 'mean', 'sum', 'min', 'max', 'last', 'rank0', 'each'"):
        rules.check_across(across, SCALAR_ACROSS)


@pytest.mark.parametrize("name", SCALAR_ACROSS)
def test_every_policy_has_the_name_that_the_documentation_gives_it(name: str) -> None:
    assert rules.check_across(name, SCALAR_ACROSS).name.lower() == name
    with refused("across: "):
        rules.check_across("merge", SCALAR_ACROSS)
    assert rules.check_across("merge", HISTOGRAM_ACROSS) is Across.MERGE


# -- errors -----------------------------------------------------------------------------


def nested(depth: int, inner: Any = 0) -> Any:
    value = inner
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [nested(100_000), "a" * 100_000, [0] * 100_000, {i: i for i in range(99)}, b"a" * 999, 10**300],
    ids=["deep", "text", "list", "map", "bytes", "number"],
)
def test_an_error_names_any_value_in_a_line(value: Any) -> None:
    assert 0 < len(rules.shown(value)) <= 60


def test_small_values_are_named_whole() -> None:
    for value in (None, "text", 7, 1.5, [1, 2], {"a": 1}, (1, 2)):
        assert rules.shown(value) == repr(value)
