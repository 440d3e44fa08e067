"""Arrays that are no pictures: distributions, curves, tensors, sounds, shapes, points."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ranktap import staging
from ranktap.base import BaseTap, Late
from ranktap.staging import Described, Given, Snapshot
from ranktap.values import check_number, number
from ranktap_wire import documents, histograms, rules
from ranktap_wire.records import (
    FLOATS,
    HISTOGRAM_ACROSS,
    NUMBERS,
    OTHER_ACROSS,
    Across,
    Blob,
    Kind,
)


class Arrays(BaseTap):
    """The methods that log arrays.

    With several ranks, `across="each"` shows rank 0's under the tag itself and the others' under
    tags of their own, and "rank0" rank 0's alone; histograms can be added up.
    """

    def histogram(
        self,
        tag: str,
        values: Any,
        step: int | None = None,
        *,
        bins: str | int | Sequence[float] = "tensorflow",
        max_bins: int | None = None,
        across: str = "merge",
        walltime: float | None = None,
    ) -> None:
        """Log how values are distributed: an array or tensor of any shape, at least one element.

        `bins` is "tensorflow" (torch's default edges), one of numpy's names ("auto", "fd", ...),
        a number of buckets, or the edges. `across="merge"` adds the ranks' buckets up, which
        needs edges that do not depend on the data; the others take "each" or "rank0".
        NaN and Inf are left out and counted.

        Raises:
            TypeError, ValueError: an argument is not of this form; it is named.
        """
        policy = rules.check_across(across, HISTOGRAM_ACROSS)
        name, edges = histograms.check_bins(bins, max_bins)
        if (
            policy is Across.MERGE
            and self.world_size > 1
            and edges is None
            and name != "tensorflow"
        ):
            raise ValueError(
                f"bins: {bins!r} makes other edges in each rank, which cannot be merged: "
                "use bins='tensorflow', edges, or across='each' or 'rank0'"
            )
        parts = {}
        if edges is not None:
            parts["edges"] = staging.describe(np.array(edges, np.float64), "bins")
        self._add(
            Kind.HISTOGRAM,
            tag,
            # The shape of what is counted says nothing, and may have more dimensions than travel.
            _flat(staging.describe(values, "values")),
            step,
            walltime,
            parameters={"bins": name, "max_bins": None if max_bins is None else int(max_bins)},
            parts=parts,
            across=policy,
        )

    def histogram_raw(
        self,
        tag: str,
        min: Any,  # noqa: A002 - the names that these numbers have in TensorBoard and torch
        max: Any,  # noqa: A002
        num: Any,
        sum: Any,  # noqa: A002
        sum_squares: Any,
        bucket_limits: Any,
        bucket_counts: Any,
        step: int | None = None,
        *,
        across: str = "each",
        walltime: float | None = None,
    ) -> None:
        """Log a histogram that was counted already: for each bucket its upper limit and how many
        values are in it; of all values the smallest, the largest, their number, sum and sum of
        squares.

        Raises:
            TypeError, ValueError: an argument is not of this form; it is named.
        """
        limits = staging.describe(bucket_limits, "bucket_limits")
        counts = staging.describe(bucket_counts, "bucket_counts")
        if len(limits.shape) != 1 or limits.shape != counts.shape:
            raise ValueError(
                "bucket_limits: expected one for each of bucket_counts, in one dimension, "
                f"got shapes {limits.shape} and {counts.shape}"
            )
        numbers = {"min": min, "max": max, "num": num, "sum": sum, "sum_squares": sum_squares}
        here, coming = _split(numbers)
        self._add(
            Kind.HISTOGRAM_RAW,
            tag,
            staging.stack([limits, counts], "float64"),
            step,
            walltime,
            parameters=dict.fromkeys(numbers, 0.0) | here,
            across=rules.check_across(across, OTHER_ACROSS),
            late=Late(coming, _set_parameters) if coming else None,
        )

    def pr_curve(
        self,
        tag: str,
        labels: Any,
        predictions: Any,
        step: int | None = None,
        *,
        num_thresholds: int = 127,
        weights: Any = None,
        across: str = "each",
        walltime: float | None = None,
    ) -> None:
        """Log a precision-recall curve, which the daemon counts.

        `labels` are the truth, 0 or 1 (or shares of it); `predictions`, one for each, are
        probabilities in [0, 1]. `weights` is a number or one for each.

        Raises:
            TypeError, ValueError: an argument is not of this form; it is named.
        """
        given = staging.describe(predictions, "predictions")
        truth = staging.describe(labels, "labels")
        if math.prod(truth.shape) != math.prod(given.shape):
            raise ValueError(
                f"labels: expected one for each prediction, of shape {given.shape}, "
                f"got shape {truth.shape}"
            )
        parts: dict[str, Described] = {}
        if truth.dtype in ("bool", "uint8"):
            parts["labels"] = dataclasses.replace(truth, dtype="uint8")
        else:
            parts["labels"] = staging.convert(truth, "float64")
        if weights is not None:
            spread = staging.broadcast(staging.describe(weights, "weights"), truth.shape)
            parts["weights"] = staging.convert(spread, "float64")
        flat = _flat(given)
        self._add(
            Kind.PR_CURVE,
            tag,
            # As they are, because torch computes with them in their own precision.
            flat if flat.dtype in FLOATS else staging.convert(flat, "float64"),
            step,
            walltime,
            parameters={"num_thresholds": num_thresholds},
            parts=parts,
            across=rules.check_across(across, OTHER_ACROSS),
        )

    def pr_curve_raw(
        self,
        tag: str,
        true_positive_counts: Any,
        false_positive_counts: Any,
        true_negative_counts: Any,
        false_negative_counts: Any,
        precision: Any,
        recall: Any,
        step: int | None = None,
        *,
        num_thresholds: int = 127,
        across: str = "each",
        walltime: float | None = None,
    ) -> None:
        """Log a precision-recall curve that was counted already: arrays of one length, an element
        for each threshold.

        Raises:
            TypeError, ValueError: an argument is not of this form; it is named.
        """
        rows = {
            "true_positive_counts": true_positive_counts,
            "false_positive_counts": false_positive_counts,
            "true_negative_counts": true_negative_counts,
            "false_negative_counts": false_negative_counts,
            "precision": precision,
            "recall": recall,
        }
        given = [staging.describe(row, name) for name, row in rows.items()]
        for row in given:
            if len(row.shape) != 1 or 0 in row.shape or row.shape != given[0].shape:
                raise ValueError(
                    f"{row.name}: expected an element for each threshold, in one dimension, "
                    f"as the others have {given[0].shape}, got shape {row.shape}"
                )
        self._add(
            Kind.PR_CURVE_RAW,
            tag,
            staging.stack(given, "float64"),
            step,
            walltime,
            parameters={"num_thresholds": num_thresholds},
            across=rules.check_across(across, OTHER_ACROSS),
        )

    def tensor(
        self,
        tag: str,
        tensor: Any,
        step: int | None = None,
        *,
        across: str = "each",
        walltime: float | None = None,
    ) -> None:
        """Log an array as it is: no dashboard of TensorBoard shows it, other readers do.

        Of any shape, real or complex, at most 16 million elements.

        Raises:
            TypeError, ValueError: an argument is not of this form; it is named.
        """
        given = staging.describe(tensor, "tensor", NUMBERS)
        policy = rules.check_across(across, OTHER_ACROSS)
        self._add(Kind.TENSOR, tag, given, step, walltime, across=policy)

    def audio(
        self,
        tag: str,
        audio: Any,
        step: int | None = None,
        *,
        sample_rate: int = 44_100,
        across: str = "each",
        walltime: float | None = None,
    ) -> None:
        """Log a sound of one channel: samples in [-1, 1], in one dimension besides those of size 1.

        `sample_rate` is in hertz.

        Raises:
            TypeError, ValueError: an argument is not of this form; it is named.
        """
        given = staging.describe(audio, "audio")
        shape = tuple(size for size in given.shape if size != 1) or (1,)
        if len(shape) > 1 or 0 in shape:
            raise ValueError(
                f"audio: expected samples of one channel, shape (N,) or (1, N), "
                f"got shape {given.shape}"
            )
        self._add(
            Kind.AUDIO,
            tag,
            dataclasses.replace(given, shape=shape),
            step,
            walltime,
            parameters={"sample_rate": sample_rate},
            across=rules.check_across(across, OTHER_ACROSS),
        )

    def mesh(
        self,
        tag: str,
        vertices: Any,
        step: int | None = None,
        *,
        colors: Any = None,
        faces: Any = None,
        config: Mapping[str, Any] | None = None,
        across: str = "each",
        walltime: float | None = None,
    ) -> None:
        """Log points in space, or a surface: `vertices` of shape (B, N, 3), of which TensorBoard
        shows the first of the batch.

        `colors`, one for each vertex, are in [0, 255]; `faces` of shape (B, M, 3) are triangles,
        by the numbers of their vertices; `config` is how three.js shows them, as
        `{"camera": {"cls": "PerspectiveCamera", "fov": 75}}`.

        Raises:
            TypeError, ValueError: an argument is not of this form; it is named.
        """
        given = _points(vertices, "vertices")
        batch = given.shape[0]
        parts: dict[str, Described] = {}
        if colors is not None:
            parts["colors"] = _points(colors, "colors")
            if parts["colors"].shape != given.shape:
                raise ValueError(
                    f"colors: expected one for each vertex, shape {given.shape}, "
                    f"got shape {parts['colors'].shape}"
                )
        if faces is not None:
            parts["faces"] = _points(faces, "faces")
            if parts["faces"].shape[0] != batch:
                raise ValueError(
                    f"faces: expected shape ({batch}, M, 3), got shape {parts['faces'].shape}"
                )
        if config is not None:
            parts["config"] = _scene(config)
        policy = rules.check_across(across, OTHER_ACROSS)
        self._add(Kind.MESH, tag, given, step, walltime, parts=parts, across=policy)

    def embedding(
        self,
        tag: str,
        mat: Any,
        step: int | None = None,
        *,
        metadata: Sequence[Any] | None = None,
        metadata_header: Sequence[str] | None = None,
        sprite: Any = None,
        across: str = "each",
    ) -> None:
        """Log points of many dimensions, (N, D), for TensorBoard's projector.

        `metadata` has a label for each point, or with `metadata_header`, the names of columns,
        a sequence of labels for each. `sprite` has a little picture for each, (N, C, H, W) of
        floats in [0, 1] with 1 or 3 channels.

        Raises:
            TypeError, ValueError: an argument is not of this form; it is named.
        """
        given = staging.describe(mat, "mat")
        if len(given.shape) != 2 or 0 in given.shape:
            raise ValueError(f"mat: expected points of shape (N, D), got shape {given.shape}")
        parts: dict[str, Described] = {}
        if metadata is not None:
            parts["metadata"] = _table(metadata, metadata_header, given.shape[0])
        pictures: Given | None = None
        if sprite is not None:
            parts["sprite"] = pictures = staging.describe(sprite, "sprite")
        self._add(
            Kind.EMBEDDING,
            tag,
            given,
            step,
            None,
            parameters={
                "global_step": self._step if step is None else step,
                "sprite_shape": None if pictures is None else list(pictures.shape),
                "sprite_dtype": None if pictures is None else pictures.dtype,
            },
            parts=parts,
            across=rules.check_across(across, OTHER_ACROSS),
        )


def _flat(given: Given) -> Given:
    shape = (math.prod(given.shape),)
    return Given(given.value, given.name, given.dtype, shape, given.nbytes, given.is_own)


def _points(value: Any, name: str) -> Described:
    given = staging.describe(value, name)
    if len(given.shape) != 3 or given.shape[-1] != 3 or 0 in given.shape:
        raise ValueError(f"{name}: expected shape (B, N, 3), got shape {given.shape}")
    return staging.convert(given, "float32")


def _split(values: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, Described]]:
    """Numbers that are here, and those that are on a device."""
    here: dict[str, float] = {}
    coming: dict[str, Described] = {}
    for name, value in values.items():
        check_number(value, name)
        if staging.on_device(value):
            coming[name] = staging.describe(value.reshape(1), name)
        else:
            here[name] = number(value, name)
    return here, coming


def _set_parameters(blob: Blob, arrived: Mapping[str, Snapshot]) -> None:
    blob.parameters |= {name: float(copy.numbers()[0]) for name, copy in arrived.items()}


def _scene(config: object) -> Described:
    if not isinstance(config, Mapping):
        raise TypeError(f"config: expected a mapping, got {rules.given(config)}")
    try:
        encoded = json.dumps(config, sort_keys=True).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(
            f"config: expected what JSON can say, got {rules.given(config)}: {error}"
        ) from None
    documents.read_config(encoded)
    return staging.of_bytes(encoded, "config")


def _table(metadata: Sequence[Any], header: Sequence[str] | None, count: int) -> Described:
    """Labels as the lines of a TSV file."""
    if isinstance(metadata, str) or not hasattr(metadata, "__len__"):
        raise TypeError(f"metadata: expected a label for each point, got {rules.given(metadata)}")
    if len(metadata) != count:
        raise ValueError(
            f"metadata: expected a label for each of {count} points, got {len(metadata)}"
        )
    lines = [str(label) for label in metadata]
    if header:
        for row in metadata:
            if isinstance(row, str) or not hasattr(row, "__len__") or len(row) != len(header):
                raise ValueError(
                    f"metadata: expected a label for each of {len(header)} columns of "
                    f"metadata_header in every row, got {rules.given(row)}"
                )
        lines = ["\t".join(map(str, row)) for row in (header, *metadata)]
    return staging.of_text("\n".join(lines) + "\n", "metadata")
