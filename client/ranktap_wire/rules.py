"""What names, steps, times and numbers may be: rules that hold for every kind of record.

The client applies these rules at the call, so that a wrong argument raises
where it was written; the daemon applies the same rules to what arrives, because
it trusts nobody. Every error names the argument, what was given, and what is
allowed.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np

from ranktap_wire import limits
from ranktap_wire.records import STEP_MAX, STEP_MIN, Across

# -- words of an error ------------------------------------------------------------------

_SHORT = reprlib.Repr()
_SHORT.maxlevel = 3
_SHORT.maxstring = _SHORT.maxother = 60


def shown(value: object) -> str:
    """The value as an error's text names it: in 60 characters, whatever it is.

    Not `repr`: it raises RecursionError for the thousand lists, one in the other, that
    fit in a kilobyte of a stranger's header.
    """
    text = _SHORT.repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def given(value: object) -> str:
    """What was given, as an error names it: the value and its type."""
    return f"{shown(value)} ({type(value).__name__})"


def listed(names: Mapping[str, Any] | Sequence[str]) -> str:
    """What is allowed, as an error names it."""
    return ", ".join(repr(name) for name in names)


# -- text -------------------------------------------------------------------------------

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def has_control(text: str) -> bool:
    """Whether there are control characters in it: they could move a terminal's cursor."""
    return _CONTROL.search(text) is not None


def check_words(name: str, text: object, max_bytes: int = limits.TAG_BYTES) -> str:
    """Text of people: what they want, also empty, and in several lines.

    Raises:
        TypeError: it is no string.
        ValueError: it is too long or not Unicode text.
    """
    if not isinstance(text, str):
        raise TypeError(f"{name}: expected a string, got {given(text)}")
    try:
        length = len(text.encode())
    except UnicodeEncodeError:
        raise ValueError(f"{name}: expected Unicode text, got {shown(text)}") from None
    if length > max_bytes:
        raise ValueError(
            f"{name}: expected at most {max_bytes} bytes of UTF-8, got {length} ({text[:40]!r}...)"
        )
    return text


def check_line(name: str, text: object, max_bytes: int) -> str:
    """Text that stands in tables, logs and file names.

    Raises:
        TypeError: it is no string.
        ValueError: it is too long, not Unicode text, or has control characters.
    """
    line = check_words(name, text, max_bytes)
    if has_control(line):
        raise ValueError(f"{name}: expected no control characters, got {line!r}")
    return line


def check_utf8(name: str, buffer: memoryview) -> str:
    """The text that these bytes are.

    Raises:
        ValueError: they are no UTF-8.
    """
    try:
        return str(buffer, "utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: expected UTF-8, got {error.reason} at {error.start}") from None


def check_tag(tag: object, max_bytes: int = limits.TAG_BYTES) -> str:
    """The tag, if it may be one.

    Raises:
        TypeError: it is no string.
        ValueError: it is empty, too long, not Unicode text, or has control characters.
    """
    if isinstance(tag, str) and not tag:
        raise ValueError("tag: expected a string that is not empty, got ''")
    return check_line("tag", tag, max_bytes)


def check_name(name: object) -> str:
    """A record's name (`records.join_name`), if its sub-run and its tag may be what they are.

    Raises:
        TypeError, ValueError: see `check_sub_run` and `check_tag`.
    """
    if isinstance(name, str) and "\t" in name:
        sub_run, _, tag = name.partition("\t")
        check_sub_run(sub_run)
        check_tag(tag)
        return name
    return check_tag(name)


# -- runs -------------------------------------------------------------------------------


def check_run(run: object) -> str:
    """The run's name, if it names a directory that cannot leave the logdir; '.' is the logdir.

    Raises:
        TypeError: it is no string.
        ValueError: it is empty, too long, absolute, or has `.`, `..`, empty or hidden
            components, backslashes or control characters.
    """
    return run if run == "." else _check_path("run", run)


def check_sub_run(sub_run: object) -> str:
    """A sub-run's name, if it names a directory below its run's that cannot leave it.

    Raises:
        TypeError, ValueError: as `check_run`, and it may not be '.'.
    """
    return _check_path("sub-run", sub_run)


def _check_path(name: str, path: object) -> str:
    text = check_line(name, path, limits.RUN_BYTES)
    components = text.split("/")
    if len(components) > limits.RUN_COMPONENTS:
        raise ValueError(
            f"{name}: expected at most {limits.RUN_COMPONENTS} names between '/', "
            f"got {len(components)}"
        )
    # A hidden component could be the daemon's own state directory.
    if any(not each or each.startswith(".") or each != each.strip() for each in components):
        raise ValueError(
            f"{name}: expected names with '/' between, none of them empty, beginning with '.' "
            f"or with white space at an end, got {text!r}"
        )
    if "\\" in text:
        raise ValueError(f"{name}: expected no backslash, got {text!r}")
    if len(run_directory_name(text).encode()) > 240:
        raise ValueError(f"{name}: expected a shorter name or fewer '/', got {text!r}")
    return text


