"""Every case of the benchmarks does its work, in the smallest size: what it has read back counts.

No time is looked at.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import child, tally, work
from benchmarks.registry import CASES
from benchmarks.rivals import DISTRIBUTIONS

SIDES = [
    pytest.param(case.name, side, id=f"{case.name}-{side}")
    for case in CASES
    for side in case.sides
    if side not in DISTRIBUTIONS
]


@pytest.fixture(autouse=True)
def smoke() -> Iterator[None]:
    work.begin(smoke=True)
    tally.found.clear()
    yield
    tally.found.clear()
    work.begin(smoke=False)


@pytest.mark.parametrize(("name", "side"), SIDES)
def test_a_case_reads_back_what_it_logged(name: str, side: str, tmp_path: Path) -> None:
    figures = child.measure(name, side, tmp_path)
    print(f"{name}, {side}: {sum(tally.found.values())} read back")
    assert figures and all(map(math.isfinite, figures.values()))
    assert tally.found and all(count > 0 for count in tally.found.values())
