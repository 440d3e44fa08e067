"""Calls of every method of SummaryWriter, with arguments of every type that torch's takes.

A call is made on any writer, under a tag that nothing else has. What it logs is the same
each time, and has the wall time that is said where the method takes one.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

Call = Callable[[Any, str], None]

WALL = 1_700_000_000.125
"""The wall time of what is logged with one."""
AT = {"global_step": 3, "walltime": WALL}

TORCH_REALS = (
    "float16", "bfloat16", "float32", "float64", "int8", "uint8", "int16", "int32", "int64", "bool",
)  # fmt: skip
NUMPY_REALS = (
    "float16", "float32", "float64", "int8", "uint8", "int16", "uint16", "int32", "uint32",
    "int64", "uint64", "bool",
)  # fmt: skip


def random(seed: int, *shape: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Floats in [0, 1), the same each time."""
    return np.random.default_rng(seed).random(shape)


def everywhere(array: np.ndarray[Any, Any], scale: float = 100) -> Iterator[tuple[str, Any]]:
    """The same numbers in every element type of torch and numpy; integers `scale` times them."""
    for name in TORCH_REALS:
        dtype = getattr(torch, name)
        factor = 1 if dtype.is_floating_point else scale
        yield f"torch.{name}", torch.tensor(array * factor).to(dtype)
    for name in NUMPY_REALS:
        yield f"numpy.{name}", np.asarray(array * (1 if "float" in name else scale), name)


def awkward(array: np.ndarray[Any, Any]) -> Iterator[tuple[str, Any]]:
    """The same numbers in other orders of memory, and as part of a computation."""
    yield "fortran", np.asfortranarray(array)
    yield "big endian", array.astype(">f4")
    yield "backwards", array[..., ::-1]
    yield "every second", np.repeat(array, 2, axis=-1)[..., ::2]
    yield "read only", np.broadcast_to(array, array.shape)
    yield "transposed tensor", torch.from_numpy(array).mT.contiguous().mT
    yield "with gradient", torch.from_numpy(array).requires_grad_()
    yield "computed", torch.from_numpy(array).requires_grad_() * 1


# -- scalars ------------------------------------------------------------------------------


def scalar_values() -> Iterator[tuple[str, Any]]:
    yield from everywhere(np.array([0.75]))
    yield from everywhere(np.array([[0.3]]))
    yield from everywhere(np.array(0.1))
    for value in (
        1.5, 3, -7, True, 2**70, "2.5", "nan", b"3", 1e300, -1e300, 1e-320, 5e-324, -0.0, 0.1,
        3.4028235677973366e38, float("nan"), float("inf"), float("-inf"), 16777217,
        np.float64(1e-40), np.float32(0.1), np.int64(2**62), np.str_("4"), np.longdouble(1.25),
        np.array(["7"]), np.array([Decimal("1.5")], object), Decimal("0.25"),
        torch.tensor(2.5, requires_grad=True), torch.nn.Parameter(torch.tensor([[1.25]])),
    ):  # fmt: skip
        yield repr(value), value


def scalars() -> Iterator[tuple[str, Call]]:
    for number, (name, value) in enumerate(scalar_values()):
        yield f"{name} ({number})", lambda w, tag, v=value: w.add_scalar(tag, v, **AT)
    for value in (0.1, 1e300, float("nan"), np.float32(0.1), torch.tensor([2.5]), 2**60 + 1):
        yield f"{value!r} new", lambda w, tag, v=value: w.add_scalar(tag, v, **AT, new_style=True)
        yield (
            f"{value!r} double",
            lambda w, tag, v=value: w.add_scalar(
                tag, v, **AT, new_style=True, double_precision=True
            ),
        )
    # Without new_style the precision is not looked at.
    yield "double only", lambda w, tag: w.add_scalar(tag, 0.1, **AT, double_precision=True)
    yield "by position", lambda w, tag: w.add_scalar(tag, 2.0, 5, WALL, True, True)


