"""Scalars: a number, or several, of a step.

A tag is checked once, when it is new; from then on a call looks its index up and appends a
row. There is a table of tags for each way in which scalars are named and merged.
"""

from __future__ import annotations

from collections.abc import Mapping
from time import time as wall_clock
from typing import Any, Final

from ranktap import staging
from ranktap.base import BaseTap
from ranktap.outbox import ROW_ITEMS, PendingScalar
from ranktap.values import check_number, number
from ranktap_wire import records, rules
from ranktap_wire.records import SCALAR_ACROSS, STEP_MAX, STEP_MIN, Across, Style

STYLES: Final = {
    "simple": Style.SIMPLE,
    "float": Style.TENSOR_FLOAT,
    "double": Style.TENSOR_DOUBLE,
}


class Scalars(BaseTap):
    """The methods that log numbers."""

    def scalar(
        self,
        tag: str,
        value: Any,
        step: int | None = None,
        *,
        walltime: float | None = None,
        across: str = "mean",
    ) -> None:
        """Log a number: Python's, numpy's, or a tensor of one element. NaN and Inf are shown.

        `across` says how the ranks' values of this tag and step become one: "mean", "sum",
        "min", "max", "last", "rank0", or "each" for a series a rank.

        Raises:
            TypeError, ValueError: an argument is not of this form; it is named.
        """
        try:
            index = self._mean[tag] if across == "mean" else self._tables["", across, "simple"][tag]
        except (KeyError, TypeError):
            self._scalar_of_new_tag(tag, value, step, walltime, across)
            return
        if type(step) is not int:
            step = self._step if step is None else rules.check_step(step)
        elif not STEP_MIN <= step <= STEP_MAX:
            rules.check_step(step)
        walltime = wall_clock() if walltime is None else rules.check_walltime(walltime)
        if type(value) is not float:
            if staging.on_device(value):
                self._add_device_scalar(index, step, walltime, value, "value")
                return
            value = number(value, "value")
        rows = self._rows
        if len(rows) >= self._outbox.row_limit:
            self._drop_scalars(1)
            return
        # One append: see outbox.py on why a flat list.
        rows += (index, step, walltime, value)

    def scalars(
        self,
        values: Mapping[str, Any],
        step: int | None = None,
        *,
        prefix: str = "",
        across: str = "mean",
        style: str = "simple",
        walltime: float | None = None,
    ) -> None:
        """Log several numbers of one step; with `prefix`, the tags are `prefix/tag`.

        `style` says how they stand in the event file: "simple", or each as a tensor of one
        "float" or "double" (torch's `new_style` and `double_precision`).

        All or none: when a tag or a value is wrong, nothing is logged.

        Raises:
            TypeError, ValueError: an argument is not of this form; it is named.
        """
        way = (prefix, across, style)
        step = self._step if step is None else rules.check_step(step)
        walltime = wall_clock() if walltime is None else rules.check_walltime(walltime)
        if self._add_rows(way, values, step, walltime):
            return
        policy = rules.check_across(across, SCALAR_ACROSS)
        if not isinstance(style, str) or style not in STYLES:
            raise ValueError(f"style: expected one of {rules.listed(STYLES)}, got {style!r}")
        if not isinstance(prefix, str):
            raise TypeError(f"prefix: expected a string, got {type(prefix).__name__}")
        names = {}
        for tag in _checked(values):
            rules.check_tag(tag)
            names[tag] = rules.check_tag(f"{prefix}/{tag}") if prefix else tag
        if self._index(way, names, policy, STYLES[style]):
            self._add_rows(way, values, step, walltime)

    def curves(
        self,
        tag: str,
        values: Mapping[str, Any],
        step: int | None = None,
        *,
        across: str = "mean",
        walltime: float | None = None,
    ) -> None:
        """Log several numbers of one step as curves of one chart, as torch's `add_scalars` does.

        Each is a scalar `tag` of a run of its own below this one, `<tag>_<its name>`, with "_"
        for each "/" of the tag. TensorBoard draws what has one tag in one chart.

        All or none: when a name or a value is wrong, nothing is logged.

        Raises:
            TypeError, ValueError: an argument is not of this form; it is named.
        """
        way = (tag, across)
        step = self._step if step is None else rules.check_step(step)
        walltime = wall_clock() if walltime is None else rules.check_walltime(walltime)
        if self._add_rows(way, values, step, walltime):
            return
        policy = rules.check_across(across, SCALAR_ACROSS)
        rules.check_tag(tag)
        below = tag.replace("/", "_")
        names = {}
        for name in _checked(values):
            if not isinstance(name, str):
                raise TypeError(f"values: expected names that are strings, got {name!r}")
            sub_run = check_sub_run(f"{below}_{name}", f"values[{name!r}]")
            names[name] = records.join_name(sub_run, tag)
        if self._index(way, names, policy, Style.SIMPLE):
            self._add_rows(way, values, step, walltime)

    def _scalar_of_new_tag(
        self, tag: Any, value: Any, step: Any, walltime: Any, across: Any
    ) -> None:
        """A scalar whose tag has no index yet: everything is checked before it gets one."""
        policy = rules.check_across(across, SCALAR_ACROSS)
        rules.check_tag(tag)
        if step is not None:
            rules.check_step(step)
        if walltime is not None:
            rules.check_walltime(walltime)
        check_number(value, "value")
        if self._index(("", across, "simple"), {tag: tag}, policy, Style.SIMPLE):
            self.scalar(tag, value, step, walltime=walltime, across=across)

    def _add_rows(self, way: tuple[str, ...], values: Any, step: int, walltime: float) -> bool:
        """Log several numbers, all or none; False, and none, when a tag has no index yet."""
        try:
            table = self._tables[way]
            items = values.items()
        except (KeyError, TypeError, AttributeError):
            return False
        added: list[int | float] = []
        devices: list[tuple[int, str, Any]] = []
        for tag, value in items:
            index = table.get(tag)
            if index is None:
                return False
            if type(value) is not float:
                if staging.on_device(value):
                    check_number(value, f"values[{tag!r}]")
                    devices.append((index, tag, value))
                    continue
                value = number(value, f"values[{tag!r}]")
            added += (index, step, walltime, value)
        for index, tag, value in devices:
            self._add_device_scalar(index, step, walltime, value, f"values[{tag!r}]")
        if len(self._rows) + len(added) > self._outbox.row_limit:
            self._drop_scalars(len(added) // ROW_ITEMS)
        else:
            self._rows += added
        return True

    def _index(
        self, way: tuple[str, ...], names: Mapping[str, str], policy: Across, style: Style
    ) -> bool:
        """Give new tags their index, all or none: each tag of a call with its full name.

        False when nothing is to be logged: there are none, or this rank's do not count.
        """
        if not names or not self._has_part(policy) or not self._accepts(len(names)):
            return False
        kind = f"scalar with across={policy.name.lower()!r}"
        for name in names.values():
            self._check_kind(name, kind)
        table = self._tables.setdefault(way, {})
        for tag, name in names.items():
            self._kinds[name] = kind
            index = self._indices.get((name, style))
            if index is None:
                index = self._indices[name, style] = self._outbox.add_tag(name, policy, style)
            table[tag] = index
        return True

    def _add_device_scalar(
        self, index: int, step: int, walltime: float, value: Any, name: str
    ) -> None:
        copy = staging.snapshot(value.reshape(1), name)
        if not self._outbox.add_device_scalar(PendingScalar(index, step, walltime, copy)):
            self._tell_dropped()


def check_sub_run(sub_run: object, argument: str) -> str:
    """The name of a run below this one, if it may be one.

    Raises:
        TypeError, ValueError: it may not; the message names the argument that it comes from.
    """
    try:
        return rules.check_sub_run(sub_run)
    except (TypeError, ValueError) as error:
        _, _, what = str(error).partition(": ")
        raise type(error)(f"{argument}: {what}") from None


def _checked(values: Any) -> Mapping[Any, Any]:
    """A call's numbers, if all are some; what they are called is not looked at."""
    if not isinstance(values, Mapping):
        raise TypeError(f"values: expected a mapping, got {type(values).__name__}")
    for tag, value in values.items():
        check_number(value, f"values[{tag!r}]")
    return values
