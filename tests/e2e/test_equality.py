"""What ranktap's SummaryWriter writes against what torch's writes, for the same calls.

Every event in every file is compared, field by field: where it is, tags, step, wall time,
values, their types, plugin metadata, and the order. Pictures by their pixels, sounds by
their samples. What differs on purpose is in test_differences.
"""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch.utils.tensorboard import SummaryWriter as TorchWriter

from ranktap import SummaryWriter
from tests.support.calls import CALLS, WALL
from tests.support.daemons import DaemonProcess
from tests.support.event_files import scalar_points
from tests.support.taps import slow_device
from tests.support.waiting import wait_for
from tests.support.written import Record, read_projector, read_records

# torch says so of its own way to a graph, and numpy of what torch does with arrays.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

LAST_DIGITS = 1e-12
"""By how much sums may differ, of a sum: numbers that are added up in another order."""

REFUSED_BY_TORCH = {
    "tensors: conjugated", "sounds: torch.int8", "sounds: torch.uint8", "sounds: numpy.int8",
    "sounds: numpy.uint8", "raw_curves: torch.bfloat16", "raw_curves: with gradient",
    "raw_curves: computed", "meshes: big endian", "meshes: colors big endian",
    "meshes: backwards", "meshes: colors backwards",
}  # fmt: skip
"""Calls of the table that torch's writer cannot do; ranktap's can."""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    daemon = DaemonProcess(tmp_path_factory.mktemp("ranktap") / "runs").start()
    try:
        yield daemon
        assert daemon.stop() == 0
    finally:
        print(daemon.log)
        daemon.close()


@dataclass
class Written:
    """What both writers made of all calls."""

    began: float
    ended: float
    in_files: list[Record]
    records: dict[str, list[Record]]
    """By the key of the call; "" has those without a tag of their own."""
    files: dict[str, dict[str, str]]
    config: str


KEYS = {name: f"call{number:04}" for number, name in enumerate(CALLS)}


def read(directory: Path, began: float, ended: float) -> Written:
    written = Written(began, ended, read_records(directory), {}, {}, "")
    for record in written.in_files:
        where = record.tags[0] if record.sub_run == "." and record.tags else record.sub_run
        found = re.match(r"call\d{4}", where)
        written.records.setdefault(found[0] if found else "", []).append(record)
    for path, content in read_projector(directory).items():
        found = re.search(r"call\d{4}", path)
        if found:
            written.files.setdefault(found[0], {})[path] = content
        else:
            assert path == "projector_config.pbtxt"
            written.config = content
    return written


@pytest.fixture(scope="module")
def both(
    daemon: DaemonProcess, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Written, Written, set[str]]:
    """What ranktap's writer made of all calls, what torch's did, and what torch's refused."""
    theirs, ours = tmp_path_factory.mktemp("torch"), daemon.logdir / "all"
    refused = set()
    began = time.time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with (
            TorchWriter(str(theirs)) as its,
            SummaryWriter("all", endpoint=daemon.endpoint) as own,
        ):
            for name, call in CALLS.items():
                call(own, KEYS[name])
                try:
                    call(its, KEYS[name])
                except Exception:
                    refused.add(name)
            ended = time.time()
            own.add_scalar("the end", 1.0, 0)
    wait_for(lambda: "the end" in scalar_points(ours), "all to be written")
    return read(ours, began, ended), read(theirs, began, ended), refused


def in_order(records: list[Record], began: float, ended: float) -> list[Record]:
    """Tag by tag, in the order of each, and the wall time of now as 0.

    Scalars travel in columns, apart from what is logged between them.
    """
    timed = [replace(each, wall_time=0.0) if began <= each.wall_time <= ended else each
             for each in records]  # fmt: skip
    return sorted(timed, key=lambda each: (each.sub_run, each.tags))


def assert_equal(ours: list[Record], theirs: list[Record]) -> None:
    assert [str(replace(each, sums=())) for each in ours] == [
        str(replace(each, sums=())) for each in theirs
    ]
    for own, its in zip(ours, theirs, strict=True):
        assert own.sums == pytest.approx(its.sums, rel=LAST_DIGITS, nan_ok=True), own


