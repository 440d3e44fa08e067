"""Every wrong argument raises at the call, and names itself, what was given, what is allowed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ranktap
from ranktap import Tap
from ranktap_wire import limits
from tests.support.taps import logged, refused
from tests.support.watching import silent_taps

Make = Callable[..., Tap]
PICTURE = np.zeros((3, 4, 4))


@pytest.fixture
def make() -> Iterator[Make]:
    """Taps as `init` makes them, whose daemon never comes."""
    made: list[Tap] = []

    def make(run: Any = "run", **named: Any) -> Tap:
        named = {"endpoint": "ipc:///tmp/nobody-listens-here", "rank": 0, "world_size": 1} | named
        tap = ranktap.init(run, **named)
        made.append(tap)
        return tap

    yield make
    for tap in made:
        tap.close(timeout=0)


@pytest.fixture
def tap_of() -> Iterator[Callable[[int, int], Tap]]:
    """Taps of a rank and a world size, whose records can be counted where they lie."""
    with silent_taps() as make:
        yield make


@pytest.fixture
def tap(tap_of: Callable[[int, int], Tap]) -> Tap:
    return tap_of(0, 1)


TOO_LONG = "x" * (limits.TAG_BYTES + 1)
WRONG_TAGS = [
    (5, TypeError), (None, TypeError), (b"loss", TypeError), ("", ValueError),
    (TOO_LONG, ValueError), ("é" * (limits.TAG_BYTES // 2 + 1), ValueError),
    ("a\nb", ValueError), ("a\x00", ValueError), ("\x1b[2J", ValueError), ("a\x85", ValueError),
    ("\ud800", ValueError),
]  # fmt: skip
WRONG_STEPS = [
    (1.0, TypeError), ("1", TypeError), (True, TypeError), (np.bool_(True), TypeError),
    (np.float64(2), TypeError), (np.array([1, 2]), TypeError), (torch.tensor(1.5), TypeError),
    (torch.tensor([1, 2]), TypeError), (1 << 63, ValueError), (-(1 << 63) - 1, ValueError),
]  # fmt: skip
WRONG_WALLTIMES = [
    (math.nan, ValueError), (math.inf, ValueError), (-math.inf, ValueError),
    (10**400, ValueError), ("now", TypeError), (True, TypeError), (1j, TypeError),
    (np.complex128(1), TypeError), (np.float32("nan"), ValueError),
]  # fmt: skip
LOGGING: dict[str, Callable[..., None]] = {
    "scalar": lambda tap, tag="t", **named: tap.scalar(tag, 1.0, **named),
    "histogram": lambda tap, tag="t", **named: tap.histogram(tag, [1.0, 2.0], **named),
    "image": lambda tap, tag="t", **named: tap.image(tag, PICTURE, **named),
    "images": lambda tap, tag="t", **named: tap.images(tag, PICTURE[None], **named),
    "image_grid": lambda tap, tag="t", **named: tap.image_grid(tag, PICTURE[None], **named),
    "text": lambda tap, tag="t", **named: tap.text(tag, "words", **named),
}


def ids(value: object) -> str:
    return value.__name__ if isinstance(value, type) else re.sub(r"\W+", "_", repr(value))[:20]


# -- what all methods take ----------------------------------------------------------------


@pytest.mark.parametrize("method", LOGGING)
def test_the_right_arguments_are_logged(tap: Tap, method: str) -> None:
    LOGGING[method](tap, tag="a/b", step=np.int64(3), walltime=np.float32(2))
    LOGGING[method](tap, tag="é" * (limits.TAG_BYTES // 2), step=-(1 << 63))
    LOGGING[method](tap, step=torch.tensor(7), walltime=0)
    assert logged(tap) == 3


@pytest.mark.parametrize("method", LOGGING)
@pytest.mark.parametrize(("tag", "error"), WRONG_TAGS, ids=ids)
def test_a_wrong_tag_is_refused(tap: Tap, method: str, tag: Any, error: type[Exception]) -> None:
    with refused("tag", error):
        LOGGING[method](tap, tag=tag)
    assert logged(tap) == 0


@pytest.mark.parametrize("method", LOGGING)
@pytest.mark.parametrize(("step", "error"), WRONG_STEPS, ids=ids)
@pytest.mark.parametrize("is_known", [False, True], ids=["first", "known"])
def test_a_wrong_step_is_refused(
    tap: Tap, method: str, step: Any, error: type[Exception], is_known: bool
) -> None:
    if is_known:
        LOGGING[method](tap)
    before = logged(tap)
    with refused("step", error):
        LOGGING[method](tap, step=step)
    assert logged(tap) == before


@pytest.mark.parametrize("method", LOGGING)
@pytest.mark.parametrize(("walltime", "error"), WRONG_WALLTIMES, ids=ids)
@pytest.mark.parametrize("is_known", [False, True], ids=["first", "known"])
def test_a_wrong_walltime_is_refused(
    tap: Tap, method: str, walltime: Any, error: type[Exception], is_known: bool
) -> None:
    if is_known:
        LOGGING[method](tap)
    before = logged(tap)
    with refused("walltime", error):
        LOGGING[method](tap, walltime=walltime)
    assert logged(tap) == before


@pytest.mark.parametrize(("step", "error"), WRONG_STEPS, ids=ids)
def test_a_wrong_current_step_is_refused_and_the_former_stays(
    tap: Tap, step: Any, error: type[Exception]
) -> None:
    tap.step(5)
    with refused("n", error):
        tap.step(step)
    tap.scalar("loss", 1.0)
    assert tap._outbox.rows[1] == 5


@pytest.mark.parametrize("method", ["scalar", "histogram"])
@pytest.mark.parametrize("across", ["average", "MEAN", "", None, 0, ["mean"]], ids=ids)
@pytest.mark.parametrize("is_known", [False, True], ids=["first", "known"])
def test_an_unknown_policy_is_refused(tap: Tap, method: str, across: Any, is_known: bool) -> None:
    if is_known:
        LOGGING[method](tap)
    with refused("across"):
        LOGGING[method](tap, across=across)


def test_a_policy_of_scalars_is_none_of_histograms_and_the_other_way_round(tap: Tap) -> None:
    with refused("across"):
        tap.histogram("h", [1.0], across="mean")
    with refused("across"):
        tap.scalar("s", 1.0, across="merge")


SHOWN_AS = {"images": "image", "image_grid": "image"}


@pytest.mark.parametrize("first", LOGGING)
@pytest.mark.parametrize("second", LOGGING)
def test_a_tag_keeps_what_it_is_to_tensorboard(tap: Tap, first: str, second: str) -> None:
    LOGGING[first](tap)
    # TensorBoard has texts under tags of their own.
    if SHOWN_AS.get(first, first) == SHOWN_AS.get(second, second) or "text" in (first, second):
        LOGGING[second](tap)
        assert logged(tap) == 2
        return
    with pytest.raises(ValueError, match=r"^tag: 't' was logged as \w+.* before, now as \w+"):
        LOGGING[second](tap)
    assert logged(tap) == 1


def test_a_scalars_tag_keeps_its_policy(tap: Tap) -> None:
    tap.scalar("loss", 1.0)
    for log in (tap.scalar, lambda tag, value, **named: tap.scalars({tag: value}, **named)):
        with pytest.raises(ValueError, match=r"^tag: 'loss' .* across='mean' .* across='sum'"):
            log("loss", 1.0, across="sum")


@pytest.mark.parametrize("method", LOGGING)
def test_a_call_that_was_refused_says_nothing_about_its_tag(tap: Tap, method: str) -> None:
    with refused("walltime"):
        LOGGING[method](tap, walltime=math.nan)
    for other in LOGGING:
        if other != method:
            LOGGING[other](tap)
            break
    assert logged(tap) == 1


def test_wrong_arguments_are_refused_in_ranks_whose_records_do_not_count(
    tap_of: Callable[[int, int], Tap],
) -> None:
    tap = tap_of(1, 2)
    with refused("value", TypeError):
        tap.scalar("loss", "1", across="rank0")
    with refused("step", TypeError):
        tap.scalar("loss", 1.0, 1.5, across="rank0")
    with refused("tag", TypeError):
        tap.scalars({1: 1.0}, across="rank0")
    with refused("values"):
        tap.histogram("h", [], across="rank0")
    with refused("tag"):
        tap.histogram("", [1.0], across="rank0")
    tap.scalar("loss", 1.0, across="rank0")
    tap.histogram("h", [1.0], across="rank0")
    assert logged(tap) == 0


def test_wrong_arguments_are_refused_by_a_closed_tap_too(tap: Tap) -> None:
    tap.close(timeout=0)
    with refused("tag"):
        tap.scalar("", 1.0)
    with refused("value", TypeError):
        tap.scalar("loss", None)
    with refused("dataformats"):
        tap.image("i", PICTURE, dataformats="XYZ")


# -- scalars ------------------------------------------------------------------------------

NUMBERS = [
    1, 1.5, True, np.float32(1.5), np.int8(-3), np.bool_(True), np.array(2.5), np.array([[2.5]]),
    torch.tensor(1.5), torch.tensor([[3]]), torch.tensor(1.5, dtype=torch.bfloat16),
    torch.tensor(2.0, requires_grad=True), torch.tensor(True),
    math.nan, math.inf, -math.inf, torch.tensor(math.nan), np.float32("inf"),
]  # fmt: skip
NO_NUMBERS = [
    None, "1.0", b"1", np.str_("1"), [1.0], {}, 1j, np.complex64(1), object(), 10**400,
    np.array([1.0, 2.0]), np.array("1.0"), np.array([]), torch.zeros(2), torch.zeros(0),
    torch.tensor(1j), torch.empty((), device="meta"),
]  # fmt: skip


@pytest.mark.parametrize("value", NUMBERS, ids=ids)
def test_a_number_of_any_library_is_logged_as_it_is_also_when_not_finite(
    tap: Tap, value: Any
) -> None:
    tap.scalar("a", value, 1)
    tap.scalars({"b": value}, 1)
    rows = tap._outbox.rows
    expected = float(value.item() if hasattr(value, "item") else value)
    np.testing.assert_array_equal([rows[3], rows[7]], [expected] * 2)


@pytest.mark.parametrize("value", NO_NUMBERS, ids=ids)
@pytest.mark.parametrize("is_known", [False, True], ids=["first", "known"])
def test_what_is_no_number_is_refused(tap: Tap, value: Any, is_known: bool) -> None:
    if is_known:
        tap.scalar("loss", 1.0)
        tap.scalars({"loss": 1.0}, prefix="train")
    before = logged(tap)
    with refused("value", TypeError):
        tap.scalar("loss", value)
    with refused("values['loss']", TypeError):
        tap.scalars({"loss": value}, prefix="train")
    assert logged(tap) == before


@pytest.mark.parametrize("values", [None, 1.0, [("a", 1.0)], "abc", {"a"}], ids=ids)
@pytest.mark.parametrize("is_known", [False, True], ids=["first", "known"])
def test_values_that_are_no_mapping_are_refused(tap: Tap, values: Any, is_known: bool) -> None:
    if is_known:
        tap.scalars({"a": 1.0})
    with refused("values", TypeError):
        tap.scalars(values)


@pytest.mark.parametrize("prefix", [None, 5, b"train", ["train"]], ids=ids)
def test_a_prefix_that_is_no_string_is_refused(tap: Tap, prefix: Any) -> None:
    with refused("prefix", TypeError):
        tap.scalars({"loss": 1.0}, prefix=prefix)


@pytest.mark.parametrize("prefix", [TOO_LONG, "a\nb"], ids=ids)
def test_a_prefix_that_makes_a_wrong_tag_is_refused(tap: Tap, prefix: str) -> None:
    with refused("tag"):
        tap.scalars({"loss": 1.0}, prefix=prefix)


@pytest.mark.parametrize(
    ("wrong", "argument", "error"),
    [
        ({"c": "text"}, "values['c']", TypeError),
        ({"": 1.0}, "tag", ValueError),
        ({5: 1.0}, "tag", TypeError),
        ({"a\n": 1.0}, "tag", ValueError),
    ],
    ids=ids,
)
@pytest.mark.parametrize("is_known", [False, True], ids=["first", "known"])
def test_of_several_scalars_all_are_logged_or_none(
    tap: Tap, wrong: dict[Any, Any], argument: str, error: type[Exception], is_known: bool
) -> None:
    if is_known:
        tap.scalars({"a": 1.0, "b": 2.0, "c": 3.0})
    before = logged(tap)
    with refused(argument, error):
        tap.scalars({"a": 1.0, "b": 2.0} | wrong)
    with refused("step", TypeError):
        tap.scalars({"a": 1.0, "b": 2.0}, 1.5)
    assert logged(tap) == before
    if not is_known:
        # Nothing is known of the tags either.
        tap.histogram("a", [1.0])
        tap.text("b", "words")


def test_of_several_scalars_none_is_logged_when_one_tag_is_of_another_kind(tap: Tap) -> None:
    tap.histogram("values", [1.0])
    with pytest.raises(ValueError, match=r"^tag: 'values' was logged as histogram"):
        tap.scalars({"loss": 1.0, "values": 2.0})
    assert logged(tap) == 1
    tap.histogram("loss", [1.0])


def test_no_scalars_at_all_are_nothing_but_their_arguments_are_checked(tap: Tap) -> None:
    tap.scalars({})
    with refused("across"):
        tap.scalars({}, across="none")
    with refused("step", TypeError):
        tap.scalars({}, "1")
    assert logged(tap) == 0


def test_a_prefix_stands_before_each_tag_and_is_the_same_tag_as_without(tap: Tap) -> None:
    tap.scalars({"a": 1.0, "b": 2.0}, 1, prefix="train")
    tap.scalar("train/a", 3.0, 2)
    tags = [tap._outbox.tags[index] for index in tap._outbox.rows[0::4]]
    assert tags == ["train/a", "train/b", "train/a"]
    assert len(tap._outbox.tags) == 2


# -- histograms ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bins",
    ["tensorflow", "auto", "fd", 1, 64, np.int64(5), [0, 1, 2.5], np.array([-1.0, 1.0]),
     torch.tensor([0.0, 1.0])],
    ids=ids,
)  # fmt: skip
def test_bins_of_every_form_are_taken(tap: Tap, bins: Any) -> None:
    tap.histogram("h", np.arange(10.0), bins=bins, max_bins=np.int64(3))
    assert logged(tap) == 1


@pytest.mark.parametrize(
    ("bins", "error"),
    [
        ("many", ValueError), (0, ValueError), (-1, ValueError), (10**6, ValueError),
        (True, ValueError), (1.5, ValueError), (None, ValueError), ([1.0], ValueError),
        ([], ValueError), ([1.0, 1.0], ValueError), ([2.0, 1.0], ValueError),
        ([0.0, math.nan], ValueError), ([0.0, math.inf], ValueError),
        (np.zeros((2, 2)), ValueError), (["a", "b"], TypeError), ({}, TypeError),
        (torch.ones(2, requires_grad=True), TypeError),
    ],
    ids=ids,
)  # fmt: skip
def test_wrong_bins_are_refused(tap: Tap, bins: Any, error: type[Exception]) -> None:
    with refused("bins", error):
        tap.histogram("h", [1.0], bins=bins)
    assert logged(tap) == 0


@pytest.mark.parametrize(
    ("max_bins", "error"),
    [(0, ValueError), (1.5, TypeError), (True, TypeError), (10**7, ValueError)],
)
def test_a_wrong_number_of_drawn_bins_is_refused(
    tap: Tap, max_bins: Any, error: type[Exception]
) -> None:
    with refused("max_bins", error):
        tap.histogram("h", [1.0], max_bins=max_bins)


@pytest.mark.parametrize("bins", ["auto", 30], ids=ids)
def test_bins_that_depend_on_the_data_cannot_be_merged(
    tap_of: Callable[[int, int], Tap], bins: Any
) -> None:
    tap = tap_of(0, 2)
    with pytest.raises(ValueError, match=rf"^bins: {bins!r} makes other edges in each rank"):
        tap.histogram("h", [1.0], bins=bins)
    tap.histogram("h", [1.0], bins=bins, across="each")
    tap.histogram("same edges", [1.0], bins=[0.0, 1.0, 2.0])
    assert logged(tap) == 2


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ([], ValueError), (np.zeros((3, 0)), ValueError), (torch.zeros(0), ValueError),
        (["a"], TypeError), (None, TypeError), ([1j], TypeError), (object(), TypeError),
        (torch.zeros(2, dtype=torch.complex64), TypeError), (torch.eye(2).to_sparse(), TypeError),
        (torch.empty(2, device="meta"), TypeError),
    ],
    ids=ids,
)  # fmt: skip
def test_wrong_values_of_a_histogram_are_refused(
    tap: Tap, values: Any, error: type[Exception]
) -> None:
    with refused("values", error):
        tap.histogram("h", values)
    assert logged(tap) == 0


def test_ragged_values_are_refused(tap: Tap) -> None:
    with pytest.raises(TypeError, match=r"^values: expected an array of numbers: "):
        tap.histogram("h", [[1.0], [1.0, 2.0]])


def test_a_histogram_of_values_in_any_number_of_dimensions_travels_flat(tap: Tap) -> None:
    tap.histogram("h", np.zeros((1, 2) * 5))
    tap.histogram("h", 1.0)
    tap.histogram("h", [math.nan, math.inf])
    sealed = tap._outbox.take()
    assert sealed is not None
    assert [blob.shape for blob in sealed.batch.blobs] == [(32,), (1,), (2,)]


# -- pictures -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "dataformats"),
    [
        ((3, 4, 5), "CHW"), ((4, 5, 1), "HWC"), ((4, 5), "HW"), ((4, 5), "wh"),
        ((4, 4, 5), "CHW"), ((2, 4, 5), "CHW"), ((7, 3, 4, 5), "NCHW"),
    ],
    ids=ids,
)  # fmt: skip
def test_an_image_of_every_form_is_taken(
    tap: Tap, shape: tuple[int, ...], dataformats: str
) -> None:
    for dtype in (np.uint8, np.float16, bool, np.int64):
        tap.image("i", np.zeros(shape, dtype), dataformats=dataformats)
    assert logged(tap) == 4


@pytest.mark.parametrize(
    ("image", "dataformats", "argument", "error"),
    [
        (np.zeros((4, 5)), "CHW", "image", ValueError),
        (np.zeros((1, 3, 4, 5)), "CHW", "image", ValueError),
        (np.zeros((5, 4, 4)), "CHW", "image", ValueError),
        (np.zeros((3, 0, 4)), "CHW", "image", ValueError),
        (np.zeros((2, 2, 4, 5)), "NCHW", "image", ValueError),
        (np.zeros(4), "CHW", "image", ValueError),
        (np.broadcast_to(np.uint8(0), (1, 10_000, 10_000)), "CHW", "image", ValueError),
        (np.zeros((3, 4, 4)), "CHWX", "dataformats", ValueError),
        (np.zeros((3, 4, 4)), "CHH", "dataformats", ValueError),
        (np.zeros((3, 4, 4)), "", "dataformats", ValueError),
        (np.zeros((3, 4, 4)), 3, "dataformats", TypeError),
        (np.zeros((3, 4, 4)), None, "dataformats", TypeError),
        (np.zeros((3, 4, 4), complex), "CHW", "image", TypeError),
        (torch.eye(4).to_sparse(), "HW", "image", TypeError),
        ("picture.png", "CHW", "image", TypeError),
        (None, "CHW", "image", TypeError),
    ],
    ids=ids,
)
def test_a_wrong_image_is_refused(
    tap: Tap, image: Any, dataformats: Any, argument: str, error: type[Exception]
) -> None:
    with refused(argument, error):
        tap.image("i", image, dataformats=dataformats)
    assert logged(tap) == 0


@pytest.mark.parametrize(
    ("images", "dataformats", "argument", "error"),
    [
        (np.zeros((3, 4, 5)), "NCHW", "images", ValueError),
        (np.zeros((0, 3, 4, 5)), "NCHW", "images", ValueError),
        (np.zeros((2, 4, 4, 5)), "NCHW", "images", ValueError),
        (np.zeros((3, 4, 5)), "CHW", "dataformats", ValueError),
        (np.zeros((2, 3, 4, 5)), ["N"], "dataformats", TypeError),
        (["a"], "NCHW", "images", TypeError),
        (torch.empty(2, 3, 4, 5, device="meta"), "NCHW", "images", TypeError),
    ],
    ids=ids,
)
def test_wrong_images_are_refused(
    tap: Tap, images: Any, dataformats: Any, argument: str, error: type[Exception]
) -> None:
    with refused(argument, error):
        tap.images("i", images, dataformats=dataformats)
    assert logged(tap) == 0


@pytest.mark.parametrize("shape", [(5, 3, 4, 4), (5, 1, 4, 4), (3, 4, 4), (4, 4)], ids=ids)
def test_a_grid_of_every_form_is_taken(tap: Tap, shape: tuple[int, ...]) -> None:
    tap.image_grid(
        "g", np.zeros(shape, np.float32), nrow=np.int64(2), padding=0, normalize=np.bool_(True),
        value_range=(np.float32(0), 1), scale_each=True, pad_value=np.float64(0.5),
    )  # fmt: skip
    sealed = tap._outbox.take()
    assert sealed is not None
    assert sealed.batch.blobs[0].parameters == {
        "nrow": 2, "padding": 0, "normalize": True, "value_range": [0.0, 1.0],
        "scale_each": True, "pad_value": 0.5,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("argument", "value", "error"),
    [
        ("nrow", 0, ValueError), ("nrow", -1, ValueError), ("nrow", 2.0, TypeError),
        ("nrow", True, TypeError), ("nrow", None, TypeError),
        ("padding", -1, ValueError), ("padding", 10**6, ValueError), ("padding", "2", TypeError),
        ("normalize", 1, TypeError), ("normalize", None, TypeError),
        ("scale_each", "yes", TypeError),
        ("value_range", 1.0, TypeError), ("value_range", (0.0,), TypeError),
        ("value_range", (0, 1, 2), TypeError), ("value_range", ("a", "b"), TypeError),
        ("value_range", (1.0, 0.0), ValueError), ("value_range", (0.0, math.nan), ValueError),
        ("value_range", (0, 10**400), ValueError), ("value_range", (0.0, 1e300), ValueError),
        ("pad_value", "0", TypeError), ("pad_value", math.inf, ValueError),
        ("pad_value", None, TypeError), ("pad_value", 1e300, ValueError),
    ],
    ids=ids,
)  # fmt: skip
def test_a_wrong_parameter_of_a_grid_is_refused(
    tap: Tap, argument: str, value: Any, error: type[Exception]
) -> None:
    with refused(argument, error):
        tap.image_grid("g", np.zeros((2, 3, 4, 4), np.float32), **{argument: value})
    assert logged(tap) == 0


@pytest.mark.parametrize(
    ("images", "error"),
    [
        (np.zeros(4), ValueError), (np.zeros((1, 1, 3, 4, 4)), ValueError),
        (np.zeros((2, 4, 4, 4)), ValueError), (np.zeros((0, 3, 4, 4)), ValueError),
        (np.zeros((2, 3, 4, 4), complex), TypeError), ([["a"]], TypeError),
        (np.broadcast_to(np.uint8(0), (100, 1, 1_000, 1_000)), ValueError),
    ],
    ids=ids,
)  # fmt: skip
def test_wrong_images_of_a_grid_are_refused(tap: Tap, images: Any, error: type[Exception]) -> None:
    with refused("images", error):
        tap.image_grid("g", images)
    assert logged(tap) == 0


def test_what_an_integer_grid_cannot_hold_is_refused(tap: Tap) -> None:
    images = np.zeros((2, 3, 4, 4), np.uint8)
    with refused("normalize"):
        tap.image_grid("g", images, normalize=True)
    with refused("pad_value"):
        tap.image_grid("g", images, pad_value=256)
    tap.image_grid("g", images, pad_value=255)
    assert logged(tap) == 1


def test_a_record_over_the_limit_is_refused_before_it_is_copied(tap: Tap) -> None:
    huge = np.broadcast_to(np.float64(0), (limits.RECORD_BYTES // 8 + 1,))
    with refused("values"):
        tap.histogram("h", huge)
    tap.histogram("h", huge[:10])
    assert logged(tap) == 1


# -- text ---------------------------------------------------------------------------------


def test_text_may_be_empty_and_hold_anything_but_lone_surrogates(tap: Tap) -> None:
    tap.text("note", "")
    tap.text("note", "a\n\x00\x1b é 𝄞")
    assert logged(tap) == 2
    with refused("text"):
        tap.text("note", "\ud800")
    for wrong in (None, 5, b"bytes", ["a"]):
        with refused("text", TypeError):
            tap.text("note", wrong)  # type: ignore[arg-type]
    assert logged(tap) == 2


# -- flush and close ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("timeout", "error"),
    [(None, TypeError), ("1", TypeError), (True, TypeError), (-1, ValueError),
     (math.nan, ValueError), (math.inf, ValueError)],
)  # fmt: skip
def test_a_wrong_timeout_is_refused(tap: Tap, timeout: Any, error: type[Exception]) -> None:
    for method in (tap.flush, tap.close):
        with refused("timeout", error):
            method(timeout)
    tap.scalar("loss", 1.0)
    assert logged(tap) == 1


# -- init ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("run", "error"),
    [
        ("/absolute", ValueError), ("..", ValueError), ("a/../b", ValueError), ("a//b", ValueError),
        ("a/", ValueError), (".hidden", ValueError), ("a/.b", ValueError), (" a", ValueError),
        ("a ", ValueError), ("a\nb", ValueError), ("a\x00", ValueError), ("a\\b", ValueError),
        ("x" * (limits.RUN_BYTES + 1), ValueError), ("/".join("a" * 17), ValueError),
        ("\ud800", ValueError), (5, TypeError), (b"run", TypeError), (Path("run"), TypeError),
    ],
    ids=ids,
)  # fmt: skip
def test_a_wrong_run_name_is_refused(make: Make, run: Any, error: type[Exception]) -> None:
    with refused("run", error):
        make(run)


@pytest.mark.parametrize("run", ["a", "a/b/c", "lr=0.1, é", "x" * limits.RUN_BYTES, "a b.c-d"])
def test_a_run_may_be_named_like_a_directory(make: Make, run: str) -> None:
    assert make(run).run == run


@pytest.mark.parametrize("comment", ["/../..", "\n", "/.x"], ids=ids)
def test_a_comment_that_makes_a_wrong_run_name_is_refused(make: Make, comment: str) -> None:
    with refused("run"):
        make("run", comment=comment)


@pytest.mark.parametrize(
    ("argument", "value", "error"),
    [
        ("comment", None, TypeError), ("comment", 5, TypeError),
        ("rank", 1, ValueError), ("rank", -1, ValueError), ("rank", 0.0, TypeError),
        ("rank", True, TypeError), ("rank", "0", TypeError),
        ("world_size", 1.0, TypeError), ("world_size", "4", TypeError),
        ("filename_suffix", "a/b", ValueError), ("filename_suffix", "\n", ValueError),
        ("filename_suffix", "x" * 65, ValueError), ("filename_suffix", None, TypeError),
        ("resume_step", 1.5, TypeError), ("resume_step", 1 << 63, ValueError),
        ("resume_step", True, TypeError),
        ("memory", 0, ValueError), ("memory", 1 << 19, ValueError), ("memory", 1e9, TypeError),
        ("memory", "1G", TypeError),
        ("spool", 5, TypeError), ("spool", b"spool", TypeError), ("spool", "a\0b", ValueError),
        ("endpoint", 5757, TypeError), ("endpoint", "localhost:5757", ValueError),
        ("endpoint", "tcp://localhost", ValueError), ("endpoint", "tcp://localhost:0", ValueError),
        ("endpoint", "tcp://localhost:65536", ValueError), ("endpoint", "tcp://:57", ValueError),
        ("endpoint", "tcp://log host:5757", ValueError), ("endpoint", "tcp://*:5757", ValueError),
        ("endpoint", "tcp://host:٣", ValueError), ("endpoint", "tcp://a/b:5757", ValueError),
        ("endpoint", "udp://host:5757", ValueError), ("endpoint", "ipc://", ValueError),
        ("endpoint", "ipc:///" + "x" * 107, ValueError),
    ],
    ids=ids,
)  # fmt: skip
def test_a_wrong_argument_of_init_is_refused(
    make: Make, argument: str, value: Any, error: type[Exception]
) -> None:
    with refused(argument, error):
        make(**{argument: value})


@pytest.mark.parametrize(("rank", "world_size"), [(4, 4), (0, 0), (0, -1), (0, 100_001)])
def test_a_rank_outside_its_world_is_refused(make: Make, rank: int, world_size: int) -> None:
    with refused("rank"):
        make(rank=rank, world_size=world_size)


@pytest.mark.parametrize(
    ("logdir", "error"), [(5, TypeError), (b"runs", TypeError), ("a\0b", ValueError)], ids=ids
)
def test_a_wrong_logdir_is_refused(make: Make, logdir: Any, error: type[Exception]) -> None:
    with refused("logdir", error):
        make(endpoint=None, logdir=logdir)


@pytest.mark.parametrize(
    "endpoint",
    ["tcp://127.0.0.1:1", "tcp://log-host.example.org:65535", "tcp://[::1]:5757", "ipc:///tmp/x"],
)
def test_every_form_of_an_endpoint_is_taken(make: Make, endpoint: str) -> None:
    make(endpoint=endpoint).scalar("loss", 1.0)


def test_a_launchers_malformed_variable_is_named(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "zero")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with refused("RANK"):
        make(rank=None, world_size=None)


def test_the_environment_is_checked_like_the_arguments(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANKTAP_ENDPOINT", "nowhere")
    with refused("endpoint"):
        make(endpoint=None)
    monkeypatch.setenv("RANKTAP_RUN", "../up")
    with refused("run"):
        make(None)


def test_without_any_daemon_to_be_found_the_error_says_the_three_ways(make: Make) -> None:
    with pytest.raises(LookupError, match=r"(?s)endpoint=.*RANKTAP_ENDPOINT.*logdir=.*service"):
        make(endpoint=None)


def test_ranks_given_by_hand_need_a_run_name_in_common(make: Make) -> None:
    # Each would make one of the time at which it asks.
    with pytest.raises(LookupError, match=r"(?s)^run: .*world size 2.*run=.*RANKTAP_RUN"):
        make(None, rank=1, world_size=2)
    assert make(None, rank=0, world_size=1).run
