"""What a fuzzer gives its bytes to, and what must hold whatever they are.

Each target takes bytes and returns quietly, or raises: then a promise is broken. Inputs are
plain bytes so that a fuzzer can make them; `pack` says how a message is laid out in them.

    wire      a message of a client, as the daemon reads it
    answer    a message of a daemon, as a client reads it
    fold      a batch that the daemon takes: its worker can write it, too
    journal   a segment, as reader and writer find it
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

from ranktap_wire import frames, rules
from ranktap_wire.journal import JournalError, JournalReader, JournalWriter
from ranktap_wire.messages import BatchMessage, Beat, Bye, Code, Error, FrameError, Frames, Hello
from ranktap_wire.records import Batch
from ranktap_wire.segment import START, Damage, Entry, segment_path
from ranktapd.entries import BatchAccepted, RunBegins, SessionOpened, pack_entry, read_entry
from ranktapd.fold import Fold
from tests.support import messages

Target = Callable[[bytes], None]
FRAMES_MAX = 300
"""More than the limit, so that it can be passed."""
ANSWER_BYTES = 4_200
"""An error's text is cut to 1,000 characters, of four bytes at most."""


# -- messages as plain bytes --------------------------------------------------------------


def pack(parts: Frames) -> bytes:
    """The frames of a message, one behind the other, each with its length before it."""
    return b"".join(struct.pack("<I", len(part)) + part for part in messages.as_bytes(parts))


def unpack(data: bytes) -> list[bytes]:
    """The frames in any bytes: a length that is too large means all that is left."""
    parts: list[bytes] = []
    at = 0
    while at + 4 <= len(data) and len(parts) < FRAMES_MAX:
        (length,) = struct.unpack_from("<I", data, at)
        parts.append(data[at + 4 : at + 4 + length])
        at += 4 + length
    return parts


# -- the wire -----------------------------------------------------------------------------


def wire(data: bytes) -> None:
    """It is refused with a named code and a short text, or it is a message through and through."""
    parts = unpack(data)
    try:
        message = frames.read_message(parts)
    except FrameError as error:
        _check_refusal(error)
        return
    match message:
        case Hello():
            packed = frames.pack_hello(message)
            place = Path("/logdir", message.run)
            assert os.path.normpath(place) == str(place), "it leaves the logdir"
            assert not any(part.startswith(".") for part in message.run.split("/"))
            assert "/" not in rules.run_directory_name(message.run)
            assert rules.run_of_directory_name(rules.run_directory_name(message.run)) == message.run
        case BatchMessage():
            packed = frames.pack_batch(message.session, message.number, message.batch)
        case Beat():
            packed = frames.pack_beat(message.session, message.sent)
        case Bye():
            packed = frames.pack_bye(message.session)
    # What is read is what would be sent: nothing was taken for something else.
    assert messages.plain(frames.read_message(packed)) == messages.plain(message)
    assert frames.session_of(parts) == message.session


def answer(data: bytes) -> None:
    """It is an answer, or an error that the client handles."""
    try:
        frames.read_answer(unpack(data))
    except FrameError as error:
        _check_refusal(error)


def _check_refusal(error: FrameError) -> None:
    assert error.code in Code
    (packed,) = frames.pack_answer(Error(error.code, error.text, error.number))
    assert len(packed) < ANSWER_BYTES
    # It is answered and logged: no line of its own, no escape for a terminal.
    assert not rules.has_control(error.text), repr(error.text)


# -- what is taken can be written -----------------------------------------------------------


class _InTheCaller(Executor):
    """As a careful worker draws: what cannot be drawn says so with a ValueError."""

    def submit(self, fn: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*arguments, **named))
        except ValueError as error:
            future.set_exception(error)
        return future


PIXELS_MAX = 1 << 20
"""Larger pictures are drawn in time that a fuzzer does not have; they are right or not as
small ones are."""


def fold(data: bytes) -> None:
    """A batch that breaks no rule is folded without an error, and gives whole records."""
    parts = unpack(data)
    try:
        message = frames.read_message(parts)
    except FrameError:
        return
    if not isinstance(message, BatchMessage) or _is_large(message.batch):
        return
    session = message.session
    words = [
        pack_entry(RunBegins(1_700_000_000.0, "log-host", 1, "")),
        pack_entry(SessionOpened(session, 0, 2, "node", 1, 1_700_000_000.0, None, 0)),
        pack_entry(BatchAccepted(session, message.number), parts),
    ]
    state = Fold(_InTheCaller())
    for sequence, said in enumerate(words, 1):
        views = [memoryview(part) for part in messages.as_bytes(said)]
        state.apply(Entry(sequence, sequence == len(words), views, START))
    output = state.close_group("3@1+0").join()
    at = 0
    while at < len(output):
        (length,) = struct.unpack_from("<Q", output, at)
        at += 16 + length
    assert at == len(output), "the last record is torn"
    state.state()  # it can be kept as a snapshot


def _is_large(batch: Batch) -> bool:
    for blob in batch.blobs:
        parameters = blob.parameters
        pixels = math.prod(blob.shape)
        padding, rescale = parameters.get("padding", 0), parameters.get("rescale", 1)
        if padding:
            count = blob.shape[0] if len(blob.shape) == 4 else 1
            pixels += count * padding * (padding + sum(blob.shape[-2:]))
        if pixels * rescale * rescale > PIXELS_MAX:
            return True
        bins = parameters.get("bins")
        if isinstance(bins, int) and bins > 10_000:
            return True
    return False


# -- the journal ----------------------------------------------------------------------------


@contextlib.contextmanager
def _no_sync() -> Iterator[None]:
    real = os.fsync, os.fdatasync
    os.fsync = os.fdatasync = lambda fd: None  # type: ignore[assignment]
    try:
        yield
    finally:
        os.fsync, os.fdatasync = real


def _memory() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def journal(data: bytes) -> None:
    """A segment of any bytes is read to its end, and its writer goes on or refuses it."""
    directory = Path(tempfile.mkdtemp(prefix="ranktap-fuzz-", dir=_memory()))
    try:
        with _no_sync():
            _journal(data, directory)
    finally:
        shutil.rmtree(directory)


def _journal(data: bytes, directory: Path) -> None:
    path = segment_path(directory, 1)
    path.write_bytes(data)
    with contextlib.suppress(JournalError):
        _read_all(directory, upto=20)
    try:
        writer = JournalWriter(directory)
    except JournalError as error:
        assert str(directory) in str(error)
        assert path.read_bytes() == data, "what is not understood was changed"
        return
    try:
        before = writer.last
        number = writer.append([[b"a new entry"]])
        assert number == before + 1
        if number < 10_000:
            read = _read_all(directory, upto=number)
            assert read[number] == [b"a new entry"]
    finally:
        writer.close()


def _read_all(directory: Path, upto: int) -> dict[int, list[bytes]]:
    reader = JournalReader(directory)
    read: dict[int, list[bytes]] = {}
    expected = 0
    try:
        for each in reader.entries(upto):
            first, last = (
                (each.first, each.last) if isinstance(each, Damage) else (each.sequence,) * 2
            )
            assert first == expected + 1
            expected = max(expected, last)
            if isinstance(each, Entry):
                read[each.sequence] = [bytes(frame) for frame in each.frames]
                with contextlib.suppress(ValueError):
                    read_entry(each.frames)
            else:
                assert not rules.has_control(str(each))
    finally:
        reader.close()
    assert expected == upto
    return read


TARGETS: dict[str, Target] = {"wire": wire, "answer": answer, "fold": fold, "journal": journal}
