"""Pictures, and what is drawn or encoded as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ranktap import drawing, staging
from ranktap.base import BaseTap, Late
from ranktap.staging import Described, Snapshot
from ranktap_wire import documents, rules
from ranktap_wire.records import OTHER_ACROSS, PICTURE_ACROSS, Blob, Kind

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Images(BaseTap):
    """The methods that log pictures.

    With several ranks, `across="each"` shows rank 0's under the tag itself and the others' under
    tags of their own; "rank0" shows rank 0's alone; "tile", where it may be, all of them side by
    side as one picture.
    """

    def image(
        self,
        tag: str,
        image: Any,
        step: int | None = None,
        *,
        dataformats: str = "CHW",
        across: str = "each",
        walltime: float | None = None,
    ) -> None:
        """Log a picture: floats in [0, 1] or uint8 in [0, 255], as torch's `add_image` takes it.

        `dataformats` names the dimensions: the letters of "CHW", "HW" or "NCHW" in any order.
        1, 3 or 4 channels.

        Raises:
            TypeError, ValueError: an argument is not of this form; it is named.
        """
        given = staging.describe(image, "image")
        self._add(
            Kind.IMAGE,
            tag,
            given,
            step,
            walltime,
            parameters={"dataformats": dataformats},
            across=rules.check_across(across, PICTURE_ACROSS),
        )

    def images(
        self,
        tag: str,
        images: Any,
        step: int | None = None,
        *,
        dataformats: str = "NCHW",
        across: str = "each",
        walltime: float | None = None,
    ) -> None:
        """Log a batch of pictures as one, tiled as torch's `add_images` does.

        Raises:
            TypeError, ValueError: an argument is not of this form; it is named.
        """
        given = staging.describe(images, "images")
        self._add(
            Kind.IMAGES,
            tag,
            given,
            step,
            walltime,
            parameters={"dataformats": dataformats},
            across=rules.check_across(across, PICTURE_ACROSS),
        )

    def image_grid(
        self,
        tag: str,
        images: Any,
        step: int | None = None,
        *,
        nrow: int = 8,
        padding: int = 2,
        normalize: bool = False,
        value_range: tuple[float, float] | None = None,
        scale_each: bool = False,
        pad_value: float = 0.0,
        across: str = "each",
        walltime: float | None = None,
    ) -> None:
        """Log pictures as a grid, which the daemon draws: `torchvision.utils.make_grid`, its
        arguments and its pixels.

        `images` has shape (N, C, H, W), (C, H, W) or (H, W), with 1 or 3 channels. `nrow` is
        the number of pictures in a row. With `normalize` values are moved from `value_range`
        (their own smallest and largest when None; of each picture with `scale_each`) to [0, 1].

        Raises:
            TypeError, ValueError: an argument is not of this form; it is named.
        """
        given = staging.describe(images, "images")
        parameters = {
            "nrow": nrow,
            "padding": padding,
            "normalize": normalize,
            "value_range": value_range,
            "scale_each": scale_each,
            "pad_value": pad_value,
        }
        self._add(
            Kind.IMAGE_GRID,
            tag,
            given,
            step,
            walltime,
            parameters=parameters,
            across=rules.check_across(across, PICTURE_ACROSS),
        )

    def image_with_boxes(
        self,
        tag: str,
        image: Any,
        boxes: Any,
        step: int | None = None,
        *,
        labels: Sequence[str] | None = None,
        rescale: float = 1,
        dataformats: str = "CHW",
        across: str = "each",
        walltime: float | None = None,
    ) -> None:
        """Log a picture with boxes around what is on it, which the daemon draws.

        The picture is as `image` takes it; `boxes`, of shape (N, 4), are left, top, right and
        bottom in its pixels; `labels` are texts beside them. `rescale` is the factor by which
        the picture, its boxes drawn, is made larger or smaller.

        Raises:
            TypeError, ValueError: an argument is not of this form; it is named.
        """
        corners = staging.describe(boxes, "boxes")
        if len(corners.shape) != 2 or corners.shape[1] != 4:
            raise ValueError(
                "boxes: expected shape (N, 4), left, top, right and bottom of each, "
                f"got shape {corners.shape}"
            )
        parts: dict[str, Described] = {"boxes": staging.convert(corners, "float64")}
        if labels is not None:
            parts["labels"] = _texts(labels, corners.shape[0])
        self._add(
            Kind.IMAGE_BOXES,
            tag,
            staging.describe(image, "image"),
            step,
            walltime,
            parameters={"dataformats": dataformats, "rescale": rescale},
            parts=parts,
            across=rules.check_across(across, OTHER_ACROSS),
        )

    def figure(
        self,
        tag: str,
        figure: Figure | Sequence[Figure],
        step: int | None = None,
        *,
        close: bool = True,
        across: str = "each",
        walltime: float | None = None,
    ) -> None:
        """Log a figure of matplotlib, or several of one size, tiled, as a picture.

        It is drawn here and now, which takes some tenths of a second: a figure is no value that
        can be copied. With `close`, pyplot forgets it afterwards.

        Raises:
            TypeError, ValueError: an argument is not of this form; it is named.
            ModuleNotFoundError: there is no matplotlib: `pip install 'ranktap[figure]'`.
        """
        figures = [*figure] if isinstance(figure, list | tuple) else [figure]
        if not self._has_part(rules.check_across(across, PICTURE_ACROSS)):
            # Another rank's counts, and drawing it here would be for nothing.
            if close:
                drawing.close_figures(figures)
            return
        drawn = [drawing.draw_figure(each) for each in figures]
        if close:
            drawing.close_figures(figures)
        if len({pixels.shape for pixels in drawn}) != 1:
            sizes = [f"{pixels.shape[1]} x {pixels.shape[0]}" for pixels in drawn]
            raise ValueError(f"figure: expected one or more, of one size, got {sizes}")
        if figures == [figure]:
            pixels, dataformats = drawn[0], "HWC"
        else:
            pixels, dataformats = np.stack(drawn), "NHWC"
        self.image(tag, pixels, step, dataformats=dataformats, across=across, walltime=walltime)

    def video(
        self,
        tag: str,
        video: Any,
        step: int | None = None,
        *,
        fps: float = 4,
        across: str = "each",
        walltime: float | None = None,
    ) -> None:
        """Log a video, (N, T, C, H, W) with 1 or 3 channels: floats in [0, 1] or uint8 in [0, 255].

        It becomes a GIF, of N videos side by side, tiled as torch's `add_video` does; the thread
        that sends it encodes it. `fps` is the number of frames a second.

        Raises:
            TypeError, ValueError: an argument is not of this form; it is named.
            ModuleNotFoundError: there is no Pillow: `pip install 'ranktap[video]'`.
        """
        given = staging.describe(video, "video")
        shape = given.shape
        if len(shape) != 5 or shape[2] not in (1, 3) or 0 in shape:
            raise ValueError(
                f"video: expected shape (N, T, C, H, W) of 1 or 3 channels, got shape {shape}"
            )
        count, frames, channels, *size = shape
        height, width = drawing.tile_shape(count, *size)
        if frames * height * width > drawing.GIF_PIXELS:
            raise ValueError(
                f"video: expected at most {drawing.GIF_PIXELS} pixels in all frames, "
                f"got {frames} of {height} x {width}"
            )
        policy = rules.check_across(across, OTHER_ACROSS)
        rate = rules.check_finite("fps", fps)
        if rate <= 0:
            raise ValueError(f"fps: expected a number of frames a second above 0, got {fps}")
        drawing.check_gif()

        def finish(blob: Blob, arrived: Mapping[str, Snapshot]) -> None:
            pixels = drawing.tile_videos(arrived["video"].numbers().reshape(shape))
            blob.data = drawing.encode_gif(pixels, rate)
            blob.shape = (len(blob.data),)

        self._add(
            Kind.ENCODED_IMAGE,
            tag,
            staging.of_bytes(b"\0", "video"),
            step,
            walltime,
            parameters={"height": height, "width": width, "channels": channels},
            across=policy,
            late=Late({"video": given}, finish),
        )


def _texts(labels: object, count: int) -> Described:
    if isinstance(labels, str) or not isinstance(labels, Sequence):
        raise TypeError(f"labels: expected a sequence of strings, got {rules.given(labels)}")
    texts = [rules.check_words("labels", label) for label in labels]
    encoded = documents.pack_labels(texts)
    documents.read_labels(encoded, count)
    return staging.of_bytes(encoded, "labels")
