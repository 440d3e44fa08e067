"""Pictures of one tag and step from several ranks, until they become one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class RankPictures:
    """Pixels, uint8 (H, W, C), by rank."""

    by_rank: dict[int, NDArray[np.uint8]]

    @property
    def nbytes(self) -> int:
        """What it takes of the memory, about."""
        return sum(pixels.nbytes for pixels in self.by_rank.values())

    def merge(self, other: RankPictures) -> RankPictures:
        """This rank's and a higher rank's."""
        return RankPictures(self.by_rank | other.by_rank)

    def dump(self) -> dict[str, Any]:
        """All of it, msgpack-able."""
        return {
            "pictures": [
                [rank, list(pixels.shape), pixels.tobytes()]
                for rank, pixels in self.by_rank.items()
            ]
        }

    @classmethod
    def load(cls, dumped: dict[str, Any]) -> RankPictures:
        """What `dump` was taken of."""
        return cls(
            {
                rank: np.frombuffer(data, np.uint8).reshape(shape)
                for rank, shape, data in dumped["pictures"]
            }
        )
