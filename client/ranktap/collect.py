"""What the hooks of one step have seen, until it is handed over as a few records.

Rows stay where they were computed. At the end of the step the rows of a device are
stacked, and come to the host as one copy (and the counts of histograms as another),
whatever the number of tensors. No tensor is kept: what is here was computed of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Final

import numpy as np

from ranktap import reduce, staging
from ranktap_wire.records import MOMENTS, MOMENTS_ROWS, Across, Blob, Kind

FIELDS: Final[dict[str, tuple[str, ...]]] = {
    "inputs": ("mean", "std", "min", "max", "non_finite"),
    "activations": ("mean", "std", "rms", "abs_max", "zeros", "non_finite"),
    "grad_inputs": ("rms", "abs_max", "zeros", "non_finite"),
    "grad_outputs": ("rms", "abs_max", "zeros", "non_finite"),
    "gradients": ("norm", "rms", "abs_max", "zeros", "non_finite"),
    "parameters": ("norm", "mean", "std", "abs_max", "non_finite"),
    "updates": ("norm", "ratio", "non_finite"),
}
"""The scalars of each section, `<section>/<name>/<field>`. docs/hooks.md explains them."""

PARAMETER_SECTIONS: Final = ("gradients", "parameters", "updates")
FORWARD_SECTIONS: Final = ("inputs", "activations")
MODULE_SECTIONS: Final = (*FORWARD_SECTIONS, "grad_inputs", "grad_outputs")

ALONE: Final = ("mean", "std", "rms", "norm", "min", "max", "zeros", "non_finite")
"""The scalars of one tensor that was asked for by `tap.gradient` or `tap.activation`."""


@dataclass(frozen=True, slots=True)
class Group:
    """Rows that travel and are merged together."""

    tag: str
    """Of the record; TensorBoard does not see it."""
    across: Across
    replicated: bool
    fields: tuple[str, ...]


@dataclass(slots=True)
class _Entry:
    group: Group
    tag: str
    row: reduce.Row
    counts: Any | None


@dataclass(slots=True)
class Collection:
    """The statistics of one step. Not thread safe; backward runs while the step's thread waits."""

    _entries: dict[str, _Entry] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self._entries)

    def clear(self) -> None:
        self._entries.clear()

    def any_of(self, prefixes: tuple[str, ...]) -> bool:
        """Whether a tag begins with one of these."""
        return any(tag.startswith(prefixes) for tag in self._entries)

    def add(
        self, group: Group, tag: str, row: reduce.Row, counts: Any | None, *, replace: bool = False
    ) -> None:
        """Take a tensor's row, and the counts of its histogram where one is wanted.

        A tag that comes again is merged with what there is, as the calls of a shared module
        are, or takes its place.
        """
        entry = self._entries.get(tag)
        if entry is None or replace:
            self._entries[tag] = _Entry(group, tag, row, counts)
            return
        entry.row = reduce.merge(entry.row, row)
        if entry.counts is not None and counts is not None:
            entry.counts = entry.counts + counts

    def records(
        self, step: int, wall_time: float, part: int
    ) -> Iterator[tuple[list[Blob], Callable[[], bool] | None]]:
        """Records, and how to ask whether their data has arrived on the host; a device at a time.

        `part` tells what was handed over at other times of this step from this.
        """
        by_device: dict[str, list[_Entry]] = {}
        for entry in self._entries.values():
            device = "cpu" if isinstance(entry.row, list) else str(entry.row.device)
            by_device.setdefault(device, []).append(entry)
        for place, entries in enumerate(by_device.values()):
            # Rows of a group next to each other: a record's data is a slice of the copy.
            entries.sort(key=lambda entry: (entry.group.tag, entry.counts is not None))
            rows, rows_arrived = _to_host([entry.row for entry in entries], reduce.stack)
            counted = [entry.counts for entry in entries if entry.counts is not None]
            counts, counts_arrived = _to_host(counted, _stack_counts) if counted else (None, None)
            blobs = []
            first = first_count = 0
            for (group, has_counts), members in groupby(
                entries, lambda entry: (entry.group, entry.counts is not None)
            ):
                tags = [entry.tag for entry in members]
                for start in range(0, len(tags), MOMENTS_ROWS):
                    chosen = tags[start : start + MOMENTS_ROWS]
                    blob = _blob(group, chosen, rows[first : first + len(chosen)], step, wall_time)
                    blob.tag += f"/{part}.{place}.{start}" + (".h" if has_counts else "")
                    first += len(chosen)
                    if has_counts and counts is not None:
                        blob.parts["counts"] = counts[first_count : first_count + len(chosen)]
                        first_count += len(chosen)
                    blobs.append(blob)
            yield blobs, _both(rows_arrived, counts_arrived)


def _blob(
    group: Group, tags: Sequence[str], rows: np.ndarray[Any, Any], step: int, wall_time: float
) -> Blob:
    return Blob(
        Kind.MOMENTS,
        group.tag,
        step,
        wall_time,
        group.across,
        "float64",
        (len(tags), len(MOMENTS)),
        {"fields": group.fields, "replicated": group.replicated},
        rows,
        {"tags": "\n".join(tags).encode()},
    )


def _to_host(
    parts: Sequence[Any], stack: Callable[[Sequence[Any]], Any]
) -> tuple[np.ndarray[Any, Any], Callable[[], bool] | None]:
    stacked = stack(parts)
    if isinstance(stacked, np.ndarray):
        return stacked, None
    copy = staging.snapshot(stacked, "statistics")
    return copy.bits, copy.arrived


def _stack_counts(counts: Sequence[Any]) -> Any:
    """uint32 (N, buckets); beyond 2**32 values of one tensor on one rank the count wraps."""
    import torch

    stacked = torch.stack(list(counts)).to(torch.int32)
    return stacked.numpy().view(np.uint32) if reduce.on_host(stacked) else stacked


def _both(
    first: Callable[[], bool] | None, second: Callable[[], bool] | None
) -> Callable[[], bool] | None:
    if first is None or second is None:
        return first or second
    return lambda: first() and second()
