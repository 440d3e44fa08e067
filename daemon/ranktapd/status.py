"""What the daemon counts."""

from __future__ import annotations

from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge


@dataclass(slots=True)
class Metrics:
    """Counters and gauges by their Prometheus names."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    messages: Counter = field(init=False)
    refused: Counter = field(init=False)
    admitted: Counter = field(init=False)
    denied: Counter = field(init=False)
    limited: Counter = field(init=False)
    conflicts: Counter = field(init=False)
    batches: Counter = field(init=False)
    scalars: Counter = field(init=False)
    blobs: Counter = field(init=False)
    journal_bytes: Counter = field(init=False)
    commits: Counter = field(init=False)
    worker_deaths: Counter = field(init=False)
    batch_interval: Gauge = field(init=False)
    sessions: Gauge = field(init=False)
    runs: Gauge = field(init=False)
    lag: Gauge = field(init=False)
    waiting_bytes: Gauge = field(init=False)
    kept_bytes: Gauge = field(init=False)
    free_bytes: Gauge = field(init=False)
    full: Gauge = field(init=False)
    clients: Gauge = field(init=False)

    def __post_init__(self) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"ranktapd_{name}", text, labels, registry=self.registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"ranktapd_{name}", text, labels, registry=self.registry)

        self.messages = counter("messages", "Messages received", "type")
        self.refused = counter("refused", "Messages refused or dropped, by code", "code")
        self.admitted = counter("admitted", "Connections let in by their key")
        self.denied = counter("denied", "Connections and sessions not let in, by reason", "reason")
        self.limited = counter("limited", "Messages that met a limit, by its name", "limit")
        self.conflicts = counter(
            "conflicts", "Hellos for a run of another job, by what came of it", "outcome"
        )
        self.batches = counter("batches", "Batches by what their number said", "verdict")
        self.scalars = counter("scalars", "Scalars journaled")
        self.blobs = counter("blobs", "Other records journaled")
        self.journal_bytes = counter("journal_bytes", "Bytes of batches journaled")
        self.commits = counter("commits", "Groups committed to a journal")
        self.worker_deaths = counter("worker_deaths", "Workers that ended unasked")
        self.batch_interval = gauge(
            "batch_interval_seconds", "How long clients are asked to collect before they send"
        )
        self.sessions = gauge("sessions", "Sessions that are open")
        self.runs = gauge("runs", "Runs whose journal is open")
        self.waiting_bytes = gauge(
            "waiting_journal_bytes", "Journals of runs that are not all written"
        )
        self.kept_bytes = gauge(
            "kept_journal_bytes", "All journals on the disk, those of finished runs included"
        )
        self.free_bytes = gauge("free_bytes", "Room on the state directory's disk")
        self.full = gauge("full", "1 while nothing is accepted for want of room")
        self.clients = gauge("clients", "Client keys that are let in")
        self.lag = gauge("lag_entries", "Entries journaled and not yet in the event file", "run")


@dataclass(slots=True)
class Tally:
    """What a round's messages count, added to the counters at its end: each of those has a lock,
    and its labels to be looked up."""

    messages: dict[str, int] = field(default_factory=dict)
    """By type."""
    batches: dict[str, int] = field(default_factory=dict)
    """By verdict."""
    scalars: int = 0
    blobs: int = 0
    nbytes: int = 0

    def message(self, kind: str) -> None:
        self.messages[kind] = self.messages.get(kind, 0) + 1

    def batch(self, verdict: str) -> None:
        self.batches[verdict] = self.batches.get(verdict, 0) + 1

    def journaled(self, scalars: int, blobs: int, nbytes: int) -> None:
        self.scalars += scalars
        self.blobs += blobs
        self.nbytes += nbytes

    def add_to(self, metrics: Metrics) -> None:
        for kind, count in self.messages.items():
            metrics.messages.labels(kind).inc(count)
        for verdict, count in self.batches.items():
            metrics.batches.labels(verdict).inc(count)
        metrics.scalars.inc(self.scalars)
        metrics.blobs.inc(self.blobs)
        metrics.journal_bytes.inc(self.nbytes)