def scalars_of_a_chart() -> Iterator[tuple[str, Call]]:
    values = {"sin": np.float32(0.5), "cos": torch.tensor(0.25), "tan": 3, "text": "2.5", "b": True}
    yield "mapping", lambda w, tag: w.add_scalars(tag, values, **AT)
    yield "slash in main tag", lambda w, tag: w.add_scalars(f"{tag}/a/b", values, **AT)
    yield "slash in name", lambda w, tag: w.add_scalars(tag, {"a/b": 1.0, "a": 2.0}, **AT)
    yield "spaces and umlauts", lambda w, tag: w.add_scalars(tag, {"größe x": 1.0}, **AT)
    yield "nothing", lambda w, tag: w.add_scalars(tag, {}, **AT)
    yield "by position", lambda w, tag: w.add_scalars(tag, {"a": 1.0}, 5, WALL)


def steps() -> Iterator[tuple[str, Call]]:
    for step in (
        None, 0, -5, 2**62, -(2**63), 2**63 - 1, 3.9, -0.5, "4", True, np.int32(5), np.uint8(255),
        np.float64(7.5), np.array(6), torch.tensor(8), torch.tensor([9.5]), Decimal("10.9"),
    ):  # fmt: skip
        yield f"scalar {step!r}", lambda w, tag, s=step: w.add_scalar(tag, 1.0, s, WALL)
        yield f"text {step!r}", lambda w, tag, s=step: w.add_text(tag, "text", s, WALL)
        yield f"chart {step!r}", lambda w, tag, s=step: w.add_scalars(tag, {"a": 1.0}, s, WALL)


def wall_times() -> Iterator[tuple[str, Call]]:
    for wall in (0, 5, 0.1, -1.5, True, np.float32(0.1), np.int64(7), torch.tensor(2.5)):
        yield f"scalar {wall!r}", lambda w, tag, t=wall: w.add_scalar(tag, 1.0, 1, t)
        yield f"text {wall!r}", lambda w, tag, t=wall: w.add_text(tag, "text", 1, t)


def several_steps() -> Iterator[tuple[str, Call]]:
    def ascending(writer: Any, tag: str) -> None:
        for step in range(20):
            writer.add_scalar(tag, step * 0.1, step, WALL + step)

    def back_and_again(writer: Any, tag: str) -> None:
        for step in (5, 3, 4, 4, 6, 0, -1):
            writer.add_scalar(tag, step * 0.1, step, WALL - step)
            writer.add_text(f"{tag}/note", str(step), step, WALL - step)

    def two_charts(writer: Any, tag: str) -> None:
        for step in range(3):
            writer.add_scalars(tag, {"a": step, "b": -step}, step, WALL + step)
            writer.add_scalars(tag, {"c": 1.0}, step, WALL)

    yield "ascending", ascending
    yield "back and again", back_and_again
    yield "two charts", two_charts


def tags() -> Iterator[tuple[str, Call]]:
    for ending in (
        " with spaces", "/a//b", "/", "\\", "<b>", "ümläut/日本語/🙂", "[0]", "a.b", "a:0", "%41",
        "..", "/../x", "'\"", "$(x)", "-" * 500,
    ):  # fmt: skip
        yield f"scalar {ending}", lambda w, tag, e=ending: w.add_scalar(tag + e, 1.0, **AT)
        yield f"text {ending}", lambda w, tag, e=ending: w.add_text(tag + e, "text", **AT)


# -- arrays -------------------------------------------------------------------------------


def tensors() -> Iterator[tuple[str, Call]]:
    numbers = random(0, 2, 3)
    for name in (*TORCH_REALS, "complex64", "complex128"):
        tensor = torch.from_numpy(numbers * 100).to(getattr(torch, name))
        yield name, lambda w, tag, t=tensor: w.add_tensor(tag, t, **AT)
    for shape in ((), (1,), (0,), (2, 0), (1, 1, 1), (2, 3, 4)):
        tensor = torch.from_numpy(random(1, *shape))
        yield f"of shape {shape}", lambda w, tag, t=tensor: w.add_tensor(tag, t, **AT)
    special = torch.tensor([0.0, -0.0, float("nan"), float("inf"), 1e-45, 3e38])
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        yield f"special {dtype}", lambda w, tag, d=dtype: w.add_tensor(tag, special.to(d), **AT)
    for number in (-(2**63), 2**63 - 1):
        yield f"{number}", lambda w, tag, n=number: w.add_tensor(tag, torch.tensor([n]), **AT)
    complex_numbers = torch.complex(torch.tensor([1.0, 2.0]), torch.tensor([3.0, -4.0]))
    yield "conjugated", lambda w, tag: w.add_tensor(tag, complex_numbers.conj(), **AT)
    yield "transposed", lambda w, tag: w.add_tensor(tag, torch.from_numpy(numbers).T, **AT)
    yield "expanded", lambda w, tag: w.add_tensor(tag, torch.ones(1).expand(3, 2), **AT)
    yield "parameter", lambda w, tag: w.add_tensor(tag, torch.nn.Parameter(torch.ones(2)), **AT)
    yield "by position", lambda w, tag: w.add_tensor(tag, torch.arange(3), 5, WALL)


