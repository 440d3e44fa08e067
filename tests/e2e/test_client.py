"""What a training process is promised: forks, threads, a disabled tap, bounded waits, versions."""

from __future__ import annotations

import inspect
import logging
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ranktap
from ranktap.disabled import DisabledTap
from ranktap.tap import Tap
from ranktap_wire import places
from tests.support.daemons import DaemonProcess
from tests.support.event_files import accumulate, event_files, scalar_points
from tests.support.scripts import OTHER_VERSION, run_python
from tests.support.waiting import wait_for

StartDaemon = Callable[..., DaemonProcess]
JOBS = Path(__file__).parent / "jobs"
NOBODY = "ipc:///tmp/ranktap-nobody-listens-here.sock"


def read(daemon: DaemonProcess, run: str) -> dict[str, list[tuple[int, float]]]:
    """All scalars of a run, once the daemon has written everything and ended."""
    assert daemon.stop() == 0
    return scalar_points(daemon.logdir / run)


# -- forks --------------------------------------------------------------------------------


def test_a_forked_child_is_inert_and_its_parents_stream_is_complete(
    start_daemon: StartDaemon,
) -> None:
    daemon = start_daemon()
    # Nothing is said either: not by threading in the child about the sender that it lacks.
    assert run_python(JOBS / "forking.py", daemon.endpoint).stderr == ""
    points = read(daemon, "parent")
    assert points == {
        "loss": [(step, float(step)) for step in range(3_000)],
        "beside": [(step, float(step)) for step in range(3_000)],
    }
    assert scalar_points(daemon.logdir / "child")["own"] == [(1, 1.0)]
    images = accumulate(daemon.logdir / "parent").Images("image")
    assert [image.step for image in images] == [0, 1, 2]


def test_a_data_loaders_workers_disturb_nothing(start_daemon: StartDaemon) -> None:
    daemon = start_daemon()
    done = run_python(JOBS / "data_loader.py", daemon.endpoint)
    assert "workers saw an inert tap" in done.stdout
    assert done.stderr == ""
    points = read(daemon, "loader")
    # 2 epochs of 32 batches; each batch's sum is that of its samples.
    expected = [(step, float(sum(range(step % 32 * 4, step % 32 * 4 + 4)))) for step in range(64)]
    assert points == {"sum": expected}


# -- disabled -----------------------------------------------------------------------------


def public_methods(cls: type) -> dict[str, Any]:
    return {
        name: member
        for name, member in inspect.getmembers(cls, inspect.isfunction)
        if not name.startswith("_")
    }


def test_every_public_method_of_a_tap_is_disabled_in_a_disabled_one() -> None:
    for name in public_methods(Tap):
        # An inherited one would do something.
        assert name in vars(DisabledTap), f"DisabledTap lacks {name}"


@pytest.mark.parametrize("name", public_methods(Tap))
def test_a_disabled_method_takes_what_the_real_one_takes(name: str) -> None:
    real = inspect.signature(getattr(Tap, name))
    disabled = inspect.signature(getattr(DisabledTap, name))
    parameters = list(real.parameters.values())
    positional = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    disabled.bind(*positional)
    required = [p for p in parameters if p.default is p.empty]
    others = {p.name: None for p in parameters if p not in required}
    disabled.bind(*(p.name for p in required), **others)
    # What hooks are removed with is a stand-in.
    assert disabled.return_annotation in (real.return_annotation, "Any")


def test_a_disabled_tap_does_nothing_at_all() -> None:
    run_python(
        """
import os, threading
import psutil
import numpy as np
import ranktap

process = psutil.Process()
before = process.num_threads(), process.num_fds(), process.net_connections("all")
with ranktap.init("run", endpoint="tcp://127.0.0.1:1", logdir="/nowhere", memory=-1) as tap:
    tap.step(1)
    tap.scalar("loss", 1.0)
    tap.scalar(None, "wrong", "wrong")
    tap.scalars({"a": 1.0}, prefix="train")
    tap.histogram("h", np.zeros(10))
    tap.image("i", np.zeros((3, 4, 4)))
    tap.images("is", np.zeros((1, 3, 4, 4)))
    tap.image_grid("g", np.zeros((1, 3, 4, 4)), nrow=2)
    tap.text("t", "words")
    assert tap.flush() is True
    assert tap.close() is True
    tap.scalar("loss", 1.0)
    assert (tap.run, tap.rank, tap.world_size) == ("run", 2, 4)
assert isinstance(tap, ranktap.Tap)
after = process.num_threads(), process.num_fds(), process.net_connections("all")
assert after == before, (before, after)
assert threading.enumerate() == [threading.main_thread()]
assert not os.path.exists("/nowhere")
""",
        env={"RANKTAP_DISABLED": "1", "RANK": "2", "WORLD_SIZE": "4"},
    )


