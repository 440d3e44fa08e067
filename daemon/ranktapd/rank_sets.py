"""Sets of ranks: as ints for one at a time, as words for many at once.

As an int, bit k is rank k: any world size, and union, difference and inclusion
are one operator each. As words, a set is the last axis of a uint64 array,
little-endian in memory, 64 ranks to a word.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Words: TypeAlias = npt.NDArray[np.uint64]

WORD = np.dtype("<u8")
WORD_RANKS = 64
BIT: Words = np.left_shift(np.uint64(1), np.arange(WORD_RANKS, dtype=np.uint64)).astype(WORD)
"""BIT[k & 63] is rank k in its word."""


def ranks_in(ranks: int) -> Iterator[int]:
    """The members of a set of ranks, lowest first."""
    while ranks:
        lowest = ranks & -ranks
        yield lowest.bit_length() - 1
        ranks ^= lowest


def set_of(ranks: Iterable[int]) -> int:
    """The set that holds `ranks`."""
    members = 0
    for rank in ranks:
        members |= 1 << rank
    return members


def set_words(world_size: int) -> int:
    """How many words a set of ranks has."""
    return -(-world_size // WORD_RANKS)


def to_words(ranks: int, world_size: int) -> Words:
    """A set of ranks as an array of shape (words,); read-only."""
    return np.frombuffer(ranks.to_bytes(8 * set_words(world_size), "little"), dtype=WORD)


def to_int(words: Words) -> int:
    """A set of ranks as an int."""
    return int.from_bytes(words.tobytes(), "little")


def to_ints(sets: Words) -> list[int]:
    """Each row of `sets` as an int."""
    if sets.shape[1] == 1:
        return [int(word) for word in sets[:, 0].tolist()]
    raw, size = sets.tobytes(), 8 * sets.shape[1]
    return [int.from_bytes(raw[i : i + size], "little") for i in range(0, len(raw), size)]


def count_ranks(sets: Words) -> int:
    """How many ranks the sets hold together."""
    return int(np.unpackbits(np.ascontiguousarray(sets).view(np.uint8)).sum())


def any_member(sets: Words) -> npt.NDArray[np.bool_]:
    """Which of the sets, shape (sets, words), are not empty."""
    if sets.shape[1] == 1:
        # any(axis=1) over a single column costs ten times as much.
        return np.not_equal(sets[:, 0], 0)
    return np.asarray(sets.any(axis=1))
