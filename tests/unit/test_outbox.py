"""The outbox: what it keeps, what it drops, and that nothing is lost in between."""

from __future__ import annotations

import gc
import threading
import tracemalloc
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from ranktap.outbox import (
    BATCH_BYTES,
    BLOB_BYTES,
    DEVICE_SCALAR_BYTES,
    ROW_BYTES,
    ROW_ITEMS,
    Outbox,
    PendingScalar,
    Sealed,
)
from ranktap.staging import Snapshot
from ranktap_wire import frames, limits
from ranktap_wire.messages import BatchMessage
from ranktap_wire.records import STEP_MAX, Across, Blob, Kind, Style
from tests.support import messages

MIB = limits.MIB


def outbox_with_tags(memory_bytes: int = 16 * MIB, tags: tuple[str, ...] = ("loss",)) -> Outbox:
    outbox = Outbox(memory_bytes)
    for tag in tags:
        outbox.add_tag(tag, Across.MEAN)
    return outbox


def picture(nbytes: int, tag: str = "picture") -> Blob:
    data = np.zeros(nbytes, np.uint8)
    return Blob(Kind.IMAGE, tag, 0, 0.0, Across.EACH, "uint8", (1, 1, nbytes), {}, data)


def log(outbox: Outbox, value: float, tag: int = 0, step: int = 0) -> bool:
    """What `Tap.scalar` does; False when it was dropped."""
    if len(outbox.rows) >= outbox.row_limit:
        outbox.drop_scalars(1)
        return False
    outbox.rows += (tag, step, 1.5, value)
    return True


class Device:
    """Stands in for a CUDA event: a copy has arrived when this says so."""

    def __init__(self) -> None:
        self.is_done = False

    def __call__(self) -> bool:
        return self.is_done


def on_its_way(value: float, device: Callable[[], bool], step: int = 0) -> PendingScalar:
    bits = np.array([value], np.float32)
    return PendingScalar(0, step, 1.5, Snapshot(bits, "float32", (1,), device))


def fill(outbox: Outbox) -> int:
    """Log scalars until one is dropped; how many were kept."""
    kept = 0
    while log(outbox, float(kept)):
        kept += 1
    return kept


# -- what is taken ------------------------------------------------------------------------


def test_an_empty_outbox_is_false_and_gives_nothing() -> None:
    outbox = outbox_with_tags()
    assert not outbox
    assert outbox.take() is None


def test_scalars_come_out_as_columns_in_the_order_of_the_calls() -> None:
    outbox = outbox_with_tags(tags=("a", "b", "c"))
    for row, tag in enumerate((2, 0, 2, 2)):
        log(outbox, row / 4, tag, step=-row)
    sealed = outbox.take()
    assert sealed is not None and sealed.batch.columns is not None
    columns = sealed.batch.columns
    assert [columns.tags[index] for index in columns.tag_index] == ["c", "a", "c", "c"]
    assert columns.step.tolist() == [0, -1, -2, -3]
    assert columns.wall_time.tolist() == [1.5] * 4
    assert columns.value.tolist() == [0.0, 0.25, 0.5, 0.75]
    assert not outbox


def test_a_batch_names_only_the_tags_that_occur_in_it_with_their_policies() -> None:
    outbox = Outbox(MIB)
    for number in range(1_000):
        outbox.add_tag(f"tag{number}", Across.MEAN)
    last = outbox.add_tag("last", Across.SUM)
    log(outbox, 1.0, last)
    log(outbox, 2.0, 7)
    sealed = outbox.take()
    assert sealed is not None and sealed.batch.columns is not None
    assert sealed.batch.columns.tags == ["tag7", "last"]
    assert sealed.batch.columns.across.tolist() == [Across.MEAN, Across.SUM]
    assert sealed.batch.columns.tag_index.tolist() == [1, 0]


def test_a_name_of_a_sub_run_and_a_style_travel_with_their_scalars() -> None:
    outbox = outbox_with_tags()
    styled = outbox.add_tag("main_a\tmain", Across.RANK0, Style.TENSOR_DOUBLE)
    log(outbox, 1.0)
    log(outbox, 2.0, styled)
    sealed = outbox.take()
    assert sealed is not None and sealed.batch.columns is not None
    columns = sealed.batch.columns
    assert columns.tags == ["loss", "main_a\tmain"]
    assert columns.policy.tolist() == [Across.MEAN, Across.RANK0]
    assert columns.style.tolist() == [Style.SIMPLE, Style.TENSOR_DOUBLE]


