"""Both windows, one call at a time. What they promise together is in tests/model."""

from __future__ import annotations

import pytest

from ranktap_wire.delivery import ReceiveWindow, SendWindow, Verdict


def window(*sizes: int, max_bytes: int = 100, max_messages: int = 10) -> SendWindow[str]:
    result: SendWindow[str] = SendWindow(max_bytes, max_messages)
    for size in sizes:
        result.push(f"{size} bytes", size)
    return result


def sent(window: SendWindow[str]) -> list[int]:
    """The numbers of all that may be sent now."""
    numbers = []
    while (due := window.due()) is not None:
        numbers.append(due.number)
    return numbers


def test_batches_are_numbered_from_one_and_sent_in_this_order() -> None:
    batches = window(1, 2, 3)
    assert sent(batches) == [1, 2, 3]
    assert batches.push("a fourth", 1) == 4
    assert sent(batches) == [4]


def test_no_more_messages_are_in_flight_than_allowed() -> None:
    batches = window(1, 1, 1, 1, max_messages=2)
    assert sent(batches) == [1, 2]
    assert (batches.in_flight, batches.unsent) == (2, 2)
    batches.acknowledged(1)
    assert sent(batches) == [3]


def test_no_more_bytes_are_in_flight_than_allowed() -> None:
    batches = window(60, 40, 1, max_bytes=100)
    assert sent(batches) == [1, 2]
    batches.acknowledged(1)
    assert sent(batches) == [3]


def test_a_batch_larger_than_the_window_is_sent_alone() -> None:
    batches = window(1_000, 1, max_bytes=100)
    assert sent(batches) == [1]
    batches.acknowledged(1)
    assert sent(batches) == [2]


def test_what_the_socket_did_not_take_is_sent_next() -> None:
    batches = window(60, 60, max_bytes=100)
    assert batches.due() is not None
    batches.unsend()
    assert batches.in_flight == 0
    assert sent(batches) == [1]


def test_an_acknowledgement_forgets_everything_up_to_its_number() -> None:
    batches = window(1, 2, 3)
    sent(batches)
    assert [each.number for each in batches.acknowledged(2)] == [1, 2]
    assert (len(batches), batches.held_bytes, batches.in_flight) == (1, 3, 1)
    assert batches.first_unacknowledged == 3


@pytest.mark.parametrize("number", [0, 1, 2])
def test_an_older_acknowledgement_changes_nothing(number: int) -> None:
    batches = window(1, 2, 3)
    sent(batches)
    batches.acknowledged(2)
    assert batches.acknowledged(number) == []
    assert (len(batches), batches.held_bytes, batches.in_flight) == (1, 3, 1)


def test_an_acknowledgement_of_what_is_not_in_flight_again_frees_it_too() -> None:
    # After a reconnect everything is rewound, and the daemon's welcome says that it has some.
    batches = window(30, 30, 30)
    sent(batches)
    batches.rewind()
    batches.acknowledged(2)
    assert (batches.in_flight, batches.unsent, batches.held_bytes) == (0, 1, 30)
    assert sent(batches) == [3]


def test_an_acknowledgement_from_the_future_frees_only_what_there_is() -> None:
    batches = window(1, 2)
    sent(batches)
    assert len(batches.acknowledged(99)) == 2
    assert (batches.held_bytes, batches.first_unacknowledged) == (0, 3)
    assert batches.push("the next", 1) == 3


def test_after_a_rewind_everything_that_is_held_is_sent_again_in_order() -> None:
    batches = window(30, 30, 30)
    sent(batches)
    batches.acknowledged(1)
    batches.rewind()
    assert sent(batches) == [2, 3]


def test_the_first_unacknowledged_number_of_an_empty_window_is_the_next_one() -> None:
    batches = window()
    assert batches.first_unacknowledged == 1
    batches.push("first", 1)
    sent(batches)
    batches.acknowledged(1)
    assert batches.first_unacknowledged == 2


@pytest.mark.parametrize(
    ("number", "verdict"),
    [
        (1, Verdict.DUPLICATE),
        (4, Verdict.DUPLICATE),
        (5, Verdict.DUPLICATE),
        (6, Verdict.NEXT),
        (7, Verdict.GAP),
        (1 << 62, Verdict.GAP),
    ],
)
def test_only_the_number_after_the_last_one_is_accepted(number: int, verdict: Verdict) -> None:
    received = ReceiveWindow(5)
    assert received.judge(number) is verdict
    if verdict is Verdict.NEXT:
        received.accept(number)
        assert received.last == number
    else:
        with pytest.raises(ValueError, match=f"batch {number} does not follow batch 5"):
            received.accept(number)
        assert received.last == 5


@pytest.mark.parametrize(
    ("first_held", "lost", "last"),
    [(1, 0, 5), (5, 0, 5), (6, 0, 5), (7, 1, 6), (106, 100, 105)],
)
def test_batches_that_the_client_no_longer_holds_count_as_lost(
    first_held: int, lost: int, last: int
) -> None:
    received = ReceiveWindow(5)
    assert received.reopened(first_held) == lost
    assert received.last == last


def test_what_is_not_in_flight_is_handed_back_as_if_it_had_not_been_pushed() -> None:
    window: SendWindow[str] = SendWindow(100, 2)
    for batch in "abcd":
        window.push(batch, 10)
    assert window.due() and window.due()
    assert [(each.number, each.batch) for each in window.take_back()] == [(3, "c"), (4, "d")]
    assert (len(window), window.held_bytes, window.unsent) == (2, 20, 0)
    assert window.push("e", 1) == 3
    assert [each.batch for each in window.held()] == ["a", "b", "e"]


def test_numbers_may_begin_anywhere_while_nothing_is_held() -> None:
    window: SendWindow[str] = SendWindow(100, 2)
    window.begin_at(7)
    assert window.first_unacknowledged == 7
    assert window.push("a", 1) == 7
    with pytest.raises(ValueError, match="batch 9 does not follow batch 7"):
        window.begin_at(9)
