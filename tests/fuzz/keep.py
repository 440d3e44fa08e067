"""Put into the corpus what of a fuzzer's finds runs code that nothing in it has run yet.

    python -m tests.fuzz.keep TARGET

The smallest first. (libFuzzer's own -merge finds no coverage in code that is Python.)
"""

from __future__ import annotations

import hashlib
import logging
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from tests.fuzz import seeds
from tests.fuzz.targets import TARGETS, Target

HERE = Path(__file__).parent
LARGEST_BYTES = 4_096
"""What is larger says the same at greater length."""

Arc = tuple[str, int, int]
"""A file, and two lines of it, one run behind the other."""


def arcs_of(target: Target, data: bytes) -> set[Arc]:
    """What the product runs of its own code with this input."""
    arcs: set[Arc] = set()
    before: dict[int, int] = {}

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        file = frame.f_code.co_filename
        if "/ranktap_wire/" not in file and "/ranktapd/" not in file:
            return None
        return trace_lines(frame, event, argument)

    def trace_lines(frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line":
            last = before.get(id(frame), 0)
            arcs.add((frame.f_code.co_filename, last, frame.f_lineno))
            before[id(frame)] = frame.f_lineno
        elif event == "return":
            before.pop(id(frame), None)
        return trace_lines

    sys.settrace(trace)
    try:
        target(data)
    finally:
        sys.settrace(None)
    return arcs


def main() -> None:
    name = sys.argv[1]
    logging.disable(logging.CRITICAL)
    kept = HERE / "corpus" / name
    kept.mkdir(parents=True, exist_ok=True)
    known: set[Arc] = set()
    with np.errstate(all="ignore"):
        for data in [*seeds.seeds(name), *(path.read_bytes() for path in kept.iterdir())]:
            known |= arcs_of(TARGETS[name], data)
        found = [path.read_bytes() for path in (HERE / "found" / name).iterdir()]
        for data in sorted(found, key=len):
            arcs = arcs_of(TARGETS[name], data) if len(data) <= LARGEST_BYTES else set()
            if arcs - known:
                known |= arcs
                (kept / hashlib.sha1(data).hexdigest()[:16]).write_bytes(data)
    print(f"{name}: {len([*kept.iterdir()])} inputs, {len(known)} pairs of lines")


if __name__ == "__main__":
    main()
