"""Pictures with boxes, figures and videos: what a daemon reads of them, and what they refuse."""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.figure import Figure
from PIL import Image

from ranktap import Tap, drawing
from ranktap.disabled import DisabledTap
from ranktap_wire.records import Blob, Kind
from tests.support.taps import logged, refused, sent, sent_blob, slow_device
from tests.support.watching import silent_taps

PICTURE = np.linspace(0, 1, 60).reshape(3, 4, 5)
BOXES = [[0, 0, 2, 3], [1.5, 1, 4, 3]]


@pytest.fixture
def tap() -> Iterator[Tap]:
    with silent_taps() as make:
        yield make()


def frames_of(blob: Blob) -> np.ndarray[Any, Any]:
    """A GIF's frames, (T, H, W, 3)."""
    gif = Image.open(io.BytesIO(bytes(blob.data)))
    frames = []
    for number in range(gif.n_frames):
        gif.seek(number)
        frames.append(np.asarray(gif.convert("RGB")))
    return np.stack(frames)


# -- boxes --------------------------------------------------------------------------------


@pytest.mark.parametrize("boxes", [BOXES, np.array(BOXES, np.float32), torch.tensor(BOXES)])
def test_a_picture_arrives_with_its_boxes_and_their_labels(tap: Tap, boxes: Any) -> None:
    tap.image_with_boxes(
        "b", PICTURE.transpose(1, 2, 0), boxes, 3, labels=("cat", "hünd"), rescale=np.float32(0.5),
        dataformats="hwc",
    )  # fmt: skip
    blob = sent_blob(tap)
    assert (blob.kind, blob.shape, blob.step) == (Kind.IMAGE_BOXES, (4, 5, 3), 3)
    assert blob.parameters == {"dataformats": "HWC", "rescale": 0.5}
    assert np.frombuffer(blob.parts["boxes"]).tolist() == [*BOXES[0], *BOXES[1]]
    assert json.loads(bytes(blob.parts["labels"])) == ["cat", "hünd"]


def test_what_was_right_before_is_held_against_the_rules_again_when_it_has_changed(
    tap: Tap,
) -> None:
    images = np.zeros((2, 3, 4, 4), np.float32)
    for _ in range(2):
        tap.image_grid("grid", images, 0, nrow=1)
    before = logged(tap)
    with refused("nrow", TypeError):
        tap.image_grid("grid", images, 0, nrow=True)  # equal to 1
    with refused("pad_value", TypeError):
        tap.image_grid("grid", images, 0, nrow=1, pad_value=[0.0])  # type: ignore[arg-type]
    with refused("images"):
        tap.image_grid("grid", images[..., :0], 0, nrow=1)
    with pytest.raises(ValueError, match="logged as image before"):
        tap.histogram("grid", images, 0)
    assert logged(tap) == before


def test_a_picture_may_have_no_boxes(tap: Tap) -> None:
    tap.image_with_boxes("b", PICTURE, np.zeros((0, 4)))
    blob = sent_blob(tap)
    assert len(blob.parts["boxes"]) == 0 and "labels" not in blob.parts


@pytest.mark.parametrize(
    ("changed", "argument", "error"),
    [
        ({"image": np.zeros((5, 4, 4))}, "image", ValueError),
        ({"image": "cat.png"}, "image", TypeError),
        ({"boxes": [0, 0, 2, 3]}, "boxes", ValueError),
        ({"boxes": np.zeros((2, 5))}, "boxes", ValueError), ({"boxes": "ab"}, "boxes", TypeError),
        ({"labels": ["one"]}, "labels", ValueError), ({"labels": "ab"}, "labels", TypeError),
        ({"labels": [1, 2]}, "labels", TypeError),
        ({"rescale": 0}, "rescale", ValueError), ({"rescale": math.nan}, "rescale", ValueError),
        ({"rescale": "2"}, "rescale", TypeError), ({"rescale": 1e5}, "rescale", ValueError),
        ({"rescale": 0.01}, "rescale", ValueError),
        ({"dataformats": "XYZ"}, "dataformats", ValueError),
        ({"tag": ""}, "tag", ValueError), ({"step": 1.5}, "step", TypeError),
        ({"walltime": math.inf}, "walltime", ValueError),
    ],
)  # fmt: skip
def test_a_wrong_picture_with_boxes_is_refused(
    tap: Tap, changed: dict[str, Any], argument: str, error: type[Exception]
) -> None:
    with refused(argument, error):
        tap.image_with_boxes(**({"tag": "b", "image": PICTURE, "boxes": BOXES} | changed))
    assert logged(tap) == 0