@pytest.mark.parametrize("name", [name for name in CALLS if name not in REFUSED_BY_TORCH])
def test_a_call_writes_what_torchs_writer_writes(
    both: tuple[Written, Written, set[str]], name: str
) -> None:
    ours, theirs, _ = both
    key = KEYS[name]
    assert_equal(
        in_order(ours.records.get(key, []), ours.began, ours.ended),
        in_order(theirs.records.get(key, []), theirs.began, theirs.ended),
    )
    assert ours.files.get(key) == theirs.files.get(key)
    has_no_tag = name.startswith(("layouts", "graphs"))
    is_empty = name == "scalars_of_a_chart: nothing"
    assert (key in ours.records or key in ours.files) is not (has_no_tag or is_empty)


def test_torchs_writer_refuses_what_is_said_and_ranktaps_writes_it(
    both: tuple[Written, Written, set[str]],
) -> None:
    ours, _, refused = both
    assert refused == REFUSED_BY_TORCH
    assert all(KEYS[name] in ours.records for name in refused)


def test_graphs_layouts_and_the_projectors_configuration_are_equal_too(
    both: tuple[Written, Written, set[str]],
) -> None:
    ours, theirs, _ = both
    untagged = [each for each in ours.records[""] if each.tags != ("the end",)]
    # Four graphs with what they took, two of ONNX, and six layouts.
    assert len(untagged) == 4 * 2 + 2 + 6
    began, ended = ours.began, ours.ended
    assert_equal(
        in_order(untagged, began, ended),
        in_order(theirs.records[""], theirs.began, theirs.ended),
    )
    assert ours.config == theirs.config


def test_there_is_nothing_else_and_all_but_scalars_stands_in_the_order_of_the_calls(
    both: tuple[Written, Written, set[str]],
) -> None:
    ours, theirs, _ = both

    def tags(written: Written, is_scalar: bool) -> list[tuple[str, ...]]:
        return [each.tags for each in written.in_files
                if each.is_scalar == is_scalar and each.tags != ("the end",)
                and not any(tag[:8] in ours_alone for tag in each.tags)]  # fmt: skip

    ours_alone = {KEYS[name] for name in REFUSED_BY_TORCH}
    assert tags(ours, False) == tags(theirs, False)
    assert sorted(tags(ours, True)) == sorted(tags(theirs, True))


