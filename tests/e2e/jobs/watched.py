"""A rank of a watched job on gloo, started by torchrun. Argument: how the model is spread.

    ddp      every rank has all of it
    fsdp     every rank has a shard of each parameter (FSDP2's fully_shard)
    stages   every rank has layers of its own

It prints how many collectives a step took that was looked at, and one that was not.
"""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.debug import CommDebugMode
from torch.nn.parallel import DistributedDataParallel

import ranktap

STEPS = 4
EVERY = 2
BATCH = 6
LEARNING_RATE = 0.05
KINDS = ("moments", "histogram")
SECTIONS = dict.fromkeys(
    ("activations", "grad_outputs", "gradients", "parameters", "updates"), KINDS
)


def network() -> nn.Sequential:
    """Sizes that two ranks cannot halve: their shards differ, and of one a rank has nothing."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3), nn.Tanh(), nn.Linear(3, 1))


def batch(step: int) -> Tensor:
    return torch.randn(BATCH, 5, generator=torch.Generator().manual_seed(step))


def spread(model: nn.Sequential, how: str) -> nn.Module:
    if how == "ddp":
        return DistributedDataParallel(model)
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer)
    fully_shard(model)
    return model


def train(tap: ranktap.Tap, how: str) -> None:
    rank, world_size = dist.get_rank(), dist.get_world_size()
    model = spread(network(), how)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    tap.watch(model, every=EVERY, **SECTIONS)
    collectives = []
    for step in range(STEPS):
        tap.step(step)
        with CommDebugMode() as seen:
            loss = model(batch(step).tensor_split(world_size)[rank]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        collectives.append(seen.get_total_counts())
    say(f"rank {rank} collectives {collectives}")


def train_stage(tap: ranktap.Tap) -> None:
    """Nothing is sent from stage to stage here: what matters is whose layers are shown."""
    layers = network()
    rank = dist.get_rank()
    stage = nn.ModuleDict({f"layer{rank}": layers[2 * rank]})
    optimizer = torch.optim.SGD(stage.parameters(), lr=LEARNING_RATE)
    tap.watch(stage, every=EVERY, **SECTIONS)
    for step in range(STEPS):
        tap.step(step)
        layer = stage[f"layer{rank}"]
        optimizer.zero_grad()
        layer(torch.ones(2, layer.in_features)).square().mean().backward()
        optimizer.step()


def say(text: str) -> None:
    print(text + "\n", end="", flush=True)  # one write: the ranks share the pipe


def main(how: str) -> None:
    dist.init_process_group("gloo")
    with ranktap.init() as tap:
        if how == "stages":
            train_stage(tap)
        else:
            train(tap, how)
        say(f"rank {tap.rank} journaled: {tap.close()}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
