"""Other libraries on the same work, in an interpreter of their own.

Each is used as its own documentation says is fast, without a network, and read back. Nothing
here imports ranktap, nor ranktap's environment these: `make bench-rivals` makes one for them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks import tally, work

DISTRIBUTIONS = {
    "tensorboardX": "tensorboardX",
    "wandb": "wandb",
    "trackio": "trackio",
    "swanlab": "swanlab",
    "mlflow": "mlflow",
    "aim": "aim",
}
"""Rival to the name that it is installed under."""

ROOT = Path(__file__).parents[2]
ENVIRONMENT = ROOT / ".venv-rivals" / "bin" / "python"
"""What `make bench-rivals` makes."""


def interpreter() -> Path:
    """Where rivals are looked for unless it is said otherwise."""
    return ENVIRONMENT if ENVIRONMENT.exists() else Path(sys.executable)


python = interpreter()
"""The interpreter of the rivals' sides."""


def installed(python: Path) -> dict[str, str]:
    """Rivals that this interpreter has, with their versions.

    Raises:
        OSError: it cannot be started, or does not do what a Python does.
    """
    program = (
        "import importlib.metadata as m, json, sys\n"
        "found = {}\n"
        "for name in sys.argv[1:]:\n"
        "    try: found[name] = m.version(name)\n"
        "    except m.PackageNotFoundError: pass\n"
        "print(json.dumps(found))"
    )
    said = subprocess.run(
        [python, "-c", program, *DISTRIBUTIONS.values()], capture_output=True, text=True
    )
    if said.returncode != 0:
        raise OSError(f"{python}: {said.stderr.strip().splitlines()[-1:]}")
    versions: dict[str, str] = json.loads(said.stdout)
    return {rival: versions[name] for rival, name in DISTRIBUTIONS.items() if name in versions}


def elsewhere(rival: str, job: str) -> Callable[[Path], dict[str, float]]:
    """A side that is a rival's, in the rivals' interpreter."""

    def side(directory: Path) -> dict[str, float]:
        command = [str(python), "-m", "benchmarks.rivals.child", rival, job, str(directory)]
        with subprocess.Popen(
            [*command, *(["--smoke"] if work.many(0, 1) else [])],
            stdout=subprocess.PIPE,
            cwd=ROOT,
        ) as process:
            try:
                said, _ = process.communicate()
            except BaseException:
                process.terminate()
                raise
        if process.returncode != 0:
            raise RuntimeError(f"{rival} ended with status {process.returncode}")
        told = json.loads(said.splitlines()[-1])
        tally.note(told["read back"])
        figures: dict[str, float] = told["figures"]
        return figures

    return side
