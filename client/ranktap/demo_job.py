"""The job of `ranktap demo`: what a rank of a DDP job looks like that logs with ranktap."""

from __future__ import annotations

import argparse
import contextlib
import math
import socket
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import ranktap

BATCH_PER_RANK = 32
PICTURES_EVERY = 25


class DigitsNet(nn.Module):
    """Two convolutions and a linear layer, for pictures of 8x8."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.head = nn.Linear(32 * 4 * 4, 10)

    def forward(self, images: Tensor) -> Tensor:
        hidden = torch.relu(self.conv1(images))
        hidden = torch.max_pool2d(torch.relu(self.conv2(hidden)), 2)
        logits: Tensor = self.head(hidden.flatten(1))
        return logits


def main() -> None:
    options = _options()
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    images, labels = _digits()
    held_out = len(images) // 5
    model = DigitsNet()
    ddp = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)

    with ranktap.init(options.name, logdir=options.logdir) as tap, _progress(options.steps) as bar:
        if tap.rank == 0:
            tap.text("job", _summary(model, tap.world_size, options.steps))
        order = torch.Generator().manual_seed(dist.get_rank())
        for step in range(options.steps):
            tap.step(step)
            chosen = held_out + torch.randint(
                len(images) - held_out, (BATCH_PER_RANK,), generator=order
            )
            logits = ddp(images[chosen])
            loss = cross_entropy(logits, labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            # Every rank logs its own; the daemon shows the mean, and the band around it.
            tap.scalar("loss/train", loss)
            tap.scalar("accuracy/train", _accuracy(logits, labels[chosen]))
            tap.scalar("learning_rate", schedule.get_last_lr()[0], across="rank0")
            schedule.step()
            if step % PICTURES_EVERY == 0 or step == options.steps - 1:
                _log_pictures(tap, model, images[:1])
                test = slice(tap.rank, held_out, tap.world_size)
                with torch.no_grad():
                    tap.scalar("accuracy/test", _accuracy(model(images[test]), labels[test]))
            bar.advance(f"loss {loss.item():.3f}")
    dist.destroy_process_group()


@torch.no_grad()
def _log_pictures(tap: ranktap.Tap, model: DigitsNet, image: Tensor) -> None:
    """What the first layers see, and how the weights are distributed: the same in every rank."""
    if tap.rank != 0:
        return
    first = model.conv1(image)
    second = model.conv2(torch.relu(first))
    for name, maps in (("conv1", first), ("conv2", second)):
        tap.image_grid(
            f"feature_maps/{name}",
            maps[0].unsqueeze(1).repeat_interleave(6, 2).repeat_interleave(6, 3),
            nrow=int(math.sqrt(maps.shape[1])),
            normalize=True,
            scale_each=True,
        )
    for name, parameter in model.named_parameters():
        tap.histogram(f"weights/{name}", parameter, across="rank0")


def _accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.argmax(1) == labels).float().mean()


def _digits() -> tuple[Tensor, Tensor]:
    """1,797 handwritten digits that ship with scikit-learn: (N, 1, 8, 8) in [0, 1], and labels."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.images).float().div(16).unsqueeze(1)
    labels = torch.from_numpy(digits.target).long()
    mixed = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images[mixed], labels[mixed]


def _summary(model: nn.Module, world_size: int, steps: int) -> str:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return (
        "| what | |\n|---|---|\n"
        f"| ranks | {world_size}, gloo, on {socket.gethostname()} |\n"
        f"| model | {type(model).__name__}, {parameters:,} parameters |\n"
        f"| data | scikit-learn's digits, {BATCH_PER_RANK} a rank and step |\n"
        f"| steps | {steps} |\n"
        f"| torch | {torch.__version__} |\n"
    )


class _Bar:
    """A progress bar in rank 0, nothing in the others."""

    def __init__(self, steps: int) -> None:
        self._task = None
        if dist.get_rank() == 0:
            from rich import progress

            self._progress = progress.Progress(
                progress.TextColumn("training"),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TextColumn("{task.description}"),
                progress.TimeRemainingColumn(),
            )
            self._task = self._progress.add_task("", total=steps)
            self._progress.start()

    def advance(self, text: str) -> None:
        if self._task is not None:
            self._progress.update(self._task, advance=1, description=text)

    def close(self) -> None:
        if self._task is not None:
            self._progress.stop()


@contextlib.contextmanager
def _progress(steps: int) -> Iterator[_Bar]:
    bar = _Bar(steps)
    try:
        yield bar
    finally:
        bar.close()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--logdir", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--steps", type=int, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
