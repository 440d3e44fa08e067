"""Scalar events, thousands at a time, from columns to the bytes of an event file.

A record holds (`event_file` has the frame, event.proto and summary.proto the rest):

    bytes    what
    12       header: the payload's length and its masked CRC
    9 or 0   wall time: 09, float64; absent when its bits are all zero
    2 to 11  step: 10, varint of 1 to 10 bytes; absent when 0
    n        summary of the tag: 2A len 0A len 0A len tag, and what its style has before
             the value; n depends on the tag alone
    4 or 8   value, float32 or float64
    0 or 13  metadata: what the style has behind the value
    4        the payload's masked CRC

    style           before             value    behind
    simple          15                 float32
    tensor, float   42 08 08 01 2A 04  float32  4A 0B 0A 09 0A 07 "scalars"
    tensor, double  42 0C 08 02 32 08  float64  the same

Rows that agree in which fields they have, and in their sizes, share a layout.
They are filled in as one structured array, then copied to their places among
the others. What remains is the CRC.

The CRC of a message is affine in its bits: for messages of one length,
crc(a ^ b) ^ crc(0) = (crc(a) ^ crc(0)) ^ (crc(b) ^ crc(0)). So it is the CRC
of as many zeros, xor one term for every byte of the message, which depends on
that byte and on the number of bytes behind it and on nothing else. One table of
these terms, 256 for each distance from the end, serves all rows of all layouts
at once; the terms of a tag's summary are added up when the tag is first seen.
Left for each row are wall time, step and value: some 15 look-ups.

Source: R. Williams, A Painless Guide to CRC Error Detection Algorithms, 1993
(linearity); M. Kounavis and F. Berry, Novel Table Lookup-Based Algorithms for
High-Performance CRC Generation, IEEE Trans. Computers 57(11), 2008 (a table for
each distance from the end).

What else could be done, a row (numpy 2.4 on one core of an AMD EPYC at 2.6 GHz;
10,000 rows of 20 tags with 11 lengths):

    only the CRC
      look-ups in tables of 256, as here                  25 ns
      wall time and value by 16 bits at a time            17 ns, but 1.5 MB of tables for
                                                          each size of the step, and a move
                                                          past the summary
      look-ups for all 54 bytes of the payload            85 ns
      google_crc32c.value on each row, in a Python loop  140 ns
    all of it
      this module                                         90 ns
      Python and struct for each row (`_each_row`)     1,350 ns
      protobuf and `frame` for each row                3,400 ns

"This module" is 90 ns where the heap keeps what numpy frees, and 165 ns in a
fresh process, where glibc hands each temporary back to the kernel and faults it
in again. A process that encodes much should free one array of 16 MB at its
start: glibc raises its thresholds to that size for good (mallopt(3)).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ranktap_wire.checksum import crc32c
from ranktap_wire.limits import TAG_BYTES
from ranktap_wire.records import Style
from ranktapd.event_file import HEADER_BYTES, MASK_DELTA, TRAILER_BYTES, frame, header

_WALL_TIME_KEY: Final = 0x09
_STEP_KEY: Final = 0x10
_WALL_TIME_BYTES: Final = 9  # key and float64
_STEP_BYTES: Final = 11  # at most: key and varint


class _Form(NamedTuple):
    """What stands around a value."""

    before: bytes
    dtype: str
    behind: bytes

    @property
    def value_bytes(self) -> int:
        return np.dtype(self.dtype).itemsize


_SCALARS_METADATA: Final = b"\x4a\x0b\x0a\x09\x0a\x07scalars"
_FORMS: Final = {
    Style.SIMPLE: _Form(b"\x15", "<f4", b""),
    # TensorProto: dtype DT_FLOAT, one float_val; dtype DT_DOUBLE, one double_val. No shape.
    Style.TENSOR_FLOAT: _Form(b"\x42\x08\x08\x01\x2a\x04", "<f4", _SCALARS_METADATA),
    Style.TENSOR_DOUBLE: _Form(b"\x42\x0c\x08\x02\x32\x08", "<f8", _SCALARS_METADATA),
}

_REST_BYTES: Final = max(
    len(form.before) + form.value_bytes + len(form.behind) for form in _FORMS.values()
)
_SUMMARY_BYTES: Final = TAG_BYTES + 9 + _REST_BYTES  # three keys, and lengths of two bytes
_PAYLOAD_BYTES: Final = _WALL_TIME_BYTES + _STEP_BYTES + _SUMMARY_BYTES

_FEW_ROWS: Final = 100
"""Below, rows are encoded one by one, at 1.4 us each. Columns cost 75 us and 7 us a
layout before the first row is done: even at 55 rows of one layout, at 160 of 20."""

_BLOCK_ROWS: Final = 16_384
"""Encoded in one go: 3 MB with all temporaries, however many rows a caller gives.
Blocks of 8,192 and 32,768 are as fast."""

_Scalar = TypeVar("_Scalar", bound=np.generic)


class ScalarEncoder:
    """Makes framed scalar events of one style; remembers what depends on a tag alone.

    It holds a cache and nothing else: a new one gives the same bytes. 175 bytes
    for a tag of 50. Not thread safe.
    """

    def __init__(self, style: Style = Style.SIMPLE) -> None:
        self._style = style
        self._form = _FORMS[style]
        self._rest_bytes = self._form.value_bytes + len(self._form.behind)
        self._terms = _byte_terms()
        self._zeros_crc = _zeros_crc()
        # One entry a tag. The arrays are longer than that, so as to grow rarely.
        self._summaries: list[bytes] = []
        self._text = np.empty(0, np.uint8)  # the summaries, one behind another
        self._text_bytes = 0
        self._start = np.empty(0, np.intp)  # of a tag's summary in the text
        self._size = np.empty(0, np.intp)
        # Its terms and those of what is behind the value, with a value of zeros between them.
        self._crc = np.empty(0, np.uint32)

    def encode(
        self,
        tags: Sequence[bytes],
        tag_index: NDArray[np.int32] | NDArray[np.int64],
        step: NDArray[np.int64],
        wall_time: NDArray[np.float64],
        value: NDArray[np.float64],
    ) -> memoryview:
        """One framed `Event` a row, in the order of the rows, as contiguous bytes.

        The four columns have shape (rows,). `tags` is every tag of the run so
        far, in UTF-8, at most 1,000 bytes each; `tag_index` counts in it. From
        call to call it may grow at its end and must not change otherwise: of
        the tags that were there at the last call only the number is looked at.

        Each record equals, byte for byte, `frame` of what protobuf makes of
        `Event(wall_time=, step=, summary={tag, simple_value})`, or of a summary with
        the tensor and plugin metadata of its style. Where a style has float32, values
        are rounded as numpy does: what is too large becomes infinite. Every NaN becomes
        the same one (7FC00000 in float32), so that equal input gives equal bytes.

        Raises:
            IndexError: an index that is not in `tags`.
            ValueError: columns of different lengths, a tag over 1,000 bytes,
                or fewer tags than at the last call.
        """
        if not len(tag_index) == len(step) == len(wall_time) == len(value):
            raise ValueError(
                f"columns differ in length: {len(tag_index)} tag indices, {len(step)} steps, "
                f"{len(wall_time)} wall times, {len(value)} values"
            )
        self._learn(tags)
        if len(step) == 0:
            return memoryview(b"")
        if tag_index.min() < 0 or tag_index.max() >= len(tags):
            raise IndexError(
                f"tag_index must be from 0 to {len(tags) - 1}, "
                f"not {tag_index.min()} to {tag_index.max()}"
            )

        wall_time = np.ascontiguousarray(wall_time, "<f8")
        stored = _stored(value, self._form.dtype)
        if len(step) < _FEW_ROWS:
            return memoryview(self._each_row(tag_index, step, wall_time, stored))
        blocks = []
        for first in range(0, len(step), _BLOCK_ROWS):
            rows = slice(first, first + _BLOCK_ROWS)
            block = self._all_rows(tag_index[rows], step[rows], wall_time[rows], stored[rows])
            blocks.append(block)
        return blocks[0] if len(blocks) == 1 else memoryview(b"".join(blocks))

    def _learn(self, tags: Sequence[bytes]) -> None:
        """Prepare the tags that are new at the end of `tags`."""
        known = len(self._summaries)
        if len(tags) == known:
            return
        if len(tags) < known:
            raise ValueError(f"tags may only grow: {len(tags)} now, {known} at the last call")
        summaries = [_summary(tag, self._form) for tag in tags[known:]]
        text = b"".join(summaries)
        size = np.array([len(summary) for summary in summaries], np.intp)
        rest = bytes(self._form.value_bytes) + self._form.behind
        with_zeros = [crc32c(summary + rest) for summary in summaries]
        crc = np.array(with_zeros, np.uint32) ^ self._zeros_crc[size + self._rest_bytes]

        start = self._text_bytes + np.cumsum(size) - size
        self._text = _extended(self._text, self._text_bytes, np.frombuffer(text, np.uint8))
        self._text_bytes += len(text)
        self._start = _extended(self._start, known, start)
        self._size = _extended(self._size, known, size)
        self._crc = _extended(self._crc, known, crc)
        self._summaries += summaries

    def _each_row(
        self,
        tag_index: NDArray[Any],
        step: NDArray[np.int64],
        wall_time: NDArray[np.float64],
        value: NDArray[Any],
    ) -> bytes:
        """The records, one at a time: the plain form of what `_all_rows` does."""
        walls = wall_time.tobytes()
        values = value.tobytes()
        size, behind = self._form.value_bytes, self._form.behind
        records = []
        for row, (tag, number) in enumerate(zip(tag_index.tolist(), step.tolist(), strict=True)):
            payload = self._summaries[tag] + values[size * row : size * row + size] + behind
            if number:
                payload = b"\x10" + _varint(number) + payload
            wall = walls[8 * row : 8 * row + 8]
            if wall != b"\0\0\0\0\0\0\0\0":
                payload = b"\x09" + wall + payload
            records.append(frame(payload))
        return b"".join(records)

    def _all_rows(
        self,
        tag_index: NDArray[Any],
        step: NDArray[np.int64],
        wall_time: NDArray[np.float64],
        value: NDArray[Any],
    ) -> memoryview:
        """The records, a column at a time."""
        steps = _encode_steps(step)
        summary_start = self._start[tag_index]
        summary_size = self._size[tag_index]
        walled = wall_time.view("<i8") != 0  # -0.0 is written, as protobuf does
        behind_step = summary_size + self._rest_bytes
        payload_size = walled * _WALL_TIME_BYTES + steps.size + behind_step

        crc = self._zeros_crc[payload_size]
        crc ^= self._crc[tag_index]
        # `terms` is where the terms of a byte stand that has a row's step, summary, value and
        # metadata behind it. A field that a row has not is bytes of 0 here: their terms are 0.
        terms = (steps.size + behind_step) * 256
        self._add(crc, walled * _WALL_TIME_KEY, terms, 8)
        for place, byte in enumerate(_bytes_of(wall_time)):
            self._add(crc, byte, terms, 7 - place)
        for byte in steps.columns:
            terms -= 256
            self._add(crc, byte, terms, 0)
        for place, byte in enumerate(_bytes_of(value)):
            self._add(crc, byte, 0, self._rest_bytes - 1 - place)
        crc = ((crc >> 15) | (crc << 17)) + np.uint32(MASK_DELTA)

        def records(layout: _Layout, rows: slice | NDArray[np.intp]) -> NDArray[np.void]:
            start = summary_start[rows]
            filled = np.empty(len(start), layout.record)
            filled["header"] = layout.header
            if layout.walled:
                filled["wall_time"] = wall_time[rows]
            if layout.step_size:
                filled["step"] = steps.fields(layout.step_size)[rows]
            filled["summary"] = _every_offset(self._text, f"V{layout.summary_size}")[start]
            filled["value"] = value[rows]
            if self._form.behind:
                filled["behind"] = np.void(self._form.behind)
            filled["crc"] = crc[rows]
            return filled

        # 16 bits, so that numpy sorts by radix: 5 ns a row instead of 40.
        key = ((summary_size * 16 + steps.size) * 2 + walled).astype(np.uint16)
        if (key == key[0]).all():
            return records(_layout(int(key[0]), self._style), slice(None)).view(np.uint8).data
        record_size = payload_size + (HEADER_BYTES + TRAILER_BYTES)
        ends = np.cumsum(record_size)
        starts = ends - record_size
        out = np.empty(int(ends[-1]), np.uint8)
        order = np.argsort(key, kind="stable")
        key = key[order]
        changes = np.flatnonzero(key[1:] != key[:-1]) + 1
        for first, end in pairwise((0, *changes.tolist(), len(key))):
            layout = _layout(int(key[first]), self._style)
            rows = order[first:end]
            opaque = f"V{layout.record.itemsize}"
            _every_offset(out, opaque)[starts[rows]] = records(layout, rows).view(opaque)
        return out.data

    def _add(
        self,
        crc: NDArray[np.uint32],
        byte: NDArray[np.intp],
        terms: NDArray[np.intp] | int,
        further: int,
    ) -> None:
        """Xor into `crc` the terms of one byte a row, `further` from the end than `terms`."""
        # "wrap" because numpy's default checks every index before the first look-up. Out of
        # range are only absent bytes before an empty tag: they wrap to a byte 0, whose term is 0.
        crc ^= self._terms[further * 256 :].take(terms + byte, mode="wrap")


# -- the CRC ------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _byte_terms() -> NDArray[np.uint32]:
    """The term of byte b with d bytes behind it, at 256 * d + b. 1 MB, made in 4 ms."""
    terms = np.empty((_PAYLOAD_BYTES, 256), np.uint32)
    last = np.array([crc32c(bytes([byte])) for byte in range(256)], np.uint32)
    terms[0] = last ^ last[0]
    for distance in range(1, _PAYLOAD_BYTES):
        nearer = terms[distance - 1]
        terms[distance] = (nearer >> 8) ^ terms[0][nearer & 0xFF]  # a zero byte shifted in
    flat = terms.reshape(-1)
    flat.flags.writeable = False
    return flat


@lru_cache(maxsize=1)
def _zeros_crc() -> NDArray[np.uint32]:
    """The CRC of n zeros, at n."""
    crcs = np.array([crc32c(bytes(count)) for count in range(_PAYLOAD_BYTES + 1)], np.uint32)
    crcs.flags.writeable = False
    return crcs


# -- fields -------------------------------------------------------------------------------


def _stored(value: NDArray[np.float64], dtype: str) -> NDArray[Any]:
    with np.errstate(all="ignore"):  # to infinity or to zero without a word
        stored = value.astype(dtype)
    nan = np.isnan(stored)
    if nan.any():
        stored[nan] = np.nan
    return stored


def _bytes_of(column: NDArray[Any]) -> Iterator[NDArray[np.intp]]:
    """The first bytes of all rows, then the second ..., as indices (`take` would convert them)."""
    for byte in column.view(np.uint8).reshape(len(column), -1).T:
        yield byte.astype(np.intp)


def _varint(number: int) -> bytes:
    """A signed 64-bit integer as protobuf writes it: negative ones take 10 bytes."""
    number &= 0xFFFF_FFFF_FFFF_FFFF
    digits = bytearray()
    while number > 0x7F:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    digits.append(number)
    return bytes(digits)


def _summary(tag: bytes, form: _Form) -> bytes:
    """The payload between step and value, of an `Event` with one scalar of that tag."""
    if len(tag) > TAG_BYTES:
        raise ValueError(f"a tag has at most {TAG_BYTES} bytes, not {len(tag)}: {tag[:50]!r}...")
    rest_bytes = form.value_bytes + len(form.behind)
    inner = (b"\x0a" + _varint(len(tag)) + tag if tag else b"") + form.before
    for key in (b"\x0a", b"\x2a"):  # Summary.value in Event.summary
        inner = key + _varint(len(inner) + rest_bytes) + inner
    return inner


class _Steps(NamedTuple):
    """The step fields of some rows."""

    size: NDArray[np.intp]
    """Bytes of the field: 0, or 2 to 11."""
    columns: list[NDArray[np.intp]]
    """The key, then the varint's bytes, as many as the longest has; 0 where a field has ended."""
    cells: NDArray[np.uint8]
    """The same in shape (rows, 11); what lies behind the columns has no meaning."""

    def fields(self, size: int) -> NDArray[np.void]:
        """The first bytes of each row's cell."""
        return np.ndarray(len(self.cells), f"V{size}", self.cells, 0, (_STEP_BYTES,))


