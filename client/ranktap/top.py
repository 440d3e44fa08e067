"""`ranktap top`: a daemon's runs and ranks on a terminal, as they go on.

It asks the daemon over HTTP, as `ranktap status` does, in a thread of its own, so that a daemon
that does not answer leaves the keys alone. What is shown then is the last that was heard, with
the reason below it; a daemon that was started again is shown as soon as it answers.

Where the output is no terminal, or on `--once`, it prints one plain table and ends. Only the
live view needs rich.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import signal
import sys
import termios
import threading
import time
import tty
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any, Final

from ranktap import status
from ranktap.status import StatusError
from ranktap.tables import duration, printable
from ranktap.top_view import SORTS, Line, Looks, Style, in_order, view

WAKE_S: Final = 0.1
"""How soon what has come is shown, and a changed size of the terminal noticed."""
PLAIN_COLUMNS: Final = 1_000
"""Of a table that goes to a file or a pipe: as wide as it is."""

_KEYS: Final = {
    b"q": "end", b"s": "sort", b"k": "up", b"\x1b[A": "up", b"\x1bOA": "up",
    b"j": "down", b"\x1b[B": "down", b"\x1bOB": "down", b"\r": "open", b"\n": "open",
    b"\x1b": "back", b"b": "back",
}  # fmt: skip


_SEQUENCES: Final = re.compile(rb"\x1b[\[O][A-Za-z~]|.", re.DOTALL)


class TopError(Exception):
    """There is nothing to show; the message is for the person who asked."""


def run(*, address: str, looks: Looks, every_s: float, once: bool) -> int:
    """Show the daemon at HOST:PORT until told to end, or once.

    Raises:
        StatusError: nothing answers there at first, or no daemon.
        TopError: the run of `looks.opened` is not open, or rich is not installed.
    """
    said = status.fetch(address, looks.opened or "")
    if looks.opened is not None and all(each["run"] != looks.opened for each in said["runs"]):
        raise TopError(f"no run {looks.opened!r} is open at {address}")
    if once or not sys.stdout.isatty() or os.environ.get("TERM") in ("dumb", "unknown"):
        size = shutil.get_terminal_size((PLAIN_COLUMNS, 0))
        columns = size.columns if sys.stdout.isatty() or "COLUMNS" in os.environ else PLAIN_COLUMNS
        for line in view(said, address, looks, columns, sys.maxsize):
            print(line.text)
        return 0
    return _live(_Daemon(address, every_s, said), looks)


# -- asking -----------------------------------------------------------------------------


@dataclass(slots=True)
class Heard:
    """What is known of the daemon."""

    said: dict[str, Any]
    at: float
    """When it said so; this machine's monotonic clock."""
    trouble: str = ""
    """Why it does not answer now."""


class _Daemon:
    """Asks a daemon again and again, in a thread."""

    def __init__(self, address: str, every_s: float, first: dict[str, Any]) -> None:
        self.address = address
        self.heard = Heard(first, time.monotonic())
        self.ranks_of = ""
        self._every_s = every_s
        self._now = threading.Event()
        threading.Thread(target=self._run, name="ranktap-top", daemon=True).start()

    def ask(self, ranks_of: str) -> None:
        """Ask now, for the ranks of that run."""
        self.ranks_of = ranks_of
        self._now.set()

    def _run(self) -> None:
        while True:
            self._now.wait(self._every_s)
            self._now.clear()
            try:
                said = status.fetch(self.address, self.ranks_of)
            except StatusError as error:
                self.heard = Heard(self.heard.said, self.heard.at, error.reason)
            else:
                self.heard = Heard(said, time.monotonic())


# -- the screen -------------------------------------------------------------------------


def _live(daemon: _Daemon, looks: Looks) -> int:
    try:
        from rich.console import Console, Group
        from rich.live import Live
        from rich.text import Text
    except ModuleNotFoundError:
        raise TopError(
            "the live view needs rich: pip install 'ranktap[top]', or look once with --once"
        ) from None

    console = Console(highlight=False)

    def shown() -> Group:
        lines = _screen(daemon, looks, console.width, console.height)
        return Group(
            *(Text(text, style.value, no_wrap=True, overflow="crop") for text, style in lines)
        )

    signal.signal(signal.SIGTERM, _end)  # the screen is to be left as it was found
    before: tuple[Any, ...] = ()
    with (
        _Keyboard() as keyboard,
        Live(console=console, screen=True, auto_refresh=False) as live,
    ):
        while True:
            pressed = keyboard.read(WAKE_S)
            for key in pressed:
                if key == "end":
                    return 0
                _obey(key, daemon, looks)
            # Once a second, because what it says of the time has changed.
            now = (daemon.heard, console.size, int(time.monotonic()))
            if pressed or now != before:
                before = now
                live.update(shown(), refresh=True)


def _end(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _screen(daemon: _Daemon, looks: Looks, columns: int, rows: int) -> list[Line]:
    heard = daemon.heard
    lines = view(heard.said, daemon.address, looks, columns, rows - 1)
    lines += [Line("")] * (rows - 1 - len(lines))
    if heard.trouble:
        ago = duration(time.monotonic() - heard.at)
        text = printable(f"no answer for {ago}, trying again: {heard.trouble}")
        return [*lines, Line(text[:columns], Style.BAD)]
    keys = f"q ends   s sorts: {looks.sort}   " + (
        "b goes back" if looks.opened is not None else "j k Enter show ranks"
    )
    return [*lines, Line(keys[:columns], Style.DIM)]


def _obey(key: str, daemon: _Daemon, looks: Looks) -> None:
    """Do what a key says."""
    names = [run["run"] for run in in_order(daemon.heard.said["runs"], looks)]
    if key == "sort":
        sorts = [*SORTS]
        looks.sort = sorts[(sorts.index(looks.sort) + 1) % len(sorts)]
    elif key == "back":
        looks.opened = looks.chosen = None
        daemon.ask("")
    elif key == "open" and looks.chosen in names:
        looks.opened = looks.chosen
        daemon.ask(looks.opened or "")
    elif key in ("up", "down") and names and looks.opened is None:
        if looks.chosen not in names:
            looks.chosen = names[0] if key == "down" else names[-1]
        else:
            at = names.index(looks.chosen) + (1 if key == "down" else -1)
            looks.chosen = names[min(max(at, 0), len(names) - 1)]


class _Keyboard:
    """Keys as they are pressed, where there is a keyboard; Ctrl-C stays what it is."""

    def __init__(self) -> None:
        self._fd = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else None
        self._exit = contextlib.ExitStack()

    def __enter__(self) -> _Keyboard:
        if self._fd is not None:
            self._exit.enter_context(_each_key(self._fd))
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    def read(self, timeout_s: float) -> list[str]:
        """What the keys mean that are pressed within the time."""
        if self._fd is None:
            time.sleep(timeout_s)
            return []
        if not select.select([self._fd], [], [], timeout_s)[0]:
            return []
        pressed = os.read(self._fd, 64)
        if not pressed:
            return ["end"]  # the terminal is gone
        return [_KEYS[key] for key in _SEQUENCES.findall(pressed) if key in _KEYS]


@contextlib.contextmanager
def _each_key(fd: int) -> Iterator[None]:
    before = termios.tcgetattr(fd)
    try:
        tty.setcbreak(fd)
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
