"""What is neither a number nor an array: text, graphs, layouts of charts, hyperparameters."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ranktap import staging, tracing
from ranktap.base import Late
from ranktap.scalars import Scalars, check_sub_run
from ranktap.staging import Described, Snapshot
from ranktap.values import check_number, number
from ranktap_wire import rules
from ranktap_wire.documents import (
    MARGIN,
    MULTILINE,
    Category,
    Chart,
    HParams,
    Value,
    pack_hparams,
    pack_layout,
    read_hparams,
    read_layout,
)
from ranktap_wire.records import OTHER_ACROSS, Across, Blob, Kind, Style, join_name
from ranktap_wire.shown import EXPERIMENT_TAG, LAYOUT_TAG

# A run has one, and it has no tag in TensorBoard.
GRAPH_TAG: Final = "graph"


class Documents(Scalars):
    """The methods that log documents."""

    def text(
        self,
        tag: str,
        text: str,
        step: int | None = None,
        *,
        across: str = "each",
        walltime: float | None = None,
    ) -> None:
        """Log text; TensorBoard shows it as Markdown. With several ranks, `across="each"` shows
        rank 0's under the tag itself and the others' under tags of their own, and "rank0" rank
        0's alone.

        Raises:
            TypeError, ValueError: an argument is not of this form; it is named.
        """
        if not isinstance(text, str):
            raise TypeError(f"text: expected a string, got {type(text).__name__}")
        given = staging.of_text(text, "text")
        policy = rules.check_across(across, OTHER_ACROSS)
        self._add(Kind.TEXT, tag, given, step, walltime, across=policy)

    def graph(
        self,
        model: Any,
        inputs: Any = None,
        *,
        verbose: bool = False,
        use_strict_trace: bool = True,
        walltime: float | None = None,
    ) -> None:
        """Log a model's graph, as `torch.jit.trace` finds it with these `inputs`, a tensor or a
        tuple of them. The model is run once, here and now; rank 0's counts.

        Raises:
            TypeError, ValueError: an argument is not of this form; it is named.
            ModuleNotFoundError: torch's way to a graph needs what `pip install 'ranktap[daemon]'`
                installs.
            RuntimeError: the model cannot be traced.
        """
        # In every rank, also where it does not count: a model that talks to those of the other
        # ranks as it runs would wait for them for ever.
        graph, run_metadata = tracing.trace_model(model, inputs, verbose, use_strict_trace)
        self._add(
            Kind.GRAPH,
            GRAPH_TAG,
            staging.of_bytes(graph, "model"),
            0,
            walltime,
            parts={"run_metadata": staging.of_bytes(run_metadata, "model")},
            across=Across.RANK0,
        )

    def onnx_graph(self, path: str | os.PathLike[str], *, walltime: float | None = None) -> None:
        """Log the graph of a model in an ONNX file; rank 0's counts.

        Raises:
            TypeError, ValueError: an argument is not of this form; it is named.
            ModuleNotFoundError: there is no onnx, or what `pip install 'ranktap[daemon]'` installs.
            OSError: the file cannot be read.
        """
        graph = staging.of_bytes(tracing.load_onnx(path), "path")
        self._add(Kind.GRAPH, GRAPH_TAG, graph, 0, walltime, across=Across.RANK0)

    def custom_scalars(
        self,
        layout: Mapping[str, Mapping[str, Sequence[Any]]],
        *,
        walltime: float | None = None,
    ) -> None:
        """Say which scalars share a chart on the Custom Scalars page; the last layout counts, and
        rank 0's: {category: {title: ["Multiline", [tag, ...]]}}.

        The tags of a "Multiline" chart are regular expressions; a "Margin" chart takes three
        tags: a value, and the lower and the upper end of the band around it.

        Raises:
            TypeError, ValueError: an argument is not of this form; it is named.
        """
        encoded = pack_layout(_checked_layout(layout))
        read_layout(encoded)
        self._add(
            Kind.CUSTOM_SCALARS, LAYOUT_TAG, _json(encoded, "layout"), 0, walltime,
            across=Across.RANK0,
        )  # fmt: skip

    def hparams(
        self,
        hparams: Mapping[str, Any],
        metrics: Mapping[str, Any],
        step: int | None = None,
        *,
        discrete: Mapping[str, Sequence[Any]] | None = None,
        run_name: str | None = None,
        walltime: float | None = None,
    ) -> None:
        """Log hyperparameters and what came out of them, as one line of the HParams page.

        `hparams` are numbers, strings, bools, tensors of one element, or None, which is left
        out. `metrics` are scalars. `discrete` says of some hyperparameters all values that they
        may take. They are written to a run of their own below this one, `run_name`: the time
        when None, this run itself when ".". Rank 0's count.

        Raises:
            TypeError, ValueError: an argument is not of this form; it is named.
        """
        if run_name is None:
            run_name = str(time.time())
        # "." is the run itself, as in a path.
        sub_run = "" if run_name == "." else check_sub_run(run_name, "run_name")
        step = self._step if step is None else rules.check_step(step)
        walltime = time.time() if walltime is None else rules.check_walltime(walltime)
        _check_mapping("metrics", metrics)
        for name, value in metrics.items():
            rules.check_tag(name)
            check_number(value, f"metrics[{name!r}]")
        here, coming = _checked_hparams(hparams)
        session = HParams(here, [*metrics], _checked_domains(discrete or {}, here))
        encoded = pack_hparams(session)
        read_hparams(encoded)

        def finish(blob: Blob, arrived: Mapping[str, Snapshot]) -> None:
            here.update({name: float(copy.numbers()[0]) for name, copy in arrived.items()})
            blob.data = pack_hparams(session)
            blob.shape = (len(blob.data),)

        way = ("", sub_run, "rank0", "hparams")
        names = {tag: join_name(sub_run, tag) for tag in metrics}
        is_indexed = self._index(way, names, Across.RANK0, Style.SIMPLE)
        self._add(
            Kind.HPARAMS,
            EXPERIMENT_TAG,
            _json(encoded, "hparams"),
            step,
            walltime,
            across=Across.RANK0,
            sub_run=sub_run,
            late=Late(coming, finish) if coming else None,
        )
        if is_indexed:
            self._add_rows(way, metrics, step, walltime)


def _json(encoded: bytes, name: str) -> Described:
    return staging.of_text(encoded.decode(), name)


def _checked_layout(layout: object) -> list[Category]:
    """A layout as it travels.

    Raises:
        TypeError, ValueError: it is not of the form that `Documents.custom_scalars` says.
    """
    categories = []
    for category, charts in _check_mapping("layout", layout).items():
        drawn = []
        for title, chart in _check_mapping(f"layout[{category!r}]", charts).items():
            where = f"layout[{category!r}][{title!r}]"
            if isinstance(chart, str) or not isinstance(chart, Sequence) or len(chart) != 2:
                raise TypeError(f"{where}: expected [kind, tags], got {rules.given(chart)}")
            kind, tags = chart
            if kind not in (MULTILINE, MARGIN):
                raise ValueError(
                    f"{where}: expected {MULTILINE!r} or {MARGIN!r}, got {rules.given(kind)}"
                )
            if isinstance(tags, str) or not isinstance(tags, Sequence):
                raise TypeError(f"{where}: expected a sequence of tags, got {rules.given(tags)}")
            drawn.append(Chart(title, kind == MARGIN, [*tags]))
        categories.append(Category(category, drawn))
    return categories


def _checked_hparams(hparams: object) -> tuple[dict[str, Value], dict[str, Described]]:
    """Hyperparameters that are here, with a 0 for each of those that are still on a device."""
    here: dict[str, Value] = {}
    coming: dict[str, Described] = {}
    for name, value in _check_mapping("hparams", hparams).items():
        where = f"hparams[{name!r}]"
        if value is None:
            continue
        if isinstance(value, bool | str):
            here[name] = value
        elif staging.on_device(value):
            check_number(value, where)
            here[name] = 0.0
            coming[name] = staging.describe(value.reshape(1), where)
        elif isinstance(value, int):
            here[name] = value
        else:
            here[name] = number(value, where)
    return here, coming


def _checked_domains(discrete: object, hparams: Mapping[str, Value]) -> dict[str, list[Value]]:
    domains: dict[str, list[Value]] = {}
    for name, domain in _check_mapping("discrete", discrete).items():
        where = f"discrete[{name!r}]"
        if name not in hparams:
            raise ValueError(f"discrete: expected names of hyperparameters, got {name!r}")
        if isinstance(domain, str) or not isinstance(domain, Sequence):
            raise TypeError(f"{where}: expected a sequence of values, got {rules.given(domain)}")
        domains[name] = []
        for value in domain:
            if isinstance(value, str) != isinstance(hparams[name], str):
                raise TypeError(
                    f"{where}: expected values like the hyperparameter's {hparams[name]!r}, "
                    f"got {rules.given(value)}"
                )
            is_plain = isinstance(value, bool | int | float | str)
            domains[name].append(value if is_plain else number(value, where))
    return domains


def _check_mapping(name: str, value: object) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{name}: expected a mapping, got {rules.given(value)}")
    return value