def _encode_steps(step: NDArray[np.int64]) -> _Steps:
    rest = step.view(np.uint64)
    present = rest > 0
    columns = [present * _STEP_KEY]
    size = present.astype(np.intp)
    more = present
    while more.any():
        size += more
        digit = (rest & np.uint64(0x7F)).view(np.intp)
        rest = rest >> np.uint64(7)
        more = rest > 0
        digit += more * 0x80
        columns.append(digit)
    cells = np.empty((len(step), _STEP_BYTES), np.uint8)
    for place, column in enumerate(columns):
        cells[:, place] = column
    return _Steps(size, columns, cells)


# -- layouts ------------------------------------------------------------------------------


class _Layout(NamedTuple):
    """Which fields a record has, and where."""

    summary_size: int
    step_size: int
    walled: bool
    record: np.dtype[np.void]
    header: np.void
    """The header of the record; the wall time's key too, where there is one."""


@lru_cache(maxsize=4096)  # 1 KB each; a run has a few dozen
def _layout(key: int, style: Style) -> _Layout:
    """The layout of a key: (summary size * 16 + step size) * 2 + whether it has a wall time."""
    form = _FORMS[style]
    summary_size, step_size, walled = key >> 5, key >> 1 & 15, bool(key & 1)
    step_at = HEADER_BYTES + walled * _WALL_TIME_BYTES
    summary_at = step_at + step_size
    value_at = summary_at + summary_size
    behind_at = value_at + form.value_bytes
    crc_at = behind_at + len(form.behind)
    start = header(crc_at - HEADER_BYTES) + bytes([_WALL_TIME_KEY] * walled)
    fields = {"header": (f"V{len(start)}", 0)}
    if walled:
        fields["wall_time"] = ("<f8", len(start))
    if step_size:
        fields["step"] = (f"V{step_size}", step_at)
    fields["summary"] = (f"V{summary_size}", summary_at)
    fields["value"] = (form.dtype, value_at)
    if form.behind:
        fields["behind"] = (f"V{len(form.behind)}", behind_at)
    fields["crc"] = ("<u4", crc_at)
    record = np.dtype(
        {
            "names": list(fields),
            "formats": [form for form, _ in fields.values()],
            "offsets": [offset for _, offset in fields.values()],
            "itemsize": crc_at + TRAILER_BYTES,
        }
    )
    return _Layout(summary_size, step_size, walled, record, np.void(start))


# -- memory -------------------------------------------------------------------------------


def _every_offset(data: NDArray[np.uint8], item: str) -> NDArray[np.void]:
    """`data` as items that begin at every byte: the item at i lies in data[i : i + its size].

    Copying whole items at given offsets so takes 6 ns a record; with a matrix of
    bytes instead of opaque items numpy takes 17.
    """
    size = np.dtype(item).itemsize
    return np.ndarray((len(data) - size + 1,), item, data, strides=(1,))


def _extended(old: NDArray[_Scalar], used: int, new: NDArray[_Scalar]) -> NDArray[_Scalar]:
    """`old[:used]` and then `new`, in `old` itself if it has room, else in twice its size."""
    needed = used + len(new)
    if needed > len(old):
        longer = np.zeros(max(needed, 2 * len(old)), old.dtype)
        longer[:used] = old[:used]
        old = longer
    old[used:needed] = new
    return old
