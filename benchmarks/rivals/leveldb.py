"""The records of a log in LevelDB's format, which wandb and swanlab write."""

from __future__ import annotations

import struct
from collections.abc import Iterator

BLOCK = 32 << 10
FILE_HEADER, RECORD_HEADER = 7, struct.Struct("<IHB")
WHOLE, LAST = 1, 4


def payloads(data: bytes) -> Iterator[bytes]:
    """Each whole record: blocks of 32 KiB hold it in one part or several."""
    offset, parts = FILE_HEADER, b""
    while offset + RECORD_HEADER.size <= len(data):
        left = BLOCK - offset % BLOCK
        if left < RECORD_HEADER.size:
            offset += left
            continue
        _, length, kind = RECORD_HEADER.unpack_from(data, offset)
        offset += RECORD_HEADER.size
        if offset + length > len(data):
            return  # it is still being written
        parts += data[offset : offset + length]
        offset += length
        if kind in (WHOLE, LAST):
            yield parts
            parts = b""
