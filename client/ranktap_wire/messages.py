"""What the two sides say to each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from ranktap_wire.records import Batch, Buffer

PROTOCOL: Final = 1
"""Raised when a peer of the former version could misread a message."""

SESSION_ID_BYTES: Final = 16


class Source(StrEnum):
    """Where a session's batches come from, which says what a window may wait for."""

    LIVE = "live"
    """From a process that sends as it logs: a rank that is late is a straggler."""
    BACKLOG = "backlog"
    """From a process that first sends what it had to keep on its disk: its steps are old, and no
    window is given up on while it catches up."""
    SPOOL = "spool"
    """From the disk of a process that is gone: what is not sent today is sent later, so no window
    is given up on before the session has said bye."""


Frames = Sequence[Buffer]
"""A message as it travels."""


class Code(StrEnum):
    """Why a daemon refuses something."""

    MALFORMED = "malformed"
    """Not a message of this protocol: dropped. No healthy client sends it."""
    PROTOCOL = "protocol"
    """Another version of the protocol: the client stops and says so."""
    REFUSED = "refused"
    """This batch breaks a rule: its number counts as seen, its records are not kept."""
    UNKNOWN_SESSION = "unknown-session"
    """The daemon has not heard a hello on this connection: say it again."""
    GAP = "gap"
    """A batch before this one is missing: go back to the number after `number`."""
    LIMIT = "limit"
    """More sessions, runs or tags than the daemon is set to keep."""
    BUSY = "busy"
    """The daemon's disk is full: nothing is acknowledged until there is room."""
    CONFLICT = "conflict"
    """Another session is this rank of this run already."""


class FrameError(ValueError):
    """A message that breaks the protocol. `number` is the batch's, where it could be read."""

    def __init__(self, code: Code, text: str, number: int | None = None) -> None:
        super().__init__(text)
        self.code = code
        self.text = text
        self.number = number


@dataclass(slots=True)
class Hello:
    """Who a session is. Sent first on every connection."""

    session: bytes
    run: str
    rank: int
    world_size: int
    host: str
    pid: int
    first: int
    """The first batch that the client still holds."""
    started: float
    """Wall time of `init`, seconds since 1970."""
    filename_suffix: str = ""
    resume_step: int | None = None
    about: dict[str, str] = field(default_factory=dict)
    """What else it is, for people: device, versions, command line ..., under short names. The
    daemon itself looks at `job` alone, which tells two jobs of one run's name apart."""
    source: Source = Source.LIVE
    """Travels only where it is another."""
    protocol: int = PROTOCOL


@dataclass(slots=True)
class BatchMessage:
    session: bytes
    number: int
    batch: Batch


@dataclass(slots=True)
class Beat:
    session: bytes
    sent: float
    """The client's monotonic clock; comes back in the answer."""


@dataclass(slots=True)
class Bye:
    session: bytes


@dataclass(slots=True)
class Probe:
    """A question that opens nothing: who is there, and would a session of that run be let in?

    It keeps its form in every version of the protocol, so that two releases that do not
    understand each other can at least say so.
    """

    sent: float
    """The client's monotonic clock; comes back in the answer."""
    run: str | None = None
    protocol: int = PROTOCOL


@dataclass(slots=True)
class Welcome:
    last: int
    """The last batch of this session in the journal."""
    run: str | None = None
    """The run that it is in, when that is another than the one it named."""
    protocol: int = PROTOCOL
    daemon: str = ""
    """The daemon's version, for people."""
    limits: dict[str, int] = field(default_factory=dict)
    interval: float | None = None
    """As in `Ack`."""


@dataclass(slots=True)
class Ack:
    number: int
    sent: float | None = None
    """That of the beat which this answers; None when it answers none."""
    now: float | None = None
    """The daemon's wall clock as it answered a beat, seconds since 1970."""
    held: float | None = None
    """How long that had been with the daemon then, in seconds."""
    interval: float | None = None
    """How long the daemon would have a batch collect before it is sent, in seconds, as many
    ranks send; None: as long as it does unasked, limits.BATCH_INTERVAL_S. It holds until the
    next answer of these two kinds."""


@dataclass(slots=True)
class ByeAnswer:
    pass


@dataclass(slots=True)
class ProbeAnswer:
    sent: float
    """The probe's own."""
    now: float
    """The daemon's wall clock as it answered, seconds since 1970. It answers at once."""
    daemon: str
    """Its version, for people."""
    protocol: int = PROTOCOL
    code: str | None = None
    """What a hello for the run would be refused with now; None: with nothing."""
    text: str = ""
    """Why, in words."""


@dataclass(slots=True)
class Error:
    code: str
    """A `Code`, or one that this side does not know yet."""
    text: str
    number: int | None = None


ClientMessage = Hello | BatchMessage | Beat | Bye | Probe
DaemonMessage = Welcome | Ack | ByeAnswer | Error | ProbeAnswer
