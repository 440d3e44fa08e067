"""When a daemon is well, and what it says when it is not."""

from __future__ import annotations

from ranktapd.http_status import Health


def serving(now: float) -> Health:
    health = Health(patience_s=30.0, stage="")
    health.round(now, works=True)
    return health


def test_a_daemon_that_does_not_serve_yet_is_not_well_and_is_not_asked() -> None:
    health = Health()
    assert health.judge(0.0) == (False, "recovering the journals")
    health.round(1.0, works=True)
    assert not health.turns(1.0)
    health.stage = ""
    assert health.judge(1.0) == (True, "ok") and health.turns(1.0)
    health.stage = "ending"
    assert health.judge(1.0) == (False, "ending")


def test_a_loop_that_stands_still_is_not_well_after_the_watchdogs_time() -> None:
    health = serving(100.0)
    assert health.judge(130.0)[0]
    assert health.judge(131.0) == (False, "the main loop has not gone round for 31 s")
    assert not health.turns(131.0)


def test_a_worker_that_hangs_is_what_is_told_of_while_the_loop_turns() -> None:
    health = serving(100.0)
    health.round(140.0, works=False)
    assert health.judge(140.0) == (False, "a worker that was killed because it hung does not end")
    assert health.turns(140.0)
    health.round(141.0, works=True)
    assert health.judge(141.0) == (True, "ok")


def test_a_full_disk_is_told_of_and_is_no_ill_health() -> None:
    health = serving(100.0)
    health.note = "nothing is accepted: no room"
    assert health.judge(100.0) == (True, "ok, but nothing is accepted: no room")
