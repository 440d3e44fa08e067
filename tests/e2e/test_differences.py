"""What differs from torch's SummaryWriter on purpose: exactly so, and said so in the docs.

Each row of the table in docs/summary-writer.md that can be seen in what is written, or in
what a call raises, has its calls here.
"""

from __future__ import annotations

import collections
import io
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.tensorboard import SummaryWriter as TorchWriter
from torch.utils.tensorboard._utils import _prepare_video

from ranktap import SummaryWriter
from tests.support.calls import AT, WALL, Call, figure, random
from tests.support.daemons import DaemonProcess
from tests.support.event_files import event_files, events, scalar_points
from tests.support.waiting import wait_for
from tests.support.written import read_projector

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

DOCS = Path(__file__).parents[2] / "docs" / "summary-writer.md"
NAN, INF = math.nan, math.inf
VALUES = random(1, 50)
PICTURE = random(2, 3, 4, 5)
POINTS = random(3, 5, 2)
VERTICES = random(4, 1, 5, 3)
TRUTH = VALUES > 0.5
RAW = {"min": 0, "max": 1, "num": 2, "sum": 3, "sum_squares": 4}
BFLOAT16 = torch.bfloat16


def quantized() -> torch.Tensor:
    return torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.quint8)


# -- what one takes and the other refuses -----------------------------------------------------

