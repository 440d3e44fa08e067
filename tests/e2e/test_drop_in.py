"""A script for torch's SummaryWriter, with ranktap's in its place."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import ranktap
from tests.support.daemons import DaemonProcess, ranks_environment
from tests.support.embedded import kill_all, log_of, wait_until_ended
from tests.support.event_files import accumulate, event_files, scalar_points
from tests.support.messages import blob

# torch says so of its own way to a graph, and has no other yet.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.torch.jit.trace(_method)?. is deprecated:DeprecationWarning"
)

SCRIPT = Path(__file__).parent / "jobs" / "torch_script.py"
IMPORT = "from torch.utils.tensorboard import SummaryWriter"


@pytest.fixture
def embedded() -> Iterator[list[Path]]:
    """Directories whose daemons are ended whatever a test does; their logs are shown."""
    directories: list[Path] = []
    yield directories
    for directory in directories:
        print(log_of(directory))
        kill_all(directory)


def run_script(directory: Path, log_dir: Path | str, writer: str) -> None:
    """The script, but for its import unchanged, in a directory of its own."""
    directory.mkdir()
    text = SCRIPT.read_text()
    assert text.count(IMPORT) == 1
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(directory)
        patched.setattr(sys, "argv", [SCRIPT.name, str(log_dir), str(directory)])
        exec(compile(text.replace(IMPORT, writer), SCRIPT, "exec"), {"__name__": "__main__"})


def runs_below(directory: Path) -> dict[str, EventAccumulator]:
    """Every directory of event files, by where it is, as TensorBoard finds them."""
    found = {path.parent for path in directory.rglob("*tfevents*")}
    return {str(path.relative_to(directory)): accumulate(path) for path in sorted(found)}


def seen(runs: dict[str, EventAccumulator]) -> dict[str, dict[str, Any]]:
    """What TensorBoard lists of each, in no order."""
    listed = {}
    for name, run in runs.items():
        tags = run.Tags()
        listed[name] = {
            kind: sorted(each) if isinstance(each, list) else each for kind, each in tags.items()
        }
    return listed


def files_of_projector(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for pattern in ("*.tsv", "*.pbtxt")
        for path in sorted(directory.rglob(pattern))
    }


@pytest.fixture(scope="module")
def by_torch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What torch's own writer makes of the script."""
    directory = tmp_path_factory.mktemp("torch") / "job"
    run_script(directory, directory / "log", IMPORT)
    return directory / "log"


def assert_the_same(ours: Path, theirs: Path) -> None:
    """TensorBoard lists the same of both, and the same scalars; the projector has the same."""
    its, own = runs_below(theirs), runs_below(ours)
    assert seen(own) == seen(its)
    assert "run_14h_sin" in own and "trial" in own
    for name, run in its.items():
        for tag in run.Tags()["scalars"]:
            points = [(each.step, each.value) for each in run.Scalars(tag)]
            assert [(each.step, each.value) for each in own[name].Scalars(tag)] == points, (
                name,
                tag,
            )
    assert files_of_projector(ours) == files_of_projector(theirs)


def test_a_script_for_torchs_writer_runs_unchanged_but_for_the_import(
    tmp_path: Path, by_torch: Path, embedded: list[Path]
) -> None:
    log_dir = tmp_path / "job" / "log"
    embedded += [log_dir, log_dir / "again"]
    run_script(tmp_path / "job", log_dir, "from ranktap import SummaryWriter")
    for directory in embedded:
        wait_until_ended(directory)
    assert_the_same(log_dir, by_torch)
    assert all(path.name.endswith(".x") for path in event_files(log_dir))
    # All that was made lies in the directory that was named.
    assert {path.name for path in (tmp_path / "job").iterdir()} == {"log", "model.onnx"}


def test_with_a_daemon_elsewhere_the_same_stands_below_its_logdir(
    tmp_path: Path,
    by_torch: Path,
    start_daemon: Callable[..., DaemonProcess],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    daemon = start_daemon()
    monkeypatch.setenv("RANKTAP_ENDPOINT", daemon.endpoint)
    run_script(tmp_path / "job", "runs/exp", "from ranktap import SummaryWriter")
    assert daemon.stop() == 0
    assert [path.name for path in (tmp_path / "job").iterdir()] == ["model.onnx"]
    assert_the_same(daemon.logdir / "exp", by_torch)


RANK = """
import sys
import numpy as np
from ranktap import SummaryWriter

rank = int(sys.argv[1])
writer = SummaryWriter(comment="_x")
for step in range(10):
    writer.add_scalar("loss", rank + step, step)
    writer.add_scalars("curves", {"a": rank}, step)
writer.add_histogram("values", np.full(5, 1.0 + rank), 1)
writer.add_text("note", f"of rank {rank}", 1)
writer.add_hparams({"lr": 0.1}, {"metric": rank + 1.0}, run_name="trial")
writer.close()
print(writer.get_logdir())
"""


def test_ranks_of_a_job_write_to_one_directory_without_saying_which(
    tmp_path: Path, embedded: list[Path]
) -> None:
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank)],
            env=ranks_environment(rank, 2) | {"TORCHELASTIC_RUN_ID": "job7"},
            cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    log_dir = tmp_path / "runs" / "job7_x"
    embedded.append(log_dir)
    for rank in ranks:
        said, errors = rank.communicate(timeout=60)
        assert (rank.returncode, said.strip()) == (0, "runs/job7_x"), errors
    wait_until_ended(log_dir)
    points = scalar_points(log_dir)
    assert points["loss"] == [(step, step + 0.5) for step in range(10)]
    assert points["ranks/loss/max"] == [(step, step + 1.0) for step in range(10)]
    assert scalar_points(log_dir / "curves_a")["curves"] == [(step, 0.5) for step in range(10)]
    assert scalar_points(log_dir / "trial") == {"metric": [(0, 1.0)]}
    (merged,) = accumulate(log_dir).Histograms("values")
    assert merged.histogram_value.num == 10
    assert set(accumulate(log_dir).Tags()["tensors"]) >= {
        "note/text_summary", "ranks/note/rank1/text_summary",
    }  # fmt: skip


def test_a_video_is_shown_as_a_gif(
    tmp_path: Path, start_daemon: Callable[..., DaemonProcess]
) -> None:
    frames = np.random.default_rng(0).choice(np.array([0, 255], np.uint8), (1, 5, 3, 8, 8))
    daemon = start_daemon()
    with ranktap.SummaryWriter("film", endpoint=daemon.endpoint) as writer:
        writer.add_video("video", frames, 3, fps=5)
        # A picture of a device that has failed is lost, and nothing else.
        writer.tap._outbox.add_blob(blob(tag="broken"), _fail)
        writer.add_scalar("after", 1.0, 4)
    assert daemon.stop() == 0
    run = accumulate(daemon.logdir / "film")
    (shown,) = run.Images("video")
    assert (shown.step, shown.width, shown.height) == (3, 8, 8)
    gif = Image.open(io.BytesIO(shown.encoded_image_string))
    assert (gif.format, gif.n_frames, gif.info["duration"]) == ("GIF", 5, 200)
    gif.seek(4)
    np.testing.assert_array_equal(np.asarray(gif.convert("RGB")), frames[0, 4].transpose(1, 2, 0))
    assert [point.step for point in run.Scalars("after")] == [4]


def _fail() -> bool:
    raise RuntimeError("CUDA error: device-side assert triggered")
