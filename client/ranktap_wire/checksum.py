"""CRC-32C, the checksum of journal entries and of event files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import google_crc32c
import numpy as np

if TYPE_CHECKING:
    from typing_extensions import Buffer


def crc32c(data: Buffer, crc: int = 0) -> int:
    """The CRC-32C of `data`, or of what `crc` was computed from followed by `data`.

    `data` is read where it lies, of any item type and shape; it may be writable
    and empty. The result is below 2**32.

    The GIL is released for `bytes` from 1 MiB on; anything else holds it
    (75 us a MiB).

    Raises:
        BufferError: `data` is not contiguous, or not in C order.

    Source: RFC 3720, appendix B.4 (iSCSI's polynomial, 0x1EDC6F41).
    """
    # google-crc32c refuses bytearrays and memoryviews, so an array borrows their
    # memory. Arrays too are flattened to bytes: the pure-Python fallback of
    # google-crc32c would iterate over their items.
    flat = data if type(data) is bytes else np.frombuffer(memoryview(data), np.uint8)
    checksum: int = google_crc32c.extend(crc, flat)
    return checksum
