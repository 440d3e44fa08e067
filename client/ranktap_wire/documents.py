"""The parts of records that are JSON: what stands in them, written and read under limits.

    labels of boxes     ["cat", "dog"]
    a layout            [["category", [["title", "Multiline", ["tag", "tag"]],
                                       ["title", "Margin", ["value", "lower", "upper"]]]]]
    hyperparameters     {"hparams": [["lr", 0.1], ["opt", "sgd"]], "metrics": ["loss"],
                         "discrete": {"opt": ["sgd", "adam"]}}
    a mesh's scene      {"camera": {"cls": "PerspectiveCamera", "fov": 75}}

Lists where the order matters. NaN and Infinity are numbers here, as they are to Python's json.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Final

from ranktap_wire import limits, rules
from ranktap_wire.records import Buffer, byte_view
from ranktap_wire.rules import given

MULTILINE: Final = "Multiline"
MARGIN: Final = "Margin"


@dataclass(frozen=True, slots=True)
class Chart:
    title: str
    is_margin: bool
    """`tags` are value, lower and upper; else every tag is a line."""
    tags: list[str]


@dataclass(frozen=True, slots=True)
class Category:
    title: str
    charts: list[Chart]


Value = bool | int | float | str


@dataclass(frozen=True, slots=True)
class HParams:
    values: dict[str, Value]
    metrics: list[str]
    """Tags of scalars."""
    discrete: dict[str, list[Value]] = field(default_factory=dict)
    """All values that a hyperparameter may take, of those that are in `values`."""


# -- writing ----------------------------------------------------------------------------
# Nothing is checked here: who writes a document reads it back, so that it meets every rule.


def pack_labels(labels: list[str]) -> bytes:
    return _pack(labels)


def pack_layout(layout: list[Category]) -> bytes:
    return _pack(
        [
            [
                category.title,
                [
                    [chart.title, MARGIN if chart.is_margin else MULTILINE, chart.tags]
                    for chart in category.charts
                ],
            ]
            for category in layout
        ]
    )


def pack_hparams(hparams: HParams) -> bytes:
    values = [[name, value] for name, value in hparams.values.items()]
    return _pack({"hparams": values, "metrics": hparams.metrics, "discrete": hparams.discrete})


def _pack(document: object) -> bytes:
    # With escapes, so that half a surrogate pair comes as far as the rule that names it.
    return json.dumps(document).encode()


# -- reading ----------------------------------------------------------------------------


def read_labels(buffer: Buffer, count: int) -> list[str]:
    """The texts beside `count` boxes.

    Raises:
        TypeError, ValueError: what is wrong, and what is allowed.
    """
    labels = _list("labels", _read("labels", buffer))
    if len(labels) != count:
        raise ValueError(f"labels: expected one for each of {count} boxes, got {len(labels)}")
    return [rules.check_words("labels", label) for label in labels]


def read_layout(buffer: Buffer) -> list[Category]:
    """Categories of charts.

    Raises:
        TypeError, ValueError: what is wrong, and what is allowed.
    """
    layout = []
    for each in _list("layout", _read("layout", buffer)):
        title, charts = _entry("layout", each, 2, "[category, charts]")
        layout.append(
            Category(
                rules.check_words("category", title),
                [_chart(chart) for chart in _list("charts", charts)],
            )
        )
    return layout


def _chart(chart: object) -> Chart:
    title, shape, given_tags = _entry("charts", chart, 3, "[title, kind, tags]")
    if shape not in (MULTILINE, MARGIN):
        raise ValueError(f"charts: expected {MULTILINE!r} or {MARGIN!r}, got {given(shape)}")
    tags = [rules.check_words("tags", tag) for tag in _list("tags", given_tags)]
    if shape == MARGIN and len(tags) != 3:
        raise ValueError(
            f"tags: expected value, lower and upper of a margin chart, got {len(tags)} tags"
        )
    return Chart(rules.check_words("title", title), shape == MARGIN, tags)


def read_hparams(buffer: Buffer) -> HParams:
    """Hyperparameters, in the order in which they were given, and the metrics to judge them by.

    Raises:
        TypeError, ValueError: what is wrong, and what is allowed.
    """
    document = _map("hparams", _read("hparams", buffer))
    if document.keys() != {"hparams", "metrics", "discrete"}:
        raise ValueError(
            f"hparams: expected 'hparams', 'metrics' and 'discrete', got {given(sorted(document))}"
        )
    values: dict[str, Value] = {}
    for each in _list("hparams", document["hparams"]):
        name, value = _entry("hparams", each, 2, "[name, value]")
        if rules.check_words("hparams", name) in values:
            raise ValueError(f"hparams: expected each name once, got {name!r} twice")
        values[name] = _value(f"hparams[{name!r}]", value)
    metrics = [rules.check_tag(tag) for tag in _list("metrics", document["metrics"])]
    discrete: dict[str, list[Value]] = {}
    for name, domain in _map("discrete", document["discrete"]).items():
        if name not in values:
            raise ValueError(f"discrete: expected names of hyperparameters, got {given(name)}")
        argument = f"discrete[{name!r}]"
        discrete[name] = [_value(argument, value) for value in _list(argument, domain)]
        if any(isinstance(value, str) != isinstance(values[name], str) for value in discrete[name]):
            raise TypeError(f"{argument}: expected values of one type, got {given(domain)}")
    return HParams(values, metrics, discrete)


def read_config(buffer: Buffer) -> dict[str, Any]:
    """The scene of a mesh: names of three.js and what they are set to.

    Raises:
        TypeError, ValueError: it is no JSON object within the limits.
    """
    config = _map("config", _read("config", buffer))
    level: list[Any] = [config]
    for _ in range(limits.JSON_DEPTH):
        level = [
            inner
            for each in level
            for inner in (each.values() if isinstance(each, dict) else each)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return config
    raise ValueError(f"config: expected at most {limits.JSON_DEPTH} levels")


def _read(name: str, buffer: Buffer) -> Any:
    view = byte_view(buffer)
    if view.nbytes > limits.JSON_BYTES:
        raise ValueError(
            f"{name}: expected at most {limits.JSON_BYTES} bytes of JSON, got {view.nbytes}"
        )
    text = rules.check_utf8(name, view)
    try:
        return json.loads(text)
    # ValueError: also an integer of more digits than Python reads. RecursionError: as many
    # lists, one in the other.
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: expected JSON, got {given(text)}: {error}") from None


def _list(name: str, value: object) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{name}: expected a list, got {given(value)}")
    return value


def _map(name: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"{name}: expected a map, got {given(value)}")
    return value


def _entry(name: str, value: object, length: int, form: str) -> list[Any]:
    if not isinstance(value, list) or len(value) != length:
        raise TypeError(f"{name}: expected {form}, got {given(value)}")
    return value


def _value(name: str, value: object) -> Value:
    if isinstance(value, str):
        return rules.check_words(name, value, limits.JSON_BYTES)
    if not isinstance(value, bool | int | float):
        raise TypeError(f"{name}: expected a number, a string or a bool, got {given(value)}")
    # What TensorBoard keeps of a number is a float64.
    rules.check_real(name, int(value) if isinstance(value, bool) else value)
    return value
