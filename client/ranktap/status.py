"""`ranktap status`: what a daemon says of itself over HTTP, as a table or as JSON."""

from __future__ import annotations

import http.client
import json
import sys
import urllib.error
import urllib.parse
import urllib.request
from importlib.util import find_spec
from typing import Any, Final

from ranktap.tables import Row, duration, lines, printable, size

TIMEOUT_S: Final = 10.0
"""The daemon itself gives up on its main loop after 5 s, and says so."""

_RUNS = ("run", "ranks", "entries", "behind", "", "records/s", "", "dropped", "worker")
_RANKS = ("rank", "host", "pid", "is", "heard of", "batches", "dropped")
_LEFT = {"run", "host", "is", "worker"}


class StatusError(Exception):
    """There is nothing to show; the message is for the person who asked."""

    def __init__(self, text: str, reason: str = "") -> None:
        super().__init__(text)
        self.reason = reason or text
        """The same in a few words."""


def run(*, address: str, run_name: str | None, as_json: bool) -> int:
    """Show how the daemon at HOST:PORT stands, and with `run_name` that run's ranks.

    Raises:
        StatusError: nothing answers there, or no daemon, or it has no such run.
    """
    status = fetch(address)
    if run_name is not None:
        status["runs"] = [each for each in status["runs"] if each["run"] == run_name]
        if not status["runs"]:
            raise StatusError(f"no run {run_name!r} is open at {address}")
    if as_json:
        print(json.dumps(status, indent=2))
        return 0
    print(
        f"ranktapd {status['version']} at {address}: {status['health']}; up "
        f"{duration(status['up_s'])}, {status['sessions']} sessions, "
        f"{status['records_per_s']:,.0f} records/s, {size(status['bytes_per_s'])}/s"
    )
    if not status["runs"]:
        print("no run is open")
        return 0
    _show(_RUNS, [_run_row(each) for each in status["runs"]])
    for each in status["runs"]:
        if each["refused"]:
            print(f"{printable(each['run'])}: nothing is accepted: {printable(each['refused'])}")
    if run_name is not None:
        _show(_RANKS, [_rank_row(each) for each in status["runs"][0]["ranks"]])
    return 0


def fetch(address: str, ranks_of: str | None = None) -> dict[str, Any]:
    """What the daemon at HOST:PORT says; with `ranks_of` without the ranks of other runs.

    Raises:
        StatusError: nothing answers there, or no daemon.
    """
    # A proxy of the environment is for the world outside.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        query = "" if ranks_of is None else f"?{urllib.parse.urlencode({'ranks': ranks_of})}"
        with opener.open(f"http://{address}/status{query}", timeout=TIMEOUT_S) as answer:
            status: dict[str, Any] = json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            said = error.read(1_000).decode(errors="replace").strip()
        said = printable(said) or str(error.reason)
        raise StatusError(f"{address}: {said}", said) from None
    except (OSError, http.client.HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        reason = (reason.strerror if isinstance(reason, OSError) else None) or str(reason)
        raise StatusError(
            f"--metrics: {address}: {reason}; a daemon answers where its own setting 'metrics' "
            "says (ranktapd --metrics HOST:PORT)",
            reason,
        ) from None
    except ValueError:
        raise StatusError(f"--metrics: expected HOST:PORT of a ranktapd, got {address!r}") from None
    return status


# -- rows -------------------------------------------------------------------------------


def _run_row(run: dict[str, Any]) -> Row:
    here, world = run["sessions"], run["world_size"]
    lag = run["lag_entries"]
    return (
        run["run"],
        str(here) if world is None else f"{here}/{world}",
        f"{run['entries']:,}",
        "?" if lag is None else f"{lag:,}",
        size(run["lag_bytes"]),
        f"{run['records_per_s']:,.0f}",
        f"{size(run['bytes_per_s'])}/s",
        f"{run['dropped']:,}",
        "REFUSED" if run["refused"] else run["worker"],
    )


def _rank_row(rank: dict[str, Any]) -> Row:
    return (
        str(rank["rank"]),
        rank["host"],
        str(rank["pid"]),
        rank["state"],
        f"{duration(rank['heard_s'])} ago",
        f"{rank['batches']:,}",
        f"{rank['dropped']:,}",
    )


# -- showing ----------------------------------------------------------------------------


def _show(names: Row, rows: list[Row]) -> None:
    rows = [tuple(map(printable, row)) for row in rows]
    if sys.stdout.isatty() and find_spec("rich") is not None:
        _show_rich(names, rows)
        return
    for line in lines(names, rows, _LEFT):
        print(line)


def _show_rich(names: Row, rows: list[Row]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        table.add_column(name, justify="left" if name in _LEFT else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))  # Text: a name with brackets is no markup
    Console().print(table)
