"""`across` of what is no number: which records it may be said of, and which rank's are sent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from ranktap import Tap
from ranktap_wire.records import Across
from tests.support.taps import logged, refused, sent_blob
from tests.support.watching import Make, silent_taps
from tests.unit.test_tap_arguments_arrays import LOGGING as ARRAYS

PIXELS = np.zeros((3, 4, 5), np.uint8)


def log_figure(tap: Tap, **named: Any) -> None:
    from matplotlib.figure import Figure

    tap.figure("t", Figure(), **named)


PICTURES: dict[str, Callable[..., None]] = {
    "image": lambda tap, **named: tap.image("t", PIXELS, **named),
    "images": lambda tap, **named: tap.images("t", PIXELS[None], **named),
    "image_grid": lambda tap, **named: tap.image_grid("t", PIXELS, **named),
    "figure": log_figure,
}
OTHERS: dict[str, Callable[..., None]] = ARRAYS | {
    "text": lambda tap, **named: tap.text("t", "words", **named),
    "image_with_boxes": lambda tap, **named: tap.image_with_boxes(
        "t", PIXELS, [[0, 0, 1, 1]], **named
    ),
    "video": lambda tap, **named: tap.video("t", PIXELS[None, None], **named),
}


@pytest.fixture
def make() -> Iterator[Make]:
    with silent_taps() as make:
        yield make


@pytest.mark.parametrize("method", [*PICTURES, *OTHERS])
def test_the_policy_that_is_said_travels_and_each_is_the_usual_one(make: Make, method: str) -> None:
    tap = make(world_size=2)
    log = (PICTURES | OTHERS)[method]
    log(tap)
    assert sent_blob(tap).across is Across.EACH
    allowed = ["each", "rank0"] + ["tile"] * (method in PICTURES)
    for across in allowed:
        log(tap, across=across)
        assert sent_blob(tap).across.name.lower() == across


@pytest.mark.parametrize("method", [*PICTURES, *OTHERS])
def test_of_rank_0_alone_the_other_ranks_send_nothing(make: Make, method: str) -> None:
    tap = make(rank=1, world_size=2)
    (PICTURES | OTHERS)[method](tap, across="rank0")
    assert logged(tap) == 0


@pytest.mark.parametrize("method", [*PICTURES, *OTHERS])
@pytest.mark.parametrize("across", ["merge", "mean", "Each", "", None, 6, Across.EACH])
def test_another_policy_is_refused(make: Make, method: str, across: Any) -> None:
    with refused("across"):
        (PICTURES | OTHERS)[method](make(), across=across)


@pytest.mark.parametrize("method", OTHERS)
def test_what_is_no_picture_is_not_tiled(make: Make, method: str) -> None:
    with refused("across"):
        OTHERS[method](make(), across="tile")


@pytest.mark.parametrize("close", [True, False])
def test_a_figure_that_does_not_count_is_closed_all_the_same(make: Make, close: bool) -> None:
    from matplotlib import pyplot

    tap = make(rank=1, world_size=2)
    figure = pyplot.figure()
    tap.figure("t", figure, across="rank0", close=close)
    assert pyplot.fignum_exists(figure.number) is not close
    pyplot.close(figure)
