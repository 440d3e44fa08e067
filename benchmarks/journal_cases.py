"""The journal beside the same bytes written and read with nothing around them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks import tally
from benchmarks.cases import Case, Figures
from benchmarks.work import many, timed
from ranktap_wire.journal import JournalReader, JournalWriter

KIB, MIB = 1 << 10, 1 << 20

GROUPS = {"64 KiB": 64 * KIB, "1 MiB": MIB, "8 MiB": 8 * MIB}
"""Bytes that are synced together: a few ranks' scalars, a batch, a full round of the intake."""
PIECE = 256 * KIB
"""An entry of a group, and a write of the side without a journal."""

SYNCED, UNSYNCED, READ = "on disk, groups of {}", "in the page cache, groups of {}", "read"


def _plan() -> Iterator[tuple[str, bool, list[memoryview], int]]:
    """(figure, whether it is synced, the pieces of a group, how many groups)."""
    data = memoryview(np.random.default_rng(0).bytes(8 * MIB))
    for name, nbytes in GROUPS.items():
        piece = min(PIECE, nbytes)
        pieces = [data[at : at + piece] for at in range(0, nbytes, piece)]
        total = {64 * KIB: 32 * MIB, MIB: 192 * MIB, 8 * MIB: 384 * MIB}[nbytes]
        yield SYNCED.format(name), True, pieces, many(total // nbytes, 2)
    yield (
        UNSYNCED.format("1 MiB"),
        False,
        [data[i * PIECE :][:PIECE] for i in range(4)],
        many(512, 2),
    )


def _mb_per_s(nbytes: int, seconds: float) -> float:
    return nbytes / seconds / 1e6


def journal(directory: Path) -> Figures:
    figures: Figures = {}
    for figure, is_synced, pieces, groups in _plan():
        place = directory / figure
        writer = JournalWriter(place, sync=is_synced)
        with timed() as took:
            for _ in range(groups):
                writer.append([[piece] for piece in pieces])
        writer.close()
        figures[figure] = _mb_per_s(groups * sum(map(len, pieces)), took.seconds)
        logged = groups * len(pieces)
        reader = JournalReader(place)
        with timed() as took:
            read = sum(len(entry.frames) for entry in reader.entries(logged))  # type: ignore[union-attr]
        reader.close()
        tally.read_back({figure: logged}, {figure: read})
        # The last of them is the one that never left the page cache.
        figures[READ] = _mb_per_s(groups * sum(map(len, pieces)), took.seconds)
    return figures


def bare(directory: Path) -> Figures:
    """One `writev` and one `fdatasync` a group; read back in pieces of 4 MiB."""
    figures: Figures = {}
    for figure, is_synced, pieces, groups in _plan():
        path = directory / figure
        fd = os.open(path, os.O_WRONLY | os.O_CREAT)
        with timed() as took:
            for _ in range(groups):
                os.writev(fd, pieces)
                if is_synced:
                    os.fdatasync(fd)
        os.close(fd)
        nbytes = groups * sum(map(len, pieces))
        figures[figure] = _mb_per_s(nbytes, took.seconds)
        read = 0
        with timed() as took, open(path, "rb", buffering=0) as file:
            while piece := file.read(4 * MIB):
                read += len(piece)
        tally.read_back({figure: nbytes}, {figure: read})
        figures[READ] = _mb_per_s(nbytes, took.seconds)
    return figures


_FIGURES = [*(SYNCED.format(name) for name in GROUPS), UNSYNCED.format("1 MiB"), READ]

JOURNAL_CASES = [
    Case(
        "journal",
        "journal, beside the same bytes in a plain file",
        {"ranktap": journal, "bare": bare},
        {},
        dict.fromkeys(_FIGURES, "MB/s"),
        higher_is_better=True,
        group="parts",
    )
]
