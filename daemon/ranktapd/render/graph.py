"""A model's graph, made elsewhere: events that hold it as it came."""

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from tensorboard.compat.proto.config_pb2 import RunMetadata
from tensorboard.compat.proto.event_pb2 import Event, TaggedRunMetadata
from tensorboard.compat.proto.graph_pb2 import GraphDef

from ranktapd.render.protos import check_wall_time

RUN_METADATA_TAG = "step1"
"""The name that torch gives to the one pass through the model that it looked at."""


def graph_payloads(
    wall_time: float, graph: bytes, run_metadata: bytes | None = None
) -> list[bytes]:
    """Serialized `Event`s: of the graph, and of what its run said of it. They have no step.

    Both are held against their protos first: TensorBoard's graph page fails for good when
    one of them does not parse.

    Raises:
        ValueError: `graph` is no serialized GraphDef, `run_metadata` no RunMetadata, or
            `wall_time` is not finite.

    Source: torch.utils.tensorboard.writer.FileWriter.add_graph.
    """
    check_wall_time(wall_time)
    _check_parses("graph", graph, GraphDef)
    payloads = [Event(wall_time=wall_time, graph_def=graph).SerializeToString()]
    if run_metadata is not None:
        _check_parses("run_metadata", run_metadata, RunMetadata)
        tagged = TaggedRunMetadata(tag=RUN_METADATA_TAG, run_metadata=run_metadata)
        event = Event(wall_time=wall_time, tagged_run_metadata=tagged)
        payloads.append(event.SerializeToString())
    return payloads


def _check_parses(name: str, data: bytes, message: type) -> None:
    try:
        message.FromString(data)  # type: ignore[attr-defined]
    except DecodeError as error:
        raise ValueError(f"{name} is no serialized {message.__name__}: {error}") from None
