"""The first NaN or infinity: which rank, step and tag, in the order in which they were computed.

A tag of a rank is named once until it is finite again. What is found within INCIDENT_STEPS
steps is one incident, and has one text, at the step of its first finding; it is written
again as long as more is found. Ranks report as they come, so what is first may change.

Within a step the order is that of the computation, as far as records tell it:

    forward     inputs and activations, by module in the order in which they ran
    tensors     of `tap.activation` and `tap.gradient`, in the order in which they came
    backward    gradients of activations in the order in which they ran; those of parameters
                from the model's end to its beginning
    optimizer   parameters, updates
    scalars     by wall time

Pure: no clock, file, socket or thread.
"""

from __future__ import annotations

import re
from bisect import insort
from typing import Any, Final, NamedTuple

import numpy as np

from ranktap_wire import limits
from ranktap_wire.records import MOMENTS, Across, Batch, Blob, Columns, Kind, byte_view, split_name
from ranktapd.rank_sets import ranks_in, set_of
from ranktapd.render.tables import code, plain, table

TAG: Final = "ranktap/non_finite"

INCIDENT_STEPS: Final = 100
"""One NaN turns up in more and more tags; hooks look at every hundredth step by habit."""
ROWS: Final = 50
"""Of a text. When a model has gone to NaN all its tensors have: a thousand rows say no more."""
RECOVERIES: Final = 20
"""A tag that has been finite again so often comes and goes, and is not named any more."""

_NON_FINITE: Final = MOMENTS.index("non_finite")
_WATCHED: Final = "ranktap/watch/"
_PLACE: Final = re.compile(r"/(\d{1,9})\.(\d{1,9})\.(\d{1,9})(?:\.h)?$")
"""What a record of a watch has behind its group: hand-over of the step, device, first row."""

_FORWARD, _TENSOR, _BACKWARD, _GRADIENT, _OPTIMIZER, _SCALAR = range(6)
_SECTIONS: Final = {
    "inputs": (_FORWARD, 0),
    "activations": (_FORWARD, 1),
    "grad_outputs": (_BACKWARD, 0),
    "grad_inputs": (_BACKWARD, 1),
    "gradients": (_GRADIENT, 0),
    "parameters": (_OPTIMIZER, 0),
    "updates": (_OPTIMIZER, 1),
}
"""When a section of a watch is computed; of a module its input comes before its output."""
_WHERE: Final = ("forward", "tensor", "backward", "backward", "optimizer", "scalar")
_IN_WORDS: Final = {
    "forward": " in the forward",
    "tensor": "",
    "backward": " in the backward",
    "optimizer": " at the optimizer's step",
    "scalar": ", a scalar",
}


class Finding(NamedTuple):
    """One tag of one rank that is not finite. They sort by when they were computed."""

    step: int
    phase: int
    place: tuple[int, ...]
    wall: float
    rank: int
    name: str
    host: str
    every_rank: bool
    """All ranks have the same: gradients after they were averaged."""

    @property
    def who(self) -> str:
        return "every rank" if self.every_rank else f"rank {self.rank}"


class Text(NamedTuple):
    """What is to be said. `log`: the words for the log; None when they were said already."""

    step: int
    markdown: str
    log: str | None


