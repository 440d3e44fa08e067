"""On what the figures were taken."""

from __future__ import annotations

import os
import platform
from datetime import date
from importlib.metadata import version
from pathlib import Path


def describe() -> dict[str, str]:
    """Date, processor, memory, kernel and the versions that matter."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    libraries = ("ranktap", "torch", "tensorboard", "numpy", "pyzmq", "isal")
    return {
        "date": date.today().isoformat(),
        "processor": f"{cpu}, {os.cpu_count()} cores",
        "memory": f"{memory_gib:.0f} GiB",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": ", ".join(f"{name} {version(name)}" for name in libraries),
    }
