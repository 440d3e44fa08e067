"""What `ranktap top` shows of a daemon's status: lines of text that fit a terminal. Pure.

A table that is too wide loses columns, those first that one can do without, and then the end of
its longest names; one that is too high loses rows, and says how many.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any, Final, NamedTuple

from ranktap.tables import GAP, Row, cells, cut, duration, lines, printable, size, width

Run = dict[str, Any]
Rank = dict[str, Any]

NAME_CELLS: Final = 8
"""To so many columns a name may be cut before a column goes."""
_UNKNOWN: Final = "-"


class Style(StrEnum):
    """How a line looks, where there are colours."""

    PLAIN = ""
    HEAD = "bold"
    CHOSEN = "reverse"
    BAD = "bold red"
    NOTE = "yellow"
    DIM = "dim"


class Line(NamedTuple):
    text: str
    style: Style = Style.PLAIN


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table."""

    title: str
    cell: Callable[[dict[str, Any]], str]
    needed: int
    """Columns of a smaller number go first where there is no room; 0 stands for never."""
    is_left: bool = False


@dataclass(slots=True)
class Looks:
    """What the person wants to see."""

    sort: str = "run"
    tag: str | None = None
    """A pattern of the tag whose last value is shown; None: a loss."""
    opened: str | None = None
    """The run whose ranks are shown; None: all runs."""
    chosen: str | None = None
    """The run that stands out."""


# -- runs -------------------------------------------------------------------------------


def last_of(run: Run, tag: str | None) -> dict[str, Any] | None:
    """The last value that is shown of a run: of a tag like `tag`, or of its loss."""
    for each in run.get("last", []):
        if fnmatchcase(each["tag"], tag) if tag is not None else "loss" in each["tag"].casefold():
            return dict(each)
    return None


def _number(value: Any) -> str:
    return _UNKNOWN if value is None else f"{float(value):.5g}"


def _count(value: Any) -> str:
    return _UNKNOWN if value is None else f"{value:,.0f}"


def _seconds(value: Any) -> str:
    if value is None:
        return _UNKNOWN
    return f"{value:.1f} s" if value < 9.95 else duration(value)


def _ranks_here(run: Run) -> str:
    world = run["world_size"]
    return str(run["sessions"]) if world is None else f"{run['sessions']}/{world}"


def _run_columns(looks: Looks) -> list[Column]:
    def value(run: Run) -> str:
        last = last_of(run, looks.tag)
        return _UNKNOWN if last is None else _number(last["value"])

    def tag(run: Run) -> str:
        last = last_of(run, looks.tag)
        return "" if last is None else cut(last["tag"], 24)

    return [
        Column("run", lambda run: run["run"], 0, is_left=True),
        Column("ranks", _ranks_here, 8),
        Column("records/s", lambda run: _count(run["records_per_s"]), 7),
        Column("bytes/s", lambda run: f"{size(run['bytes_per_s'])}", 2),
        Column("lag", lambda run: _seconds(run.get("lag_s")), 9),
        Column("behind", lambda run: size(run["lag_bytes"]), 4),
        Column("dropped", lambda run: _count(run["dropped"]), 6),
        Column("late", lambda run: _count(run.get("late")), 5),
        Column("step", lambda run: _count(run.get("step")), 10),
        Column("loss" if looks.tag is None else "value", value, 11),
        Column("of", tag, 1, is_left=True),
        Column("worker", lambda run: "REFUSED" if run["refused"] else run["worker"], 3, True),
    ]


SORTS: Final[dict[str, Callable[[Run, Looks], Any]]] = {
    "run": lambda run, _: 0,
    "rate": lambda run, _: -run["records_per_s"],
    "bytes": lambda run, _: -run["bytes_per_s"],
    "lag": lambda run, _: -(math.inf if run.get("lag_s") is None else run["lag_s"]),
    "behind": lambda run, _: -run["lag_bytes"],
    "dropped": lambda run, _: -run["dropped"],
    "late": lambda run, _: -(run.get("late") or 0),
    "step": lambda run, _: -(-1 if run.get("step") is None else run["step"]),
    "loss": lambda run, looks: _sorted_loss(run, looks),
}
"""By what runs may be sorted: what is most comes first, a name and a loss that are least."""


def _sorted_loss(run: Run, looks: Looks) -> float:
    last = last_of(run, looks.tag)
    value = math.nan if last is None else float(last["value"])
    return math.inf if math.isnan(value) else value


def in_order(runs: Sequence[Run], looks: Looks) -> list[Run]:
    """The runs as they are shown."""
    return sorted(runs, key=lambda run: (SORTS[looks.sort](run, looks), run["run"]))


# -- ranks ------------------------------------------------------------------------------


_RANK_COLUMNS: Final = [
    Column("rank", lambda rank: str(rank["rank"]), 0),
    Column("host", lambda rank: rank["host"], 6, is_left=True),
    Column("is", lambda rank: rank["state"], 9, is_left=True),
    Column("step", lambda rank: _count(rank.get("step")), 11),
    Column("since", lambda rank: _seconds(rank.get("step_s")), 8),
    Column("a step", lambda rank: _step_time(rank.get("step_time_s")), 10),
    Column("records/s", lambda rank: _count(rank.get("records_per_s")), 7),
    Column("bytes/s", lambda rank: size(rank.get("bytes_per_s") or 0), 1),
    Column("dropped", lambda rank: _count(rank["dropped"]), 4),
    Column("late", lambda rank: _count(rank.get("late")), 5),
    Column("pid", lambda rank: str(rank["pid"]), 2),
    Column("heard of", lambda rank: f"{_seconds(rank['heard_s'])} ago", 3),
    Column("", lambda rank: _slow(rank), 12, is_left=True),
]