def test_steps_of_64_bits_and_values_that_are_not_finite_arrive_unchanged() -> None:
    outbox = outbox_with_tags()
    steps = [-(1 << 63), (1 << 63) - 1, 0]
    for step, value in zip(steps, (float("nan"), float("inf"), -0.0), strict=True):
        log(outbox, value, step=step)
    sealed = outbox.take()
    assert sealed is not None and sealed.batch.columns is not None
    assert sealed.batch.columns.step.tolist() == steps
    assert str(sealed.batch.columns.value.tolist()) == "[nan, inf, -0.0]"


def test_a_batch_holds_at_most_the_limit_of_scalars_and_the_rest_follows() -> None:
    outbox = outbox_with_tags(64 * MIB)
    for number in range(limits.SCALARS + 5):
        log(outbox, float(number))
    lengths = []
    while (sealed := outbox.take()) is not None:
        assert sealed.batch.columns is not None
        lengths.append(len(sealed.batch.columns))
    assert lengths == [limits.SCALARS, 5]


def test_blobs_come_out_in_the_order_of_the_calls() -> None:
    outbox = outbox_with_tags()
    for number in range(5):
        outbox.add_blob(picture(10, f"picture{number}"), None)
    sealed = outbox.take()
    assert sealed is not None
    assert [blob.tag for blob in sealed.batch.blobs] == [f"picture{n}" for n in range(5)]


