"""TensorBoard's own answers for each dashboard: what it says of a run of torch's SummaryWriter
and of the same run of ours, over HTTP, with both of its loaders."""

from __future__ import annotations

import io
import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tbparse import SummaryReader
from tensorboard.plugins.mesh.plugin_data_pb2 import MeshPluginData

from tests.e2e.test_drop_in import IMPORT, run_script
from tests.support.boards import Board
from tests.support.embedded import kill_all, wait_until_ended
from tests.support.waiting import wait_for

pytestmark = pytest.mark.filterwarnings(
    "ignore:.torch.jit.trace(_method)?. is deprecated:DeprecationWarning"
)

TORCH, OURS = "torch", "ranktap"
SUB_RUNS = ("", "/run_14h_sin", "/run_14h_cos", "/trial", "/again")


@pytest.fixture(scope="module")
def logdir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One run of each, side by side, of the script that uses every method."""
    root = tmp_path_factory.mktemp("dashboards")
    runs = root / "runs"
    run_script(root / "by_torch", runs / TORCH, IMPORT)
    try:
        run_script(root / "by_ranktap", runs / OURS, "from ranktap import SummaryWriter")
        wait_until_ended(runs / OURS)
        wait_until_ended(runs / OURS / "again")
        yield runs
    finally:
        kill_all(runs / OURS)
        kill_all(runs / OURS / "again")


@pytest.fixture(scope="module", params=[True, False], ids=["fast", "python"])
def board(logdir: Path, request: pytest.FixtureRequest) -> Iterator[Board]:
    board = Board(logdir, fast=request.param)
    wanted = {name + sub_run for name in (TORCH, OURS) for sub_run in SUB_RUNS}
    wait_for(lambda: wanted <= set(board.get("/data/runs") or []), "all runs to be listed", 60)
    # The last thing of the script, of both.
    for name in (TORCH, OURS):
        wait_for(lambda name=name: board.scalars(name, "late"), f"all of {name}", 60)
    yield board
    assert "Traceback" not in board.log
    board.close()


def by_run(board: Board, plugin: str) -> dict[str, dict[str, Any]]:
    """Its tags of torch's run and of ours, by the sub-run."""
    tags = board.get(f"/data/plugin/{plugin}/tags")
    return {
        name: {
            run.removeprefix(name): of_run
            for run, of_run in tags.items()
            if (run == name or run.startswith(f"{name}/")) and of_run
        }
        for name in (TORCH, OURS)
    }


def same_tags(board: Board, plugin: str) -> list[tuple[str, str]]:
    """(sub-run, tag) of all that a dashboard lists, which is the same for both."""
    tags = by_run(board, plugin)
    assert tags[TORCH], f"{plugin} lists nothing"
    plain = [
        {run: _without_own(of_run) for run, of_run in tags[name].items()} for name in (TORCH, OURS)
    ]
    assert plain[0] == plain[1]
    return [(run, tag) for run, of_run in plain[0].items() for tag in of_run]


def _without_own(of_run: Any) -> Any:
    if isinstance(of_run, dict):
        return {tag: of_tag for tag, of_tag in of_run.items() if not tag.startswith("ranktap/")}
    return sorted(tag for tag in of_run if not tag.startswith("ranktap/"))


def both(board: Board, path: str, sub_run: str, **query: str) -> list[Any]:
    """Torch's and our answer to one question."""
    answers = [board.get(path, run=name + sub_run, **query) for name in (TORCH, OURS)]
    assert answers[0], f"{path} has nothing of {sub_run!r} {query}"
    return answers


def without(answers: list[Any], *keys: str | int) -> list[Any]:
    """A list of points each, less the fields that may differ: wall times, addresses."""
    return [
        [
            {key: value for key, value in point.items() if key not in keys}
            if isinstance(point, dict)
            else [value for place, value in enumerate(point) if place not in keys]
            for point in points
        ]
        for points in answers
    ]


def same(answers: list[Any]) -> None:
    assert answers[0] == answers[1]


def test_scalars(board: Board) -> None:
    tags = same_tags(board, "scalars")
    assert {"loss/train", "loss/new", "late", "run_14h", "hparam/loss"} <= {tag for _, tag in tags}
    for sub_run, tag in tags:
        if tag == "loss/double" and not board.scalars(TORCH, tag):
            # The fast loader shows nothing of a double, whoever wrote it.
            assert not board.scalars(OURS, tag)
            continue
        same(without(both(board, "/data/plugin/scalars/scalars", sub_run, tag=tag), 0))


def test_histograms_and_distributions(board: Board) -> None:
    for plugin in ("histograms", "distributions"):
        tags = same_tags(board, plugin)
        assert {"weights", "weights/auto", "raw"} <= {tag for _, tag in tags}
        for sub_run, tag in tags:
            same(without(both(board, f"/data/plugin/{plugin}/{plugin}", sub_run, tag=tag), 0))


def test_images(board: Board) -> None:
    tags = same_tags(board, "images")
    assert {"image", "image/hw", "images", "boxes", "figure"} <= {tag for _, tag in tags}
    for sub_run, tag in tags:
        points = both(board, "/data/plugin/images/images", sub_run, tag=tag, sample="0")
        same(without(points, "wall_time", "query"))
        pixels = []
        for of_one in points:
            png = board.get(f"/data/plugin/images/individualImage?{of_one[0]['query']}")
            pixels.append(np.asarray(Image.open(io.BytesIO(png)).convert("RGB")))
        assert np.array_equal(*pixels), tag


