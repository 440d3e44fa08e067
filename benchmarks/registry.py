"""All cases, in the order of the tables, and which of their sides can run here."""

from __future__ import annotations

from fnmatch import fnmatchcase

from benchmarks.array_sizes import ARRAY_CASES
from benchmarks.call_cases import CALL_CASES
from benchmarks.cases import CASES as LOGGING_CASES
from benchmarks.cases import Case
from benchmarks.cost_cases import COST_CASES
from benchmarks.journal_cases import JOURNAL_CASES
from benchmarks.rival_cases import DICT_CASE, RIVAL_CASES
from benchmarks.rivals import DISTRIBUTIONS
from benchmarks.scalar_sizes import SCALAR_CASES
from benchmarks.transport_cases import TRANSPORT_CASES
from benchmarks.watch_cases import WATCH_CASES
from benchmarks.windows_cases import WINDOWS_CASES
from benchmarks.wire_cases import WIRE_CASES

CASES = [
    *CALL_CASES, *LOGGING_CASES, DICT_CASE, *WINDOWS_CASES,
    *WATCH_CASES,
    *RIVAL_CASES,
    *SCALAR_CASES, *ARRAY_CASES,
    *COST_CASES, *JOURNAL_CASES, *WIRE_CASES, *TRANSPORT_CASES,
]  # fmt: skip

GROUPS = {
    "logging": "what logging costs, and how much of it there can be: the figures with targets",
    "hooks": "what watching a model costs a training step",
    "rivals": "the same work by other libraries",
    "sizes": "how each thing grows",
    "parts": "journal, wire, intake, starting, the interpreter's lock, each beside its bound",
}
DEFAULT_GROUPS = ("logging", "hooks")


class UnknownError(ValueError):
    """A name is the name of no case, or of no group."""


def choose(patterns: list[str], groups: list[str]) -> list[Case]:
    """The cases of these names or patterns, else of these groups, else of the usual ones.

    Raises:
        UnknownError: one of them matches nothing; the message has what there is.
    """
    for group in groups:
        if group not in (*GROUPS, "all"):
            raise UnknownError(
                f"--group: expected all or one of {', '.join(GROUPS)}, got {group!r}"
            )
    if not patterns:
        wanted = groups or [*DEFAULT_GROUPS]
        return [case for case in CASES if case.group in wanted or "all" in wanted]
    chosen = []
    for pattern in patterns:
        found = [case for case in CASES if fnmatchcase(case.name, pattern)]
        if not found:
            names = ", ".join(case.name for case in CASES)
            raise UnknownError(f"CASE: {pattern!r} matches none of {names}")
        chosen += found
    return [case for case in CASES if case in chosen]


def left_out(case: Case, rivals: dict[str, str]) -> list[str]:
    """The sides of a case that need a library which is not among these."""
    return [side for side in case.sides if side in DISTRIBUTIONS and side not in rivals]


def incomplete_groups(chosen: list[Case]) -> list[str]:
    """Groups of which some cases were chosen and some were not."""
    touched = {case.group for case in chosen}
    return [
        group
        for group in GROUPS
        if group in touched and any(case.group == group and case not in chosen for case in CASES)
    ]
