"""What a side has read back of its own work, for whoever started it."""

from __future__ import annotations

from collections.abc import Mapping

found: dict[str, int] = {}


def read_back(logged: Mapping[str, int], seen: Mapping[str, int]) -> None:
    """Note what was seen of what was logged.

    Raises:
        RuntimeError: it is not all of it, or more. A figure that comes from work which did not
            arrive is no figure.
    """
    if dict(logged) != dict(seen):
        raise RuntimeError(f"logged {_shown(logged)}, found {_shown(seen)}")
    note(logged)


def note(counts: Mapping[str, int]) -> None:
    """Add to what this side has read back."""
    for name, count in counts.items():
        found[name] = found.get(name, 0) + count


def _shown(counts: Mapping[str, int]) -> str:
    first = dict(list(counts.items())[:5])
    return f"{first}{f' and {len(counts) - 5} more' if len(counts) > 5 else ''}"
