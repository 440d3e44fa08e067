"""What torch's tutorials teach about TensorBoard: one script, run with each of the writers."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.embedded import kill_all, log_of, wait_until_ended
from tests.support.event_files import accumulate

# torch says so of its own way to a graph.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.torch.jit.trace(_method)?. is deprecated:DeprecationWarning"
)

SCRIPT = Path(__file__).parent / "jobs" / "tutorial.py"


@pytest.fixture
def log_dir(tmp_path: Path) -> Iterator[Path]:
    """Ours; its daemons are ended whatever a test does."""
    directory = tmp_path / "ranktap"
    yield directory
    for each in (directory, directory / "search"):
        print(log_of(each))
        kill_all(each)


def run_tutorial(module: str, log_dir: Path) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", [SCRIPT.name, module, str(log_dir)])
        runpy.run_path(str(SCRIPT), run_name="__main__")


def runs_below(log_dir: Path) -> dict[str, dict[str, Any]]:
    """Of every run: of each kind of data, the steps of each tag's points.

    A trial has the time for its name; here it is the first, the second ...
    """
    directories = sorted({path.parent for path in log_dir.rglob("*tfevents*")})
    trials = [path.name for path in directories if re.fullmatch(r"\d+\.\d+", path.name)]
    return {
        "/".join(
            f"trial {trials.index(part)}" if part in trials else part
            for part in path.relative_to(log_dir).parts
        ): _steps(path)
        for path in directories
    }


def _steps(directory: Path) -> dict[str, Any]:
    run = accumulate(directory)
    tags = run.Tags()
    read = {
        "scalars": run.Scalars,
        "images": run.Images,
        "histograms": run.Histograms,
        "tensors": run.Tensors,
    }
    steps: dict[str, Any] = {
        kind: {tag: [point.step for point in points(tag)] for tag in tags[kind]}
        for kind, points in read.items()
    }
    return steps | {"graph": tags["graph"], "run metadata": tags["run_metadata"]}


def losses(log_dir: Path) -> list[float]:
    return [point.value for point in accumulate(log_dir).Scalars("training loss")]


def files_below(log_dir: Path) -> set[str]:
    """Files that are no event files, less what the daemon keeps for itself."""
    return {
        str(path.relative_to(log_dir))
        for path in log_dir.rglob("*")
        if path.is_file()
        and "tfevents" not in path.name
        and not any(part.startswith(".ranktap") for part in path.relative_to(log_dir).parts)
    }


def test_a_tutorials_script_leaves_the_same_runs_tags_and_points_with_both_writers(
    tmp_path: Path, log_dir: Path
) -> None:
    its = tmp_path / "torch"
    run_tutorial("torch.utils.tensorboard", its)
    run_tutorial("ranktap", log_dir)
    wait_until_ended(log_dir)
    wait_until_ended(log_dir / "search")
    theirs, ours = runs_below(its), runs_below(log_dir)
    assert list(ours) == list(theirs)
    assert {"", "losses_running", "search", "search/trial 2"} <= set(theirs)
    for name, run in theirs.items():
        assert ours[name] == run, name
    main = theirs[""]
    assert len(main["scalars"]["training loss"]) == 6 and main["graph"]
    assert len(main["histograms"]) == 12 and len(main["tensors"]) == 10
    assert losses(log_dir) == pytest.approx(losses(its))
    files = files_below(its)
    assert {"projector_config.pbtxt", "00000/default/sprite.png"} <= files
    assert files_below(log_dir) == files
