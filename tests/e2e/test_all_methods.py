"""Every method of SummaryWriter, from ranks and from threads at once: each record is there once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest

from ranktap import SummaryWriter
from tests.e2e.jobs import all_methods
from tests.support.daemons import DaemonProcess
from tests.support.event_files import OWN_TAGS, accumulate, event_files, events, scalar_points
from tests.support.scripts import run_python

Written = Counter[tuple[str, str, int]]
"""How many values there are of a sub-run, a tag and a step."""
STEPS, RANKS = all_methods.STEPS, range(all_methods.AT_ONCE)
LAYOUT, GRAPH = "custom_scalars__config__", "graph"

ENDINGS = {"text": "/text_summary", "mesh": "_VERTEX"}
"""What torch's writer puts behind a tag."""
EACH = {
    "tensor", "histogram_raw", "image", "images", "image_with_boxes", "figure", "video", "audio",
    "text", "pr_curve", "pr_curve_raw", "mesh",
}  # fmt: skip
OF_RANK_0 = {
    "custom_scalars", "custom_scalars_multilinechart", "custom_scalars_marginchart", "hparams",
    "graph", "onnx_graph",
}  # fmt: skip
BY_OTHER_RULES = {"scalar", "scalars", "histogram", "embedding"}


def read(run: Path) -> Written:
    written: Written = Counter()
    for directory in sorted({path.parent for path in run.rglob("*tfevents*")}):
        sub_run = str(directory.relative_to(run))
        for path in event_files(directory):
            for event in events(path):
                if event.HasField("graph_def"):
                    written[sub_run, GRAPH, event.step] += 1
                for value in event.summary.value:
                    written[sub_run, value.tag, event.step] += 1
    return written


def expected_of_one(suffix: str) -> Iterator[tuple[str, str, int]]:
    """What one rank or thread leaves, less layouts, graphs and files."""
    for step in STEPS:
        yield ".", f"scalar{suffix}", step
        for name in "ab":
            yield f"scalars{suffix}_{name}".replace("/", "_"), f"scalars{suffix}", step
        for tag in ("experiment", "session_start_info", "session_end_info"):
            yield f"hparams{suffix}/{step}", f"_hparams_/{tag}", step
        yield f"hparams{suffix}/{step}", "m", step
        yield ".", f"histogram{suffix}", step
        for name in EACH:
            yield ".", f"{name}{suffix}{ENDINGS.get(name, '')}", step


def expected_of_other_ranks() -> Iterator[tuple[str, str, int]]:
    """What stands beside rank 0's, or what is merged."""
    for step in STEPS:
        for end in ("min", "max"):
            yield ".", f"ranks/scalar/{end}", step
            for name in "ab":
                yield f"scalars_{name}", f"ranks/scalars/{end}", step
        for rank in RANKS[1:]:
            for name in EACH:
                yield ".", f"ranks/{name}/rank{rank}{ENDINGS.get(name, '')}", step


def embeddings(run: Path) -> list[str]:
    """Where their files are: as with torch's writer, the step and the tag without a "/"."""
    return sorted(str(path.parent.relative_to(run)) for path in run.rglob("tensors.tsv"))


@pytest.fixture(scope="module")
def logdir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What one daemon wrote of a job that does both at once: the runs "ranks" and "threads"."""
    directory = tmp_path_factory.mktemp("all_methods")
    value = onnx.helper.make_tensor_value_info
    places = [[value(name, onnx.TensorProto.FLOAT, [1])] for name in "xy"]
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    model = directory / "model.onnx"
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "g", *places)), model)
    daemon = DaemonProcess(directory / "runs").start()
    try:
        run_python(Path(all_methods.__file__), daemon.endpoint, model, timeout_s=120)
        assert daemon.stop() == 0
        assert "WARNING" not in daemon.log and "ERROR" not in daemon.log, daemon.log
        yield daemon.logdir
    finally:
        print(daemon.log)
        daemon.close()


def of_user(written: Written) -> Written:
    """Less what ranktap says of the run: nothing was dropped, and nothing came too late."""
    tags = {tag for _, tag, _ in written}
    assert not {"ranktap/dropped", "ranktap/late"} & tags
    return Counter({key: n for key, n in written.items() if not key[1].startswith(OWN_TAGS)})


def test_every_method_is_called() -> None:
    methods = {name for name in dir(SummaryWriter) if name.startswith("add_")}
    assert {f"add_{name}" for name in all_methods.CALLS} == methods
    assert set(all_methods.CALLS) == EACH | OF_RANK_0 | BY_OTHER_RULES


def test_what_four_ranks_log_with_every_method_at_once_is_there_once(logdir: Path) -> None:
    run = logdir / "ranks"
    written = of_user(read(run))
    # Rank 0's three of each step; before them the daemon may have made one of merged scalars.
    assert written.pop((".", LAYOUT, 0)) >= 3 * len(STEPS)
    assert written.pop((".", GRAPH, 0)) == 2 * len(STEPS)
    assert written == Counter([*expected_of_one(""), *expected_of_other_ranks()])
    tags = ["embedding", *(f"ranks%2fembedding%2frank{rank}" for rank in RANKS[1:])]
    assert embeddings(run) == [f"{step:05}/{tag}" for step in STEPS for tag in tags]
    # What is merged is of all four: rank k logs step + k, and k five times.
    points = scalar_points(run)
    for tag, of_ranks in {"scalar": 1.5, "ranks/scalar/min": 0.0, "ranks/scalar/max": 3.0}.items():
        assert points[tag] == [(step, step + of_ranks) for step in STEPS]
    for merged in accumulate(run).Histograms("histogram"):
        counted = merged.histogram_value
        assert (counted.num, counted.sum, counted.min, counted.max) == (20, 30.0, 0.0, 3.0)


def test_what_four_threads_log_with_every_method_at_once_is_there_once(logdir: Path) -> None:
    run = logdir / "threads"
    written = of_user(read(run))
    threads = range(all_methods.AT_ONCE)
    assert written.pop((".", LAYOUT, 0)) == len(threads) * 3 * len(STEPS)
    assert written.pop((".", GRAPH, 0)) == len(threads) * 2 * len(STEPS)
    assert written == Counter(key for n in threads for key in expected_of_one(f"/{n}"))
    assert embeddings(run) == [f"{step:05}/embedding%2f{n}" for step in STEPS for n in threads]
    points = scalar_points(run)
    for n in threads:
        assert points[f"scalar/{n}"] == [(step, step + n) for step in STEPS]
