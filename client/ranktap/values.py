"""One number, of whatever library it is."""

from __future__ import annotations

from typing import Any

from ranktap import staging


def number(value: Any, name: str) -> float:
    """A float of whatever is one number. A tensor on a device is waited for.

    Raises:
        TypeError: it is none.
    """
    given = value
    try:
        if hasattr(value, "item"):
            value = value.item()  # a tensor or array of one element, or numpy's scalar
        if not isinstance(value, str | bytes):
            return float(value)
        reason = "text"
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        reason = str(error)
    shape = getattr(given, "shape", None)
    what = type(given).__name__ + (f" of shape {tuple(shape)}" if shape is not None else "")
    raise TypeError(f"{name}: expected a number or one element, got {what}: {reason}")


def check_number(value: Any, name: str) -> None:
    """Raise what logging this value would, without waiting for a device.

    Raises:
        TypeError: it is not one number.
    """
    if not staging.on_device(value):
        number(value, name)
        return
    staging.describe(value, name)
    if value.numel() != 1:
        shape = tuple(value.shape)
        raise TypeError(f"{name}: expected a number or one element, got shape {shape}")
