"""Figures to a table."""

from __future__ import annotations

import statistics
from importlib.metadata import version
from typing import Any

from benchmarks.cases import Case
from benchmarks.registry import CASES, can_run
from benchmarks.watch_cases import WATCH_CASES

SIDES = ("ranktap", "torch", "wandb")

Runs = dict[str, dict[str, list[float]]]
"""Side to figure to one value a round."""


def table(results: dict[str, Runs]) -> str:
    """Markdown: a row a figure, medians with the smallest and largest, the ratio, the target."""
    lines = [
        "| what | ranktap | torch's SummaryWriter | ratio | at least | met |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for case in CASES:
        if case.name in results and case not in WATCH_CASES:
            lines += [_row(case, figure, results[case.name]) for figure in case.units]
    return "\n".join(lines) + "\n"


def hooks_table(results: dict[str, Runs]) -> str:
    """The same for what watching costs, where the rivals have a column each and figures of a
    step are per cent of it, which have no ratio."""
    wandb = f" ({version('wandb')})" if can_run("wandb") else ""
    lines = [
        f"| what | ranktap | SummaryWriter by hand | wandb.watch, offline{wandb} | target | met |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for case in WATCH_CASES:
        runs = results.get(case.name, {})
        for figure, unit in case.units.items() if runs else ():
            sides = {side: _spread(runs.get(side, {}).get(figure, []), unit) for side in SIDES}
            if "wandb" in case.sides and not can_run("wandb"):
                sides["wandb"] = "not installed"
            kind, bound = case.targets.get(figure, ("", 0.0))
            target, met = "", ""
            if kind == "below":
                target = f"below {bound:g} {unit}"
                met = _met(statistics.median(runs["ranktap"][figure]) < bound)
            what = f"{case.what}: {figure}"
            lines.append(f"| {what} | {' | '.join(sides.values())} | {target} | {met} |")
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
    if kind == "above":
        target, met = f"{_number(bound)} {unit}", _met(statistics.median(ours) >= bound)
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


def page(machine: dict[str, str], rounds: int, results: dict[str, Runs], old: str) -> str:
    """`docs/benchmarks.md`: what none of the cases that ran belongs to is kept of the old one."""
    taken = "\n".join(f"- {name}: {value}" for name, value in machine.items())
    taken = f"{taken}\n- rounds: {rounds}\n"
    watched = {case.name for case in WATCH_CASES}
    tables = {
        "logging": table(results) if set(results) - watched else "",
        "hooks": hooks_table(results) if set(results) & watched else "",
    }
    parts = {
        name: f"{taken}\n{made}" if made else _between(old, _begins(name), _ENDS)
        for name, made in tables.items()
    }
    return (
        f"# Benchmarks\n\n{INTRODUCTION}\n\n"
        f"{_begins('logging')}{parts['logging']}{_ENDS}\n"
        f"## Hooks\n\n{HOOKS_INTRODUCTION}\n\n"
        f"{_begins('hooks')}{parts['hooks']}{_ENDS}\n"
        f"{NOTES}{old.partition(NOTES)[2]}"
    )


INTRODUCTION = (
    "Made by `make bench`. Each figure is the median of several rounds (smallest to largest); each "
    "side of each round is a process of its own, and the sides take turns, so that a machine whose "
    "speed drifts is fair to both. What was logged is read back and counted. *Tight loop*: calls "
    "without a pause. *Paced*: bursts with 50 ms between, as training leaves."
)
HOOKS_INTRODUCTION = (
    "A ResNet-18-size model on one CPU thread: a watched step against one of a copy of it that is "
    "not, in turns in the same process, as per cent of a step. *More CPU time* is that of the "
    "training thread alone."
)
NOTES = "<!-- notes: kept when the tables are made again -->"
_ENDS = "<!-- end of table -->\n"


def _begins(name: str) -> str:
    return f"<!-- table: {name} -->\n"


def _between(text: str, first: str, last: str) -> str:
    return text.partition(first)[2].partition(last)[0]


def as_json(machine: dict[str, str], results: dict[str, Runs]) -> dict[str, Any]:
    return {"machine": machine, "results": results}
