"""What `tap.watch` is asked for, checked: all that can be said without looking at the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ranktap import names
from ranktap.collect import FIELDS
from ranktap_wire import rules

KINDS: Final = ("moments", "histogram", "tensor")


@dataclass(frozen=True, slots=True)
class Settings:
    """How a watch measures, whatever the model."""

    every: int
    kinds: Mapping[str, frozenset[str]]
    """Section to "moments", "histogram", "tensor"."""
    samples: int
    max_maps: int
    max_edge: int
    prefix: str
    """Of names in tags, with its "/"; empty for none."""
    has_optimizer: bool
    first_rank: int
    """The lowest rank that takes part."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The arguments of `Tap.watch`."""

    settings: Settings
    include: tuple[str, ...] | None
    exclude: tuple[str, ...] | None
    feature_maps: object
    """As given: what it means is a question to the model. So with `kernels`."""
    kernels: object
    ranks: set[int]
    optimizers: tuple[Any, ...] | None
    """Those that are named; empty for all there are, None for none at all."""


def check(given: Mapping[str, Any], world_size: int) -> Asked:
    """The keyword arguments of `Tap.watch`.

    Raises:
        TypeError, ValueError: one is not of the form that `Tap.watch` says; it is named.
    """
    ranks = _ranks(given["ranks"], world_size)
    optimizers = _optimizers(given["optimizer"])
    settings = Settings(
        every=_whole("every", given["every"]),
        kinds={section: _kinds(section, given[section]) for section in FIELDS},
        samples=_whole("samples", given["samples"]),
        max_maps=_whole("max_maps", given["max_maps"]),
        max_edge=_whole("max_edge", given["max_edge"]),
        prefix=_prefix(given["name"]),
        has_optimizer=optimizers is not None,
        first_rank=min(ranks),
    )
    return Asked(
        settings,
        names.patterns(given["include"], "include"),
        names.patterns(given["exclude"], "exclude"),
        given["feature_maps"],
        given["kernels"],
        ranks,
        optimizers,
    )


def _kinds(section: str, given: object) -> frozenset[str]:
    kinds = (given,) if isinstance(given, str) else given
    if kinds is None:
        kinds = ()
    if not isinstance(kinds, Sequence | set | frozenset) or not all(
        isinstance(kind, str) for kind in kinds
    ):
        raise TypeError(f"{section}: expected some of {KINDS}, got {given!r}")
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(f"{section}: expected some of {KINDS}, got {kind!r}")
    return frozenset(kinds)


def _whole(argument: str, given: object) -> int:
    number = rules.check_step(given, argument)
    if number < 1:
        raise ValueError(f"{argument}: expected a whole number from 1 on, got {number}")
    return number


def _prefix(given: object) -> str:
    if not isinstance(given, str):
        raise TypeError(f"name: expected a string, got {type(given).__name__}")
    return rules.check_tag(given) + "/" if given else ""


def _ranks(given: object, world_size: int) -> set[int]:
    if isinstance(given, str):
        if given != "all":
            raise ValueError(f"ranks: expected 'all', a rank or several, got {given!r}")
        return set(range(world_size))
    several = given if isinstance(given, Sequence | set | frozenset | range) else (given,)
    ranks = {rules.check_step(rank, "ranks") for rank in several}
    if not ranks or not all(0 <= rank < world_size for rank in ranks):
        raise ValueError(f"ranks: expected ranks from 0 to {world_size - 1}, got {sorted(ranks)}")
    return ranks


def _optimizers(given: Any) -> tuple[Any, ...] | None:
    if given is None:
        return ()
    if given is False:
        return None
    several = tuple(given) if isinstance(given, Sequence | set | frozenset) else (given,)
    for optimizer in several:
        if not hasattr(optimizer, "register_step_post_hook"):
            raise TypeError(
                "optimizer: expected a torch.optim.Optimizer, several, None or False, "
                f"got {type(optimizer).__name__}"
            )
    return several or None
