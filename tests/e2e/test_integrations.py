"""The integrations, with the real libraries: the examples of docs/integrations.md, in two ranks.

Beside our logger the library's own TensorBoard logger writes down what each rank logs; ours is
held against that.
"""

from __future__ import annotations

import re
from argparse import Namespace
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import (
    EventAccumulator,
    HistogramValue,
)
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.util import tensor_util

from ranktap.integrations import OncePerStep, flat
from tests.support.daemons import DaemonProcess
from tests.support.event_files import accumulate, events
from tests.support.scripts import run_python

DOCS = Path(__file__).parents[2] / "docs" / "integrations.md"
BESIDE = Path(__file__).parent / "jobs" / "beside.py"
TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d",
            "--rdzv-endpoint=127.0.0.1:0")  # fmt: skip
LIBRARIES = ["lightning", "accelerate", "transformers", "ignite"]
DaemonStarter = Callable[..., DaemonProcess]
RANKS_LOSS = dict.fromkeys(LIBRARIES, "train/loss") | {
    "lightning": "train_loss", "transformers": "train/loss_of_ranks"
}  # fmt: skip
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


@dataclass
class Job:
    """An example that has run, and was written."""

    ours: EventAccumulator
    theirs: list[EventAccumulator]
    """What the library's own logger wrote in rank 0, and in rank 1."""
    directories: list[Path]
    """Of ours, and of theirs of rank 0."""
    made: list[Path]
    """The files that the training left in its directory."""
    merged: list[str] = field(init=False)
    """Tags that the ranks have in common."""

    def __post_init__(self) -> None:
        # Lightning's placeholder belongs to the hyper-parameters, which are rank 0's.
        tags = self.theirs[0].Tags()["scalars"]
        self.merged = [tag for tag in tags if tag != "hp_metric"]


def example(library: str) -> str:
    """The code under the library's heading."""
    sections = re.split(r"^## ", DOCS.read_text(), flags=re.MULTILINE)
    (section,) = (each for each in sections if each.lower().startswith(f"{library}\n"))
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    return code


def run_example(library: str, directory: Path) -> Job:
    program, theirs, work = directory / "train.py", directory / "theirs", directory / "work"
    program.write_text(example(library))
    work.mkdir()
    daemon = DaemonProcess(directory / "runs").start()
    try:
        run_python(
            BESIDE, library, program, theirs, cwd=work, timeout_s=90,
            before=() if library == "lightning" else TORCHRUN,  # it starts the other rank itself
            env=ENVIRONMENT | {"RANKTAP_ENDPOINT": daemon.endpoint},
        )  # fmt: skip
        assert daemon.stop() == 0
        assert "ERROR" not in daemon.log and "WARNING" not in daemon.log, daemon.log
    finally:
        print(daemon.log)
        daemon.close()
    # Lightning's run has a name that its ranks have found.
    (ours,) = daemon.logdir.glob("sum/*" if library == "lightning" else "sum")
    return Job(
        accumulate(ours),
        [accumulate(theirs / f"rank{rank}") for rank in range(2)],
        [ours, theirs / "rank0"],
        [path for path in work.rglob("*") if path.is_file()],
    )


@pytest.fixture(scope="module")
def lightning(tmp_path_factory: pytest.TempPathFactory) -> Job:
    return run_example("lightning", tmp_path_factory.mktemp("lightning"))


@pytest.fixture(scope="module")
def accelerate(tmp_path_factory: pytest.TempPathFactory) -> Job:
    return run_example("accelerate", tmp_path_factory.mktemp("accelerate"))


@pytest.fixture(scope="module")
def transformers(tmp_path_factory: pytest.TempPathFactory) -> Job:
    return run_example("transformers", tmp_path_factory.mktemp("transformers"))


@pytest.fixture(scope="module")
def ignite(tmp_path_factory: pytest.TempPathFactory) -> Job:
    return run_example("ignite", tmp_path_factory.mktemp("ignite"))


@pytest.fixture
def job(library: str, request: pytest.FixtureRequest) -> Job:
    """That of the library that a test is about."""
    found: Job = request.getfixturevalue(library)
    return found


def series(shown: EventAccumulator, tag: str) -> dict[int, float]:
    """Step to value; of several of a step the last."""
    return {point.step: point.value for point in shown.Scalars(tag)}


