"""What the ranks of a made-up job log, known without asking them: a function of rank and step.

`log_step` logs one rank's records of one step, `log_beside` those that are written beside
the run's own event file: to sub-runs and the projector's files. `expected_run` says, with
plain Python and numpy and none of ranktap's code, what TensorBoard must then find, and
`read_run` what it does find. Both are compared whole: a point that is missing, doubled,
altered or out of order makes them differ.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from tests.support.event_files import event_files, events

if TYPE_CHECKING:
    from ranktap.tap import Tap

MERGED = {f"merged/{number:02d}": "mean" for number in range(12)} | {
    "merged/sum": "sum",
    "merged/min": "min",
    "merged/max": "max",
    "merged/mean": "mean",
}
EACH = [f"own/{number}" for number in range(4)]
SCALARS_A_STEP = len(MERGED) + len(EACH)
GRID_EVERY, HISTOGRAM_EVERY, TEXT_EVERY, EMBEDDING_EVERY = 20, 15, 10, 25
CURVES = ("train", "valid")
CURVES_TAG = "curves/loss"
EDGES = [float(edge) for edge in range(11)]


@dataclass
class Contents:
    """A run as TensorBoard can read it, in the order in which it is written."""

    scalars: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    pictures: dict[str, list[tuple[int, tuple[int, ...], bytes]]] = field(default_factory=dict)
    """Step, shape (H, W, C) and pixels."""
    histograms: dict[str, list[tuple[int, tuple[float, ...], tuple[tuple[float, int], ...]]]] = (
        field(default_factory=dict)
    )
    """Step, (count, smallest, largest, sum, sum of squares), (upper edge, count) of each bucket
    that is not empty."""
    texts: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    """Content of the embeddings that the projector's configuration names, by path."""

    def points(self) -> int:
        return len(self.files) + sum(
            len(series)
            for kind in (self.scalars, self.pictures, self.histograms, self.texts)
            for series in kind.values()
        )


# -- what a rank logs ---------------------------------------------------------------------


def scalar(rank: int, step: int, tag: str) -> float:
    """A multiple of 4 below 2**14: four ranks' sums and means are exact in float32."""
    return 4.0 * ((sum(tag.encode()) * 31 + step * 17 + rank * rank * 101) % 4_096)


def pictures(rank: int, step: int) -> np.ndarray[Any, Any]:
    """Four pictures of 3 x 6 x 5, uint8."""
    noise = np.random.default_rng([rank, step])
    return noise.integers(0, 256, (4, 3, 6, 5), dtype=np.uint8)


def histogram(rank: int, step: int) -> np.ndarray[Any, Any]:
    """Fifty whole numbers from 0 to 9."""
    noise = np.random.default_rng([1_000 + rank, step])
    return noise.integers(0, 10, 50).astype(np.float32)


def text(rank: int, step: int) -> str:
    return f"rank {rank} at step {step}: " + "ä" * (step % 50)


def log_step(tap: Tap, step: int) -> None:
    """Everything of this rank and step."""
    rank = tap.rank
    for tag, policy in MERGED.items():
        tap.scalar(tag, scalar(rank, step, tag), step, across=policy)
    for tag in EACH:
        tap.scalar(tag, scalar(rank, step, tag), step, across="each")
    log_others(tap, step)


def log_others(tap: Tap, step: int) -> None:
    """What of `log_step` is no scalar."""
    rank = tap.rank
    if step % GRID_EVERY == 0:
        tap.image_grid("samples", pictures(rank, step), step, nrow=2, padding=1)
    if step % HISTOGRAM_EVERY == 0:
        tap.histogram("weights", histogram(rank, step), step, bins=EDGES)
    if step % TEXT_EVERY == 0:
        tap.text("note", text(rank, step), step)


def log_beside(tap: Tap, step: int) -> None:
    """What of this rank and step is not for the run's own event file."""
    tap.curves(CURVES_TAG, {name: scalar(tap.rank, step, name) for name in CURVES}, step)
    if step % EMBEDDING_EVERY == 0:
        tap.embedding("points", np.array([[tap.rank, step]], np.float32), step)


# -- what must be found -------------------------------------------------------------------


def expected_run(world_size: int, steps: Iterable[int], *, beside: bool = False) -> Contents:
    """What `log_step`, and `log_beside`, of every rank and step makes, when no rank was given
    up on."""
    contents = Contents()
    ranks = range(world_size)
    for step in steps:
        if beside:
            _expect_beside(contents, world_size, step)
        for tag, policy in MERGED.items():
            values = [scalar(rank, step, tag) for rank in ranks]
            merged = {
                "mean": sum(values) / world_size,
                "sum": sum(values),
                "min": min(values),
                "max": max(values),
            }[policy]
            _note(contents.scalars, tag, (step, merged))
            if world_size > 1:
                _note(contents.scalars, f"ranks/{tag}/min", (step, min(values)))
                _note(contents.scalars, f"ranks/{tag}/max", (step, max(values)))
        for rank in ranks:
            for tag in EACH:
                point = (step, scalar(rank, step, tag))
                _note(contents.scalars, own_tag(tag, rank, world_size), point)
            if step % GRID_EVERY == 0:
                pixels = grid_pixels(pictures(rank, step))
                picture = (step, pixels.shape, pixels.tobytes())
                _note(contents.pictures, shown_tag("samples", rank), picture)
            if step % TEXT_EVERY == 0:
                tag = shown_tag("note", rank) + "/text_summary"
                _note(contents.texts, tag, (step, text(rank, step)))
        if step % HISTOGRAM_EVERY == 0:
            values = np.concatenate([histogram(rank, step) for rank in ranks]).astype(float)
            numbers = (float(values.size), values.min(), values.max(), values.sum(),
                       (values * values).sum())  # fmt: skip
            buckets = tuple(
                (edge + 1.0, int((values == edge).sum())) for edge in range(10) if edge in values
            )
            _note(contents.histograms, "weights", (step, tuple(map(float, numbers)), buckets))
    return contents