Refusal = type[Exception] | None
REFUSED: dict[str, list[tuple[Refusal, type[Exception], Call]]] = {
    "AssertionError, NotImplementedError, AttributeError": [
        (NotImplementedError, TypeError, lambda w, t: w.add_scalar(t, None, **AT)),
        (NotImplementedError, TypeError, lambda w, t: w.add_scalar(t, [1.0], **AT)),
        (AssertionError, TypeError, lambda w, t: w.add_scalar(t, np.ones(2), **AT)),
        (ValueError, TypeError, lambda w, t: w.add_scalar(t, "high", **AT)),
        (TypeError, TypeError, lambda w, t: w.add_scalar(5, 1.0, **AT)),
        (ValueError, ValueError, lambda w, t: w.add_scalar(t, 1.0, 2**63)),
        (ValueError, ValueError, lambda w, t: w.add_scalar(t, 1.0, NAN)),
        (ValueError, ValueError, lambda w, t: w.add_scalar(t, 1.0, "first")),
        (TypeError, TypeError, lambda w, t: w.add_scalar(t, 1.0, [1])),
        (TypeError, TypeError, lambda w, t: w.add_scalar(t, 1.0, 1, "now")),
        (AttributeError, TypeError, lambda w, t: w.add_scalars(t, [1.0], **AT)),
        (AttributeError, TypeError, lambda w, t: w.add_text(t, 5, **AT)),
        (UnicodeEncodeError, ValueError, lambda w, t: w.add_text(t, "\ud800", **AT)),
        (ValueError, ValueError, lambda w, t: w.add_histogram(t, np.zeros(0), **AT)),
        (ValueError, ValueError, lambda w, t: w.add_histogram(t, VALUES, **AT, bins=[1, 0])),
        (ValueError, ValueError, lambda w, t: w.add_histogram(t, VALUES, **AT, bins="words")),
        (ZeroDivisionError, ValueError, lambda w, t: w.add_histogram(t, VALUES, max_bins=0)),
        (ValueError, ValueError, lambda w, t: w.add_histogram_raw(
            t, **RAW, bucket_limits=[1.0], bucket_counts=[1.0, 2.0])),
        (TypeError, ValueError, lambda w, t: w.add_image(t, random(1, 5, 4, 4), **AT)),
        (ValueError, ValueError, lambda w, t: w.add_image(t, random(1, 3, 0, 4), **AT)),
        (AssertionError, ValueError, lambda w, t: w.add_image(t, PICTURE, dataformats="HW")),
        (AssertionError, ValueError, lambda w, t: w.add_image(t, PICTURE, dataformats="CCW")),
        (IndexError, ValueError, lambda w, t: w.add_image_with_boxes(t, PICTURE, np.ones(4))),
        (AttributeError, TypeError, lambda w, t: w.add_figure(t, "figure", **AT)),
        (ValueError, ValueError, lambda w, t: w.add_figure(t, [figure(), figure((1, 1))])),
        (AssertionError, ValueError, lambda w, t: w.add_audio(t, random(1, 2, 50), **AT)),
        (ValueError, ValueError, lambda w, t: w.add_audio(t, np.zeros(0), **AT)),
        (ValueError, ValueError, lambda w, t: w.add_pr_curve(t, TRUTH[:3], VALUES, **AT)),
        (ValueError, ValueError, lambda w, t: w.add_mesh(t, VERTICES[0])),
        (AssertionError, ValueError, lambda w, t: w.add_embedding(VALUES, tag=t)),
        (AssertionError, ValueError, lambda w, t: w.add_embedding(POINTS, ["a"], tag=t)),
        (AssertionError, ValueError, lambda w, t: w.add_custom_scalars_marginchart(["a", "b"])),
        (TypeError, TypeError, lambda w, t: w.add_hparams([1], {}, run_name=t)),
        (ValueError, TypeError, lambda w, t: w.add_hparams({"a": [1]}, {}, run_name=t)),
        (TypeError, ValueError, lambda w, t: w.add_hparams({"a": 1}, {}, {"b": [1]}, t)),
        (TypeError, TypeError, lambda w, t: w.add_hparams({"a": 1}, {}, {"a": ["b"]}, t)),
    ],
    "an empty tag, control characters in a tag, a tag of bytes": [
        (None, ValueError, lambda w, t: w.add_scalar("", 1.0, **AT)),
        (None, TypeError, lambda w, t: w.add_scalar(None, 1.0, **AT)),
        (None, ValueError, lambda w, t: w.add_scalar(f"{t}\n", 1.0, **AT)),
        (None, ValueError, lambda w, t: w.add_text(f"{t}\t", "words", **AT)),
        (None, TypeError, lambda w, t: w.add_scalar(t.encode(), 1.0, **AT)),
        (None, ValueError, lambda w, t: w.add_scalar(t + "x" * 1_000, 1.0, **AT)),
    ],
    "a wall time of NaN": [
        (None, ValueError, lambda w, t: w.add_scalar(t, 1.0, 1, NAN)),
        (None, ValueError, lambda w, t: w.add_text(t, "words", 1, INF)),
    ],
    "a tensor on the meta device": [
        (None, TypeError, lambda w, t: w.add_scalar(t, torch.ones(1, device="meta"), **AT)),
        (None, TypeError, lambda w, t: w.add_histogram(t, torch.ones(9, device="meta"), **AT)),
    ],
    "`complex32`, quantized tensors": [
        (ValueError, TypeError,
         lambda w, t: w.add_tensor(t, torch.ones(2, dtype=torch.complex32), **AT)),
        (RuntimeError, TypeError, lambda w, t: w.add_tensor(t, quantized(), **AT)),
    ],
    "a histogram of complex numbers": [
        (None, TypeError, lambda w, t: w.add_histogram(t, VALUES + 1j, **AT)),
    ],
    "a sound of bools": [
        (None, ValueError, lambda w, t: w.add_audio(t, np.array([True, False]), **AT)),
    ],
    "a histogram's edges may repeat or be infinite": [
        (None, ValueError, lambda w, t: w.add_histogram(t, VALUES, **AT, bins=[0, 0.5, 0.5, 1])),
        (None, ValueError, lambda w, t: w.add_histogram(t, VALUES, **AT, bins=[-INF, 0, INF])),
    ],
    "one threshold of a precision-recall curve": [
        (None, ValueError, lambda w, t: w.add_pr_curve(t, TRUTH, VALUES, **AT, num_thresholds=1)),
        (None, ValueError, lambda w, t: w.add_pr_curve_raw(t, *[[1]] * 6, **AT, num_thresholds=1)),
    ],
    "a mesh of any last dimension": [
        (None, ValueError, lambda w, t: w.add_mesh(t, random(1, 1, 5, 4))),
        (None, ValueError, lambda w, t: w.add_mesh(t, random(1, 1, 0, 3))),
        (None, ValueError, lambda w, t: w.add_mesh(t, VERTICES, VERTICES[:, :4])),
        (None, TypeError, lambda w, t: w.add_mesh(t, VERTICES, config_dict=[1])),
    ],
    "a hyperparameter that is a tensor of several elements": [
        (None, TypeError, lambda w, t: w.add_hparams({"a": torch.ones(2)}, {}, run_name=t)),
    ],
    "text where several are expected": [
        (None, TypeError, lambda w, t: w.add_embedding(POINTS, "abcde", tag=t)),
        (None, TypeError, lambda w, t: w.add_custom_scalars_multilinechart("loss")),
    ],
    "a sub-run outside the run": [
        (None, ValueError, lambda w, t: w.add_hparams({"a": 1}, {}, run_name=f"../{t}")),
        (None, ValueError, lambda w, t: w.add_scalars(t, {"a/../b": 1.0}, **AT)),
        (None, ValueError, lambda w, t: w.add_scalars(t, {"a/.b": 1.0}, **AT)),
        (None, ValueError, lambda w, t: w.add_scalars(t, {"a ": 1.0}, **AT)),
        (None, ValueError, lambda w, t: w.add_scalars(t, {"a\\b": 1.0}, **AT)),
    ],
}  # fmt: skip
"""By words of the docs: what torch's writer raises (None: it writes), what ranktap's raises."""

