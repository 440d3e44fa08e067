"""A script for torch's SummaryWriter that uses all of it; its argument is the log_dir."""

import sys

import numpy as np
import onnx
import torch
from matplotlib import pyplot
from torch.utils.tensorboard import SummaryWriter

pyplot.switch_backend("agg")
torch.manual_seed(0)
rand = torch.rand


def train(writer):
    model = torch.nn.Linear(4, 2)
    for step in range(20):
        loss = model(rand(8, 4)).square().mean()
        writer.add_scalar("loss/train", loss, step)
        writer.add_scalar("loss/new", loss.item(), step, new_style=True)
        writer.add_scalar("loss/double", loss.item(), step, new_style=True, double_precision=True)
        writer.add_scalars("run_14h", {"sin": np.sin(step), "cos": np.cos(step)}, step)
        if step % 10 == 0:
            writer.add_histogram("weights", model.weight, step)
            writer.add_histogram("weights/auto", model.weight, step, bins="auto")
    writer.add_hparams({"lr": 0.1, "bsize": 1, "net": "fc"}, {"hparam/loss": 0.5}, run_name="trial")
    writer.add_graph(model, rand(1, 4))


def draw(writer):
    writer.add_image("image", rand(3, 16, 16), 1)
    writer.add_image("image/hw", np.ones((16, 16)), 1, dataformats="HW")
    writer.add_images("images", rand(4, 1, 8, 8), 1)
    boxes = torch.tensor([[2, 2, 10, 10]])
    writer.add_image_with_boxes("boxes", rand(3, 16, 16), boxes, 1, labels=["cat"])
    figure = pyplot.figure(figsize=(1, 1))
    figure.add_subplot().plot([1, 2, 3])
    writer.add_figure("figure", figure, 1)


def log_the_others(writer):
    writer.add_text("text", "some *words*", 1)
    writer.add_audio("audio", rand(1, 100) * 2 - 1, 1, sample_rate=8000)
    writer.add_tensor("tensor", torch.arange(6).reshape(2, 3), 1)
    limits, counts = np.arange(1.0, 5.0), np.array([1, 2, 3, 4])
    writer.add_histogram_raw("raw", 0.0, 4.0, 10, 20.0, 50.0, limits, counts, 1)
    labels, predictions = rand(50) > 0.5, rand(50)
    writer.add_pr_curve("curve", labels, predictions, 1)
    writer.add_pr_curve_raw("curve/raw", *np.ones((6, 127)), 1)
    writer.add_mesh(
        "mesh", rand(1, 8, 3), colors=torch.ones(1, 8, 3, dtype=torch.int), global_step=1
    )
    writer.add_embedding(rand(5, 3), list("abcde"), rand(5, 3, 4, 4), 1, tag="points")
    writer.add_custom_scalars({"charts": {"both": ["Multiline", ["loss/.*"]]}})


def add_onnx(writer, directory):
    value = onnx.helper.make_tensor_value_info
    inputs = [value("x", onnx.TensorProto.FLOAT, [1])]
    outputs = [value("y", onnx.TensorProto.FLOAT, [1])]
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "g", inputs, outputs)
    path = f"{directory}/model.onnx"
    onnx.save(onnx.helper.make_model(graph), path)
    writer.add_onnx_graph(path)


def main():
    log_dir = sys.argv[1]
    writer = SummaryWriter(log_dir, "ignored", max_queue=2, flush_secs=1, filename_suffix=".x")
    assert writer.get_logdir() == log_dir
    train(writer)
    draw(writer)
    writer.flush()
    log_the_others(writer)
    writer.close()
    # It opens again by itself.
    writer.add_scalar("late", 1.0, 30)
    with SummaryWriter(f"{log_dir}/again", purge_step=3) as again:
        again.add_scalar("loss", 1, 3)
        add_onnx(again, sys.argv[2])
    writer.close()


main()
