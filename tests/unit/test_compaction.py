"""What stays of event files when they are compacted: all that either loader shows, in its order."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata

from ranktapd import compaction, event_file
from ranktapd.runs import RunPlace
from ranktapd.summary_writer import FileStart
from tests.support.event_files import accumulate, event_files, events

TAGS = ("a", "b", "text")


def _point(number: int, step: int, tags: tuple[str, ...]) -> bytes:
    """A record that is told from all others by its wall time."""
    values = []
    for tag in tags:
        value = Summary.Value(tag=tag, simple_value=number)
        if tag == "text":
            value = Summary.Value(tag=tag, metadata=_text())
            value.tensor.dtype = 7  # DT_STRING
            value.tensor.string_val.append(str(number).encode())
        values.append(value)
    event = Event(wall_time=1_000.0 + number, step=step, summary=Summary(value=values))
    return event_file.frame(event.SerializeToString())


def _text() -> SummaryMetadata:
    return SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))


Record = tuple[str, int, tuple[str, ...]]
POINTS = st.tuples(
    st.just("point"),
    st.integers(-2, 6),
    st.lists(st.sampled_from(TAGS), min_size=1, max_size=2, unique=True).map(tuple),
)
RECORDS = st.one_of(
    POINTS,
    POINTS,
    POINTS,
    st.tuples(st.just("start"), st.integers(-2, 6), st.just(())),
    st.tuples(st.just("checkpoint"), st.just(0), st.just(())),
)


def _write(directory: Path, files: list[list[Record]]) -> None:
    directory.mkdir(parents=True)
    number = 0
    for index, records in enumerate(files):
        written = [event_file.version_record(900.0)]
        for kind, step, tags in records:
            number += 1
            if kind == "point":
                written.append(_point(number, step, tags))
            elif kind == "start":
                written.append(event_file.start_record(1_000.0 + number, step))
            else:
                written.append(event_file.checkpoint_record(1_000.0, f"{number}@1+{number}"))
        name = event_file.file_name(1_700_000_000 + index, "host", 1, 0, "")
        (directory / name).write_bytes(b"".join(written))


def _by_python(directory: Path) -> dict[str, Any]:
    """What TensorBoard's Python loader shows."""
    sizes = {"scalars": 0, "text": 0}
    found = EventAccumulator(str(directory), {"tensors": 0}, sizes).Reload()
    shown: dict[str, Any] = {}
    for tag in found.Tags()["tensors"]:
        plugin = found.SummaryMetadata(tag).plugin_data.plugin_name
        points = [(point.wall_time, point.step) for point in found.Tensors(tag)]
        shown[f"{tag} of {plugin}"] = points
    return {tag: points for tag, points in shown.items() if points}


def _by_scripts(directory: Path) -> dict[str, Any]:
    """What scripts read, with the accumulator that TensorBoard had before."""
    found = accumulate(directory)
    return {
        tag: points
        for tag in found.Tags()["scalars"]
        if (points := [(point.wall_time, point.step) for point in found.Scalars(tag)])
    }


def _by_fast(directory: Path) -> dict[str, Any]:
    """What its fast loader shows: of each tag, steps that only go up (reservoir.rs, `offer`)."""
    shown: dict[str, Any] = {}
    kinds: dict[str, str] = {}
    for path in event_files(directory):
        for event in events(path):
            for value in event.summary.value:
                points = shown.setdefault(value.tag, [])
                kinds.setdefault(value.tag, value.metadata.plugin_data.plugin_name)
                while points and points[-1][1] >= event.step:
                    points.pop()
                points.append((event.wall_time, event.step))
    return {f"{tag} of {kinds[tag]}": points for tag, points in shown.items()}


def _read(directory: Path) -> tuple[dict[str, Any], ...]:
    return _by_python(directory), _by_fast(directory), _by_scripts(directory)


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in event_files(directory))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(RECORDS, max_size=14), min_size=1, max_size=3), st.booleans())
def test_both_loaders_show_the_same_whatever_the_files_hold(
    files: list[list[Record]], of_sub_run: bool
) -> None:
    if of_sub_run:
        # Its files have no START at all, the run's own begin with one.
        files = [[each for each in records if each[0] != "start"] for records in files]
    else:
        files[0].insert(0, ("start", 0, ()))
    with tempfile.TemporaryDirectory() as own:
        place = RunPlace.of(Path(own) / "runs", Path(own) / "state", "run")
        _write(place.events, files)
        place.state.mkdir(parents=True)
        last = event_files(place.events)[-1].name
        told: list[int] = []
        plan = compaction.plan(place.events, FileStart(last), told.append)
        shown = _read(place.events)
        before = _size(place.events)
        assert plan.before_bytes == before
        points = sum(kind == "point" for records in files for kind, _, _ in records)
        starts = sum(kind == "start" for records in files for kind, _, _ in records)
        assert plan.records == points + max(starts - 1, 0)

        path = compaction.carry_out(place, "", plan, told.append)

        assert _size(place.events) == path.stat().st_size == plan.after_bytes
        assert sum(told) == 2 * before
        assert _read(place.events) == shown
        left = [event for event in events(path) if event.HasField("summary")]
        assert len(left) == points - plan.dropped
        # What is dropped is all that neither of them shows, but for records of several tags.
        if all(len(tags) < 2 for records in files for _, _, tags in records):
            times = {time for each in shown for points_of in each.values() for time, _ in points_of}
            firsts = {event.summary.value[0].tag: event.wall_time for event in reversed(left)}
            assert {event.wall_time for event in left} - times <= set(firsts.values())
        # The writer goes on behind the same position.
        checkpoint = _last_checkpoint(files[-1:], offset=sum(map(len, files[:-1])))
        assert event_file.scan(path.read_bytes()).checkpoint == checkpoint


def _last_checkpoint(files: list[list[Record]], offset: int) -> str | None:
    numbers = [offset + at + 1 for at, record in enumerate(files[0]) if record[0] == "checkpoint"]
    return f"{numbers[-1]}@1+{numbers[-1]}" if numbers else None


def test_a_position_of_a_former_journal_is_not_taken_for_the_writers(tmp_path: Path) -> None:
    place = RunPlace.of(tmp_path / "runs", tmp_path / "state", "run")
    _write(place.events, [[("checkpoint", 0, ())], [("point", 1, ("a",))]])
    place.state.mkdir(parents=True)
    start = FileStart(event_files(place.events)[-1].name, "7@1+7", 3)
    plan = compaction.plan(place.events, start, lambda nbytes: None)
    assert plan.closing == b""
    path = compaction.carry_out(place, "", plan, lambda nbytes: None)
    said = json.loads(place.pointer().read_bytes())
    assert FileStart(**said) == FileStart(path.name, "7@1+7", 3)


def test_a_torn_tail_is_not_taken_over(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    _write(directory, [[("point", 1, ("a",)), ("point", 2, ("a",))]])
    (path,) = event_files(directory)
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    plan = compaction.plan(directory, FileStart(path.name), lambda nbytes: None)
    assert plan.records == 1
