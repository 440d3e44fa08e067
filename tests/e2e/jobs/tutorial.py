"""A beginner's script for TensorBoard: a small network learns digits, and all of it is logged.

Its arguments are the module that SummaryWriter comes from, and the log_dir.
"""

import importlib
import sys

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import nn

CLASSES = [str(digit) for digit in range(10)]
EPOCHS, BATCH, REPORT_EVERY = 2, 64, 5


def digits():
    """Pictures (N, 1, 8, 8) in [0, 1] and what they show: some to learn from, some to test."""
    data = load_digits()
    pictures = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(data.target)
    return (pictures[:960], labels[:960]), (pictures[960:1280], labels[960:1280])


def network():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(8 * 16, 32), nn.ReLU(), nn.Linear(32, len(CLASSES)),
    )  # fmt: skip


def grid(pictures):
    """Pictures (4, 1, 8, 8) side by side, (1, 8, 32)."""
    return torch.cat(list(pictures), dim=2)


def predictions_drawn(model, pictures, labels):
    """A figure of four pictures, each with what the model takes it for."""
    chances = model(pictures).softmax(1)
    figure = Figure(figsize=(6, 2))
    for place, (picture, label, of_one) in enumerate(zip(pictures, labels, chances, strict=True)):
        best = int(of_one.argmax())
        axes = figure.add_subplot(1, 4, place + 1, xticks=[], yticks=[])
        axes.imshow(picture[0].numpy(), cmap="Greys")
        axes.set_title(f"{CLASSES[best]} ({of_one[best]:.0%})\nis {CLASSES[label]}")
    return figure


def look_at_the_data(writer, model, pictures, labels):
    writer.add_image("four_digits", grid(pictures[:4]))
    writer.add_graph(model, pictures[:4])
    chosen = torch.randperm(len(pictures))[:30]
    writer.add_embedding(
        pictures[chosen].flatten(1),
        metadata=[CLASSES[label] for label in labels[chosen]],
        label_img=pictures[chosen],
    )
    writer.flush()


def train(writer, model, pictures, labels, rate):
    """The last running loss."""
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    batches = len(pictures) // BATCH
    running_loss = mean = 0.0
    for epoch in range(EPOCHS):
        for batch, of_batch in enumerate(torch.randperm(len(pictures)).split(BATCH)):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(pictures[of_batch]), labels[of_batch])
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
            if batch % REPORT_EVERY == REPORT_EVERY - 1:
                step, mean = epoch * batches + batch, running_loss / REPORT_EVERY
                writer.add_scalar("training loss", mean, step)
                writer.add_scalars("losses", {"running": mean, "last": loss.item()}, step)
                figure = predictions_drawn(model, pictures[of_batch[:4]], labels[of_batch[:4]])
                writer.add_figure("predictions vs. actuals", figure, global_step=step)
                running_loss = 0.0
        for name, parameter in model.named_parameters():
            writer.add_histogram(name, parameter, epoch)
            writer.add_histogram(f"{name}.grad", parameter.grad, epoch)
    return mean


def test(writer, model, pictures, labels):
    """The share of pictures that were told."""
    with torch.no_grad():
        chances = model(pictures).softmax(1)
    for number, name in enumerate(CLASSES):
        writer.add_pr_curve(name, labels == number, chances[:, number], global_step=0)
    writer.close()
    return float(np.mean((chances.argmax(1) == labels).numpy()))


def main():
    module, log_dir = sys.argv[1:]
    writer_class = importlib.import_module(module).SummaryWriter
    torch.manual_seed(0)
    training, testing = digits()
    model = network()
    writer = writer_class(log_dir)
    look_at_the_data(writer, model, *training)
    loss = train(writer, model, *training, rate=0.1)
    accuracy = test(writer, model, *testing)
    with writer_class(f"{log_dir}/search") as search:
        for number in range(3):
            tried = {"lr": 0.1 * number, "bsize": BATCH, "momentum": True}
            found = {"hparam/accuracy": accuracy, "hparam/loss": loss + number}
            search.add_hparams(tried, found)


main()
