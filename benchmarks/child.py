"""One case of one side, in this process: prints its figures as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.registry import CASES

if __name__ == "__main__":
    name, side, directory = sys.argv[1:]
    case = next(case for case in CASES if case.name == name)
    print(json.dumps(case.sides[side](Path(directory))))