def test_audio(board: Board) -> None:
    for sub_run, tag in same_tags(board, "audio"):
        points = both(board, "/data/plugin/audio/audio", sub_run, tag=tag, sample="0")
        same(without(points, "wall_time", "query"))
        sounds = [
            board.get(f"/data/plugin/audio/individualAudio?{of_one[0]['query']}")
            for of_one in points
        ]
        assert len(sounds[0]) > 44
        same(sounds)


def test_text(board: Board) -> None:
    tags = same_tags(board, "text")
    assert ("", "text") in [(run, tag.removesuffix("/text_summary")) for run, tag in tags]
    for sub_run, tag in tags:
        same(without(both(board, "/data/plugin/text/text", sub_run, tag=tag), "wall_time"))


def test_graphs(board: Board) -> None:
    info = board.get("/data/plugin/graphs/info")
    for sub_run in ("", "/again"):
        descriptions = [json.dumps(info[name + sub_run]) for name in (TORCH, OURS)]
        assert descriptions[0].replace(TORCH, OURS) == descriptions[1].replace(TORCH, OURS)
        graphs = both(board, "/data/plugin/graphs/graph", sub_run, conceptual="false")
        assert b"node {" in graphs[0]
        same(graphs)


def test_precision_recall_curves(board: Board) -> None:
    tags = same_tags(board, "pr_curves")
    assert {"curve", "curve/raw"} == {tag for _, tag in tags}
    for sub_run, tag in tags:
        answers = both(board, "/data/plugin/pr_curves/pr_curves", sub_run, tag=tag)
        curves = [next(iter(answer.values())) for answer in answers]
        same(without(curves, "wall_time", "relative"))


def test_custom_scalars(board: Board) -> None:
    layout = board.get("/data/plugin/custom_scalars/layout")
    assert [category["title"] for category in layout["category"]] == ["charts"]
    (chart,) = layout["category"][0]["chart"]
    assert chart["title"] == "both"
    found = both(board, "/data/plugin/custom_scalars/scalars", "", tag="loss/.*")
    assert all(answer["regex_valid"] for answer in found)
    series = [
        {tag: [point[1:] for point in points] for tag, points in answer["tag_to_events"].items()}
        for answer in found
    ]
    assert len(series[0]["loss/train"]) == 20
    same(series)


def test_meshes(board: Board) -> None:
    for sub_run, tag in same_tags(board, "mesh"):
        points = both(board, "/data/plugin/mesh/meshes", sub_run, tag=tag, sample="0")
        # The fast loader has them in no order.
        for of_one in points:
            of_one.sort(key=lambda point: point["content_type"])
        same(without(points, "wall_time"))
        assert [point["content_type"] for point in points[0]] == [
            MeshPluginData.VERTEX,
            MeshPluginData.COLOR,
        ]
        for content in ("VERTEX", "COLOR"):
            same(
                both(
                    board, "/data/plugin/mesh/data", sub_run,
                    tag=tag, sample="0", step="1", content_type=content,
                )
            )  # fmt: skip


def test_projector(board: Board) -> None:
    assert {TORCH, OURS} <= set(board.get("/data/plugin/projector/runs"))
    infos = both(board, "/data/plugin/projector/info", "")
    (name,) = (each["tensorName"] for each in infos[0]["embeddings"])
    assert infos[0]["embeddings"] == infos[1]["embeddings"]
    same(both(board, "/data/plugin/projector/tensor", "", name=name))
    same(both(board, "/data/plugin/projector/metadata", "", name=name))
    sprites = both(board, "/data/plugin/projector/sprite_image", "", name=name)
    assert np.array_equal(*(np.asarray(Image.open(io.BytesIO(png))) for png in sprites))


def test_hyperparameters(board: Board) -> None:
    request = {
        "experimentName": "", "allowedStatuses": ["STATUS_SUCCESS"], "colParams": [
            {"hparam": name, "includeInResult": True} for name in ("lr", "bsize", "net")
        ],
        "startIndex": 0, "sliceSize": 10,
    }  # fmt: skip
    answer = _post(board, "/data/plugin/hparams/session_groups", request)
    by_name = {group["name"]: group for group in answer["sessionGroups"]}
    groups = [
        next(group for name, group in by_name.items() if name.startswith(f"{name_of}/"))
        for name_of in (TORCH, OURS)
    ]
    assert groups[0]["hparams"] == {"lr": 0.1, "bsize": 1.0, "net": "fc"}
    same([group["hparams"] for group in groups])
    metrics = [[value["value"] for value in group["metricValues"]] for group in groups]
    assert 0.5 in metrics[0]
    same(metrics)


@pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning")  # of tbparse's own calls
def test_pandas_users_read_the_same_through_tbparse(logdir: Path) -> None:
    # Of tensors and pictures it needs TensorFlow, whoever wrote them.
    kinds = {"scalars", "histograms", "hparams"}
    found = []
    for name in (TORCH, OURS):
        reader = SummaryReader(str(logdir / name), event_types=kinds, extra_columns={"dir_name"})
        scalars = reader.scalars[~reader.scalars["tag"].str.startswith("ranktap/")]
        points = scalars[["dir_name", "tag", "step", "value"]].values.tolist()
        histograms = reader.histograms[["dir_name", "tag", "step"]].values.tolist()
        parameters = reader.hparams.astype(str).values.tolist()
        found.append([sorted(rows) for rows in (points, histograms, parameters)])
    assert ["", "late", 30, 1.0] in found[0][0] and len(found[0][1]) == 5 and len(found[0][2]) == 3
    assert found[0] == found[1]


def _post(board: Board, path: str, question: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        f"{board.url}{path}", json.dumps(question).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read())