class NonFinite:
    """What is not finite in one run. Not thread safe.

    It remembers a set of ranks for each tag that is not finite, and ROWS findings.
    """

    def __init__(self) -> None:
        self._bad: dict[str, int] = {}
        """The ranks of which a name was not finite when it was last seen."""
        self._recoveries: dict[str, int] = {}
        self._incident: list[Finding] = []
        """Sorted; what is beyond ROWS has been let go of."""
        self._last_step = 0
        self._has_more = False
        # Not state: what the ranks have in `_bad`; and the group that is being fed.
        self._bad_of: dict[int, int] = {}
        self._found: list[Finding] = []

    # -- in ---------------------------------------------------------------------------

    def look(self, rank: int, host: str, batch: Batch, *, scalars: bool) -> None:
        """Look at a rank's batch: at what hooks have measured, and at its scalars if told to."""
        if scalars and batch.columns is not None:
            self._look_at_columns(rank, host, batch.columns)
        for blob in batch.blobs:
            if blob.kind is Kind.MOMENTS and (blob.across is not Across.RANK0 or rank == 0):
                self._look_at_moments(rank, host, blob)

    def _look_at_columns(self, rank: int, host: str, columns: Columns) -> None:
        is_bad = ~np.isfinite(columns.value)
        rows = np.flatnonzero(is_bad)
        if not rows.size and not self._bad_of.get(rank):
            return
        _, first = np.unique(columns.tag_index[rows], return_index=True)
        for row in rows[first].tolist():
            name = columns.tags[columns.tag_index[row]]
            wall, step = float(columns.wall_time[row]), int(columns.step[row])
            if self._becomes_bad(rank, name):
                self._found.append(Finding(step, _SCALAR, (), wall, rank, name, host, False))
        # Of several rows of a tag the last one tells how it stands.
        ends_bad = np.zeros(len(columns.tags), np.bool_)
        ends_bad[columns.tag_index] = is_bad
        for tag in np.flatnonzero(~ends_bad).tolist():
            self._becomes_finite(rank, columns.tags[tag])

    def _look_at_moments(self, rank: int, host: str, blob: Blob) -> None:
        counts = blob.array()[:, _NON_FINITE]
        if not counts.any() and not self._bad_of.get(rank):
            return
        tags = str(byte_view(blob.parts["tags"]), "utf-8").split("\n")
        every_rank = blob.across is Across.RANK0 and bool(blob.parameters["replicated"])
        for row, (tag, count) in enumerate(zip(tags, counts.tolist(), strict=True)):
            if not count:
                self._becomes_finite(rank, tag)
            elif self._becomes_bad(rank, tag):
                phase, place = _computed(blob.tag, tag, row)
                self._found.append(
                    Finding(blob.step, phase, place, blob.wall_time, rank, tag, host, every_rank)
                )

    def _becomes_bad(self, rank: int, name: str) -> bool:
        """Note that a name is not finite; whether that is to be told."""
        ranks = self._bad.get(name)
        if ranks is None and len(self._bad) >= limits.TAGS:
            return False
        if ranks is not None and ranks >> rank & 1:
            return False
        self._bad[name] = (ranks or 0) | 1 << rank
        self._bad_of[rank] = self._bad_of.get(rank, 0) + 1
        return self._recoveries.get(name, 0) < RECOVERIES

    def _becomes_finite(self, rank: int, name: str) -> None:
        ranks = self._bad.get(name, 0)
        if not ranks >> rank & 1:
            return
        self._bad_of[rank] -= 1
        if ranks ^ 1 << rank:
            self._bad[name] = ranks ^ 1 << rank
        else:
            del self._bad[name]
            if name in self._recoveries or len(self._recoveries) < limits.TAGS:
                self._recoveries[name] = self._recoveries.get(name, 0) + 1

    def begin_again(self) -> None:
        """The job was started again: what was not finite before says nothing any more."""
        self._bad.clear()
        self._bad_of.clear()

    # -- out --------------------------------------------------------------------------

    def take(self) -> list[Text]:
        """End the group; what it gives to say, at most a text an incident."""
        found, self._found = sorted(self._found), []
        said: list[Text] = []
        while found:
            incident, found = self._one_incident(found)
            first = self._incident[0] if self._incident else None
            before = len(self._incident), self._has_more
            for finding in incident:
                insort(self._incident, finding)
            self._has_more = self._has_more or len(self._incident) > ROWS
            is_shown = incident[0] in self._incident[:ROWS]
            del self._incident[ROWS:]
            if is_shown or before != (len(self._incident), self._has_more):
                said.append(self._text(first))
        return said

    def _one_incident(self, found: list[Finding]) -> tuple[list[Finding], list[Finding]]:
        """Part those off that belong to the incident there is, or to a new one; by step."""
        known = self._incident
        begin = known[0].step - INCIDENT_STEPS if known else 0
        if not known or not begin <= found[0].step <= self._last_step + INCIDENT_STEPS:
            self._incident, self._has_more = [], False
            self._last_step = found[0].step
        count = 0
        for finding in found:
            if finding.step > self._last_step + INCIDENT_STEPS:
                break
            self._last_step = max(self._last_step, finding.step)
            count += 1
        return found[:count], found[count:]

    def _text(self, former: Finding | None) -> Text:
        first = self._incident[0]
        tail = _IN_WORDS[_WHERE[first.phase]]
        words = (
            f"**{first.who}** ({plain(first.host)}) step {first.step}: "
            f"first {code(_shown(first.name))}{tail}"
        )
        rows = [
            [
                "all" if each.every_rank else str(each.rank),
                plain(each.host),
                str(each.step),
                code(_shown(each.name)),
                _WHERE[each.phase],
            ]
            for each in self._incident
        ]
        markdown = f"{words}\n\n{table(('rank', 'host', 'step', 'tag', 'where'), rows)}"
        if self._has_more:
            markdown += f"\nand more: these {ROWS} were computed first\n"
        log = None
        if first != former:
            log = (
                f"not finite: {first.who} ({first.host}) step {first.step}: "
                f"first {_shown(first.name)!r}{tail}"
            )
        return Text(first.step, markdown, log)

    # -- snapshots --------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything that later output depends on, msgpack-able; only between groups."""
        return {
            "bad": [[name, list(ranks_in(ranks))] for name, ranks in self._bad.items()],
            "recoveries": list(self._recoveries.items()),
            "incident": [list(each) for each in self._incident],
            "last_step": self._last_step,
            "has_more": self._has_more,
        }

    @classmethod
    def restore(cls, state: dict[str, Any]) -> NonFinite:
        """What `state` was taken of."""
        restored = cls()
        for name, ranks in state["bad"]:
            restored._bad[name] = set_of(ranks)
            for rank in ranks:
                restored._bad_of[rank] = restored._bad_of.get(rank, 0) + 1
        restored._recoveries = dict(state["recoveries"])
        restored._incident = [
            Finding(step, phase, tuple(place), *rest)
            for step, phase, place, *rest in state["incident"]
        ]
        restored._last_step = state["last_step"]
        restored._has_more = state["has_more"]
        return restored


def _computed(record: str, tag: str, row: int) -> tuple[int, tuple[int, ...]]:
    """When a row of a record of moments was computed: the phase of its step, and where in it."""
    section = _SECTIONS.get(tag.partition("/")[0])
    if not record.startswith(_WATCHED) or section is None:
        return _TENSOR, ()
    phase, side = section
    found = _PLACE.search(record)
    part, device, start = map(int, found.groups()) if found else (0, 0, 0)
    # Parameters come in the model's order, and their gradients are computed from its end.
    at = -(start + row) if phase == _GRADIENT else start + row
    return phase, (part, device, at, side)


def _shown(name: str) -> str:
    """A name for people: of a sub-run with where it is."""
    sub_run, tag = split_name(name)
    return f"{sub_run}: {tag}" if sub_run else tag