def test_tensors_whose_values_come_later_from_a_device_write_the_same(
    daemon: DaemonProcess,
    both: tuple[Written, Written, set[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, _, _ = both
    directory = daemon.logdir / "device"
    began = time.time()
    with (
        slow_device(monkeypatch) as arrive,
        SummaryWriter("device", endpoint=daemon.endpoint) as own,
    ):
        for name, call in CALLS.items():
            call(own, KEYS[name])
        arrive()
        ended = time.time()
        own.add_scalar("the end", 1.0, 0)
        own.flush()
    # Scalars overtake what is large, and are written while what came with them is drawn.
    wait_for(
        lambda: read(directory, began, ended).records.keys() == ours.records.keys(),
        "all to be written",
    )
    late = read(directory, began, ended)
    assert late.files == ours.files and late.config == ours.config
    for key, records in late.records.items():
        others = in_order(ours.records[key], ours.began, ours.ended)
        if key:
            assert_equal(in_order(records, began, ended), others)


def test_every_method_is_called() -> None:
    class Spy:
        def __init__(self) -> None:
            self.called: set[str] = set()

        def __getattr__(self, name: str) -> Callable[..., None]:
            self.called.add(name)
            return lambda *_args, **_named: None

    spy = Spy()
    for call in CALLS.values():
        call(spy, "tag")
    methods = {name for name in dir(TorchWriter) if name.startswith("add_")}
    # A video is compared below: torch's writer needs a library for it that has gone on.
    assert spy.called == methods - {"add_video"}


# -- any calls ----------------------------------------------------------------------------

FLOATS = st.floats(width=64) | st.sampled_from([0.1, -0.0, 1e300, 5e-324, 65_504.0])
STEPS = st.integers(-(2**63), 2**63 - 1) | st.integers(0, 5) | st.none()
WALLS = st.floats(-1e12, 1e12) | st.just(WALL)
NUMBERS = arrays.arrays(
    arrays.integer_dtypes() | arrays.unsigned_integer_dtypes() | arrays.floating_dtypes(),
    arrays.array_shapes(max_dims=3, max_side=6),
    elements={"allow_nan": False, "allow_infinity": False, "allow_subnormal": False},
)  # fmt: skip
PIXELS = st.one_of(
    arrays.arrays(np.uint8, st.tuples(st.sampled_from([1, 3]), *[st.integers(1, 8)] * 2)),
    arrays.arrays(
        arrays.floating_dtypes(),
        st.tuples(st.just(3), *[st.integers(1, 8)] * 2),
        elements={"min_value": -1, "max_value": 2},
    ),
)


@dataclass(frozen=True)
class AnyCall:
    """A call on one of few tags, so that they come again."""

    method: str
    tag: str
    given: tuple[Any, ...]
    named: dict[str, Any]

    def __call__(self, writer: Any, prefix: str) -> None:
        getattr(writer, self.method)(f"{prefix}/{self.tag}", *self.given, **self.named)


@st.composite
def any_call(draw: st.DrawFn) -> AnyCall:
    step, wall = draw(STEPS), draw(WALLS)
    number = draw(st.integers(0, 1))
    kind = draw(st.sampled_from(["scalar", "tensor scalar", "chart", "histogram", "tensor",
                                 "text", "image", "curve", "sound"]))  # fmt: skip

    def call(method: str, *given: Any, **others: Any) -> AnyCall:
        named = {"global_step": step, "walltime": wall} | others
        return AnyCall(method, f"{kind}{number}", given, named)

    if kind == "scalar":
        return call("add_scalar", draw(FLOATS))
    if kind == "tensor scalar":
        return call("add_scalar", draw(FLOATS), new_style=True, double_precision=bool(number))
    if kind == "chart":
        return call("add_scalars", draw(st.dictionaries(st.sampled_from("abc"), FLOATS)))
    if kind == "histogram":
        # numpy refuses buckets that are narrower than the values are precise, ranktap makes
        # 100,000 at most.
        values = draw(NUMBERS).astype(np.float64).clip(-1e3, 1e3).round() + 0.0
        return call("add_histogram", values, bins=draw(st.sampled_from(["tensorflow", 5, "auto"])))
    if kind == "tensor":
        array = draw(NUMBERS)
        # torch writes no other unsigned integers than bytes.
        is_wide = array.dtype.kind == "u" and array.itemsize > 1
        array = array.astype("int64" if is_wide else array.dtype.newbyteorder("="))
        return call("add_tensor", torch.from_numpy(array))
    if kind == "text":
        return call("add_text", draw(st.text(st.characters(exclude_categories=["Cs"]))))
    if kind == "image":
        return call("add_image", draw(PIXELS))
    probabilities = draw(arrays.arrays(np.float64, 9, elements=st.floats(0, 1)))
    if kind == "curve":
        return call("add_pr_curve", probabilities > draw(st.floats(0, 1)), probabilities)
    return call("add_audio", probabilities * 2 - 1)


@settings(
    max_examples=12,
    deadline=None,
    # To make it smaller takes minutes.
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=(HealthCheck.too_slow, HealthCheck.data_too_large),
)
@given(st.lists(any_call(), min_size=10, max_size=40))
def test_any_calls_write_what_torchs_writer_writes(
    mixed: tuple[SummaryWriter, Path, TorchWriter, Path, list[int]],
    calls: list[AnyCall],
) -> None:
    own, ours, its, theirs, count = mixed
    tag = f"t{len(count)}"
    count.append(len(calls))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for call in calls:
            call(its, tag)
            call(own, tag)
    its.flush()
    own.add_scalar(f"{tag} end", 1.0, 0)
    wait_for(lambda: f"{tag} end" in scalar_points(ours), "all to be written")

    def of_example(directory: Path) -> list[Record]:
        records = [
            each for each in read_records(directory)
            if each.sub_run.startswith(f"{tag}_") or each.tags[0].startswith(f"{tag}/")
        ]  # fmt: skip
        return in_order(records, 0, 0)

    assert_equal(of_example(ours), of_example(theirs))


@pytest.fixture(scope="module")
def mixed(
    daemon: DaemonProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[SummaryWriter, Path, TorchWriter, Path, list[int]]]:
    theirs = tmp_path_factory.mktemp("mixed")
    with (
        TorchWriter(str(theirs)) as its,
        SummaryWriter("mixed", endpoint=daemon.endpoint) as own,
    ):
        yield own, daemon.logdir / "mixed", its, theirs, []
