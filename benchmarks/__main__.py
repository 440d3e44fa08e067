"""python -m benchmarks: measure, print the table, and write it where asked."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import machine, report
from benchmarks.registry import CASES, PACKAGES, can_run, left_out
from benchmarks.report import Runs

TIMEOUT_S = 600


def main() -> int:
    options = _options()
    results: dict[str, Runs] = {case.name: {} for case in CASES if case.name in options.cases}
    chosen = [case for case in CASES if case.name in results]
    for case in chosen:
        for side in left_out(case):
            print(
                f"{case.name}: {side} is left out, as {PACKAGES[side]} is not installed",
                file=sys.stderr,
            )
    total = options.rounds * sum(len(case.sides) - len(left_out(case)) for case in chosen)
    done = 0
    for round_number in range(options.rounds):
        for case in chosen:
            # A B, then B A: what one leaves behind is not always the same side's burden.
            sides = [side for side in case.sides if can_run(side)]
            for side in sides if round_number % 2 == 0 else reversed(sides):
                done += 1
                print(f"[{done}/{total}] {case.name}: {side}", file=sys.stderr, flush=True)
                for figure, value in _measure(case.name, side, options.directory).items():
                    results[case.name].setdefault(side, {}).setdefault(figure, []).append(value)
    print(report.table(results), report.hooks_table(results), sep="\n")
    if options.json:
        options.json.write_text(json.dumps(report.as_json(machine.describe(), results), indent=1))
    if options.page:
        old = options.page.read_text() if options.page.exists() else ""
        options.page.write_text(report.page(machine.describe(), options.rounds, results, old))
    return 0


def _measure(case: str, side: str, parent: Path | None) -> dict[str, float]:
    directory = Path(tempfile.mkdtemp(prefix="ranktap-bench-", dir=parent))
    try:
        child = subprocess.run(
            [sys.executable, "-m", "benchmarks.child", case, side, str(directory)],
            stdout=subprocess.PIPE,
            timeout=TIMEOUT_S,
            check=True,
        )
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    figures: dict[str, float] = json.loads(child.stdout.splitlines()[-1])
    return figures


def _options() -> argparse.Namespace:
    names = [case.name for case in CASES]
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add = parser.add_argument
    add("cases", nargs="*", metavar="CASE", default=names, help=f"of {', '.join(names)} (all)")
    add("--rounds", type=int, default=5, help="times that each side runs (5)")
    add("--directory", type=Path, help="where to write while measuring (the system's own)")
    add("--json", type=Path, metavar="FILE", help="all values")
    add("--page", type=Path, metavar="FILE", help="docs/benchmarks.md: the tables of these cases")
    options = parser.parse_args()
    for name in options.cases:
        if name not in names:
            parser.error(f"CASE: expected one of {', '.join(names)}, got {name!r}")
    return options


if __name__ == "__main__":
    sys.exit(main())
