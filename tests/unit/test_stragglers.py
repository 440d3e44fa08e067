"""Slow ranks: named within 20 steps, not without reason, and told of when they recover."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import msgpack
import numpy as np
import pytest

from ranktap_wire.records import Across, Batch, Columns
from ranktapd.entries import RunBegins, SessionGone, SessionOpened
from ranktapd.fold import Fold
from ranktapd.stragglers import AGAIN_STEPS, WINDOW
from tests.unit.test_fold import Journal, points
from tests.unit.test_non_finite import rows_of, texts

START = 1_700_000_000.0
STEP_S = 0.1
RANKS = 4

Delay = Callable[[int, int], float]
"""Seconds by which a rank is behind at a step."""


def begun(ranks: int = RANKS, hosts: tuple[str, ...] = ("node",)) -> Journal:
    """A job of so many ranks, spread over the hosts in turn."""
    journal = Journal()
    journal.say(RunBegins(START, "daemon", 1, ""))
    for rank in range(ranks):
        host = hosts[rank % len(hosts)]
        words = SessionOpened(rank.to_bytes(16, "little"), rank, ranks, host, 1, START, None, 0)
        journal.say(words)
    return journal


def log(
    journal: Journal,
    rank: int,
    step: int,
    values: dict[str, float],
    walls: float | dict[str, float],
    clock: tuple[float, float] | None = None,
) -> None:
    """A batch of one step."""
    columns = Columns(
        [*values],
        np.full(len(values), Across.MEAN, np.uint8),
        np.arange(len(values), dtype=np.int32),
        np.full(len(values), step),
        np.array([walls[tag] if isinstance(walls, dict) else walls for tag in values]),
        np.array([*values.values()]),
    )
    journal.batch(rank, 1, Batch(columns, clock=clock))


def run(
    journal: Journal,
    steps: range,
    delay: Delay,
    *,
    clocks: dict[int, tuple[float, float]] | None = None,
    ranks: int = RANKS,
) -> None:
    """Steps at which every rank logs its loss, as late as `delay` says."""
    for step in steps:
        for rank in range(ranks):
            clock = (clocks or {}).get(rank)
            wall = START + step * STEP_S + delay(rank, step) - (clock[0] if clock else 0.0)
            log(journal, rank, step, {"loss": 1.0}, wall, clock)


def work(journal: Journal, steps: range, seconds: Callable[[int, int], float]) -> None:
    """Steps that all ranks end together, as DDP makes them, with what each rank worked."""
    for step in steps:
        longest = max(seconds(rank, step) for rank in range(RANKS))
        for rank in range(RANKS):
            own = seconds(rank, step)
            parts = {"data": own / 2, "forward": own / 4, "backward": own / 4}
            parts |= {"wait": longest - own, "total": longest + 0.01}
            values = {"loss": 1.0} | {f"step_time/{part}": value for part, value in parts.items()}
            log(journal, rank, step, values, START + step * STEP_S)


def told(journal: Journal) -> list[tuple[int, str]]:
    return texts(journal.output, "ranktap/stragglers")


def named(journal: Journal) -> list[int]:
    """Whom the last text calls slow."""
    return [int(row[0]) for row in rows_of(told(journal)[-1][1])]


def test_a_slow_rank_is_named_within_the_window() -> None:
    journal = begun()
    run(journal, range(WINDOW), lambda rank, step: 0.03 if rank == 2 else 0.001 * rank)
    ((step, text),) = told(journal)
    assert 14 <= step < WINDOW
    assert text.startswith(f"**rank 2** (node) is slow, at step {step}\n")
    assert rows_of(text) == [["2", "node", "30.0 ms", "100 %", "0"]]
    assert "behind the first rank" in text and "A step takes 100.0 ms." in text


def test_nobody_is_named_when_ranks_take_turns_being_last() -> None:
    journal = begun()
    chance = random.Random(0)
    run(journal, range(200), lambda rank, step: chance.random() * 0.05)
    assert told(journal) == []


@pytest.mark.parametrize(("late_s", "is_named"), [(0.009, False), (0.011, True)])
def test_a_tenth_of_the_step_time_is_worth_a_word(late_s: float, is_named: bool) -> None:
    journal = begun()
    run(journal, range(3 * WINDOW), lambda rank, step: late_s * (rank == 1))
    assert bool(told(journal)) == is_named


def test_what_a_busy_host_takes_is_not_worth_a_word() -> None:
    journal = begun()
    for step in range(3 * WINDOW):
        for rank in range(RANKS):
            wall = START + step * 0.001 + 0.0019 * (rank == 1)
            log(journal, rank, step, {"loss": 1.0}, wall)
    assert told(journal) == []


def test_a_rank_that_is_slow_at_half_of_the_steps_is_not_persistently_slow() -> None:
    journal = begun()
    run(journal, range(100), lambda rank, step: 0.05 if rank == 3 and step % 2 else 0.0)
    assert told(journal) == []


def test_a_rank_that_recovers_is_told_of_and_the_text_says_so() -> None:
    journal = begun()
    run(journal, range(30), lambda rank, step: 0.03 * (rank == 2))
    run(journal, range(30, 60), lambda rank, step: 0.001 * (rank == 2))
    _, second = told(journal)
    assert named(journal) == []
    assert second == (second[0], f"No rank is slow any more, at step {second[0]}.\n")
    assert 30 < second[0] <= 30 + WINDOW


def test_the_table_is_written_again_every_so_many_steps() -> None:
    journal = begun()
    run(journal, range(3 * AGAIN_STEPS), lambda rank, step: 0.03 * (rank == 2))
    steps = [step for step, _ in told(journal)]
    assert np.diff(steps).tolist() == [AGAIN_STEPS] * 2


def test_the_lateness_of_a_step_is_the_largest_of_its_tags() -> None:
    journal = begun()
    for step in range(WINDOW):
        for rank in range(RANKS):
            end = START + step * STEP_S
            walls = {"a": end - 0.05, "b": end + 0.04 * (rank == 1), "c": end}
            log(journal, rank, step, dict.fromkeys(walls, 1.0), walls)
    assert rows_of(told(journal)[0][1])[0][:3] == ["1", "node", "40.0 ms"]


def test_tags_of_single_ranks_say_nothing_of_the_others() -> None:
    journal = begun()
    for step in range(2 * WINDOW):
        for rank in range(RANKS):
            wall = START + step * STEP_S
            log(journal, rank, step, {"loss": 1.0, f"own{rank}": 1.0}, wall + rank * 1e-4)
    assert told(journal) == []


# -- clocks -------------------------------------------------------------------------------


def test_clocks_of_hosts_that_differ_are_allowed_for() -> None:
    clocks = {0: (0.0, 1e-4), 1: (-7.5, 1e-4), 2: (0.0, 1e-4), 3: (-7.5, 2e-4)}
    journal = begun(hosts=("near", "far"))
    run(journal, range(3 * WINDOW), lambda rank, step: 0.0, clocks=clocks)
    assert told(journal) == []
    run(
        journal, range(3 * WINDOW, 4 * WINDOW), lambda rank, step: 0.03 * (rank == 3), clocks=clocks
    )
    assert rows_of(told(journal)[-1][1])[0][:3] == ["3", "far", "30.0 ms"]


@pytest.mark.parametrize(("error_s", "is_named"), [(0.004, True), (0.006, False), (None, False)])
def test_what_clocks_may_be_wrong_by_names_nobody(error_s: float | None, is_named: bool) -> None:
    """Two hosts' errors add up, and it takes three times as much."""
    clocks = {} if error_s is None else dict.fromkeys(range(RANKS), (0.0, error_s))
    journal = begun(hosts=("near", "far"))
    run(journal, range(WINDOW), lambda rank, step: 0.03 * (rank == 1), clocks=clocks)
    assert bool(told(journal)) == is_named


