"""Arguments of torch's SummaryWriter as a tap takes them, and a tap's errors in torch's words."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any, Final, NoReturn, ParamSpec, TypeVar

import numpy as np

from ranktap import opening, ranks

StrPath = str | os.PathLike[str]

RUNS: Final = "runs"
"""Where torch puts a run for which no directory was given."""

P = ParamSpec("P")
R = TypeVar("R")


# -- where it writes ----------------------------------------------------------------------


def place(
    log_dir: StrPath | None, comment: str, run: str | None, endpoint: str | None
) -> tuple[StrPath, str | None, str]:
    """The directory of the run as torch has it, and for `init` the logdir, None where the daemon is
    elsewhere, and the run's name.

    Raises:
        TypeError, ValueError: an argument is not of this form; it is named.
        LookupError: the ranks of this job have no name in common, and none was given.
    """
    if run is not None and not isinstance(run, str):
        raise TypeError(f"run: expected a string, got {type(run).__name__}")
    is_path = log_dir is None or isinstance(log_dir, str | os.PathLike)
    if not is_path or isinstance(os.fspath(log_dir or ""), bytes):
        raise TypeError(f"log_dir: expected a path, got {log_dir!r} ({type(log_dir).__name__})")
    # Where there is a spool, what is written here is what is sent elsewhere one day.
    is_elsewhere = (
        opening.endpoint_elsewhere(endpoint) is not None
        or opening.spool_directory(None) is not None
    )
    if run:
        directory = f"{os.fspath(log_dir or RUNS)}/{run}"
        return directory, None if is_elsewhere else _absolute(log_dir or RUNS), run
    if not log_dir:
        # With nothing to be logged, there is nothing that ranks could not agree on.
        name = "" if opening.is_disabled() else opening.run_name(None, ranks.identify(), comment)
        directory = f"{RUNS}/{name}"
        return (directory, None, name) if is_elsewhere else (directory, _absolute(directory), ".")
    if is_elsewhere:
        return log_dir, None, _run_of(os.fspath(log_dir))
    if "://" in os.fspath(log_dir):
        raise ValueError(f"log_dir: expected a path on this machine, got {log_dir!r}")
    return log_dir, _absolute(log_dir), "."


def _absolute(directory: StrPath) -> str:
    """Where it is now: the training may change its own directory before it opens it again."""
    return os.path.abspath(directory)  # noqa: PTH100 - which would follow links


def _run_of(log_dir: str) -> str:
    """The name of a run, for a daemon elsewhere, of the directory that it would have here."""
    path = PurePath(os.path.normpath(log_dir))
    if "://" in log_dir or path.is_absolute() or path.parts[:1] in ((), (os.pardir,)):
        return PurePath(_absolute(log_dir)).name
    return str(path).removeprefix(f"{RUNS}/")


# -- what is logged -----------------------------------------------------------------------


def when(global_step: Any, walltime: Any) -> dict[str, Any]:
    """The step and the wall time of a record, as arguments of a tap's methods."""
    return {"step": whole(global_step), "walltime": seconds(walltime)}


def whole(step: Any) -> int | None:
    """The step as torch reads it: the whole part of any number, or of its text. None stays None.

    Raises:
        TypeError, ValueError: it is none.
    """
    if step is None:
        return None
    try:
        # numpy warns of an array that becomes a number by itself, even of one element.
        return int(step.item() if hasattr(step, "item") else step)
    except (TypeError, RuntimeError):
        kind: type[Exception] = TypeError
    except (ValueError, OverflowError):
        kind = ValueError
    raise kind(f"global_step: expected a number, got {step!r} ({type(step).__name__})")


def seconds(walltime: Any) -> Any:
    """The wall time: protobuf takes whatever says that it is a number. None stays None."""
    return float(walltime) if hasattr(walltime, "__float__") else walltime


def plain(value: Any) -> Any:
    """Numbers that are given as text, and numpy's types that do not travel, as float64.

    All else stays as it is, also what is no number: that is the tap's to say.
    """
    is_array = isinstance(value, np.ndarray | np.generic)
    is_text = isinstance(value, str | bytes)
    if is_text or (is_array and (value.dtype.kind in "OSU" or value.dtype == np.longdouble)):
        try:
            return float(value) if is_text else np.asarray(value).astype(np.float64)
        except (TypeError, ValueError):
            return value
    return value


def plain_values(values: Any) -> Any:
    """Each of a call's numbers as `plain` has it; what is no mapping stays what it is."""
    if not isinstance(values, Mapping):
        return values
    return {name: plain(value) for name, value in values.items()}


def at_most(number: Any, most: int) -> Any:
    """A number, or `most` where that is less. What is no number stays what it is."""
    try:
        return min(number, most)
    except TypeError:
        return number


def corners(boxes: Any) -> Any:
    """Boxes as torch reads them: what stands behind their four numbers does not count."""
    return boxes[:, :4] if getattr(boxes, "ndim", 0) == 2 else boxes


def below(run_name: Any) -> Any:
    """The name of a sub-run, of the directory that torch would make; None for none."""
    is_path = isinstance(run_name, str | os.PathLike)
    return os.path.normpath(run_name) if run_name and is_path else run_name or None


def charts(layout: Any) -> Any:
    """A layout as torch reads it: every kind of chart but "Margin" is "Multiline", and what stands
    behind its tags does not count. What is no layout stays what it is."""
    try:
        return {
            category: {
                title: ["Margin" if kind == "Margin" else "Multiline", tags]
                for title, (kind, tags, *_) in drawn.items()
            }
            for category, drawn in layout.items()
        }
    except (AttributeError, TypeError, ValueError):
        return layout


# -- errors -------------------------------------------------------------------------------


def torch_names(**names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let the errors of a method name its own arguments: a tap's name of each to torch's."""

    def named(method: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(method)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return method(*args, **kwargs)
            except (TypeError, ValueError) as error:
                raise_renamed(error, names)

        return call

    return named


# Every method's.
_NAMES: Final = {"step": "global_step"}
_ARGUMENT: Final = re.compile(r"([\w-]+)(?:\[.*?\])?: ", re.DOTALL)


def raise_renamed(error: Exception, names: dict[str, str]) -> NoReturn:
    """Raise a tap's error with torch's name of the argument in place of the tap's."""
    found = _ARGUMENT.match(str(error))
    name = None if found is None else (_NAMES | names).get(found[1])
    if found is None or name is None or type(error) not in (TypeError, ValueError):
        raise error
    raise type(error)(name + str(error)[found.end(1) :]) from None
