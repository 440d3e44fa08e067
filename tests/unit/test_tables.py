"""Numbers and names in columns."""

from __future__ import annotations

import pytest

from ranktap import tables


@pytest.mark.parametrize(
    ("nbytes", "shown"),
    [(0, "0 B"), (999, "999 B"), (1_000, "1.0 kB"), (999_949, "999.9 kB"), (999_999, "1.0 MB"),
     (12_345_678, "12.3 MB"), (5e9, "5.0 GB"), (7.2e15, "7200.0 TB")],
)  # fmt: skip
def test_sizes_are_short(nbytes: float, shown: str) -> None:
    assert tables.size(nbytes) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(3.2, "3 s"), (99, "99 s"), (100, "2 min"), (5_999, "100 min"), (6_000, "2 h"),
     (1e6, "12 days")],
)  # fmt: skip
def test_times_are_short(seconds: float, shown: str) -> None:
    assert tables.duration(seconds) == shown


def test_a_table_lines_up_whatever_its_names_are_written_in() -> None:
    rows = [("größe", "1"), ("损失", "23"), ("e\u0301", "456")]
    assert tables.lines(("run", "n"), rows, {"run"}) == [
        "run      n",
        "größe    1",
        "损失    23",
        "e\u0301      456",
    ]
    assert tables.width(("run", "n"), rows) == 10


@pytest.mark.parametrize(
    ("text", "most", "shown"),
    [
        ("abc", 3, "abc"),
        ("abcd", 3, "ab…"),
        ("损失损失", 5, "损失…"),
        ("abc", 1, "…"),
        ("a", 0, ""),
    ],
)
def test_what_is_too_long_is_cut_with_a_mark(text: str, most: int, shown: str) -> None:
    assert tables.cut(text, most) == shown
    assert tables.cells(shown) <= most


def test_nothing_that_a_terminal_would_obey_is_printable() -> None:
    assert tables.printable("a\x1b[2J\nb\x9b") == "a?[2J?b?"
