"""Figures to a table."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.cases import Case
from benchmarks.registry import CASES

Runs = dict[str, dict[str, list[float]]]
"""Side to figure to one value a round."""


def table(results: dict[str, Runs]) -> str:
    """Markdown: a row a figure, medians with the smallest and largest, the ratio, the target."""
    lines = [
        "| what | ranktap | torch's SummaryWriter | ratio | at least | met |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for case in CASES:
        if case.name in results:
            lines += [_row(case, figure, results[case.name]) for figure in case.units]
    return "\n".join(lines) + "\n"


def _row(case: Case, figure: str, runs: Runs) -> str:
    unit = case.units[figure]
    ours = runs["ranktap"][figure]
    rival = runs.get("torch", {}).get(figure, [])
    kind, bound = case.targets.get(figure, ("", 0.0))
    ratio, target, met = "", "", ""
    if rival:
        # Pair by pair: the machine's speed drifts, and both of a pair saw the same.
        pairs = [
            (ours_now / rival_now if case.higher_is_better else rival_now / ours_now)
            for ours_now, rival_now in zip(ours, rival, strict=True)
        ]
        ratio = f"{statistics.median(pairs):.0f} ({min(pairs):.0f} to {max(pairs):.0f})"
        if kind == "times":
            target, met = f"{bound:g} times", _met(statistics.median(pairs) >= bound)
    if kind == "below":
        target, met = f"below {bound:g} {unit}", _met(statistics.median(ours) < bound)
    what = f"{case.what}, {figure}" if len(case.units) > 1 else case.what
    return (
        f"| {what} | {_spread(ours, unit)} | {_spread(rival, unit)} | {ratio} | {target} | {met} |"
    )


def _met(met: bool) -> str:
    return "yes" if met else "**no**"


def _spread(values: list[float], unit: str) -> str:
    if not values:
        return ""
    low, middle, high = (
        _number(value) for value in (min(values), statistics.median(values), max(values))
    )
    return f"{middle} {unit} ({low} to {high})"


def _number(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def page(machine: dict[str, str], rounds: int, results: dict[str, Runs], notes: str) -> str:
    """`docs/benchmarks.md`."""
    taken = "\n".join(f"- {name}: {value}" for name, value in machine.items())
    return (
        "# Benchmarks\n\n"
        "Made by `make bench`. Each figure is the median of "
        f"{rounds} rounds (smallest to largest); each side of each round is a process of its own, "
        "and the sides take turns, so that a machine whose speed drifts is fair to both. What was "
        "logged is read back with TensorBoard's reader and counted. *Tight loop*: calls without a "
        "pause. *Paced*: bursts with 50 ms between, as training leaves.\n\n"
        f"{taken}\n\n{table(results)}\n{notes}"
    )


def as_json(machine: dict[str, str], results: dict[str, Runs]) -> dict[str, Any]:
    return {"machine": machine, "results": results}
