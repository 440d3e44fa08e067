"""Where TensorBoard finds a record, and as what: under one tag it shows one kind of data.

The client says so at the call; the daemon leaves out what comes all the same.
"""

from __future__ import annotations

from typing import Final

from ranktap_wire.records import Kind, join_name, split_name

LAYOUT_TAG: Final = "custom_scalars__config__"
EXPERIMENT_TAG: Final = "_hparams_/experiment"

_SHOWN_AS: Final = {
    Kind.IMAGES: "image",
    Kind.IMAGE_GRID: "image",
    Kind.IMAGE_BOXES: "image",
    Kind.ENCODED_IMAGE: "image",
    Kind.HISTOGRAM_RAW: "histogram",
    Kind.PR_CURVE_RAW: "pr_curve",
}
"""What a kind is to TensorBoard, where that is not its own name."""


def shown_as(kind: Kind) -> str:
    """What TensorBoard shows records of that kind as."""
    return _SHOWN_AS.get(kind, str(kind))


def shown_name(kind: Kind, name: str) -> str | None:
    """The name under which TensorBoard finds a record of that name; None if it has no tag there:
    a graph, or an embedding, which is files."""
    sub_run, tag = split_name(name)
    match kind:
        case Kind.GRAPH | Kind.EMBEDDING:
            return None
        case Kind.TEXT:
            tag += "/text_summary"
        case Kind.MESH:
            tag += "_VERTEX"
        case Kind.CUSTOM_SCALARS:
            tag = LAYOUT_TAG
        case Kind.HPARAMS:
            tag = EXPERIMENT_TAG
    return join_name(sub_run, tag)
