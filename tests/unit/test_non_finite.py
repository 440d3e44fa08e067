"""What is not finite: who had it first, told once, in the order of computation."""

from __future__ import annotations

import logging
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ranktap_wire.records import MOMENTS, Across, Batch, Blob, Kind
from ranktapd.fold import Fold
from ranktapd.non_finite import INCIDENT_STEPS, RECOVERIES, ROWS
from tests.support.messages import columns
from tests.unit.test_fold import Journal, begun, events

NAN, INF = math.nan, math.inf


def moments(
    section: str,
    bad: dict[str, int],
    *,
    step: int = 17,
    across: Across = Across.MERGE,
    group: str | None = None,
    start: int = 0,
) -> Blob:
    """A record of a watch: how many values of each name are not finite."""
    rows = np.zeros((len(bad), len(MOMENTS)))
    rows[:, MOMENTS.index("count")] = 1.0
    rows[:, MOMENTS.index("non_finite")] = [*bad.values()]
    tags = "\n".join(f"{section}/{name}" for name in bad).encode()
    parameters = {"fields": ["mean"], "replicated": across is Across.RANK0}
    tag = group or f"ranktap/watch/{section}/own/0.0.{start}"
    return Blob(
        Kind.MOMENTS, tag, step, 1.5, across, "float64", rows.shape, parameters, rows,
        {"tags": tags},
    )  # fmt: skip


def texts(written: bytes, tag: str = "ranktap/non_finite") -> list[tuple[int, str]]:
    """Step and words of each text of that tag."""
    return [
        (event.step, value.tensor.string_val[0].decode())
        for event in events(written)
        for value in event.summary.value
        if value.tag == f"{tag}/text_summary"
    ]


def rows_of(text: str) -> list[list[str]]:
    """The cells of a text's table, less its titles."""
    lines = [line for line in text.split("\n") if line.startswith("|")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]


def first_line(journal: Journal) -> str:
    """Of the text that the last group gave."""
    ((_, text),) = texts(journal.last.join())
    return text.partition("\n")[0]


def scalars(journal: Journal, session: int, *values: float, step: int = 0) -> list[str]:
    """Log these as `loss` at consecutive steps; the first lines of the texts that come."""
    given = columns([*values], ("loss",))
    given.step = given.step + step
    journal.batch(session, 1, Batch(given))
    return [text.partition("\n")[0] for _, text in texts(journal.last.join())]


def test_the_first_line_says_who_when_what_and_where() -> None:
    journal = begun(4)
    journal.blobs(2, 1, moments("activations", {"layer1": 0, "layer3": 5, "layer4": 7}))
    ((step, text),) = texts(journal.last.join())
    assert step == 17
    assert text.startswith("**rank 2** (host) step 17: first `activations/layer3` in the forward\n")
    assert rows_of(text) == [
        ["2", "host", "17", "`activations/layer3`", "forward"],
        ["2", "host", "17", "`activations/layer4`", "forward"],
    ]


def test_a_step_is_in_the_order_of_its_computation() -> None:
    journal = begun(4)
    loss = columns([NAN], ("loss",))
    loss.step = loss.step + 17
    blobs = [
        moments("updates", {"a.weight": 1}),
        moments("parameters", {"a.weight": 1}),
        moments("gradients", {"a.weight": 1, "b.weight": 1}),
        moments("grad_inputs", {"b": 1, "a": 1}),
        moments("grad_outputs", {"b": 1, "a": 1}),
        moments("activations", {"a": 1, "b": 1}),
        moments("inputs", {"a": 1, "b": 1}),
    ]
    journal.batch(1, 1, Batch(loss, blobs))
    ((_, text),) = texts(journal.last.join())
    assert [row[3].strip("`") for row in rows_of(text)] == [
        "inputs/a", "activations/a", "inputs/b", "activations/b",
        "grad_outputs/b", "grad_inputs/b", "grad_outputs/a", "grad_inputs/a",
        "gradients/b.weight", "gradients/a.weight",
        "parameters/a.weight", "updates/a.weight", "loss",
    ]  # fmt: skip
    assert [row[4] for row in rows_of(text)] == [
        *["forward"] * 4, *["backward"] * 6, "optimizer", "optimizer", "scalar",
    ]  # fmt: skip


def test_records_of_many_rows_are_in_the_order_of_all_of_them() -> None:
    journal = begun(2)
    journal.blobs(
        0, 1, moments("activations", {"c": 1}, start=3_500), moments("activations", {"b": 1}),
        moments("gradients", {"x": 1}), moments("gradients", {"y": 1}, start=3_500),
    )  # fmt: skip
    ((_, text),) = texts(journal.last.join())
    found = [row[3].strip("`").partition("/")[2] for row in rows_of(text)]
    assert found == ["b", "c", "y", "x"]


def test_what_comes_later_and_was_earlier_is_put_first_in_a_text_that_is_written_again() -> None:
    journal = begun(4)
    journal.blobs(0, 1, moments("activations", {"layer1": 1}, step=18))
    assert first_line(journal).startswith("**rank 0** (host) step 18")
    journal.blobs(2, 1, moments("grad_outputs", {"layer5": 1}, step=17))
    assert first_line(journal) == (
        "**rank 2** (host) step 17: first `grad_outputs/layer5` in the backward"
    )
    journal.blobs(2, 2, moments("activations", {"layer3": 1}, step=17))
    ((step, text),) = texts(journal.last.join())
    assert step == 17
    assert [row[:1] + row[2:4] for row in rows_of(text)] == [
        ["2", "17", "`activations/layer3`"],
        ["2", "17", "`grad_outputs/layer5`"],
        ["0", "18", "`activations/layer1`"],
    ]


