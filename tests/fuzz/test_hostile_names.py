"""Names and texts of a client that means harm: at the daemon, in its files, log and TensorBoard."""

from __future__ import annotations

import html.parser
import json
import re
import secrets
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq

import ranktap
from ranktap_wire import frames, limits
from ranktap_wire.messages import Code, Error
from ranktap_wire.records import Batch, Blob, Kind
from tests.support import messages
from tests.support.boards import Board
from tests.support.daemons import DaemonProcess
from tests.support.event_files import scalar_points
from tests.support.strangers import Stranger
from tests.support.waiting import wait_for

HOSTILE_RUNS = [
    "..", "../x", "a/../../x", "a/..", "/etc/x", "//x", "a//b", "a/", ".ranktap/runs/x", ".hidden",
    "a/.ranktap", "a\\..\\x", "a\0b", "a\nb", "a\rb", "\x1b[2J", "\x9b31m", "\x7f", " a", "a ",
    "", "a" * (limits.RUN_BYTES + 1), "ä" * 101, "/".join("a" * 20), "%" * 100, "a/" * 120 + "a",
]  # fmt: skip
ALLOWED_RUNS = [
    "%2e%2e%2fx", "..x"[::-1], "$(touch x)", "`id`", "a;rm -rf b", "--logdir=x", "-", "*", "a?b",
    "<b>x", "events.out.tfevents.1", "x/events.out.tfevents.9999999999.a.1.0", "ünï", "a'\"b",
]  # fmt: skip
HOSTILE_TAGS = [
    "", "a\nb", "a\0b", "\x1b]0;title\x07", "\x1b[31mred", "\x9b2J", "\r", "\x7f",
    "a" * (limits.TAG_BYTES + 1), "ä" * limits.TAG_BYTES,
]  # fmt: skip
ALLOWED_TAGS = [
    "../../x", "/etc/passwd", "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>',
    "{{constructor.constructor('alert(1)')()}}", "'; DROP TABLE tags; --", "%s%n%x", "${x}",
    "a" * limits.TAG_BYTES, "a//b", ".", "__proto__", "constructor", "ranks/x/rank0", "\u202eabc",
]  # fmt: skip
HOSTILE_TEXTS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg/onload=alert(1)>",
    "<iframe src='javascript:alert(1)'></iframe>",
    "[x](javascript:alert(1))",
    "[x](data:text/html;base64,PHNjcmlwdD4=)",
    "<a href='jav&#x09;ascript:alert(1)'>x</a>",
    '![x](x"onerror="alert(1))',
    "<style>*{background:url(http://198.51.100.1/)}</style>",
    "<form action=http://198.51.100.1/><input name=password></form>",
    "| a | <b onmouseover=alert(1)>b</b> |\n|---|---|\n| <script>1</script> | 2 |",
    "\x1b[2J\x00\x07 plain",
    "a" * 100_000,
    "<" * 5_000,
    "[" * 5_000,
]


@pytest.fixture
def stranger(start_daemon: Callable[..., DaemonProcess]) -> Iterator[Callable[[str], Stranger]]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    made: list[Stranger] = []

    def make(endpoint: str) -> Stranger:
        made.append(Stranger(context, endpoint))
        return made[-1]

    yield make
    for each in made:
        each.close()
    context.destroy(linger=0)


def _hello(**changed: Any) -> list[bytes]:
    """One whose fields nobody has looked at before the daemon does."""
    right = messages.hello(session=secrets.token_bytes(16), rank=0, world_size=1)
    head = msgpack.unpackb(messages.as_bytes(frames.pack_hello(right))[0])
    return [msgpack.packb(head | changed)]


def _batch_of_tag(session: bytes, number: int, tag: str) -> list[bytes]:
    batch = Batch(messages.columns([0.5], tags=("tag",)))
    parts = messages.as_bytes(frames.pack_batch(session, number, batch))
    parts[1] = tag.encode()
    return parts


