"""SummaryWriter: torch's surface, what it takes besides a tap, and where it writes."""

from __future__ import annotations

import inspect
import math
import socket
import threading
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.tensorboard import SummaryWriter as TorchWriter
from torch.utils.tensorboard._convert_np import make_np

import ranktap
from ranktap import SummaryWriter, Tap, opening
from ranktap.disabled import DisabledTap
from ranktap.torch_arguments import place
from ranktap_wire.documents import Category, Chart, read_hparams, read_layout
from ranktap_wire.records import Across, Blob, Columns, Kind, Style, split_name
from tests.support.scripts import run_python
from tests.support.taps import refused, sent, sent_blob
from tests.support.watching import silent_taps

Make = Callable[..., SummaryWriter]
ARRAY = np.linspace(0, 1, 12)
PICTURE = ARRAY.reshape(3, 2, 2)


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Writers whose records stay where they are; `opened` is what `init` was asked for."""
    with silent_taps() as make_tap:

        def make(*args: Any, ranks: tuple[int, int] = (0, 1), **named: Any) -> SummaryWriter:
            opened: list[tuple[str, dict[str, Any]]] = []

            def init(run: str, **asked: Any) -> Tap:
                opened.append((run, asked))
                return make_tap(*ranks)

            monkeypatch.setattr(opening, "init", init)
            writer = SummaryWriter(*args, **named)
            writer.opened = opened  # type: ignore[attr-defined]
            return writer

        yield make


@pytest.fixture
def writer(make: Make) -> SummaryWriter:
    return make("runs/x")


def scalars(writer: SummaryWriter) -> Columns:
    """The scalars that wait, and nothing else."""
    batch = sent(writer.tap)
    assert batch is not None and not batch.blobs and batch.columns is not None
    return batch.columns


# -- torch's surface ----------------------------------------------------------------------


def public_methods(cls: type) -> dict[str, Any]:
    members = inspect.getmembers(cls, inspect.isfunction)
    return {name: member for name, member in members if not name.startswith("_")}


@pytest.mark.parametrize("name", ["__init__", *public_methods(TorchWriter)])
def test_a_method_has_torchs_arguments_in_their_order_with_their_defaults(name: str) -> None:
    def arguments(cls: type) -> list[tuple[str, Any, Any]]:
        parameters = inspect.signature(getattr(cls, name)).parameters.values()
        return [(each.name, each.kind, each.default) for each in parameters]

    ours, theirs = arguments(SummaryWriter), arguments(TorchWriter)
    assert ours[: len(theirs)] == theirs
    assert [each[0] for each in ours[len(theirs) :]] == (
        ["run", "endpoint"] if name == "__init__" else []
    )
    assert all(each[1] is inspect.Parameter.KEYWORD_ONLY for each in ours[len(theirs) :])


def test_it_has_no_other_methods_than_torchs() -> None:
    assert set(public_methods(SummaryWriter)) == set(public_methods(TorchWriter))


def test_what_torch_keeps_as_attributes_is_there(make: Make) -> None:
    writer = make("runs/a", "comment", 7, 20, 30, ".suffix")
    assert writer.log_dir == writer.get_logdir() == "runs/a"
    assert (writer.purge_step, writer.max_queue, writer.flush_secs) == (7, 20, 30)
    assert writer.filename_suffix == ".suffix"
    assert make(Path("runs/a")).get_logdir() == Path("runs/a")


def test_importing_it_loads_nothing_large() -> None:
    program = "import sys; from ranktap import SummaryWriter; print(*sys.modules)"
    loaded = {name.partition(".")[0] for name in run_python(program).stdout.split()}
    assert "ranktap" in loaded
    assert not loaded & {"torch", "tensorboard", "google.protobuf", "matplotlib", "PIL", "onnx"}


# -- scalars ------------------------------------------------------------------------------

NUMBERS = [
    1.5, 2, True, "2.5", "nan", b"3", np.str_("4"), np.float32(0.5), np.array(["7"]), np.array(6),
    np.array([[2.5]]), np.longdouble(1.25), np.array([Decimal("1.5")], object), Decimal("0.25"),
    torch.tensor(1.5), torch.tensor([[2]]), torch.tensor(3.0, requires_grad=True), math.inf,
]  # fmt: skip


@pytest.mark.parametrize("value", NUMBERS, ids=repr)
def test_a_scalar_is_the_number_that_torch_makes_of_it(writer: SummaryWriter, value: Any) -> None:
    expected = float(make_np(value).squeeze())
    writer.add_scalar("a", value, 1)
    writer.add_scalar("a", value, 1, new_style=True)
    writer.add_scalars("c", {"x": value}, 1)
    np.testing.assert_array_equal(scalars(writer).value, [expected] * 3)


@pytest.mark.parametrize(
    "step", [3, 3.9, -0.5, "4", np.int32(5), np.array(6), np.float64(7.5), torch.tensor(8),
             torch.tensor([9.5]), True],
    ids=repr,
)  # fmt: skip
def test_a_step_is_the_whole_number_that_torch_makes_of_it(
    writer: SummaryWriter, step: Any
) -> None:
    writer.add_scalar("a", 1.0, step)
    writer.add_scalars("c", {"x": 1.0}, step)
    writer.add_text("t", "words", step)
    batch = sent(writer.tap)
    assert batch is not None and batch.columns is not None
    assert [*batch.columns.step, batch.blobs[0].step] == [int(step)] * 3


def test_without_a_step_it_is_0_and_with_a_wall_time_it_is_that(writer: SummaryWriter) -> None:
    writer.add_scalar("a", 1.0)
    writer.add_scalar("a", 1.0, None, 5)
    writer.add_scalar("a", 1.0, walltime=torch.tensor(2.5))  # type: ignore[arg-type]
    writer.add_scalars("c", {"x": 1.0}, walltime=np.float32(0.5))  # type: ignore[arg-type]
    found = scalars(writer)
    assert found.step.tolist() == [0, 0, 0, 0]
    assert found.wall_time[1:].tolist() == [5.0, 2.5, 0.5]
    assert found.wall_time[0] > 1e9


def test_the_step_of_the_tap_behind_it_is_that_of_records_without_one(
    writer: SummaryWriter,
) -> None:
    writer.tap.step(4)
    writer.add_scalar("a", 1.0)
    assert scalars(writer).step.tolist() == [4]


def test_styles_of_scalars_are_torchs(writer: SummaryWriter) -> None:
    writer.add_scalar("a", 1.0, 0, None, True)
    writer.add_scalar("b", 1.0, new_style=True, double_precision=True)
    writer.add_scalar("c", 1.0, double_precision=True)
    found = scalars(writer)
    assert found.tags == ["a", "b", "c"]
    assert found.style.tolist() == [Style.TENSOR_FLOAT, Style.TENSOR_DOUBLE, Style.SIMPLE]


def test_scalars_of_one_chart_are_in_runs_of_their_own(writer: SummaryWriter) -> None:
    writer.add_scalars("run/14h", {"x": 1, "y": "2"}, 5)
    assert scalars(writer).tags == ["run_14h_x\trun/14h", "run_14h_y\trun/14h"]


def test_hyperparameters_are_in_a_run_of_their_own(writer: SummaryWriter) -> None:
    writer.add_hparams({"lr": 0.1}, {"loss": "0.5"}, {"lr": [0.1, 0.2]}, "trial", 2.5)
    batch = sent(writer.tap)
    assert batch is not None and batch.columns is not None
    assert batch.columns.tags == ["trial\tloss"]
    assert (batch.columns.value.tolist(), batch.columns.step.tolist()) == ([0.5], [2])
    assert split_name(batch.blobs[0].tag)[0] == "trial"
    assert read_hparams(batch.blobs[0].data).discrete == {"lr": [0.1, 0.2]}
    writer.add_hparams({}, {}, run_name="")
    assert float(split_name(sent_blob(writer.tap).tag)[0]) > 1e9


def test_charts_are_those_that_torch_makes(writer: SummaryWriter) -> None:
    writer.add_custom_scalars({"c": {"t": ["lines", ["a"]], "m": ["Margin", ["a", "b", "c"]]}})
    charts = [Chart("t", False, ["a"]), Chart("m", True, ["a", "b", "c"])]
    assert read_layout(sent_blob(writer.tap).data) == [Category("c", charts)]
    writer.add_custom_scalars_multilinechart(["a", "b"], "c", "t")
    expected = [Category("c", [Chart("t", False, ["a", "b"])])]
    assert read_layout(sent_blob(writer.tap).data) == expected
    writer.add_custom_scalars_marginchart(["a", "b", "c"])
    expected = [Category("default", [Chart("untitled", True, ["a", "b", "c"])])]
    assert read_layout(sent_blob(writer.tap).data) == expected


# -- the others ---------------------------------------------------------------------------

CALLS: dict[str, tuple[Callable[[SummaryWriter], None], Callable[[Tap], None]]] = {
    "add_tensor": (
        lambda w: w.add_tensor("t", torch.ones(2), 3, 2.5),
        lambda t: t.tensor("t", np.ones(2, np.float32), 3, walltime=2.5),
    ),
    "add_histogram": (
        lambda w: w.add_histogram("t", ARRAY, 3, [0, 0.5, 1], 2.5, 7),
        lambda t: t.histogram("t", ARRAY, 3, bins=[0, 0.5, 1], max_bins=7, walltime=2.5),
    ),
    "add_histogram of text": (
        lambda w: w.add_histogram("t", np.array(["1.5", "2"]), 3, walltime=2.5),
        lambda t: t.histogram("t", [1.5, 2.0], 3, walltime=2.5),
    ),
    "add_histogram_raw": (
        lambda w: w.add_histogram_raw("t", 0, 1.0, 2, 1.5, 2.25, [1], [2], 3, 2.5),
        lambda t: t.histogram_raw("t", 0, 1, 2, 1.5, 2.25, [1], [2], 3, walltime=2.5),
    ),
    "add_image": (
        lambda w: w.add_image("t", PICTURE, 3, 2.5, "cwh"),
        lambda t: t.image("t", PICTURE, 3, dataformats="CWH", walltime=2.5),
    ),
    "add_images": (
        lambda w: w.add_images("t", PICTURE[None], 3, 2.5),
        lambda t: t.image("t", PICTURE[None], 3, dataformats="NCHW", walltime=2.5),
    ),
    "add_images of one": (
        lambda w: w.add_images("t", PICTURE[0], 3, 2.5, "HW"),
        lambda t: t.image("t", PICTURE[0], 3, dataformats="HW", walltime=2.5),
    ),
    "add_image_with_boxes": (
        lambda w: w.add_image_with_boxes("t", PICTURE, torch.ones(1, 4), 3, 2.5, 2, "CHW", "cat"),
        lambda t: t.image_with_boxes(
            "t", PICTURE, np.ones((1, 4)), 3, labels=["cat"], rescale=2, walltime=2.5
        ),
    ),
    "add_image_with_boxes and labels of another number": (
        lambda w: w.add_image_with_boxes("t", PICTURE, np.ones((1, 4)), 3, 2.5, labels=["a", "b"]),
        lambda t: t.image_with_boxes("t", PICTURE, np.ones((1, 4)), 3, walltime=2.5),
    ),
    "add_video": (
        lambda w: w.add_video("t", PICTURE[None, None], 3, 8, 2.5),
        lambda t: t.video("t", PICTURE[None, None], 3, fps=8, walltime=2.5),
    ),
    "add_audio": (
        lambda w: w.add_audio("t", ARRAY[None], 3, 8_000.4, 2.5),
        lambda t: t.audio("t", ARRAY, 3, sample_rate=8_000, walltime=2.5),
    ),
    "add_text": (
        lambda w: w.add_text("t", "words", 3, 2.5),
        lambda t: t.text("t", "words", 3, walltime=2.5),
    ),
    "add_embedding": (
        lambda w: w.add_embedding(PICTURE[0], ["a", "b"], PICTURE[None].repeat(2, 0), 3, "t"),
        lambda t: t.embedding(
            "t", PICTURE[0], 3, metadata=["a", "b"], sprite=PICTURE[None].repeat(2, 0)
        ),
    ),
    "add_embedding with a header": (
        lambda w: w.add_embedding(PICTURE[0], [["a", 1], ["b", 2]], metadata_header=["x", "y"]),
        lambda t: t.embedding(
            "default", PICTURE[0], metadata=[["a", 1], ["b", 2]], metadata_header=["x", "y"]
        ),
    ),
    "add_pr_curve": (
        lambda w: w.add_pr_curve("t", np.array([0, 1]), np.array([0.2, 0.9]), 3, 500, 2.0, 2.5),
        lambda t: t.pr_curve("t", [0, 1], [0.2, 0.9], 3, weights=2.0, walltime=2.5),
    ),
    "add_pr_curve_raw": (
        lambda w: w.add_pr_curve_raw("t", *[ARRAY] * 6, 3, 500, "not looked at", 2.5),
        lambda t: t.pr_curve_raw("t", *[ARRAY] * 6, 3, walltime=2.5),
    ),
    "add_mesh": (
        lambda w: w.add_mesh("t", ARRAY.reshape(1, 4, 3), ARRAY.reshape(1, 4, 3), [[[0, 1, 2]]],
                             {"camera": {"fov": 1}}, 3, 2.5),
        lambda t: t.mesh("t", ARRAY.reshape(1, 4, 3), 3, colors=ARRAY.reshape(1, 4, 3),
                         faces=[[[0, 1, 2]]], config={"camera": {"fov": 1}}, walltime=2.5),
    ),
}  # fmt: skip


@pytest.mark.parametrize("call", CALLS)
def test_a_method_is_the_taps_with_torchs_arguments_in_torchs_order(make: Make, call: str) -> None:
    ours, its = CALLS[call]
    writer, other = make("x"), make("x")
    ours(writer)
    its(other.tap)
    assert content(sent_blob(writer.tap)) == content(sent_blob(other.tap))


def content(blob: Blob) -> tuple[Any, ...]:
    has_own_time = blob.kind is Kind.EMBEDDING
    parts = {name: bytes(part) for name, part in blob.parts.items()}
    return (
        blob.kind, blob.tag, blob.step, None if has_own_time else blob.wall_time, blob.across,
        blob.dtype, blob.shape, blob.parameters, bytes(blob.data), parts,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("bins", "across"),
    [("tensorflow", Across.MERGE), ([0, 1], Across.MERGE), ("auto", Across.EACH), (9, Across.EACH)],
    ids=str,
)
def test_ranks_histograms_are_merged_where_their_edges_are_the_same(
    make: Make, bins: Any, across: Across
) -> None:
    writer = make("x", ranks=(1, 2))
    writer.add_histogram("h", ARRAY, bins=bins)
    assert sent_blob(writer.tap).across == across


# -- errors -------------------------------------------------------------------------------

WRONG: list[tuple[str, type[Exception], Callable[[SummaryWriter], None]]] = [
    ("tag", TypeError, lambda w: w.add_scalar(5, 1.0)),  # type: ignore[arg-type]
    ("scalar_value", TypeError, lambda w: w.add_scalar("a", "high")),
    ("scalar_value", TypeError, lambda w: w.add_scalar("a", [1.0])),
    ("scalar_value['a']", TypeError, lambda w: w.add_scalar("a", None, new_style=True)),
    ("global_step", ValueError, lambda w: w.add_scalar("a", 1.0, "first")),
    ("global_step", TypeError, lambda w: w.add_scalar("a", 1.0, [1])),
    ("global_step", ValueError, lambda w: w.add_scalar("a", 1.0, math.nan)),
    ("global_step", ValueError, lambda w: w.add_scalar("a", 1.0, 1 << 63)),
    ("global_step", ValueError, lambda w: w.add_image("a", PICTURE, 1 << 63)),
    ("global_step", TypeError, lambda w: w.add_text("a", "words", object())),
    ("walltime", TypeError, lambda w: w.add_scalar("a", 1.0, walltime="now")),  # type: ignore[arg-type]
    ("walltime", ValueError, lambda w: w.add_scalar("a", 1.0, walltime=math.nan)),
    ("tag_scalar_dict['x']", TypeError, lambda w: w.add_scalars("c", {"x": "high"})),
    ("tag_scalar_dict", TypeError, lambda w: w.add_scalars("c", [1.0])),  # type: ignore[arg-type]
    ("metric_dict", TypeError, lambda w: w.add_hparams({}, [1.0])),  # type: ignore[arg-type]
    ("layout", TypeError, lambda w: w.add_custom_scalars([1.0])),  # type: ignore[arg-type]
    ("max_bins", TypeError, lambda w: w.add_histogram("a", ARRAY, max_bins="few")),  # type: ignore[arg-type]
    ("num_thresholds", TypeError, lambda w: w.add_pr_curve("a", [1], [1], num_thresholds="few")),  # type: ignore[arg-type]
    ("run_name", TypeError, lambda w: w.add_hparams({}, {}, run_name=5)),  # type: ignore[arg-type]
    ("layout['c']['t']", TypeError, lambda w: w.add_custom_scalars({"c": {"t": ["Margin"]}})),
    ("hparam_dict['x']", TypeError, lambda w: w.add_hparams({"x": [1, 2]}, {})),
    ("metric_dict['x']", TypeError, lambda w: w.add_hparams({}, {"x": "high"})),
    ("hparam_domain_discrete", ValueError, lambda w: w.add_hparams({}, {}, {"x": [1]})),
    ("run_name", ValueError, lambda w: w.add_hparams({}, {}, run_name="../x")),
    ("img_tensor", ValueError, lambda w: w.add_image("a", ARRAY)),
    ("img_tensor", ValueError, lambda w: w.add_images("a", ARRAY)),
    ("box_tensor", ValueError, lambda w: w.add_image_with_boxes("a", PICTURE, ARRAY)),
    ("snd_tensor", ValueError, lambda w: w.add_audio("a", PICTURE)),
    ("vid_tensor", ValueError, lambda w: w.add_video("a", PICTURE)),
    ("text_string", TypeError, lambda w: w.add_text("a", 5)),  # type: ignore[arg-type]
    ("label_img", ValueError, lambda w: w.add_embedding(PICTURE[0], label_img=PICTURE)),
    ("config_dict", TypeError, lambda w: w.add_mesh("a", ARRAY.reshape(1, 4, 3), config_dict=5)),  # type: ignore[arg-type]
    ("values", TypeError, lambda w: w.add_histogram("a", "many")),
    ("tensor", TypeError, lambda w: w.add_tensor("a", torch.empty(2, device="meta"))),
]


@pytest.mark.parametrize(("argument", "error", "log"), WRONG, ids=lambda value: str(value)[:24])
def test_an_error_names_torchs_argument(
    writer: SummaryWriter, argument: str, error: type[Exception], log: Any
) -> None:
    with refused(argument, error):
        log(writer)
    assert sent(writer.tap) is None


def test_a_call_with_wrong_names_is_pythons_own_error(writer: SummaryWriter) -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'text_string'"):
        writer.add_text("a")  # type: ignore[call-arg]


# -- where it writes ----------------------------------------------------------------------

ALONE = ("RANK", "WORLD_SIZE", "RANKTAP_RUN", "RANKTAP_ENDPOINT", "RANKTAP_SPOOL",
         "RANKTAP_DISABLED", "TORCHELASTIC_RUN_ID", "SLURM_PROCID",
         "OMPI_COMM_WORLD_RANK")  # fmt: skip


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A process that no launcher has started; its directory."""
    for name in ALONE:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("log_dir", "run", "expected"),
    [
        ("my/exp", None, ("my/exp", "my/exp", ".")),
        (Path("my/exp"), None, (Path("my/exp"), "my/exp", ".")),
        ("./runs/exp/", None, ("./runs/exp/", "runs/exp", ".")),
        ("my", "a/b", ("my/a/b", "my", "a/b")),
        (None, "a", ("runs/a", "runs", "a")),
    ],
    ids=str,
)
def test_with_a_daemon_of_its_own_everything_lies_in_log_dir(
    alone: Path, log_dir: Any, run: str | None, expected: tuple[Any, str, str]
) -> None:
    directory, logdir, name = place(log_dir, "comment", run, None)
    assert (directory, Path(logdir).relative_to(alone), name) == (
        expected[0], Path(expected[1]), expected[2],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("log_dir", "expected"),
    [
        ("runs/exp1", "exp1"), ("./runs/a/b", "a/b"), ("runs/", "runs"), ("a/b/", "a/b"),
        ("logs/runs/a", "logs/runs/a"), ("a/../b", "b"), ("/data/runs/exp", "exp"),
        ("../logs/exp", "exp"), ("s3://bucket/runs/exp", "exp"), (Path("runs/exp"), "exp"),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("given", [True, False])
def test_with_a_daemon_elsewhere_log_dir_names_the_run(
    alone: Path, monkeypatch: pytest.MonkeyPatch, log_dir: Any, expected: str, given: bool
) -> None:
    endpoint = "tcp://loghost:5757"
    if not given:
        monkeypatch.setenv("RANKTAP_ENDPOINT", endpoint)
    directory, _, name = place(log_dir, "comment", None, endpoint if given else None)
    assert (directory, name) == (log_dir, expected)


def test_with_a_spool_the_daemon_is_elsewhere_and_log_dir_names_the_run(
    alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANKTAP_SPOOL", "spool")
    assert place("runs/exp1", "", None, None) == ("runs/exp1", None, "exp1")
    assert place("exp", "", "other", None) == ("exp/other", None, "other")
    directory, logdir, name = place(None, "_x", None, None)
    assert (directory, logdir) == (f"runs/{name}", None)


def test_with_a_daemon_elsewhere_the_directory_itself_is_a_run_too(alone: Path) -> None:
    assert place(".", "", None, "tcp://loghost:5757")[2] == alone.name
    assert place("exp", "", "other", "tcp://loghost:5757")[2] == "other"


def test_without_log_dir_it_is_named_as_torch_names_it(
    alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, logdir, name = place(None, "_lr=0.1", None, None)
    assert str(directory).startswith("runs/")
    assert str(directory).endswith(f"_{socket.gethostname()}_lr=0.1")
    assert (Path(logdir), name) == (alone / directory, ".")
    directory, _, name = place(None, "_lr=0.1", None, "tcp://loghost:5757")
    assert directory == f"runs/{name}"
    monkeypatch.setenv("RANKTAP_RUN", "mine")
    assert place("", "_x", None, None)[0] == "runs/mine_x"
    assert place("exp", "_x", None, None)[0] == "exp"


def test_ranks_of_a_job_agree_on_a_directory(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(LookupError, match="have no name in common"):
        place(None, "", None, None)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job7")
    assert place(None, "_c", None, None)[0] == "runs/job7_c"


@pytest.mark.parametrize(
    ("named", "argument", "error"),
    [
        ({"log_dir": 5}, "log_dir", TypeError), ({"log_dir": b"runs"}, "log_dir", TypeError),
        ({"log_dir": "a\0b"}, "log_dir", ValueError),
        ({"log_dir": "s3://bucket/exp"}, "log_dir", ValueError),
        ({"log_dir": ".hidden", "endpoint": "tcp://h:1"}, "log_dir", ValueError),
        ({"run": 5}, "run", TypeError), ({"run": "../x"}, "run", ValueError),
        ({"log_dir": "a", "run": "/x"}, "run", ValueError),
        ({"comment": 5}, "comment", TypeError),
        ({"purge_step": 1.5, "log_dir": "a"}, "purge_step", TypeError),
        ({"filename_suffix": "a/b", "log_dir": "a"}, "filename_suffix", ValueError),
        ({"endpoint": "loghost"}, "endpoint", ValueError),
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_argument_of_the_writer_is_refused(
    alone: Path, named: dict[str, Any], argument: str, error: type[Exception]
) -> None:
    with refused(argument, error):
        SummaryWriter(**named)


def test_what_init_is_asked_for(make: Make, alone: Path) -> None:
    writer = make("exp", "ignored", 7, filename_suffix=".x", endpoint="tcp://h:1")
    assert writer.opened == [  # type: ignore[attr-defined]
        (
            "exp",
            {"logdir": None, "endpoint": "tcp://h:1", "filename_suffix": ".x", "resume_step": 7},
        )
    ]
    assert make("exp").opened[0] == (  # type: ignore[attr-defined]
        ".",
        {
            "logdir": str(alone / "exp"), "endpoint": None, "filename_suffix": "",
            "resume_step": None,
        },
    )  # fmt: skip


# -- the end, and after it ----------------------------------------------------------------


def test_a_closed_writer_opens_again_where_it_was_and_purges_nothing_again(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    writer = make("exp", purge_step=7)
    first = writer.tap
    closed: list[Tap] = []
    with monkeypatch.context() as patched:
        patched.setattr(first, "close", lambda: closed.append(first))
        with writer as entered:
            assert entered is writer
        writer.close()
        writer.flush()
    assert closed == [first]
    monkeypatch.chdir(tmp_path)
    writer.add_scalar("a", 1.0, 1)
    assert writer.tap is not first
    assert scalars(writer).tags == ["a"]
    (run, before), (again, after) = writer.opened  # type: ignore[attr-defined]
    assert run == again
    assert before.pop("resume_step") == 7
    assert before == after


def test_threads_that_open_a_closed_writer_again_share_one_tap(make: Make) -> None:
    writer = make("exp")
    first = writer.tap
    writer._tap = None
    taps = set()
    barrier = threading.Barrier(8)

    def log() -> None:
        barrier.wait()
        writer.add_scalar("a", 1.0)
        taps.add(writer.tap)

    threads = [threading.Thread(target=log) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    (tap,) = taps
    assert tap is not first
    assert len(scalars(writer)) == 8


def test_a_disabled_writer_does_nothing(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKTAP_DISABLED", "1")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with SummaryWriter() as writer:
        assert isinstance(writer.tap, DisabledTap)
        for ours, _ in CALLS.values():
            ours(writer)
        writer.add_scalar("a", 1.0)
        writer.add_scalars("a", {"b": 1.0})
        writer.add_hparams({"lr": 1}, {"b": 1.0})
        writer.add_graph(torch.nn.Linear(1, 1), torch.ones(1, 1))
        writer.add_onnx_graph("nothing.onnx")
        writer.add_custom_scalars_multilinechart(["a"])
        writer.flush()
    writer.add_scalar("a", 1.0)
    assert [*alone.iterdir()] == []


def test_it_is_exported() -> None:
    assert ranktap.SummaryWriter is SummaryWriter
    assert "SummaryWriter" in ranktap.__all__