# -- figures ------------------------------------------------------------------------------


def figure(color: str = "red", size: tuple[float, float] = (0.6, 0.4)) -> Figure:
    """A figure that pyplot knows, all of one colour."""
    made = pyplot.figure(figsize=size, dpi=50, facecolor=color)
    made.add_subplot().set_axis_off()
    return made


@pytest.fixture(autouse=True)
def no_figures() -> Iterator[None]:
    pyplot.switch_backend("agg")
    yield
    pyplot.close("all")


def test_a_figure_arrives_as_it_is_drawn_and_is_closed(tap: Tap) -> None:
    tap.figure("f", figure("red"), 5)
    blob = sent_blob(tap)
    assert (blob.kind, blob.dtype, blob.shape) == (Kind.IMAGE, "uint8", (20, 30, 3))
    assert blob.parameters == {"dataformats": "HWC"}
    assert (blob.array() == [255, 0, 0]).all()
    assert pyplot.get_fignums() == []


def test_a_figure_stays_open_when_it_shall(tap: Tap) -> None:
    shown = figure()
    canvas = shown.canvas
    tap.figure("f", shown, close=False)
    assert pyplot.get_fignums() == [shown.number]
    assert shown.canvas is canvas


def test_several_figures_become_one_picture(tap: Tap) -> None:
    tap.figure("f", [figure("red"), figure("lime")])
    blob = sent_blob(tap)
    assert (blob.shape, blob.parameters) == ((2, 20, 30, 3), {"dataformats": "NHWC"})
    assert blob.array()[:, 0, 0].tolist() == [[255, 0, 0], [0, 255, 0]]
    # One in a list is a batch of one: torch tiles it as well.
    tap.figure("f", [figure()])
    assert sent_blob(tap).shape == (1, 20, 30, 3)
    assert pyplot.get_fignums() == []


def test_a_figure_that_pyplot_does_not_know_is_drawn_too(tap: Tap) -> None:
    tap.figure("f", Figure(figsize=(1, 1), dpi=20))
    assert sent_blob(tap).shape == (20, 20, 3)


def test_what_is_no_figure_is_refused(tap: Tap) -> None:
    for wrong in (None, "plot.png", np.zeros((3, 4, 4)), [figure(), 5]):
        with refused("figure", TypeError):
            tap.figure("f", wrong)
    with refused("figure"):
        tap.figure("f", [figure(), figure(size=(1, 1))])
    with refused("figure"):
        tap.figure("f", [])
    with refused("step", TypeError):
        tap.figure("f", figure(), "1")
    assert logged(tap) == 0


def test_a_disabled_tap_closes_figures_and_draws_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "draw_figure", None)
    tap = DisabledTap("run", 0, 1)
    tap.figure("f", figure(), 5)
    tap.figure("f", [figure(), figure()], close=True)
    assert pyplot.get_fignums() == []
    tap.figure("f", figure(), close=False)
    assert len(pyplot.get_fignums()) == 1


# -- videos -------------------------------------------------------------------------------


def video(*shape: int) -> np.ndarray[Any, Any]:
    """Few colours, and no two frames alike: what a GIF keeps."""
    return np.random.default_rng(0).choice(np.array([0, 51, 255], np.uint8), shape)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_video_arrives_as_a_gif_of_its_frames(tap: Tap, channels: int) -> None:
    given = video(1, 4, channels, 6, 5)
    tap.video("v", given, 3, fps=np.float32(2))
    blob = sent_blob(tap)
    assert (blob.kind, blob.step) == (Kind.ENCODED_IMAGE, 3)
    assert blob.parameters == {"height": 6, "width": 5, "channels": channels}
    np.testing.assert_array_equal(
        frames_of(blob), np.broadcast_to(given[0].transpose(0, 2, 3, 1), (4, 6, 5, 3))
    )
    gif = Image.open(io.BytesIO(bytes(blob.data)))
    assert (gif.info["duration"], gif.info["loop"]) == (500, 0)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 9, 17])
