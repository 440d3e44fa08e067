"""A coverage-guided fuzzer, for a machine on which `atheris` is installed.

    python -m tests.fuzz.fuzz TARGET [-max_total_time=600] [libFuzzer's other options]
    python -m tests.fuzz.fuzz TARGET crash-...      one input again

TARGET is one of those in `targets`. It begins with the corpus beside this file and with
messages of every kind; what it finds besides goes to `tests/fuzz/found/TARGET` (or to
RANKTAP_FUZZ_FOUND), of which `keep` puts into the corpus what is worth keeping. What breaks
a promise is written to `crash-...` in the current directory (-artifact_prefix=), and goes
into the corpus by hand, with what mends it. `test_fuzzer` runs each target for a moment.

The last long run, in November 2026, with atheris 3.0.0 on a core that had other work too. Edges
and features are libFuzzer's: those that the corpus has to begin with, and those in the end.

    target    seconds   inputs    edges          features       found
    wire          661   377,872     521    532    1,300  1,415  nothing
    answer        301   455,322      54     58       54     58  nothing
    fold          661   571,594   1,385  1,403    2,714  2,874  nothing; 2 inputs into the corpus
    journal       661   112,584     178    178      438    549  nothing

That it would find something: with a check of one of a hello's fields taken out of the product, it
took less than a minute.
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
