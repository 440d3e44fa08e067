"""Several ranks' pictures in one: their pixels, where they stand, and what is above them."""

from __future__ import annotations

import io
import logging
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ranktap_wire.records import Across, Blob, Kind
from ranktapd.entries import SessionGone
from ranktapd.fold import Fold
from ranktapd.render.tiles import tile
from tests.unit.test_fold import Journal, begun, events

STRIP, GAP = 11, 2
RANDOM = np.random.default_rng(0)

LETTERS = """
..................#.............#..
..................#............##..
#.##...###..#.##..#..#..........#..
##........#.##..#.#.#...........#..
#......####.#...#.##............#..
#.....#...#.#...#.#.#...........#..
#......####.#...#.#..#.........###.
"""


def picture(height: int = 20, width: int = 60, channels: int = 3) -> NDArray[np.uint8]:
    return RANDOM.integers(0, 256, (height, width, channels), np.uint8)


def test_pictures_stand_in_rank_order_in_a_square_with_a_strip_above_each() -> None:
    pictures = {rank: picture() for rank in (3, 0, 12, 1)}
    drawn = tile(pictures)
    assert drawn.shape == (2 * (STRIP + 20) + GAP, 2 * 60 + GAP, 3)
    for index, rank in enumerate((0, 1, 3, 12)):
        row, column = divmod(index, 2)
        top, left = row * (STRIP + 20 + GAP) + STRIP, column * (60 + GAP)
        np.testing.assert_array_equal(drawn[top : top + 20, left : left + 60], pictures[rank])
    assert (drawn[:, 60 : 60 + GAP] == 255).all(), "between two pictures it is white"


@pytest.mark.parametrize(
    ("count", "columns", "rows"), [(1, 1, 1), (2, 2, 1), (3, 2, 2), (5, 3, 2), (8, 3, 3), (9, 3, 3)]
)
def test_the_grid_is_as_near_to_a_square_as_can_be(count: int, columns: int, rows: int) -> None:
    drawn = tile(dict.fromkeys(range(count), picture()))
    assert drawn.shape[:2] == (rows * (STRIP + 20 + GAP) - GAP, columns * (60 + GAP) - GAP)


def test_the_strip_says_whose_picture_it_is() -> None:
    ink = tile({1: picture()})[:STRIP, :, 0] == 0
    assert not ink[:2].any() and not ink[-2:].any()
    drawn = ["".join(".#"[int(dot)] for dot in row[2:37]) for row in ink[2:-2]]
    assert drawn == LETTERS.split()


def test_every_digit_is_drawn_and_looks_unlike_the_others() -> None:
    strips = {
        digit: tile({digit: picture()})[:STRIP, 2 + 5 * 6 : 2 + 5 * 6 + 5].tobytes()
        for digit in range(10)
    }
    assert len(set(strips.values())) == 10


def test_letters_grow_with_the_pictures() -> None:
    assert tile({0: picture(30, 600)}).shape[:2] == (3 * STRIP + 30, 600)


def test_pictures_may_differ_in_size_and_a_narrow_one_has_room_for_its_letters() -> None:
    small, large = picture(5, 7), picture(9, 8)
    drawn = tile({0: small, 1: large})
    width = 6 * 6 - 1 + 4
    assert drawn.shape[:2] == (STRIP + 9, 2 * width + GAP)
    np.testing.assert_array_equal(drawn[STRIP : STRIP + 5, :7], small)
    assert (drawn[STRIP + 5 :, :width] == 255).all()
    np.testing.assert_array_equal(drawn[STRIP:, width + GAP : width + GAP + 8], large)


def test_grey_becomes_colour_and_alpha_stays() -> None:
    grey, clear, both = picture(channels=1), picture(channels=4), picture(channels=2)
    assert tile({0: grey}).shape[2] == 3
    drawn = tile({0: grey, 1: clear, 2: both})
    assert drawn.shape[2] == 4
    np.testing.assert_array_equal(drawn[STRIP : STRIP + 20, :60, :3], grey.repeat(3, axis=2))
    assert (drawn[STRIP : STRIP + 20, :60, 3] == 255).all()
    np.testing.assert_array_equal(drawn[STRIP : STRIP + 20, 62:], clear)
    np.testing.assert_array_equal(drawn[-20:, :60], both[..., [0, 0, 0, 1]])


