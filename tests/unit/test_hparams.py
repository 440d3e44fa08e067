"""Hyperparameters field by field against `torch.utils.tensorboard.summary.hparams`."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.tensorboard import summary as torch_summary

from ranktap_wire import shown
from ranktap_wire.documents import HParams, Value
from ranktapd.render import hparams
from ranktapd.render.hparams import hparams_values

NAMES = st.text(max_size=8)
# NaN is not equal to itself.
NUMBERS = st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False)


@st.composite
def trials(draw: st.DrawFn) -> HParams:
    values: dict[str, Value] = draw(st.dictionaries(NAMES, NUMBERS | NAMES, max_size=6))
    discrete = {
        name: draw(st.lists(st.from_type(type(value)).filter(lambda v: v == v), max_size=3))
        for name, value in values.items()
        if draw(st.booleans())
    }
    return HParams(values, draw(st.lists(NAMES, unique=True, max_size=3)), discrete)


def contents(value: Summary.Value) -> HParamsPluginData:
    """Its plugin's data, parsed: that holds a map, whose order is nobody's."""
    return HParamsPluginData.FromString(value.metadata.plugin_data.content)


@settings(deadline=None)
@given(trials())
def test_hyperparameters_equal_torchs(trial: HParams) -> None:
    theirs = torch_summary.hparams(
        trial.values, dict.fromkeys(trial.metrics, 1.0), dict(trial.discrete)
    )
    ours = [Summary.Value.FromString(value) for value in hparams_values(trial)]
    for our, summary in zip(ours, theirs, strict=True):
        (their,) = summary.value
        assert contents(our) == contents(their)
        our.metadata.plugin_data.content = their.metadata.plugin_data.content
        assert our == their


def test_the_tags_are_those_that_the_plugin_looks_for() -> None:
    assert shown.EXPERIMENT_TAG == metadata.EXPERIMENT_TAG
    assert hparams.SESSION_START_TAG == metadata.SESSION_START_INFO_TAG
    assert hparams.SESSION_END_TAG == metadata.SESSION_END_INFO_TAG


def test_the_same_hyperparameters_in_another_order_give_values_of_the_same_bytes() -> None:
    forth = {f"name {number}": number for number in range(20)}
    back = dict(reversed(forth.items()))
    # The order counts in the experiment alone, where it is that of the columns.
    assert hparams_values(HParams(forth, []))[1:] == hparams_values(HParams(back, []))[1:]