def histograms() -> Iterator[tuple[str, Call]]:
    values = random(2, 5, 20) - 0.25
    for name, array in (*everywhere(np.abs(values)), *awkward(values)):
        yield name, lambda w, tag, v=array: w.add_histogram(tag, v, **AT)
    for bins in ("auto", "fd", "doane", "scott", "stone", "rice", "sturges", "sqrt", 1, 10,
                 [-1, 0, 1], np.linspace(-1, 1, 5), (0, 0.5), torch.linspace(0, 1, 4)):  # fmt: skip
        yield f"bins {bins!r}", lambda w, tag, b=bins: w.add_histogram(tag, values, **AT, bins=b)
        yield (
            f"bins {bins!r}, 3 at most",
            lambda w, tag, b=bins: w.add_histogram(tag, values, **AT, bins=b, max_bins=3),
        )
    for most in (1, 5, 60, 1_000_000):
        yield (
            f"{most} at most",
            lambda w, tag, m=most: w.add_histogram(tag, values * 1e6, **AT, max_bins=m),
        )
    # As numbers alone, strings, of one value, of the smallest and the largest that have a bucket.
    for given in (3.5, 7, "2.5", np.zeros(4), np.array([1e-13, -1e-13]), np.array([9e19, -9e19]),
                  np.arange(-50, 50), np.full((2, 3), -2.0), np.array(["1", "2"])):  # fmt: skip
        yield f"of {given!r}", lambda w, tag, v=given: w.add_histogram(tag, v, **AT)
    yield "by position", lambda w, tag: w.add_histogram(tag, values, 5, "auto", WALL, 4)


def raw_histograms() -> Iterator[tuple[str, Call]]:
    counts, edges = np.histogram(random(3, 100), bins=8)
    numbers = {"min": 0.25, "max": 1, "num": 100, "sum": 50.5, "sum_squares": 33.25}

    def call(limits: Any, counted: Any, **others: Any) -> Call:
        return lambda w, tag: w.add_histogram_raw(
            tag, **(numbers | others), bucket_limits=limits, bucket_counts=counted, **AT
        )

    yield "arrays", call(edges[1:], counts)
    yield "lists", call(edges[1:].tolist(), counts.tolist())
    yield "tensors", call(torch.from_numpy(edges[1:]), torch.from_numpy(counts))
    yield "tuples", call((1.0, 2.0), (3, 4))
    yield "floats", call(edges[1:].astype(np.float32), counts.astype(np.float32))
    yield "numpy's numbers", call([1.0], [2.0], min=np.float32(0.1), num=np.int64(3))
    yield "without buckets", call([], [])
    yield "any numbers", call([1.0], [2.0], min=float("inf"), max=float("-inf"), num=0, sum=0)
    yield (
        "by position",
        lambda w, tag: w.add_histogram_raw(tag, 0, 1, 2, 3, 4, [1.0], [2.0], 5, WALL),
    )


