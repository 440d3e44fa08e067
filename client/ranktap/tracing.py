"""A model to a graph of TensorBoard's: what torch itself makes of it, serialized.

torch's functions for it need TensorBoard's protos, which a training environment may lack.
"""

from __future__ import annotations

import os
from typing import Any


def trace_model(
    model: Any, inputs: Any, verbose: bool, use_strict_trace: bool
) -> tuple[bytes, bytes]:
    """A model's GraphDef and RunMetadata, as `torch.utils.tensorboard` makes them.

    Raises:
        ModuleNotFoundError: there is no torch or no TensorBoard; the message says what to install.
        RuntimeError: the model cannot be traced.
    """
    try:
        from torch.utils.tensorboard._pytorch_graph import graph
    except ModuleNotFoundError as error:
        raise _missing(error) from None
    traced, run_metadata = graph(model, inputs, verbose, use_strict_trace)
    return traced.SerializeToString(), run_metadata.SerializeToString()


def load_onnx(path: str | os.PathLike[str]) -> bytes:
    """The GraphDef of an ONNX file, as `torch.utils.tensorboard` makes it.

    Raises:
        ModuleNotFoundError: there is no torch, no TensorBoard or no onnx.
        OSError: the file cannot be read.
    """
    try:
        import onnx  # noqa: F401
        from torch.utils.tensorboard._onnx_graph import load_onnx_graph
    except ModuleNotFoundError as error:
        raise _missing(error) from None
    return load_onnx_graph(path).SerializeToString()  # type: ignore[no-any-return]


def _missing(error: ModuleNotFoundError) -> ModuleNotFoundError:
    package = {"torch": "torch", "onnx": "onnx"}.get(error.name or "", "'ranktap[daemon]'")
    return ModuleNotFoundError(
        f"a graph is made by torch, with TensorBoard's protos; {error.name} is not installed: "
        f"pip install {package}",
        name=error.name,
    )
