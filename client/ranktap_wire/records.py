"""What can be logged: the kinds of records, their parameters, and the rules they obey.

The client applies these rules at the call, so that a wrong argument raises
where it was written; the daemon applies the same rules to what arrives, because
it trusts nobody. Every error names the argument, what was given, and what is
allowed.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Any, Final, TypeGuard

import numpy as np
from numpy.typing import NDArray

from ranktap_wire import limits

Buffer = bytes | bytearray | memoryview | NDArray[Any]
"""What a frame may be made of: contiguous memory."""


def byte_view(buffer: Buffer) -> memoryview:
    """The same memory as bytes, not copied."""
    return memoryview(buffer).cast("B")  # type: ignore[arg-type]


STEP_MIN: Final = -(1 << 63)
STEP_MAX: Final = (1 << 63) - 1


class Across(IntEnum):
    """How the ranks' records of one (tag, step) become one. The number is its code on the wire."""

    MEAN = 0
    SUM = 1
    MIN = 2
    MAX = 3
    LAST = 4
    RANK0 = 5
    EACH = 6
    MERGE = 7


SCALAR_ACROSS: Final = {
    policy.name.lower(): policy for policy in Across if policy is not Across.MERGE
}
HISTOGRAM_ACROSS: Final = {
    policy.name.lower(): policy for policy in (Across.MERGE, Across.RANK0, Across.EACH)
}


class Kind(StrEnum):
    """Records other than scalars."""

    IMAGE = "image"
    IMAGES = "images"
    IMAGE_GRID = "image_grid"
    HISTOGRAM = "histogram"
    TEXT = "text"
    MOMENTS = "moments"
    """Statistics of many tensors at one step: what the hooks see."""


DTYPES: Final[Mapping[str, np.dtype[Any]]] = {
    name: np.dtype(name).newbyteorder("<")
    for name in (
        "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
        "float16", "float32", "float64",
    )
} | {"bfloat16": np.dtype("<u2"), "utf8": np.dtype("u1")}  # fmt: skip
"""Element types by their name on the wire. bfloat16, which numpy lacks, travels as its
bits; text as UTF-8."""

NUMPY_BINS: Final = ("auto", "doane", "fd", "rice", "scott", "sqrt", "stone", "sturges")
"""Names of bins that numpy computes from the data: one rank's edges are not another's."""

BINS_MAX: Final = 100_000
"""Buckets of one histogram. TensorBoard draws 30."""

GRID_PIXELS: Final = 64 * limits.MIB
"""Pixels of a picture, padding included: 8192 x 8192. What a browser still shows."""

PADDING_MAX: Final = 1_024

MOMENTS: Final = (
    "count", "sum", "sum_squares", "min", "max", "zeros", "non_finite", "reference",
)  # fmt: skip
"""Columns of moments, float64. `count` and what follows are of finite values alone, `non_finite`
is the number of the others. Of no values min is +inf and max -inf. `reference` is a sum of
squares to hold `sum_squares` against: of the weights that an update changes; else 0."""

MOMENT_FIELDS: Final = (
    "mean", "std", "rms", "norm", "min", "max", "abs_max", "zeros", "non_finite", "ratio",
)  # fmt: skip
"""Scalars that the daemon makes of a row: `<tag>/<field>`. zeros is a share, non_finite a number
that is written when it is not 0, ratio the root of sum_squares / reference."""

HISTOGRAM_BUCKETS: Final = 4_096
"""Buckets of a histogram over the bits of float32: sign, exponent and three bits of mantissa.
Number `bits >> 20`; the 8 of the highest exponent, of either sign, hold what is not finite."""

MOMENTS_ROWS: Final = 3_500
"""Rows of one record of moments: with counts, 16 KiB a row, they fit in RECORD_BYTES."""


@dataclass(slots=True)
class Blob:
    """One record that is not a scalar.

    `data` holds the elements in C order, little endian; `edges`, for histograms
    with bins given one by one, float64.
    """

    kind: Kind
    tag: str
    step: int
    wall_time: float
    across: Across
    dtype: str
    shape: tuple[int, ...]
    parameters: dict[str, Any]
    data: Buffer
    edges: Buffer | None = None
    tags: Buffer | None = None
    """For moments: the tag of each row, UTF-8, '\\n' between."""
    counts: Buffer | None = None
    """For moments with histograms: uint32 (N, HISTOGRAM_BUCKETS)."""

    @property
    def buffers(self) -> dict[str, Buffer]:
        """What it has besides `data`, in the order in which it travels."""
        named = {"edges": self.edges, "tags": self.tags, "counts": self.counts}
        return {name: buffer for name, buffer in named.items() if buffer is not None}

    def array(self) -> NDArray[Any]:
        """The elements as an array of `shape`, a view of `data`; bfloat16 widened to float32."""
        flat = np.frombuffer(self.data, dtype=DTYPES[self.dtype])
        if self.dtype == "bfloat16":
            flat = (flat.astype(np.uint32) << np.uint32(16)).view(np.float32)
        return flat.reshape(self.shape)


