"""The tags of a run: what each is, its number, and which event file its records go to.

A name is a tag, or a sub-run and a tag (`records.join_name`). Scalars of one name that are
written in two styles have two numbers, so that each is written as it was asked for.

Pure: no clock, file, socket or thread.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ranktap_wire import limits
from ranktap_wire.records import Style, join_name, split_name
from ranktapd.notices import Notices

SCALAR: Final = "scalar"
"""The kind of a tag that has scalars."""

SUB_RUNS: Final = 10_000
"""Of a run. Each has a directory, an event file and a file that says which: 12 KiB on the
disk. One `add_hparams` a trial makes as many as there are trials."""

_LEAST_TAGS: Final = 64  # room at first; arbitrary, it doubles


def of_rank(name: str, rank: int) -> str:
    """Where one rank's own series of that name is."""
    sub_run, tag = split_name(name)
    return join_name(sub_run, f"ranks/{tag}/rank{rank}")


def over_ranks(name: str, what: str) -> str:
    """Where what is said of all ranks' values of that name is: min, max."""
    sub_run, tag = split_name(name)
    return join_name(sub_run, f"ranks/{tag}/{what}")


class RunTags:
    """Numbers from 0 on for all that is logged by name. Not thread safe."""

    def __init__(self, notices: Notices) -> None:
        self._notices = notices
        self.most = limits.TAGS
        """How many there may be, see `entries.TagsLimited`."""
        self._kinds: dict[str, str] = {}
        self._ids: dict[tuple[str, Style], int] = {}
        self.names: list[str] = []
        """By number."""
        self.encoded: list[bytes] = []
        """The tag alone in UTF-8, by number: what stands in an event."""
        self.streams: list[tuple[str, Style]] = []
        """Sub-run and style that have scalars, by number."""
        self._sub_runs: set[str] = {""}
        self._stream_ids: dict[tuple[str, Style], int] = {}
        self._stream = np.zeros(_LEAST_TAGS, np.int64)

    def id_of(self, name: str, kind: str, style: Style = Style.SIMPLE) -> int:
        """The number of a name; -1 when what is logged under it cannot be shown."""
        if not self._admit(name, kind):
            return -1
        number = self._ids.get((name, style))
        if number is None:
            number = self._ids[name, style] = len(self.names)
            sub_run, tag = split_name(name)
            self.names.append(name)
            self.encoded.append(tag.encode())
            if number >= len(self._stream):
                self._stream = np.resize(self._stream, 2 * len(self._stream))
            stream = (sub_run, style)
            if stream not in self._stream_ids:
                self._stream_ids[stream] = len(self.streams)
                self.streams.append(stream)
            self._stream[number] = self._stream_ids[stream]
        return number

    def streams_of(self, ids: NDArray[Any]) -> NDArray[np.int64]:
        """The number of the stream of each."""
        streams: NDArray[np.int64] = self._stream[ids]
        return streams

    def _admit(self, name: str, kind: str) -> bool:
        known = self._kinds.get(name)
        if known == kind:
            return True
        tell_once = self._notices.tell_once
        if known is not None:
            # TensorBoard's Python loader answers with an error for a tag of two kinds.
            tell_once(f"kind {name}", f"{name!r} is {known}; as {kind} it is left out")
            return False
        sub_run, tag = split_name(name)
        if len(self._kinds) >= self.most:
            self._notices.tell_limit(
                "max_run_tags",
                f"this run has {self.most} tags (max_run_tags): what is logged under others is "
                "left out",
            )
            return False
        if sub_run not in self._sub_runs and len(self._sub_runs) > SUB_RUNS:
            tell_once("sub-runs", f"more than {SUB_RUNS} sub-runs: the others are left out")
            return False
        if kind == SCALAR and len(tag.encode()) > limits.TAG_BYTES:
            # What is made of a tag that is nearly as long as it may be.
            tell_once(f"long {name}", f"{tag[:60]!r}... is too long a tag: it is left out")
            return False
        self._sub_runs.add(sub_run)
        self._kinds[name] = kind
        return True

    def state(self) -> dict[str, Any]:
        """All of it, msgpack-able."""
        return {
            "kinds": list(self._kinds.items()),
            "ids": [[name, int(style)] for name, style in self._ids],
            "most": self.most,
        }

    @classmethod
    def restore(cls, state: dict[str, Any], notices: Notices) -> RunTags:
        """The tags that `state` was taken of."""
        tags = cls(notices)
        kinds = dict(state["kinds"])
        tags.most = max(limits.TAGS, len(kinds))  # those that are there stay
        for name, kind in kinds.items():
            tags._admit(name, kind)
        for name, style in state["ids"]:
            tags.id_of(name, kinds[name], Style(style))
        tags.most = state.get("most", limits.TAGS)
        return tags
