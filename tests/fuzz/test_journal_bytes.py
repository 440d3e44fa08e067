"""Journals of any bytes: read to the end, with the named outcomes and no others.

The reader says Entry or Damage for each number, once and in order, or raises JournalError.
The writer opens the journal and goes on behind it, or raises JournalError. What was
appended is read as it was or reported; without a forged checksum nothing else is read.
"""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from ranktap_wire import journal
from ranktap_wire.checksum import crc32c
from ranktap_wire.journal import JournalError, JournalReader, JournalWriter
from ranktap_wire.segment import START, Position, segment_path, segments
from tests.support.journals import Read, read_journal, read_on

ROUNDS = 250
"""Of each test, with the seeds 0, 1, 2 ...; what a seed does never changes."""

Mutation = Callable[[random.Random, bytearray], None]


@pytest.fixture(autouse=True)
def _without_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fdatasync", lambda fd: None)
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    monkeypatch.setattr(journal, "_READ_BYTES", 1 << 16)  # these journals are small, and many


def some_place(rng: random.Random, data: bytearray, length: int = 1) -> int:
    """Anywhere, and more often where something begins."""
    at = rng.randrange(max(1, len(data) - length + 1))
    return at // 8 * 8 if rng.random() < 0.5 else at


def flip_a_bit(rng: random.Random, data: bytearray) -> None:
    if data:
        data[some_place(rng, data)] ^= 1 << rng.randrange(8)


def overwrite(rng: random.Random, data: bytearray) -> None:
    length = rng.choice((1, 8, 40, 300))
    at = some_place(rng, data, length)
    data[at : at + length] = rng.choice((bytes(length), b"\xff" * length, rng.randbytes(length)))


def take_out(rng: random.Random, data: bytearray) -> None:
    length = rng.choice((1, 8, 40, 300))
    at = some_place(rng, data, length)
    del data[at : at + length]


def put_in(rng: random.Random, data: bytearray) -> None:
    at = some_place(rng, data)
    data[at:at] = rng.randbytes(rng.choice((1, 8, 40, 300)))


def repeat(rng: random.Random, data: bytearray) -> None:
    length = rng.choice((8, 40, 300))
    at = some_place(rng, data, length)
    data[at:at] = data[at : at + length]


def cut_off(rng: random.Random, data: bytearray) -> None:
    del data[some_place(rng, data) :]


def add_behind(rng: random.Random, data: bytearray) -> None:
    data += rng.choice((bytes(100), rng.randbytes(50), bytes(data[:200])))


def begin_anew(rng: random.Random, data: bytearray) -> None:
    data[:] = rng.randbytes(rng.choice((0, 10, 32, 33, 500)))


MUTATIONS: list[Mutation] = [
    flip_a_bit, flip_a_bit, overwrite, take_out, put_in, repeat, cut_off, add_behind, begin_anew,
]  # fmt: skip


def forge(rng: random.Random, data: bytearray) -> None:
    """A head whose checksum is right and which says something odd."""
    numbers = (0, 1, 2, 3, 7, 8, 50, 1 << 31, (1 << 32) - 1)
    sequence = rng.choice((0, 1, 2, 5, 9, 10, 11, 300, 1 << 40, (1 << 64) - 1))
    length, index, remaining = (rng.choice(numbers) for _ in range(3))
    payload = struct.pack("<II", rng.choice(numbers), 0) + rng.randbytes(length % 64)
    if rng.random() < 0.7:
        length = len(payload)
    rest = struct.pack("<IQIIII", crc32c(payload), sequence, length, index, remaining,
                       rng.choice((0, 0, 0, 1)))  # fmt: skip
    entry = struct.pack("<I", crc32c(rest)) + rest + payload
    at = some_place(rng, data) // 8 * 8
    data[at : at + rng.choice((0, len(entry)))] = entry


def written(directory: Path, seed: int) -> tuple[Read, int]:
    """A journal of a few groups in a few segments, and its last number."""
    rng = random.Random(seed)
    writer = JournalWriter(directory, segment_bytes=400, preamble=lambda: [[b"preamble"]])
    for _ in range(rng.randrange(1, 8)):
        writer.append(
            [
                [rng.randbytes(rng.choice((0, 5, 30, 100))) for _ in range(rng.randrange(4))]
                for _ in range(rng.randrange(1, 4))
            ]
        )
    writer.close()
    return read_journal(directory, writer.last), writer.last