def hyper_parameters(directory: Path) -> dict[str, float | str | bool]:
    """What the HParams dashboard shows of the one session in there."""
    found = []
    for path in directory.rglob("*tfevents*"):
        for value in (value for event in events(path) for value in event.summary.value):
            plugin = value.metadata.plugin_data
            data = HParamsPluginData.FromString(plugin.content)
            if plugin.plugin_name == "hparams" and data.HasField("session_start_info"):
                found.append(data.session_start_info.hparams)
    (only,) = found
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in only.items()}


def counted(histogram: HistogramValue) -> Counter[float]:
    """How many values each bucket has, by its limit."""
    return Counter(dict(zip(histogram.bucket_limit, histogram.bucket, strict=True)))


# -- each of them -----------------------------------------------------------------------------


@pytest.mark.parametrize("library", LIBRARIES)
def test_both_ranks_are_merged_under_the_tags_and_steps_of_the_librarys_own_logger(
    job: Job,
) -> None:
    assert "ranktap/late" not in job.ours.Tags()["scalars"]
    assert job.merged
    for tag in job.merged:
        logged = [series(each, tag) for each in job.theirs]
        steps = list(logged[0])
        assert steps == list(logged[1])
        values = np.array([list(each.values()) for each in logged], np.float32)
        for shown, expected in (
            (tag, values.mean(0)),
            (f"ranks/{tag}/min", values.min(0)),
            (f"ranks/{tag}/max", values.max(0)),
        ):
            points = series(job.ours, shown)
            assert list(points) == steps, shown
            # Theirs are rounded to float32 before the mean, ours behind it.
            np.testing.assert_allclose(list(points.values()), expected, rtol=1e-6, err_msg=shown)


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_ranks_losses_differ_so_that_one_rank_alone_would_show(job: Job, library: str) -> None:
    tag = RANKS_LOSS[library]
    low, high = series(job.ours, f"ranks/{tag}/min"), series(job.ours, f"ranks/{tag}/max")
    assert len(low) >= 8
    assert all(low[step] < high[step] for step in low)


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_training_processes_write_no_files(job: Job) -> None:
    assert job.made == []


# -- one of them ------------------------------------------------------------------------------


def test_lightnings_hyper_parameters_are_its_own_loggers_and_what_was_said_before(
    lightning: Job,
) -> None:
    ours, theirs = (hyper_parameters(directory) for directory in lightning.directories)
    assert theirs == {"lr": 0.1}
    assert ours == theirs | {"said/before": "the ranks know each other"}


def test_lightnings_placeholder_for_a_metric_is_there(lightning: Job) -> None:
    assert series(lightning.theirs[0], "hp_metric") == {0: -1.0}
    assert series(lightning.ours, "hp_metric") == {0: -1.0}


def test_accelerates_hyper_parameters_are_its_own_trackers(accelerate: Job) -> None:
    ours, theirs = (hyper_parameters(directory) for directory in accelerate.directories)
    assert ours == theirs == {"lr": 0.1, "optimizer": "SGD"}


def test_transformers_mean_over_the_ranks_is_that_of_what_each_rank_logged_itself(
    transformers: Job,
) -> None:
    ranks, whole = (
        series(transformers.ours, "train/loss_of_ranks"),
        series(transformers.theirs[0], "train/loss"),
    )
    assert list(ranks) == list(whole) == list(range(1, 9))
    assert list(ranks.values()) == pytest.approx(list(whole.values()))


def test_transformers_evaluation_behind_the_training_is_shown_too(transformers: Job) -> None:
    ours, theirs = (
        [point.step for point in shown.Scalars("eval/runtime")]
        for shown in (transformers.ours, transformers.theirs[0])
    )
    assert ours == theirs == [4, 8, 8]


def test_transformers_evaluation_behind_the_training_is_shown_though_it_says_the_same(
    start_daemon: DaemonStarter, tmp_path: Path
) -> None:
    """Runtimes are rounded, so that one rank may say the same twice and another may not."""
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from ranktap.integrations.transformers import RanktapCallback

    daemon = start_daemon()
    callback = RanktapCallback(run="sum", endpoint=daemon.endpoint)
    state, control = TrainerState(global_step=8), TrainerControl()
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    callback.on_train_begin(arguments, state, control)
    callback.on_log(arguments, state, control, logs={"eval_runtime": 0.004})
    callback.on_log(arguments, state, control, logs={"eval_runtime": 0.004})
    callback.on_train_end(arguments, state, control)
    callback.on_log(arguments, state, control, logs={"eval_runtime": 0.004})
    assert callback.tap.close()
    assert daemon.stop() == 0
    shown = accumulate(daemon.logdir / "sum").Scalars("eval/runtime")
    assert [(point.step, point.value) for point in shown] == [(8, np.float32(0.004))] * 2


