"""All cases, in the order of the table."""

from __future__ import annotations

from benchmarks.cases import CASES as LOGGING_CASES
from benchmarks.watch_cases import WATCH_CASES

CASES = [*LOGGING_CASES, *WATCH_CASES]