def test_several_videos_are_tiled_as_torch_tiles_them(count: int) -> None:
    from torch.utils.tensorboard._utils import _prepare_video

    given = np.random.default_rng(count).random((count, 2, 3, 4, 5))
    tiled = drawing.tile_videos(given)
    expected = (_prepare_video(given).astype(np.float32) * 255).clip(0, 255).astype(np.uint8)
    np.testing.assert_array_equal(tiled, expected)
    assert drawing.tile_shape(count, 4, 5) == tiled.shape[1:3]


@pytest.mark.parametrize(
    ("dtype", "factor"), [(np.float16, 1), (np.float32, 1), (np.float64, 1), (np.uint8, 255)]
)
def test_pixels_of_any_type_become_bytes(dtype: Any, factor: int) -> None:
    given = np.array([0, 0.5, 1]) * factor
    tiled = drawing.tile_videos(given.astype(dtype).reshape(1, 1, 1, 1, 3))
    assert tiled.reshape(-1).tolist() == [0, 127, 255]


def test_pixels_outside_and_unknown_ones_have_a_colour_too() -> None:
    given = np.array([-1.0, 2.0, math.nan, math.inf]).reshape(1, 1, 1, 2, 2)
    assert drawing.tile_videos(given).reshape(-1).tolist() == [0, 255, 0, 255]


def test_a_frame_of_many_colours_is_near_to_what_was_given() -> None:
    y, x = np.mgrid[0:64, 0:64]
    frames = np.stack([np.stack([4 * x, 4 * y, 255 - 2 * (x + y)], -1)] * 2).astype(np.uint8)
    frames[1] = frames[0, ::-1]
    blob = Blob(
        Kind.ENCODED_IMAGE, "v", 0, 0.0, 6, "uint8", (1,), {}, drawing.encode_gif(frames, 4)
    )  # type: ignore[arg-type]
    error = np.abs(frames_of(blob).astype(int) - frames)
    assert error.mean() < 8, error.mean()


def test_a_video_of_bfloat16_is_encoded_once_it_has_arrived(
    tap: Tap, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = torch.from_numpy(video(2, 3, 3, 4, 4)).div(255).to(torch.bfloat16)
    tap.video("v", given)
    expected = frames_of(sent_blob(tap))
    with slow_device(monkeypatch) as arrive:
        tap.video("v", given)
        assert sent(tap) is None
        held = tap._outbox.pending_blob_bytes
        assert held >= given.numel() * 2
        given.zero_()
        arrive()
        np.testing.assert_array_equal(frames_of(sent_blob(tap)), expected)
    assert tap._outbox.pending_blob_bytes == 0


@pytest.mark.parametrize(
    ("given", "fps", "argument", "error"),
    [
        (np.zeros((4, 3, 6, 5)), 4, "video", ValueError),
        (np.zeros((1, 4, 2, 6, 5)), 4, "video", ValueError),
        (np.zeros((1, 0, 3, 6, 5)), 4, "video", ValueError), ("film", 4, "video", TypeError),
        (np.broadcast_to(np.uint8(0), (1, 1_000, 1, 200, 200)), 4, "video", ValueError),
        (np.broadcast_to(np.uint8(0), (1, 30, 3, 1_000, 1_000)), 4, "video", ValueError),
        (np.zeros((1, 1, 3, 6, 5)), 0, "fps", ValueError),
        (np.zeros((1, 1, 3, 6, 5)), "4", "fps", TypeError),
        (np.zeros((1, 1, 3, 6, 5)), math.nan, "fps", ValueError),
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_video_is_refused(
    tap: Tap, given: Any, fps: Any, argument: str, error: type[Exception]
) -> None:
    with refused(argument, error):
        tap.video("v", given, fps=fps)
    assert logged(tap) == 0


# -- what is not installed ----------------------------------------------------------------


@pytest.mark.parametrize("missing", ["matplotlib", "PIL"])
def test_a_missing_library_is_named_with_what_to_install(
    tap: Tap, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = Figure()
    for name in [name for name in sys.modules if name.partition(".")[0] == missing]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    what, log = {
        "matplotlib": ("figure", lambda: tap.figure("f", shown)),
        "PIL": ("video", lambda: tap.video("v", video(1, 1, 1, 2, 2))),
    }[missing]
    with pytest.raises(ModuleNotFoundError, match=rf"pip install 'ranktap\[{what}\]'") as raised:
        log()
    assert raised.value.name == missing
    assert logged(tap) == 0