def test_the_ranks_of_one_host_have_one_clock_whatever_they_measure() -> None:
    clocks = {rank: (0.05 * rank, 0.1) for rank in range(RANKS)}
    journal = begun()
    for step in range(WINDOW):
        for rank in range(RANKS):
            wall = START + step * STEP_S + 0.03 * (rank == 1)
            log(journal, rank, step, {"loss": 1.0}, wall, clocks[rank])
    assert named(journal) == [1]


# -- own work -----------------------------------------------------------------------------


def test_where_the_parts_of_steps_are_logged_the_own_work_counts() -> None:
    """All wait for the slowest, so all are equally late."""
    journal = begun()
    work(journal, range(2 * WINDOW), lambda rank, step: 0.08 if rank == 1 else 0.05)
    assert rows_of(told(journal)[0][1])[0][:4] == ["1", "node", "30.0 ms", "100 %"]
    assert "own work more than the median rank" in told(journal)[0][1]
    found = points(journal.output)
    slowest = [(step, value) for tag, step, value in found if tag == "ranks/step_time/slowest"]
    spread = [(step, value) for tag, step, value in found if tag == "ranks/step_time/spread"]
    assert slowest == [(step, 1.0) for step in range(2 * WINDOW - 2)]
    assert spread == [(step, pytest.approx(0.03)) for step in range(2 * WINDOW - 2)]
    for rank in range(RANKS):
        journal.say(SessionGone(rank.to_bytes(16, "little"), final=True))
    assert (2 * WINDOW - 1, 1.0) in [
        (step, value) for tag, step, value in points(journal.output) if "slowest" in tag
    ], "the last steps are complete when all ranks have left"


