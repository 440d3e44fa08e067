"""python -m benchmarks: measure, print the tables, and write them where asked."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from benchmarks import machine, registry, report, rivals, runner

INTERRUPTED = 130


def main() -> int:
    parser = _parser()
    options = parser.parse_args()
    if options.list:
        print(listing())
        return 0
    try:
        cases = registry.choose(options.cases, options.group)
        rivals.python = options.python_rivals
        known = rivals.installed(rivals.python)
    except (registry.UnknownError, OSError) as error:
        parser.error(str(error))
    if options.rounds < 1:
        parser.error(f"--rounds: expected 1 or more, got {options.rounds}")
    parts = registry.incomplete_groups(cases)
    if options.page and (parts or options.smoke):
        what = (
            "figures of --smoke are none"
            if options.smoke
            else f"not all of {', '.join(parts)} was asked for"
        )
        parser.error(f"--page writes whole tables, and {what}")
    for case in cases:
        for side in registry.left_out(case, known):
            _tell(f"{case.name}: {side} is left out: not in {rivals.python} (make bench-rivals)")
    if options.json:
        # Now, and not when all has been measured.
        options.json.parent.mkdir(parents=True, exist_ok=True)
    planned = [*runner.turns(cases, options.rounds, known)]
    try:
        results = runner.run(
            planned, options.rounds, directory=options.directory, smoke=options.smoke, tell=_tell
        )
    except KeyboardInterrupt:
        _tell("interrupted; nothing is written")
        return INTERRUPTED
    about = machine.describe() | {"rivals": ", ".join(f"{name} {known[name]}" for name in known)}
    print(report.tables(results.runs, known))
    if options.json:
        options.json.write_text(
            json.dumps(report.as_json(about, options.rounds, results), indent=1)
        )
    if options.page:
        old = options.page.read_text() if options.page.exists() else ""
        options.page.write_text(report.page(about, options.rounds, results.runs, known, old))
    if results.failures:
        _tell(f"failed: {', '.join(results.failures)}")
        return 1
    return 0


def listing() -> str:
    """Every case with its sides, by group."""
    lines = []
    for group, what in registry.GROUPS.items():
        usual = " (by default)" if group in registry.DEFAULT_GROUPS else ""
        lines.append(f"{group}{usual}: {what}")
        lines += [
            f"  {case.name:22} {case.what}; {', '.join(case.sides)}"
            for case in registry.CASES
            if case.group == group
        ]
    return "\n".join(lines)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add = parser.add_argument
    usual = " and ".join(registry.DEFAULT_GROUPS)
    add("cases", nargs="*", metavar="CASE", help="names or patterns such as 'image*' (see --list)")
    add("--list", action="store_true", help="say which cases there are, and end")
    add(
        "--group",
        action="append",
        default=[],
        metavar="GROUP",
        help=f"all, or one of {', '.join(registry.GROUPS)} ({usual})",
    )
    add("--rounds", type=int, default=3, help="times that each side runs (3)")
    add("--directory", type=Path, help="where to write while measuring (the system's own)")
    add("--json", type=Path, metavar="FILE", help="all values, and what was read back")
    add("--page", type=Path, metavar="FILE", help="docs/benchmarks.md: the tables of these groups")
    add(
        "--python-rivals",
        type=Path,
        default=rivals.python,
        metavar="PYTHON",
        help=f"an interpreter that has other libraries ({rivals.python})",
    )
    add("--smoke", action="store_true", help="a little of each, to see that it works: no figures")
    return parser


if __name__ == "__main__":
    sys.exit(main())