def test_transformers_arguments_are_rank_0s_text(transformers: Job) -> None:
    (ours,), (theirs,) = (
        shown.Tensors("args/text_summary") for shown in (transformers.ours, transformers.theirs[0])
    )
    assert ours.step == theirs.step == 0
    text = tensor_util.make_ndarray(ours.tensor_proto)
    np.testing.assert_array_equal(text, tensor_util.make_ndarray(theirs.tensor_proto))
    assert b'"max_steps": 8' in text[0]
    assert not [tag for tag in transformers.ours.Tags()["tensors"] if tag.startswith("ranks/")]


def test_transformers_model_is_watched_at_the_trainers_steps(transformers: Job) -> None:
    norms = series(transformers.ours, "gradients/layer.weight/norm")
    assert list(norms) == [4, 8]
    whole = series(transformers.theirs[0], "train/grad_norm")
    for step, norm in norms.items():
        bias = series(transformers.ours, "gradients/layer.bias/norm")[step]
        assert np.hypot(norm, bias) == pytest.approx(min(whole[step], 1.0), rel=1e-4), "clipped"


def test_ignites_histograms_are_those_of_its_own_logger_added_up(ignite: Job) -> None:
    tags = ignite.theirs[0].Tags()["histograms"]
    assert len(tags) == 4
    assert sorted(ignite.ours.Tags()["histograms"]) == sorted(tags)
    for tag in tags:
        ours, *theirs = (shown.Histograms(tag) for shown in (ignite.ours, *ignite.theirs))
        assert [each.step for each in ours] == [1, 2]
        for merged, *ranks in zip(ours, *theirs, strict=True):
            assert len({each.step for each in (merged, *ranks)}) == 1
            counts = [counted(each.histogram_value) for each in ranks]
            assert counted(merged.histogram_value) == counts[0] + counts[1]


def test_ignites_hyper_parameters_are_there(ignite: Job) -> None:
    assert hyper_parameters(ignite.directories[0]) == {"lr": 0.1}


# -- none of them -----------------------------------------------------------------------------


def test_nothing_is_imported_that_is_not_asked_for() -> None:
    program = "import sys, ranktap, ranktap.integrations; print(*sys.modules)"
    loaded = set(run_python(program).stdout.split())
    assert "ranktap.integrations" in loaded
    libraries = {"lightning", "pytorch_lightning", "accelerate", "transformers", "ignite", "torch"}
    assert not loaded & libraries


def test_without_a_library_the_error_says_which_extra_to_install() -> None:
    program = """
import sys
for library in ("lightning", "pytorch_lightning", "accelerate", "transformers", "ignite"):
    sys.modules[library] = None
for extra in ("lightning", "accelerate", "transformers", "ignite"):
    try:
        __import__(f"ranktap.integrations.{extra}")
    except ModuleNotFoundError as error:
        print(error)
"""
    said = run_python(program).stdout.splitlines()
    assert len(said) == len(LIBRARIES)
    for library, line in zip(LIBRARIES, said, strict=True):
        assert line.startswith(f"ranktap.integrations.{library}: ")
        assert line.endswith(f": pip install 'ranktap[{library}]'")


def test_hyper_parameters_become_plain_values_with_their_way_as_name() -> None:
    @dataclass
    class Schedule:
        warmup: int
        decay: object

    given = {
        "lr": np.float32(0.5), "name": "x", "on": True, "none": None, "sizes": [1, 2],
        "empty": {}, 3: Namespace(schedule=Schedule(10, np.arange(2))), "one": np.ones((), int),
    }  # fmt: skip
    assert flat(given) == {
        "lr": 0.5, "name": "x", "on": True, "none": "None", "sizes": "[1, 2]", "empty": "{}",
        "3/schedule/warmup": 10, "3/schedule/decay": "[0 1]", "one": 1,
    }  # fmt: skip
    assert flat(Namespace(lr=1)) == {"lr": 1}
    assert flat({}) == {}


def test_what_is_said_again_at_a_step_is_left_out() -> None:
    once = OncePerStep()
    assert once({"epoch": 0, "loss": 1.5}, 3) == {"epoch": 0, "loss": 1.5}
    assert once({"epoch": 0, "loss": 1.0, "val": 2.0}, 3) == {"loss": 1.0, "val": 2.0}
    assert once({"epoch": 0}, 4) == {"epoch": 0}
    nan = float("nan")
    assert list(once({"loss": nan}, 4)) == list(once({"loss": nan}, 4)) == ["loss"]
