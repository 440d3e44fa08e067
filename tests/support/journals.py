"""Journals read back, and files damaged on purpose."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ranktap_wire.journal import JournalReader
from ranktap_wire.segment import START, Damage, Position


@dataclass
class Read:
    """What a reader said of a journal."""

    entries: dict[int, list[bytes]] = field(default_factory=dict)
    """Frames by sequence number."""
    after: dict[int, Position] = field(default_factory=dict)
    ends_group: dict[int, bool] = field(default_factory=dict)
    damages: list[Damage] = field(default_factory=list)

    @property
    def lost(self) -> list[int]:
        """Sequence numbers that were reported as damaged."""
        return [n for damage in self.damages for n in range(damage.first, damage.last + 1)]

    @property
    def first_frames(self) -> list[bytes]:
        """The first frame of each entry, in order."""
        return [frames[0] for _, frames in sorted(self.entries.items())]


def read_journal(directory: Path, upto: int, after: Position = START) -> Read:
    """All entries behind `after` up to `upto`; AssertionError when a number comes twice."""
    reader = JournalReader(directory, after)
    try:
        return read_on(reader, upto)
    finally:
        reader.close()


def read_on(reader: JournalReader, upto: int) -> Read:
    """What a reader that is already somewhere says up to `upto`."""
    read = Read()
    expected = reader.position.sequence
    for entry in reader.entries(upto):
        if isinstance(entry, Damage):
            assert entry.first == expected + 1
            assert entry.last >= expected
            expected = entry.last
            read.damages.append(entry)
        else:
            assert entry.sequence == expected + 1
            expected = entry.sequence
            read.entries[entry.sequence] = [bytes(frame) for frame in entry.frames]
            read.after[entry.sequence] = entry.after
            read.ends_group[entry.sequence] = entry.ends_group
    assert expected == max(upto, read.after.get(upto, reader.position).sequence)
    return read


def flip_bit(path: Path, offset: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1 << bit
    path.write_bytes(data)
