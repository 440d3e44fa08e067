"""Exactly once, over a network that does what networks do and a daemon that is killed.

Two connections' worth of messages lie in one bag, and the rules take any of them out,
once or twice or never: so messages are lost, repeated, delayed and reordered, across
reconnects too. The daemon journals, and syncs later; killed before, it forgets. Client
and daemon react as sender.py and intake.py do, and share nothing but these messages.

The oracle is the list of what was pushed: the journal is a beginning of it, in order
and once, and holds everything that the client was told to forget.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from ranktap_wire.delivery import ReceiveWindow, SendWindow, Verdict

Message = tuple[str, int, str]
"""What it is, its number, and a batch's content."""

ANY = st.integers(0, 1_000)
"""Which message of the bag, modulo how many there are."""


@dataclass
class Client:
    """sender.py without its socket."""

    window: SendWindow[str]
    welcomed: bool = False
    forgotten: list[tuple[int, str]] = field(default_factory=list)

    def hello(self) -> Message:
        self.welcomed = False
        return ("hello", self.window.first_unacknowledged, "")

    def send(self, at_most: int) -> list[Message]:
        messages: list[Message] = []
        while self.welcomed and len(messages) < at_most:
            due = self.window.due()
            if due is None:
                break
            messages.append(("batch", due.number, due.batch))
        return messages

    def hear(self, what: str, number: int) -> None:
        if what == "welcome":
            self.release(number)
            self.window.rewind()
            self.welcomed = True
        elif what == "gap":
            self.release(number)
            self.window.rewind()
        elif what == "ack" and self.welcomed:
            self.release(number)

    def release(self, number: int) -> None:
        self.forgotten += [(each.number, each.batch) for each in self.window.acknowledged(number)]


@dataclass
class Daemon:
    """intake.py without its socket; `synced` is what a kill leaves."""

    synced: list[tuple[int, str]] = field(default_factory=list)
    unsynced: list[tuple[int, str]] = field(default_factory=list)
    answers: list[Message] = field(default_factory=list)
    """Said when the round is synced."""
    window: ReceiveWindow = field(default_factory=ReceiveWindow)
    missed: bool = False

    def hear(self, message: Message) -> None:
        what, number, content = message
        if what == "hello":
            assert self.window.reopened(number) == 0
            self.missed = False
            self.answers.append(("welcome", self.window.last, ""))
        elif what == "beat":
            self.answers.append(("gap" if self.missed else "ack", self.window.last, ""))
        else:
            verdict = self.window.judge(number)
            if verdict is Verdict.GAP:
                self.missed = True
                self.answers.append(("gap", self.window.last, ""))
                return
            self.missed = False
            if verdict is Verdict.NEXT:
                self.window.accept(number)
                self.unsynced.append((number, content))
            self.answers.append(("ack", self.window.last, ""))

    def sync(self) -> None:
        self.synced += self.unsynced
        self.unsynced.clear()

    def answer(self) -> list[Message]:
        self.sync()
        answers, self.answers = self.answers, []
        return answers

    def killed(self) -> None:
        self.unsynced.clear()
        self.answers.clear()
        self.missed = False
        self.window = ReceiveWindow(len(self.synced))


