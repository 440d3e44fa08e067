"""Records of every kind, through the wire's frames and the fold, against torch's summaries."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.graph_pb2 import GraphDef
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.custom_scalar import layout_pb2
from torch.utils.tensorboard import summary as torch_summary

from ranktap_wire import documents, limits
from ranktap_wire.kind_rules import EMBEDDING_TAG_BYTES
from ranktap_wire.records import Across, Batch, Blob, Buffer, Kind
from ranktap_wire.shown import LAYOUT_TAG
from ranktapd import drawing, run_tags
from ranktapd.entries import TagsLimited
from ranktapd.fold import Fold
from tests.support import messages
from tests.unit.test_fold import Journal, begun, events

CHANCE = np.random.default_rng(0)
IMAGE = CHANCE.integers(0, 256, (3, 5, 7), np.uint8)
BOXES = np.array([[1.0, 1.0, 4.0, 3.0]])
VERTICES = CHANCE.random((1, 4, 3), np.float32)
CURVE = CHANCE.random((6, 5))
LABELS = CHANCE.integers(0, 2, 20, np.uint8)
PREDICTIONS = CHANCE.random(20, np.float32)
WEIGHTS = CHANCE.random(20)
LIMITS, COUNTS = np.arange(3.0), np.array([1.0, 0.0, 2.0])
NUMBERS = {"min": 0.0, "max": 2.0, "num": 3.0, "sum": 4.0, "sum_squares": 8.0}
GRAPH = GraphDef(node=[{"name": "x", "op": "Variable"}]).SerializeToString()  # type: ignore[list-item]
LAYOUT = {"mine": {"chart": ["Multiline", ["loss", "val.*"]]}}
TRIAL = documents.HParams({"lr": 0.1, "opt": "sgd"}, ["loss"], {"opt": ["sgd", "adam"]})


def blob(
    kind: Kind,
    data: np.ndarray | bytes,
    parameters: dict[str, Any] | None = None,
    *,
    tag: str = "a/b",
    step: int = 4,
    dtype: str | None = None,
    across: Across = Across.EACH,
    **parts: Buffer,
) -> Blob:
    shape = (len(data),) if isinstance(data, bytes) else data.shape
    name = dtype or ("uint8" if isinstance(data, bytes) else data.dtype.name)
    return Blob(kind, tag, step, 1.5, across, name, shape, parameters or {}, data, dict(parts))


def text(tag: str, words: str = "words", *, step: int = 4) -> Blob:
    return blob(Kind.TEXT, words.encode(), tag=tag, step=step, dtype="utf8")


def layout(**changed: str) -> Blob:
    category = documents.Category("mine", [documents.Chart("chart", False, ["loss", "val.*"])])
    packed = documents.pack_layout([category])
    return blob(
        Kind.CUSTOM_SCALARS, packed, dtype="utf8", across=Across.RANK0, **changed  # type: ignore[arg-type]
    )  # fmt: skip


def hparams(tag: str) -> Blob:
    packed = documents.pack_hparams(TRIAL)
    return blob(Kind.HPARAMS, packed, tag=tag, dtype="utf8", across=Across.RANK0)


def summaries(written: bytes) -> list[Event]:
    """The events that show something, less the wall time."""
    found = [event for event in events(written) if event.summary.value]
    for event in found:
        assert event.wall_time == 1.5
        event.wall_time = 0.0
    return found


def torchs(*of_torch: Summary) -> list[Event]:
    return [Event(step=4, summary=summary) for summary in of_torch]


def less_the_encoder(found: list[Event]) -> list[Event]:
    """PNGs of the same pixels differ; the pixels are compared elsewhere."""
    for event in found:
        for value in event.summary.value:
            assert value.image.encoded_image_string
            value.image.encoded_image_string = b""
    return found


CASES = {
    "tensor": (
        blob(Kind.TENSOR, VERTICES),
        lambda: torch_summary.tensor_proto("a/b", torch.from_numpy(VERTICES)),
    ),
    "histogram_raw": (
        blob(Kind.HISTOGRAM_RAW, np.stack((LIMITS, COUNTS)), NUMBERS),
        lambda: torch_summary.histogram_raw(
            "a/b", **NUMBERS, bucket_limits=LIMITS.tolist(), bucket_counts=COUNTS.tolist()
        ),
    ),
    "audio": (
        blob(Kind.AUDIO, CHANCE.random(9), {"sample_rate": 8_000}),
        lambda: torch_summary.audio("a/b", CASES["audio"][0].array(), 8_000),
    ),
    "pr_curve": (
        blob(Kind.PR_CURVE, PREDICTIONS, {"num_thresholds": 11}, labels=LABELS),
        lambda: torch_summary.pr_curve("a/b", LABELS, PREDICTIONS, 11),
    ),
    "pr_curve with weights": (
        blob(
            Kind.PR_CURVE, PREDICTIONS, {"num_thresholds": 11},
            labels=LABELS.astype(np.float64), weights=WEIGHTS,
        ),
        lambda: torch_summary.pr_curve("a/b", LABELS, PREDICTIONS, 11, WEIGHTS),
    ),
    "pr_curve_raw": (
        blob(Kind.PR_CURVE_RAW, CURVE, {"num_thresholds": 5}),
        lambda: torch_summary.pr_curve_raw("a/b", *CURVE, num_thresholds=5),
    ),
    "mesh": (
        blob(
            Kind.MESH, VERTICES, colors=255 * VERTICES, faces=VERTICES[:, :2],
            config=json.dumps({"lights": []}).encode(),
        ),
        lambda: torch_summary.mesh(
            "a/b", VERTICES, 255 * VERTICES, VERTICES[:, :2], {"lights": []}
        ),
    ),
    "a cloud of points": (
        blob(Kind.MESH, VERTICES), lambda: torch_summary.mesh("a/b", VERTICES, None, None, None),
    ),
    "custom_scalars": (layout(), lambda: torch_summary.custom_scalars(LAYOUT)),
    "text": (text("a/b"), lambda: torch_summary.text("a/b", "words")),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_record_is_written_as_torch_writes_it(name: str) -> None:
    logged, of_torch = CASES[name]
    journal = begun(1)
    journal.blobs(0, 1, logged)
    assert summaries(journal.output) == torchs(of_torch())


@pytest.mark.parametrize(
    ("logged", "of_torch"),
    [
        (
            blob(Kind.IMAGE_BOXES, IMAGE, {"dataformats": "CHW", "rescale": 2.0}, boxes=BOXES),
            torch_summary.image_boxes("a/b", IMAGE, BOXES, 2.0, "CHW"),
        ),
        (
            blob(
                Kind.IMAGE_BOXES, IMAGE, {"dataformats": "CHW", "rescale": 1.0},
                boxes=BOXES, labels=documents.pack_labels(["cat"]),
            ),
            torch_summary.image_boxes("a/b", IMAGE, BOXES, 1.0, "CHW", ["cat"]),
        ),
        (
            blob(Kind.ENCODED_IMAGE, b"GIF89a...", {"height": 5, "width": 7, "channels": 3}),
            torch_summary.image("a/b", IMAGE, 1.0, "CHW"),
        ),
    ],
    ids=["boxes", "labels", "video"],
)  # fmt: skip
def test_a_picture_is_written_as_torch_writes_it(logged: Blob, of_torch: Summary) -> None:
    journal = begun(1)
    journal.blobs(0, 1, logged)
    assert less_the_encoder(summaries(journal.output)) == less_the_encoder(torchs(of_torch))


def test_hyperparameters_are_three_events_of_their_sub_run() -> None:
    journal = begun(1)
    journal.blobs(0, 1, hparams("trial\t_hparams_/experiment"))
    assert journal.last.sub_runs == ["trial"]
    found = summaries(journal.last.join("trial"))
    theirs = torch_summary.hparams(TRIAL.values, {"loss": 1.0}, dict(TRIAL.discrete))
    assert [event.step for event in found] == [4, 4, 4]
    assert [event.summary.value[0].tag for event in found] == [
        summary.value[0].tag for summary in theirs
    ]


def test_a_graph_is_two_events_without_a_step_and_one_of_onnx_is_one() -> None:
    traced = blob(Kind.GRAPH, GRAPH, across=Across.RANK0, run_metadata=b"")
    journal = begun(1)
    journal.blobs(0, 1, traced, blob(Kind.GRAPH, GRAPH, across=Across.RANK0))
    kinds = [event.WhichOneof("what") for event in events(journal.output)]
    assert kinds[1:4] == ["graph_def", "tagged_run_metadata", "graph_def"]
    written = events(journal.output)[1]
    assert (written.graph_def, written.step, written.wall_time) == (GRAPH, 0, 1.5)


def test_a_graph_that_does_not_parse_is_left_out_and_told_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    journal = begun(1)
    journal.blobs(0, 1, blob(Kind.GRAPH, b"\xff", across=Across.RANK0), text("note"))
    assert [event.WhichOneof("what") for event in events(journal.output)] == [
        "session_log",
        "summary",
        "session_log",
    ]
    assert "'a/b' cannot be drawn at step 4: graph is no serialized GraphDef" in caplog.text


# -- many ranks, many names ---------------------------------------------------------------


def tags(written: bytes) -> list[str]:
    """Of all values but the job's summary."""
    found = [value.tag for event in events(written) for value in event.summary.value]
    return [tag for tag in found if not tag.startswith("ranktap/job/")]