TAKEN: dict[str, list[tuple[type[Exception], Call]]] = {
    "what else is an array of numbers": [
        (NotImplementedError, lambda w, t: w.add_image(t, PICTURE.tolist(), **AT)),
        (NotImplementedError, lambda w, t: w.add_image(
            t, Image.new("RGB", (3, 2)), **AT, dataformats="HWC")),
        (NotImplementedError, lambda w, t: w.add_histogram(t, [1.0, 2.0], **AT)),
        (NotImplementedError, lambda w, t: w.add_audio(t, [0.0, 0.5], **AT)),
        (NotImplementedError, lambda w, t: w.add_pr_curve(t, [0, 1], [0.2, 0.8], **AT)),
        (AttributeError, lambda w, t: w.add_tensor(t, [1, 2], **AT)),
        (AttributeError, lambda w, t: w.add_tensor(t, np.ones(2), **AT)),
        (NotImplementedError, lambda w, t: w.add_image_with_boxes(t, PICTURE, [[1, 1, 2, 2]])),
        (NotImplementedError, lambda w, t: w.add_embedding([[1.0, 2.0]], tag=t)),
        (TypeError, lambda w, t: w.add_embedding(
            POINTS, label_img=random(1, 5, 3, 2, 2), tag=t)),
        (AttributeError, lambda w, t: w.add_figure(t, (figure(),), **AT)),
        (TypeError, lambda w, t: w.add_pr_curve(t, TRUTH, VALUES, weights=torch.ones(50))),
        (TypeError, lambda w, t: w.add_scalar(t, 1.0, np.array([4]))),
        (AssertionError, lambda w, t: w.add_audio(t, np.array([0.5]), **AT)),
        (ValueError, lambda w, t: w.add_tensor(t, torch.ones(2, dtype=torch.uint16), **AT)),
        (TypeError, lambda w, t: w.add_scalar(t, torch.ones(1).to_sparse(), **AT)),
        (TypeError, lambda w, t: w.add_hparams(
            collections.OrderedDict(a=1), {}, run_name=t)),
        (ValueError, lambda w, t: w.add_hparams({"a": np.float32(1)}, {}, run_name=t)),
        (IndexError, lambda w, t: w.add_hparams({"a": torch.tensor(1.5)}, {}, run_name=t)),
        (TypeError, lambda w, t: w.add_hparams({"a": 1}, {}, {"a": (1, 2)}, t)),
        (TypeError, lambda w, t: w.add_hparams({"a": 1.0}, {}, {"a": [1, 2]}, t)),
    ],
    "NaN and infinite values of a histogram": [
        (ValueError, lambda w, t: w.add_histogram(t, np.array([1, NAN]), **AT, bins="auto")),
    ],
}  # fmt: skip
"""By words of the docs: what torch's writer raises, where ranktap's writes."""


