"""What a probe is told: who is here, and whether a session of its run would be opened.

The same questions as a hello meets, in the same order, without what a hello changes: nothing
is counted against anybody, logged or opened, so that whoever looks leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from ranktap_wire.messages import Code, Probe, ProbeAnswer
from ranktapd import __version__
from ranktapd.access import Access
from ranktapd.config import Config


class Refusal(NamedTuple):
    """Why a hello would be refused."""

    code: Code
    text: str


def refusal(
    run: str,
    user: str,
    access: Access | None,
    config: Config,
    *,
    sessions: int,
    runs: Collection[str],
    busy: str | None,
) -> Refusal | None:
    """Why a session of `run` would not be opened now; None: it would.

    `user` is the key of the connection, empty where none is asked for; `sessions` and `runs`
    are those that are open; `busy` says why nothing of that run is accepted.
    """
    if access is not None and user:
        text = access.refusal(user, run)
        if text is not None:
            return Refusal(Code.REFUSED, text)
        if access.is_gone(user):
            return Refusal(Code.BUSY, "this daemon does not let its key in any more")
    if busy is not None:
        return Refusal(Code.BUSY, busy)
    if sessions >= config.max_sessions:
        text = f"this ranktapd keeps {config.max_sessions} sessions (max_sessions)"
        return Refusal(Code.BUSY, text)
    if run not in runs and len(runs) >= config.max_runs:
        return Refusal(Code.LIMIT, f"this ranktapd keeps {config.max_runs} runs (max_runs)")
    return None


def answer_to(probe: Probe, refused: Refusal | None, now: float) -> ProbeAnswer:
    """What a probe is told; `now` is the wall clock."""
    if refused is None:
        return ProbeAnswer(probe.sent, now, __version__)
    return ProbeAnswer(probe.sent, now, __version__, code=str(refused.code), text=refused.text)