def run_directory_name(run: str) -> str:
    """The run's name as one component of a path, reversibly: `a/b` and `a` never nest."""
    return "%2E" if run == "." else run.replace("%", "%25").replace("/", "%2F")


def run_of_directory_name(name: str) -> str:
    """The run that `run_directory_name` made this of."""
    return "." if name == "%2E" else name.replace("%2F", "/").replace("%25", "%")


def check_about(about: object) -> dict[str, str]:
    """What a rank says about itself, if it is some short lines, each under a name.

    Raises:
        TypeError: it is no mapping of strings to strings.
        ValueError: there are too many, or one of them is too long or has control characters.
    """
    if not isinstance(about, Mapping):
        raise TypeError(f"about: expected a mapping, got {given(about)}")
    if len(about) > limits.ABOUT_ENTRIES:
        raise ValueError(f"about: expected at most {limits.ABOUT_ENTRIES} names, got {len(about)}")
    nbytes = 0
    for name, value in about.items():
        check_line("about: a name", name, limits.ABOUT_KEY_BYTES)
        if not name:
            raise ValueError("about: expected names that are not empty, got ''")
        check_line(f"about: {name}", value, limits.ABOUT_VALUE_BYTES)
        nbytes += len(name.encode()) + len(value.encode())
    if nbytes > limits.ABOUT_BYTES:
        raise ValueError(f"about: expected at most {limits.ABOUT_BYTES} bytes, got {nbytes}")
    return dict(about)


def check_suffix(suffix: object) -> str:
    """`filename_suffix`, if it can stand at the end of a file name.

    Raises:
        TypeError: it is no string.
        ValueError: it is too long, or has a `/` or control characters.
    """
    text = check_line("filename_suffix", suffix, limits.SUFFIX_BYTES)
    if "/" in text:
        raise ValueError(f"filename_suffix: expected no '/', got {text!r}")
    return text


# -- steps, times, numbers --------------------------------------------------------------


def check_step(step: object, name: str = "step") -> int:
    """The step as an int: Python's, numpy's, or anything else with `__index__`, but no bool.

    Raises:
        TypeError: it is no integer.
        ValueError: it does not fit in 64 bits.
    """
    if isinstance(step, bool | np.bool_) or not hasattr(type(step), "__index__"):
        raise TypeError(f"{name}: expected an integer, got {given(step)}")
    try:
        number = int(step.__index__())  # type: ignore[attr-defined]
    except (TypeError, ValueError, RuntimeError):
        # An array or a tensor that is no single integer.
        raise TypeError(f"{name}: expected an integer, got {given(step)}") from None
    if not STEP_MIN <= number <= STEP_MAX:
        raise ValueError(f"{name}: expected an integer of 64 bits, got {number}")
    return number


def check_walltime(walltime: object) -> float:
    """The wall time in seconds since 1970. NaN there stops TensorBoard's fast loader for good.

    Raises:
        TypeError: it is no number.
        ValueError: it is not finite.
    """
    if not _is_real(walltime):
        raise TypeError(f"walltime: expected seconds since 1970, got {given(walltime)}")
    try:
        seconds = float(walltime)
    except OverflowError:
        raise ValueError(f"walltime: expected seconds since 1970, got {given(walltime)}") from None
    if not math.isfinite(seconds):
        raise ValueError(f"walltime: expected a finite number of seconds, got {seconds}")
    return seconds


def check_across(across: object, allowed: Mapping[str, Across]) -> Across:
    """The policy of that name.

    Raises:
        ValueError: it is none of `allowed`.
    """
    policy = allowed.get(across) if isinstance(across, str) else None
    if policy is None:
        raise ValueError(f"across: expected one of {listed(allowed)}, got {given(across)}")
    return policy


def check_whole(name: str, value: object, low: int, high: int) -> int:
    """A whole number from `low` to `high`, both included.

    Raises:
        TypeError, ValueError: it is none.
    """
    number = check_step(value, name)
    if not low <= number <= high:
        raise ValueError(f"{name}: expected a whole number from {low} to {high}, got {number}")
    return number


def check_real(name: str, value: object) -> float:
    """A number as a float; NaN and the infinities too.

    Raises:
        TypeError: it is no number.
        ValueError: it is an integer that no float holds.
    """
    if not _is_real(value):
        raise TypeError(f"{name}: expected a number, got {given(value)}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name}: expected a finite number, got {given(value)}") from None


def check_finite(name: str, value: object) -> float:
    """A finite number as a float.

    Raises:
        TypeError: it is no number.
        ValueError: it is not finite.
    """
    number = check_real(name, value)
    if not math.isfinite(number):
        raise ValueError(f"{name}: expected a finite number, got {number}")
    return number


def check_flag(name: str, value: object) -> bool:
    """True or False.

    Raises:
        TypeError: it is neither.
    """
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name}: expected True or False, got {given(value)}")
    return bool(value)


def _is_real(value: object) -> TypeGuard[int | float | np.integer[Any] | np.floating[Any]]:
    """Whether it is one number, but no bool; numpy's complex numbers are none of these."""
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