def _expect_beside(contents: Contents, world_size: int, step: int) -> None:
    for name in CURVES:
        values = [scalar(rank, step, name) for rank in range(world_size)]
        _note(contents.scalars, curve_key(name), (step, sum(values) / world_size))
        if world_size > 1:
            _note(contents.scalars, curve_key(name, "min"), (step, min(values)))
            _note(contents.scalars, curve_key(name, "max"), (step, max(values)))
    if step % EMBEDDING_EVERY == 0:
        for rank in range(world_size):
            tag = shown_tag("points", rank).replace("/", "%2f")
            path = f"{step:05}/{tag}/tensors.tsv"
            contents.files[path] = f"{rank:.1f}\t{step:.1f}\n".encode()


def curve_key(name: str, of_ranks: str = "") -> str:
    """Where in `Contents.scalars` a curve is: the directory of its sub-run, and its tag."""
    tag = f"ranks/{CURVES_TAG}/{of_ranks}" if of_ranks else CURVES_TAG
    return f"{CURVES_TAG.replace('/', '_')}_{name}: {tag}"


def own_tag(tag: str, rank: int, world_size: int) -> str:
    """Where `across="each"` puts a rank's series."""
    return tag if world_size == 1 else f"ranks/{tag}/rank{rank}"


def shown_tag(tag: str, rank: int) -> str:
    """Where a rank's pictures and texts are."""
    return tag if rank == 0 else f"ranks/{tag}/rank{rank}"


def grid_pixels(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Four pictures, two in a row, one black pixel around each, as (H, W, C)."""
    count, channels, height, width = images.shape
    canvas = np.zeros((2 * (height + 1) + 1, 2 * (width + 1) + 1, channels), np.uint8)
    for index in range(count):
        top, left = 1 + (index // 2) * (height + 1), 1 + (index % 2) * (width + 1)
        canvas[top : top + height, left : left + width] = images[index].transpose(1, 2, 0)
    return canvas


# -- what is found ------------------------------------------------------------------------


def read_run(directory: Path, *, beside: bool = False) -> Contents:
    """Every event of a run's files, in the order in which TensorBoard reads them; with what is
    beside them also of its sub-runs, and the embeddings that their configuration names."""
    contents = Contents()
    _read_events(contents, directory, "")
    config = directory / "projector_config.pbtxt"
    if beside and directory.exists():
        for below in sorted(path for path in directory.iterdir() if path.is_dir()):
            _read_events(contents, below, f"{below.name}: ")
        named = re.findall(r'tensor_path: "(.*)"', config.read_text()) if config.exists() else []
        contents.files = {path: (directory / path).read_bytes() for path in named}
        assert len(contents.files) == len(named), "named twice"
    return contents


def _read_events(contents: Contents, directory: Path, prefix: str) -> None:
    for path in event_files(directory):
        for event in events(path):
            for value in event.summary.value:
                _note_value(contents, prefix, event.step, value)


def _note_value(contents: Contents, prefix: str, step: int, value: Any) -> None:
    match value.WhichOneof("value"):
        case "simple_value":
            _note(contents.scalars, prefix + value.tag, (step, value.simple_value))
        case "image":
            pixels = np.asarray(Image.open(io.BytesIO(value.image.encoded_image_string)))
            point = (step, pixels.shape, pixels.tobytes())
            _note(contents.pictures, value.tag, point)
        case "histo":
            histo = value.histo
            numbers = (histo.num, histo.min, histo.max, histo.sum, histo.sum_squares)
            buckets = zip(histo.bucket_limit, histo.bucket, strict=True)
            kept = tuple((limit, int(count)) for limit, count in buckets if count)
            _note(contents.histograms, value.tag, (step, numbers, kept))
        case "tensor" if value.tag.startswith("ranktap/"):
            pass  # what the daemon says of the job: when ranks came and went, and how late
        case "tensor" if value.tag.endswith("/text_summary"):
            _note(contents.texts, value.tag, (step, value.tensor.string_val[0].decode()))
        case "tensor":
            assert value.tag == "custom_scalars__config__", value.tag


def _note(series: dict[str, list[Any]], tag: str, point: Any) -> None:
    series.setdefault(tag, []).append(point)


def assert_same(found: Contents, expected: Contents) -> None:
    """Compare whole, and say in few words what differs."""
    differing = {path for path, _ in found.files.items() ^ expected.files.items()}
    assert not differing, f"files: {sorted(differing)[:5]}"
    for kind in ("scalars", "pictures", "histograms", "texts"):
        have, want = getattr(found, kind), getattr(expected, kind)
        assert set(have) == set(want), f"{kind}: tags {set(have) ^ set(want)}"
        for tag in want:
            if have[tag] == want[tag]:
                continue
            steps, wanted = ([point[0] for point in series[tag]] for series in (have, want))
            missing, beyond = sorted(set(wanted) - set(steps)), sorted(set(steps) - set(wanted))
            doubled = sorted({step for step in steps if steps.count(step) > 1})
            altered = [at for at, is_at in zip(want[tag], have[tag], strict=False) if at != is_at]
            raise AssertionError(
                f"{kind}: {tag}: {len(steps)} points instead of {len(wanted)}; missing {missing}, "
                f"not logged {beyond}, doubled {doubled}, first that differs {altered[:1]}"
            )