def mutate(
    rng: random.Random, directory: Path, mutations: list[Mutation], last_too: bool = True
) -> None:
    numbers = segments(directory)[: None if last_too else -1]
    for _ in range(rng.choice((1, 1, 2, 4))):
        if numbers:
            path = segment_path(directory, rng.choice(numbers))
            data = bytearray(path.read_bytes())
            rng.choice(mutations)(rng, data)
            path.write_bytes(data)


def outcome(directory: Path, last: int, after: Position = START) -> Read | None:
    """None: the journal was refused, with a reason."""
    descriptors = len([*Path("/proc/self/fd").iterdir()])
    try:
        return read_journal(directory, last, after)
    except JournalError as error:
        assert str(directory) in str(error)
        return None
    finally:
        assert len([*Path("/proc/self/fd").iterdir()]) == descriptors


def test_a_mutated_journal_gives_what_was_appended_or_says_what_is_gone(tmp_path: Path) -> None:
    refused = damaged = 0
    for seed in range(ROUNDS):
        directory = tmp_path / str(seed)
        whole, last = written(directory, seed)
        rng = random.Random(f"mutate {seed}")
        mutate(rng, directory, MUTATIONS)
        read = outcome(directory, last)
        if read is None:
            refused += 1
            continue
        assert {*read.entries} | {*read.lost} == {*range(1, last + 1)}
        for number, frames in read.entries.items():
            assert frames == whole.entries[number], seed
        damaged += bool(read.lost)
    # Most mutations hurt; if they stopped to, this test would prove nothing.
    assert damaged > ROUNDS // 2
    assert refused < ROUNDS // 4


def test_reading_from_the_middle_of_a_mutated_journal_ends_too(tmp_path: Path) -> None:
    for seed in range(ROUNDS // 2):
        directory = tmp_path / str(seed)
        whole, last = written(directory, seed)
        rng = random.Random(f"middle {seed}")
        after = rng.choice([*whole.after.values()])
        mutate(rng, directory, MUTATIONS)
        read = outcome(directory, last, after)
        if read is not None:
            for number, frames in read.entries.items():
                assert frames == whole.entries[number], seed


def test_a_forged_entry_is_read_or_passed_over_and_nothing_else(tmp_path: Path) -> None:
    for seed in range(ROUNDS):
        directory = tmp_path / str(seed)
        _, last = written(directory, seed)
        rng = random.Random(f"forge {seed}")
        mutate(rng, directory, [*MUTATIONS, forge, forge, forge, forge])
        read = outcome(directory, last)
        assert read is None or {*read.entries} | {*read.lost} == {*range(1, last + 1)}


@pytest.mark.parametrize("kinds", [MUTATIONS, [forge]], ids=["mutated", "forged"])
def test_a_writer_goes_on_behind_any_bytes_or_refuses_them(
    tmp_path: Path, kinds: list[Mutation]
) -> None:
    refused = cut = 0
    for seed in range(ROUNDS):
        directory = tmp_path / str(seed)
        whole, last = written(directory, seed)
        rng = random.Random(f"write {seed}")
        mutate(rng, directory, kinds)
        before = {n: segment_path(directory, n).read_bytes() for n in segments(directory)}
        try:
            writer = JournalWriter(directory)
        except JournalError as error:
            refused += 1
            assert str(directory) in str(error)
            # What is not understood is not touched.
            assert before == {n: segment_path(directory, n).read_bytes() for n in before}
            continue
        cut += writer.cut is not None
        number = writer.append([[b"a new entry"]])
        writer.close()
        read = outcome(directory, number)
        if read is not None:
            assert read.entries[number] == [b"a new entry"]
            for at, frames in read.entries.items():
                if kinds is MUTATIONS and at < number and at <= last:
                    assert frames == whole.entries[at], seed
    assert cut > ROUNDS // 8
    assert refused < ROUNDS // 4


def test_a_reader_that_is_told_of_more_step_by_step_says_the_same(tmp_path: Path) -> None:
    for seed in range(ROUNDS // 2):
        directory = tmp_path / str(seed)
        _, last = written(directory, seed)
        mutate(random.Random(f"steps {seed}"), directory, MUTATIONS)
        at_once = outcome(directory, last)
        if at_once is None:
            continue
        reader = JournalReader(directory)
        entries: dict[int, list[bytes]] = {}
        for told in range(1, last + 1):
            entries |= read_on(reader, told).entries
        reader.close()
        assert entries == at_once.entries, seed
