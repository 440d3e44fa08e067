"""The examples, run as a user runs them; what they write is read back."""

from __future__ import annotations

import difflib
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.support.event_files import accumulate
from tests.support.scripts import run_python
from tests.support.waiting import wait_for

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}


def read(directory: Path, last_tag: str) -> EventAccumulator:
    """A run, as soon as the embedded daemon has written it."""

    def has_it() -> EventAccumulator | None:
        if not directory.exists():
            return None
        found = accumulate(directory)
        tags = found.Tags()
        known = {tag for kind in ("scalars", "images", "histograms") for tag in tags[kind]}
        return found if last_tag in known else None

    return wait_for(has_it, f"{last_tag} in {directory}")


def test_hooks_show_what_is_known_by_hand(tmp_path: Path) -> None:
    done = run_python(EXAMPLES / "hooks.py", tmp_path, env=ENVIRONMENT)
    assert "pooled: [9.0, 18.0]" in done.stdout
    shown = read(tmp_path / "hooks", "pooled")

    def value(tag: str) -> float:
        (event,) = shown.Scalars(tag)
        return event.value

    gradients = {name: value(f"by_hand/{name}/mean") for name in "awx"}
    assert gradients == {"a": 2.0, "w": 5.0, "x": 2.0}
    assert (value("inputs/conv/min"), value("inputs/conv/max")) == (1.0, 1.0)
    assert value("activations/conv/mean") == 13.5
    assert buckets(shown, "activations/conv") == {9: 4, 18: 4}
    assert buckets(shown, "activations/pool") == {9: 1, 18: 1}
    assert buckets(shown, "pooled") == {9: 1, 18: 1}
    assert (value("grad_outputs/pool/rms"), value("grad_outputs/pool/zeros")) == (1.0, 0.0)
    assert value("grad_outputs/conv/zeros") == 0.75
    assert value("grad_inputs/conv/abs_max") == 3.0
    assert value("grad_inputs/conv/zeros") == 7 / 16


def buckets(shown: EventAccumulator, tag: str) -> dict[int, int]:
    """Lower edge to count of each bucket with something in it."""
    (event,) = shown.Histograms(tag)
    histogram = event.histogram_value
    lower = [0.0, *histogram.bucket_limit[:-1]]
    return {
        int(edge): int(count) for edge, count in zip(lower, histogram.bucket, strict=True) if count
    }


def test_alexnet_shows_maps_of_each_convolution_and_all_kernels(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    run_python(EXAMPLES / "alexnet_feature_maps.py", tmp_path, env=ENVIRONMENT, timeout_s=110)
    shown = read(tmp_path / "alexnet", "kernels/features.10.weight")
    convolutions = (0, 3, 6, 8, 10)
    assert set(shown.Tags()["images"]) == {
        "photograph",
        *(f"feature_maps/features.{number}" for number in convolutions),
        *(f"kernels/features.{number}.weight" for number in convolutions),
    }
    # 64 maps of 55 x 55 in eight rows of eight; 384 of 13 x 13 in rows of 19.
    assert size(shown, "feature_maps/features.0") == (8 * 57 + 2, 8 * 57 + 2)
    assert size(shown, "feature_maps/features.6") == (21 * 15 + 2, 19 * 15 + 2)
    # 64 kernels of 11 x 11 in colour, three times as large.
    assert size(shown, "kernels/features.0.weight") == (8 * 35 + 2, 8 * 35 + 2)
    kernels = picture(shown, "kernels/features.0.weight")
    assert (kernels[..., 0] != kernels[..., 1]).any()
    assert picture(shown, "feature_maps/features.0").std() > 10


def picture(shown: EventAccumulator, tag: str) -> np.ndarray:
    (event,) = shown.Images(tag)
    return np.asarray(Image.open(io.BytesIO(event.encoded_image_string))).astype(int)


def size(shown: EventAccumulator, tag: str) -> tuple[int, int]:
    return picture(shown, tag).shape[:2]


TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-id=my-job",
            "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0")  # fmt: skip


@pytest.mark.parametrize("name", ["ddp_training.py", "ddp_training_before.py"])
def test_the_shortest_ddp_job_runs(tmp_path: Path, name: str) -> None:
    run_python(EXAMPLES / name, before=TORCHRUN, env=ENVIRONMENT, cwd=tmp_path, timeout_s=110)
    if name == "ddp_training_before.py":
        assert not (tmp_path / "runs").exists()
        return
    shown = read(tmp_path / "runs" / "my-job", "ranks/loss/max")

    def has_all() -> bool:
        shown.Reload()
        return len(shown.Scalars("loss")) == 200

    wait_for(has_all, "all of the losses")
    losses = [event.value for event in shown.Scalars("loss")]
    assert losses[-1] < losses[0] / 10
    steps = [event.step for event in shown.Scalars("gradients/0.weight/norm")]
    assert steps == list(range(0, 200, 10))


def test_the_readme_shows_what_changes_in_the_ddp_job() -> None:
    before, after = (
        (EXAMPLES / name).read_text().partition('"""\n\n')[2].splitlines()
        for name in ("ddp_training_before.py", "ddp_training.py")
    )
    added = [line[2:] for line in difflib.ndiff(before, after) if line.startswith("+ ")]
    assert not [line for line in difflib.ndiff(before, after) if line.startswith("- ")]
    blocks = re.findall(r"```diff\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (block,) = (block for block in blocks if "ranktap.init" in block)
    shown = [line[1:] for line in block.splitlines() if line.startswith("+")]
    assert [line for line in shown if line] == [line for line in added if line]
