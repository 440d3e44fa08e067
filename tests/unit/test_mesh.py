"""Meshes against `torch.utils.tensorboard.summary.mesh`, byte for byte."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch.utils.tensorboard import summary as torch_summary

from ranktapd.render.mesh import mesh_values

CHANCE = np.random.default_rng(0)
VERTICES = CHANCE.standard_normal((2, 5, 3)).astype(np.float32)
COLORS = CHANCE.integers(0, 256, (2, 5, 3))
FACES = CHANCE.integers(0, 5, (2, 4, 3))
CONFIG = {"camera": {"cls": "PerspectiveCamera", "fov": 75}, "Ä": [1.5]}


@pytest.mark.parametrize("config", [None, {}, CONFIG], ids=str)
@pytest.mark.parametrize("faces", [None, FACES], ids=["", "faces"])
@pytest.mark.parametrize("colors", [None, COLORS], ids=["", "colors"])
def test_a_mesh_has_the_bytes_that_torch_writes(
    colors: np.ndarray | None, faces: np.ndarray | None, config: dict[str, object] | None
) -> None:
    theirs = torch_summary.mesh(
        "shape",
        torch.from_numpy(VERTICES),
        None if colors is None else torch.from_numpy(colors),
        None if faces is None else torch.from_numpy(faces),
        config,
    )
    ours = mesh_values(
        "shape",
        VERTICES,
        None if colors is None else colors.astype(np.float32),
        None if faces is None else faces.astype(np.float32),
        *(() if config is None else (json.dumps(config, sort_keys=True),)),
    )
    assert ours == [value.SerializeToString() for value in theirs.value]
