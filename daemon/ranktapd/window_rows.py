"""Scalar records on their way into the windows: sorted columns, each window a run of rows."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Ints: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float64]


class Rows(NamedTuple):
    """Records in columns, sorted by (tag, step, rank), no two alike in all three.

    `starts` is the first row of each window; `windows`' own columns are
    `tags[starts]` and `steps[starts]`. `first_seqs`: for each window, the
    journal entry of its first row, also if a later row took its place.
    """

    tags: Ints
    steps: Ints
    ranks: Ints
    walls: Floats
    values: Floats
    starts: Ints
    first_seqs: Ints


def in_window_order(
    seqs: Ints, tags: Ints, steps: Ints, ranks: Ints, walls: Floats, values: Floats
) -> tuple[Rows, int]:
    """Rows of records given in journal order, and how many a later one of their rank replaced."""
    order = _order(tags, steps, ranks)
    tags, steps, ranks = tags[order], steps[order], ranks[order]
    opens = np.empty(order.size, np.bool_)
    opens[0] = True
    np.not_equal(tags[1:], tags[:-1], out=opens[1:])
    opens[1:] |= steps[1:] != steps[:-1]
    starts = opens.nonzero()[0]
    first_seqs = seqs[np.minimum.reduceat(order, starts)]
    # Alike in all three, in journal order: the last one counts.
    replaced = (ranks[1:] == ranks[:-1]) & ~opens[1:]
    repeated = int(np.count_nonzero(replaced))
    if repeated:
        kept = np.append(~replaced, True)
        tags, steps, ranks, order = tags[kept], steps[kept], ranks[kept], order[kept]
        # A window begins where it did, less the replaced rows before.
        starts -= np.append(0, replaced.cumsum())[starts]
    return Rows(tags, steps, ranks, walls[order], values[order], starts, first_seqs), repeated


def _order(tags: Ints, steps: Ints, ranks: Ints) -> Ints:
    """The stable order by (tag, step, rank)."""
    low = int(steps.min())
    step_bits = (int(steps.max()) - low).bit_length()
    rank_bits = int(ranks.max()).bit_length()
    if int(tags.max()).bit_length() + step_bits + rank_bits < 64:
        # The stable sort finds the runs that the ranks' batches are: 2 to 17 ns a row, where
        # the default one takes 25 to 40 and lexsort 90.
        keys = ((tags << step_bits) | (steps - low)) << rank_bits | ranks
        return np.argsort(keys, kind="stable")
    return np.lexsort((ranks, steps, tags))


def lengths_of(starts: Ints, total: int) -> Ints:
    """The lengths of the parts of 0 .. `total` that begin at `starts`; there is one at least."""
    lengths = np.empty(starts.size, np.int64)
    lengths[-1] = total
    lengths[:-1] = starts[1:]
    lengths -= starts
    return lengths


def run_starts(column: npt.NDArray[Any]) -> Ints:
    """Where each run of equal elements begins; the column is not empty."""
    begins = np.empty(column.size, np.bool_)
    begins[0] = True
    np.not_equal(column[1:], column[:-1], out=begins[1:])
    return begins.nonzero()[0]
