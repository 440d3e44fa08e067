"""What TensorBoard's Python loader makes of a run, held against what was logged."""

from __future__ import annotations

from pathlib import Path

from tests.support.event_files import OWN_TAGS, accumulate
from tests.support.ledger import Contents, assert_same, read_run


def read_logged(directory: Path) -> Contents:
    """What of a run's files its users have logged: not what ranktap says of the run itself."""
    found = read_run(directory)
    for series in (found.scalars, found.pictures, found.histograms, found.texts):
        for tag in [tag for tag in series if tag.startswith(OWN_TAGS)]:
            del series[tag]  # type: ignore[attr-defined]
    return found


def assert_shown(directory: Path, expected: Contents) -> None:
    """Every record of the run's files is as expected, and the loader shows every one of them.

    Raises:
        AssertionError: which tag differs, and how.
    """
    assert_same(read_logged(directory), expected)
    found = accumulate(directory)
    tags = found.Tags()
    for kind, wanted in (
        ("scalars", expected.scalars),
        ("images", expected.pictures),
        ("histograms", expected.histograms),
    ):
        assert {tag for tag in tags[kind] if not tag.startswith(OWN_TAGS)} == {*wanted}, kind
    for tag, points in expected.scalars.items():
        assert [(point.step, point.value) for point in found.Scalars(tag)] == points, tag
    for tag, pictures in expected.pictures.items():
        assert [point.step for point in found.Images(tag)] == [point[0] for point in pictures], tag
    for tag, histograms in expected.histograms.items():
        shown = [(point.step, point.histogram_value.num) for point in found.Histograms(tag)]
        assert shown == [(step, numbers[0]) for step, numbers, _ in histograms], tag
