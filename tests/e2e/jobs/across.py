"""A rank of a job on gloo in which something goes wrong on one rank, started by torchrun.

It trains twice, one run each, as starting processes takes longer than both:

    forward    rank 2's layer `broken` puts out NaN at step BROKEN_AT, and rank 1 is slow
    backward   rank 2's layer `broken` gives back NaN at step BROKEN_AT, and nobody is slow

Every rank logs one picture, to be tiled.
"""

from __future__ import annotations

import logging
import math
import time
from collections import OrderedDict
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import ranktap

RUNS = ("forward", "backward")
BROKEN_RANK, SLOW_RANK = 2, 1
BROKEN_AT = 26
STEPS = 30
WORK_S, SLOW_S = 0.06, 0.05
"""What every rank's data takes, and what the slow rank's takes more."""


class NaNBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * math.nan


class Broken(nn.Module):
    """Nothing, but for the moment in which it breaks."""

    how = ""

    def forward(self, x: Tensor) -> Tensor:
        if not self.how:
            return x
        say(f"{self.how} broken at {time.time()}")
        return x * math.nan if self.how == "forward" else NaNBackward.apply(x)


def picture(rank: int) -> Tensor:
    return torch.full((3, 16, 48), 40 * (rank + 1), dtype=torch.uint8)


def train(how: str) -> None:
    rank = dist.get_rank()
    torch.manual_seed(1)
    broken = Broken()
    layers = [("first", nn.Linear(8, 8)), ("second", nn.Linear(8, 8)), ("broken", broken),
              ("third", nn.Linear(8, 8)), ("last", nn.Linear(8, 1))]  # fmt: skip
    model = DistributedDataParallel(nn.Sequential(OrderedDict(layers)))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with ranktap.init(how) as tap:
        sections = dict.fromkeys(("activations", "grad_inputs", "grad_outputs"), "moments")
        tap.watch(model, every=1, **sections)
        tap.image("picture", picture(rank), 0, across="tile")
        for step in range(STEPS):
            tap.step(step)
            # Stands for reading data: what it does is take its time.
            time.sleep(WORK_S + SLOW_S * (how == "forward" and rank == SLOW_RANK))
            broken.how = how if rank == BROKEN_RANK and step == BROKEN_AT else ""
            loss = model(torch.ones(4, 8)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            tap.scalar("loss", loss)


def say(text: str) -> None:
    print(text + "\n", end="", flush=True)  # one write: the ranks share the pipe


if __name__ == "__main__":
    # What ranktap tells each rank's logger, with the time at which it does.
    logging.basicConfig(format="%(created)f %(message)s")
    dist.init_process_group("gloo")
    for run in RUNS:
        train(run)
    dist.destroy_process_group()
