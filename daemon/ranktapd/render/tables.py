"""Markdown as TensorBoard's Text tab shows it: tables, and words that others have chosen."""

from collections.abc import Iterable, Sequence
from typing import Final

_ENTITIES: Final = {ord(letter): f"&#{ord(letter)};" for letter in "\\`*_[]<>|&\n\r\t"}
"""What means something to Markdown, its tables or HTML, as a character reference."""


def plain(text: str) -> str:
    """A text as it is, whatever is in it: a host's name, a command line."""
    return text.translate(_ENTITIES)


def code(text: str) -> str:
    """A text in the letters of code."""
    # Within backticks nothing needs to be, or can be, said otherwise.
    return plain(text) if not text or set(text) & set("`|\\\n\r") else f"`{text}`"


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are Markdown already; it ends with a newline."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