class Delivery(RuleBasedStateMachine):
    @initialize(max_bytes=st.integers(1, 60), max_messages=st.integers(1, 6))
    def begin(self, max_bytes: int, max_messages: int) -> None:
        self.pushed: list[str] = []
        self.client = Client(SendWindow(max_bytes, max_messages))
        self.daemon = Daemon()
        self.to_daemon: list[Message] = [self.client.hello()]
        self.to_client: list[Message] = []

    # -- the client -------------------------------------------------------------------

    @rule(size=st.integers(0, 40))
    def push(self, size: int) -> None:
        self.pushed.append(f"{len(self.pushed) + 1}: {size}")
        assert self.client.window.push(self.pushed[-1], size) == len(self.pushed)

    @rule(at_most=st.integers(1, 8))
    def send(self, at_most: int) -> None:
        messages = self.client.send(at_most)
        self.to_daemon += messages
        if self.client.welcomed and len(messages) < at_most:
            # It stopped because it must: one more would have been too many.
            window, sizes = self.client.window, self.held_sizes()
            assert window.in_flight in (len(sizes), window.max_messages) or (
                window.in_flight and sum(sizes[: window.in_flight + 1]) > window.max_bytes
            )

    @precondition(lambda self: self.client.welcomed)
    @rule()
    def socket_is_full(self) -> None:
        if self.client.window.due() is not None:
            self.client.window.unsend()

    @rule()
    def beat(self) -> None:
        self.to_daemon.append(("beat", 0, ""))

    @rule()
    def reconnect(self) -> None:
        self.to_daemon.append(self.client.hello())

    # -- the network ------------------------------------------------------------------

    @precondition(lambda self: self.to_daemon)
    @rule(which=ANY, again=st.booleans())
    def arrive_at_the_daemon(self, which: int, again: bool) -> None:
        at = which % len(self.to_daemon)
        self.daemon.hear(self.to_daemon[at] if again else self.to_daemon.pop(at))

    @rule(count=st.integers(1, 10))
    def arrive_in_order(self, count: int) -> None:
        for message in self.to_daemon[:count]:
            self.daemon.hear(message)
        del self.to_daemon[:count]

    @rule(at_most=st.integers(1, 8))
    def all_goes_well_for_a_while(self, at_most: int) -> None:
        """What usually happens: without it, few sequences would get anywhere."""
        self.arrive_in_order(len(self.to_daemon))
        self.commit()
        for what, number, _ in self.to_client:
            self.client.hear(what, number)
        self.to_client.clear()
        self.send(at_most)

    @precondition(lambda self: self.to_client)
    @rule(which=ANY, again=st.booleans())
    def arrive_at_the_client(self, which: int, again: bool) -> None:
        at = which % len(self.to_client)
        what, number, _ = self.to_client[at] if again else self.to_client.pop(at)
        self.client.hear(what, number)

    @precondition(lambda self: self.to_daemon)
    @rule(which=ANY)
    def lose_one(self, which: int) -> None:
        self.to_daemon.pop(which % len(self.to_daemon))

    @rule(kept=st.integers(0, 3))
    def lose_the_connection(self, kept: int) -> None:
        del self.to_daemon[kept:], self.to_client[kept:]

    # -- the daemon -------------------------------------------------------------------

    @rule()
    def commit(self) -> None:
        self.to_client += self.daemon.answer()

    @rule()
    def killed_before_the_sync(self) -> None:
        self.daemon.killed()

    @rule()
    def killed_between_sync_and_answers(self) -> None:
        self.daemon.sync()
        self.daemon.killed()

    # -- what must hold ---------------------------------------------------------------

    @invariant()
    def the_journal_is_a_beginning_of_what_was_pushed(self) -> None:
        journal = self.daemon.synced + self.daemon.unsynced
        assert journal == [*enumerate(self.pushed, 1)][: len(journal)]

    @invariant()
    def only_what_is_on_disk_was_forgotten(self) -> None:
        forgotten = self.client.forgotten
        assert forgotten == self.daemon.synced[: len(forgotten)]
        assert self.client.window.first_unacknowledged == len(forgotten) + 1

    @invariant()
    def the_send_window_keeps_its_accounts(self) -> None:
        window = self.client.window
        sizes = self.held_sizes()
        assert len(window) == len(sizes)
        assert window.held_bytes == sum(sizes)
        assert 0 <= window.in_flight <= min(window.max_messages, len(window))
        assert window.in_flight <= 1 or sum(sizes[: window.in_flight]) <= window.max_bytes

    def held_sizes(self) -> list[int]:
        return [int(batch.split(": ")[1]) for batch in self.pushed[len(self.client.forgotten) :]]

    def teardown(self) -> None:
        """The network heals: everything arrives, whatever happened before."""
        if not hasattr(self, "client"):
            return
        self.to_daemon.append(self.client.hello())
        for _ in range(len(self.pushed) + 3):
            for message in self.to_daemon:
                self.daemon.hear(message)
            for what, number, _ in self.to_client + self.daemon.answer():
                self.client.hear(what, number)
            self.to_client = []
            self.to_daemon = self.client.send(100)
        assert self.daemon.synced == [*enumerate(self.pushed, 1)]
        assert self.client.forgotten == self.daemon.synced
        self.the_send_window_keeps_its_accounts()


def test_what_was_pushed_arrives_in_order_and_once_whatever_happens_on_the_way() -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Delivery,
        settings=settings(max_examples=150, stateful_step_count=50, deadline=None),
    )
