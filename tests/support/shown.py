"""What TensorBoard's Python loader makes of a run, held against what was logged."""

from __future__ import annotations

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.support.event_files import OWN_TAGS, accumulate
from tests.support.ledger import Contents, assert_same, read_run


def read_logged(directory: Path, *, beside: bool = False) -> Contents:
    """What of a run's files its users have logged: not what ranktap says of the run itself."""
    found = read_run(directory, beside=beside)
    for series in (found.scalars, found.pictures, found.histograms, found.texts):
        for tag in [tag for tag in series if tag.startswith(OWN_TAGS)]:
            del series[tag]  # type: ignore[attr-defined]
    return found


def assert_shown(directory: Path, expected: Contents, *, beside: bool = False) -> None:
    """Every record of the run's files is as expected, and the loader shows every one of them.

    With what is beside them: its sub-runs and the projector's files, too.

    Raises:
        AssertionError: which tag differs, and how.
    """
    assert_same(read_logged(directory, beside=beside), expected)
    by_sub_run: dict[str, dict[str, list[tuple[int, float]]]] = {"": {}}
    for key, points in expected.scalars.items():
        sub_run, colon, tag = key.partition(": ")
        by_sub_run.setdefault(sub_run if colon else "", {})[tag if colon else key] = points
    for sub_run, scalars in by_sub_run.items():
        _assert_scalars(accumulate(directory / sub_run), scalars)
    found = accumulate(directory)
    tags = found.Tags()
    for kind, wanted in (("images", expected.pictures), ("histograms", expected.histograms)):
        assert {tag for tag in tags[kind] if not tag.startswith(OWN_TAGS)} == {*wanted}, kind
    for tag, pictures in expected.pictures.items():
        assert [point.step for point in found.Images(tag)] == [point[0] for point in pictures], tag
    for tag, histograms in expected.histograms.items():
        shown = [(point.step, point.histogram_value.num) for point in found.Histograms(tag)]
        assert shown == [(step, numbers[0]) for step, numbers, _ in histograms], tag
    for tag, texts in expected.texts.items():
        shown_texts = [
            (point.step, point.tensor_proto.string_val[0].decode()) for point in found.Tensors(tag)
        ]
        assert shown_texts == texts, tag


def _assert_scalars(found: EventAccumulator, wanted: dict[str, list[tuple[int, float]]]) -> None:
    shown = {tag for tag in found.Tags()["scalars"] if not tag.startswith(OWN_TAGS)}
    assert shown == {*wanted}
    for tag, points in wanted.items():
        assert [(point.step, point.value) for point in found.Scalars(tag)] == points, tag