@pytest.mark.parametrize("value", ["", "0"])
def test_a_tap_is_not_disabled_by_a_variable_that_says_no(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("RANKTAP_DISABLED", value)
    tap = ranktap.init("run", endpoint=NOBODY)
    tap.close(timeout=0)
    assert not isinstance(tap, DisabledTap)


# -- the end of a tap ---------------------------------------------------------------------


def test_use_after_close_is_counted_and_told_once(
    start_daemon: StartDaemon, caplog: pytest.LogCaptureFixture
) -> None:
    daemon = start_daemon()
    tap = ranktap.init("run", endpoint=daemon.endpoint)
    tap.scalar("loss", 1.0, 1)
    assert tap.close()
    assert caplog.text == ""
    for _ in range(100):
        tap.scalar("loss", 2.0, 2)
        tap.scalars({"a": 1.0, "b": 2.0}, 2)
        tap.histogram("h", [1.0])
        tap.image("i", np.zeros((3, 2, 2)))
        tap.text("t", "words")
    told = [record.getMessage() for record in caplog.records]
    assert told == ["ranktap: records are being dropped: the tap is closed"]
    assert (tap._outbox.dropped_scalars, tap._outbox.dropped_blobs) == (300, 300)
    assert not tap.close(), "closing again says that something was dropped"
    assert read(daemon, "run") == {"loss": [(1, 1.0)]}


def test_closing_twice_gives_the_same_answer(start_daemon: StartDaemon) -> None:
    tap = ranktap.init("run", endpoint=start_daemon().endpoint)
    tap.scalar("loss", 1.0)
    assert tap.close()
    assert tap.close()
    unheard = ranktap.init("run", endpoint=NOBODY)
    unheard.scalar("loss", 1.0)
    assert not unheard.close(timeout=0)
    assert not unheard.close(timeout=0)


def test_leaving_a_with_block_closes_the_tap_also_by_an_exception(
    start_daemon: StartDaemon,
) -> None:
    daemon = start_daemon()
    with (
        pytest.raises(ZeroDivisionError),
        ranktap.init("run", endpoint=daemon.endpoint) as tap,
    ):
        tap.scalar("loss", 1.0, 1)
        tap.scalar("loss", 1 / 0, 2)
    assert tap.close()
    assert read(daemon, "run") == {"loss": [(1, 1.0)]}


# -- steps --------------------------------------------------------------------------------


def test_a_step_is_that_of_everything_after_it_unless_another_is_given(
    start_daemon: StartDaemon,
) -> None:
    daemon = start_daemon()
    with ranktap.init("run", endpoint=daemon.endpoint) as tap:
        tap.scalar("a", 1.0)
        tap.step(7)
        tap.scalar("a", 2.0)
        tap.scalars({"a": 3.0, "b": 3.0})
        tap.scalar("a", 4.0, 8)
        tap.scalars({"a": 5.0}, 9)
        tap.histogram("h", [1.0])
        tap.image("i", np.zeros((3, 2, 2)))
        tap.image_grid("g", np.zeros((2, 3, 2, 2)))
        tap.text("t", "words")
        tap.step(np.int64(1) << 40)
        tap.scalar("a", 6.0)
    points = read(daemon, "run")
    assert points["a"] == [(0, 1.0), (7, 2.0), (7, 3.0), (8, 4.0), (9, 5.0), (1 << 40, 6.0)]
    assert points["b"] == [(7, 3.0)]
    shown = accumulate(daemon.logdir / "run")
    assert shown.Histograms("h")[0].step == 7
    assert [shown.Images(tag)[0].step for tag in ("i", "g")] == [7, 7]
    assert shown.Tensors("t/text_summary")[0].step == 7


# -- threads ------------------------------------------------------------------------------


def test_four_threads_of_a_rank_lose_nothing(start_daemon: StartDaemon) -> None:
    daemon = start_daemon()
    threads, steps = 4, 4_000
    with ranktap.init("run", endpoint=daemon.endpoint) as tap:

        def log(thread: int) -> None:
            for step in range(steps):
                tap.scalar(f"own/{thread}", float(step), step)
                tap.scalars({"x": float(thread), "y": float(step)}, step, prefix=f"in/{thread}")
                tap.scalar("shared", float(thread), step)
                if step % 1_000 == 0:
                    tap.histogram(f"h/{thread}", [float(step)], step)

        logging_threads = [threading.Thread(target=log, args=(n,)) for n in range(threads)]
        for thread in logging_threads:
            thread.start()
        for thread in logging_threads:
            thread.join()
        assert tap.close()
    points = read(daemon, "run")
    shown = accumulate(daemon.logdir / "run")
    for thread in range(threads):
        in_order = [(step, float(step)) for step in range(steps)]
        assert points[f"own/{thread}"] == in_order
        assert points[f"in/{thread}/y"] == in_order
        assert points[f"in/{thread}/x"] == [(step, float(thread)) for step in range(steps)]
        # The order of the threads is whatever it was, that of each one's own is kept.
        shared = [step for step, value in points["shared"] if value == thread]
        assert shared == list(range(steps))
        histograms = [each.step for each in shown.Histograms(f"h/{thread}")]
        assert histograms == list(range(0, steps, 1_000))


def test_a_flush_returns_although_other_threads_go_on_logging(start_daemon: StartDaemon) -> None:
    tap = ranktap.init("run", endpoint=start_daemon().endpoint)
    stop = threading.Event()

    def log() -> None:
        while not stop.is_set():
            for _ in range(100):
                tap.scalar("loss", 1.0, 1)

    thread = threading.Thread(target=log)
    thread.start()
    try:
        for _ in range(5):
            assert tap.flush(timeout=20)
    finally:
        stop.set()
        thread.join()
        assert tap.close()


def test_several_threads_may_flush_at_once(start_daemon: StartDaemon) -> None:
    tap = ranktap.init("run", endpoint=start_daemon().endpoint)
    results: list[bool] = []

    def log_and_flush() -> None:
        for step in range(50):
            tap.scalar("loss", 1.0, step)
            results.append(tap.flush())

    threads = [threading.Thread(target=log_and_flush) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 400
    assert tap.close()


# -- without a daemon ---------------------------------------------------------------------


def test_waits_are_bounded_without_a_daemon(caplog: pytest.LogCaptureFixture) -> None:
    tap = ranktap.init("run", endpoint=NOBODY)
    tap.scalar("loss", 1.0)
    for timeout_s in (0.0, 0.3):
        begin = time.monotonic()
        assert not tap.flush(timeout=timeout_s)
        assert timeout_s <= time.monotonic() - begin < timeout_s + 1
    begin = time.monotonic()
    assert not tap.close(timeout=0.3)
    assert time.monotonic() - begin < 1.5
    assert caplog.messages == ["ranktap: closed before ranktapd had journaled everything"]


def test_waits_are_bounded_when_the_daemon_hangs(start_daemon: StartDaemon) -> None:
    daemon = start_daemon()
    tap = ranktap.init("run", endpoint=daemon.endpoint)
    tap.scalar("loss", 1.0)
    assert tap.flush()
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGSTOP)
    tap.scalar("loss", 2.0)
    begin = time.monotonic()
    assert not tap.flush(timeout=0.3)
    assert not tap.close(timeout=0.3)
    assert time.monotonic() - begin < 2


def test_nothing_to_send_is_flushed_at_once_without_a_daemon() -> None:
    tap = ranktap.init("run", endpoint=NOBODY)
    assert tap.flush(timeout=10)
    assert tap.close(timeout=10)


def test_what_was_logged_before_the_daemon_came_arrives(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    daemon = DaemonProcess(tmp_path / "runs")
    try:
        tap = ranktap.init("run", endpoint=daemon.endpoint)
        for step in range(10_000):
            tap.scalar("loss", float(step), step)
        daemon.start()
        assert tap.close(timeout=30)
        assert read(daemon, "run") == {"loss": [(step, float(step)) for step in range(10_000)]}
    finally:
        daemon.close()


def test_a_full_memory_drops_tensors_before_scalars_and_tells_once(
    start_daemon: StartDaemon, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    daemon = DaemonProcess(tmp_path / "runs")
    try:
        tap = ranktap.init("run", endpoint=daemon.endpoint, memory=4 << 20)
        for step in range(100):
            tap.image("image", np.zeros((3, 256, 256), np.uint8), step)  # 192 KiB each
            tap.scalar("loss", float(step), step)
        assert tap._outbox.dropped_scalars == 0
        dropped = tap._outbox.dropped_blobs
        assert 100 - 0.8 * 4 * 1024 / 192 - 1 <= dropped < 100
        daemon.start()
        assert tap.flush(timeout=30)
        assert not tap.close(), "something was dropped"
        points = read(daemon, "run")
        assert points["loss"] == [(step, float(step)) for step in range(100)]
        assert points["ranktap/dropped"][-1][1] == dropped
        images = accumulate(daemon.logdir / "run").Images("image")
        assert [image.step for image in images] == list(range(100 - dropped))
    finally:
        daemon.close()
    told = [message for message in caplog.messages if "dropped" in message]
    assert told == [
        "ranktap: records are being dropped: 4 MiB wait for ranktapd already",
        f"ranktap: 0 scalars and {dropped} other records were dropped",
    ]


# -- finding a daemon -----------------------------------------------------------------------


def test_an_endpoint_goes_before_a_logdir_and_both_before_the_service(
    start_daemon: StartDaemon, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    daemon = start_daemon()
    monkeypatch.setattr(places, "SERVICE_SOCKET", Path(daemon.endpoint.removeprefix("ipc://")))
    elsewhere = tmp_path / "elsewhere"
    with ranktap.init("by argument", endpoint=daemon.endpoint, logdir=elsewhere) as tap:
        tap.scalar("loss", 1.0, 1)
    assert tap.close()
    with ranktap.init("the service") as tap:
        tap.scalar("loss", 1.0, 1)
    assert tap.close()
    monkeypatch.setenv("RANKTAP_ENDPOINT", NOBODY)
    tap = ranktap.init("by argument, too", endpoint=daemon.endpoint)
    tap.scalar("loss", 1.0, 1)
    assert tap.close()
    tap = ranktap.init("nobody", logdir=elsewhere)
    tap.scalar("loss", 1.0, 1)
    assert not tap.close(timeout=0.1), "the environment's endpoint goes before the logdir"
    monkeypatch.setenv("RANKTAP_ENDPOINT", daemon.endpoint)
    with ranktap.init("by the environment", logdir=elsewhere) as tap:
        tap.scalar("loss", 1.0, 1)
    assert tap.close()
    assert not elsewhere.exists()
    assert daemon.stop() == 0
    runs = {path.name for path in daemon.logdir.iterdir() if not path.name.startswith(".")}
    assert runs == {"by argument", "by argument, too", "by the environment", "the service"}


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_a_daemon_is_reached_over_tcp(start_daemon: StartDaemon, host: str) -> None:
    family = socket.AF_INET6 if host == "[::1]" else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((host.strip("[]"), 0))
        port = probe.getsockname()[1]
    daemon = start_daemon("--listen", f"tcp://{host}:{port}")
    with ranktap.init("run", endpoint=f"tcp://{host}:{port}") as tap:
        tap.scalar("loss", 1.0, 1)
    assert tap.close()
    assert read(daemon, "run") == {"loss": [(1, 1.0)]}


def test_a_socket_that_nobody_has_left_alive_is_no_service(
    start_daemon: StartDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = start_daemon()
    path = Path(daemon.endpoint.removeprefix("ipc://"))
    daemon.kill()
    assert path.exists()
    monkeypatch.setattr(places, "SERVICE_SOCKET", path)
    with pytest.raises(LookupError, match=f"{path} does not answer"):
        ranktap.init("run")


# -- imports ------------------------------------------------------------------------------


def test_importing_ranktap_brings_neither_torch_nor_tensorboard_nor_the_daemon() -> None:
    program = "import sys, ranktap; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = set(run_python(program).stdout.split())
    assert "ranktap" in loaded and "ranktap_wire" in loaded
    assert not loaded & {"torch", "tensorboard", "ranktapd", "google.protobuf", "PIL", "isal"}


def test_logging_arrays_and_numbers_brings_neither_torch_nor_tensorboard() -> None:
    program = f"""
import sys
import numpy as np
import ranktap
with_nobody = ranktap.init("run", endpoint={NOBODY!r})
with_nobody.scalar("a", 1.0)
with_nobody.histogram("h", np.zeros(3))
with_nobody.image("i", [[0.0]], dataformats="HW")
with_nobody.close(timeout=0)
print(*sys.modules)
"""
    loaded = set(run_python(program).stdout.split())
    assert "numpy" in loaded
    assert not loaded & {"torch", "tensorboard", "ranktapd"}


def test_importing_ranktap_leaves_its_host_alone() -> None:
    run_python(
        """
import logging, os, signal, threading
handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
environ = dict(os.environ)
import ranktap
assert {number: signal.getsignal(number) for number in signal.valid_signals()} == handlers
assert logging.getLogger().handlers == [] and logging.getLogger().level == logging.WARNING
assert logging.getLogger("ranktap").handlers == []
assert dict(os.environ) == environ
assert threading.enumerate() == [threading.main_thread()]
"""
    )


# -- versions -----------------------------------------------------------------------------


def test_a_client_of_another_version_is_told_and_training_goes_on(
    start_daemon: StartDaemon,
) -> None:
    daemon = start_daemon()
    with ranktap.init("healthy", endpoint=daemon.endpoint) as healthy:
        done = run_python(JOBS / "one_rank.py", daemon.endpoint, before=(OTHER_VERSION,))
        healthy.scalar("loss", 1.0, 1)
        assert healthy.flush()
    text = "this ranktapd speaks version 1 of the protocol, the client version 2"
    assert done.stderr.count(text) == 1
    assert "install the same release of ranktap on both sides" in done.stderr
    assert "Traceback" not in done.stderr
    assert "trained; closed: False" in done.stdout
    assert text in wait_for(lambda: "refused" in daemon.log and daemon.log, "the daemon's log")
    assert read(daemon, "healthy") == {"loss": [(1, 1.0)]}
    assert event_files(daemon.logdir / "one_rank") == []


def test_a_daemon_of_another_version_is_told_and_training_goes_on(
    start_daemon: StartDaemon,
) -> None:
    daemon = start_daemon(program=[sys.executable, str(OTHER_VERSION), "-m", "ranktapd"])
    done = run_python(JOBS / "one_rank.py", daemon.endpoint)
    text = "this ranktapd speaks version 2 of the protocol, the client version 1"
    assert done.stderr.count(text) == 1
    assert "Traceback" not in done.stderr
    assert "trained; closed: False" in done.stdout
    assert text in daemon.log
    assert daemon.stop() == 0
    assert event_files(daemon.logdir / "one_rank") == []


def test_after_the_sender_has_ended_the_reason_of_drops_is_not_said_to_be_memory(
    start_daemon: StartDaemon, caplog: pytest.LogCaptureFixture
) -> None:
    daemon = start_daemon(program=[sys.executable, str(OTHER_VERSION), "-m", "ranktapd"])
    caplog.set_level(logging.WARNING, "ranktap")
    tap = ranktap.init("run", endpoint=daemon.endpoint)
    wait_for(lambda: tap._outbox.is_closed, "the refusal")
    tap.scalar("loss", 1.0)
    assert not tap.close()
    dropped = [message for message in caplog.messages if "being dropped" in message]
    assert dropped == [
        "ranktap: records are being dropped: the sender has ended, as was said before"
    ]
