"""One job of one rival, in this process, without a network: prints its figures as JSON.

`python -m benchmarks.rivals.child RIVAL JOB DIRECTORY [--smoke]`
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
from pathlib import Path

from benchmarks import tally, work
from benchmarks.rivals import library

STEPS = {"mlflow": 1_000, "aim": 2_000}
"""Steps in a tight loop, where 10,000 would take minutes."""

JOBS = ("scalars", "images", "histograms", "watch")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rivals.child", description=__doc__)
    parser.add_argument("rival")
    parser.add_argument("job", choices=JOBS)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    work.begin(smoke=options.smoke)
    # Settings, caches and logs of theirs belong to the measurement, and go when it ends.
    os.environ |= {
        "HOME": str(options.directory), "XDG_CACHE_HOME": str(options.directory / "cache"),
        "WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false", "SWANLAB_MODE": "offline",
        "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1",
    }  # fmt: skip
    os.chdir(options.directory)
    module = importlib.import_module(f"benchmarks.rivals.{options.rival.lower()}")
    if options.job == "watch":
        figures = module.watch(options.directory)
    else:
        opened: library.Library = module.Library(options.directory)
        match options.job:
            case "scalars":
                steps = work.many(STEPS.get(options.rival, 10_000), 20)
                figures = library.scalars(opened, steps)
            case "images":
                figures = library.images(opened, work.many(20, 2))
            case "histograms":
                figures = library.histograms(opened, work.many(20, 2))
    print(json.dumps({"figures": figures, "read back": tally.found}))


if __name__ == "__main__":
    main()
