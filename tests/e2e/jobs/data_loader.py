"""A rank whose DataLoader has workers that see its tap. Argument: the endpoint."""

from __future__ import annotations

import sys

import torch
from torch.utils.data import DataLoader, Dataset

import ranktap

tap = ranktap.init("loader", endpoint=sys.argv[1], rank=0, world_size=1)


class Numbers(Dataset[torch.Tensor]):
    """0 to 127; whoever reads one logs it, which must come to nothing in a worker."""

    def __len__(self) -> int:
        return 128

    def __getitem__(self, index: int) -> torch.Tensor:
        tap.scalar("sum", -1.0, index)
        tap.image("image", torch.zeros(3, 8, 8), index)
        return torch.tensor([float(index), float(tap._inert)])


def main() -> None:
    loader = DataLoader(
        Numbers(),
        batch_size=4,
        num_workers=2,
        persistent_workers=True,
        multiprocessing_context="fork",
    )
    step = 0
    for _ in range(2):
        for batch in loader:
            assert batch[:, 1].all(), "a worker's tap was not inert"
            tap.scalar("sum", batch[:, 0].sum(), step)
            step += 1
    print("workers saw an inert tap")
    assert tap.close()


if __name__ == "__main__":
    main()
