"""The JSON of records: what is written comes back, and nothing else is taken for it."""

from __future__ import annotations

import json
import math
import re
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ranktap_wire import documents, limits
from ranktap_wire.documents import Category, Chart, HParams

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
VALUES = TEXT | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.floats(allow_nan=False)
CHARTS = st.builds(Chart, TEXT, st.just(False), st.lists(TEXT, max_size=4)) | st.builds(
    Chart, TEXT, st.just(True), st.lists(TEXT, min_size=3, max_size=3)
)


def refused(start: str, error: type[Exception] = ValueError) -> Any:
    return pytest.raises(error, match=rf"(?s)^{re.escape(start)}")


# -- what is written comes back ---------------------------------------------------------


@given(st.lists(TEXT, max_size=5))
def test_labels_come_back_as_they_were(labels: list[str]) -> None:
    assert documents.read_labels(documents.pack_labels(labels), len(labels)) == labels


@given(st.lists(st.builds(Category, TEXT, st.lists(CHARTS, max_size=3)), max_size=3))
def test_a_layout_comes_back_as_it_was(layout: list[Category]) -> None:
    assert documents.read_layout(documents.pack_layout(layout)) == layout


@st.composite
def hyperparameters(draw: st.DrawFn) -> HParams:
    values = draw(st.dictionaries(TEXT, VALUES, max_size=5))
    discrete: dict[str, list[Any]] = {}
    for name in draw(st.sets(st.sampled_from(sorted(values)))) if values else ():
        same = TEXT if isinstance(values[name], str) else st.booleans() | st.floats(0, 1)
        discrete[name] = draw(st.lists(same, max_size=3))
    return HParams(values, draw(st.lists(st.sampled_from(["loss", "a/b"]), max_size=2)), discrete)


@given(hyperparameters())
def test_hyperparameters_come_back_as_they_were_and_in_their_order(hparams: HParams) -> None:
    read = documents.read_hparams(documents.pack_hparams(hparams))
    assert read == hparams
    assert [*read.values] == [*hparams.values]
    assert [*map(type, read.values.values())] == [*map(type, hparams.values.values())]


def test_hyperparameters_that_are_not_finite_come_back() -> None:
    read = documents.read_hparams(
        documents.pack_hparams(HParams({"a": math.nan, "b": math.inf, "c": -math.inf}, []))
    )
    assert [*map(repr, read.values.values())] == ["nan", "inf", "-inf"]


def test_a_scene_may_hold_whatever_json_can() -> None:
    scene = {"z": [1, None, True], "camera": {"fov": 75, "cls": "Kamera für alles"}}
    assert documents.read_config(json.dumps(scene).encode()) == scene


# -- what is refused --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("packed", "error", "start"),
    [
        (b"", ValueError, "layout: expected JSON, got ''"),
        (b"[", ValueError, "layout: expected JSON, got '['"),
        (b"\xff", ValueError, "layout: expected UTF-8, got invalid start byte at 0"),
        (b"[" * 100_000, ValueError, "layout: expected JSON, got '[[["),
        (b"9" * 5_000, ValueError, "layout: expected JSON, got '999"),
        (b" " * (limits.JSON_BYTES + 1), ValueError, "layout: expected at most 1048576 bytes"),
        (b"{}", TypeError, "layout: expected a list, got {} (dict)"),
        (b"[7]", TypeError, "layout: expected [category, charts], got 7 (int)"),
        (b'[["a"]]', TypeError, "layout: expected [category, charts], got ['a'] (list)"),
        (b"[[7, []]]", TypeError, "category: expected a string, got 7"),
        (b'[["a", {}]]', TypeError, "charts: expected a list, got {}"),
        (b'[["a", [["t", "Multiline"]]]]', TypeError, "charts: expected [title, kind, tags], got"),
        (b'[["a", [["t", "Pie", []]]]]', ValueError, "charts: expected 'Multiline' or 'Margin'"),
        (b'[["a", [["t", [], []]]]]', ValueError, "charts: expected 'Multiline' or 'Margin'"),
        (b'[["a", [["t", "Margin", ["a"]]]]]', ValueError, "tags: expected value, lower and upper"),
        (b'[["a", [["t", "Multiline", "a"]]]]', TypeError, "tags: expected a list, got 'a'"),
        (b'[["a", [["t", "Multiline", [7]]]]]', TypeError, "tags: expected a string, got 7"),
        (b'[["a", [[null, "Multiline", []]]]]', TypeError, "title: expected a string, got None"),
        (b'[["\\udc80", []]]', ValueError, "category: expected Unicode text"),
        (b'[["' + b"a" * 1_001 + b'", []]]', ValueError, "category: expected at most 1000 bytes"),
    ],
)
def test_a_layout_that_is_none_is_refused(
    packed: bytes, error: type[Exception], start: str
) -> None:
    with refused(start, error):
        documents.read_layout(packed)


def hparams(**changed: Any) -> bytes:
    right: dict[str, Any] = {
        "hparams": [["lr", 0.5], ["opt", "sgd"]],
        "metrics": [],
        "discrete": {},
    }
    return json.dumps(right | changed).encode()


