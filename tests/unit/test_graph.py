"""A model's graph against the events that torch's writer makes of it."""

from __future__ import annotations

import math

import pytest
import torch
from tensorboard.compat.proto.config_pb2 import RunMetadata
from tensorboard.compat.proto.event_pb2 import Event
from torch.utils.tensorboard._pytorch_graph import graph as torch_graph
from torch.utils.tensorboard.writer import FileWriter

from ranktapd.render.graph import graph_payloads
from ranktapd.render.protos import field


class Recorder(FileWriter):
    """torch's writer, with a list for a file."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.event_writer = self

    def add_event(self, event: Event, step: int | None = None, walltime: float = 1.5) -> None:
        event.wall_time = walltime
        self.events.append(event)


@pytest.mark.filterwarnings("ignore:.torch.jit.trace:DeprecationWarning")
def test_the_events_have_the_bytes_that_torch_writes() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU())
    profile = torch_graph(model, torch.zeros(1, 3))
    recorder = Recorder()
    recorder.add_graph(profile, 1.5)
    graph, run_metadata = (part.SerializeToString() for part in profile)
    theirs = [event.SerializeToString() for event in recorder.events]
    assert graph_payloads(1.5, graph, run_metadata) == theirs
    assert graph_payloads(1.5, graph) == theirs[:1]


@pytest.mark.parametrize("broken", [b"\xff", b"\x0a\x05abc", b"\x0a\x04\x0a\x02\xff\xfe"])
def test_what_is_no_graph_is_refused(broken: bytes) -> None:
    with pytest.raises(ValueError, match="graph is no serialized GraphDef"):
        graph_payloads(1.5, broken)
    with pytest.raises(ValueError, match="run_metadata is no serialized RunMetadata"):
        graph_payloads(1.5, b"", broken + RunMetadata().SerializeToString())


def test_a_graph_nested_deeper_than_a_reader_goes_is_refused() -> None:
    def graph(depth: int) -> bytes:
        """GraphDef.node.attr[""].func.attr[""].func ... (a map's entry: key 1, value 2)"""
        value = b""
        for _ in range(depth):
            value = field(10, field(2, field(2, value)))
        return field(1, field(5, field(2, value)))

    assert graph_payloads(1.5, graph(20))
    with pytest.raises(ValueError, match="graph is no serialized GraphDef"):
        graph_payloads(1.5, graph(100))


def test_a_wall_time_that_would_stop_a_loader_is_refused() -> None:
    with pytest.raises(ValueError, match="wall_time is"):
        graph_payloads(math.nan, b"")