@dataclass(slots=True)
class Columns:
    """Scalars as columns of length n; row i is one scalar, rows in the order of the calls."""

    tags: list[str]
    across: NDArray[np.uint8]
    """One `Across` code a tag."""
    tag_index: NDArray[np.int32]
    """Row to tag."""
    step: NDArray[np.int64]
    wall_time: NDArray[np.float64]
    """Seconds since 1970."""
    value: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.tag_index)


@dataclass(slots=True)
class Batch:
    """The records that travel in one message."""

    columns: Columns | None = None
    blobs: list[Blob] = field(default_factory=list)
    dropped_scalars: int = 0
    """By this session, so far, because its memory was full."""
    dropped_blobs: int = 0


# -- rules ------------------------------------------------------------------------------

_SHORT = reprlib.Repr()
_SHORT.maxlevel = 3
_SHORT.maxstring = _SHORT.maxother = 60


def shown(value: object) -> str:
    """The value as an error's text names it: in 60 characters, whatever it is.

    Not `repr`: it raises RecursionError for the thousand lists, one in the other, that
    fit in a kilobyte of a stranger's header.
    """
    text = _SHORT.repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def has_control(text: str) -> bool:
    """Whether there are control characters in it: they could move a terminal's cursor."""
    return _CONTROL.search(text) is not None


def check_tag(tag: object) -> str:
    """The tag, if it may be one.

    Raises:
        TypeError: it is no string.
        ValueError: it is empty, too long, not Unicode text, or has control characters.
    """
    if not isinstance(tag, str):
        raise TypeError(f"tag: expected a string, got {_given(tag)}")
    if not tag:
        raise ValueError("tag: expected a string that is not empty, got ''")
    return _check_text("tag", tag, limits.TAG_BYTES)


def check_run(run: object) -> str:
    """The run's name, if it names a directory that cannot leave the logdir.

    Raises:
        TypeError: it is no string.
        ValueError: it is empty, too long, absolute, or has `.`, `..`, empty or hidden
            components, backslashes or control characters.
    """
    if not isinstance(run, str):
        raise TypeError(f"run: expected a string, got {_given(run)}")
    _check_text("run", run, limits.RUN_BYTES)
    parts = run.split("/")
    if len(parts) > limits.RUN_COMPONENTS:
        raise ValueError(
            f"run: expected at most {limits.RUN_COMPONENTS} names between '/', got {len(parts)}"
        )
    # A hidden component could be the daemon's own state directory.
    if any(not part or part.startswith(".") or part != part.strip() for part in parts):
        raise ValueError(
            "run: expected names with '/' between, none of them empty, beginning with '.' "
            f"or with white space at an end, got {run!r}"
        )
    if "\\" in run:
        raise ValueError(f"run: expected no backslash, got {run!r}")
    if len(run_directory_name(run).encode()) > 240:
        raise ValueError(f"run: expected a shorter name or fewer '/', got {run!r}")
    return run


def run_directory_name(run: str) -> str:
    """The run's name as one component of a path, reversibly: `a/b` and `a` never nest."""
    return run.replace("%", "%25").replace("/", "%2F")


def run_of_directory_name(name: str) -> str:
    """The run that `run_directory_name` made this of."""
    return name.replace("%2F", "/").replace("%25", "%")


def check_suffix(suffix: object) -> str:
    """`filename_suffix`, if it can stand at the end of a file name.

    Raises:
        TypeError: it is no string.
        ValueError: it is too long, or has a `/` or control characters.
    """
    if not isinstance(suffix, str):
        raise TypeError(f"filename_suffix: expected a string, got {_given(suffix)}")
    _check_text("filename_suffix", suffix, limits.SUFFIX_BYTES)
    if "/" in suffix:
        raise ValueError(f"filename_suffix: expected no '/', got {suffix!r}")
    return suffix


