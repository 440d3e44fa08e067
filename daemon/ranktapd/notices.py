"""What a run's worker tells the log: each thing once, however often it happens."""

from __future__ import annotations

import logging

logger = logging.getLogger("ranktapd")


class Notices:
    """Remembers what was told; so a tag that breaks a rule at every step takes one line."""

    def __init__(self) -> None:
        self._told: set[str] = set()
        self.limits_met: dict[str, str] = {}
        """By the setting's name, what those are told who have met it."""

    def tell(self, text: str) -> None:
        """Log a warning."""
        logger.warning("%(text)s", {"text": text})

    def tell_limit(self, setting: str, text: str) -> None:
        """Log that a limit was met, the first time."""
        self.limits_met.setdefault(setting, text)
        self.tell_once(f"limit {setting}", text)

    def tell_once(self, key: str, text: str) -> None:
        """Log a warning, unless one of that key was logged already."""
        if key not in self._told:
            self._told.add(key)
            logger.warning("%(text)s", {"text": text})