def test_parts_that_come_steps_later_are_waited_for() -> None:
    """On CUDA they are known when the device has come so far."""
    journal = begun()
    behind = 10
    for step in range(3 * WINDOW + behind):
        for rank in range(RANKS):
            log(journal, rank, step, {"loss": 1.0}, START + step * STEP_S)
            if step >= behind:
                own = 0.05 + 0.03 * (rank == 3)
                log(journal, rank, step - behind, {"step_time/forward": own}, START)
    assert named(journal) == [3]
    slowest = [step for tag, step, _ in points(journal.output) if tag == "ranks/step_time/slowest"]
    assert slowest == [*range(behind - 1, 3 * WINDOW - 2)]


def test_without_step_times_there_are_no_charts_of_them() -> None:
    journal = begun()
    run(journal, range(WINDOW), lambda rank, step: 0.03 * (rank == 1))
    assert not any("step_time" in tag for tag, _, _ in points(journal.output))


# -- coming and going -----------------------------------------------------------------------


def test_a_process_that_is_alone_is_never_slow() -> None:
    journal = begun(1)
    run(journal, range(2 * WINDOW), lambda rank, step: 0.05, ranks=1)
    assert told(journal) == []


def test_ranks_that_join_and_a_job_that_starts_again_are_judged_anew() -> None:
    journal = begun(2)
    run(journal, range(WINDOW), lambda rank, step: 0.03 * (rank == 1), ranks=2)
    assert named(journal) == [1]
    for rank in range(3):
        identity = (10 + rank).to_bytes(16, "little")
        journal.say(SessionOpened(identity, rank, 3, "node", 1, START, None, 0))
    for step in range(WINDOW):
        for rank in range(3):
            log(journal, 10 + rank, step, {"loss": 1.0}, START + step * STEP_S + 0.03 * (rank == 2))
    assert [rows_of(text)[0][0] if rows_of(text) else None for _, text in told(journal)] == [
        "1", None, "2",
    ]  # fmt: skip


def test_wall_times_that_nobody_can_have_meant_do_no_harm() -> None:
    journal = begun()
    for step in range(2 * WINDOW):
        for rank in range(RANKS):
            wall = (-1.7e308, 0.0, 1.7e308, 1.0)[(rank + step) % RANKS]
            log(journal, rank, step, {"loss": 1.0, "step_time/total": 1e308}, wall)


@pytest.mark.parametrize("at", [5, 18, 25, 45])
def test_a_fold_goes_on_from_its_state_with_the_same_texts_and_series(at: int) -> None:
    def delay(rank: int, step: int) -> float:
        return 0.03 if rank == 2 and step < 30 else 0.001 * rank

    clocks = {rank: (0.5 * (rank % 2), 1e-4) for rank in range(RANKS)}
    whole, first = begun(hosts=("a", "b")), begun(hosts=("a", "b"))
    for journal in (whole, first):
        run(journal, range(at), delay, clocks=clocks)
    state = msgpack.unpackb(msgpack.packb(first.fold.state()), strict_map_key=False)
    second = Journal(Fold.restore(state, ThreadPoolExecutor(1)))
    second.sequence = first.sequence
    for journal in (whole, second):
        run(journal, range(at, 55), delay, clocks=clocks)
        work(journal, range(55, 80), lambda rank, step: 0.08 if rank == 1 else 0.05)
    assert whole.output == first.output + second.output
    assert len(told(whole)) == 3