def test_a_batch_ends_at_its_target_size_and_a_larger_blob_travels_alone() -> None:
    outbox = outbox_with_tags()
    target = limits.BATCH_TARGET_BYTES
    for nbytes in (target // 2, target // 4, target // 2, 3 * target, 10):
        outbox.add_blob(picture(nbytes), None)
    sizes = []
    while (sealed := outbox.take()) is not None:
        sizes.append([np.asarray(blob.data).nbytes for blob in sealed.batch.blobs])
    assert sizes == [[target // 2, target // 4], [target // 2], [3 * target], [10]]


def test_the_blobs_of_a_batch_leave_room_for_their_headers() -> None:
    outbox = outbox_with_tags()
    for _ in range(1_000):
        outbox.add_blob(picture(1, "x" * limits.TAG_BYTES), None)
    sealed = outbox.take()
    assert sealed is not None
    assert 1 <= len(sealed.batch.blobs) * (limits.TAG_BYTES + 256) <= limits.HEADER_BYTES


@pytest.mark.parametrize("kind", Kind)
def test_a_batch_of_any_kind_leaves_room_for_its_header(kind: Kind) -> None:
    outbox = outbox_with_tags()
    for _ in range(limits.BLOBS):
        outbox.add_blob(messages.blob(kind, step=STEP_MAX, tag="x" * 40), None)
    sealed = outbox.take()
    assert sealed is not None
    assert len(sealed.batch.blobs) >= limits.BLOBS // 4
    message = frames.pack_batch(messages.SESSION, 1, sealed.batch)
    assert len(message) <= limits.FRAMES
    assert isinstance(frames.read_message(messages.as_bytes(message)), BatchMessage)


def test_a_batch_tells_how_many_were_dropped_so_far() -> None:
    outbox = outbox_with_tags()
    outbox.drop_scalars(3)
    outbox.drop_blobs(2)
    log(outbox, 1.0)
    sealed = outbox.take()
    assert sealed is not None
    assert (sealed.batch.dropped_scalars, sealed.batch.dropped_blobs) == (3, 2)
    assert outbox.dropped == 5


# -- copies from a device -----------------------------------------------------------------


def test_a_blob_that_has_not_arrived_holds_back_what_is_behind_it() -> None:
    outbox = outbox_with_tags()
    device = Device()
    outbox.add_blob(picture(10, "before"), None)
    outbox.add_blob(picture(10, "slow"), device)
    outbox.add_blob(picture(10, "behind"), None)
    sealed = outbox.take()
    assert sealed is not None
    assert [blob.tag for blob in sealed.batch.blobs] == ["before"]
    assert outbox and outbox.take() is None
    device.is_done = True
    sealed = outbox.take()
    assert sealed is not None
    assert [blob.tag for blob in sealed.batch.blobs] == ["slow", "behind"]


def test_a_blob_that_became_too_large_as_it_arrived_is_dropped_and_the_next_is_sent(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(limits, "RECORD_BYTES", 1_000)
    outbox = outbox_with_tags()
    film = picture(10, "film")

    def encode() -> bool:
        film.data = bytes(1_001)
        return True

    outbox.add_blob(film, encode)
    outbox.add_blob(picture(1_000, "behind"), None)
    mark = outbox.mark()
    sealed = outbox.take()
    assert sealed is not None
    assert [blob.tag for blob in sealed.batch.blobs] == ["behind"]
    assert outbox.dropped_blobs == 1 and outbox.has_taken(mark)
    assert "'film' is dropped: it has become 1001 bytes" in caplog.text
    outbox.release(sealed)
    assert outbox.pending_blob_bytes == 0


def test_a_scalar_that_has_not_arrived_holds_back_those_of_the_device_but_no_others() -> None:
    outbox = outbox_with_tags()
    slow, fast = Device(), Device()
    fast.is_done = True
    outbox.add_device_scalar(on_its_way(0.5, slow, step=1))
    outbox.add_device_scalar(on_its_way(0.25, fast, step=2))
    log(outbox, 8.0, step=3)
    sealed = outbox.take()
    assert sealed is not None and sealed.batch.columns is not None
    assert sealed.batch.columns.value.tolist() == [8.0]
    assert outbox and outbox.take() is None
    slow.is_done = True
    sealed = outbox.take()
    assert sealed is not None and sealed.batch.columns is not None
    assert sealed.batch.columns.step.tolist() == [1, 2]
    assert sealed.batch.columns.value.tolist() == [0.5, 0.25]
    assert not outbox


def test_what_a_copy_holds_is_read_when_it_has_arrived_and_not_before() -> None:
    outbox = outbox_with_tags()
    device = Device()
    scalar = on_its_way(-1.0, device)
    outbox.add_device_scalar(scalar)
    scalar.value.bits[0] = 2.0
    device.is_done = True
    sealed = outbox.take()
    assert sealed is not None and sealed.batch.columns is not None
    assert sealed.batch.columns.value.tolist() == [2.0]


def test_a_bfloat16_scalar_of_a_device_is_widened() -> None:
    outbox = outbox_with_tags()
    bits = np.array([0x3FC0], np.int16)  # 1.5
    outbox.add_device_scalar(PendingScalar(0, 0, 0.0, Snapshot(bits, "bfloat16", (1,))))
    sealed = outbox.take()
    assert sealed is not None and sealed.batch.columns is not None
    assert sealed.batch.columns.value.tolist() == [1.5]


def fails() -> bool:
    raise RuntimeError("CUDA error: device-side assert triggered")


def test_a_copy_that_never_arrives_is_one_records_loss_and_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    outbox = outbox_with_tags()
    outbox.add_device_scalar(on_its_way(1.0, fails))
    outbox.add_device_scalar(on_its_way(2.0, lambda: True))
    outbox.add_blob(picture(10, "lost"), fails)
    outbox.add_blob(picture(10, "behind"), None)
    mark = outbox.mark()
    sealed = outbox.take()
    assert sealed is not None and sealed.batch.columns is not None
    assert sealed.batch.columns.value.tolist() == [2.0]
    assert [blob.tag for blob in sealed.batch.blobs] == ["behind"]
    assert (sealed.batch.dropped_scalars, sealed.batch.dropped_blobs) == (1, 1)
    assert outbox.has_taken(mark) and not outbox
    assert "device-side assert triggered" in caplog.text
    outbox.release(sealed)
    assert outbox.pending_blob_bytes == 0


def test_a_blob_that_is_made_of_more_than_it_is_counts_as_that_until_it_is_released() -> None:
    outbox = Outbox(MIB)
    blob = picture(10)
    assert not outbox.add_blob(blob, None, MIB)
    assert outbox.add_blob(blob, None, 1_000)
    assert outbox.pending_blob_bytes == 1_000 + BLOB_BYTES
    blob.data = b"another"
    sealed = outbox.take()
    assert sealed is not None
    outbox.release(sealed)
    assert outbox.pending_blob_bytes == 0


# -- bounds -------------------------------------------------------------------------------


def test_scalars_are_dropped_and_counted_when_the_memory_is_full() -> None:
    outbox = outbox_with_tags(MIB)
    kept = fill(outbox)
    assert kept == MIB // ROW_BYTES
    assert outbox.dropped_scalars == 1


def test_blobs_take_at_most_four_fifths_and_scalars_the_reserved_fifth() -> None:
    outbox = outbox_with_tags(MIB)
    while outbox.add_blob(picture(10_000), None):
        pass
    held = outbox.pending_blob_bytes
    assert 0.8 * MIB - 10_000 - BLOB_BYTES < held <= 0.8 * MIB
    assert outbox.dropped_blobs == 1
    kept = fill(outbox)
    assert kept == (MIB - held) // ROW_BYTES
    assert kept * ROW_BYTES >= 0.2 * MIB - ROW_BYTES


def test_scalars_may_take_all_of_it_and_then_no_blob_is_kept() -> None:
    outbox = outbox_with_tags(MIB)
    fill(outbox)
    assert not outbox.add_blob(picture(10), None)
    assert not outbox.has_room_for(10)
    assert not outbox.add_device_scalar(on_its_way(1.0, Device()))
    assert (outbox.dropped_blobs, outbox.dropped_scalars) == (2, 2)


def test_the_memory_bound_holds_for_any_mixture_before_anything_is_taken() -> None:
    outbox = outbox_with_tags(MIB)
    rows = devices = 0
    for number in range(20_000):
        rows += log(outbox, 1.0)
        if number % 3 == 0:
            devices += outbox.add_device_scalar(on_its_way(1.0, Device()))
        if number % 100 == 0:
            outbox.add_blob(picture(5_000), None)
    held = rows * ROW_BYTES + devices * DEVICE_SCALAR_BYTES + outbox.pending_blob_bytes
    assert 0.95 * MIB < held <= MIB


def test_what_is_sealed_takes_memory_until_it_is_released() -> None:
    outbox = outbox_with_tags(4 * MIB)
    kept = fill(outbox)
    assert outbox.add_blob(picture(10), None) is False
    sealed: list[Sealed] = []
    while (batch := outbox.take()) is not None:
        sealed.append(batch)
    # As columns they take less, so that there is room again, but not for as many.
    again = fill(outbox)
    assert 0 < again < kept
    while (batch := outbox.take()) is not None:
        sealed.append(batch)
    for batch in sealed:
        outbox.release(batch)
    assert fill(outbox) == kept


def test_blobs_on_their_way_do_not_call_for_another_batch() -> None:
    outbox = outbox_with_tags(4 * MIB)
    outbox.add_blob(picture(100_000), None)
    assert outbox.pending_blob_bytes == 100_000 + BLOB_BYTES
    first = outbox.take()
    assert first is not None
    assert outbox.pending_blob_bytes == 0
    outbox.add_blob(picture(10), None)
    assert outbox.pending_blob_bytes == 10 + BLOB_BYTES
    outbox.release(first)
    assert outbox.pending_blob_bytes == 10 + BLOB_BYTES


def test_releasing_everything_gives_all_memory_back() -> None:
    outbox = outbox_with_tags(4 * MIB)
    before = outbox.row_limit
    device = Device()
    device.is_done = True
    for number in range(3):
        log(outbox, float(number))
        outbox.add_blob(picture(100_000), None)
        outbox.add_device_scalar(on_its_way(1.0, device))
    sealed = outbox.take()
    assert sealed is not None
    assert outbox.row_limit < before
    assert sealed.blob_bytes == 3 * (100_000 + BLOB_BYTES)
    assert sealed.scalar_bytes > BATCH_BYTES
    outbox.release(sealed)
    assert outbox.row_limit == before
    assert outbox.pending_blob_bytes == 0


def test_the_edges_of_a_histogram_count_too() -> None:
    outbox = outbox_with_tags()
    blob = Blob(
        Kind.HISTOGRAM, "h", 0, 0.0, Across.MERGE, "float32", (100,), {},
        np.zeros(100, np.float32), {"edges": np.arange(1_000.0)},
    )  # fmt: skip
    outbox.add_blob(blob, None)
    assert outbox.pending_blob_bytes == 400 + 8_000 + BLOB_BYTES


def test_room_is_asked_for_what_will_be_kept() -> None:
    outbox = outbox_with_tags(MIB)
    nbytes = int(0.8 * MIB) - BLOB_BYTES
    assert not outbox.has_room_for(nbytes + 1)
    assert outbox.has_room_for(nbytes)
    assert outbox.add_blob(picture(nbytes), None)
    assert outbox.dropped_blobs == 1


def test_a_scalar_takes_no_more_memory_than_is_counted_for_it() -> None:
    outbox = outbox_with_tags(64 * MIB)
    gc.collect()
    tracemalloc.start()
    try:
        for number in range(100_000):
            outbox.rows += (0, 1_000_000 + number, number + 0.5, number + 0.25)
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken / 100_000 <= ROW_BYTES * 1.05


def test_a_closed_outbox_counts_everything_as_dropped() -> None:
    outbox = outbox_with_tags()
    outbox.close()
    assert outbox.is_closed
    assert not log(outbox, 1.0)
    assert not outbox.add_blob(picture(10), None)
    assert not outbox.add_device_scalar(on_its_way(1.0, Device()))
    assert not outbox.has_room_for(1)
    assert (outbox.dropped_scalars, outbox.dropped_blobs) == (2, 2)
    assert not outbox


def test_what_was_kept_before_closing_is_still_taken_and_opens_nothing() -> None:
    outbox = outbox_with_tags()
    log(outbox, 1.0)
    outbox.close()
    sealed = outbox.take()
    assert sealed is not None and sealed.batch.columns is not None
    outbox.release(sealed)
    assert not log(outbox, 2.0)


# -- flush --------------------------------------------------------------------------------


def test_a_mark_is_reached_when_what_was_there_is_taken_whatever_comes_after() -> None:
    outbox = outbox_with_tags()
    device = Device()
    log(outbox, 1.0)
    outbox.add_blob(picture(10), None)
    outbox.add_device_scalar(on_its_way(1.0, device))
    mark = outbox.mark()
    assert not outbox.has_taken(mark)
    outbox.take()
    assert not outbox.has_taken(mark)  # one is still on its way
    device.is_done = True
    log(outbox, 2.0)
    outbox.take()
    log(outbox, 3.0)
    outbox.add_blob(picture(10), None)
    assert outbox.has_taken(mark)
    assert not outbox.has_taken(outbox.mark())


def test_the_mark_of_an_empty_outbox_is_reached_at_once() -> None:
    outbox = outbox_with_tags()
    log(outbox, 1.0)
    outbox.take()
    assert outbox.has_taken(outbox.mark())


# -- threads ------------------------------------------------------------------------------


def test_no_scalar_is_lost_or_mixed_while_four_threads_log_and_another_takes() -> None:
    threads, each = 4, 50_000
    outbox = outbox_with_tags(1 << 30, tags=tuple(f"thread{n}" for n in range(threads)))

    def append(thread: int) -> None:
        rows = outbox.rows
        for number in range(each):
            # Every item names its row, so that a mixture of two rows shows.
            rows += (thread, number, thread + number * 4.0, number * 4.0 + thread)

    appending = [threading.Thread(target=append, args=(n,)) for n in range(threads)]
    for thread in appending:
        thread.start()
    taken: list[tuple[np.ndarray, ...]] = []
    while any(thread.is_alive() for thread in appending) or outbox:
        sealed = outbox.take()
        if sealed is not None and (columns := sealed.batch.columns) is not None:
            assert len(outbox.rows) % ROW_ITEMS == 0
            names = np.array([int(tag.removeprefix("thread")) for tag in columns.tags])
            thread_of = names[columns.tag_index]
            taken.append((thread_of, columns.step, columns.wall_time, columns.value))
            outbox.release(sealed)
    assert len(taken) > 1, "nothing was taken while the threads logged: this proves nothing"
    thread_of, step, wall_time, value = (np.concatenate(each) for each in zip(*taken, strict=True))
    assert Counter(thread_of.tolist()) == dict.fromkeys(range(threads), each)
    np.testing.assert_array_equal(wall_time, thread_of + step * 4.0)
    np.testing.assert_array_equal(value, wall_time)
    for number in range(threads):
        np.testing.assert_array_equal(step[thread_of == number], np.arange(each))


def test_blobs_of_four_threads_are_all_kept_or_counted_and_memory_adds_up() -> None:
    outbox = outbox_with_tags(8 * MIB)
    before = outbox.row_limit
    kept = Counter[int]()
    stop = threading.Event()
    taken = 0

    def append(thread: int) -> None:
        for _ in range(2_000):
            kept[thread] += outbox.add_blob(picture(3_000, f"picture{thread}"), None)

    def take() -> None:
        nonlocal taken
        while not (stop.is_set() and not outbox):
            sealed = outbox.take()
            if sealed is not None:
                taken += len(sealed.batch.blobs)
                outbox.release(sealed)

    appending = [threading.Thread(target=append, args=(n,)) for n in range(4)]
    taking = threading.Thread(target=take)
    for thread in (*appending, taking):
        thread.start()
    for thread in appending:
        thread.join()
    stop.set()
    taking.join()
    assert taken == kept.total()
    assert kept.total() + outbox.dropped_blobs == 8_000
    assert outbox.row_limit == before


@pytest.mark.parametrize("memory_bytes", [MIB, 3 * MIB + 17, 256 * MIB])
def test_the_row_limit_is_whole_rows(memory_bytes: int) -> None:
    outbox = outbox_with_tags(memory_bytes)
    assert outbox.row_limit % ROW_ITEMS == 0
    assert outbox.row_limit // ROW_ITEMS * ROW_BYTES <= memory_bytes
