"""The rules of windows, one by one; `tests/model` has them in any combination."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest

from ranktapd import window_index, window_store, windows
from ranktapd.blob_windows import MergeWindows
from ranktapd.presence import Presence
from ranktapd.rank_sets import count_ranks, ranks_in, set_of, to_int, to_ints, to_words
from ranktapd.window_index import WindowIndex
from ranktapd.window_store import WindowStore, block_bytes, window_bytes
from ranktapd.windows import Closed, ScalarWindows

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
LOSS, ACCURACY = 0, 1


class Journal:
    """Feeds windows with entries that are numbered by themselves."""

    def __init__(self, world_size: int, policy: str = "mean", **options: Any) -> None:
        self.windows = ScalarWindows(world_size, **options)
        self.windows.declare(LOSS, policy)
        self.windows.declare(ACCURACY, policy)
        self.seq = 0

    def log(
        self, rank: int, *steps: int, tag: int = LOSS, value: float = 1.0, wall: float = 5.0
    ) -> None:
        self.seq += 1
        n = len(steps)
        self.windows.add(
            self.seq, rank, np.full(n, tag), np.array(steps), np.full(n, wall), np.full(n, value)
        )

    def close(self) -> Closed:
        return self.windows.close_group()

    def steps(self) -> list[int]:
        """The steps that close with this group, of all tags."""
        return [int(step) for step in self.close().steps]


def test_a_window_closes_at_the_end_of_the_group_in_which_the_last_rank_reports() -> None:
    journal = Journal(3)
    journal.log(0, 7)
    journal.log(2, 7)
    assert journal.steps() == []
    journal.log(1, 7)
    assert journal.steps() == [7]
    assert journal.windows.open_windows == 0


def test_a_group_without_points_gives_empty_columns_of_the_right_kind() -> None:
    closed = Journal(2).close()
    assert len(closed) == 0
    assert closed.tags.dtype == closed.steps.dtype == closed.reporters.dtype == np.int64
    assert closed.values.dtype == closed.walls.dtype == np.float64


def test_a_tag_that_only_rank_0_logs_waits_once() -> None:
    journal = Journal(3)
    for rank in range(3):
        journal.windows.opened(rank)
    journal.log(0, 1, 2)
    assert journal.steps() == []
    journal.windows.expire(journal.seq)
    assert journal.steps() == [1, 2]
    journal.log(0, 3)
    assert journal.steps() == [3]


def test_a_complete_window_waits_for_an_earlier_one_of_its_tag_only() -> None:
    journal = Journal(2)
    journal.log(0, 1, 2)
    journal.log(0, 1, tag=ACCURACY)
    journal.log(1, 2)
    journal.log(1, 1, tag=ACCURACY)
    closed = journal.close()
    assert (closed.tags.tolist(), closed.steps.tolist()) == ([ACCURACY], [1])
    journal.log(1, 1)
    assert journal.steps() == [1, 2]


def test_points_are_sorted_by_tag_then_step() -> None:
    journal = Journal(1)
    journal.log(0, 3, 1, tag=ACCURACY)
    journal.log(0, 2, -4)
    closed = journal.close()
    assert closed.tags.tolist() == [LOSS, LOSS, ACCURACY, ACCURACY]
    assert closed.steps.tolist() == [-4, 2, 1, 3]


def test_an_expired_window_closes_with_the_earlier_ones_and_without_the_later_ones() -> None:
    journal = Journal(2)
    journal.log(0, 5)
    expired = journal.seq
    journal.log(0, 4)
    journal.log(0, 6)
    journal.log(1, 6)
    journal.log(0, 7)
    assert journal.steps() == []
    journal.windows.expire(expired)
    # Rank 1 is missed at 4, not expected any more at 5, and back with 6, so 7 waits for it.
    assert journal.steps() == [4, 5, 6]
    assert journal.windows.incomplete_total == 1
    assert journal.windows.open_windows == 1


def test_a_window_that_opened_after_the_expired_entry_goes_on_waiting() -> None:
    journal = Journal(2)
    journal.windows.expire(journal.seq)
    journal.log(0, 5)
    assert journal.steps() == []
    assert journal.steps() == []  # the expiry was for one group


def test_a_rank_missed_without_a_session_is_not_expected_of_new_tags_until_it_has_one() -> None:
    journal = Journal(2)
    journal.windows.opened(0)
    journal.log(0, 1)
    journal.windows.expire(journal.seq)
    assert journal.steps() == [1]
    journal.windows.declare(2, "mean")
    journal.log(0, 1, tag=2)
    assert journal.steps() == [1]
    journal.windows.opened(1)
    journal.windows.declare(3, "mean")
    journal.log(0, 1, tag=3)
    assert journal.steps() == []


def test_tags_that_wait_for_an_absent_rank_close_with_the_next_group() -> None:
    journal = Journal(2)
    journal.windows.opened(0)
    journal.log(0, 1)
    expired = journal.seq
    journal.log(0, 8, tag=ACCURACY)
    journal.close()
    journal.windows.expire(expired)
    assert journal.steps() == [1]
    assert journal.steps() == [8]


def test_a_rank_given_up_on_stays_so_over_a_restart() -> None:
    journal = Journal(2)
    journal.windows.opened(0)
    journal.log(0, 1)
    expired = journal.seq
    journal.log(0, 8, tag=ACCURACY)
    journal.close()
    journal.windows.expire(expired)
    assert journal.steps() == [1]
    journal.windows = ScalarWindows.restore(journal.windows.state())
    assert journal.steps() == [8]


def test_a_rank_with_a_session_stays_expected_of_new_tags_when_it_is_missed() -> None:
    journal = Journal(2)
    journal.windows.opened(0)
    journal.windows.opened(1)
    journal.log(0, 1)
    journal.windows.expire(journal.seq)
    journal.close()
    journal.log(0, 1, tag=ACCURACY)
    assert journal.steps() == []


def test_a_rank_that_is_gone_is_not_waited_for_and_is_again_when_it_comes_back() -> None:
    journal = Journal(2)
    for rank in (0, 1):
        journal.log(rank, 1)
    assert journal.steps() == [1]
    journal.log(0, 2)
    assert journal.steps() == []
    journal.windows.gone(1)
    assert journal.steps() == [2]
    journal.log(0, 3)
    assert journal.steps() == [3]
    journal.windows.opened(1)
    journal.log(0, 4)
    assert journal.steps() == []
    assert journal.windows.incomplete_total == 0


def test_a_gone_rank_is_remembered_though_others_change_meanwhile() -> None:
    journal = Journal(3)
    for rank in (0, 1, 2):
        journal.log(rank, 1)
    assert journal.steps() == [1]
    journal.windows.gone(2)
    journal.log(0, 2)
    journal.windows.expire(journal.seq)
    assert journal.steps() == [2]  # without rank 1
    journal.windows.opened(2)
    journal.log(0, 3)
    assert journal.steps() == []
    journal.log(2, 3)
    assert journal.steps() == [3]


def test_windows_that_nobody_is_expected_of_close_with_their_group() -> None:
    journal = Journal(2)
    journal.windows.gone(0)
    journal.windows.gone(1)
    journal.log(1, 3)
    assert journal.steps() == [3]


def test_a_late_record_is_counted_and_its_rank_expected_again() -> None:
    journal = Journal(2)
    journal.log(0, 1)
    journal.windows.expire(journal.seq)
    journal.close()
    journal.log(0, 2)
    assert journal.steps() == [2]
    journal.log(1, 1)
    journal.log(0, 3)
    assert journal.steps() == []  # rank 1 is back, though it is behind
    assert journal.windows.late_total == 1
    assert journal.windows.late_by_tag() == {LOSS: 1}
    journal.log(1, 2, 3)
    assert journal.steps() == [3]
    assert journal.windows.late_total == 2


def test_a_second_record_of_a_rank_replaces_the_first() -> None:
    journal = Journal(2, policy="sum")
    journal.log(0, 1, 1, value=10.0, wall=9.0)
    journal.close()
    journal.log(0, 1, value=20.0, wall=7.0)
    journal.log(1, 1, value=0.5, wall=6.0)
    closed = journal.close()
    assert (closed.values.tolist(), closed.walls.tolist()) == ([20.5], [7.0])
    assert journal.windows.repeated_total == 2


def test_replacing_a_windows_only_record_keeps_the_age_of_the_window() -> None:
    journal = Journal(2)
    journal.log(0, 1)
    oldest = journal.seq
    journal.log(0, 1)
    journal.close()
    assert journal.windows.oldest_open_seq() == oldest


def test_a_rank0_tag_takes_rank_0s_records_and_ignores_the_others() -> None:
    journal = Journal(3, policy="rank0")
    journal.log(1, 1, value=100.0)
    journal.log(0, 1, 2, value=2.0)
    journal.log(2, 1, value=100.0)
    closed = journal.close()
    assert closed.steps.tolist() == [1, 2]
    assert closed.values.tolist() == [2.0, 2.0]
    journal.log(1, 1)
    journal.close()
    assert (journal.windows.ignored_total, journal.windows.late_total) == (3, 0)


@pytest.mark.parametrize(
    ("policy", "value"), [("mean", 2.5), ("sum", 10.0), ("min", 1.0), ("max", 4.0), ("last", 3.0)]
)
def test_values_are_merged_by_the_tags_policy(policy: str, value: float) -> None:
    journal = Journal(4, policy)
    for rank, wall in zip((3, 1, 0, 2), (8.0, 2.0, 3.0, 9.0), strict=True):
        journal.log(rank, 1, value=rank + 1.0, wall=wall)
    closed = journal.close()
    assert closed.values.tolist() == [value]
    assert closed.walls.tolist() == [9.0]
    assert (closed.minimum.tolist(), closed.maximum.tolist()) == ([1.0], [4.0])
    assert closed.reporters.tolist() == [4]


def test_last_takes_the_highest_rank_of_equal_wall_times() -> None:
    journal = Journal(3, "last")
    for rank in (2, 1, 0):
        journal.log(rank, 1, value=rank, wall=4.0)
    assert journal.close().values.tolist() == [2.0]


def test_sums_run_in_rank_order_one_by_one() -> None:
    values = [1e16, 1.0, 1.0, -1e16, 1.0, 3.0, 1e16, 1.0, 1.0, -1e16]
    journal = Journal(len(values), "sum")
    for rank in (5, 9, 0, 7, 3, 1, 8, 2, 6, 4):
        journal.log(rank, 1, value=values[rank])
    assert journal.close().values.tolist() == [sum_in_order(values)]


def sum_in_order(values: list[float]) -> float:
    # Not sum(): from Python 3.12 on it compensates for rounding.
    total = 0.0
    for value in values:
        total += value
    return total


@pytest.mark.parametrize("policy", ["mean", "sum", "min", "max", "last"])
def test_nan_of_one_rank(policy: str) -> None:
    journal = Journal(2, policy)
    journal.log(0, 1, value=math.nan)
    journal.log(1, 1, value=3.0)
    closed = journal.close()
    assert math.isnan(closed.values[0]) == (policy in ("mean", "sum"))
    assert (closed.minimum.tolist(), closed.maximum.tolist()) == ([3.0], [3.0])


def test_nan_of_all_ranks_and_no_other_nan_than_one() -> None:
    journal = Journal(2, "max")
    odd = np.array([0xFFF8000000000123, 0x7FF0000000000001], np.uint64).view(np.float64)
    for rank in (0, 1):
        journal.windows.add(1, rank, *columns([LOSS], [1]), odd[rank : rank + 1])
    closed = journal.close()
    for column in (closed.values, closed.minimum, closed.maximum):
        assert column.tobytes() == np.array([math.nan]).tobytes()


def columns(tags: list[int], steps: list[int]) -> tuple[Any, Any, Any]:
    return np.array(tags), np.array(steps), np.zeros(len(tags))


def test_zeros_come_out_positive() -> None:
    journal = Journal(2, "min")
    journal.log(0, 1, value=-0.0)
    journal.log(1, 1, value=-0.0)
    closed = journal.close()
    for column in (closed.values, closed.minimum, closed.maximum):
        assert math.copysign(1.0, column[0]) == 1.0


def test_columns_of_other_widths_are_taken() -> None:
    journal = Journal(1)
    journal.windows.add(
        1,
        0,
        np.array([ACCURACY], np.int32),
        np.array([3], np.int16),
        np.array([1.5], np.float32),
        np.array([0.5], np.float16),
    )
    closed = journal.close()
    assert (closed.tags.tolist(), closed.steps.tolist()) == ([ACCURACY], [3])
    assert (closed.walls.tolist(), closed.values.tolist()) == ([1.5], [0.5])


def test_a_reset_forgets_open_windows_from_its_step_on_and_takes_closed_steps_again() -> None:
    journal = Journal(2)
    for rank in (0, 1):
        journal.log(rank, 1, 2, 3)
    assert journal.steps() == [1, 2, 3]
    journal.log(0, 4, 5)
    journal.windows.reset(3)
    assert journal.steps() == []
    assert journal.windows.discarded_total == 2
    for rank in (0, 1):
        journal.log(rank, 2, 3, 4)
    assert journal.steps() == [3, 4]
    assert journal.windows.late_total == 2


def test_a_reset_keeps_earlier_open_windows_and_what_came_before_it_in_the_group() -> None:
    journal = Journal(2)
    journal.log(0, 1, 9)
    journal.windows.reset(5)
    journal.log(1, 1)
    assert journal.steps() == [1]
    assert journal.windows.discarded_total == 1


def test_a_reset_to_the_least_step_takes_every_step_again() -> None:
    journal = Journal(1)
    journal.log(0, INT64_MIN, 0, INT64_MAX)
    assert journal.steps() == [INT64_MIN, 0, INT64_MAX]
    journal.windows.reset(INT64_MIN)
    journal.log(0, INT64_MIN, 0, INT64_MAX)
    assert journal.steps() == [INT64_MIN, 0, INT64_MAX]
    assert journal.windows.late_total == 0


def test_the_least_step_is_not_late_before_anything_has_closed() -> None:
    journal = Journal(1)
    journal.log(0, INT64_MIN)
    assert journal.steps() == [INT64_MIN]
    journal.log(0, INT64_MIN)
    assert journal.steps() == []
    assert journal.windows.late_total == 1


@pytest.mark.parametrize(("before", "after"), [(2, 3), (60, 70), (64, 65), (100, 200)])
def test_a_grown_world_is_expected_of_tags_that_nobody_logged_yet(before: int, after: int) -> None:
    journal = Journal(before, "sum")
    for rank in range(before):
        journal.log(rank, 1)
    assert journal.steps() == [1]
    journal.log(before - 1, 2)
    journal.windows.resize(after)
    assert journal.windows.world_size == after
    for rank in range(before - 1):
        journal.log(rank, 2)
    assert journal.steps() == [2]
    for rank in range(after - 1):
        journal.log(rank, 1, tag=ACCURACY)
    assert journal.steps() == []
    journal.log(after - 1, 1, tag=ACCURACY)
    closed = journal.close()
    assert (closed.steps.tolist(), closed.values.tolist()) == ([1], [after])


def test_a_world_does_not_shrink() -> None:
    with pytest.raises(ValueError, match="world_size is 4 and cannot shrink to 3"):
        ScalarWindows(4).resize(3)


def test_over_the_memory_limit_the_oldest_windows_close() -> None:
    one = window_bytes(2) + block_bytes(2)
    journal = Journal(2, memory_bytes=32 * one)
    for step in range(32):
        journal.log(0, 100 - step)  # the oldest is not the earliest
    assert journal.steps() == []
    assert journal.windows.used_bytes == 32 * one
    journal.log(0, 1)
    # One too many, and a sixteenth to spare. They hold the steps below them back.
    closed = journal.steps()
    assert closed == [1, *range(69, 101)]
    assert journal.windows.incomplete_total == 1  # then rank 0 is the only one expected
    assert journal.windows.used_bytes == 0


def test_over_the_memory_limit_no_more_is_closed_than_needed() -> None:
    one = window_bytes(2) + block_bytes(2)
    windows = ScalarWindows(2, memory_bytes=32 * one)
    for tag in range(40):
        windows.declare(tag, "mean")
    for tag in range(33):
        windows.add(tag, 0, *columns([tag], [0]), np.zeros(1))
    assert windows.close_group().tags.tolist() == [0, 1, 2]


def test_a_group_larger_than_memory_is_closed_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "CHUNK_ROWS", 10)
    one = window_bytes(2) + block_bytes(2)
    journal = Journal(2, memory_bytes=20 * one)
    largest = 0
    for step in range(0, 200, 5):
        journal.log(0, *range(step, step + 5))
        largest = max(largest, journal.windows.used_bytes)
    assert largest <= 30 * one
    assert journal.steps() == list(range(200))


def test_many_windows_merged_in_pieces_give_the_same_points(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    results = []
    for at_once in (1 << 19, 6):
        monkeypatch.setattr(windows, "_RECORDS_AT_ONCE", at_once)
        journal = Journal(2)
        for rank in (0, 1):
            for tag in (LOSS, ACCURACY):
                journal.log(rank, *range(20), tag=tag, value=rank)
        results.append(journal.close())
    assert results[0].steps.tolist() == 2 * list(range(20))
    assert results[0].values.tobytes() == results[1].values.tobytes()
    assert results[0].steps.tobytes() == results[1].steps.tobytes()


def test_memory_of_a_stall_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window_store, "_KEPT_BYTES", 1 << 20)
    journal = Journal(2)
    journal.log(0, *range(20_000))
    journal.close()
    assert journal.windows._store._room_bytes() > 1 << 20
    journal.log(1, *range(20_000))
    assert len(journal.close()) == 20_000
    assert journal.windows._store._room_bytes() == 0
    journal.log(0, 20_000)
    journal.log(1, 20_000)
    assert journal.steps() == [20_000]


def test_the_oldest_open_window_is_known() -> None:
    journal = Journal(2)
    assert journal.windows.oldest_open_seq() is None
    journal.log(0, 5)
    journal.log(0, 4)
    journal.close()
    assert journal.windows.oldest_open_seq() == 1
    journal.log(1, 5)
    journal.log(0, 6)
    journal.close()
    assert journal.windows.oldest_open_seq() == 1
    journal.log(1, 4)
    journal.close()
    assert journal.windows.oldest_open_seq() == 4
    journal.log(1, 6)
    journal.close()
    assert journal.windows.oldest_open_seq() is None


def test_reporters_that_change_in_the_middle_of_a_run_are_followed() -> None:
    journal = Journal(3)
    for rank in (0, 1, 2):
        journal.windows.opened(rank)
    steps = range(4000)
    journal.log(0, *steps)
    journal.log(1, *(step for step in steps if step < 1000 or step >= 3000))
    journal.log(2, *(step for step in steps if step < 10))
    journal.close()
    assert journal.windows.open_windows == 3990
    journal.windows.expire(journal.seq)
    closed = journal.close()
    assert closed.steps.tolist() == list(range(10, 4000))
    assert set(closed.reporters[:990]) == {2}
    assert set(closed.reporters[990:2990]) == {1}
    # Rank 2 was missed at 10, rank 1 at 1,000.
    assert journal.windows.incomplete_total == 2


@pytest.mark.parametrize(
    "call",
    [
        lambda windows: windows.add(1, 2, *columns([0], [0]), np.zeros(1)),
        lambda windows: windows.add(1, -1, *columns([0], [0]), np.zeros(1)),
        lambda windows: windows.opened(2),
        lambda windows: windows.gone(2),
    ],
)
def test_a_rank_outside_the_world_is_an_error(call: Any) -> None:
    journal = Journal(2)
    with pytest.raises(ValueError, match=r"rank must be in 0\.\.1, not (2|-1)"):
        call(journal.windows)


def test_columns_of_different_lengths_are_an_error() -> None:
    journal = Journal(2)
    with pytest.raises(ValueError, match="have 1, 1, 1 and 2"):
        journal.windows.add(1, 0, *columns([0], [0]), np.zeros(2))


@pytest.mark.parametrize("tag", [2, 63, 64, 10**9, -1])
def test_a_tag_that_was_never_declared_is_an_error(tag: int) -> None:
    journal = Journal(2)
    journal.log(0, 1, tag=tag)
    with pytest.raises(ValueError, match="declared"):
        journal.close()


def test_a_tags_policy_does_not_change() -> None:
    journal = Journal(2)
    journal.windows.declare(LOSS, "mean")
    with pytest.raises(ValueError, match="tag 0 was declared as mean and cannot become max"):
        journal.windows.declare(LOSS, "max")
    with pytest.raises(ValueError, match=r"policy must be one of mean, .* not 'median'"):
        journal.windows.declare(5, "median")
    with pytest.raises(ValueError, match="must not be negative"):
        journal.windows.declare(-1, "mean")


def test_a_world_has_a_rank() -> None:
    with pytest.raises(ValueError, match="world_size must be at least 1, not 0"):
        Presence(0)


def test_a_state_is_taken_between_groups_only() -> None:
    journal = Journal(2)
    journal.log(0, 1)
    with pytest.raises(RuntimeError, match="middle of a group"):
        journal.windows.state()
    journal.close()
    journal.windows.state()
    journal.windows.expire(1)
    with pytest.raises(RuntimeError, match="middle of a group"):
        journal.windows.state()


def test_a_store_takes_more_tags_than_a_key_has_bits_for_at_first() -> None:
    index = WindowIndex()
    enter(index, [5, 5], [1, -1])
    enter(index, [2**21, 2**21], [2**40, -(2**40)])
    assert index.tags().tolist() == [5, 5, 2**21, 2**21]
    assert index.steps().tolist() == [-1, 1, -(2**40), 2**40]


def enter(index: WindowIndex, tags: list[int], steps: list[int]) -> None:
    """Enter windows, which may be there; the slot is made of tag and step."""
    pairs = sorted(set(zip(tags, steps, strict=True)))
    found = index.find(np.array([tag for tag, _ in pairs]), np.array([step for _, step in pairs]))
    slots = np.array([hash(pair) for pair in pairs])
    assert found.slots[~found.is_new].tolist() == slots[~found.is_new].tolist()
    if found.is_new.any():
        index.enter(found.keys[found.is_new], found.at[found.is_new], slots[found.is_new])


@pytest.mark.parametrize("merged_in_a_move", [0, 2, 10**9])
@pytest.mark.parametrize("span", [50, 2**50, 2**63])
def test_an_index_stays_sorted_however_it_moves(
    monkeypatch: pytest.MonkeyPatch, merged_in_a_move: int, span: int
) -> None:
    monkeypatch.setattr(window_index, "_MERGED_IN_A_MOVE", merged_in_a_move)
    rng = random.Random(span + merged_in_a_move)
    index, plain = WindowIndex(), dict[tuple[int, int], int]()
    for _ in range(40):
        n = rng.choice([1, 3, 200])
        tags = [rng.randrange(5) for _ in range(n)]
        steps = [rng.randrange(-span, span) for _ in range(n)]
        enter(index, tags, steps)
        plain |= {pair: hash(pair) for pair in zip(tags, steps, strict=True)}
        order = sorted(plain)
        gone = sorted(rng.sample(range(len(order)), rng.choice([1, len(order) // 3 + 1])))
        if rng.random() < 0.7:
            gone = list(range(gone[0], min(gone[0] + 30, len(order))))
        if rng.random() < 0.1:
            gone = list(range(len(order)))
        index.remove(np.array(gone))
        for position in gone:
            del plain[order[position]]
        order = sorted(plain)
        assert list(zip(index.tags().tolist(), index.steps().tolist(), strict=True)) == order
        assert index.slots.tolist() == [plain[pair] for pair in order]
        first, end = index.runs(np.arange(5))
        counts = [sum(tag == of for tag, _ in order) for of in range(5)]
        assert (end - first).tolist() == counts


def test_a_sparse_window_takes_room_for_64_ranks_not_for_the_world() -> None:
    journal = Journal(1000)
    journal.log(500, 1)
    journal.log(510, 1)
    journal.close()
    assert journal.windows.used_bytes == window_bytes(1000) + block_bytes(1000)
    assert block_bytes(1000) == 64 * 16
    journal.log(999, 1)
    journal.close()
    assert journal.windows.used_bytes == window_bytes(1000) + 2 * block_bytes(1000)


def test_a_restored_store_may_be_wider() -> None:
    journal = Journal(3)
    journal.log(2, INT64_MAX, INT64_MIN, value=4.5)
    journal.close()
    store = WindowStore.restore(journal.windows._store.state(), 200)
    assert store.index.steps().tolist() == [INT64_MIN, INT64_MAX]
    assert store.records(slice(None)).values.tolist() == [4.5, 4.5]
    assert to_ints(store.seen(slice(None))) == [0b100, 0b100]


@pytest.mark.parametrize("world_size", [1, 8, 64, 65, 1000])
def test_sets_of_ranks_convert(world_size: int) -> None:
    members = sorted({0, world_size // 2, world_size - 1})
    ranks = set_of(members)
    assert list(ranks_in(ranks)) == members
    words = to_words(ranks, world_size)
    assert words.size == -(-world_size // 64)
    assert to_int(words) == ranks
    assert to_ints(np.stack([words, words])) == [ranks, ranks]
    assert count_ranks(words) == len(members)


class Names:
    """A payload."""

    def __init__(self, names: str) -> None:
        self.names = names

    def merge(self, other: Names) -> Names:
        return Names(self.names + other.names)

    def dump(self) -> bytes:
        return self.names.encode()

    @classmethod
    def load(cls, packed: bytes) -> Names:
        return cls(packed.decode())


class Blobs:
    """Feeds merge windows with entries that are numbered by themselves."""

    def __init__(self, world_size: int, policy: str = "merge", **options: Any) -> None:
        self.windows: MergeWindows[Names] = MergeWindows(world_size, **options)
        self.windows.declare(LOSS, policy)
        self.seq = 0

    def log(self, rank: int, step: int, wall: float = 1.0, size: int = 10) -> None:
        self.seq += 1
        self.windows.add(self.seq, rank, LOSS, step, wall, Names("abcdef"[rank]), size)

    def close(self) -> list[tuple[int, str, int]]:
        points = self.windows.close_group()
        return [(point.step, point.payload.names, point.reporters) for point in points]


def test_payloads_are_merged_in_rank_order() -> None:
    blobs = Blobs(3)
    for rank in (2, 0, 1):
        assert blobs.close() == []
        blobs.log(rank, 4)
    assert blobs.close() == [(4, "abc", 3)]


@pytest.mark.parametrize(("policy", "names"), [("merge", "abc"), ("last", "b"), ("rank0", "a")])
def test_payloads_become_one_by_the_tags_policy(policy: str, names: str) -> None:
    blobs = Blobs(3, policy)
    for rank, wall in ((1, 8.0), (0, 8.0), (2, 7.0)):
        blobs.log(rank, 4, wall)
    closed = blobs.windows.close_group()
    assert [point.payload.names for point in closed] == [names]
    assert blobs.windows.ignored_total == (2 if policy == "rank0" else 0)


def test_payloads_that_are_late_or_repeated_are_counted() -> None:
    blobs = Blobs(2)
    blobs.log(0, 4)
    blobs.log(0, 4)
    blobs.windows.expire(blobs.seq)
    assert blobs.close() == [(4, "a", 1)]
    blobs.log(1, 4)
    assert blobs.windows.late_by_tag() == {LOSS: 1}
    assert blobs.windows.repeated_total == blobs.windows.incomplete_total == 1
    blobs.log(0, 5)
    assert blobs.close() == []  # rank 1 is expected again


def test_over_the_memory_limit_the_oldest_payloads_are_merged() -> None:
    blobs = Blobs(2, memory_bytes=100_000)
    blobs.windows.opened(0)
    blobs.windows.opened(1)
    for step in range(30):
        blobs.log(0, step, size=10_000)
    assert blobs.windows.used_bytes <= 100_000
    blobs.windows.gone(1)
    assert [step for step, _, _ in blobs.close()] == list(range(30))
    assert blobs.windows.used_bytes == 0


def test_payloads_survive_a_restart() -> None:
    blobs = Blobs(2)
    blobs.log(1, 4)
    with pytest.raises(RuntimeError, match="middle of a group"):
        blobs.windows.state(Names.dump)
    blobs.close()
    state = blobs.windows.state(Names.dump)
    blobs.windows = MergeWindows.restore(state, Names.load)
    assert blobs.windows.oldest_open_seq() == 1
    blobs.log(0, 4)
    assert blobs.close() == [(4, "ab", 2)]


def test_payloads_of_unknown_tags_and_policies_are_an_error() -> None:
    windows_ = MergeWindows[Names](2)
    with pytest.raises(ValueError, match="tag 0 was never declared"):
        windows_.add(1, 0, 0, 0, 0.0, Names("a"), 1)
    with pytest.raises(ValueError, match="policy must be one of merge, last, rank0"):
        windows_.declare(0, "mean")
    windows_.declare(0, "merge")
    with pytest.raises(ValueError, match="tag 0 was declared as merge and cannot become last"):
        windows_.declare(0, "last")
