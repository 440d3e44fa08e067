"""What goes back to those who send: answers, and what is told of a message that was refused."""

from __future__ import annotations

import time

import zmq

from ranktap_wire import frames
from ranktap_wire.messages import Code, DaemonMessage
from ranktapd.log_budget import LogBudget
from ranktapd.status import Metrics


class Replies:
    """The way back through a ROUTER."""

    def __init__(self, router: zmq.Socket[bytes], metrics: Metrics) -> None:
        self._router = router
        self._metrics = metrics
        self._log = LogBudget()
        self.in_hand: zmq.Frame | None = None
        """The first frame of the message in hand, which knows where it came from."""

    @property
    def user(self) -> str:
        """The public key of the message in hand's connection; empty where none is asked for."""
        return _property(self.in_hand, "User-Id")

    def answer(self, peer: bytes, answer: DaemonMessage) -> None:
        """Send an answer, if it can be sent now."""
        try:
            self._router.send_multipart([peer, *frames.pack_answer(answer)], zmq.NOBLOCK)  # type: ignore[list-item]
        except zmq.Again:
            # It does not read. It will ask again, and is answered then.
            return
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise

    def refused(self, code: Code, peer: bytes, text: str) -> None:
        """Count the message in hand as refused, and log why, within the budget for it."""
        self._metrics.refused.labels(str(code)).inc()
        self._log.warning(
            time.monotonic(),
            "refused a message from %(address)s (peer %(peer)s): %(code)s: %(text)s",
            {
                "address": _property(self.in_hand, "Peer-Address") or "?", "peer": peer.hex(),
                "code": str(code), "text": text[:200],
            },
        )  # fmt: skip


def _property(frame: zmq.Frame | None, name: str) -> str:
    """What libzmq knows of the connection that a frame came by; empty when nothing.

    `User-Id` is the public key that was let in. `Peer-Address` is an IP address; over ipc
    host:uid:gid:pid of the process.
    """
    try:
        return str(frame.get(name)) if frame is not None else ""
    except zmq.ZMQError:
        return ""