def test_a_picture_that_nobody_could_show_is_an_error() -> None:
    with pytest.raises(ValueError, match="the pictures of 2 ranks would be 100044 x 200002 pixels"):
        tile({0: picture(100_000, 1), 1: picture(1, 100_000)})


# -- through the fold ---------------------------------------------------------------------


def logged(rank: int, step: int = 3, kind: Kind = Kind.IMAGE) -> tuple[Blob, NDArray[np.uint8]]:
    """A record of rank's, and the pixels that it shows."""
    pixels = np.full((12, 50, 3), 10 * (rank + 1), np.uint8)
    array = pixels.transpose(2, 0, 1)
    parameters = {"dataformats": "CHW"}
    if kind is Kind.IMAGE_GRID:
        array = array.astype(np.float32) / np.float32(255)
        parameters = {
            "nrow": 8, "padding": 2, "normalize": False, "value_range": None, "scale_each": False,
            "pad_value": 0.0,
        }  # fmt: skip
    array = np.ascontiguousarray(array)
    shape, dtype = array.shape, array.dtype.name
    return Blob(kind, "picture", step, 1.0 + rank, Across.TILE, dtype, shape, parameters, array), (
        pixels
    )


def shown(journal: Journal) -> list[tuple[str, int, NDArray[np.uint8]]]:
    """Tag, step and pixels of all pictures."""
    return [
        (
            value.tag,
            event.step,
            np.asarray(Image.open(io.BytesIO(value.image.encoded_image_string))),
        )
        for event in events(journal.output)
        for value in event.summary.value
        if value.HasField("image")
    ]


@pytest.mark.parametrize("kind", [Kind.IMAGE, Kind.IMAGE_GRID])
def test_the_ranks_pictures_become_one_when_all_are_there(kind: Kind) -> None:
    journal = begun(3)
    for rank in (2, 0):
        journal.blobs(rank, 1, logged(rank, kind=kind)[0])
        assert shown(journal) == []
    journal.blobs(1, 1, logged(1, kind=kind)[0])
    ((tag, step, pixels),) = shown(journal)
    assert (tag, step) == ("picture", 3)
    values = {rank: np.rint(logged(rank)[1]).astype(np.uint8) for rank in range(3)}
    assert pixels.shape == tile(values).shape
    assert abs(pixels.astype(int) - tile(values)).max() <= 1, "floats are cut off"


def test_a_rank_that_is_gone_leaves_no_gap() -> None:
    journal = begun(3)
    for rank in (0, 2):
        journal.blobs(rank, 1, logged(rank)[0])
    journal.say(SessionGone((1).to_bytes(16, "little"), final=True))
    ((_, _, pixels),) = shown(journal)
    np.testing.assert_array_equal(pixels, tile({rank: logged(rank)[1] for rank in (0, 2)}))


def test_a_process_that_is_alone_has_its_picture_as_it_is() -> None:
    journal = begun(1)
    journal.blobs(0, 1, logged(0)[0])
    ((tag, _, pixels),) = shown(journal)
    assert tag == "picture"
    np.testing.assert_array_equal(pixels, logged(0)[1])


def test_pictures_that_make_no_one_are_left_out_and_told(caplog: pytest.LogCaptureFixture) -> None:
    journal = begun(2)
    tall = Blob(
        Kind.IMAGE, "picture", 3, 1.0, Across.TILE, "uint8", (1, 100_000, 1),
        {"dataformats": "CHW"}, bytes(100_000),
    )  # fmt: skip
    wide = Blob(
        Kind.IMAGE, "picture", 3, 1.0, Across.TILE, "uint8", (1, 1, 100_000),
        {"dataformats": "CHW"}, bytes(100_000),
    )  # fmt: skip
    journal.blobs(0, 1, tall)
    with caplog.at_level(logging.WARNING, "ranktapd"):
        journal.blobs(1, 1, wide)
    assert shown(journal) == []
    assert "'picture' cannot be drawn at step 3: the pictures of 2 ranks" in caplog.text


def test_a_fold_that_stops_among_the_ranks_pictures_goes_on_with_the_same_bytes() -> None:
    whole, first = begun(2), begun(2)
    for journal in (whole, first):
        journal.blobs(0, 1, logged(0)[0])
    second = Journal(Fold.restore(first.fold.state(), ThreadPoolExecutor(1)))
    second.sequence = first.sequence
    for journal in (whole, second):
        journal.blobs(1, 1, logged(1)[0])
    assert whole.output == first.output + second.output
    assert len(shown(second)) == 1