def test_a_tag_of_a_rank_is_told_once_until_it_is_finite_again() -> None:
    journal = begun(2)
    assert scalars(journal, 1, 1.0) == []
    assert scalars(journal, 1, NAN, step=1) == ["**rank 1** (host) step 1: first `loss`, a scalar"]
    assert scalars(journal, 1, INF, -INF, step=2) == []
    assert len(scalars(journal, 0, NAN, step=4)) == 1, "another rank's is another"
    assert scalars(journal, 1, 2.0, step=5) == []
    assert len(scalars(journal, 1, NAN, step=6)) == 1
    rows = rows_of(texts(journal.last.join())[0][1])
    assert [(row[0], row[2]) for row in rows] == [("1", "1"), ("0", "4"), ("1", "6")]


def test_a_measured_tensor_is_told_of_again_after_it_was_finite() -> None:
    journal = begun(2)
    told = []
    for step, count in enumerate([1, 2, 0, 3]):
        journal.blobs(0, 1, moments("activations", {"a": count}, step=step))
        told.append(len(texts(journal.last.join())))
    assert told == [1, 0, 0, 1]


def test_what_happens_much_later_is_an_incident_of_its_own() -> None:
    journal = begun(2)
    scalars(journal, 0, NAN, step=3)
    later = 3 + INCIDENT_STEPS + 1
    assert scalars(journal, 1, NAN, step=later) == [
        f"**rank 1** (host) step {later}: first `loss`, a scalar"
    ]
    assert [step for step, _ in texts(journal.output)] == [3, later]


def test_two_incidents_of_one_group_have_a_text_each() -> None:
    journal = begun(2)
    journal.blobs(
        0, 1, moments("activations", {"a": 1}, step=5),
        moments("activations", {"b": 1}, step=6 + INCIDENT_STEPS),
    )  # fmt: skip
    assert [step for step, _ in texts(journal.last.join())] == [5, 6 + INCIDENT_STEPS]


def test_a_tag_that_comes_and_goes_is_told_so_often_and_no_more() -> None:
    journal = begun(2)
    told = 0
    for step in range(0, 4 * RECOVERIES, 2):
        told += len(scalars(journal, 0, NAN, 1.0, step=step))
    assert told == RECOVERIES


def test_the_log_has_the_first_line_once(caplog: pytest.LogCaptureFixture) -> None:
    journal = begun(2)
    with caplog.at_level(logging.WARNING, "ranktapd"):
        journal.blobs(0, 1, moments("activations", {"b": 1}))
        journal.blobs(0, 2, moments("grad_outputs", {"b": 1}))
        journal.blobs(1, 1, moments("activations", {"a": 1}, step=16))
    assert caplog.messages == [
        "not finite: rank 0 (host) step 17: first 'activations/b' in the forward",
        "not finite: rank 1 (host) step 16: first 'activations/a' in the forward",
    ]


def test_what_all_ranks_have_alike_is_no_single_ranks() -> None:
    journal = begun(4)
    journal.blobs(0, 1, moments("gradients", {"a.weight": 1}, across=Across.RANK0))
    assert first_line(journal) == (
        "**every rank** (host) step 17: first `gradients/a.weight` in the backward"
    )


def test_a_tensor_with_a_tag_of_the_users_is_between_forward_and_backward() -> None:
    journal = begun(2)
    journal.blobs(
        0, 1, moments("grad_outputs", {"a": 1}), moments("my", {"h": 1}, group="ranktap/hook/my/h")
    )
    assert first_line(journal) == "**rank 0** (host) step 17: first `my/h`"


def test_a_process_that_is_alone_is_told_of_its_tensors_and_not_of_its_scalars() -> None:
    journal = begun(1)
    assert scalars(journal, 0, NAN) == []
    journal.blobs(0, 1, moments("activations", {"a": 1}))
    assert first_line(journal) == "**rank 0** (host) step 17: first `activations/a` in the forward"


def test_a_text_has_so_many_rows_and_is_written_again_only_when_they_change() -> None:
    journal = begun(2)
    journal.blobs(0, 1, moments("activations", {f"layer{k}": 1 for k in range(ROWS + 10)}))
    ((_, text),) = texts(journal.last.join())
    assert len(rows_of(text)) == ROWS
    assert text.endswith(f"and more: these {ROWS} were computed first\n")
    journal.blobs(1, 1, moments("grad_outputs", {"layer1": 1}))
    assert texts(journal.last.join()) == []
    journal.blobs(1, 2, moments("activations", {"layer0": 1}))
    assert len(texts(journal.last.join())) == 1


def test_a_job_that_was_started_again_is_told_anew() -> None:
    journal = begun(2)
    assert len(scalars(journal, 0, NAN)) == 1
    journal.open(10, 0, 2)
    journal.open(11, 1, 2)
    assert len(scalars(journal, 10, NAN)) == 1


def test_a_fold_goes_on_from_its_state_with_the_same_texts() -> None:
    whole, first = begun(3), begun(3)
    for journal in (whole, first):
        journal.blobs(0, 1, moments("activations", {"b": 1, "c": 0}, step=18))
        scalars(journal, 2, NAN, step=20)
    second = Journal(Fold.restore(first.fold.state(), ThreadPoolExecutor(1)))
    second.sequence = first.sequence
    for journal in (whole, second):
        journal.blobs(0, 2, moments("activations", {"b": 1, "c": 1}, step=19))
        journal.blobs(2, 1, moments("activations", {"a": 1}, step=17))
        scalars(journal, 2, NAN, 1.0, NAN, step=21)
    assert whole.output == first.output + second.output
    assert len(texts(second.output)) == 2
