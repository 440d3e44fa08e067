"""Every method of SummaryWriter at once: from four ranks to the run "ranks", and from four threads
of a process to the run "threads".

Its arguments are the endpoint, and the path of an ONNX model.
"""

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from ranktap import SummaryWriter

AT_ONCE, STEPS = 4, range(3)
GRAPH = threading.Lock()

Call = Callable[[Any, str, int, int], None]
"""Of a writer, a tag, a step, and the rank or thread that calls."""


def figure() -> Figure:
    drawn = Figure(figsize=(1, 1), dpi=40)
    drawn.add_subplot().plot([1, 2, 3])
    return drawn


def add_graph(writer: Any) -> None:
    # torch's tracing is one at a time: it keeps what it knows of modules in a global.
    with GRAPH:
        writer.add_graph(torch.nn.Linear(2, 2), torch.ones(1, 2))


def pixels(number: int) -> Any:
    return np.full((3, 8, 8), 40 * number, np.uint8)


CALLS: dict[str, Call] = {
    # Layouts first: the daemon makes one itself until there is one of the user's.
    "custom_scalars": lambda w, t, s, n: w.add_custom_scalars({"c": {"t": ["Multiline", ["a"]]}}),
    "custom_scalars_multilinechart": lambda w, t, s, n: w.add_custom_scalars_multilinechart(["a"]),
    "custom_scalars_marginchart": lambda w, t, s, n: w.add_custom_scalars_marginchart(list("abc")),
    "scalar": lambda w, t, s, n: w.add_scalar(t, s + n, s),
    "scalars": lambda w, t, s, n: w.add_scalars(t, {"a": s + n, "b": -n}, s),
    "hparams": lambda w, t, s, n: w.add_hparams({"lr": 0.1}, {"m": n}, None, f"{t}/{s}", s),
    "tensor": lambda w, t, s, n: w.add_tensor(t, torch.full((2,), n), s),
    "histogram": lambda w, t, s, n: w.add_histogram(t, np.full(5, n), s),
    "histogram_raw": lambda w, t, s, n: w.add_histogram_raw(
        t, 0.0, 4.0, 10, 20.0, 50.0, np.arange(1.0, 5.0), np.arange(1, 5), s
    ),
    "image": lambda w, t, s, n: w.add_image(t, pixels(n), s),
    "images": lambda w, t, s, n: w.add_images(t, pixels(n)[None], s),
    "image_with_boxes": lambda w, t, s, n: w.add_image_with_boxes(
        t, pixels(n), np.array([[1, 1, 5, 5]]), s
    ),
    "figure": lambda w, t, s, n: w.add_figure(t, figure(), s),
    "video": lambda w, t, s, n: w.add_video(t, torch.zeros(1, 2, 3, 8, 8), s),
    "audio": lambda w, t, s, n: w.add_audio(t, torch.zeros(1, 50), s, 8000),
    "text": lambda w, t, s, n: w.add_text(t, f"of {n}", s),
    "pr_curve": lambda w, t, s, n: w.add_pr_curve(t, np.arange(9) % 2, np.linspace(0, 1, 9), s),
    "pr_curve_raw": lambda w, t, s, n: w.add_pr_curve_raw(t, *np.ones((6, 127)), s),
    "mesh": lambda w, t, s, n: w.add_mesh(t, torch.zeros(1, 4, 3), global_step=s),
    "embedding": lambda w, t, s, n: w.add_embedding(
        torch.full((5, 3), float(n)), list("abcde"), None, s, t
    ),
    "graph": lambda w, t, s, n: add_graph(w),
    "onnx_graph": lambda w, t, s, n: w.add_onnx_graph(ONNX),
}
ONNX = Path(sys.argv[-1])


def log_all(writer: SummaryWriter, number: int, suffix: str = "") -> None:
    for step in STEPS:
        for name, call in CALLS.items():
            call(writer, f"{name}{suffix}", step, number)


def of_rank(endpoint: str, rank: int) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(AT_ONCE), "LOCAL_RANK": str(rank)}
    with SummaryWriter("ranks", endpoint=endpoint) as writer:
        log_all(writer, rank)


def in_threads(endpoint: str) -> None:
    """One writer; each thread has tags of its own.

    Raises:
        RuntimeError: a call raised in a thread.
    """
    failed: list[BaseException] = []
    together = threading.Barrier(AT_ONCE)

    def of_thread(number: int) -> None:
        try:
            together.wait()
            log_all(writer, number, f"/{number}")
        except BaseException as error:
            failed.append(error)

    with SummaryWriter("threads", endpoint=endpoint) as writer:
        threads = [threading.Thread(target=of_thread, args=(n,)) for n in range(AT_ONCE)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if failed:
        raise RuntimeError("a thread failed") from failed[0]


def main(endpoint: str) -> None:
    torch.set_num_threads(1)
    # Forked, so that torch is imported once.
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=of_rank, args=(endpoint, n)) for n in range(AT_ONCE)]
    for rank in ranks:
        rank.start()
    in_threads(endpoint)
    for rank in ranks:
        rank.join()
    statuses = [rank.exitcode for rank in ranks]
    if any(statuses):
        raise RuntimeError(f"ranks ended with {statuses}")


if __name__ == "__main__":
    main(sys.argv[1])
