"""A rank of a job in which three things go wrong, started by torchrun with four ranks on gloo and
one restart. Its pictures are those of docs/across-ranks.md.

    step SLOW_FROM    rank SLOW_RANK begins to read its data slowly
    step BROKEN_AT    rank BROKEN_RANK's `blocks.1.act` puts out NaN, for one step
    step LOST_AT      rank LOST_RANK is killed; torchrun starts the job again
    step RESUMED_AT   there it goes on, from a checkpoint, and nobody is slow any more
    step END          all ranks end

Argument: a file for the checkpoint.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from collections import OrderedDict
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import ranktap

RUN = "troubled"
RANKS = 4
SLOW_RANK, SLOW_FROM = 2, 40
BROKEN_RANK, BROKEN_AT = 1, 80
LOST_RANK, LOST_AT = 3, 120
RESUMED_AT, END = 100, 160
WORK_S, SLOW_S = 0.03, 0.04
"""What reading takes every rank, and what it takes the slow one more."""


class Activation(nn.Module):
    """Tanh, but for the moment in which it breaks."""

    is_broken = False

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x) * (math.nan if self.is_broken else 1.0)


def model() -> nn.Sequential:
    blocks = [
        nn.Sequential(OrderedDict(linear=nn.Linear(32, 32), act=Activation())) for _ in range(3)
    ]
    return nn.Sequential(
        OrderedDict(embed=nn.Linear(8, 32), blocks=nn.Sequential(*blocks), head=nn.Linear(32, 1))
    )


def main(checkpoint: Path) -> None:
    rank, is_restarted = dist.get_rank(), os.environ["TORCHELASTIC_RESTART_COUNT"] != "0"
    torch.manual_seed(1)
    net = model()
    if is_restarted:
        net.load_state_dict(torch.load(checkpoint))
    parallel = DistributedDataParallel(net)
    optimizer = torch.optim.SGD(parallel.parameters(), lr=0.01)
    tap = ranktap.init(RUN, resume_step=RESUMED_AT if is_restarted else None)
    tap.watch(parallel, every=1, activations="moments", grad_outputs="moments")
    data = torch.Generator().manual_seed(rank)
    for step in range(RESUMED_AT if is_restarted else 0, END):
        tap.step(step)
        if step == RESUMED_AT and rank == 0 and not is_restarted:
            torch.save(net.state_dict(), checkpoint)
        if step == LOST_AT and rank == LOST_RANK and not is_restarted:
            tap.flush(30)
            os.kill(os.getpid(), signal.SIGKILL)
        # Stands for reading data: what it does is take its time.
        is_slow = rank == SLOW_RANK and step >= SLOW_FROM and not is_restarted
        time.sleep(WORK_S + SLOW_S * is_slow)
        net.blocks[1].act.is_broken = rank == BROKEN_RANK and step == BROKEN_AT
        inputs = torch.randn(64, 8, generator=data)
        loss = (parallel(inputs) - inputs.sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        # The NaN has come to all ranks with the gradients; such a step is left out.
        if all(parameter.grad.isfinite().all() for parameter in net.parameters()):
            optimizer.step()
        tap.scalar("train/loss", loss)
    tap.close()


if __name__ == "__main__":
    dist.init_process_group("gloo")
    main(Path(sys.argv[1]))
    dist.destroy_process_group()