def test_each_rank_has_its_own_series_also_in_a_sub_run() -> None:
    journal = begun(2)
    for rank in (0, 1):
        journal.blobs(rank, 1, text("note"), text("sub\tnote"))
        assert tags(journal.last.join("sub")) == tags(journal.last.join())
    assert tags(journal.output) == ["note/text_summary", "ranks/note/rank1/text_summary"]


def test_of_what_is_rank_0s_the_others_count_for_nothing() -> None:
    journal = begun(2)
    journal.blobs(1, 1, layout(), hparams("trial\tx"), blob(Kind.GRAPH, GRAPH, across=Across.RANK0))
    assert not journal.last.join()
    assert journal.last.sub_runs == []


@pytest.mark.parametrize(
    "logged",
    [text("x"), blob(Kind.MESH, VERTICES, tag="x"), blob(Kind.GRAPH, GRAPH, across=Across.RANK0)],
    ids=["text", "mesh", "graph"],
)
def test_what_torch_writes_under_another_tag_is_not_in_a_scalars_way(logged: Blob) -> None:
    journal = begun(1)
    assert journal.scalar(0, 1, logged.tag, 0, 1.0)
    journal.blobs(0, 2, logged)
    assert len(events(journal.last.join())) == 2, "it and a checkpoint"