def _step_time(seconds: float | None) -> str:
    if seconds is None:
        return _UNKNOWN
    return f"{seconds * 1e3:.1f} ms" if seconds < 0.9995 else _seconds(seconds)


def _slow(rank: Rank) -> str:
    since = rank.get("slow_since")
    return "" if since is None else f"slow since step {since:,}"


# -- the whole --------------------------------------------------------------------------


def view(status: dict[str, Any], address: str, looks: Looks, columns: int, rows: int) -> list[Line]:
    """The status in at most `rows` lines of at most `columns` cells."""
    head = Line(
        f"ranktapd {status['version']} at {address}: {status['health']}; up "
        f"{duration(status['up_s'])}, {status['sessions']} sessions, "
        f"{status['records_per_s']:,.0f} records/s, {size(status['bytes_per_s'])}/s",
        Style.HEAD if status["health"] == "ok" else Style.BAD,
    )
    runs: list[Run] = status["runs"]
    if looks.opened is not None:
        runs = [run for run in runs if run["run"] == looks.opened]
        if not runs:
            found = [head, Line(f"no run {looks.opened!r} is open", Style.NOTE)]
            return _fitted(found, columns, rows)
    if not runs:
        return _fitted([head, Line("no run is open")], columns, rows)
    runs = in_order(runs, looks)
    styles = [_style_of_run(run, looks) for run in runs]
    refused = [
        Line(f"{run['run']}: nothing is accepted: {run['refused']}", Style.BAD)
        for run in runs
        if run["refused"]
    ]
    ranks = runs[0]["ranks"] if looks.opened is not None else []
    rest = 1 + len(refused[:3]) + (2 if ranks else 0)
    chosen = next((at for at, run in enumerate(runs) if run["run"] == looks.chosen), 0)
    most = max(1, rows - 1 - rest)
    table = _table(_run_columns(looks), runs, styles, columns, most, chosen, "runs")
    found = [head, *table, *refused[:3]]
    if ranks:
        ranks_styles = [_style_of_rank(rank) for rank in ranks]
        left = rows - len(found) - 2
        found.append(Line(""))
        found += _table(_RANK_COLUMNS, ranks, ranks_styles, columns, max(1, left), 0, "ranks")
    return _fitted(found, columns, rows)


def _style_of_run(run: Run, looks: Looks) -> Style:
    if run["run"] == looks.chosen:
        return Style.CHOSEN
    if run["refused"] or run["worker"] == "hangs":
        return Style.BAD
    lost = run["world_size"] is not None and run["sessions"] < run["world_size"]
    return Style.NOTE if lost else Style.PLAIN


def _style_of_rank(rank: Rank) -> Style:
    if rank["state"] != "here":
        return Style.DIM
    return Style.NOTE if rank.get("slow_since") is not None else Style.PLAIN


def _table(
    wanted: Sequence[Column],
    items: Sequence[dict[str, Any]],
    styles: Sequence[Style],
    columns: int,
    rows: int,
    chosen: int,
    what: str,
) -> list[Line]:
    """Names and at most `rows` lines below, that of item `chosen` among them."""
    left_out = 0
    first = 0
    if len(items) > rows:
        shown = max(1, rows - 1)  # the last line says how many there are besides
        first = min(max(0, chosen - shown + 1), len(items) - shown)
        left_out = len(items) - shown
        items, styles = items[first : first + shown], styles[first : first + shown]
    texts = [tuple(printable(column.cell(item)) for column in wanted) for item in items]
    kept = _columns_that_fit(wanted, texts, columns)
    names = tuple(wanted[at].title for at in kept)
    table: list[Row] = [tuple(row[at] for at in kept) for row in texts]
    over = width(names, table) - columns
    if over > 0 and wanted[kept[0]].is_left:
        longest = max(cells(row[0]) for row in table)
        most = max(NAME_CELLS, longest - over)
        table = [(cut(row[0], most), *row[1:]) for row in table]
    left = {column.title for column in wanted if column.is_left}
    title, *below = lines(names, table, left)
    found = [Line(title, Style.HEAD)]
    found += [Line(text, style) for text, style in zip(below, styles, strict=True)]
    if left_out:
        found.append(Line(f"and {left_out} more {what}", Style.DIM))
    return found


def _columns_that_fit(wanted: Sequence[Column], texts: list[Row], columns: int) -> list[int]:
    """The numbers of the columns that there is room for, beside a name that may be cut."""
    widths = [
        max([cells(column.title), *(cells(row[at]) for row in texts)])
        for at, column in enumerate(wanted)
    ]
    if wanted[0].is_left:
        widths[0] = min(widths[0], max(NAME_CELLS, columns // 3))
    kept = list(range(len(wanted)))
    while sum(widths[at] for at in kept) + GAP * (len(kept) - 1) > columns and len(kept) > 1:
        kept.remove(min((at for at in kept if wanted[at].needed), key=lambda at: wanted[at].needed))
    return kept


def _fitted(found: Sequence[Line], columns: int, rows: int) -> list[Line]:
    return [Line(cut(printable(text), columns), style) for text, style in found[:rows]]
