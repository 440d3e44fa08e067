"""Curves, graphs, layouts and hyperparameters: what a daemon reads of them, what they refuse."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from tensorboard.compat.proto.config_pb2 import RunMetadata
from tensorboard.compat.proto.graph_pb2 import GraphDef
from torch.utils.tensorboard._pytorch_graph import graph as trace

from ranktap import Tap
from ranktap_wire import limits
from ranktap_wire.documents import Category, Chart, HParams, read_hparams, read_layout
from ranktap_wire.records import Across, Columns, Kind, Style, split_name
from tests.support.taps import logged, refused, sent, sent_blob, slow_device
from tests.support.watching import silent_taps

LONG = "y" * limits.RUN_BYTES


@pytest.fixture
def tap() -> Iterator[Tap]:
    with silent_taps() as make:
        yield make()


@pytest.fixture
def other_rank() -> Iterator[Tap]:
    with silent_taps() as make:
        yield make(1, 2)


def columns(tap: Tap) -> Columns:
    """The scalars that wait, and nothing else."""
    batch = sent(tap)
    assert batch is not None and not batch.blobs and batch.columns is not None
    return batch.columns


def points(columns: Columns) -> list[tuple[str, str, int, float, float]]:
    """Sub-run, tag, step, wall time and value of each."""
    names = [split_name(columns.tags[index]) for index in columns.tag_index]
    rows = zip(names, columns.step, columns.wall_time, columns.value, strict=True)
    return [(*name, int(step), float(time), float(value)) for name, step, time, value in rows]


# -- several scalars ----------------------------------------------------------------------


@pytest.mark.parametrize("times", [1, 2])
def test_curves_are_scalars_of_one_tag_in_runs_of_their_own(tap: Tap, times: int) -> None:
    for _ in range(times):
        tap.curves("loss/a", {"x": 1, "y/z": torch.tensor(2.5)}, 3, walltime=4.5)
    assert (
        points(columns(tap))
        == [
            ("loss_a_x", "loss/a", 3, 4.5, 1.0),
            ("loss_a_y/z", "loss/a", 3, 4.5, 2.5),
        ]
        * times
    )


def test_curves_have_the_step_of_the_tap_and_a_policy(tap: Tap) -> None:
    tap.step(7)
    tap.curves("loss", {"x": math.nan}, across="max")
    found = columns(tap)
    assert found.step.tolist() == [7]
    assert found.policy.tolist() == [Across.MAX]


def test_a_curve_is_neither_the_scalar_of_its_tag_nor_that_of_another_chart(tap: Tap) -> None:
    tap.scalar("loss", 1.0, across="sum")
    tap.curves("loss", {"x": 2.0})
    tap.scalars({"x": 3.0}, prefix="loss")
    tap.curves("other", {"x": 4.0})
    assert [name[:2] for name in points(columns(tap))] == [
        ("", "loss"), ("loss_x", "loss"), ("", "loss/x"), ("other_x", "other"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "argument", "error"),
    [
        ({"tag": ""}, "tag", ValueError), ({"tag": 5}, "tag", TypeError),
        ({"tag": "a\tb"}, "tag", ValueError),
        ({"values": [1.0]}, "values", TypeError), ({"values": {5: 1.0}}, "values", TypeError),
        ({"values": {"x": "1"}}, "values['x']", TypeError),
        ({"values": {"x": None}}, "values['x']", TypeError),
        ({"values": {"x": 1.0, "a//b": 2.0}}, "values['a//b']", ValueError),
        ({"values": {"x": 1.0, "../..": 2.0}}, "values['../..']", ValueError),
        ({"values": {LONG: 1.0}}, f"values[{LONG!r}]", ValueError),
        ({"step": 1.5}, "step", TypeError), ({"walltime": math.nan}, "walltime", ValueError),
        ({"across": "merge"}, "across", ValueError),
    ],
)  # fmt: skip
@pytest.mark.parametrize("is_known", [False, True])
def test_wrong_curves_are_refused_all_together(
    tap: Tap, changed: dict[str, Any], argument: str, error: type[Exception], is_known: bool
) -> None:
    if is_known:
        tap.curves("loss", {"x": 1.0})
    before = logged(tap)
    with refused(argument, error):
        tap.curves(**({"tag": "loss", "values": {"x": 1.0}} | changed))
    assert logged(tap) == before


@pytest.mark.parametrize(
    ("style", "code"),
    [("simple", Style.SIMPLE), ("float", Style.TENSOR_FLOAT), ("double", Style.TENSOR_DOUBLE)],
)
def test_scalars_of_every_style_are_said_to_be_of_it(tap: Tap, style: str, code: Style) -> None:
    tap.scalars({"a": 1.0}, 2, style=style, walltime=3.5)
    tap.scalars({"a": 2.0}, 3, style=style, walltime=4.5)
    found = columns(tap)
    assert found.style.tolist() == [code]
    assert points(found) == [("", "a", 2, 3.5, 1.0), ("", "a", 3, 4.5, 2.0)]


def test_a_tag_may_have_scalars_of_several_styles_but_of_one_policy(tap: Tap) -> None:
    tap.scalar("a", 1.0)
    tap.scalars({"a": 2.0}, style="double")
    tap.scalars({"a": 3.0}, style="float")
    found = columns(tap)
    assert [found.tags[index] for index in found.tag_index] == ["a"] * 3
    styles = [Style.SIMPLE, Style.TENSOR_DOUBLE, Style.TENSOR_FLOAT]
    assert found.style[found.tag_index].tolist() == styles
    with pytest.raises(ValueError, match=r"^tag: 'a' was logged as scalar with across='mean' befo"):
        tap.scalars({"a": 1.0}, style="double", across="sum")


def test_wrong_styles_and_wall_times_of_scalars_are_refused(tap: Tap) -> None:
    for wrong in ("bold", None, ["float"]):
        with refused("style"):
            tap.scalars({"b": 1.0}, style=wrong)  # type: ignore[arg-type]
    with refused("walltime"):
        tap.scalars({"b": 1.0}, walltime=math.inf)
    assert logged(tap) == 0


# -- graphs -------------------------------------------------------------------------------


# torch says so of its own way to a graph, and has no other yet.
traces = pytest.mark.filterwarnings(
    "ignore:.torch.jit.trace(_method)?. is deprecated:DeprecationWarning"
)


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU())


@traces
def test_a_graph_is_what_torch_makes_of_the_model(tap: Tap, model: torch.nn.Module) -> None:
    inputs = torch.ones(1, 2)
    tap.graph(model, inputs, walltime=2.5)
    blob = sent_blob(tap)
    expected, run_metadata = trace(model, inputs)
    assert (blob.kind, blob.across, blob.wall_time) == (Kind.GRAPH, Across.RANK0, 2.5)
    assert GraphDef.FromString(bytes(blob.data)) == expected
    assert RunMetadata.FromString(bytes(blob.parts["run_metadata"])) == run_metadata
    assert len(expected.node) > 3


@traces
def test_a_model_that_takes_several_inputs_and_is_trained_stays_as_it_is(tap: Tap) -> None:
    bilinear = torch.nn.Bilinear(2, 3, 4).train()
    tap.graph(bilinear, (torch.ones(1, 2), torch.ones(1, 3)), use_strict_trace=False)
    assert bilinear.training
    assert logged(tap) == 1


@traces
def test_a_graph_is_traced_in_every_rank_and_rank_0s_counts(other_rank: Tap) -> None:
    calls = []

    class Counting(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            calls.append(1)
            return x + 1

    other_rank.graph(Counting(), torch.ones(1))
    assert calls
    assert logged(other_rank) == 0


@traces
def test_a_model_that_cannot_be_traced_says_so(tap: Tap, model: torch.nn.Module) -> None:
    with pytest.raises(RuntimeError):
        tap.graph(model, torch.ones(1, 5))
    with refused("walltime"):
        tap.graph(model, torch.ones(1, 2), walltime=math.nan)
    assert logged(tap) == 0


def test_an_onnx_file_is_logged_as_a_graph(
    tap: Tap, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    value = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    kind = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph([node], "g", [value("x", kind, [1])], [value("y", kind, [1])])
    path = tmp_path / "model.onnx"
    onnx.save(onnx.helper.make_model(graph), str(path))
    tap.onnx_graph(path)
    blob = sent_blob(tap)
    assert [node.op for node in GraphDef.FromString(bytes(blob.data)).node][-1] == "Relu"
    assert blob.parts == {}
    with pytest.raises(FileNotFoundError):
        tap.onnx_graph(tmp_path / "nothing.onnx")


@pytest.mark.parametrize(
    ("missing", "install"), [("onnx", "onnx"), ("tensorboard", r"'ranktap\[daemon\]'")]
)
def test_what_a_graph_lacks_is_named_with_what_to_install(
    tap: Tap, model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch, missing: str, install: str
) -> None:
    for name in [*sys.modules]:
        if f"{name}.".startswith((f"{missing}.", "torch.utils.tensorboard.")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    log = {
        "onnx": lambda: tap.onnx_graph("model.onnx"),
        "tensorboard": lambda: tap.graph(model, torch.ones(1, 2)),
    }[missing]
    said = rf"{missing} is not installed: pip install {install}$"
    with pytest.raises(ModuleNotFoundError, match=said):
        log()


# -- layouts ------------------------------------------------------------------------------


def test_a_layout_arrives_in_its_order(tap: Tap) -> None:
    tap.custom_scalars(
        {
            "é": {"two": ["Multiline", ["b", "a.*"]], "one": ("Margin", ("v", "low", "high"))},
            "empty": {},
        },
        walltime=2.5,
    )
    blob = sent_blob(tap)
    assert (blob.kind, blob.across, blob.wall_time) == (Kind.CUSTOM_SCALARS, Across.RANK0, 2.5)
    charts = [Chart("two", False, ["b", "a.*"]), Chart("one", True, ["v", "low", "high"])]
    assert read_layout(blob.data) == [Category("é", charts), Category("empty", [])]


@pytest.mark.parametrize(
    ("layout", "argument", "error"),
    [
        (None, "layout", TypeError), ([("a", {})], "layout", TypeError),
        ({"a": []}, "layout['a']", TypeError),
        ({"a": {"b": "Margin"}}, "layout['a']['b']", TypeError),
        ({"a": {"b": ["Margin"]}}, "layout['a']['b']", TypeError),
        ({"a": {"b": ["margin", []]}}, "layout['a']['b']", ValueError),
        ({"a": {"b": ["Multiline", "loss"]}}, "layout['a']['b']", TypeError),
        ({"a": {"b": ["Margin", ["x", "y"]]}}, "tags", ValueError),
        ({"a": {"b": ["Multiline", [5]]}}, "tags", TypeError),
        ({5: {}}, "category", TypeError), ({"a": {5: ["Multiline", []]}}, "title", TypeError),
        ({"a": {"b": ["Multiline", ["x" * 900] * 2_000]}}, "layout", ValueError),
    ],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
def test_a_wrong_layout_is_refused_in_every_rank(
    tap: Tap, other_rank: Tap, layout: Any, argument: str, error: type[Exception]
) -> None:
    for each in (tap, other_rank):
        with refused(argument, error):
            each.custom_scalars(layout)
        assert logged(each) == 0


# -- hyperparameters ----------------------------------------------------------------------

GIVEN = {
    "lr": 0.1, "layers": 3, "name": "é", "cosine": True, "none": None,
    "wd": np.float32(0.5), "tensor": torch.tensor([2.0]), "n": np.int64(4),
}  # fmt: skip


def test_hyperparameters_and_metrics_go_to_a_run_of_their_own(tap: Tap) -> None:
    tap.hparams(
        GIVEN, {"hparam/loss": 0.5, "accuracy": torch.tensor(0.25)}, 3, run_name="a/b",
        discrete={"lr": [0.1, 1], "name": ("é", "e")}, walltime=2.5,
    )  # fmt: skip
    batch = sent(tap)
    assert batch is not None and batch.columns is not None
    (blob,) = batch.blobs
    assert (blob.kind, blob.across, blob.step) == (Kind.HPARAMS, Across.RANK0, 3)
    assert split_name(blob.tag)[0] == "a/b"
    values = {
        "lr": 0.1, "layers": 3, "name": "é", "cosine": True, "wd": 0.5, "tensor": 2.0, "n": 4.0,
    }  # fmt: skip
    found = read_hparams(blob.data)
    assert found == HParams(
        values, ["hparam/loss", "accuracy"], {"lr": [0.1, 1], "name": ["é", "e"]}
    )
    assert [*found.values] == [*values]
    assert found.values["cosine"] is True
    assert points(batch.columns) == [
        ("a/b", "hparam/loss", 3, 2.5, 0.5), ("a/b", "accuracy", 3, 2.5, 0.25),
    ]  # fmt: skip
    assert batch.columns.policy.tolist() == [Across.RANK0] * 2


def test_without_a_name_the_run_is_called_after_the_time(tap: Tap) -> None:
    tap.hparams({}, {})
    sub_run, _ = split_name(sent_blob(tap).tag)
    assert float(sub_run) > 1e9


def test_a_run_may_have_hyperparameters_itself(tap: Tap) -> None:
    tap.hparams({"lr": 0.1}, {"loss": 0.5}, run_name=".")
    batch = sent(tap)
    assert batch is not None and batch.columns is not None
    assert split_name(batch.blobs[0].tag)[0] == ""
    assert batch.columns.tags == ["loss"]


def test_the_same_hyperparameters_may_be_logged_again_and_other_ranks_log_none(
    tap: Tap, other_rank: Tap
) -> None:
    for each, count in ((tap, 4), (other_rank, 0)):
        for step in (1, 2):
            each.hparams({"lr": 0.1}, {"loss": 0.5}, step, run_name="x")
        assert logged(each) == count


def test_a_hyperparameter_on_a_device_is_not_waited_for(
    tap: Tap, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = torch.tensor([2.125])
    with slow_device(monkeypatch) as arrive:
        tap.hparams({"lr": given, "n": 3}, {"loss": given}, 1, run_name="x")
        assert sent(tap) is None
        given.zero_()
        arrive()
        batch = sent(tap)
    assert batch is not None and batch.columns is not None
    assert read_hparams(batch.blobs[0].data).values == {"lr": 2.125, "n": 3}
    assert batch.columns.value.tolist() == [2.125]
    assert tap._outbox.pending_blob_bytes == 0


@pytest.mark.parametrize(
    ("changed", "argument", "error"),
    [
        ({"hparams": [("lr", 0.1)]}, "hparams", TypeError),
        ({"hparams": {"lr": [0.1, 0.2]}}, "hparams['lr']", TypeError),
        ({"hparams": {"lr": torch.ones(2)}}, "hparams['lr']", TypeError),
        ({"hparams": {5: 0.1}}, "hparams", TypeError),
        ({"hparams": {"lr": 10**400}}, "hparams['lr']", ValueError),
        ({"metrics": None}, "metrics", TypeError),
        ({"metrics": {"loss": "low"}}, "metrics['loss']", TypeError),
        ({"metrics": {"": 1.0}}, "tag", ValueError),
        ({"run_name": "../up"}, "run_name", ValueError), ({"run_name": 5}, "run_name", TypeError),
        ({"run_name": "./x"}, "run_name", ValueError),
        ({"discrete": {"wd": [1]}}, "discrete", ValueError),
        ({"discrete": {"lr": "all"}}, "discrete['lr']", TypeError),
        ({"discrete": {"lr": ["0.1"]}}, "discrete['lr']", TypeError),
        ({"discrete": {"lr": [None]}}, "discrete['lr']", TypeError),
        ({"discrete": [0.1]}, "discrete", TypeError),
        ({"step": 1.5}, "step", TypeError), ({"walltime": math.nan}, "walltime", ValueError),
    ],
    ids=str,
)  # fmt: skip
def test_wrong_hyperparameters_are_refused(
    tap: Tap, changed: dict[str, Any], argument: str, error: type[Exception]
) -> None:
    with refused(argument, error):
        tap.hparams(
            **({"hparams": {"lr": 0.1}, "metrics": {"loss": 1.0}, "run_name": "x"} | changed)
        )
    assert logged(tap) == 0
