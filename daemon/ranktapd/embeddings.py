"""A run's embeddings: files for TensorBoard's projector, and what their configuration says.

Pure: a record in, files to be written out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import astuple, replace
from functools import partial
from typing import Any, Final

from ranktap_wire.records import Blob, byte_view, split_name
from ranktapd.drawing import array_as_torch_has_it
from ranktapd.notices import Notices
from ranktapd.output import File, Group
from ranktapd.render import projector
from ranktapd.render.projector import Embedding

EMBEDDINGS: Final = 1_000
"""Of a run. Each makes the configuration be written anew, 150 bytes an embedding; the
projector's menu shows them all."""


class Embeddings:
    """The embeddings of one run and its sub-runs. Not thread safe."""

    def __init__(self, group: Group, notices: Notices) -> None:
        self._group = group
        self._notices = notices
        self._known: dict[str, dict[str, Embedding]] = {}
        """By sub-run and directory."""

    def add(self, name: str, blob: Blob) -> None:
        """Write an embedding's files, and name it in the configuration.

        One of the same tag and step takes the other's place, where torch names both and has
        the files of the second.
        """
        sub_run, tag = split_name(name)
        sprite_shape = blob.parameters["sprite_shape"]
        step = blob.parameters["global_step"] or 0
        embedding = projector.embedding_of(tag, step, "metadata" in blob.parts, sprite_shape)
        known = self._known.get(sub_run, {})
        total = sum(map(len, self._known.values()))
        if embedding.directory not in known and total >= EMBEDDINGS:
            self._notices.tell_once(
                "embeddings", f"more than {EMBEDDINGS} embeddings: the others are left out"
            )
            return
        self._known[sub_run] = known
        known[embedding.directory] = embedding
        self._add_files(sub_run, embedding, blob)
        config = projector.config_text(list(known.values()))
        self._group.add_file(File(sub_run, projector.CONFIG_NAME, lambda: [config], len(config)))

    def _add_files(self, sub_run: str, embedding: Embedding, blob: Blob) -> None:
        def add(name: str, pieces: Callable[[], Iterable[bytes]], nbytes: int) -> None:
            path = f"{embedding.directory}/{name}"
            self._group.add_file(File(sub_run, path, pieces, nbytes))

        points = array_as_torch_has_it(blob)
        add(projector.TENSORS_NAME, partial(projector.tensor_lines, points), points.nbytes)
        if "metadata" in blob.parts:
            metadata = bytes(byte_view(blob.parts["metadata"]))
            add(projector.METADATA_NAME, lambda: [metadata], len(metadata))
        if "sprite" in blob.parts:
            shape, dtype = tuple(blob.parameters["sprite_shape"]), blob.parameters["sprite_dtype"]
            sprite = replace(blob, data=blob.parts["sprite"], dtype=dtype, shape=shape)
            images = array_as_torch_has_it(sprite)
            add(projector.SPRITE_NAME, lambda: [projector.sprite_png(images)], images.nbytes)

    def state(self) -> list[Any]:
        """All of it, msgpack-able."""
        return [
            [sub_run, [astuple(embedding) for embedding in known.values()]]
            for sub_run, known in self._known.items()
        ]

    @classmethod
    def restore(cls, state: list[Any], group: Group, notices: Notices) -> Embeddings:
        """The embeddings that `state` was taken of."""
        embeddings = cls(group, notices)
        for sub_run, known in state:
            for name, directory, has_metadata, size in known:
                picture_size = None if size is None else (size[0], size[1])
                embedding = Embedding(name, directory, has_metadata, picture_size)
                embeddings._known.setdefault(sub_run, {})[directory] = embedding
        return embeddings
