"""The projector's files against those that `SummaryWriter.add_embedding` leaves."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from google.protobuf import text_format
from PIL import Image
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig
from torch.utils.tensorboard import SummaryWriter

from ranktapd.render.projector import (
    CONFIG_NAME,
    SPRITE_NAME,
    TENSORS_NAME,
    config_text,
    embedding_of,
    sprite_png,
    tensor_lines,
)

CHANCE = np.random.default_rng(0)


def torchs(directory: Path, *calls: dict[str, Any]) -> Path:
    """The directory in which torch's writer has made these embeddings."""
    writer = SummaryWriter(directory)
    for call in calls:
        writer.add_embedding(**call)
    writer.close()
    return directory


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int64", "uint8", "bool"])
def test_the_points_have_the_bytes_that_torch_writes(tmp_path: Path, dtype: str) -> None:
    points = (CHANCE.standard_normal((1_500, 3)) * 100).astype(dtype)
    if points.dtype.kind == "f":
        points[0] = [np.nan, np.inf, -0.0]
    directory = torchs(tmp_path, {"mat": points})
    theirs = (directory / "00000" / "default" / TENSORS_NAME).read_bytes()
    assert b"".join(tensor_lines(points)) == theirs


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((1, 3, 4, 6), np.float32),
        ((5, 3, 4, 6), np.float64),
        ((7, 1, 3, 3), np.float16),
        ((9, 3, 2, 5), np.float32),
        ((10, 1, 4, 4), np.bool_),
    ],
)
def test_the_sprite_equals_torchs_but_for_the_encoder(
    tmp_path: Path, shape: tuple[int, ...], dtype: type
) -> None:
    images = (CHANCE.random(shape) * 1.5 - 0.25).astype(dtype)
    directory = torchs(
        tmp_path, {"mat": np.zeros((shape[0], 2)), "label_img": torch.from_numpy(images)}
    )
    theirs = Image.open(directory / "00000" / "default" / SPRITE_NAME)
    ours = Image.open(io.BytesIO(sprite_png(images)))
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


def test_pictures_of_uint8_are_taken_as_they_are_and_nan_is_black() -> None:
    images = CHANCE.integers(0, 256, (4, 3, 2, 2), np.uint8)
    sprite = np.asarray(Image.open(io.BytesIO(sprite_png(images))))
    np.testing.assert_array_equal(sprite[2:, :2], images[2].transpose(1, 2, 0))
    sprite = np.asarray(Image.open(io.BytesIO(sprite_png(np.full((1, 1, 2, 2), np.nan)))))
    assert not sprite.any()


def test_the_configuration_of_several_embeddings_has_the_bytes_that_torch_writes(
    tmp_path: Path,
) -> None:
    points = np.zeros((4, 2))
    images = torch.zeros(4, 3, 5, 7)
    calls: list[dict[str, Any]] = [
        {"mat": points},
        {"mat": points, "tag": "layer/1 %\\ä", "global_step": 3, "metadata": list("abcd")},
        {"mat": points, "tag": "seen", "global_step": 123_456, "label_img": images},
        {"mat": points, "tag": '"quoted"', "label_img": images, "metadata": list("abcd")},
    ]
    directory = torchs(tmp_path, *calls)
    embeddings = [
        embedding_of(
            call.get("tag", "default"),
            call.get("global_step", 0),
            "metadata" in call,
            call["label_img"].shape if "label_img" in call else None,
        )
        for call in calls
    ]
    assert config_text(embeddings) == (directory / CONFIG_NAME).read_bytes()
    for embedding in embeddings:
        assert (directory / embedding.directory / TENSORS_NAME).exists()
    config = text_format.Parse(config_text(embeddings).decode(), ProjectorConfig())
    assert [info.tensor_name for info in config.embeddings][1] == "layer/1 %\\ä:00003"


@pytest.mark.parametrize("tag", [".", "..", "../..", "/etc/passwd"])
def test_no_tag_leaves_the_directory_of_its_step(tag: str) -> None:
    step, name = embedding_of(tag, 7, False, None).directory.split("/")
    assert step == "00007"
    assert name not in (".", "..", "")
