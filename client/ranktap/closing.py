"""What is ended by hand or by the end of a `with` block: a tap, a watch, a hook's handle."""

from __future__ import annotations

from typing import Self


class Closing:
    """A context manager that does `_end` when its block ends, whatever the block did."""

    def _end(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self._end()
