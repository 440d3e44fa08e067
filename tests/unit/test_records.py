"""The rules of records: each refuses what it says, and names argument, given and allowed."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ranktap_wire import limits, records
from ranktap_wire.records import (
    BINS_MAX,
    DTYPES,
    GRID_PIXELS,
    HISTOGRAM_ACROSS,
    HISTOGRAM_BUCKETS,
    MOMENTS,
    MOMENTS_ROWS,
    PADDING_MAX,
    SCALAR_ACROSS,
    STEP_MAX,
    STEP_MIN,
    Across,
    Kind,
)
from tests.support.messages import GRID, MOMENTS_PARAMETERS, blob


def refused(start: str, error: type[Exception] = ValueError) -> Any:
    return pytest.raises(error, match=rf"(?s)^{re.escape(start)}")


# -- names ------------------------------------------------------------------------------


@pytest.mark.parametrize("tag", ["a", "a/b/c", "loss (train)", "é" * 500, "日本", "‮", " "])
def test_a_tag_may_be_any_text_without_control_characters(tag: str) -> None:
    assert records.check_tag(tag) == tag


@pytest.mark.parametrize(
    ("tag", "error", "start"),
    [
        (None, TypeError, "tag: expected a string, got None (NoneType)"),
        (b"a", TypeError, "tag: expected a string, got b'a' (bytes)"),
        ("", ValueError, "tag: expected a string that is not empty, got ''"),
        ("a" * 1_001, ValueError, "tag: expected at most 1000 bytes of UTF-8, got 1001 ('aaaa"),
        ("é" * 501, ValueError, "tag: expected at most 1000 bytes of UTF-8, got 1002"),
        ("\ud800", ValueError, r"tag: expected Unicode text, got '\ud800'"),
        ("a\nb", ValueError, r"tag: expected no control characters, got 'a\nb'"),
        ("\x1b[2J", ValueError, r"tag: expected no control characters, got '\x1b[2J'"),
    ],
)
def test_a_tag_that_is_none_is_refused(tag: Any, error: type[Exception], start: str) -> None:
    with refused(start, error):
        records.check_tag(tag)


@pytest.mark.parametrize("code", [*range(0x20), *range(0x7F, 0xA0)])
def test_every_control_character_is_refused_wherever_there_is_text(code: int) -> None:
    for check in (records.check_tag, records.check_run, records.check_suffix):
        with pytest.raises(ValueError, match="expected no control characters"):
            check(f"a{chr(code)}b")


@pytest.mark.parametrize(
    "run", ["a", "a/b", "Nov18_host/lr=0.1", "a.b", "a..b", "%2F", "~", "a b", "/".join("a" * 16)]
)
def test_a_run_is_a_relative_path_of_plain_names(run: str) -> None:
    assert records.check_run(run) == run


@pytest.mark.parametrize(
    ("run", "error", "start"),
    [
        (None, TypeError, "run: expected a string, got None (NoneType)"),
        (7, TypeError, "run: expected a string, got 7 (int)"),
        ("", ValueError, "run: expected names with '/' between, none of them empty"),
        ("/etc/passwd", ValueError, "run: expected names with '/' between, none of them empty"),
        ("a//b", ValueError, "run: expected names with '/' between, none of them empty"),
        ("a/", ValueError, "run: expected names with '/' between, none of them empty"),
        ("..", ValueError, "run: expected names"),
        ("../a", ValueError, "run: expected names"),
        ("a/../../b", ValueError, "run: expected names"),
        (".", ValueError, "run: expected names"),
        ("a/./b", ValueError, "run: expected names"),
        (".ranktap", ValueError, "run: expected names"),
        (".ranktap/runs", ValueError, "run: expected names"),
        ("a/.hidden", ValueError, "run: expected names"),
        (" a", ValueError, "run: expected names"),
        ("a/ ..", ValueError, "run: expected names"),
        ("a\u3000", ValueError, "run: expected names"),
        ("a\\b", ValueError, r"run: expected no backslash, got 'a\\b'"),
        ("a\0b", ValueError, r"run: expected no control characters, got 'a\x00b'"),
        ("a" * 201, ValueError, "run: expected at most 200 bytes of UTF-8, got 201"),
        ("/".join("a" * 17), ValueError, "run: expected at most 16 names between '/', got 17"),
        ("%" * 81, ValueError, "run: expected a shorter name or fewer '/', got"),
        ("\udc80", ValueError, r"run: expected Unicode text, got '\udc80'"),
    ],
)
def test_a_run_that_could_leave_the_logdir_is_refused(
    run: Any, error: type[Exception], start: str
) -> None:
    with refused(start, error):
        records.check_run(run)


TEXT = st.text(st.sampled_from("a%/2F5é."), max_size=90)


@given(TEXT)
def test_the_directory_of_a_run_that_may_be_fits_a_file_system_and_tells_the_run(run: str) -> None:
    try:
        records.check_run(run)
    except ValueError:
        pass
    else:
        # Worst: many characters of two bytes and many that are escaped to three.
        assert len(records.run_directory_name(run).encode()) <= 255
    name = records.run_directory_name(run)
    assert "/" not in name
    assert records.run_of_directory_name(name) == run


def test_a_run_of_escaped_and_wide_characters_still_fits_a_file_name() -> None:
    with refused("run: expected a shorter name"):
        records.check_run("é" * 72 + "%" * 56)


@given(TEXT, TEXT)
def test_two_runs_never_share_a_directory(one: str, other: str) -> None:
    same = records.run_directory_name(one) == records.run_directory_name(other)
    assert same == (one == other)


@pytest.mark.parametrize(
    ("suffix", "error", "start"),
    [
        (None, TypeError, "filename_suffix: expected a string, got None"),
        ("a" * 65, ValueError, "filename_suffix: expected at most 64 bytes of UTF-8, got 65"),
        ("/../../a", ValueError, "filename_suffix: expected no '/', got '/../../a'"),
        ("a\0", ValueError, "filename_suffix: expected no control characters"),
    ],
)
def test_a_suffix_that_cannot_end_a_file_name_is_refused(
    suffix: Any, error: type[Exception], start: str
) -> None:
    with refused(start, error):
        records.check_suffix(suffix)
    assert records.check_suffix(".node-1") == ".node-1"


# -- numbers ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "step", [0, -1, STEP_MIN, STEP_MAX, np.int64(7), np.uint8(7), np.array(7)], ids=repr
)
def test_a_step_may_be_any_integer_of_64_bits(step: Any) -> None:
    assert records.check_step(step) == int(step)
    assert type(records.check_step(step)) is int


@pytest.mark.parametrize(
    ("step", "error", "start"),
    [
        (True, TypeError, "step: expected an integer, got True (bool)"),
        (np.bool_(True), TypeError, "step: expected an integer"),
        (1.0, TypeError, "step: expected an integer, got 1.0 (float)"),
        ("1", TypeError, "step: expected an integer, got '1' (str)"),
        (None, TypeError, "step: expected an integer, got None"),
        (np.array([1, 2]), TypeError, "step: expected an integer"),
        (STEP_MAX + 1, ValueError, "step: expected an integer of 64 bits, got 9223372036854775808"),
        (STEP_MIN - 1, ValueError, "step: expected an integer of 64 bits"),
    ],
)
def test_a_step_that_is_no_integer_of_64_bits_is_refused(
    step: Any, error: type[Exception], start: str
) -> None:
    with refused(start, error):
        records.check_step(step)


@pytest.mark.parametrize(
    ("walltime", "error", "start"),
    [
        (math.nan, ValueError, "walltime: expected a finite number of seconds, got nan"),
        (math.inf, ValueError, "walltime: expected a finite number of seconds, got inf"),
        (10**400, ValueError, "walltime: expected seconds since 1970, got 1"),
        (True, TypeError, "walltime: expected seconds since 1970, got True (bool)"),
        ("now", TypeError, "walltime: expected seconds since 1970, got 'now' (str)"),
        (1j, TypeError, "walltime: expected seconds since 1970, got 1j (complex)"),
    ],
)
def test_a_wall_time_that_stops_tensorboard_is_refused(
    walltime: Any, error: type[Exception], start: str
) -> None:
    with refused(start, error):
        records.check_walltime(walltime)
    assert records.check_walltime(np.float32(1.5)) == 1.5


@pytest.mark.parametrize("across", ["median", "", None, 3, ["mean"]])
def test_a_policy_that_there_is_not_is_refused_with_those_there_are(across: Any) -> None:
    with refused("across: expected one of 'mean', 'sum', 'min', 'max', 'last', 'rank0', 'each'"):
        records.check_across(across, SCALAR_ACROSS)


@pytest.mark.parametrize("name", SCALAR_ACROSS)
def test_every_policy_has_the_name_that_the_documentation_gives_it(name: str) -> None:
    assert records.check_across(name, SCALAR_ACROSS).name.lower() == name
    with refused("across: "):
        records.check_across("merge", SCALAR_ACROSS)
    assert records.check_across("merge", HISTOGRAM_ACROSS) is Across.MERGE


# -- errors -----------------------------------------------------------------------------


def nested(depth: int, inner: Any = 0) -> Any:
    value = inner
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [nested(100_000), "a" * 100_000, [0] * 100_000, {i: i for i in range(99)}, b"a" * 999, 10**300],
    ids=["deep", "text", "list", "map", "bytes", "number"],
)
def test_an_error_names_any_value_in_a_line(value: Any) -> None:
    assert 0 < len(records.shown(value)) <= 60


def test_small_values_are_named_whole() -> None:
    for value in (None, "text", 7, 1.5, [1, 2], {"a": 1}, (1, 2)):
        assert records.shown(value) == repr(value)


# -- pictures ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "dataformats", "letters"),
    [
        ((3, 4, 5), "CHW", records.IMAGE_LETTERS),
        ((4, 5, 1), "hwc", records.IMAGE_LETTERS),
        ((4, 5), "HW", records.IMAGE_LETTERS),
        ((4, 5), "WH", records.IMAGE_LETTERS),
        ((2, 4, 5, 3), "NHWC", records.IMAGE_LETTERS),
        ((9, 4, 5), "NHW", records.IMAGES_LETTERS),
        ((1, 1, 8_192, 8_192), "NCHW", records.IMAGES_LETTERS),
    ],
)
def test_pictures_of_every_documented_format_are_taken(
    shape: tuple[int, ...], dataformats: str, letters: tuple[str, ...]
) -> None:
    records.check_image_shape(shape, dataformats, letters)


@pytest.mark.parametrize(
    ("shape", "dataformats", "error", "start"),
    [
        ((3, 4, 5), None, TypeError, "dataformats: expected a string, got None"),
        ((3, 4, 5), "CHX", ValueError, "dataformats: expected the letters of 'CHW', 'HW', 'NCHW'"),
        ((3, 4, 5), "CHWW", ValueError, "dataformats: expected the letters of"),
        ((3, 4, 5), "", ValueError, "dataformats: expected the letters of"),
        ((3, 4), "CHW", ValueError, "image: expected 3 dimensions for dataformats 'CHW', got"),
        ((3, 0, 5), "CHW", ValueError, "image: expected at least one pixel, got shape (3, 0, 5)"),
        ((5, 4, 5), "CHW", ValueError, "image: expected 1, 3 or 4 channels (2: grey and alpha)"),
        ((2, 4, 4, 5), "NCHW", ValueError, "image: expected 1 or 3 channels in a batch, got"),
        ((1, 8_192, 8_193), "CHW", ValueError, f"image: expected at most {GRID_PIXELS} pixels"),
        ((8, 1, 8_192, 1_025), "NCHW", ValueError, f"image: expected at most {GRID_PIXELS} pixels"),
        ((1 << 62, 1, 1, 1), "NCHW", ValueError, f"image: expected at most {GRID_PIXELS} pixels"),
    ],
)
def test_pictures_that_cannot_be_drawn_are_refused(
    shape: tuple[int, ...], dataformats: Any, error: type[Exception], start: str
) -> None:
    with refused(start, error):
        records.check_image_shape(shape, dataformats, records.IMAGE_LETTERS)


@pytest.mark.parametrize(
    ("shape", "changed", "error", "start"),
    [
        ((4,), {}, ValueError, "images: expected 2, 3 or 4 dimensions (HW, CHW, NCHW), got (4,)"),
        ((1, 1, 1, 4, 4), {}, ValueError, "images: expected 2, 3 or 4 dimensions"),
        ((4, 3, 0, 4), {}, ValueError, "images: expected at least one pixel, got"),
        ((0, 3, 4, 4), {}, ValueError, "images: expected at least one pixel, got"),
        ((4, 2, 4, 4), {}, ValueError, "images: expected 1 or 3 channels, got 2"),
        ((2, 4, 4), {}, ValueError, "images: expected 1 or 3 channels, got 2"),
        ((4, 3, 4, 4), {"nrow": 0}, ValueError, "nrow: expected a whole number from 1 to"),
        ((4, 3, 4, 4), {"nrow": True}, TypeError, "nrow: expected an integer, got True (bool)"),
        ((4, 3, 4, 4), {"nrow": 2.0}, TypeError, "nrow: expected an integer, got 2.0 (float)"),
        ((4, 3, 4, 4), {"padding": -1}, ValueError, "padding: expected a whole number from 0 to"),
        (
            (4, 3, 4, 4), {"padding": PADDING_MAX + 1}, ValueError,
            "padding: expected a whole number from 0 to 1024, got 1025",
        ),
        ((4, 3, 4, 4), {"normalize": 1}, TypeError, "normalize: expected True or False, got 1"),
        ((4, 3, 4, 4), {"scale_each": "no"}, TypeError, "scale_each: expected True or False, got"),
        ((4, 3, 4, 4), {"pad_value": "0"}, TypeError, "pad_value: expected a number, got '0'"),
        ((4, 3, 4, 4), {"pad_value": math.nan}, ValueError, "pad_value: expected a finite number"),
        ((4, 3, 4, 4), {"pad_value": 1e39}, ValueError, "pad_value: expected a value from"),
        ((4, 3, 4, 4), {"value_range": 3}, TypeError, "value_range: expected a pair (low, high)"),
        ((4, 3, 4, 4), {"value_range": [1]}, TypeError, "value_range: expected a pair (low, high)"),
        ((4, 3, 4, 4), {"value_range": "ab"}, TypeError, "value_range: expected a number, got 'a'"),
        ((4, 3, 4, 4), {"value_range": (1, 0)}, ValueError, "value_range: expected low <= high"),
        (
            (4, 3, 4, 4), {"value_range": (0, math.inf)}, ValueError,
            "value_range: expected a finite number, got inf",
        ),
        (
            (4_096, 1, 1, 1), {"padding": 1_024, "nrow": 64}, ValueError,
            f"images: expected at most {GRID_PIXELS} pixels, got 65600 x 65600",
        ),
        (
            (1 << 40, 1, 1, 1), {"nrow": 1}, ValueError,
            f"images: expected at most {GRID_PIXELS} pixels",
        ),
        ((1 << 20, 1 << 20), {}, ValueError, f"images: expected at most {GRID_PIXELS} pixels"),
    ],
)  # fmt: skip
def test_grids_that_cannot_be_drawn_are_refused(
    shape: tuple[int, ...], changed: dict[str, Any], error: type[Exception], start: str
) -> None:
    with refused(start, error):
        records.check_grid(shape, "float32", GRID | changed)


def test_the_parameters_of_a_grid_come_back_as_plain_values() -> None:
    given = GRID | {
        "nrow": np.int32(2), "normalize": np.bool_(True), "value_range": (np.float32(0), 1),
        "pad_value": 1,
    }  # fmt: skip
    assert records.check_grid((4, 3, 2, 2), "float32", given) == {
        "nrow": 2, "padding": 2, "normalize": True, "value_range": [0.0, 1.0],
        "scale_each": False, "pad_value": 1.0,
    }  # fmt: skip


@pytest.mark.parametrize(("dtype", "value"), [("uint8", 256), ("int8", -129), ("float16", 70_000)])
def test_a_pad_value_that_the_images_cannot_hold_is_refused(dtype: str, value: float) -> None:
    with refused(f"pad_value: expected a value from {-65504 if dtype == 'float16' else ''}"):
        records.check_grid((4, 4), dtype, GRID | {"pad_value": value})


# -- histograms -------------------------------------------------------------------------


@pytest.mark.parametrize("bins", ["tensorflow", *records.NUMPY_BINS, 1, BINS_MAX, np.int64(30)])
def test_bins_by_name_or_number_are_taken_as_they_are(bins: Any) -> None:
    assert records.check_bins(bins) == (bins, None)


def test_bins_by_edges_are_taken_as_floats() -> None:
    assert records.check_bins([0, 1, 2.5], 7) == (None, [0.0, 1.0, 2.5])


@pytest.mark.parametrize(
    ("bins", "error", "start"),
    [
        ("tensorboard", ValueError, "bins: expected one of 'tensorflow', 'auto'"),
        (0, ValueError, f"bins: expected a whole number from 1 to {BINS_MAX}, got 0"),
        (BINS_MAX + 1, ValueError, f"bins: expected a whole number from 1 to {BINS_MAX}"),
        (None, ValueError, "bins: expected"),
        (object(), TypeError, "bins: expected a name, a whole number or a sequence of edges"),
        ([1], ValueError, "bins: expected 2 to 100001 edges in one dimension, got shape (1,)"),
        ([[1, 2]], ValueError, "bins: expected 2 to 100001 edges in one dimension"),
        ([1, 1], ValueError, "bins: expected finite edges, each greater than the one before"),
        ([2, 1], ValueError, "bins: expected finite edges, each greater than the one before"),
        ([0, math.inf], ValueError, "bins: expected finite edges"),
        ([0, math.nan, 1], ValueError, "bins: expected finite edges"),
    ],
)
def test_bins_that_are_none_are_refused(bins: Any, error: type[Exception], start: str) -> None:
    with refused(start, error):
        records.check_bins(bins)


@pytest.mark.parametrize("max_bins", [0, -1, BINS_MAX + 1])
def test_a_maximum_of_bins_out_of_range_is_refused(max_bins: int) -> None:
    with refused(f"max_bins: expected a whole number from 1 to {BINS_MAX}, got {max_bins}"):
        records.check_bins("tensorflow", max_bins)


# -- what arrives -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", Kind)
def test_a_record_of_every_kind_that_is_right_is_taken(kind: Kind) -> None:
    record = blob(kind)
    records.check_blob(record)
    assert record.parameters == blob(kind).parameters


EDGES = np.array([0.0, 1.0, 2.0])


@pytest.mark.parametrize(
    ("kind", "changed", "start"),
    [
        (Kind.IMAGE, {"tag": "a\tb"}, "tag: expected no control characters"),
        (Kind.IMAGE, {"dtype": "object"}, "dtype: expected one of 'bool', 'int8'"),
        (Kind.IMAGE, {"dtype": "complex64"}, "dtype: expected one of 'bool', 'int8'"),
        (Kind.IMAGE, {"dtype": ">f4"}, "dtype: expected one of"),
        (Kind.IMAGE, {"dtype": "utf8"}, "dtype: utf8 is not for the kind image"),
        (Kind.TEXT, {"dtype": "uint8"}, "dtype: uint8 is not for the kind text"),
        (Kind.IMAGE, {"shape": (3, 4, 6)}, "shape: (3, 4, 6) of uint8 takes 72 bytes, got 60"),
        (Kind.IMAGE, {"dtype": "float32"}, "shape: (3, 4, 5) of float32 takes 240 bytes, got 60"),
        (Kind.IMAGE, {"shape": (1 << 62, 1 << 62)}, "shape: "),
        (Kind.IMAGE, {"shape": (-3, -4, 5)}, "shape: expected at most 8 sizes from 0 on"),
        (Kind.IMAGE, {"shape": (1,) * 9, "data": b"1"}, "shape: expected at most 8 sizes"),
        (Kind.IMAGE, {"edges": EDGES}, "bins: not for the kind image"),
        (Kind.IMAGE, {"tags": b"a"}, "tags, counts: not for the kind image"),
        (Kind.HISTOGRAM, {"counts": b"a"}, "tags, counts: not for the kind histogram"),
        (Kind.IMAGE, {"across": Across.MERGE}, "across: merge is not for the kind image"),
        (Kind.TEXT, {"across": Across.MEAN}, "across: mean is not for the kind text"),
        (Kind.HISTOGRAM, {"across": Across.SUM}, "across: sum is not for the kind histogram"),
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
        (Kind.HISTOGRAM, {"edges": EDGES}, "bins: expected a name, a number or edges, got two"),
        (
            Kind.HISTOGRAM, {"edges": EDGES, "parameters": {"bins": None, "max_bins": "a"}},
            "max_bins: expected an integer, got 'a'",
        ),
        (
            Kind.HISTOGRAM, {"edges": b"1234567", "parameters": {"bins": None, "max_bins": None}},
            "bins: expected edges of 8 bytes each",
        ),
        (
            Kind.HISTOGRAM, {"edges": EDGES[::-1].copy(), "parameters": {"bins": None,
            "max_bins": None}}, "bins: expected finite edges",
        ),
        (Kind.TEXT, {"data": b"\xff" * 60}, "text: expected UTF-8, got invalid start byte at 0"),
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
        (Kind.MOMENTS, {"shape": (len(MOMENTS), 2)}, "moments: expected float64 of shape (N, 8)"),
        (Kind.MOMENTS, {"dtype": "int64"}, "moments: expected float64 of shape (N, 8), got int64"),
        (Kind.MOMENTS, {"shape": (0, 8), "data": b""}, "moments: expected 1 to 3500 rows, got 0"),
        (
            Kind.MOMENTS, {"shape": (MOMENTS_ROWS + 1, 8), "data": bytes(8 * 8 * 3_501)},
            "moments: expected 1 to 3500 rows, got 3501",
        ),
        (Kind.MOMENTS, {"data": np.full((2, 8), math.nan)}, "moments: expected counts from 0 on"),
        (Kind.MOMENTS, {"data": np.full((2, 8), -1.0)}, "moments: expected counts from 0 on"),
        (Kind.MOMENTS, {"tags": None}, "tags: expected a tag for each row of moments, got none"),
        (Kind.MOMENTS, {"tags": b"a"}, "tags: expected 2 of them, got 1"),
        (Kind.MOMENTS, {"tags": b"a\nb\nc"}, "tags: expected 2 of them, got 3"),
        (Kind.MOMENTS, {"tags": b"a\na"}, "tags: expected each once"),
        (Kind.MOMENTS, {"tags": b"a\n"}, "tag: expected a string that is not empty"),
        (Kind.MOMENTS, {"tags": b"a\n\xff"}, "tags: expected UTF-8"),
        (Kind.MOMENTS, {"tags": b"a\n" + b"b" * 995}, "tag: expected at most 989 bytes"),
        (Kind.MOMENTS, {"counts": bytes(8)}, "counts: expected uint32 of shape (2, 4096), got 8"),
        (Kind.MOMENTS, {"edges": EDGES}, "bins: not for the kind moments"),
    ],
)  # fmt: skip
def test_a_record_that_breaks_a_rule_is_refused_with_the_rule(
    kind: Kind, changed: dict[str, Any], start: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=rf"(?s)^{re.escape(start)}"):
        records.check_blob(blob(kind, **changed))


def test_moments_with_histograms_are_taken() -> None:
    record = blob(Kind.MOMENTS, counts=np.zeros((2, HISTOGRAM_BUCKETS), np.uint32))
    records.check_blob(record)
    assert [*record.buffers] == ["tags", "counts"]


def test_the_largest_record_of_moments_fits_the_limit_of_records() -> None:
    row = HISTOGRAM_BUCKETS * 4 + len(MOMENTS) * 8 + limits.TAG_BYTES
    assert MOMENTS_ROWS * row <= limits.RECORD_BYTES


# -- elements ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [name for name in DTYPES if name not in ("bfloat16", "utf8")])
def test_elements_come_back_in_their_dtype_and_shape(dtype: str) -> None:
    array = np.arange(6).reshape(2, 3).astype(dtype)
    read = blob(dtype=dtype, shape=(2, 3), data=array).array()
    assert read.dtype == array.dtype
    assert read.tolist() == array.tolist()


@given(st.lists(st.floats(width=32), max_size=20))
def test_bfloat16_comes_back_as_the_float32_that_it_was_cut_from(values: list[float]) -> None:
    bits = np.array(values, np.float32).view(np.uint32) & np.uint32(0xFFFF0000)
    data = (bits >> np.uint32(16)).astype(np.uint16)
    read = blob(dtype="bfloat16", shape=(len(values),), data=data).array()
    assert read.dtype == np.float32
    assert read.view(np.uint32).tolist() == bits.tolist()
