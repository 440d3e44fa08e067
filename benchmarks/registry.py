"""All cases, in the order of the tables, and which of their sides can run here."""

from __future__ import annotations

from importlib.util import find_spec

from benchmarks.cases import CASES as LOGGING_CASES
from benchmarks.cases import Case
from benchmarks.transport_cases import TRANSPORT_CASES
from benchmarks.watch_cases import WATCH_CASES
from benchmarks.windows_cases import WINDOWS_CASES

CASES = [*LOGGING_CASES, *WINDOWS_CASES, *TRANSPORT_CASES, *WATCH_CASES]

PACKAGES = {"wandb": "wandb"}
"""What a side needs that the project does not bring."""


def can_run(side: str) -> bool:
    return side not in PACKAGES or find_spec(PACKAGES[side]) is not None


def left_out(case: Case) -> list[str]:
    """The sides of a case that cannot run here."""
    return [side for side in case.sides if not can_run(side)]
