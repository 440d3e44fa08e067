"""More than can be written, and for longer than anyone watches: what the daemon takes stays."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
import zmq
from tensorboard.compat.proto.event_pb2 import Event

from ranktap_wire import limits
from ranktap_wire.delivery import SendWindow
from ranktap_wire.messages import Hello
from ranktap_wire.records import Across, Batch, Blob, Columns, Kind, scalar_code
from ranktapd import event_file
from tests.support.daemons import DaemonProcess
from tests.support.event_files import event_files, events
from tests.support.footprint import MIB, Footprint
from tests.support.many_ranks import SILENCE_S, Rank
from tests.support.strangers import free_port, metrics
from tests.support.waiting import wait_for

PROCESS_BYTES = 300 * MIB
"""What each process may take, whatever comes."""

HISTOGRAMS, HISTOGRAM_BYTES = 2_560, 4 * MIB
"""10 GiB of numbers, of which 2 MB are written: only the journal needs room on the disk."""
WAITING_BYTES = 20 * limits.SEGMENT_BYTES
"""What must wait at some time, for the test to have shown anything."""

DAY_BATCHES = 24 * 3_600 * 20
"""What one rank sends in a day: a batch every 50 ms."""
TAGS = 5
GROWN_BYTES = 16 * MIB
"""What a process may grow by from the first tenth of a day to its end: allocators are no exact
science."""


@pytest.fixture
def rank(start_daemon: Callable[..., DaemonProcess], tmp_path: Path) -> Iterator[Rank]:
    """A rank of run `load`, known to its daemon, that sends as fast as it may."""
    config = tmp_path / "config.toml"
    config.write_text("max_session_batches_per_s = 1000000\n")
    port = free_port()
    daemon = start_daemon("--config", str(config), "--metrics", f"127.0.0.1:{port}")
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.linger = 0
    socket.connect(daemon.endpoint)
    hello = Hello(b"load" * 4, "load", 0, 1, "node", 1, 1, time.time(), about={"job": "load"})
    rank = Rank(0, hello.session, socket, hello,
                SendWindow(limits.IN_FLIGHT_BYTES, limits.IN_FLIGHT_MESSAGES))  # fmt: skip
    rank.daemon, rank.port = daemon, port  # type: ignore[attr-defined]
    rank.say_hello()
    wait_for(lambda: rank.hear([]) or rank.welcomed, "a welcome", 60)
    yield rank
    context.destroy(linger=0)


def _send_all(rank: Rank, batches: Iterator[tuple[Batch, int]]) -> None:
    """Send batches, given with their bytes, until all of them are acknowledged."""
    waits: list[float] = []
    rank.heard = time.monotonic()
    more = True
    while more or len(rank.window):
        while more and len(rank.window) < limits.IN_FLIGHT_MESSAGES and _has_room(rank):
            batch = next(batches, None)
            if batch is None:
                more = False
                break
            rank.pushed[rank.window.push(*batch)] = 0.0
        rank.send()
        rank.socket.poll(100)
        rank.hear(waits)
        waits.clear()
        if time.monotonic() - rank.heard > SILENCE_S:
            rank.heard = time.monotonic()
            rank.say_hello()


def _has_room(rank: Rank) -> bool:
    return rank.window.held_bytes < limits.IN_FLIGHT_BYTES


@pytest.mark.slow
@pytest.mark.timeout(3_600)
def test_ten_gigabytes_journaled_faster_than_written_take_300_mb_a_process(rank: Rank) -> None:
    daemon: DaemonProcess = rank.daemon  # type: ignore[attr-defined]
    events_of = Path(daemon.logdir) / "load"
    values = np.random.default_rng(1).standard_normal(HISTOGRAM_BYTES // 4, np.float32)

    def batches() -> Iterator[tuple[Batch, int]]:
        for step in range(HISTOGRAMS):
            blob = Blob(
                Kind.HISTOGRAM, "values", step, 1_700_000_000.0 + step, Across.MERGE, "float32",
                values.shape, {"bins": "tensorflow", "max_bins": None}, values,
            )  # fmt: skip
            yield Batch(None, [blob]), values.nbytes

    with Footprint(daemon, Path(daemon.logdir) / ".ranktap", 1.0) as footprint:
        began = time.monotonic()
        with _slow_workers(daemon):
            _send_all(rank, batches())
        journaled_s = time.monotonic() - began
        wait_for(lambda: _lag(rank) == 0, "all of it to be written", 3_000)
        written_s = time.monotonic() - began
    total = HISTOGRAMS * HISTOGRAM_BYTES
    print(
        f"{total / 1e9:.1f} GB journaled in {journaled_s:.0f} s ({total / journaled_s / 1e6:.0f} "
        f"MB/s), written in {written_s:.0f} s\n{footprint.table()}"
    )
    assert max(look.journal_bytes for look in footprint.looks) > WAITING_BYTES
    assert max(look.main_rss for look in footprint.looks) < PROCESS_BYTES
    assert max(look.worker_rss for look in footprint.looks) < PROCESS_BYTES
    # What was written left its journal.
    assert footprint.looks[-1].segments <= 2
    (path,) = event_files(events_of)
    steps = [event.step for event in events(path) if _histograms(event)]
    assert steps == list(range(HISTOGRAMS))


@contextmanager
def _slow_workers(daemon: DaemonProcess) -> Iterator[None]:
    """Workers run a tenth of the time, as on a machine that is slow, or busy."""
    ended = threading.Event()

    def hold_up() -> None:
        while not ended.is_set():
            with suppress(psutil.NoSuchProcess):
                workers = daemon.workers()
                for worker in workers:
                    worker.suspend()
                ended.wait(0.9)
                for worker in workers:
                    worker.resume()
            ended.wait(0.1)

    thread = threading.Thread(target=hold_up)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _lag(rank: Rank) -> float:
    return metrics(rank.port)["ranktapd_lag_entries", "load"]  # type: ignore[attr-defined]


def _histograms(event) -> list[str]:  # type: ignore[no-untyped-def]
    return [value.tag for value in event.summary.value if value.tag == "values"]


@pytest.mark.slow
@pytest.mark.timeout(3_600)
def test_a_day_of_a_small_job_leaves_memory_files_and_descriptors_as_they_were(
    rank: Rank,
) -> None:
    daemon: DaemonProcess = rank.daemon  # type: ignore[attr-defined]
    columns = Columns(
        [f"tag{number}" for number in range(TAGS)],
        np.full(TAGS, scalar_code(Across.MEAN), np.uint8),
        np.arange(TAGS, dtype=np.int32),
        np.zeros(TAGS, np.int64),
        np.zeros(TAGS),
        np.arange(TAGS, dtype=np.float64),
    )

    def batches() -> Iterator[tuple[Batch, int]]:
        for step in range(DAY_BATCHES):
            columns.step = np.full(TAGS, step)
            columns.wall_time = np.full(TAGS, 1_700_000_000.0 + step / 20)
            yield Batch(Columns(**{name: getattr(columns, name) for name in NAMES})), 28 * TAGS

    footprint = Footprint(daemon, Path(daemon.logdir) / ".ranktap", 2.0)
    with footprint:
        began = time.monotonic()
        _send_all(rank, batches())
        took_s = time.monotonic() - began
        # Told to end earlier it would leave the rest to the next start.
        wait_for(lambda: _lag(rank) == 0, "all of it to be written", 600)
    print(f"{DAY_BATCHES} batches in {took_s:.0f} s\n{footprint.table()}")
    assert footprint.looks[-1].worker_rss, "its worker writes still"
    tenth = footprint.looks[len(footprint.looks) // 10 : len(footprint.looks) // 5]
    late = footprint.looks[-len(footprint.looks) // 10 :]
    assert max(look.main_rss for look in late) < max(look.main_rss for look in tenth) + GROWN_BYTES
    assert (
        max(look.worker_rss for look in late) < max(look.worker_rss for look in tenth) + GROWN_BYTES
    )
    assert max(look.descriptors for look in late) <= max(look.descriptors for look in tenth)
    assert max(look.files for look in late) <= max(look.files for look in tenth) + 1
    # All of it is there: every tag has as many points as there were steps.
    assert daemon.stop(timeout_s=60) == 0
    (path,) = event_files(Path(daemon.logdir) / "load")
    counts = dict.fromkeys(columns.tags, 0)
    for event in _events(path):
        for value in event.summary.value:
            if value.tag in counts:
                assert event.step == counts[value.tag]
                counts[value.tag] += 1
    assert set(counts.values()) == {DAY_BATCHES}


def _events(path: Path) -> Iterator[Event]:
    """Every event of a file of eight million; TensorBoard's reader takes ten times as long."""
    data = path.read_bytes()
    assert event_file.scan(data).ending is event_file.Ending.COMPLETE
    at = 0
    while at < len(data):
        end = at + 12 + int.from_bytes(data[at : at + 8], "little")
        yield Event.FromString(data[at + 12 : end])
        at = end + 4


NAMES = ("tags", "across", "tag_index", "step", "wall_time", "value")
