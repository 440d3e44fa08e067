"""What TensorBoard's Python loader makes of a run, held against what was logged."""

from __future__ import annotations

from pathlib import Path

from tests.support.event_files import accumulate
from tests.support.ledger import Contents, assert_same, read_run


def assert_shown(directory: Path, expected: Contents) -> None:
    """Every record of the run's files is as expected, and the loader shows every one of them.

    Raises:
        AssertionError: which tag differs, and how.
    """
    assert_same(read_run(directory), expected)
    found = accumulate(directory)
    tags = found.Tags()
    assert set(tags["scalars"]) == set(expected.scalars)
    assert set(tags["images"]) == set(expected.pictures)
    assert set(tags["histograms"]) == set(expected.histograms)
    for tag, points in expected.scalars.items():
        assert [(point.step, point.value) for point in found.Scalars(tag)] == points, tag
    for tag, pictures in expected.pictures.items():
        assert [point.step for point in found.Images(tag)] == [point[0] for point in pictures], tag
    for tag, histograms in expected.histograms.items():
        shown = [(point.step, point.histogram_value.num) for point in found.Histograms(tag)]
        assert shown == [(step, numbers[0]) for step, numbers, _ in histograms], tag