def sounds() -> Iterator[tuple[str, Call]]:
    wave = random(4, 1, 50) * 2 - 1
    for name, array in (*everywhere(wave, 2), *awkward(wave)):
        if name.endswith(".bool"):
            continue
        yield name, lambda w, tag, a=array: w.add_audio(tag, a, **AT)
    for shape in ((50,), (50, 1), (1, 50, 1)):
        yield f"of shape {shape}", lambda w, tag, s=shape: w.add_audio(tag, wave.reshape(s), **AT)
    yield "too loud", lambda w, tag: w.add_audio(tag, wave * 3, **AT)
    yield "loudest", lambda w, tag: w.add_audio(tag, np.array([1.0, -1.0]), **AT)
    for rate in (1, 8_000, 44_100.0, 192_000, np.int64(16_000)):
        yield f"at {rate!r} Hz", lambda w, tag, r=rate: w.add_audio(tag, wave, **AT, sample_rate=r)
    yield "by position", lambda w, tag: w.add_audio(tag, wave, 5, 8_000, WALL)


def curves() -> Iterator[tuple[str, Call]]:
    labels, predictions = random(5, 60) > 0.5, random(6, 60)
    for name, array in everywhere(random(5, 60).round(), 1):
        yield f"labels {name}", lambda w, tag, v=array: w.add_pr_curve(tag, v, predictions, **AT)
    for name, array in (*everywhere(predictions, 1), *awkward(predictions.reshape(6, 10))):
        truth = labels.reshape(array.shape)
        yield name, lambda w, tag, v=array, t=truth: w.add_pr_curve(tag, t, v, **AT)
    for count in (2, 3, 10, 127, 128, 1_000):
        yield (
            f"{count} thresholds",
            lambda w, tag, n=count: w.add_pr_curve(
                tag, labels, predictions, **AT, num_thresholds=n
            ),
        )
    for weights in (2, 0.5, random(7, 60), random(7, 60).astype(np.float32)):
        yield (
            f"weights {weights!r:.40}",
            lambda w, tag, v=weights: w.add_pr_curve(tag, labels, predictions, **AT, weights=v),
        )
    extremes = np.array([0.0, 1.0, -0.1, 1.1, 0.5, 0.9999])
    yield "extremes", lambda w, tag: w.add_pr_curve(tag, np.arange(6) % 2, extremes, **AT)
    yield "shares", lambda w, tag: w.add_pr_curve(tag, random(8, 60), predictions, **AT)
    yield "none positive", lambda w, tag: w.add_pr_curve(tag, labels & False, predictions, **AT)
    yield (
        "by position",
        lambda w, tag: w.add_pr_curve(tag, labels, predictions, 5, 10, random(7, 60), WALL),
    )


def raw_curves() -> Iterator[tuple[str, Call]]:
    rows = random(9, 6, 127)
    for name, array in (*everywhere(rows, 50), *awkward(rows)):
        yield name, lambda w, tag, r=array: w.add_pr_curve_raw(tag, *r, **AT)
    yield "lists", lambda w, tag: w.add_pr_curve_raw(tag, *rows.tolist(), **AT)
    for count in (2, 10, 127, 200):
        yield (
            f"{count} thresholds",
            lambda w, tag, n=count: w.add_pr_curve_raw(
                tag, *random(9, 6, n), **AT, num_thresholds=n
            ),
        )
    yield "weights", lambda w, tag: w.add_pr_curve_raw(tag, *rows, **AT, weights=random(1, 127))
    yield "by position", lambda w, tag: w.add_pr_curve_raw(tag, *rows, 5, 127, None, WALL)


def meshes() -> Iterator[tuple[str, Call]]:
    points = random(10, 2, 5, 3)
    faces = np.arange(12).reshape(1, 4, 3).repeat(2, 0) % 5
    for name, array in (*everywhere(points), *awkward(points)):
        yield name, lambda w, tag, v=array: w.add_mesh(tag, v, **AT)
        yield f"colors {name}", lambda w, tag, c=array: w.add_mesh(tag, points, colors=c, **AT)
    for name, array in everywhere(faces, 1):
        yield f"faces {name}", lambda w, tag, f=array: w.add_mesh(tag, points, faces=f, **AT)
    yield "lists", lambda w, tag: w.add_mesh(tag, points.tolist(), faces=faces.tolist(), **AT)
    scene = {"material": {"cls": "PointsMaterial", "size": 0.5}, "camera": {"fov": 75, "a": [1]}}
    for config in (None, {}, scene, {"ü": None, "z": 1, "a": True}):
        yield (
            f"config {config}",
            lambda w, tag, c=config: w.add_mesh(tag, points, points, faces, c, 5, WALL),
        )