@dataclass
class Pair:
    """The two writers, and where each writes."""

    its: TorchWriter
    own: SummaryWriter
    theirs: Path
    ours: Path
    made: int = 0

    def tag(self) -> str:
        """One that nothing has yet."""
        self.made += 1
        return f"tag{self.made:03}"

    def written(self, directory: Path) -> set[str]:
        """What there is: of each file and event the path, and of events the tags."""
        found = {f"{path.relative_to(directory)}" for path in directory.rglob("*.tsv")}
        for path in directory.rglob("*tfevents*"):
            for event in events(path):
                for value in event.summary.value:
                    found.add(f"{path.parent.relative_to(directory)} {value.tag}")
        return found

    def settle(self) -> None:
        """Wait until both have written all."""
        self.its.flush()
        tag = self.tag()
        self.own.add_scalar(tag, 1.0, 0)
        wait_for(lambda: tag in scalar_points(self.ours), "all to be written")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    directory = tmp_path_factory.mktemp("differences")
    daemon = DaemonProcess(directory / "ours").start()
    theirs = directory / "theirs"
    try:
        with (
            TorchWriter(str(theirs)) as its,
            SummaryWriter("run", endpoint=daemon.endpoint) as own,
        ):
            yield Pair(its, own, theirs, daemon.logdir / "run")
        assert daemon.stop() == 0
    finally:
        print(daemon.log)
        daemon.close()


def rows_of_docs() -> list[str]:
    """The table of differences in the docs, less its head."""
    _, _, text = DOCS.read_text().partition("## What differs, on purpose")
    return [line for line in text.splitlines() if line.startswith("| ")][2:]


@pytest.mark.parametrize("words", [*REFUSED, *TAKEN])
def test_the_docs_say_so(words: str) -> None:
    assert len([row for row in rows_of_docs() if words in row]) == 1


@pytest.mark.parametrize(
    ("theirs", "ours", "call"), [row for rows in REFUSED.values() for row in rows]
)
def test_a_call_is_refused_with_words_that_name_the_argument(
    pair: Pair, theirs: Refusal, ours: type[Exception], call: Call
) -> None:
    tag = pair.tag()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if theirs is None:
            call(pair.its, tag)
        else:
            with pytest.raises(theirs):
                call(pair.its, tag)
    with pytest.raises(ours, match=r"(?s)^[a-z_]+(\[.*\])*: .*expected .* got |was logged as"):
        call(pair.own, tag)


@pytest.mark.parametrize(("theirs", "call"), [row for rows in TAKEN.values() for row in rows])
def test_a_call_is_taken_that_torchs_writer_refuses(
    pair: Pair, theirs: type[Exception], call: Call
) -> None:
    tag = pair.tag()
    with pytest.raises(theirs):
        call(pair.its, tag)
    call(pair.own, tag)
    pair.settle()
    assert any(tag in each for each in pair.written(pair.ours))


# -- what both write, differently -----------------------------------------------------------


def written_by_both(pair: Pair, call: Call) -> tuple[list[Any], list[Any]]:
    """The values that a call makes: torch's writer's, and ranktap's."""
    tag = pair.tag()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        call(pair.its, tag)
    call(pair.own, tag)
    pair.settle()
    return values_of(pair.theirs, tag), values_of(pair.ours, tag)


def values_of(directory: Path, tag: str) -> list[Any]:
    found = [event for path in event_files(directory) for event in events(path)]
    return [each for event in found for each in event.summary.value if each.tag == tag]


@pytest.mark.parametrize(("given", "theirs"), [(1e6, INF), (1e-10, 0.0)])
def test_bfloat16_is_what_it_is(pair: Pair, given: float, theirs: float) -> None:
    number = torch.tensor(given, dtype=BFLOAT16)
    its, own = written_by_both(pair, lambda w, t: w.add_scalar(t, number, **AT))
    assert (its[0].simple_value, own[0].simple_value) == (theirs, np.float32(number.item()))
    values = torch.stack([number, torch.tensor(1.0, dtype=BFLOAT16)])
    its, own = written_by_both(pair, lambda w, t: w.add_histogram(t, values, **AT))
    assert theirs in (its[0].histo.min, its[0].histo.max)
    assert number.item() in (own[0].histo.min, own[0].histo.max)


