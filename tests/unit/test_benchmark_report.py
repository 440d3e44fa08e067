"""The benchmarks' choice of cases, their turns, and what is made of their figures."""

from __future__ import annotations

import pytest

from benchmarks import report
from benchmarks.profiling.report import by_kind, kind_of
from benchmarks.registry import (
    CASES,
    DEFAULT_GROUPS,
    GROUPS,
    UnknownError,
    choose,
    incomplete_groups,
    left_out,
)
from benchmarks.rivals import DISTRIBUTIONS
from benchmarks.runner import Runs, Turn, time_left, turns

MACHINE = {"date": "2030-01-01", "processor": "one", "rivals": ""}


def names(patterns: list[str], groups: list[str]) -> list[str]:
    return [case.name for case in choose(patterns, groups)]


def scalar_call(ours: list[float], theirs: list[float]) -> dict[str, Runs]:
    both = {side: {"tight loop": values} for side, values in (("ranktap", ours), ("torch", theirs))}
    return {"scalar-call": both}


def line(text: str, start: str) -> list[str]:
    found = next(line for line in text.splitlines() if line.startswith(f"| {start}"))
    return [cell.strip() for cell in found.strip("|").split("|")]


# -- which, and in which order ------------------------------------------------------------


def test_without_a_name_it_is_the_usual_groups() -> None:
    assert {case.group for case in choose([], [])} == set(DEFAULT_GROUPS)
    assert names([], ["all"]) == [case.name for case in CASES]
    assert names([], ["hooks"])[0] == "watch-moments"


def test_patterns_choose_cases_in_the_order_of_the_tables() -> None:
    assert names(["image-s*", "scalar-call"], []) == [
        "scalar-call",
        "image-sizes-call",
        "image-sizes",
    ]


def test_an_unknown_case_is_named_with_those_that_there_are() -> None:
    with pytest.raises(UnknownError, match=r"'scaler\*' matches none of scalar-call, image-call"):
        choose(["scaler*"], [])
    with pytest.raises(UnknownError, match=r"--group: expected all or one of logging, .*got 'al'"):
        choose([], ["al"])


def test_every_case_is_in_a_group_and_its_name_is_its_own() -> None:
    assert {case.group for case in CASES} == set(GROUPS) == set(report.HEADINGS)
    assert len({case.name for case in CASES}) == len(CASES)
    for case in CASES:
        assert "ranktap" in case.sides
        assert set(case.targets) <= set(case.units)


def test_sides_take_turns_and_change_their_order_with_each_round() -> None:
    cases = choose(["scalar-call", "latency"], [])
    assert [(turn.round, turn.case.name, turn.side) for turn in turns(cases, 2, {})] == [
        (0, "scalar-call", "ranktap"), (0, "scalar-call", "torch"), (0, "latency", "ranktap"),
        (1, "scalar-call", "torch"), (1, "scalar-call", "ranktap"), (1, "latency", "ranktap"),
    ]  # fmt: skip


def test_libraries_that_are_not_installed_are_left_out() -> None:
    cases = choose(["rivals-scalars"], [])
    assert left_out(cases[0], {"wandb": "1"}) == [name for name in DISTRIBUTIONS if name != "wandb"]
    sides = [turn.side for turn in turns(cases, 1, {"wandb": "1"})]
    assert sides == ["ranktap", "torch", "wandb"]


def test_what_is_left_is_what_was_taken_before_and_as_long_as_others_for_the_rest() -> None:
    case, other = choose(["scalar-call", "image-call"], [])
    planned = [Turn(1, case, "ranktap"), Turn(1, other, "ranktap")]
    assert time_left(planned, {}) == ""
    assert time_left(planned, {("scalar-call", "ranktap"): 10.0}) == "; about 20 s left"
    known = {("scalar-call", "ranktap"): 60.0, ("image-call", "ranktap"): 240.0}
    assert time_left(planned, known) == "; about 5 min left"


# -- tables ------------------------------------------------------------------------------


def test_a_row_has_medians_spreads_and_the_ratio_of_pairs() -> None:
    text = report.table("logging", scalar_call([1.0, 2.0, 4.0], [300.0, 200.0, 1200.0]), {})
    row = line(text, "one scalar, in the training thread, tight loop")
    assert row[1:] == [
        "2 us (1 to 4)", "300 us (200 to 1,200)", "300 (100 to 300)", "100 times", "yes",
    ]  # fmt: skip


def test_a_target_that_is_not_met_stands_out() -> None:
    text = report.table("logging", scalar_call([1.0], [99.0]), {})
    assert line(text, "one scalar, in the training thread, tight loop")[-1] == "**no**"