def test_a_hostile_run_never_leaves_the_logdir_and_its_name_never_reaches_a_terminal(
    start_daemon: Callable[..., DaemonProcess],
    stranger: Callable[[str], Stranger],
    tmp_path: Path,
) -> None:
    (tmp_path / "outside").mkdir()
    logdir = tmp_path / "outside" / "runs"
    daemon = start_daemon(logdir=logdir)
    healthy = ranktap.init("healthy", endpoint=daemon.endpoint, rank=0, world_size=1)
    healthy.scalar("x", 1.0, 0)
    wait_for(lambda: scalar_points(logdir / "healthy"), "its file")
    peer = stranger(daemon.endpoint)
    for run in HOSTILE_RUNS:
        peer.send(_hello(run=run), "hello")
    for name in ("host", "filename_suffix"):
        for value in ("../../x", "a\nb", "\x1b[2J", "a\0b", "a" * 300):
            if name == "filename_suffix" or "/" not in value:
                peer.send(_hello(run="suffixed", **{name: value}), "hello")
    wait_for(lambda: peer.listen() or len(peer.answers) == peer.sent, "an answer to each")
    for each in peer.answers:
        assert isinstance(each, Error) and each.code == Code.REFUSED, each
        assert not re.search(r"[\x00-\x1f\x7f-\x9f]", each.text)
    assert {path.name for path in (tmp_path / "outside").iterdir()} == {"runs"}
    assert {path.name for path in logdir.iterdir()} == {".ranktap", ".ranktap.lock", "healthy"}

    taps = [ranktap.init(run, endpoint=daemon.endpoint, rank=0, world_size=1)
            for run in ALLOWED_RUNS]  # fmt: skip
    for tap in taps:
        tap.scalar("x", 2.0, 0)
    healthy.scalar("x", 2.0, 1)
    for tap in (*taps, healthy):
        assert tap.close()
    assert daemon.stop() == 0
    assert scalar_points(logdir / "healthy") == {"x": [(0, 1.0), (1, 2.0)]}
    for run in ALLOWED_RUNS:
        assert scalar_points(logdir / run) == {"x": [(0, 2.0)]}, run
    assert {path.name for path in (tmp_path / "outside").iterdir()} == {"runs"}
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", daemon.log)
    for line in daemon.log.splitlines():
        assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ ", line), line


class _Elements(html.parser.HTMLParser):
    """What a browser would make of a piece of HTML."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: dict[str, list[str]] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            self.attributes.setdefault(name, []).append(value or "")


def test_hostile_tags_and_texts_are_data_to_tensorboard_and_nothing_that_a_browser_runs(
    start_daemon: Callable[..., DaemonProcess],
    start_board: Callable[..., Board],
    stranger: Callable[[str], Stranger],
) -> None:
    daemon = start_daemon()
    peer = stranger(daemon.endpoint)
    session = secrets.token_bytes(16)
    peer.send(_hello(run="job", session=session), "hello")
    for number, tag in enumerate(HOSTILE_TAGS, 1):
        peer.send(_batch_of_tag(session, number, tag), "batch")
    for number, tag in enumerate(ALLOWED_TAGS, len(HOSTILE_TAGS) + 1):
        peer.send(_batch_of_tag(session, number, tag), "batch")
    for number, text in enumerate(HOSTILE_TEXTS, len(HOSTILE_TAGS + ALLOWED_TAGS) + 1):
        peer.send(_batch_of_text(session, number, text), "batch")
    last = len(HOSTILE_TAGS) + len(ALLOWED_TAGS) + len(HOSTILE_TEXTS)
    wait_for(
        lambda: peer.listen() or any(getattr(each, "number", 0) == last for each in peer.answers),
        "everything to be journaled",
    )
    refused = [each.number for each in peer.answers if isinstance(each, Error)]
    assert refused == [*range(1, len(HOSTILE_TAGS) + 1)]
    peer.send(frames.pack_bye(session), "bye")
    assert daemon.stop() == 0
    assert {*scalar_points(Path(daemon.logdir) / "job")} == {*ALLOWED_TAGS}

    board = start_board(Path(daemon.logdir), fast=True)
    told = wait_for(lambda: _get(board, "/data/plugin/scalars/tags").get("job"), "the tags")
    wait_for(
        lambda: {*_get(board, "/data/plugin/scalars/tags")["job"]} == {*ALLOWED_TAGS}, "all of them"
    )
    assert told
    for tag in ALLOWED_TAGS:
        shown = _get(board, "/data/plugin/scalars/scalars", run="job", tag=tag)
        assert [[step, value] for _, step, value in shown] == [[0, 0.5]], tag
    for number, text in enumerate(HOSTILE_TEXTS):
        tag = f"text {number}/text_summary"
        (shown,) = wait_for(
            lambda: _get(board, "/data/plugin/text/text", run="job", tag=tag),  # noqa: B023
            text[:40],
        )
        elements = _Elements(shown["text"])
        assert not elements.tags & {"script", "svg", "iframe", "style", "form", "input", "object"}
        assert not any(name.startswith("on") for name in elements.attributes), shown["text"]
        for value in [*elements.attributes.get("href", []), *elements.attributes.get("src", [])]:
            scheme = urllib.parse.urlparse(re.sub(r"[\s\x00-\x1f]", "", value)).scheme
            assert scheme in ("", "http", "https", "mailto"), value
    assert "Traceback" not in board.log


def _batch_of_text(session: bytes, number: int, text: str) -> list[Any]:
    data = text.encode()
    tag = f"text {number - len(HOSTILE_TAGS + ALLOWED_TAGS) - 1}"
    blob = messages.blob(Kind.TEXT, tag=tag, data=data, shape=(len(data),))
    assert isinstance(blob, Blob)
    return frames.pack_batch(session, number, Batch(None, [blob]))


def _get(board: Board, path: str, **query: str) -> Any:
    """A JSON answer, which no browser may take for a page."""
    url = f"{board.url}{path}" + (f"?{urllib.parse.urlencode(query)}" if query else "")
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            assert "json" in answer.headers["Content-Type"]
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            return json.loads(answer.read())
    except urllib.error.HTTPError:
        return {}
