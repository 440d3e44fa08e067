"""The coverage-guided fuzzer itself, on each target for a moment: that it sees, and finds nothing.

`fuzz` says how to run it for longer, and what came of that.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS
from tests.support.rank_program import ROOT

RUNS = {"wire": 3_000, "answer": 3_000, "fold": 800, "journal": 400}
EDGES = {"wire": 400, "answer": 40, "fold": 1_000, "journal": 120}
"""Of the product's code, that its corpus runs through: without them it is blind."""

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None,
    reason="atheris, the coverage-guided fuzzer, is not installed (wheels: Linux on x86-64)",
)


@pytest.mark.parametrize("target", TARGETS)
def test_the_fuzzer_sees_the_code_and_breaks_no_promise(target: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable, "-m", "tests.fuzz.fuzz", target, f"-runs={RUNS[target]}", "-seed=1",
            "-timeout=10", f"-artifact_prefix={tmp_path}/",
        ],
        cwd=ROOT, env=os.environ | {"RANKTAP_FUZZ_FOUND": str(tmp_path / "found")},
        capture_output=True, text=True, errors="replace", timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("*-*")) == []
    begun = re.search(r"INITED cov: (\d+)", done.stderr)
    ended = re.search(r"Done (\d+) runs in", done.stderr)
    assert begun is not None and ended is not None, done.stderr
    assert int(begun[1]) >= EDGES[target]
    assert int(ended[1]) >= RUNS[target]
