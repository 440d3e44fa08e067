"""One case of one side, in this process: prints its figures as JSON.

`python -m benchmarks.child CASE SIDE DIRECTORY [--smoke] [--profile DIRECTORY]`
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from functools import partial
from pathlib import Path

from benchmarks import rivals, tally, work
from benchmarks.cases import Figures
from benchmarks.registry import CASES


def measure(name: str, side: str, directory: Path) -> Figures:
    """Run it; the figures are those that the case has a unit for, and no others.

    Raises:
        RuntimeError: one is missing.
    """
    case = next(case for case in CASES if case.name == name)
    measured = case.sides[side](directory)
    if side == "ranktap" and set(case.units) - set(measured):
        raise RuntimeError(f"no figure for {', '.join(set(case.units) - set(measured))}")
    return {figure: measured[figure] for figure in case.units if figure in measured}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.child", description=__doc__)
    parser.add_argument("case")
    parser.add_argument("side")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--profile", type=Path)
    parser.add_argument("--python-rivals", type=Path, default=rivals.python)
    options = parser.parse_args()
    rivals.python = options.python_rivals
    if not options.smoke:
        # A training process has it, and its half a million objects for the garbage collector.
        importlib.import_module("torch")
    if options.profile is not None:
        from benchmarks.profiling import collect

        profile = collect.begin(options.profile, f"the training process ({options.side})")
        others = partial(collect.begin_others, options.profile)
        work.begin(smoke=options.smoke, profile=profile, before_first=others)
    else:
        work.begin(smoke=options.smoke)
    try:
        figures = measure(options.case, options.side, options.directory)
    except KeyboardInterrupt:
        return 130
    print(json.dumps({"figures": figures, "read back": tally.found}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
