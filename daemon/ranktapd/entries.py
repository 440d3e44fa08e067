"""What a run's journal says: one kind of entry for each thing that its event file depends on.

The event file is a function of these entries alone. Whatever else happened, a time-out
or a lost connection, is written down here first and acted on afterwards.

An entry's first frame is a msgpack map with a "kind"; a batch's own frames follow as they
came over the wire.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import msgpack

from ranktap_wire.messages import Hello
from ranktap_wire.records import Buffer


@dataclass(frozen=True, slots=True)
class RunBegins:
    """The first entry of a journal: what the event file's name and first record are made of."""

    kind: ClassVar[str] = "run"
    created: float
    """Wall time at the daemon, seconds since 1970."""
    host: str
    pid: int
    suffix: str


@dataclass(frozen=True, slots=True)
class SessionOpened:
    """A rank said hello for the first time in this session."""

    kind: ClassVar[str] = "open"
    session: bytes
    rank: int
    world_size: int
    host: str
    pid: int
    started: float
    resume_step: int | None
    last: int
    """Batches up to here are not in this journal and never will be."""
    about: dict[str, str] = field(default_factory=dict)
    """See `Hello.about`."""

    @classmethod
    def of(cls, hello: Hello, last: int) -> SessionOpened:
        return cls(
            hello.session,
            hello.rank,
            hello.world_size,
            hello.host,
            hello.pid,
            hello.started,
            hello.resume_step,
            last,
            hello.about,
        )


@dataclass(frozen=True, slots=True)
class BatchAccepted:
    """A batch; its frames stand behind this one."""

    kind: ClassVar[str] = "batch"
    session: bytes
    number: int
    rank: int | None = field(default=None, compare=False)
    world_size: int | None = field(default=None, compare=False)
    """Whose it is, as its session's opening says too: it is understood without that, should that
    be damaged. None in journals of before."""

    @property
    def opened(self) -> SessionOpened | None:
        """What its session's opening must have said; None in journals of before."""
        if self.rank is None or self.world_size is None:
            return None
        return SessionOpened(
            self.session, self.rank, self.world_size, "", 0, 0.0, None, self.number - 1
        )


@dataclass(frozen=True, slots=True)
class BatchRefused:
    """A batch that broke a rule: its number counts, its records are gone."""

    kind: ClassVar[str] = "refused"
    session: bytes
    number: int


@dataclass(frozen=True, slots=True)
class SessionGone:
    """A rank said bye, was replaced, or was not heard of for too long."""

    kind: ClassVar[str] = "gone"
    session: bytes
    final: bool
    """False: it was only not heard of, and may come back with the batches it still holds."""
    replaced: bool = False
    """Another process has become its rank: it may not come back."""


@dataclass(frozen=True, slots=True)
class SessionSource:
    """What a session sends comes from elsewhere than it did until here; `live` at its opening."""

    kind: ClassVar[str] = "source"
    session: bytes
    source: str
    """A `Source`."""


@dataclass(frozen=True, slots=True)
class WindowsExpired:
    """Windows whose first record stands at or before entry `before` are given up on."""

    kind: ClassVar[str] = "expire"
    before: int


@dataclass(frozen=True, slots=True)
class TagsLimited:
    """From here on the run may have so many tags; before the first of these, `limits.TAGS`."""

    kind: ClassVar[str] = "tags"
    most: int


@dataclass(frozen=True, slots=True)
class JobMoved:
    """A job that came to this run while another one was writing to it is in a run of its own."""

    kind: ClassVar[str] = "moved"
    job: str
    run: str


@dataclass(frozen=True, slots=True)
class SessionsSoFar:
    """The first entry of every segment but the first: it can be read without those before."""

    kind: ClassVar[str] = "sessions"
    sessions: list[list[Any]] = field(default_factory=list)
    """[session, rank, world size, host, pid, started, last batch, away, job] of each that is open,
    and its source behind them where that is not `live`. The rest of `about` is for the fold, which
    has it in its snapshot."""
    ended: list[list[Any]] = field(default_factory=list)
    """[session, last batch, replaced] of those that ended and might say hello again."""
    moved: list[list[Any]] = field(default_factory=list)
    """[job, run], see `JobMoved`."""
    most_tags: int | None = None
    """See `TagsLimited`; None: nothing was said of it."""


Words = (
    RunBegins
    | SessionOpened
    | BatchAccepted
    | BatchRefused
    | SessionGone
    | SessionSource
    | WindowsExpired
    | TagsLimited
    | JobMoved
    | SessionsSoFar
)

_KINDS: dict[str, type[Words]] = {
    words.kind: words
    for words in (
        RunBegins,
        SessionOpened,
        BatchAccepted,
        BatchRefused,
        SessionGone,
        SessionSource,
        WindowsExpired,
        TagsLimited,
        JobMoved,
        SessionsSoFar,
    )
}

_FIELDS: dict[type[Words], list[tuple[str, bool]]] = {
    each: [(field.name, field.default is None) for field in fields(each)]
    for each in _KINDS.values()
}
"""Their names, and whether they are left out when they say nothing."""


def pack_entry(words: Words, frames: Sequence[Buffer] = ()) -> list[Buffer]:
    """An entry's frames."""
    said: dict[str, Any] = {"kind": words.kind}
    for name, is_optional in _FIELDS[type(words)]:
        value = getattr(words, name)
        if value is not None or not is_optional:
            said[name] = value
    return [msgpack.packb(said, use_bin_type=True), *frames]


def read_entry(frames: Sequence[memoryview]) -> Words:
    """What an entry says; the frames behind the first are the batch's.

    Raises:
        ValueError: it is of a kind that this release does not know, or says something else.
    """
    try:
        said = msgpack.unpackb(frames[0], raw=False)
        words: Words = _KINDS[said.pop("kind")](**said)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"an entry that this release does not know: {error!r}") from error
    return words