def embeddings() -> Iterator[tuple[str, Call]]:
    points = random(11, 5, 3)
    for name, array in (*everywhere(points), *awkward(points)):
        yield name, lambda w, tag, m=array: w.add_embedding(m, tag=tag)
    for labels in (list("abcde"), [1, None, 2.5, True, "ü"], tuple("abcde"), np.arange(5),
                   torch.arange(5), [["a", 1]] * 5):  # fmt: skip
        yield (
            f"metadata {labels!r:.40}",
            lambda w, tag, m=labels: w.add_embedding(points, m, tag=tag),
        )
    columns = [["a", 1], ["b", 2.5], ["c", None], ["d", "x y"], ["ü", True]]
    yield (
        "columns",
        lambda w, tag: w.add_embedding(points, columns, tag=tag, metadata_header=["name", "value"]),
    )
    for channels in (1, 3):
        for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
            pictures = torch.from_numpy(random(12, 5, channels, 4, 6) * 1.5 - 0.25).to(dtype)
            yield (
                f"pictures {channels} {dtype}",
                lambda w, tag, p=pictures: w.add_embedding(points, label_img=p, tag=tag),
            )
    for step in (0, 7, 123456, -3, "8"):
        yield (
            f"step {step!r}",
            lambda w, tag, s=step: w.add_embedding(points, global_step=s, tag=tag),
        )
    for ending in ("/a/b", "%", "\\", " ü", "."):
        yield f"tag {ending}", lambda w, tag, e=ending: w.add_embedding(points, tag=tag + e)
    yield (
        "by position",
        lambda w, tag: w.add_embedding(
            points, columns, torch.from_numpy(random(12, 5, 3, 4, 4)), 2, tag, ["a", "b"]
        ),
    )


# -- pictures -----------------------------------------------------------------------------


def pictures() -> Iterator[tuple[str, Call]]:
    picture = random(13, 3, 5, 7) * 1.4 - 0.2  # some beyond what can be shown
    for name, array in (*everywhere(np.abs(picture), 200), *awkward(picture)):
        yield name, lambda w, tag, p=array: w.add_image(tag, p, **AT)
    for form, shape in {
        "CHW": (3, 5, 7), "HWC": (5, 7, 3), "WHC": (7, 5, 3), "CWH": (3, 7, 5), "HCW": (5, 3, 7),
        "HW": (5, 7), "WH": (7, 5), "chw": (3, 5, 7), "NCHW": (5, 3, 4, 6), "NHWC": (2, 4, 6, 3),
        "CNHW": (1, 9, 4, 6), "hwcn": (4, 6, 3, 2),
    }.items():  # fmt: skip
        for kind, array in (("float", random(14, *shape)), ("uint8", random(14, *shape) * 255)):
            array = array if kind == "float" else array.astype(np.uint8)
            yield (
                f"{form} {kind}",
                lambda w, tag, p=array, f=form: w.add_image(tag, p, **AT, dataformats=f),
            )
            yield (
                f"several {form} {kind}",
                lambda w, tag, p=array, f=form: w.add_images(tag, p, **AT, dataformats=f),
            )
    for channels in (1, 4):
        yield (
            f"{channels} channels",
            lambda w, tag, c=channels: w.add_image(tag, random(15, c, 5, 7), **AT),
        )
    for count in (1, 7, 8, 9, 17):
        for channels in (1, 3):
            yield (
                f"{count} of {channels} channels",
                lambda w, tag, n=count, c=channels: w.add_images(tag, random(16, n, c, 3, 4), **AT),
            )
    yield "of one pixel", lambda w, tag: w.add_image(tag, np.ones((1, 1, 1)), **AT)
    png = Image.open(io.BytesIO(_encoded(random(17, 6, 8, 3))))
    yield "of Pillow", lambda w, tag: w.add_image(tag, np.array(png), **AT, dataformats="HWC")
    yield "by position", lambda w, tag: w.add_image(tag, picture, 5, WALL, "CHW")
    yield "several by position", lambda w, tag: w.add_images(tag, random(1, 2, 3, 4, 5), 5, WALL)


