"""Ways to change an input that leave it worth reading: what blind changes of bytes hardly find."""

from __future__ import annotations

import random
import struct

from ranktap_wire.checksum import crc32c
from tests.fuzz.targets import pack, unpack
from tests.support import messages

HEAD_BYTES = 32
"""Of a segment's header, and of an entry's head."""


def mutate(target: str, data: bytes, rng: random.Random) -> bytes:
    """Another input for that target."""
    return mutate_segment(data, rng) if target == "journal" else mutate_message(data, rng)


def mutate_message(data: bytes, rng: random.Random) -> bytes:
    """A message of which something is different: a frame, or a field of its header."""
    parts = unpack(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        parts = rng.choice(messages.MUTATIONS)(rng, parts) if parts else [rng.randbytes(20)]
    return pack(parts[:300])


def mutate_segment(data: bytes, rng: random.Random) -> bytes:
    """A segment with other bytes somewhere, sometimes with checksums that are right again."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(changed) + 1) // 8 * 8 + rng.choice((0, 0, 0, 1, 4))
        length = rng.choice((1, 2, 4, 8, 8, 32, 40))
        what = rng.randrange(5)
        if what == 0:
            changed[at : at + length] = rng.randbytes(length)
        elif what == 1:
            del changed[at : at + length]
        elif what == 2:
            changed[at:at] = changed[at : at + length] or bytes(length)
        elif what == 3:
            number = rng.choice((0, 1, 2, 7, 8, 1 << 31, (1 << 32) - 1, rng.randrange(1 << 32)))
            changed[at : at + 4] = struct.pack("<I", number)
        else:
            del changed[at:]
    return seal(bytes(changed)) if rng.random() < 0.7 else bytes(changed)


def seal(data: bytes) -> bytes:
    """The same with the checksums of its header and entries made right, as far as lengths lead."""
    sealed = bytearray(data)
    if len(sealed) < HEAD_BYTES:
        return data
    sealed[12:16] = bytes(4)
    sealed[12:16] = struct.pack("<I", crc32c(bytes(sealed[:HEAD_BYTES])))
    at = HEAD_BYTES
    while at + HEAD_BYTES <= len(sealed):
        (length,) = struct.unpack_from("<I", sealed, at + 16)
        payload = bytes(sealed[at + HEAD_BYTES : at + HEAD_BYTES + length])
        if len(payload) < length:
            break
        sealed[at + 4 : at + 8] = struct.pack("<I", crc32c(payload))
        sealed[at : at + 4] = struct.pack("<I", crc32c(bytes(sealed[at + 4 : at + HEAD_BYTES])))
        at += HEAD_BYTES + length + -length % 8
    return bytes(sealed)