def check_step(step: object, name: str = "step") -> int:
    """The step as an int: Python's, numpy's, or anything else with `__index__`, but no bool.

    Raises:
        TypeError: it is no integer.
        ValueError: it does not fit in 64 bits.
    """
    if isinstance(step, bool | np.bool_) or not hasattr(type(step), "__index__"):
        raise TypeError(f"{name}: expected an integer, got {_given(step)}")
    try:
        number = int(step.__index__())  # type: ignore[attr-defined]
    except (TypeError, ValueError, RuntimeError):
        # An array or a tensor that is no single integer.
        raise TypeError(f"{name}: expected an integer, got {_given(step)}") from None
    if not STEP_MIN <= number <= STEP_MAX:
        raise ValueError(f"{name}: expected an integer of 64 bits, got {number}")
    return number


def check_walltime(walltime: object) -> float:
    """The wall time in seconds since 1970. NaN there stops TensorBoard's fast loader for good.

    Raises:
        TypeError: it is no number.
        ValueError: it is not finite.
    """
    if not _is_real(walltime):
        raise TypeError(f"walltime: expected seconds since 1970, got {_given(walltime)}")
    try:
        seconds = float(walltime)
    except OverflowError:
        raise ValueError(f"walltime: expected seconds since 1970, got {_given(walltime)}") from None
    if not math.isfinite(seconds):
        raise ValueError(f"walltime: expected a finite number of seconds, got {seconds}")
    return seconds


def check_across(across: object, allowed: Mapping[str, Across]) -> Across:
    """The policy of that name.

    Raises:
        ValueError: it is none of `allowed`.
    """
    policy = allowed.get(across) if isinstance(across, str) else None
    if policy is None:
        raise ValueError(f"across: expected one of {_names(allowed)}, got {_given(across)}")
    return policy


def check_image_shape(
    shape: Sequence[int], dataformats: object, letters: Sequence[str], name: str = "image"
) -> None:
    """Hold a picture's shape against its `dataformats`: each of `letters` in any order.

    `name` is the argument's, for the message.

    Raises:
        TypeError: `dataformats` is no string.
        ValueError: it is no order of one of `letters`; the shape has another number of
            dimensions; the channels are none of 1, 3, 4; it is empty or too large.
    """
    if not isinstance(dataformats, str):
        raise TypeError(f"dataformats: expected a string, got {_given(dataformats)}")
    order = dataformats.upper()
    if not any(sorted(order) == sorted(allowed) for allowed in letters):
        raise ValueError(
            f"dataformats: expected the letters of {_names(letters)} in some order, "
            f"got {dataformats!r}"
        )
    if len(shape) != len(order):
        raise ValueError(
            f"{name}: expected {len(order)} dimensions for dataformats {dataformats!r}, "
            f"got shape {tuple(shape)}"
        )
    if 0 in shape:
        raise ValueError(f"{name}: expected at least one pixel, got shape {tuple(shape)}")
    channels = shape[order.index("C")] if "C" in order else 1
    if channels not in (1, 2, 3, 4):
        raise ValueError(
            f"{name}: expected 1, 3 or 4 channels (2: grey and alpha), got {channels} "
            f"(shape {tuple(shape)}, dataformats {dataformats!r})"
        )
    if "N" in order and channels not in (1, 3):
        raise ValueError(f"{name}: expected 1 or 3 channels in a batch, got shape {tuple(shape)}")
    # torch tiles a batch in rows of eight.
    count = shape[order.index("N")] if "N" in order else 1
    columns = min(count, 8)
    rows = math.ceil(count / columns)
    _check_pixels(name, shape[order.index("H")] * rows, shape[order.index("W")] * columns, shape)


