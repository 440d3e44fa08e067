"""Lines that strangers cause: some at once, then one now and then, and the rest as a number."""

from __future__ import annotations

import logging
from collections.abc import Mapping

logger = logging.getLogger("ranktapd")

BURST_LINES = 10
"""At once: enough to see what several peers do wrong."""
LINE_EVERY_S = 10.0
"""After that. 8,640 lines a day: a log host keeps them for years and they can still be read."""


class LogBudget:
    """Warnings about one kind of thing. `now` is a monotonic clock, in seconds."""

    def __init__(self) -> None:
        self._lines = float(BURST_LINES)
        self._since = 0.0
        self._left_out = 0

    def warning(self, now: float, text: str, values: Mapping[str, object]) -> None:
        """Log the line, whose values are named, or count it."""
        self._lines = min(BURST_LINES, self._lines + (now - self._since) / LINE_EVERY_S)
        self._since = now
        if self._lines < 1:
            self._left_out += 1
            return
        self._lines -= 1
        if self._left_out:
            text += " (and %(left_out)d more like it before)"
            values = {**values, "left_out": self._left_out}
            self._left_out = 0
        logger.warning(text, *([values] if values else []))  # an empty dict would be a value
