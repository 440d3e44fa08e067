"""Loggers for training libraries, each in the library's own fashion, each from every rank.

    from ranktap.integrations.lightning import RanktapLogger
    from ranktap.integrations.accelerate import RanktapTracker
    from ranktap.integrations.transformers import RanktapCallback
    from ranktap.integrations.ignite import RanktapLogger

Nothing here imports a library before it is asked for. Tags and steps are those of the
library's own TensorBoard logger, so that a dashboard stays as it is.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from typing import Any


def missing(extra: str, error: ModuleNotFoundError) -> ModuleNotFoundError:
    """The error for an integration whose library is not installed."""
    return ModuleNotFoundError(
        f"ranktap.integrations.{extra}: {error}: pip install 'ranktap[{extra}]'", name=error.name
    )


def flat(parameters: Any, prefix: str = "") -> dict[str, bool | int | float | str]:
    """Hyper-parameters as TensorBoard takes them: names with "/" for levels, plain values.

    `parameters` is a mapping, a Namespace or a dataclass, nested at will. What is no number,
    bool or string is shown as its text.
    """
    found: dict[str, bool | int | float | str] = {}
    for name, value in _mapping(parameters).items():
        full = f"{prefix}{name}"
        if _mapping(value):
            found |= flat(value, f"{full}/")
        else:
            value = value.item() if getattr(value, "shape", None) == () else value
            found[full] = value if isinstance(value, bool | int | float | str) else str(value)
    return found


class OncePerStep:
    """Leaves out what a trainer says again at the same step, as it does with the epoch.

    A step of ranks that are merged has one value; a second one would count as late.
    """

    def __init__(self) -> None:
        self._step: int | None = None
        self._said: dict[str, int | float] = {}

    def __call__(self, values: Mapping[str, Any], step: int | None) -> dict[str, Any]:
        """Those of `values` that are not a number which was given for this step before."""
        if step != self._step:
            self._step = step
            self._said.clear()
        fresh = {}
        for name, value in values.items():
            if type(value) in (int, float):
                if self._said.get(name) == value:
                    continue
                self._said[name] = value
            fresh[name] = value
        return fresh


def _mapping(value: Any) -> Mapping[Any, Any]:
    """The names and values that it holds; empty when it is no such thing."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        # Not asdict, which copies what it holds.
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, argparse.Namespace):
        return vars(value)
    return value if isinstance(value, Mapping) else {}
