"""Figures to tables, and tables to a page."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.cases import Case
from benchmarks.registry import CASES, GROUPS
from benchmarks.runner import Results, Runs

NAMES = {
    "torch": "torch's SummaryWriter",
    "mlflow": "MLflow",
    "aim": "Aim",
}
"""What a side is called where its own name is not enough."""


def tables(results: dict[str, Runs], rivals: dict[str, str]) -> str:
    """The tables of all groups that something was measured of."""
    made = (table(group, results, rivals) for group in GROUPS)
    return "\n".join(text for text in made if text)


def table(group: str, results: dict[str, Runs], rivals: dict[str, str]) -> str:
    """Markdown; "" where nothing of the group was measured."""
    cases = [case for case in CASES if case.group == group and results.get(case.name)]
    if not cases:
        return ""
    match group:
        case "hooks":
            return _hooks(cases, results, rivals)
        case "rivals":
            return "\n".join(_libraries(case, results[case.name], rivals) for case in cases)
    beside = "beside it" if group == "parts" else NAMES["torch"]
    lines = [
        f"| what | ranktap | {beside} | ratio | at least | met |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for case in cases:
        lines += [_row(case, figure, results[case.name]) for figure in case.units]
    return "\n".join(lines) + "\n"


def _row(case: Case, figure: str, runs: Runs) -> str:
    """A figure beside the one other side that the case has: medians with the smallest and
    largest, the ratio, the target."""
    unit = case.units[figure]
    ours = runs.get("ranktap", {}).get(figure, [])
    other = next((side for side in case.sides if side != "ranktap"), "")
    theirs = runs.get(other, {}).get(figure, [])
    kind, bound = case.targets.get(figure, ("", 0.0))
    ratio, target, met = "", "", ""
    # Of per cent of a step there is none: both may be next to nothing.
    if ours and theirs and unit != "%":
        pairs = _ratios(ours, theirs, higher_is_better=_higher(case, unit))
        ratio = " ".join((_number(statistics.median(pairs)), _range(pairs, _number)))
        if kind == "times":
            target, met = f"{bound:g} times", _met(statistics.median(pairs) >= bound)
    if ours and kind in ("below", "above"):
        middle = statistics.median(ours)
        target, met = (
            _target(kind, bound, unit),
            _met(middle < bound if kind == "below" else middle >= bound),
        )
    what = f"{case.what}, {figure}" if len(case.units) > 1 else case.what
    beside = _spread(theirs, unit)
    if beside and other not in ("torch", "bare"):
        beside = f"{NAMES.get(other, other)}: {beside}"
    return f"| {what} | {_spread(ours, unit)} | {beside} | {ratio} | {target} | {met} |"


def _higher(case: Case, unit: str) -> bool:
    """Whether more of this unit is better: of what is counted by the second, it is."""
    return case.higher_is_better and unit.endswith("/s")


def _ratios(ours: list[float], theirs: list[float], *, higher_is_better: bool) -> list[float]:
    """How many times better, pair by pair: the machine's speed drifts, and both of a pair saw the
    same. Of all together, where one of them has failed in some round."""
    if len(ours) != len(theirs):
        ours, theirs = [statistics.median(ours)], [statistics.median(theirs)]
    pairs = zip(ours, theirs, strict=True)
    return [mine / other if higher_is_better else other / mine for mine, other in pairs]


def _hooks(cases: list[Case], results: dict[str, Runs], rivals: dict[str, str]) -> str:
    """What watching costs: the others have a column each, and figures of a step are per cent of
    it, which have no ratio."""
    wandb = f" ({rivals['wandb']})" if "wandb" in rivals else ""
    lines = [
        f"| what | ranktap | SummaryWriter by hand | wandb.watch, offline{wandb} | target | met |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for case in cases:
        runs = results[case.name]
        for figure, unit in case.units.items():
            sides = {
                side: _spread(runs.get(side, {}).get(figure, []), unit)
                for side in ("ranktap", "torch", "wandb")
            }
            if "wandb" in case.sides and "wandb" not in rivals:
                sides["wandb"] = "not installed"
            kind, bound = case.targets.get(figure, ("", 0.0))
            target, met = "", ""
            ours = runs.get("ranktap", {}).get(figure, [])
            if kind == "below" and ours:
                target, met = _target(kind, bound, unit), _met(statistics.median(ours) < bound)
            what = f"{case.what}: {figure}"
            lines.append(f"| {what} | {' | '.join(sides.values())} | {target} | {met} |")
    return "\n".join(lines) + "\n"


def _libraries(case: Case, runs: Runs, rivals: dict[str, str]) -> str:
    """A row a library, and how many times as long as ranktap it takes."""
    figures = " | ".join(f"{figure} | times" for figure in case.units)
    lines = [f"| {case.what} | {figures} |", f"| --- |{' --- | --- |' * len(case.units)}"]
    for side in case.sides:
        name = f"{NAMES.get(side, side)} {rivals.get(side, '')}".strip()
        if side not in runs:
            lines.append(f"| {name} | not installed |{' |' * (2 * len(case.units) - 1)}")
            continue
        cells = []
        for figure, unit in case.units.items():
            ours, theirs = runs.get("ranktap", {}).get(figure, []), runs[side].get(figure, [])
            times = _ratios(ours, theirs, higher_is_better=False) if ours and theirs else []
            cells += [_spread(theirs, unit), _number(statistics.median(times)) if times else ""]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _target(kind: str, bound: float, unit: str) -> str:
    return f"below {bound:g} {unit}" if kind == "below" else f"{_number(bound)} {unit}"


def _met(met: bool) -> str:
    return "yes" if met else "**no**"


def _spread(values: list[float], unit: str) -> str:
    if not values:
        return ""
    return f"{_number(statistics.median(values))} {unit} {_range(values, _number)}"


def _range(values: list[float], shown: Any) -> str:
    return f"({shown(min(values))} to {shown(max(values))})"


def _number(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


# -- the page ---------------------------------------------------------------------------------


def page(
    machine: dict[str, str], rounds: int, results: dict[str, Runs], rivals: dict[str, str], old: str
) -> str:
    """`docs/benchmarks.md`: tables of groups that were not measured are kept of the old one, and
    so are the notes."""
    taken = "\n".join(f"- {name}: {value}" for name, value in machine.items() if value)
    taken = f"{taken}\n- rounds: {rounds}\n"
    parts = [f"# Benchmarks\n\n{INTRODUCTION}\n"]
    for group, (title, introduction) in HEADINGS.items():
        made = table(group, results, rivals)
        text = f"{taken}\n{made}" if made else _between(old, _begins(group), _ENDS)
        parts.append(f"## {title}\n\n{introduction}\n\n{_begins(group)}{text}{_ENDS}")
    return "\n".join(parts) + f"\n{NOTES}{old.partition(NOTES)[2]}"


INTRODUCTION = (
    "Made by `make bench` (`make bench ARGS='--list'` says what there is). Each figure is the "
    "median of several rounds (smallest to largest); each side of each round is a process of its "
    "own, and the sides take turns, so that a machine whose speed drifts is fair to both. What was "
    "logged is read back and counted. *Tight loop*: calls without a pause. *Paced*: bursts with "
    "50 ms between, as training leaves."
)
HEADINGS = {
    "logging": ("Logging", "What has a target. `make bench`."),
    "hooks": (
        "Hooks",
        "A ResNet-18-size model on one CPU thread: a watched step against one of a copy of it that "
        "is not, in turns in the same process, as per cent of a step. *More CPU time* is that of "
        "the training thread alone. `make bench`.",
    ),
    "rivals": (
        "Other libraries",
        "The same work through the call that each library's documentation names for it: several "
        "values in one dict where there is such a call, without a network, each read back. "
        "*Times*: how many times as long as ranktap takes. *And close*: with what it takes until "
        "all is written, by the piece. `make bench-rivals` installs them, in an environment of "
        "their own, and `make bench ARGS='--group rivals'` measures them.",
    ),
    "sizes": (
        "How it grows",
        "`make bench ARGS='--group sizes'`. A record has at most 64 MiB, 16 million float32: of "
        "more values `watch` makes a histogram where the tensor is.",
    ),
    "parts": (
        "The parts, each beside its bound",
        "`make bench ARGS='--group parts'`. *Beside it*: the same bytes through a plain file, "
        "through a bare pyzmq echo; SummaryWriter where there is nothing nearer.",
    ),
}
NOTES = "<!-- notes: kept when the tables are made again -->"
_ENDS = "<!-- end of table -->\n"


def _begins(name: str) -> str:
    return f"<!-- table: {name} -->\n"


def _between(text: str, first: str, last: str) -> str:
    return text.partition(first)[2].partition(last)[0]


def as_json(machine: dict[str, str], rounds: int, results: Results) -> dict[str, Any]:
    return {
        "machine": machine,
        "rounds": rounds,
        "results": results.runs,
        "read back": results.read_back,
        "failures": results.failures,
    }
