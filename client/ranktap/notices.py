"""What a tap's sender tells the log: each thing once, however often it happens."""

from __future__ import annotations

import logging

logger = logging.getLogger("ranktap")

KEYS = 100
"""Of which it is remembered that they were told: a daemon chooses the words of its errors."""


class Notices:
    """Remembers what was told. Not thread safe."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def tell_once(self, key: str, text: str, *values: object) -> None:
        """Log a warning, unless one of that key was logged already."""
        if key not in self._told and len(self._told) < KEYS:
            self._told.add(key)
            logger.warning(text, *values)

    def forget(self, *keys: str) -> bool:
        """It is over: told again when it happens again. Whether any of them had been told."""
        known = not self._told.isdisjoint(keys)
        self._told.difference_update(keys)
        return known