@pytest.mark.parametrize("stray", [NAN, INF, -INF])
def test_what_is_not_finite_is_left_out_of_a_histogram(pair: Pair, stray: float) -> None:
    values = np.array([1.0, stray, 2.0])
    its, own = written_by_both(pair, lambda w, t: w.add_histogram(t, values, **AT))
    assert its[0].histo.num == 3 and not math.isfinite(its[0].histo.sum)
    histogram = own[0].histo
    assert (histogram.min, histogram.max, histogram.num) == (1.0, 2.0, 2)
    assert (histogram.sum, histogram.sum_squares) == (3.0, 5.0)
    assert sum(histogram.bucket) == 2


def test_a_histogram_has_no_bucket_beyond_its_edges_and_no_sign_of_zero(pair: Pair) -> None:
    its, own = written_by_both(pair, lambda w, t: w.add_histogram(t, VALUES, bins=[5, 6]))
    assert (its[0].histo.bucket_limit, its[0].histo.bucket) == ([6.0], [0.0])
    assert (own[0].histo.bucket_limit, own[0].histo.bucket) == ([], [])
    assert own[0].histo.num == its[0].histo.num == 50
    its, own = written_by_both(pair, lambda w, t: w.add_histogram(t, np.array([-0.0])))
    assert math.copysign(1, its[0].histo.max) == -1
    assert math.copysign(1, own[0].histo.max) == 1


def test_a_histogram_far_beyond_the_usual_edges_is_written_without_buckets(pair: Pair) -> None:
    far = np.array([1e21, 2e21])
    with pytest.raises(ValueError, match="histogram is empty"):
        pair.its.add_histogram("far", far)
    pair.own.add_histogram("far", far)
    pair.settle()
    (value,) = values_of(pair.ours, "far")
    assert (value.histo.min, value.histo.max, value.histo.num) == (1e21, 2e21, 2)
    assert not value.histo.bucket


def test_the_loudest_half_is_loud_and_a_rate_is_a_whole_number(pair: Pair) -> None:
    loudest = np.array([1, 0.5], np.float16)
    its, own = written_by_both(
        pair, lambda w, t: w.add_audio(t, loudest, **AT, sample_rate=8_000.5)
    )
    samples = [np.frombuffer(each[0].audio.encoded_audio_string[-4:], "<i2") for each in (its, own)]
    assert [each.tolist() for each in samples] == [[-32_768, 16_384], [32_767, 16_384]]
    assert (its[0].audio.sample_rate, own[0].audio.sample_rate) == (8_000.5, 8_000)


def test_values_before_a_wrong_one_are_not_written(pair: Pair) -> None:
    for writer in (pair.its, pair.own):
        with pytest.raises((NotImplementedError, TypeError)):
            writer.add_scalars("wrong", {"first": 1.0, "second": None}, **AT)
    pair.settle()
    assert "wrong_first wrong" in pair.written(pair.theirs)
    assert not any("wrong" in each for each in pair.written(pair.ours))


def test_a_tag_stays_of_one_kind(pair: Pair) -> None:
    tag = pair.tag()
    for writer in (pair.its, pair.own):
        writer.add_scalar(tag, 1.0, **AT)
    pair.its.add_image(tag, PICTURE, **AT)
    with pytest.raises(ValueError, match=rf"^tag: '{tag}' was logged as scalar .*, now as image"):
        pair.own.add_image(tag, PICTURE, **AT)


@pytest.mark.parametrize(
    "call",
    [
        lambda w: w.add_image("large", np.zeros((3, 5_000, 5_000), np.uint8)),
        lambda w: w.add_tensor("large", torch.zeros(2**24 + 1, dtype=torch.uint8)),
        lambda w: w.add_embedding(np.zeros((2**23 + 1, 2), np.uint8)),
    ],
    ids=["record", "tensor", "embedding"],
)
def test_there_is_a_limit_to_size(pair: Pair, call: Callable[[SummaryWriter], None]) -> None:
    with pytest.raises(ValueError, match=r"^(img_tensor|tensor|mat): expected at most"):
        call(pair.own)