def test_pictures_of_all_kinds_may_share_a_tag() -> None:
    journal = begun(1)
    dataformats = {"dataformats": "CHW"}
    journal.blobs(
        0, 1,
        blob(Kind.IMAGE, IMAGE, dataformats, step=1),
        blob(Kind.IMAGES, IMAGE[None], {"dataformats": "NCHW"}, step=2),
        blob(Kind.IMAGE_BOXES, IMAGE, dataformats | {"rescale": 1.0}, step=3, boxes=BOXES),
    )  # fmt: skip
    assert [event.step for event in events(journal.output) if event.summary.value] == [1, 2, 3]


def test_a_tag_of_two_kinds_keeps_its_first(caplog: pytest.LogCaptureFixture) -> None:
    journal = begun(1)
    journal.scalar(0, 1, "x", 0, 1.0)
    for number in (2, 3):
        journal.blobs(0, number, blob(Kind.AUDIO, np.ones(2), {"sample_rate": 1}, tag="x"))
        assert not journal.last.join()
    assert caplog.text.count("'x' is scalar; as audio it is left out") == 1


def test_the_layout_grows_as_tags_appear_and_is_grouped_as_they_are() -> None:
    journal = begun(2)
    expected: dict[str, list[str]] = {}
    for number, tag in enumerate(("train/loss", "val/loss", "train/rate"), 1):
        for rank in (0, 1):
            journal.scalar(rank, number, tag, number, 1.0)
        expected.setdefault(tag.partition("/")[0], []).append(tag)
        (value,) = [
            each
            for event in events(journal.last.join())
            for each in event.summary.value
            if each.tag == LAYOUT_TAG
        ]
        layout = layout_pb2.Layout.FromString(value.tensor.string_val[0])
        charts = {
            category.title: {chart.title: chart.margin.series for chart in category.chart}
            for category in layout.category
        }
        assert {title: [*each] for title, each in charts.items()} == expected
        for tag_of_chart, (series,) in charts[tag.partition("/")[0]].items():
            assert [series.value, series.lower, series.upper] == [
                tag_of_chart, f"ranks/{tag_of_chart}/min", f"ranks/{tag_of_chart}/max"
            ]  # fmt: skip
    for rank in (0, 1):
        journal.scalar(rank, 4, "val/loss", 4, 1.0)
    assert LAYOUT_TAG not in tags(journal.last.join()), "nothing new, no layout"


