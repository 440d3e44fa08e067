"""What wandb has written of an offline run, read back."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from pathlib import Path

BLOCK = 32 << 10
FILE_HEADER, RECORD_HEADER = 7, struct.Struct("<IHB")
WHOLE, LAST = 1, 4


def expect_history(directory: Path, names: list[str], *, at_least: int) -> None:
    """Raise unless so many of the run's steps come to hold a histogram of each of these names."""
    deadline = time.monotonic() + 60
    while True:
        found = _histograms(directory, names)
        if all(count >= at_least for count in found.values()):
            return
        if time.monotonic() > deadline:
            raise RuntimeError(f"expected at least {at_least} histograms of each, found {found}")
        time.sleep(0.5)


def _histograms(directory: Path, names: list[str]) -> dict[str, int]:
    from wandb.proto import wandb_internal_pb2

    (path,) = directory.glob("wandb/offline-run-*/*.wandb")
    found = dict.fromkeys(names, 0)
    for payload in _payloads(path.read_bytes()):
        for item in wandb_internal_pb2.Record.FromString(payload).history.item:
            name, _, field = "/".join(item.nested_key).rpartition("/")
            if field == "values" and name in found:
                found[name] += 1
    return found


def _payloads(data: bytes) -> Iterator[bytes]:
    """The records of a LevelDB log: blocks of 32 KiB, each record in one part or several."""
    offset, parts = FILE_HEADER, b""
    while offset + RECORD_HEADER.size <= len(data):
        left = BLOCK - offset % BLOCK
        if left < RECORD_HEADER.size:
            offset += left
            continue
        _, length, kind = RECORD_HEADER.unpack_from(data, offset)
        offset += RECORD_HEADER.size
        parts += data[offset : offset + length]
        offset += length
        if kind in (WHOLE, LAST):
            yield parts
            parts = b""
