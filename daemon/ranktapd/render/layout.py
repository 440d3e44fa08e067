"""The layout of the custom scalars page: which series are drawn in one chart."""

from collections.abc import Iterable

from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.plugins.custom_scalar import layout_pb2

from ranktap_wire.documents import Category, Chart
from ranktap_wire.shown import LAYOUT_TAG
from ranktapd.render.protos import plugin_metadata, serialized_value


def layout_value(categories: Iterable[Category]) -> bytes:
    """Charts by category, in the order given, as a serialized `Summary.Value`.

    The tags of a margin chart are taken literally, those of another one are regular
    expressions. A run has one layout, and the last one written counts: one that adds a
    chart must hold all the others too.

    Source: torch.utils.tensorboard.summary.custom_scalars.
    """
    layout = layout_pb2.Layout(
        category=[
            layout_pb2.Category(
                title=category.title, chart=[_chart(chart) for chart in category.charts]
            )
            for category in categories
        ]
    )
    tensor = TensorProto(
        dtype="DT_STRING",
        string_val=[layout.SerializeToString()],
        tensor_shape=TensorShapeProto(),
    )
    metadata = plugin_metadata("custom_scalars")
    return serialized_value(Summary.Value(tag=LAYOUT_TAG, tensor=tensor, metadata=metadata))


def _chart(chart: Chart) -> layout_pb2.Chart:
    if chart.is_margin:
        value, lower, upper = chart.tags
        series = layout_pb2.MarginChartContent.Series(value=value, lower=lower, upper=upper)
        margin = layout_pb2.MarginChartContent(series=[series])
        return layout_pb2.Chart(title=chart.title, margin=margin)
    multiline = layout_pb2.MultilineChartContent(tag=chart.tags)
    return layout_pb2.Chart(title=chart.title, multiline=multiline)