def test_where_more_is_better_the_ratio_is_the_other_way_round() -> None:
    results = {"scalars-end-to-end": {"ranktap": {"then": [1e6]}, "torch": {"then": [1e4]}}}
    row = line(
        report.table("logging", results, {}),
        "scalars of 20 tags, until readable in the event file, then",
    )
    assert row[1:4] == ["1,000,000 1/s (1,000,000 to 1,000,000)", "10,000 1/s (10,000 to 10,000)",
                        "100 (100 to 100)"]  # fmt: skip


def test_per_cent_of_a_step_have_no_ratio() -> None:
    results = {"lock": {side: {"slower": [0.5]} for side in ("ranktap", "torch")}}
    row = line(report.table("parts", results, {}), "a loop of pure Python")
    assert row[3:] == ["", "below 1 %", "yes"]


def test_a_side_that_failed_in_a_round_is_compared_as_a_whole() -> None:
    row = line(
        report.table("logging", scalar_call([1.0, 3.0, 5.0], [30.0, 60.0]), {}), "one scalar"
    )
    assert row[3] == "15 (15 to 15)"


def test_a_figure_that_failed_on_our_side_leaves_the_row_open() -> None:
    results = {"scalar-call": {"torch": {"tight loop": [60.0]}}}
    row = line(report.table("logging", results, {}), "one scalar, in the training thread, tight")
    assert row[1:] == ["", "60 us (60 to 60)", "", "", ""]


def test_each_library_has_a_row_with_its_release() -> None:
    figures = {"tight loop": [2.0], "paced": [4.0], "tight loop and close": [8.0]}
    theirs = {name: [10 * value for value in values] for name, values in figures.items()}
    results: dict[str, Runs] = {"rivals-scalars": {"ranktap": figures, "wandb": theirs}}
    text = report.table("rivals", results, {"wandb": "0.31.0"})
    assert line(text, "wandb 0.31.0")[1:5] == ["20 us (20 to 20)", "10", "40 us (40 to 40)", "10"]
    assert line(text, "Aim")[1] == "not installed"
    columns = {row.count("|") for row in text.splitlines()}
    assert len(columns) == 1


# -- the page ------------------------------------------------------------------------------


def test_groups_that_were_not_measured_and_the_notes_keep_what_they_said() -> None:
    first = report.page(MACHINE, 3, scalar_call([1.0], [100.0]), {}, "")
    lock: dict[str, Runs] = {"lock": {"ranktap": {"slower": [0.5]}}}
    second = report.page(MACHINE | {"date": "2031-02-02"}, 5, lock, {}, first + "## Notes\n")
    assert "100 us (100 to 100)" in second and "2030-01-01" in second
    assert "0.5 % (0.5 to 0.5)" in second and "- rounds: 5" in second
    assert second.endswith(f"{report.NOTES}## Notes\n")
    assert "rivals:" not in second  # nothing is said of what there is none of
    assert report.page(MACHINE, 3, {}, {}, second) == second


def test_whole_tables_only() -> None:
    assert incomplete_groups(choose([], ["hooks"])) == []
    assert incomplete_groups(choose(["watch-moments", "wire"], [])) == ["hooks", "parts"]


# -- profiles ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "function", "kind"),
    [
        ("~", "<built-in method posix.fdatasync>", "system calls"),
        ("~", "<built-in method google_crc32c._crc32c.value>", "checksum"),
        ("~", "<built-in method isal.igzip_lib.compress>", "deflate"),
        ("~", "<method 'tobytes' of 'numpy.ndarray' objects>", "copies"),
        ("~", "<built-in method numpy.core._multiarray_umath.bincount>", "numpy"),
        ("~", "<built-in method builtins.len>", "other C"),
        ("/x/ranktap/scalars.py", "scalar", "Python"),
        ("<frozen importlib._bootstrap>", "_find_spec", "imports"),
    ],
)
def test_a_function_is_of_a_kind_of_work(file: str, function: str, kind: str) -> None:
    assert kind_of(file, function) == kind


def test_kinds_add_up_own_time() -> None:
    stats = {
        ("~", 0, "<built-in method posix.writev>"): (1, 1, 0.5, 0.5, {}),
        ("~", 0, "<built-in method posix.fdatasync>"): (1, 1, 0.25, 0.25, {}),
        ("a.py", 1, "f"): (1, 1, 1.0, 1.75, {}),
    }
    assert by_kind(stats) == {"system calls": 0.75, "Python": 1.0}
