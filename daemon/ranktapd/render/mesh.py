"""Meshes and point clouds, as `SummaryWriter.add_mesh` writes them: a value for each component."""

import numpy as np
from numpy.typing import NDArray
from tensorboard.plugins.mesh import metadata
from tensorboard.plugins.mesh.plugin_data_pb2 import MeshPluginData

from ranktapd.render.protos import float_tensor, value_of_tensor


def mesh_values(
    tag: str,
    vertices: NDArray[np.float32],
    colors: NDArray[np.float32] | None = None,
    faces: NDArray[np.float32] | None = None,
    config: str = "{}",
) -> list[bytes]:
    """Serialized `Summary.Value`s, all of one event: vertices, then faces and colors if given.

    Shapes: vertices and colors (B, N, 3), faces (B, M, 3), indices of vertices. `config`
    is for three.js, as JSON.

    Source: torch.utils.tensorboard.summary.mesh.
    """
    given = (
        (vertices, MeshPluginData.VERTEX),
        (faces, MeshPluginData.FACE),
        (colors, MeshPluginData.COLOR),
    )
    components = [(array, kind) for array, kind in given if array is not None]
    bits = metadata.get_components_bitmask([kind for _, kind in components])
    return [
        value_of_tensor(
            metadata.get_instance_name(tag, kind),
            float_tensor(array),
            metadata.create_summary_metadata(
                tag, None, kind, bits, array.shape, None, json_config=config
            ),
        )
        for array, kind in components
    ]
