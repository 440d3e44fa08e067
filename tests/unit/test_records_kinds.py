"""The rules of kinds: each refuses what it says, and names argument, given and allowed."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest

from ranktap_wire import kinds, limits
from ranktap_wire.histograms import BINS_MAX
from ranktap_wire.pictures import PIXELS
from ranktap_wire.records import (
    DTYPES,
    HISTOGRAM_BUCKETS,
    MOMENTS,
    MOMENTS_ROWS,
    Across,
    Kind,
    byte_view,
)
from tests.support.messages import GRID, MOMENTS_PARAMETERS, blob

SUMS: dict[str, Any] = {"min": 0.0, "max": 3.0, "num": 5, "sum": 7.0, "sum_squares": 9.5}
BOXES: dict[str, Any] = {"dataformats": "CHW", "rescale": 1}
SIZE: dict[str, Any] = {"height": 4, "width": 5, "channels": 3}
PLAIN: dict[str, Any] = {"global_step": None, "sprite_shape": None, "sprite_dtype": None}
SPRITE: dict[str, Any] = PLAIN | {"sprite_shape": [2, 3, 4, 4], "sprite_dtype": "uint8"}


def refused(start: str, error: type[Exception] = ValueError) -> Any:
    return pytest.raises(error, match=rf"(?s)^{re.escape(start)}")


# -- what arrives -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", Kind)
def test_a_record_of_every_kind_that_is_right_is_taken(kind: Kind) -> None:
    record = blob(kind)
    kinds.check_blob(record)
    assert record.parameters == blob(kind).parameters


def test_every_kind_has_its_row_in_the_table_of_the_module() -> None:
    rows = re.findall(r"(?m)^\| ([a-z_, 0]+) \|", kinds.__doc__ or "")
    assert sorted(name for row in rows[1:] for name in row.split(", ")) == sorted(Kind)


@pytest.mark.parametrize("kind", Kind)
def test_what_is_known_at_the_call_is_checked_without_the_data(kind: Kind) -> None:
    kinds.check_head(blob(kind, data=b""))
    with refused("shape: "):
        kinds.check_blob(blob(kind, data=b""))


@pytest.mark.parametrize("kind", [kind for kind in Kind if blob(kind).parts])
def test_what_is_in_the_parts_is_not_looked_at_before_it_has_arrived(kind: Kind) -> None:
    lengths = {name: byte_view(part).nbytes for name, part in blob(kind).parts.items()}
    parts = {name: b"\xff" * nbytes for name, nbytes in lengths.items()}
    kinds.check_head(blob(kind, parts=parts))


@pytest.mark.parametrize(
    "kind", [Kind.IMAGE_BOXES, Kind.MESH, Kind.EMBEDDING, Kind.MOMENTS], ids=str
)
def test_what_is_in_the_parts_is_looked_at_when_it_arrives(kind: Kind) -> None:
    lengths = {name: byte_view(part).nbytes for name, part in blob(kind).parts.items()}
    with pytest.raises(ValueError, match="expected UTF-8"):
        kinds.check_blob(blob(kind, parts={n: b"\xff" * each for n, each in lengths.items()}))


@pytest.mark.parametrize(
    ("kind", "changed"),
    [
        (Kind.IMAGE, {"tag": "a/sub run\ta"}),
        (Kind.TENSOR, {"shape": (), "data": bytes(8)}),
        (Kind.TENSOR, {"shape": (3, 0), "data": b""}),
        *[(Kind.TENSOR, {"dtype": name, "shape": (2,), "data": bytes(2 * DTYPES[name].itemsize)})
          for name in DTYPES if name != "utf8"],
        (Kind.HISTOGRAM_RAW, {"shape": (2, 0), "data": b""}),
        (Kind.HISTOGRAM_RAW, {"data": np.full((2, 3), math.nan)}),
        (Kind.IMAGE_BOXES, {"parts": {"boxes": b""}}),
        (Kind.IMAGE_BOXES, {"parts": {"boxes": np.full((2, 4), math.nan)}}),
        (Kind.IMAGE_BOXES, {"parts": {"boxes": bytes(32), "labels": b'[""]'}}),
        (Kind.ENCODED_IMAGE, {"data": b"\x89PNG\r\n\x1a\n", "shape": (8,)}),
        (Kind.AUDIO, {"dtype": "int16", "shape": (6,)}),
        (Kind.PR_CURVE, {"shape": (0,), "data": b"", "parts": {"labels": b""}}),
        (Kind.PR_CURVE, {"parts": {"labels": bytes(24)}, "parameters": {"num_thresholds": 2}}),
        (Kind.PR_CURVE_RAW, {"data": np.full((6, 4), math.nan)}),
        (Kind.MESH, {"parts": {}}),
        (Kind.MESH, {"parts": {"faces": b""}}),
        (Kind.MESH, {"data": np.full((2, 4, 3), math.nan, np.float32)}),
        (Kind.EMBEDDING, {"parts": {}, "parameters": PLAIN | {"global_step": -7}}),
        (Kind.EMBEDDING, {"parts": {"metadata": b"a\nof two lines\nb\n"}, "parameters": PLAIN}),
        (Kind.EMBEDDING, {"tag": "a/sub run of a name\t" + "é" * 115}),
        (Kind.GRAPH, {"parts": {}}),
        (Kind.CUSTOM_SCALARS, {"data": b"[]", "shape": (2,)}),
    ],
)  # fmt: skip
def test_what_is_unusual_and_harmless_is_taken(kind: Kind, changed: dict[str, Any]) -> None:
    kinds.check_blob(blob(kind, **changed))


def test_a_record_is_held_against_the_limit_with_all_its_parts() -> None:
    half = bytes(limits.RECORD_BYTES // 2)
    shape = (len(half),)
    kinds.check_blob(blob(Kind.GRAPH, data=half, shape=shape, parts={"run_metadata": half}))
    with refused("graph: expected at most 64 MiB, got 64 MiB (shape (33554432,))"):
        kinds.check_head(blob(Kind.GRAPH, shape=shape, parts={"run_metadata": half + b"1"}))


def test_parameters_come_out_in_their_normal_form() -> None:
    made = blob(Kind.IMAGE_BOXES, parameters={"dataformats": "chw", "rescale": np.float32(2)})
    kinds.check_head(made)
    assert made.parameters == {"dataformats": "CHW", "rescale": 2.0}
    made = blob(Kind.EMBEDDING, parameters=SPRITE | {"sprite_shape": (2, 3, 4, 4)})
    kinds.check_head(made)
    assert made.parameters["sprite_shape"] == [2, 3, 4, 4]
    made = blob(Kind.HISTOGRAM_RAW, parameters=SUMS | {"num": np.int64(7)})
    kinds.check_head(made)
    assert (made.parameters["num"], type(made.parameters["num"])) == (7.0, float)


EDGES = np.array([0.0, 1.0, 2.0])


@pytest.mark.parametrize(
    ("kind", "changed", "start"),
    [
        (Kind.IMAGE, {"tag": "a\x1fb"}, "tag: expected no control characters"),
        (Kind.IMAGE, {"tag": "../up\ta"}, "sub-run: expected names with '/' between"),
        (Kind.IMAGE, {"dtype": "object"}, "dtype: expected one of 'bool', 'int8'"),
        (Kind.IMAGE, {"dtype": "complex64"}, "image: expected elements of 'bool', 'int8'"),
        (Kind.IMAGE, {"dtype": ">f4"}, "dtype: expected one of"),
        (Kind.IMAGE, {"dtype": "utf8"}, "image: expected elements of 'bool', 'int8'"),
        (Kind.TEXT, {"dtype": "uint8"}, "text: expected elements of 'utf8', got uint8"),
        (Kind.IMAGE, {"shape": (3, 4, 6)}, "shape: (3, 4, 6) of uint8 takes 72 bytes, got 60"),
        (Kind.IMAGE, {"dtype": "float32"}, "shape: (3, 4, 5) of float32 takes 240 bytes, got 60"),
        (Kind.IMAGE, {"shape": (1 << 62, 1 << 62)}, "image: expected at most 64 MiB, got 2"),
        (Kind.IMAGE, {"shape": (-3, -4, 5)}, "shape: expected at most 8 sizes from 0 on"),
        (Kind.IMAGE, {"shape": (1,) * 9, "data": b"1"}, "shape: expected at most 8 sizes"),
        (Kind.IMAGE, {"parts": {"edges": EDGES}}, "'edges': not for the kind image"),
        (Kind.IMAGE, {"parts": {"tags": b"a"}}, "'tags': not for the kind image"),
        (Kind.HISTOGRAM, {"parts": {"counts": b"a"}}, "'counts': not for the kind hist"),
        (Kind.IMAGE, {"across": Across.MERGE}, "across: expected 'each', 'rank0', 'tile' for"),
        (Kind.TEXT, {"across": Across.TILE}, "across: expected 'each', 'rank0' for the kind te"),
        (Kind.HISTOGRAM, {"across": Across.SUM}, "across: expected 'merge', 'rank0', 'each' for"),
        (Kind.IMAGE, {"parameters": {}}, "parameters: image takes 'dataformats', got none"),
        (Kind.IMAGE, {"parameters": {"dataformats": "CHW", "x": 1}}, "parameters: image takes"),
        (Kind.IMAGE, {"parameters": {"dataformats": 7}}, "dataformats: expected a string, got 7"),
        (Kind.IMAGE, {"parameters": {"dataformats": "NHW"}}, "dataformats: expected the letters"),
        (Kind.IMAGES, {"parameters": {"dataformats": "CHW"}}, "dataformats: expected the letters"),
        (Kind.IMAGE_GRID, {"parameters": {"nrow": 8}}, "parameters: image_grid takes 'nrow'"),
        (Kind.IMAGE_GRID, {"parameters": GRID | {"nrow": None}}, "nrow: expected an integer"),
        (Kind.IMAGE_GRID, {"parameters": GRID | {"normalize": True}}, "normalize: expected images"),
        (Kind.HISTOGRAM, {"shape": (0,), "data": b""}, "values: expected at least one value"),
        (Kind.HISTOGRAM, {"parameters": {"bins": "x", "max_bins": None}}, "bins: expected one of"),
        (Kind.HISTOGRAM, {"parameters": {"bins": [0, 1], "max_bins": None}}, "bins: expected a na"),
        (Kind.HISTOGRAM, {"parameters": {"bins": True, "max_bins": None}}, "bins: "),
        (Kind.HISTOGRAM, {"parameters": {"bins": 9, "max_bins": []}}, "max_bins: expected an int"),
        (Kind.HISTOGRAM, {"parameters": {"bins": 9}}, "parameters: histogram takes"),
        (Kind.HISTOGRAM, {"parts": {"edges": EDGES}}, "bins: expected a name, a number or edges"),
        (
            Kind.HISTOGRAM,
            {"parts": {"edges": EDGES}, "parameters": {"bins": None, "max_bins": "a"}},
            "max_bins: expected an integer, got 'a'",
        ),
        (
            Kind.HISTOGRAM,
            {"parts": {"edges": b"1234567"}, "parameters": {"bins": None, "max_bins": None}},
            "bins: expected edges of 8 bytes each",
        ),
        (
            Kind.HISTOGRAM, {"parts": {"edges": EDGES[::-1].copy()}, "parameters": {"bins": None,
            "max_bins": None}}, "bins: expected finite edges",
        ),
        (Kind.TEXT, {"data": b"\xff" * 10}, "text: expected UTF-8, got invalid start byte at 0"),
        (Kind.TEXT, {"shape": (6, 10)}, "text: expected one dimension, got shape (6, 10)"),
        (Kind.TEXT, {"shape": (0, 1 << 63), "data": b""}, "text: expected one dimension"),
        (Kind.TEXT, {"parameters": {"a": 1}}, "parameters: text takes none, got 'a'"),
        (Kind.MOMENTS, {"parameters": {}}, "parameters: moments takes 'fields', 'replicated'"),
        (Kind.MOMENTS, {"parameters": MOMENTS_PARAMETERS | {"fields": "mean"}}, "fields: expected"),
        (Kind.MOMENTS, {"parameters": MOMENTS_PARAMETERS | {"fields": [[]]}}, "fields: expected"),
        (
            Kind.MOMENTS, {"parameters": MOMENTS_PARAMETERS | {"fields": ["mean", "mean"]}},
            "fields: expected each once",
        ),
        (Kind.MOMENTS, {"parameters": MOMENTS_PARAMETERS | {"replicated": 1}}, "replicated: exp"),
        (Kind.MOMENTS, {"shape": (len(MOMENTS), 2)}, "moments: expected shape (N, 8) with at leas"),
        (Kind.MOMENTS, {"dtype": "int64"}, "moments: expected elements of 'float64', got int"),
        (Kind.MOMENTS, {"shape": (0, 8), "data": b""}, "moments: expected shape (N, 8) with at l"),
        (
            Kind.MOMENTS, {"shape": (MOMENTS_ROWS + 1, 8), "data": bytes(8 * 8 * 3_501)},
            "moments: expected at most 3500 rows, got 3501",
        ),
        (Kind.MOMENTS, {"data": np.full((2, 8), math.nan)}, "moments: expected counts from 0 on"),
        (Kind.MOMENTS, {"data": np.full((2, 8), -1.0)}, "moments: expected counts from 0 on"),
        (Kind.MOMENTS, {"parts": {}}, "tags: expected with the kind moments, got none"),
        (Kind.MOMENTS, {"parts": {"tags": b"a"}}, "tags: expected 2 of them, got 1"),
        (Kind.MOMENTS, {"parts": {"tags": b"a\nb\nc"}}, "tags: expected 2 of them, got 3"),
        (Kind.MOMENTS, {"parts": {"tags": b"a\na"}}, "tags: expected each once"),
        (Kind.MOMENTS, {"parts": {"tags": b"a\n"}}, "tag: expected a string that is not empty"),
        (Kind.MOMENTS, {"parts": {"tags": b"a\n\xff"}}, "tags: expected UTF-8"),
        (Kind.MOMENTS, {"parts": {"tags": b"a\n" + b"b" * 995}}, "tag: expected at most 989 bytes"),
        (
            Kind.MOMENTS, {"parts": {"tags": b"a\nb", "counts": bytes(8)}},
            "counts: expected uint32 of shape (2, 4096), got 8 bytes",
        ),
        (Kind.MOMENTS, {"parts": {"edges": EDGES}}, "'edges': not for the kind moments"),
        (Kind.TENSOR, {"dtype": "utf8"}, "tensor: expected elements of 'bool', 'int8'"),
        (Kind.TENSOR, {"parameters": {"x": 1}}, "parameters: tensor takes none, got 'x'"),
        (
            Kind.TENSOR, {"dtype": "uint8", "shape": (1 << 25,), "data": b""},
            "tensor: expected at most 16777216 elements, got 33554432 (shape (33554432,))",
        ),
        (Kind.HISTOGRAM_RAW, {"dtype": "float32"}, "buckets: expected elements of 'float64', got"),
        (Kind.HISTOGRAM_RAW, {"shape": (3, 2)}, "buckets: expected a limit and a count for each,"),
        (Kind.HISTOGRAM_RAW, {"shape": (6,)}, "buckets: expected a limit and a count for each, of"),
        (
            Kind.HISTOGRAM_RAW, {"shape": (2, BINS_MAX + 1)},
            "buckets: expected a limit and a count for each, of at most 100000 buckets",
        ),
        (Kind.HISTOGRAM_RAW, {"parameters": SUMS | {"min": "0"}}, "min: expected a number, got '0"),
        (Kind.HISTOGRAM_RAW, {"parameters": SUMS | {"num": True}}, "num: expected a number, got T"),
        (
            Kind.HISTOGRAM_RAW, {"parameters": SUMS | {"sum": 10**400}},
            "sum: expected a finite number, got 1",
        ),
        (Kind.HISTOGRAM_RAW, {"parameters": {}}, "parameters: histogram_raw takes 'min', 'max', '"),
        (Kind.IMAGE_BOXES, {"parts": {}}, "boxes: expected with the kind image_boxes, got none"),
        (Kind.IMAGE_BOXES, {"parts": {"boxes": bytes(33)}}, "boxes: expected float64 of shape (N,"),
        (
            Kind.IMAGE_BOXES, {"parts": {"boxes": bytes(32 * 10_001)}},
            "boxes: expected at most 10000, got 10001",
        ),
        (
            Kind.IMAGE_BOXES, {"parts": {"boxes": bytes(32), "labels": b'["a", "b"]'}},
            "labels: expected one for each of 1 boxes, got 2",
        ),
        (
            Kind.IMAGE_BOXES, {"parts": {"boxes": bytes(32), "labels": b'["\\ud800"]'}},
            "labels: expected Unicode text",
        ),
        (Kind.IMAGE_BOXES, {"parameters": BOXES | {"rescale": 0}}, "rescale: expected a positive"),
        (Kind.IMAGE_BOXES, {"parameters": BOXES | {"rescale": "2"}}, "rescale: expected a number"),
        (
            Kind.IMAGE_BOXES, {"parameters": BOXES | {"rescale": 0.2}},
            "rescale: expected a pixel to be left, got 0.2 for 4 x 5",
        ),
        (
            Kind.IMAGE_BOXES, {"parameters": BOXES | {"rescale": 1e9}},
            "rescale: expected a positive number, got 1000000000.0",
        ),
        (
            Kind.IMAGE_BOXES, {"parameters": BOXES | {"rescale": 1e4}},
            f"rescale: expected at most {PIXELS} pixels, got 40000 x 50000",
        ),
        (Kind.IMAGE_BOXES, {"parameters": BOXES | {"dataformats": "NHW"}}, "dataformats: expected"),
        (Kind.ENCODED_IMAGE, {"data": b"<svg onload=1/>\n"}, "image: expected the bytes of a GIF "),
        (Kind.ENCODED_IMAGE, {"shape": (0,), "data": b""}, "image: expected shape (N,) with at le"),
        (Kind.ENCODED_IMAGE, {"shape": (4, 4)}, "image: expected shape (N,) with at least one"),
        (Kind.ENCODED_IMAGE, {"parameters": SIZE | {"height": 0}}, "height: expected a whole numb"),
        (Kind.ENCODED_IMAGE, {"parameters": SIZE | {"width": 1.0}}, "width: expected an integer,"),
        (Kind.ENCODED_IMAGE, {"parameters": SIZE | {"channels": 5}}, "channels: expected a whole"),
        (
            Kind.ENCODED_IMAGE,
            {"parameters": {"height": 1 << 14, "width": 1 << 14, "channels": 3}},
            f"image: expected at most {PIXELS} pixels, got 16384 x 16384",
        ),
        (Kind.AUDIO, {"dtype": "bool"}, "audio: expected elements of 'int8', 'int16'"),
        (Kind.AUDIO, {"shape": (3, 1)}, "audio: expected shape (N,) with at least one element, go"),
        (Kind.AUDIO, {"shape": (0,), "data": b""}, "audio: expected shape (N,) with at least one"),
        (Kind.AUDIO, {"parameters": {"sample_rate": 0}}, "sample_rate: expected a whole number fr"),
        (Kind.AUDIO, {"parameters": {"sample_rate": 1 << 31}}, "sample_rate: expected a whole num"),
        (Kind.AUDIO, {"parameters": {"sample_rate": 1.5}}, "sample_rate: expected an integer, got"),
        (Kind.PR_CURVE, {"dtype": "int32"}, "predictions: expected elements of 'bfloat16', 'float"),
        (Kind.PR_CURVE, {"shape": (3, 1)}, "predictions: expected one dimension, got shape (3, 1)"),
        (Kind.PR_CURVE, {"parts": {}}, "labels: expected with the kind pr_curve, got none"),
        (
            Kind.PR_CURVE, {"parts": {"labels": bytes(4)}},
            "labels: expected uint8 or float64 of shape (3,), as predictions has, got 4 bytes",
        ),
        (
            Kind.PR_CURVE, {"parts": {"labels": bytes(3), "weights": bytes(3)}},
            "weights: expected float64 of shape (3,), got 3 bytes",
        ),
        (Kind.PR_CURVE, {"parameters": {"num_thresholds": 128}}, "num_thresholds: expected a whol"),
        (Kind.PR_CURVE, {"parameters": {"num_thresholds": 1}}, "num_thresholds: expected a whole"),
        (Kind.PR_CURVE_RAW, {"shape": (5, 4)}, "curve: expected shape (6, N) with at least one el"),
        (Kind.PR_CURVE_RAW, {"shape": (6, 0), "data": b""}, "curve: expected shape (6, N) with at"),
        (Kind.PR_CURVE_RAW, {"parameters": {"num_thresholds": 0}}, "num_thresholds: expected a wh"),
        (Kind.MESH, {"dtype": "float64"}, "vertices: expected elements of 'float32', got float64"),
        (Kind.MESH, {"shape": (2, 4, 2)}, "vertices: expected shape (N, M, 3) with at least one"),
        (Kind.MESH, {"shape": (8, 3)}, "vertices: expected shape (N, M, 3) with at least one elem"),
        (Kind.MESH, {"parts": {"colors": bytes(12)}}, "colors: expected float32 of shape (2, 4, 3"),
        (Kind.MESH, {"parts": {"faces": bytes(12)}}, "faces: expected float32 of shape (2, M, 3),"),
        (Kind.MESH, {"parts": {"config": b"[]"}}, "config: expected a map, got [] (list)"),
        (Kind.MESH, {"parts": {"normals": b""}}, "'normals': not for the kind mesh"),
        (Kind.EMBEDDING, {"dtype": "complex64", "shape": (1, 5)}, "mat: expected elements of 'boo"),
        (Kind.EMBEDDING, {"tag": "a" * 231}, "tag: expected at most 230 bytes as the name of a d"),
        (Kind.EMBEDDING, {"tag": "/" * 77}, "tag: expected at most 230 bytes as the name of a dir"),
        (Kind.EMBEDDING, {"shape": (10,)}, "mat: expected shape (N, M) with at least one element"),
        (Kind.EMBEDDING, {"shape": (0, 5), "data": b""}, "mat: expected shape (N, M) with at leas"),
        (
            Kind.EMBEDDING, {"dtype": "bool", "shape": (1 << 25, 1), "data": b""},
            "mat: expected at most 16777216 elements, got 33554432",
        ),
        (
            Kind.EMBEDDING, {"parts": {}},
            "sprite: expected images of sprite_shape and sprite_dtype, got none",
        ),
        (Kind.EMBEDDING, {"parts": {"metadata": b"a\n"}, "parameters": PLAIN},
         "metadata: expected a line for each of 2 points, got 1"),
        (Kind.EMBEDDING, {"parts": {"metadata": b"\xff\n\n"}, "parameters": PLAIN},
         "metadata: expected UTF-8, got invalid start byte at 0"),
        (Kind.EMBEDDING, {"parameters": PLAIN | {"global_step": 1.5}}, "sprite_shape: expected wh"),
        (Kind.EMBEDDING, {"parts": {}, "parameters": PLAIN | {"global_step": 1.5}}, "global_step:"),
        (Kind.EMBEDDING, {"parameters": SPRITE | {"sprite_dtype": "utf8"}}, "sprite_dtype: expect"),
        (Kind.EMBEDDING, {"parameters": SPRITE | {"sprite_dtype": ["a"]}}, "sprite_dtype: expecte"),
        (
            Kind.EMBEDDING, {"parameters": SPRITE | {"sprite_dtype": "float32"}},
            "sprite: expected float32 of shape (2, 3, 4, 4), got 96 bytes",
        ),
        (
            Kind.EMBEDDING, {"parameters": SPRITE | {"sprite_shape": [1, 3, 4, 8]}},
            "sprite: expected 2 images, got 1",
        ),
        (
            Kind.EMBEDDING, {"parameters": SPRITE | {"sprite_shape": [2, 3, 8, 2]}},
            "sprite: expected images that fit a square with 2 in a row, which these are too high f",
        ),
        (
            Kind.EMBEDDING, {"parameters": SPRITE | {"sprite_shape": [2, 2, 4, 6]}},
            "sprite: expected images (N, C, H, W) of 1 or 3 channels",
        ),
        (
            Kind.EMBEDDING, {"parameters": SPRITE | {"sprite_shape": [2, 1, 1, 1 << 14]}},
            f"sprite: expected at most {PIXELS} pixels, got 32768 x 32768",
        ),
        (
            Kind.EMBEDDING, {"parameters": SPRITE | {"sprite_shape": [2, 3, 4, -4]}},
            "sprite_shape: expected sizes from 0 on",
        ),
        (
            Kind.EMBEDDING, {"parameters": SPRITE | {"sprite_shape": [2, 3, 4, 4.0]}},
            "sprite_shape: expected whole numbers, got [2, 3, 4, 4.0]",
        ),
        (Kind.GRAPH, {"across": Across.EACH}, "across: expected 'rank0' for the kind graph, got '"),
        (Kind.GRAPH, {"shape": (0,), "data": b""}, "graph: expected shape (N,) with at least one"),
        (Kind.CUSTOM_SCALARS, {"data": b"[", "shape": (1,)}, "layout: expected JSON, got '['"),
        (
            Kind.CUSTOM_SCALARS, {"shape": (limits.JSON_BYTES + 1,)},
            "custom_scalars: expected at most 1048576 bytes of JSON",
        ),
        (Kind.HPARAMS, {"data": b"[]", "shape": (2,)}, "hparams: expected a map, got [] (list)"),
        (Kind.HPARAMS, {"across": Across.EACH}, "across: expected 'rank0' for the kind hparams"),
    ],
)  # fmt: skip
def test_a_record_that_breaks_a_rule_is_refused_with_the_rule(
    kind: Kind, changed: dict[str, Any], start: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=rf"(?s)^{re.escape(start)}"):
        kinds.check_blob(blob(kind, **changed))


def test_moments_with_histograms_are_taken() -> None:
    counts = np.zeros((2, HISTOGRAM_BUCKETS), np.uint32)
    kinds.check_blob(blob(Kind.MOMENTS, parts={"tags": b"a\nb", "counts": counts}))


def test_the_largest_record_of_moments_fits_the_limit_of_records() -> None:
    row = HISTOGRAM_BUCKETS * 4 + len(MOMENTS) * 8 + limits.TAG_BYTES
    assert MOMENTS_ROWS * row <= limits.RECORD_BYTES
