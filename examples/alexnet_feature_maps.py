"""What AlexNet sees in a photograph: feature maps of each convolution, and its kernels.

    python examples/alexnet_feature_maps.py LOGDIR
    tensorboard --logdir LOGDIR        the Images tab

The network is torchvision's with its trained weights where torchvision is installed (it
downloads them once), else the same layers with random ones. The photograph is one that
comes with scikit-learn; reading it needs Pillow.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

import ranktap

MEAN = (0.49139968, 0.48215827, 0.44653124)
STD = (0.24703233, 0.24348505, 0.26158768)


def alexnet() -> nn.Module:
    try:
        from torchvision.models import AlexNet_Weights
        from torchvision.models import alexnet as trained
    except ImportError:
        torch.manual_seed(0)
        return nn.ModuleDict({"features": features(), "classifier": classifier()})
    model: nn.Module = trained(weights=AlexNet_Weights.DEFAULT)
    return model


def features() -> nn.Sequential:
    """The layers of torchvision's AlexNet, under their names there."""
    return nn.Sequential(
        nn.Conv2d(3, 64, kernel_size=11, stride=4, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(kernel_size=3, stride=2),
        nn.Conv2d(64, 192, kernel_size=5, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(kernel_size=3, stride=2),
        nn.Conv2d(192, 384, kernel_size=3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(384, 256, kernel_size=3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(256, 256, kernel_size=3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(kernel_size=3, stride=2),
    )


def classifier() -> nn.Sequential:
    return nn.Sequential(
        nn.Dropout(), nn.Linear(256 * 6 * 6, 4096), nn.ReLU(inplace=True),
        nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU(inplace=True),
        nn.Linear(4096, 1000),
    )  # fmt: skip


def photograph() -> Tensor:
    """A Chinese temple, (1, 3, 224, 224), normalised."""
    from sklearn.datasets import load_sample_image

    pixels = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)
    image = interpolate(
        pixels.unsqueeze(0).float() / 255, size=(224, 224), mode="bilinear", antialias=True
    )
    return (image - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


@torch.no_grad()
def main(logdir: str) -> None:
    model = alexnet().eval()
    image = photograph()
    with (
        ranktap.init("alexnet", logdir=logdir, rank=0, world_size=1) as tap,
        tap.watch(
            model, every=1, activations=(), gradients=(), parameters=(),
            feature_maps=True, kernels=True, max_maps=384,
        ),
    ):  # fmt: skip
        tap.image_grid("photograph", image, normalize=True)
        hidden = model.features(image)
        # torchvision pools between its two halves; at 224 x 224 that changes nothing.
        model.classifier(hidden.flatten(1))
    print(f"tensorboard --logdir {logdir}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "runs")