def test_pictures_of_uint8_of_an_embedding_are_as_they_are(pair: Pair) -> None:
    pictures = torch.from_numpy((random(5, 4, 3, 2, 2) * 255).astype(np.uint8))
    for writer in (pair.its, pair.own):
        writer.add_embedding(random(6, 4, 2), label_img=pictures, tag="points")
    pair.settle()
    its, own = (
        np.asarray(Image.open(directory / "00000" / "points" / "sprite.png"))
        for directory in (pair.theirs, pair.ours)
    )
    tiled = pictures.numpy().reshape(2, 2, 3, 2, 2).transpose(0, 3, 1, 4, 2).reshape(4, 4, 3)
    np.testing.assert_array_equal(own, tiled)
    np.testing.assert_array_equal(its, np.where(tiled, 255, 0))


def test_an_embedding_again_takes_the_place_of_the_first(pair: Pair) -> None:
    for number in (7, 8):
        for writer in (pair.its, pair.own):
            writer.add_embedding(random(number, 4, 2), tag="twice", global_step=3.7)
    pair.settle()
    its, own = (read_projector(directory) for directory in (pair.theirs, pair.ours))
    name = 'tensor_name: "twice:'
    assert its["projector_config.pbtxt"].count(name) == 2
    assert own["projector_config.pbtxt"].count(name) == 1
    assert own["00003/twice/tensors.tsv"] == its["003.7/twice/tensors.tsv"]


def test_a_sub_run_and_a_run_go_on_in_one_file(pair: Pair) -> None:
    for number in (1, 2):
        for writer in (pair.its, pair.own):
            writer.add_hparams({"rate": number}, {"loss": number}, run_name="trial")
    pair.settle()
    files = [[*each.glob("trial/*tfevents*")] for each in (pair.theirs, pair.ours)]
    assert [len(each) for each in files] == [2, 1]
    its, own = (scalar_points(each / "trial")["loss"] for each in (pair.theirs, pair.ours))
    # Of two files of a second, the tenth of a process stands before the ninth.
    assert own == sorted(its) == [(0, 1.0), (0, 2.0)]
    before = [len(event_files(each)) for each in (pair.theirs, pair.ours)]
    for writer in (pair.its, pair.own):
        writer.close()
        writer.add_scalar("reopened", 1.0, 5)
    pair.settle()
    after = [len(event_files(each)) for each in (pair.theirs, pair.ours)]
    assert after == [before[0] + 1, before[1]]
    assert scalar_points(pair.ours)["reopened"] == scalar_points(pair.theirs)["reopened"]


def test_the_writers_files_are_not_there(pair: Pair) -> None:
    for name in ("file_writer", "all_writers", "default_bins", "_get_file_writer"):
        assert hasattr(pair.its, name) and not hasattr(pair.own, name)


# -- video ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "colours"), [((1, 3, 3, 8, 6), 2), ((3, 2, 1, 4, 5), 256), ((5, 2, 3, 8, 8), 256)],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_a_videos_frames_are_those_that_torch_prepares(
    pair: Pair, shape: tuple[int, ...], colours: int, dtype: type
) -> None:
    video = np.random.default_rng(0).integers(0, colours, shape) * (255 // (colours - 1))
    given = video.astype(np.uint8) if dtype is np.uint8 else (video / 255).astype(dtype)
    its, own = written_by_both(pair, lambda w, t: w.add_video(t, given, 3, 10, WALL))
    # Without moviepy below 2.0 torch's writer writes this much.
    assert not its[0].HasField("image")
    expected = (_prepare_video(given).astype(np.float32) * 255).clip(0, 255).astype(np.uint8)
    gif = Image.open(io.BytesIO(own[0].image.encoded_image_string))
    assert (gif.n_frames, gif.info["duration"]) == (shape[1], 100)
    assert (own[0].image.height, own[0].image.width) == expected.shape[1:3]
    assert own[0].image.colorspace == shape[2]
    for number, frame in enumerate(expected):
        gif.seek(number)
        shown = np.asarray(gif.convert("RGB")).astype(np.float64)
        difference = shown - np.broadcast_to(frame, shown.shape)
        # A palette has 256 colours: grey, and a frame of fewer, is exact.
        if shape[2] == 1 or colours == 2:
            assert not difference.any()
        else:
            assert np.square(difference).mean() < 255**2 / 10 ** (20 / 10)
