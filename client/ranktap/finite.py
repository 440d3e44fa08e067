"""Which of the numbers that are sent are NaN or infinite, told once until they are finite again.

The sender looks, not the training: at the columns of a batch with one numpy operation, and at
what the hooks have counted already. Tensors, histograms and pictures are not looked at.

Pure: no clock, socket or logger.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from ranktap_wire.records import MOMENTS, Batch, Blob, Columns, Kind, byte_view, split_name

NAMED: Final = 3
"""Tags that one message names: when a model has gone to NaN, all of its tensors have."""

_NON_FINITE: Final = MOMENTS.index("non_finite")


class FiniteWatch:
    """Looks at the batches of one rank, in the order in which they are sent."""

    def __init__(self) -> None:
        self._told: set[str] = set()
        """Tags that were not finite when they were last seen."""

    def look(self, batch: Batch) -> str | None:
        """What to say of a batch, with the tags that are not finite now and were before; None when
        there are none. A tag whose last value is finite may be told of again."""
        found: list[tuple[int, str, str]] = []
        if batch.columns is not None:
            self._look_at_columns(batch.columns, found)
        for blob in batch.blobs:
            if blob.kind is Kind.MOMENTS:
                self._look_at_moments(blob, found)
        if not found:
            return None
        # Of one step in the order of the records, which is that of the calls.
        found.sort(key=lambda each: each[0])
        named = ", ".join(f"{tag!r} ({what}) at step {step}" for step, tag, what in found[:NAMED])
        others = f", and {len(found) - NAMED} more" if len(found) > NAMED else ""
        return f"not finite: {named}{others}"

    def _look_at_columns(self, columns: Columns, found: list[tuple[int, str, str]]) -> None:
        is_bad = ~np.isfinite(columns.value)
        if not is_bad.any() and not self._told:
            return
        rows = np.flatnonzero(is_bad)
        _, first = np.unique(columns.tag_index[rows], return_index=True)
        for row in sorted(rows[first].tolist()):
            name = columns.tags[columns.tag_index[row]]
            if name not in self._told:
                value = str(float(columns.value[row]))
                found.append((int(columns.step[row]), split_name(name)[1], value))
        # Of several rows of a tag the last one stays.
        ends_bad = np.zeros(len(columns.tags), np.bool_)
        ends_bad[columns.tag_index] = is_bad
        for name, is_still in zip(columns.tags, ends_bad.tolist(), strict=True):
            if is_still:
                self._told.add(name)
            else:
                self._told.discard(name)

    def _look_at_moments(self, blob: Blob, found: list[tuple[int, str, str]]) -> None:
        counts = blob.array()[:, _NON_FINITE]
        if not counts.any() and not self._told:
            return
        tags = str(byte_view(blob.parts["tags"]), "utf-8").split("\n")
        for tag, count in zip(tags, counts.tolist(), strict=True):
            if not count:
                self._told.discard(tag)
            elif tag not in self._told:
                self._told.add(tag)
                what = "1 value" if count == 1 else f"{count:.0f} values"
                found.append((blob.step, tag, what))
