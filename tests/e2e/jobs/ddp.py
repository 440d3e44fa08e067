"""A rank of a small DDP job on gloo, started by torchrun. Arguments: where to keep a ledger, steps.

What each rank logs through ranktap it also keeps in `rank<k>.npz`, which the test reads:

    scalars  float64 (tags, steps)
    grids    float32 (pictures, 6, 3, 7, 9), the activations that were drawn
    values   float32 (histograms, n), the gradients that were counted
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import ranktap

TAGS = 20
EVERY = 50
GRID = {"nrow": 4, "padding": 1, "normalize": True, "scale_each": True, "pad_value": 0.25}


def main(ledger: Path, steps: int) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(1)
    model = DistributedDataParallel(
        nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(378, 1))
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    data = torch.Generator().manual_seed(rank)
    scalars = np.empty((TAGS, steps))
    grids: list[torch.Tensor] = []
    values: list[torch.Tensor] = []

    with ranktap.init() as tap:  # run, rank, world size and endpoint: all from the environment
        for step in range(steps):
            tap.step(step)
            images = torch.randn(8, 3, 7, 9, generator=data)
            local = model.module[0](images).detach()
            loss = (model(images) - images.mean((1, 2, 3)).unsqueeze(1)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

            scalars[0, step] = loss.item()
            tap.scalar("loss", loss)
            more = torch.rand(TAGS - 1, generator=data, dtype=torch.float64) * 10 ** float(rank)
            scalars[1:, step] = more
            tap.scalars(
                {f"m{number}": value.item() for number, value in enumerate(more)}, prefix="more"
            )
            if step % EVERY == 0:
                grid = local[:6, :3].contiguous()
                grids.append(grid.clone())
                tap.image_grid("activations", grid, **GRID)
                grid.zero_()  # a snapshot was taken
                gradients = torch.cat([each.flatten() for each in local]) * 10.0 ** (rank - 2)
                values.append(gradients.clone())
                tap.histogram("gradients", gradients)
                gradients.fill_(float("nan"))
    np.savez(
        ledger / f"rank{rank}.npz",
        scalars=scalars,
        grids=torch.stack(grids).numpy(),
        values=torch.stack(values).numpy(),
    )
    said = (
        f"rank {rank} of {tap.world_size}, run {tap.run}: everything was journaled: {tap.close()}"
    )
    print(said + "\n", end="", flush=True)  # one write: the ranks share the pipe
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
