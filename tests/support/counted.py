"""What runs, counted: the same on every machine, however busy it is."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from types import FrameType
from typing import Any


class Calls:
    """Functions of Python, and of C, that ran in this thread."""

    def __init__(self, act: Callable[[], object]) -> None:
        self.python = 0
        self.c: Counter[object] = Counter()
        sys.setprofile(self._count)
        try:
            act()
        finally:
            sys.setprofile(None)
        self.python -= 1  # `act` itself
        del self.c[sys.setprofile]

    def _count(self, frame: FrameType, event: str, function: Any) -> None:
        if event == "call":
            self.python += 1
        elif event == "c_call":
            self.c[function] += 1
