"""One rank, every kind of record, one daemon."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

import ranktap
from tests.support.daemons import DaemonProcess
from tests.support.event_files import accumulate


def test_one_rank_logs_every_kind_and_tensorboard_reads_them(
    start_daemon: Callable[..., DaemonProcess],
) -> None:
    daemon = start_daemon()
    with ranktap.init("digits/lr=0.1", endpoint=daemon.endpoint, rank=0, world_size=1) as tap:
        for step in range(1_000):
            tap.scalar("loss", 1 / (step + 1), step)
            tap.scalars({"a": step, "b": 2.0 * step}, step, prefix="many")
        tap.image("image", np.zeros((3, 8, 9)), 1)
        tap.images("images", np.zeros((5, 3, 8, 9)), 1)
        tap.image_grid("grid", np.zeros((5, 3, 8, 9)), 1, normalize=True)
        tap.histogram("weights", np.arange(100.0), 1)
        tap.text("note", "hello", 1)
        assert tap.flush()
    assert daemon.stop() == 0
    read = accumulate(Path(daemon.logdir) / "digits" / "lr=0.1")
    for tag, slope in (("many/a", 1.0), ("many/b", 2.0)):
        assert [(e.step, e.value) for e in read.Scalars(tag)] == [
            (step, slope * step) for step in range(1_000)
        ]
    assert [e.step for e in read.Scalars("loss")] == list(range(1_000))
    sizes = {tag: (read.Images(tag)[0].height, read.Images(tag)[0].width) for tag in
             ("image", "images", "grid")}  # fmt: skip
    assert sizes == {"image": (8, 9), "images": (8, 45), "grid": (12, 57)}
    assert read.Histograms("weights")[0].histogram_value.num == 100
    assert read.Tensors("note/text_summary")[0].tensor_proto.string_val == [b"hello"]
