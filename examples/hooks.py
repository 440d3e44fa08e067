"""What each kind of hook sees, on networks so small that the right answer is known by hand.

    python examples/hooks.py LOGDIR
    tensorboard --logdir LOGDIR

Each function says what must come out; tests/e2e/test_examples.py reads it back.
"""

from __future__ import annotations

import sys

import torch
from torch import nn

import ranktap


def gradients_of_tensors(tap: ranktap.Tap) -> None:
    """`Tensor.register_hook`: the gradient of what is no parameter.

    With w = 1 and x = 2: a = w + x = 3, b = w + 1 = 2, y = a * b = 6. So dy/da = b = 2,
    dy/dw = b + a = 5 and dy/dx = b = 2.
    """
    w = torch.tensor(1.0, requires_grad=True)
    x = torch.tensor(2.0, requires_grad=True)
    a = w + x
    b = w + 1
    y = a * b
    tap.gradient(a, "by_hand/a")
    tap.gradient(w, "by_hand/w")
    tap.gradient(x, "by_hand/x")
    y.backward()


def small_network() -> nn.Sequential:
    """A 3x3 convolution of two channels, one filled with 1 and one with 2, and 2x2 max pooling."""
    network = nn.Sequential()
    network.add_module("conv", nn.Conv2d(1, 2, kernel_size=3))
    network.add_module("pool", nn.MaxPool2d(2))
    with torch.no_grad():
        network.conv.weight[0] = 1.0
        network.conv.weight[1] = 2.0
        network.conv.bias.zero_()
    return network


def modules(tap: ranktap.Tap) -> torch.Tensor:
    """Forward pre-hook, forward hook and backward hooks of modules.

    On a 4x4 image of ones the feature maps are 2x2, all 9 and all 18, and what comes out of
    the pooling is [[9]] and [[18]]: in the histograms there are four of each, and one. Of
    their sum the pooling gets the gradient 1 twice, and passes it on to one of the four
    equal values of each map: three quarters of the convolution's gradients are 0. To the
    image comes 1 + 2 = 3 at nine of 16 pixels.
    """
    network = small_network()
    image = torch.ones(1, 1, 4, 4, requires_grad=True)
    with tap.watch(
        network,
        every=1,
        inputs="moments",
        activations=("moments", "histogram"),
        grad_inputs="moments",
        grad_outputs="moments",
    ):
        pooled: torch.Tensor = network(image)
        pooled.sum().backward()
    return pooled


def one_module(tap: ranktap.Tap) -> None:
    """One module, one thing, without a watch: the distribution of the pooled values."""
    network = small_network()
    with tap.activation(network.pool, "pooled"):
        network(torch.ones(1, 1, 4, 4))


def main(logdir: str) -> None:
    with ranktap.init("hooks", logdir=logdir, rank=0, world_size=1) as tap:
        gradients_of_tensors(tap)
        print("pooled:", modules(tap).flatten().tolist())
        one_module(tap)
    print(f"tensorboard --logdir {logdir}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "runs")
