"""Takes the measure of one watch's tensors: under which tag, merged how, and what is left out.

What it has measured it keeps as numbers and as pictures, until the step is handed over.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar, cast

from ranktap import pictures, reduce
from ranktap.asked import Settings
from ranktap.collect import FIELDS, PARAMETER_SECTIONS, Collection, Group
from ranktap.shards import Held, is_plain, local_part
from ranktap_wire import limits, records, rules
from ranktap_wire.records import Across

if TYPE_CHECKING:
    from ranktap.tap import Tap

logger = logging.getLogger("ranktap")

TOLD_MAX: Final = 1_000
"""Messages of one watch. Arbitrary: nobody reads a thousand."""


class Telling(Protocol):
    """What can say that something is left out."""

    def tell(self, what: str, why: str) -> None: ...


M = TypeVar("M", bound=Callable[..., None])


def never_raises(method: M) -> M:
    """A bug of ours, or a device without memory, must not end the training."""

    @functools.wraps(method)
    def guarded(self: Telling, *args: Any, **named: Any) -> None:
        try:
            method(self, *args, **named)
        except Exception as error:
            self.tell(method.__name__, f"{type(error).__name__}: {error}")

    return cast(M, guarded)


@dataclass(slots=True)
class _Place:
    """What there is to know of one tag before its tensor comes: worked out once."""

    tag: str
    held: Held
    """Which ranks have which part, where the tensor does not say so itself."""
    needs_sum: bool
    needs_zeros: bool
    has_row: bool
    has_counts: bool
    has_tensor: bool


class Gauge:
    """The tensors of one watch, measured."""

    def __init__(self, tap: Tap, settings: Settings, held: Mapping[str, Held]) -> None:
        self.step = 0
        self.collection = Collection()
        self.pictures: dict[str, Any] = {}
        """Tag to uint8 pixels."""
        self._tap = tap
        self._settings = settings
        self._held = held
        self._places: dict[tuple[str, str], _Place | None] = {}
        """By section and name; None for what is no tag."""
        self._groups: dict[tuple[str, Held], Group] = {}
        self._told: set[str] = set()

    def __bool__(self) -> bool:
        """Whether something was measured."""
        return bool(self.collection or self.pictures)

    def clear(self) -> None:
        self.collection.clear()
        self.pictures.clear()

    # -- statistics -------------------------------------------------------------------

    def measure(
        self,
        section: str,
        name: str,
        tensor: Any,
        *,
        like: Any = None,
        reference: reduce.Row | None = None,
        replace: bool = False,
    ) -> None:
        """Take the statistics of a tensor; `like` is one that is sharded as it is.

        One that cannot be measured, whatever the reason, leaves the others alone.
        """
        place = self._places.get((section, name)) or self._place(section, name)
        if place is None or place.tag in self._told:
            return
        try:
            local, held = local_part(tensor if like is None else like, place.held)
            if held is None:
                self.tell(place.tag, "it is a partial sum on each rank, not reduced yet")
            elif local is None or self._leaves_to_first(held):
                pass  # another rank has the same, and counts
            else:
                self._take(
                    place, section, held, local if like is None else tensor, reference, replace
                )
        except Exception as error:
            self.tell(place.tag, f"{type(error).__name__}: {error}")

    def _take(
        self,
        place: _Place,
        section: str,
        held: Held,
        tensor: Any,
        reference: reduce.Row | None,
        replace: bool,
    ) -> None:
        reason = reduce.why_not(tensor)
        if reason is not None:
            self.tell(place.tag, reason)
            return
        if place.has_row:
            row = reduce.moments(tensor, total=place.needs_sum, zeros=place.needs_zeros)
            if reference is not None:
                row = reduce.with_reference(row, reference)
            counts = reduce.bit_counts(tensor) if place.has_counts else None
            group = self._groups.get((section, held)) or self._group(section, held)
            self.collection.add(group, place.tag, row, counts, replace=replace)
        if place.has_tensor and tensor.numel():
            across = "merge" if held is Held.OWN else "rank0"
            self._tap.histogram(f"{place.tag}/tensor", tensor, self.step, across=across)

    def _place(self, section: str, name: str) -> _Place | None:
        if (section, name) in self._places:
            return None
        kinds, fields = self._settings.kinds[section], FIELDS[section]
        tag = f"{section}/{self._settings.prefix}{name}"
        place = None
        if self._is_tag(tag):
            has_counts = "histogram" in kinds
            is_parameter = section in PARAMETER_SECTIONS
            place = _Place(
                tag,
                self._held.get(name, Held.OWN) if is_parameter else Held.OWN,
                needs_sum=has_counts or "mean" in fields or "std" in fields,
                needs_zeros="moments" in kinds and "zeros" in fields,
                has_row=has_counts or "moments" in kinds,
                has_counts=has_counts,
                has_tensor="tensor" in kinds,
            )
        self._places[section, name] = place
        return place

    def _leaves_to_first(self, held: Held) -> bool:
        return held is Held.SAME and self._tap.rank != self._settings.first_rank

    def _group(self, section: str, held: Held) -> Group:
        first_alone = held is Held.SAME and self._settings.first_rank == 0
        group = self._groups[section, held] = Group(
            f"ranktap/watch/{self._settings.prefix}{section}/{held.name.lower()}",
            Across.RANK0 if first_alone else Across.MERGE,
            held is not Held.OWN,
            FIELDS[section] if "moments" in self._settings.kinds[section] else (),
        )
        return group

    # -- pictures ---------------------------------------------------------------------

    def draw_feature_maps(self, name: str, output: Any) -> None:
        """Draw a module's output; of several in a step the first."""
        settings = self._settings
        self._draw(
            f"feature_maps/{settings.prefix}{name}",
            lambda: pictures.feature_maps(
                output, settings.samples, settings.max_maps, settings.max_edge
            ),
        )

    def draw_kernels(self, name: str, weight: Any) -> None:
        """Draw a convolution's weight, once a step."""
        settings = self._settings
        tag = f"kernels/{settings.prefix}{name}"
        if not is_plain(weight):
            self.tell(tag, "a rank has only a shard of it, and a picture would need a collective")
            return
        self._draw(tag, lambda: pictures.kernels(weight, settings.max_maps, settings.max_edge))

    def _draw(self, tag: str, drawn: Callable[[], Any]) -> None:
        if tag in self.pictures or tag in self._told:
            return
        try:
            self.pictures[tag] = drawn()
        except ValueError as error:
            self.tell(tag, str(error))
        except Exception as error:
            self.tell(tag, f"{type(error).__name__}: {error}")

    # -- what is left out -------------------------------------------------------------

    def _is_tag(self, tag: str) -> bool:
        try:
            rules.check_tag(tag)
        except ValueError as error:
            self.tell(tag, str(error))
            return False
        if len(tag.encode()) > limits.TAG_BYTES - records.FIELD_BYTES:
            self.tell(tag, "its name is too long for a tag")
            return False
        return True

    def tell(self, what: str, why: str) -> None:
        """Say what is left out and why, once."""
        if what not in self._told and len(self._told) < TOLD_MAX:
            self._told.add(what)
            logger.warning("ranktap: watch leaves out %s: %s", what, why)
