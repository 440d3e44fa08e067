"""Numbers and names as a person reads them, in columns of a terminal."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable, Sequence
from typing import Final

GAP: Final = 2
"""Between two columns."""

Row = tuple[str, ...]


def size(nbytes: float) -> str:
    """Bytes, in three or four digits."""
    if nbytes < 1_000:
        return f"{nbytes:.0f} B"
    units = iter(("kB", "MB", "GB"))
    unit = "kB"
    while nbytes >= 999.95 and unit != "TB":
        nbytes, unit = nbytes / 1_000, next(units, "TB")
    return f"{nbytes:.1f} {unit}"


def duration(seconds: float) -> str:
    """Seconds, minutes, hours or days, in two or three digits."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    if minutes < 100:
        return f"{minutes:.0f} min"
    return f"{minutes / 60:.0f} h" if minutes < 6_000 else f"{minutes / 1_440:.0f} days"


def printable(text: str) -> str:
    """The text, without what a terminal would obey."""
    return "".join(each if each.isprintable() else "?" for each in text)


def cells(text: str) -> int:
    """The columns that a text takes on a terminal."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(each) else 2 if unicodedata.east_asian_width(each) in "WF" else 1
        for each in text
    )


def cut(text: str, most: int) -> str:
    """The text, cut where it takes more than so many columns."""
    if cells(text) <= most:
        return text
    kept = ""
    for each in text:
        if cells(kept + each) > most - 1:
            break
        kept += each
    return kept + "…" if most > 0 else ""


def lines(names: Row, rows: Iterable[Row], left: Collection[str]) -> list[str]:
    """A table of texts, its names first; columns in `left` begin at the left."""
    table = [names, *rows]
    widths = [max(map(cells, column)) for column in zip(*table, strict=True)]
    return [
        (" " * GAP)
        .join(
            cell + " " * (width - cells(cell))
            if name in left
            else " " * (width - cells(cell)) + cell
            for name, cell, width in zip(names, row, widths, strict=True)
        )
        .rstrip()
        for row in table
    ]


def width(names: Row, rows: Sequence[Row]) -> int:
    """How wide such a table is."""
    widths = [max(map(cells, column)) for column in zip(names, *rows, strict=True)]
    return sum(widths) + GAP * (len(widths) - 1)