def check_grid(shape: Sequence[int], dtype: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of an image grid, normalised, for images of `shape` (HW, CHW or NCHW).

    Raises:
        TypeError, ValueError: a parameter is not what `ranktap.Tap.image_grid` says, the
            shape is no picture's, or the grid would exceed GRID_PIXELS.
    """
    if not 2 <= len(shape) <= 4:
        raise ValueError(
            f"images: expected 2, 3 or 4 dimensions (HW, CHW, NCHW), got {tuple(shape)}"
        )
    if 0 in shape:
        raise ValueError(f"images: expected at least one pixel, got shape {tuple(shape)}")
    if len(shape) > 2 and shape[-3] not in (1, 3):
        raise ValueError(
            f"images: expected 1 or 3 channels, got {shape[-3]} (shape {tuple(shape)})"
        )
    nrow = _whole("nrow", parameters["nrow"], 1, 1 << 20)
    padding = _whole("padding", parameters["padding"], 0, PADDING_MAX)
    count = shape[0] if len(shape) == 4 else 1
    columns = min(nrow, count)
    rows = math.ceil(count / columns)
    _check_pixels("images", rows * (shape[-2] + padding), columns * (shape[-1] + padding), shape)
    value_range = parameters["value_range"]
    if value_range is not None:
        if not isinstance(value_range, Sequence) or len(value_range) != 2:
            raise TypeError(
                f"value_range: expected a pair (low, high) or None, got {_given(value_range)}"
            )
        low, high = (_number("value_range", bound) for bound in value_range)
        if low > high:
            raise ValueError(f"value_range: expected low <= high, got {(low, high)}")
        for bound in (low, high):
            _check_fits("value_range", bound, dtype)
        value_range = [low, high]
    normalize = _flag("normalize", parameters["normalize"])
    if normalize and not _is_float(dtype):
        raise ValueError(f"normalize: expected images of a float dtype, got {dtype}")
    pad_value = _number("pad_value", parameters["pad_value"])
    _check_fits("pad_value", pad_value, dtype)
    return {
        "nrow": nrow,
        "padding": padding,
        "normalize": normalize,
        "value_range": value_range,
        "scale_each": _flag("scale_each", parameters["scale_each"]),
        "pad_value": pad_value,
    }


def check_bins(
    bins: object, max_bins: object = None
) -> tuple[str | int | None, list[float] | None]:
    """How to bin a histogram: (name or count, None) or (None, edges).

    Raises:
        TypeError, ValueError: `bins` is none of `tensorflow`, numpy's names, a whole number,
            and increasing finite edges.
    """
    if max_bins is not None:
        _whole("max_bins", max_bins, 1, BINS_MAX)
    if isinstance(bins, str):
        if bins != "tensorflow" and bins not in NUMPY_BINS:
            raise ValueError(
                f"bins: expected one of {_names(('tensorflow', *NUMPY_BINS))}, a whole number "
                f"or a sequence of edges, got {bins!r}"
            )
        return bins, None
    if isinstance(bins, int | np.integer) and not isinstance(bins, bool):
        return _whole("bins", bins, 1, BINS_MAX), None
    try:
        edges = np.asarray(bins, dtype=np.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise TypeError(
            f"bins: expected a name, a whole number or a sequence of edges, got {_given(bins)}"
        ) from None
    check_edges(edges)
    return None, [float(edge) for edge in edges]


def check_edges(edges: NDArray[np.float64]) -> None:
    """Hold a histogram's edges against what they may be.

    Raises:
        ValueError: they are not 2 to BINS_MAX + 1 finite, increasing numbers.
    """
    if edges.ndim != 1 or not 2 <= edges.size <= BINS_MAX + 1:
        raise ValueError(
            f"bins: expected 2 to {BINS_MAX + 1} edges in one dimension, got shape {edges.shape}"
        )
    if not np.isfinite(edges).all() or (np.diff(edges) <= 0).any():
        raise ValueError(
            "bins: expected finite edges, each greater than the one before, "
            f"got {_given(edges.tolist())}"
        )


def check_blob(blob: Blob) -> None:
    """Hold a record that arrived against every rule of its kind; the daemon's side.

    Raises:
        TypeError, ValueError: what is wrong, and what is allowed.
    """
    check_tag(blob.tag)
    dtype = DTYPES.get(blob.dtype)
    if dtype is None:
        raise ValueError(f"dtype: expected one of {_names(DTYPES)}, got {_given(blob.dtype)}")
    if len(blob.shape) > limits.DIMENSIONS or any(size < 0 for size in blob.shape):
        raise ValueError(
            f"shape: expected at most {limits.DIMENSIONS} sizes from 0 on, got {blob.shape}"
        )
    expected_bytes = math.prod(blob.shape) * dtype.itemsize
    if expected_bytes != byte_view(blob.data).nbytes:
        raise ValueError(
            f"shape: {blob.shape} of {blob.dtype} takes {expected_bytes} bytes, "
            f"got {byte_view(blob.data).nbytes}"
        )
    if (blob.kind is Kind.TEXT) != (blob.dtype == "utf8"):
        raise ValueError(f"dtype: {blob.dtype} is not for the kind {blob.kind}")
    if blob.edges is not None and blob.kind is not Kind.HISTOGRAM:
        raise ValueError(f"bins: not for the kind {blob.kind}")
    if blob.kind is not Kind.MOMENTS and (blob.tags is not None or blob.counts is not None):
        raise ValueError(f"tags, counts: not for the kind {blob.kind}")
    is_merged = blob.kind in (Kind.HISTOGRAM, Kind.MOMENTS)
    allowed = HISTOGRAM_ACROSS.values() if is_merged else (Across.EACH,)
    if blob.across not in allowed:
        raise ValueError(f"across: {blob.across.name.lower()} is not for the kind {blob.kind}")
    blob.parameters = _PARAMETERS[blob.kind](blob)


def _image_parameters(blob: Blob) -> dict[str, Any]:
    dataformats = _only(blob, "dataformats")["dataformats"]
    check_image_shape(blob.shape, dataformats, IMAGE_LETTERS)
    return {"dataformats": dataformats.upper()}


def _images_parameters(blob: Blob) -> dict[str, Any]:
    dataformats = _only(blob, "dataformats")["dataformats"]
    check_image_shape(blob.shape, dataformats, IMAGES_LETTERS)
    return {"dataformats": dataformats.upper()}


def _grid_parameters(blob: Blob) -> dict[str, Any]:
    names = ("nrow", "padding", "normalize", "value_range", "scale_each", "pad_value")
    return check_grid(blob.shape, blob.dtype, _only(blob, *names))


def _histogram_parameters(blob: Blob) -> dict[str, Any]:
    given = _only(blob, "bins", "max_bins")
    if 0 in blob.shape:
        raise ValueError(f"values: expected at least one value, got shape {blob.shape}")
    if blob.edges is not None:
        if given["max_bins"] is not None:
            _whole("max_bins", given["max_bins"], 1, BINS_MAX)
        if byte_view(blob.edges).nbytes % 8:
            raise ValueError("bins: expected edges of 8 bytes each")
        check_edges(np.frombuffer(blob.edges, dtype="<f8"))
        if given["bins"] is not None:
            raise ValueError("bins: expected a name, a number or edges, got two of them")
    elif not isinstance(given["bins"], str | int):
        raise TypeError(f"bins: expected a name or a number, got {_given(given['bins'])}")
    else:
        check_bins(given["bins"], given["max_bins"])
    return given


def _text_parameters(blob: Blob) -> dict[str, Any]:
    if len(blob.shape) != 1:
        raise ValueError(f"text: expected one dimension, got shape {blob.shape}")
    try:
        str(byte_view(blob.data), "utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"text: expected UTF-8, got {error.reason} at {error.start}") from None
    return _only(blob)


def _moments_parameters(blob: Blob) -> dict[str, Any]:
    given = _only(blob, "fields", "replicated")
    _flag("replicated", given["replicated"])
    fields = given["fields"]
    if not isinstance(fields, list | tuple) or not all(name in MOMENT_FIELDS for name in fields):
        raise ValueError(f"fields: expected some of {_names(MOMENT_FIELDS)}, got {_given(fields)}")
    if len(set(fields)) < len(fields):
        raise ValueError(f"fields: expected each once, got {_given(fields)}")
    if blob.dtype != "float64" or len(blob.shape) != 2 or blob.shape[1] != len(MOMENTS):
        raise ValueError(
            f"moments: expected float64 of shape (N, {len(MOMENTS)}), "
            f"got {blob.dtype} of shape {blob.shape}"
        )
    rows = blob.shape[0]
    if not 0 < rows <= MOMENTS_ROWS:
        raise ValueError(f"moments: expected 1 to {MOMENTS_ROWS} rows, got {rows}")
    if blob.tags is None:
        raise ValueError("tags: expected a tag for each row of moments, got none")
    check_row_tags(blob.tags, rows)
    if blob.counts is not None and byte_view(blob.counts).nbytes != rows * HISTOGRAM_BUCKETS * 4:
        raise ValueError(
            f"counts: expected uint32 of shape ({rows}, {HISTOGRAM_BUCKETS}), "
            f"got {byte_view(blob.counts).nbytes} bytes"
        )
    numbers = np.frombuffer(blob.data, dtype="<f8").reshape(blob.shape)
    counted = numbers[:, [MOMENTS.index(name) for name in ("count", "zeros", "non_finite")]]
    # 2**62: what is added up from many ranks still fits 64 bits' worth of floats, and more.
    if not ((counted >= 0) & (counted <= 2.0**62)).all():  # NaN is neither
        raise ValueError("moments: expected counts from 0 on")
    return {"fields": list(fields), "replicated": bool(given["replicated"])}


def check_row_tags(table: Buffer, rows: int) -> list[str]:
    """The tags of the rows, each once, and each short enough to take the name of a field.

    Raises:
        TypeError, ValueError: they are not that.
    """
    try:
        tags = str(byte_view(table), "utf-8").split("\n", rows)
    except UnicodeDecodeError as error:
        raise ValueError(f"tags: expected UTF-8, {error.reason}") from None
    if len(tags) != rows:
        raise ValueError(f"tags: expected {rows} of them, got {len(tags)}")
    for tag in tags:
        check_tag(tag)
        _check_text("tag", tag, limits.TAG_BYTES - FIELD_BYTES)
    if len(set(tags)) < rows:
        raise ValueError("tags: expected each once")
    return tags


FIELD_BYTES: Final = 1 + max(map(len, MOMENT_FIELDS))

IMAGE_LETTERS: Final = ("CHW", "HW", "NCHW")
IMAGES_LETTERS: Final = ("NCHW", "NHW")

_PARAMETERS: Final = {
    Kind.IMAGE: _image_parameters,
    Kind.IMAGES: _images_parameters,
    Kind.IMAGE_GRID: _grid_parameters,
    Kind.HISTOGRAM: _histogram_parameters,
    Kind.TEXT: _text_parameters,
    Kind.MOMENTS: _moments_parameters,
}


def _only(blob: Blob, *names: str) -> dict[str, Any]:
    if set(blob.parameters) != set(names):
        raise ValueError(
            f"parameters: {blob.kind} takes {_names(names) or 'none'}, "
            f"got {_names(sorted(map(str, blob.parameters))) or 'none'}"
        )
    return blob.parameters


def _check_pixels(name: str, height: int, width: int, shape: Sequence[int]) -> None:
    if height * width > GRID_PIXELS:
        raise ValueError(
            f"{name}: expected at most {GRID_PIXELS} pixels, got {height} x {width} "
            f"for shape {tuple(shape)}"
        )


def _check_text(name: str, text: str, max_bytes: int) -> str:
    try:
        length = len(text.encode())
    except UnicodeEncodeError:
        raise ValueError(f"{name}: expected Unicode text, got {text!r}") from None
    if length > max_bytes:
        raise ValueError(
            f"{name}: expected at most {max_bytes} bytes of UTF-8, got {length} ({text[:40]!r}...)"
        )
    if has_control(text):
        raise ValueError(f"{name}: expected no control characters, got {text!r}")
    return text


def _is_float(dtype: str) -> bool:
    return dtype in ("bfloat16", "float16", "float32", "float64")


def _check_fits(name: str, value: float, dtype: str) -> None:
    """Pixels of the grid have the images' dtype, and torch raises where it cannot hold a value."""
    if dtype == "bool":
        return
    if _is_float(dtype):
        limit = float(np.finfo("float32" if dtype == "bfloat16" else dtype).max)
        low, high = -limit, limit
    else:
        low, high = float(np.iinfo(dtype).min), float(np.iinfo(dtype).max)
    if not low <= value <= high:
        raise ValueError(
            f"{name}: expected a value from {low:g} to {high:g} for {dtype}, got {value:g}"
        )


def _whole(name: str, value: object, low: int, high: int) -> int:
    number = check_step(value, name)
    if not low <= number <= high:
        raise ValueError(f"{name}: expected a whole number from {low} to {high}, got {number}")
    return number


def _number(name: str, value: object) -> float:
    if not _is_real(value):
        raise TypeError(f"{name}: expected a number, got {_given(value)}")
    try:
        number = float(value)
    except OverflowError:
        raise ValueError(f"{name}: expected a finite number, got {_given(value)}") from None
    if not math.isfinite(number):
        raise ValueError(f"{name}: expected a finite number, got {number}")
    return number


def _is_real(value: object) -> TypeGuard[int | float | np.integer[Any] | np.floating[Any]]:
    """Whether it is one number, but no bool; numpy's complex numbers are none of these."""
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name}: expected True or False, got {_given(value)}")
    return bool(value)


def _given(value: object) -> str:
    return f"{shown(value)} ({type(value).__name__})"


def _names(names: Mapping[str, Any] | Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)
