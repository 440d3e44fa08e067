"""Hyperparameters, as `SummaryWriter.add_hparams` writes them: three values without data.

What was tried stands in the plugin metadata of three tags: the experiment (names and
types of hyperparameters, names of metrics), the beginning of this session (the
hyperparameters' values) and its end. The metrics' values are ordinary scalars.
"""

from typing import Final

from google.protobuf import struct_pb2  # type: ignore[import-untyped]
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.api_pb2 import (
    DataType,
    Experiment,
    HParamInfo,
    MetricInfo,
    MetricName,
    Status,
)
from tensorboard.plugins.hparams.plugin_data_pb2 import (
    HParamsPluginData,
    SessionEndInfo,
    SessionStartInfo,
)

from ranktap_wire.documents import HParams, Value
from ranktap_wire.shown import EXPERIMENT_TAG
from ranktapd.render.protos import plugin_metadata, serialized_value

# `tensorboard.plugins.hparams.metadata` has these names, and takes 60 ms to import.
SESSION_START_TAG: Final = "_hparams_/session_start_info"
SESSION_END_TAG: Final = "_hparams_/session_end_info"


def hparams_values(hparams: HParams) -> list[bytes]:
    """Three serialized `Summary.Value`s, each for an event of its own.

    A value that is no string is a number; so is a bool, as in torch.

    Source: torch.utils.tensorboard.summary.hparams.
    """
    start = SessionStartInfo()
    infos = []
    for name, value in hparams.values.items():
        start.hparams[name].CopyFrom(_struct_value(value))
        domain = None
        if name in hparams.discrete:
            allowed = [_struct_value(each) for each in hparams.discrete[name]]
            domain = struct_pb2.ListValue(values=allowed)
        kind = DataType.DATA_TYPE_STRING if isinstance(value, str) else DataType.DATA_TYPE_FLOAT64
        infos.append(HParamInfo(name=name, type=kind, domain_discrete=domain))
    experiment = Experiment(
        hparam_infos=infos,
        metric_infos=[MetricInfo(name=MetricName(tag=tag)) for tag in hparams.metrics],
    )
    end = SessionEndInfo(status=Status.STATUS_SUCCESS)
    return [
        _value(EXPERIMENT_TAG, HParamsPluginData(experiment=experiment)),
        _value(SESSION_START_TAG, HParamsPluginData(session_start_info=start)),
        _value(SESSION_END_TAG, HParamsPluginData(session_end_info=end)),
    ]


def _struct_value(value: Value) -> struct_pb2.Value:
    if isinstance(value, str):
        return struct_pb2.Value(string_value=value)
    return struct_pb2.Value(number_value=value)


def _value(tag: str, data: HParamsPluginData) -> bytes:
    content = data.SerializeToString(deterministic=True)
    return serialized_value(Summary.Value(tag=tag, metadata=plugin_metadata("hparams", content)))
