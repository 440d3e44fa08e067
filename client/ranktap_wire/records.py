"""What is logged: kinds of records, and how they look in memory.

A record is a scalar, which is a row of `Columns`, or a `Blob`: everything else. What they may
hold is said in `rules` and `kinds`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

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
    """Of what is counted: together."""
    TILE = 8
    """Of pictures: side by side, in one."""


SCALAR_ACROSS: Final = {policy.name.lower(): policy for policy in Across if policy < Across.MERGE}
HISTOGRAM_ACROSS: Final = {
    policy.name.lower(): policy for policy in (Across.MERGE, Across.RANK0, Across.EACH)
}
PICTURE_ACROSS: Final = {
    policy.name.lower(): policy for policy in (Across.EACH, Across.RANK0, Across.TILE)
}
OTHER_ACROSS: Final = {policy.name.lower(): policy for policy in (Across.EACH, Across.RANK0)}


class Style(IntEnum):
    """How a scalar stands in the event file. The number is its code on the wire."""

    SIMPLE = 0
    """A `simple_value`, float32."""
    TENSOR_FLOAT = 1
    """A tensor of the scalars plugin, float32: torch's `new_style`."""
    TENSOR_DOUBLE = 2
    """The same, float64: torch's `double_precision`."""


def scalar_code(policy: Across, style: Style = Style.SIMPLE) -> int:
    """The byte in `Columns.across`: the policy in its low four bits, the style in its high ones."""
    return style << 4 | policy


class Kind(StrEnum):
    """Records other than scalars. `kinds` says what each is made of."""

    IMAGE = "image"
    IMAGES = "images"
    IMAGE_GRID = "image_grid"
    HISTOGRAM = "histogram"
    TEXT = "text"
    MOMENTS = "moments"
    """Statistics of many tensors at one step: what the hooks see."""
    TENSOR = "tensor"
    HISTOGRAM_RAW = "histogram_raw"
    """A histogram that somebody else has counted."""
    IMAGE_BOXES = "image_boxes"
    ENCODED_IMAGE = "encoded_image"
    """A picture that moves: a GIF, made in the rank."""
    AUDIO = "audio"
    PR_CURVE = "pr_curve"
    PR_CURVE_RAW = "pr_curve_raw"
    """A precision-recall curve that somebody else has counted."""
    MESH = "mesh"
    EMBEDDING = "embedding"
    GRAPH = "graph"
    CUSTOM_SCALARS = "custom_scalars"
    """Which scalars share a chart."""
    HPARAMS = "hparams"


DTYPES: Final[Mapping[str, np.dtype[Any]]] = {
    name: np.dtype(name).newbyteorder("<")
    for name in (
        "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
        "float16", "float32", "float64", "complex64", "complex128",
    )
} | {"bfloat16": np.dtype("<u2"), "utf8": np.dtype("u1")}  # fmt: skip
"""Element types by their name on the wire. bfloat16, which numpy lacks, travels as its
bits; text as UTF-8."""

FLOATS: Final = ("bfloat16", "float16", "float32", "float64")
NUMBERS: Final = tuple(name for name in DTYPES if name != "utf8")
REAL: Final = tuple(name for name in NUMBERS if not name.startswith("complex"))
"""Element types that everything takes; complex ones are for plain tensors alone."""

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

FIELD_BYTES: Final = 1 + max(map(len, MOMENT_FIELDS))
"""What such a name takes behind a tag, at most."""

HISTOGRAM_BUCKETS: Final = 4_096
"""Buckets of a histogram over the bits of float32: sign, exponent and three bits of mantissa.
Number `bits >> 20`; the 8 of the highest exponent, of either sign, hold what is not finite."""

MOMENTS_ROWS: Final = 3_500
"""Rows of one record of moments: with counts, 16 KiB a row, they fit in RECORD_BYTES."""


def join_name(sub_run: str, tag: str) -> str:
    """A record's name: of a tag of the run itself (sub-run '') the tag, else the two with a tab
    between, which neither can hold."""
    return f"{sub_run}\t{tag}" if sub_run else tag


def split_name(name: str) -> tuple[str, str]:
    """The sub-run ('' is the run itself) and the tag that `join_name` made this of."""
    sub_run, _, tag = name.rpartition("\t")
    return sub_run, tag


@dataclass(slots=True)
class Blob:
    """One record that is not a scalar.

    `tag` is its name, see `join_name`. `data` holds the elements in C order; `parts` what the
    kind has besides them, by name, in the order in which it travels. All of it little endian.
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
    parts: dict[str, Buffer] = field(default_factory=dict)

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
    """Names, see `join_name`."""
    across: NDArray[np.uint8]
    """One `scalar_code` a tag."""
    tag_index: NDArray[np.int32]
    """Row to tag."""
    step: NDArray[np.int64]
    wall_time: NDArray[np.float64]
    """Seconds since 1970."""
    value: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.tag_index)

    @property
    def policy(self) -> NDArray[np.uint8]:
        """One `Across` code a tag."""
        return self.across & np.uint8(0x0F)

    @property
    def style(self) -> NDArray[np.uint8]:
        """One `Style` code a tag."""
        return self.across >> np.uint8(4)


@dataclass(slots=True)
class Batch:
    """The records that travel in one message."""

    columns: Columns | None = None
    blobs: list[Blob] = field(default_factory=list)
    dropped_scalars: int = 0
    """By this session, so far, because its memory was full."""
    dropped_blobs: int = 0
    clock: tuple[float, float] | None = None
    """By how much the daemon's wall clock is ahead of this rank's, and how wrong that may be, in
    seconds. None before the first answer to a beat."""