def _encoded(pixels: np.ndarray[Any, Any]) -> bytes:
    encoded = io.BytesIO()
    Image.fromarray((pixels * 255).astype(np.uint8)).save(encoded, "PNG")
    return encoded.getvalue()


def boxes() -> Iterator[tuple[str, Call]]:
    picture = random(18, 3, 40, 60)
    corners = np.array([[2, 3, 20, 30], [10.5, 5.25, 50, 39], [-5, -5, 70, 50]])
    for name, array in everywhere(picture, 200):
        yield name, lambda w, tag, p=array: w.add_image_with_boxes(tag, p, corners, **AT)
    for name, array in (*everywhere(np.abs(corners), 1), *awkward(corners)):
        yield (
            f"corners {name}",
            lambda w, tag, b=array: w.add_image_with_boxes(tag, picture, b, **AT),
        )
    for labels in (["cat", "dog", "bird"], ["", "ü", "a long one"], ["too", "few"], "one", None):
        yield (
            f"labels {labels}",
            lambda w, tag, n=labels: w.add_image_with_boxes(tag, picture, corners, **AT, labels=n),
        )
    yield (
        "one label",
        lambda w, tag: w.add_image_with_boxes(tag, picture, corners[:1], **AT, labels="one"),
    )
    scored = np.hstack([corners, random(21, 3, 2)])
    yield "with a score", lambda w, tag: w.add_image_with_boxes(tag, picture, scored, **AT)
    yield "no boxes", lambda w, tag: w.add_image_with_boxes(tag, picture, np.zeros((0, 4)), **AT)
    for factor in (0.5, 2, 1.3):
        yield (
            f"rescaled by {factor}",
            lambda w, tag, f=factor: w.add_image_with_boxes(tag, picture, corners, **AT, rescale=f),
        )
    for form, shape in {"HWC": (40, 60, 3), "HW": (40, 60), "NCHW": (2, 3, 20, 30)}.items():
        yield (
            form,
            lambda w, tag, f=form, s=shape: w.add_image_with_boxes(
                tag, random(19, *s), corners, **AT, dataformats=f
            ),
        )
    yield (
        "four channels",
        lambda w, tag: w.add_image_with_boxes(tag, random(20, 4, 30, 40), corners, **AT),
    )
    yield (
        "by position",
        lambda w, tag: w.add_image_with_boxes(
            tag, picture, corners, 5, WALL, 2, "CHW", ["a", "b", "c"]
        ),
    )


def figure(size: tuple[float, float] = (1.5, 1)) -> Figure:
    drawn = Figure(figsize=size, dpi=80)
    drawn.add_subplot().plot([1, 3, 2], "r-o")
    return drawn


def figures() -> Iterator[tuple[str, Call]]:
    yield "one", lambda w, tag: w.add_figure(tag, figure(), **AT)
    yield "of another size", lambda w, tag: w.add_figure(tag, figure((2, 2)), **AT)
    yield "several", lambda w, tag: w.add_figure(tag, [figure(), figure()], **AT)
    yield "one in a list", lambda w, tag: w.add_figure(tag, [figure()], **AT)
    yield "left open", lambda w, tag: w.add_figure(tag, figure(), **AT, close=False)
    yield "by position", lambda w, tag: w.add_figure(tag, figure(), 5, True, WALL)


# -- text, graphs, hyperparameters, layouts -------------------------------------------------


def texts() -> Iterator[tuple[str, Call]]:
    for text in ("a", "", "# *Markdown*\n\n| a | b |\n|---|---|\n| 1 | 2 |", "ü 日本語 🙂",
                 "<b>&\0\t", "x" * 5_000):  # fmt: skip
        yield f"{text!r:.40}", lambda w, tag, t=text: w.add_text(tag, t, **AT)
    yield "by position", lambda w, tag: w.add_text(tag, "text", 5, WALL)


