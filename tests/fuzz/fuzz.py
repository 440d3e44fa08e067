"""A coverage-guided fuzzer, for a machine on which `atheris` is installed.

    python -m tests.fuzz.fuzz TARGET [-max_total_time=600] [libFuzzer's other options]
    python -m tests.fuzz.fuzz TARGET crash-...      one input again

TARGET is one of those in `targets`. It begins with the corpus beside this file and with
messages of every kind; what it finds besides goes to `tests/fuzz/found/TARGET` (or to
RANKTAP_FUZZ_FOUND), of which `keep` puts into the corpus what is worth keeping. What breaks
a promise is written to `crash-...` in the current directory (-artifact_prefix=), and goes
into the corpus by hand, with what mends it. `test_fuzzer` runs each target for a moment.

The last long run, on two busy cores (seconds of the wall; edges and features as libFuzzer
counts them, with the corpus as it is at the beginning, and at the end):

FIGURES
"""

from __future__ import annotations

import logging
import os
import random
import sys
from pathlib import Path

import atheris  # type: ignore[import-not-found]

with atheris.instrument_imports(include=["ranktap_wire", "ranktapd"]):
    from tests.fuzz import mutations, seeds, targets

HERE = Path(__file__).parent


def main() -> None:
    name, *options = sys.argv[1:]
    found = Path(os.environ.get("RANKTAP_FUZZ_FOUND", HERE / "found" / name))
    kept = HERE / "corpus" / name
    for directory in (found, kept):
        directory.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds.seeds(name)):
        (found / f"seed-{number:03}").write_bytes(seed)

    def change(data: bytes, max_bytes: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if data and rng.random() < 0.6:
            try:
                return mutations.mutate(name, data, rng)[:max_bytes]
            except Exception:  # a mutation for something that this is not
                pass
        mutated: bytes = atheris.Mutate(data, max_bytes)
        return mutated

    logging.disable(logging.CRITICAL)  # what is odd in a record is told there
    is_told = any(not option.startswith("-") for option in options)
    directories = [] if is_told else [str(found), str(kept)]
    atheris.Setup(
        [sys.argv[0], "-max_len=65536", *options, *directories],
        targets.TARGETS[name],
        custom_mutator=change,
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