def test_the_users_layout_of_the_custom_scalars_page_is_left_alone() -> None:
    journal = begun(2)

    def merge(number: int, tag: str) -> list[str]:
        for rank in (0, 1):
            journal.scalar(rank, number, tag, number, 1.0)
        return tags(journal.last.join())

    assert LAYOUT_TAG in merge(1, "loss")
    journal.blobs(0, 2, layout())
    assert tags(journal.last.join()) == [LAYOUT_TAG]
    assert merge(3, "accuracy") == ["accuracy", "ranks/accuracy/min", "ranks/accuracy/max"]
    again = Journal(Fold.restore(journal.fold.state(), ThreadPoolExecutor(1)))
    for rank in (0, 1):
        again.scalar(rank, 4, "other", 4, 1.0)
    assert tags(again.last.join()) == ["other", "ranks/other/min", "ranks/other/max"]


def test_a_sub_runs_layout_does_not_stand_for_the_runs() -> None:
    journal = begun(2)
    journal.blobs(0, 1, layout(tag="sub\tx"))
    for rank in (0, 1):
        journal.scalar(rank, 2, "loss", 0, 1.0)
    assert LAYOUT_TAG in tags(journal.last.join())


def test_what_would_be_made_of_the_longest_tag_is_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    longest = "x" * limits.TAG_BYTES
    journal = begun(2)
    for rank in (0, 1):
        journal.scalar(rank, 1, longest, 0, 1.0)
    assert tags(journal.last.join()) == [longest]
    assert "is too long a tag: it is left out" in caplog.text


def test_more_sub_runs_than_there_may_be_are_left_out_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(run_tags, "SUB_RUNS", 2)
    journal = begun(1)
    for number, sub_run in enumerate(("a", "b", "c", "a", "d"), 1):
        journal.scalar(0, number, f"{sub_run}\tloss", number, 1.0)
        journal.scalar(0, number, "loss", number, 1.0)
        assert tags(journal.last.join()) == ["loss"]
    assert caplog.text.count("more than 2 sub-runs") == 1
    assert {name for name, _ in journal.fold.state()["tags"]["kinds"]} == {
        "loss", "a\tloss", "b\tloss",
    }  # fmt: skip


def test_tags_beyond_those_there_may_be_are_left_out_as_the_journal_says() -> None:
    own = len(begun(1).fold.state()["tags"]["kinds"])

    def journal(*, from_snapshots: bool) -> Journal:
        journal = begun(1)
        number = 0
        for most, expected in ((3, "abc"), (2, "abc"), (5, "abcde")):
            journal.say(TagsLimited(own + most))
            for _ in range(2):  # the second time its tag table is known
                number += 1
                logged = messages.columns([1.0] * 6, tuple("abcdef"))
                journal.batch(0, number, Batch(logged))
                assert tags(journal.last.join()) == list(expected)
                if from_snapshots:
                    state = journal.fold.state()
                    journal.fold = Fold.restore(state, ThreadPoolExecutor(1))
        return journal

    straight = journal(from_snapshots=False)
    assert straight.output == journal(from_snapshots=True).output
    assert straight.fold.state()["tags"]["most"] == own + 5
    text = f"this run has {own + 3} tags (max_run_tags): what is logged under others is left out"
    assert straight.fold.limits_met == {"max_run_tags": text}


# -- embeddings ---------------------------------------------------------------------------


def embedding(tag: str = "default", step: int | None = None, **parts: Buffer) -> Blob:
    sprite = parts.get("sprite")
    parameters = {
        "global_step": step,
        "sprite_shape": None if sprite is None else list(sprite.shape),  # type: ignore[union-attr]
        "sprite_dtype": None if sprite is None else sprite.dtype.name,  # type: ignore[union-attr]
    }
    points = np.arange(4, dtype=np.float32).reshape(2, 2)
    return blob(Kind.EMBEDDING, points, parameters, tag=tag, step=step or 0, **parts)