def hyperparameters() -> Iterator[tuple[str, Call]]:
    all_kinds = {
        "rate": 0.1, "size": 32, "net": "fc", "flag": True, "none": None, "ü": -1.5, "big": 2**60,
        "tensor": torch.tensor([0.5]), "numpy": np.float64(0.25), "empty": "",
    }  # fmt: skip
    metrics = {
        "hparam/loss": 0.5, "acc": torch.tensor(0.9), "n": np.float32(1.5), "i": 3, "s": "2.5",
    }  # fmt: skip
    yield "all kinds", lambda w, tag: w.add_hparams(all_kinds, metrics, run_name=tag)
    yield "with a step", lambda w, tag: w.add_hparams({"a": 1}, {"m": 2}, None, tag, 7)
    yield "in a directory", lambda w, tag: w.add_hparams({"a": 1}, {"m": 2}, run_name=f"{tag}/b")
    yield "below here", lambda w, tag: w.add_hparams({"a": 1}, {"m": 2}, run_name=f"./{tag}//b")
    yield "at a path", lambda w, tag: w.add_hparams({"a": 1}, {"m": 2}, run_name=Path(tag))
    yield "no metrics", lambda w, tag: w.add_hparams({"a": 1}, {}, run_name=tag)
    yield "nothing", lambda w, tag: w.add_hparams({}, {}, run_name=tag)
    domains = {"rate": [0.1, 0.01], "net": ["fc", "cnn"], "flag": [True, False], "size": [32, 64]}
    yield "domains", lambda w, tag: w.add_hparams(all_kinds, metrics, domains, tag)


def layouts() -> Iterator[tuple[str, Call]]:
    """They have no tag of their own."""
    yield "multiline", lambda w, tag: w.add_custom_scalars_multilinechart(["a", "b.*"])
    yield "multiline named", lambda w, tag: w.add_custom_scalars_multilinechart(["a"], "c", "t")
    yield "margin", lambda w, tag: w.add_custom_scalars_marginchart(["a", "b", "c"])
    yield "margin named", lambda w, tag: w.add_custom_scalars_marginchart(("a", "b", "c"), "c", "ü")
    charts = {
        "Taiwan": {"twse": ["Multiline", ["twse/0050", "twse/2330"]]},
        "USA": {"dow": ["Margin", ["dow/a", "dow/b", "dow/c"]], "other": ["Whatever", ["a"]]},
        "none": {},
    }
    yield "several", lambda w, tag: w.add_custom_scalars(charts)
    yield "nothing", lambda w, tag: w.add_custom_scalars({})


class TwoInputs(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(4, 3), torch.nn.Linear(2, 3)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"sum": self.first(left).relu() + self.second(right)}


def graphs() -> Iterator[tuple[str, Call]]:
    """They have no tag, and a run shows one."""
    line = torch.nn.Linear(4, 2)
    yield "linear", lambda w, tag: w.add_graph(line, torch.ones(1, 4))
    conv = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU(), torch.nn.Flatten())
    yield "sequential", lambda w, tag: w.add_graph(conv, (torch.ones(1, 1, 5, 5),), verbose=False)
    inputs = (torch.ones(1, 4), torch.ones(1, 2))
    yield "not strict", lambda w, tag: w.add_graph(TwoInputs(), inputs, False, False)
    yield "scripted", lambda w, tag: w.add_graph(torch.jit.script(line), torch.ones(1, 4))
    yield "onnx", lambda w, tag: w.add_onnx_graph(onnx_file())
    yield "onnx at a path", lambda w, tag: w.add_onnx_graph(Path(onnx_file()))


_DIRECTORY = tempfile.TemporaryDirectory(prefix="ranktap-test-")


def onnx_file() -> str:
    """A little model."""
    import onnx

    value = onnx.helper.make_tensor_value_info
    inputs = [value("x", onnx.TensorProto.FLOAT, [1, 3])]
    outputs = [value("y", onnx.TensorProto.FLOAT, [1, 3])]
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "g", inputs, outputs)
    path = f"{_DIRECTORY.name}/model.onnx"
    onnx.save(onnx.helper.make_model(graph), path)
    return path


FAMILIES = (
    scalars, scalars_of_a_chart, steps, wall_times, several_steps, tags, tensors, histograms,
    raw_histograms, sounds, curves, raw_curves, meshes, embeddings, pictures, boxes, figures,
    texts, hyperparameters, layouts, graphs,
)  # fmt: skip
CALLS: dict[str, Call] = {
    f"{family.__name__}: {name}": call for family in FAMILIES for name, call in family()
}
"""All of them, by what they are."""