@pytest.mark.parametrize(
    ("packed", "error", "start"),
    [
        (b"[]", TypeError, "hparams: expected a map, got [] (list)"),
        (b"{}", ValueError, "hparams: expected 'hparams', 'metrics' and 'discrete', got []"),
        (hparams(more=1), ValueError, "hparams: expected 'hparams', 'metrics' and 'discrete', got"),
        (hparams(hparams={}), TypeError, "hparams: expected a list, got {}"),
        (hparams(hparams=[["a"]]), TypeError, "hparams: expected [name, value], got ['a']"),
        (hparams(hparams=[[1, 1]]), TypeError, "hparams: expected a string, got 1"),
        (hparams(hparams=[["a", 1], ["a", 2]]), ValueError, "hparams: expected each name once"),
        (hparams(hparams=[["a", None]]), TypeError, "hparams['a']: expected a number, a string or"),
        (hparams(hparams=[["a", [1]]]), TypeError, "hparams['a']: expected a number, a string or"),
        (hparams(hparams=[["a", 10**400]]), ValueError, "hparams['a']: expected a finite number"),
        (hparams(hparams=[["a", "\ud800"]]), ValueError, "hparams['a']: expected Unicode text"),
        (hparams(metrics="loss"), TypeError, "metrics: expected a list, got 'loss'"),
        (hparams(metrics=["a\tb"]), ValueError, "tag: expected no control characters"),
        (hparams(discrete=[]), TypeError, "discrete: expected a map, got []"),
        (hparams(discrete={"x": []}), ValueError, "discrete: expected names of hyperparameters, g"),
        (hparams(discrete={"lr": 1}), TypeError, "discrete['lr']: expected a list, got 1"),
        (hparams(discrete={"lr": ["a"]}), TypeError, "discrete['lr']: expected values of one type"),
        (hparams(discrete={"opt": [1]}), TypeError, "discrete['opt']: expected values of one type"),
        (hparams(discrete={"opt": [None]}), TypeError, "discrete['opt']: expected a number, a str"),
    ],
)
def test_hyperparameters_that_are_none_are_refused(
    packed: bytes, error: type[Exception], start: str
) -> None:
    with refused(start, error):
        documents.read_hparams(packed)


@pytest.mark.parametrize(
    ("packed", "count", "error", "start"),
    [
        (b'"ab"', 2, TypeError, "labels: expected a list, got 'ab'"),
        (b'["a"]', 2, ValueError, "labels: expected one for each of 2 boxes, got 1"),
        (b"[7]", 1, TypeError, "labels: expected a string, got 7"),
        (b'["\\ud800"]', 1, ValueError, "labels: expected Unicode text"),
    ],
)
def test_labels_that_are_none_are_refused(
    packed: bytes, count: int, error: type[Exception], start: str
) -> None:
    with refused(start, error):
        documents.read_labels(packed, count)


JSON = st.recursive(
    st.none() | VALUES | st.sampled_from(["hparams", "metrics", "discrete", "Margin", "\ud800"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=12,
)
READERS: list[Callable[[bytes], object]] = [
    documents.read_layout,
    documents.read_hparams,
    documents.read_config,
    lambda packed: documents.read_labels(packed, 2),
]


@given(JSON.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=40))
def test_what_is_no_document_is_refused_and_nothing_else_happens(packed: bytes) -> None:
    for read in READERS:
        try:
            read(packed)
        except (TypeError, ValueError) as error:
            assert 0 < len(str(error)) < 5_000
            str(error).encode()


def nested(depth: int) -> Any:
    """A map of so many levels, maps and lists in turn."""
    value: Any = {}
    for level in range(depth - 1):
        value = {"a": value} if (depth - level) % 2 == 0 else [value]
    return value


def test_a_scene_may_be_nested_up_to_a_limit() -> None:
    deepest = json.dumps(nested(limits.JSON_DEPTH)).encode()
    assert documents.read_config(deepest) == nested(limits.JSON_DEPTH)
    for depth in (limits.JSON_DEPTH + 1, limits.JSON_DEPTH + 2, 900):
        with refused(f"config: expected at most {limits.JSON_DEPTH} levels"):
            documents.read_config(json.dumps(nested(depth)).encode())
    with refused("config: expected JSON, got"):
        documents.read_config(b'{"a":' * 100_000 + b"1" + b"}" * 100_000)


@pytest.mark.parametrize("text", [b"[]", b"7", b"null", b'"a"'])
def test_a_scene_is_a_map(text: bytes) -> None:
    with refused("config: expected a map, got", TypeError):
        documents.read_config(text)


def test_what_breaks_a_rule_can_be_written_and_is_refused_when_it_is_read_back() -> None:
    with refused("labels: expected Unicode text"):
        documents.read_labels(documents.pack_labels(["\ud800"]), 1)
    with refused("tags: expected value, lower and upper of a margin chart, got 1 tags"):
        documents.read_layout(documents.pack_layout([Category("a", [Chart("b", True, ["c"])])]))
    with refused("hparams['a']: expected a number, a string or a bool", TypeError):
        documents.read_hparams(documents.pack_hparams(HParams({"a": None}, [])))  # type: ignore[dict-item]


def test_parsed_json_takes_at_most_thirty_times_its_size() -> None:
    # Nothing takes more memory than empty maps.
    worst = b'{"a":[' + b"{}," * 20_000 + b"{}]}"
    tracemalloc.start()
    try:
        documents.read_config(worst)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 30 * len(worst)
