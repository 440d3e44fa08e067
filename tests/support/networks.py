"""A small network that has every kind of thing to watch, and a job that trains it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(144, 2),
    )


def batch(seed: int = 0) -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def train(
    model: nn.Module, optimizer: Any, steps: int = 1, *, inputs: Callable[[], Any] = batch
) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(inputs()).square().sum().backward()
        optimizer.step()


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.01)


EVERYTHING: dict[str, Any] = dict.fromkeys(
    ("inputs", "activations", "grad_inputs", "grad_outputs", "gradients", "parameters", "updates"),
    ("moments", "histogram"),
)