def files(journal: Journal) -> dict[str, bytes]:
    return {
        "/".join(filter(None, (file.sub_run, file.path))): b"".join(file.pieces())
        for file in journal.last.files
    }


def names_in(config: bytes) -> list[str]:
    return [
        line.partition('"')[2].rstrip('"')
        for line in config.decode().splitlines()
        if "tensor_name" in line
    ]


def test_an_embedding_is_files_and_a_checkpoint() -> None:
    journal = begun(1)
    sprite = np.zeros((2, 1, 3, 3), np.uint8)
    journal.blobs(0, 1, embedding(metadata=b"a\nb\n", sprite=sprite))
    written = files(journal)
    assert [*written] == [
        "00000/default/tensors.tsv",
        "00000/default/metadata.tsv",
        "00000/default/sprite.png",
        "projector_config.pbtxt",
    ]
    assert written["00000/default/tensors.tsv"] == b"0.0\t1.0\n2.0\t3.0\n"
    assert written["00000/default/metadata.tsv"] == b"a\nb\n"
    assert written["00000/default/sprite.png"].startswith(b"\x89PNG")
    kinds = [event.session_log.status for event in events(journal.last.join())]
    assert len(kinds) == 2, "START and a checkpoint"


def test_embeddings_of_ranks_steps_and_sub_runs_stand_side_by_side() -> None:
    journal = begun(2)
    journal.blobs(0, 1, embedding("x/y", 7), embedding("x/y", 8))
    journal.blobs(1, 1, embedding("x/y", 7), embedding("sub\tz"))
    assert [*files(journal)] == [
        "00007/ranks%2fx%2fy%2frank1/tensors.tsv",
        "projector_config.pbtxt",
        "sub/00000/ranks%2fz%2frank1/tensors.tsv",
        "sub/projector_config.pbtxt",
    ]
    assert names_in(files(journal)["projector_config.pbtxt"]) == [
        "x/y:00007", "x/y:00008", "ranks/x/y/rank1:00007",
    ]  # fmt: skip
    assert names_in(files(journal)["sub/projector_config.pbtxt"]) == ["ranks/z/rank1:00000"]


def test_the_configuration_goes_on_from_a_snapshot_and_names_each_embedding_once() -> None:
    journal = begun(1)
    sprite = np.zeros((2, 3, 4, 5))
    journal.blobs(0, 1, embedding("a", sprite=sprite), embedding("sub\ta"))
    again = Journal(Fold.restore(journal.fold.state(), ThreadPoolExecutor(1)))
    for each in (journal, again):
        each.blobs(0, 2, embedding("b", metadata=b"a\nb\n"), embedding("a", sprite=sprite))
    assert files(again) == files(journal)
    assert names_in(files(again)["projector_config.pbtxt"]) == ["a:00000", "b:00000"]


def test_embeddings_beyond_the_limit_are_left_out_and_those_before_can_be_written_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = begun(1)
    monkeypatch.setattr("ranktapd.embeddings.EMBEDDINGS", 1)
    journal.blobs(0, 1, embedding("a"), embedding("b"), embedding("sub\ta"), embedding("a"))
    assert names_in(files(journal)["projector_config.pbtxt"]) == ["a:00000"]
    assert len(files(journal)) == 2
    assert caplog.text.count("more than 1 embeddings") == 1


def test_the_longest_tag_of_an_embedding_is_a_directorys_name_on_the_last_rank(
    tmp_path: Path,
) -> None:
    tag = "x" * EMBEDDING_TAG_BYTES
    journal = begun(1)
    journal.open(1, limits.WORLD_SIZE - 1, limits.WORLD_SIZE)
    journal.blobs(1, 1, embedding(tag))
    path, _ = files(journal)
    (tmp_path / path).parent.mkdir(parents=True)


def test_every_kind_is_drawn_or_has_a_way_of_its_own() -> None:
    own_ways = {Kind.HISTOGRAM, Kind.MOMENTS, Kind.EMBEDDING}
    assert {*drawing.DRAWN} == {*Kind} - own_ways
