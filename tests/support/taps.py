"""What a tap's methods are held to: refusals that name the argument, and what a daemon reads."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from ranktap import Tap, staging
from ranktap_wire import frames
from ranktap_wire.records import Batch, Blob
from tests.support.messages import as_bytes


def refused(argument: str, error: type[Exception] = ValueError) -> Any:
    """The error of a wrong argument: named, with what is allowed and what was given."""
    return pytest.raises(error, match=rf"(?s)^{re.escape(argument)}: expected .+ got .+")


def sent(tap: Tap) -> Batch | None:
    """The next batch of a tap's, as a daemon reads it; None when nothing has arrived."""
    sealed = tap._outbox.take()
    if sealed is None:
        return None
    tap._outbox.release(sealed)
    parts = as_bytes(frames.pack_batch(bytes(16), 1, sealed.batch))
    return frames.read_batch([memoryview(part) for part in parts])


def sent_blob(tap: Tap) -> Blob:
    """The one record that waits."""
    batch = sent(tap)
    assert batch is not None and batch.columns is None
    (blob,) = batch.blobs
    return blob


def logged(tap: Tap) -> int:
    """How many records were logged, sent or not."""
    mark = tap._outbox.mark()
    return mark.rows // 4 + mark.scalars + mark.blobs


@contextmanager
def slow_device(patched: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Makes tensors look as if on a device whose copies arrive when the result is called.

    It shows that nothing asks for values before that; not that CUDA's copies wait for nothing.
    """
    here = False
    real = staging._of_tensor

    def of_tensor(tensor: Any, dtype: str, shape: tuple[int, ...]) -> staging.Snapshot:
        copy = real(tensor, dtype, shape)
        values, copy.bits[...] = copy.bits.copy(), 0

        def arrived() -> bool:
            if here:
                copy.bits[...] = values
            return here

        copy.arrived = arrived
        return copy

    def arrive() -> None:
        nonlocal here
        here = True

    with patched.context() as patch:
        patch.setattr(staging, "_of_tensor", of_tensor)
        patch.setattr(staging, "on_device", staging.is_tensor)
        yield arrive
