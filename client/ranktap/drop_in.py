"""SummaryWriter: the surface of `torch.utils.tensorboard.SummaryWriter`, over a tap.

The methods have torch's names, arguments and defaults; what each does is a tap's.
docs/summary-writer.md says where the two differ on purpose.
"""

from __future__ import annotations

import functools
import threading
from typing import Any, Final

from ranktap import opening
from ranktap.closing import Closing
from ranktap.tap import Tap
from ranktap.torch_arguments import (
    StrPath,
    at_most,
    below,
    charts,
    corners,
    place,
    plain,
    plain_values,
    raise_renamed,
    seconds,
    torch_names,
    when,
    whole,
)
from ranktap_wire.histograms import BINS_MAX

THRESHOLDS_MAX: Final = 127
"""torch writes a precision-recall curve as one of so many thresholds when more are asked for."""


class SummaryWriter(Closing):
    """Logs as `torch.utils.tensorboard.SummaryWriter` does, through ranktap.

    `log_dir` is the directory of the run; "runs/<date>_<host><comment>" when None, in a job of
    several ranks "runs/<what the job is called>". A daemon is started for it, which this
    machine's ranks share. With `endpoint`, or RANKTAP_ENDPOINT, it is one elsewhere, and the
    run's name is made of `log_dir`: a relative path less "./" and a leading "runs/", or the last
    component of an absolute one. `run` gives it another name; without an endpoint, the run is
    then a directory below `log_dir`. With RANKTAP_SPOOL (see `ranktap.init`) the daemon is
    elsewhere too, and none is started here.

    `purge_step` says that what an earlier job logged at or past this step is void. `max_queue`
    and `flush_secs` are taken, and change nothing: no call waits for a queue, and what is logged
    is on its way after 50 ms.

    Raises:
        TypeError, ValueError: an argument is not of this form; it is named.
        LookupError: the ranks of this job have no name in common, and none was given.
        ModuleNotFoundError: a daemon needs what `pip install 'ranktap[daemon]'` installs.
    """

    def __init__(
        self,
        log_dir: StrPath | None = None,
        comment: str = "",
        purge_step: int | None = None,
        max_queue: int = 10,
        flush_secs: int = 120,
        filename_suffix: str = "",
        *,
        run: str | None = None,
        endpoint: str | None = None,
    ) -> None:
        self.log_dir, logdir, name = place(log_dir, comment, run, endpoint)
        self.purge_step = purge_step
        self.max_queue = max_queue
        self.flush_secs = flush_secs
        self.filename_suffix = filename_suffix
        self._opening = threading.Lock()
        self._open = functools.partial(
            opening.init, name, logdir=logdir, endpoint=endpoint, filename_suffix=filename_suffix
        )
        try:
            self._tap: Tap | None = self._open(resume_step=purge_step)
        except (TypeError, ValueError) as error:
            of_run = {"run": "log_dir"} if log_dir and not run else {}
            raise_renamed(error, {"logdir": "log_dir", "resume_step": "purge_step"} | of_run)

    @property
    def tap(self) -> Tap:
        """The tap behind it, for what torch's writer has not: `writer.tap.watch(model)`."""
        return self._tap or self._reopened()

    def get_logdir(self) -> StrPath:
        """The directory of the run."""
        return self.log_dir

    # -- scalars ----------------------------------------------------------------------

    def add_scalar(
        self,
        tag: str,
        scalar_value: Any,
        global_step: Any = None,
        walltime: float | None = None,
        new_style: bool = False,
        double_precision: bool = False,
    ) -> None:
        """Log a number. See `Tap.scalar`; `new_style` writes a tensor, of a double with
        `double_precision`."""
        # This one is called in every step: what it does not need is not called.
        if type(scalar_value) is not float:
            scalar_value = plain(scalar_value)
        if type(global_step) is not int:
            global_step = whole(global_step)
        if walltime is not None:
            walltime = seconds(walltime)
        tap = self._tap or self._reopened()
        try:
            if new_style:
                style = "double" if double_precision else "float"
                tap.scalars({tag: scalar_value}, global_step, style=style, walltime=walltime)
            else:
                tap.scalar(tag, scalar_value, global_step, walltime=walltime)
        except (TypeError, ValueError) as error:
            raise_renamed(error, {"value": "scalar_value", "values": "scalar_value"})

    @torch_names(values="tag_scalar_dict")
    def add_scalars(
        self,
        main_tag: str,
        tag_scalar_dict: dict[str, Any],
        global_step: Any = None,
        walltime: float | None = None,
    ) -> None:
        """Log numbers as curves of one chart. See `Tap.curves`."""
        values = plain_values(tag_scalar_dict)
        self.tap.curves(main_tag, values, **when(global_step, walltime))

    @torch_names(hparams="hparam_dict", metrics="metric_dict", discrete="hparam_domain_discrete")
    def add_hparams(
        self,
        hparam_dict: dict[str, Any],
        metric_dict: dict[str, Any],
        hparam_domain_discrete: dict[str, list[Any]] | None = None,
        run_name: str | None = None,
        global_step: Any = None,
    ) -> None:
        """Log hyperparameters and what came out of them. See `Tap.hparams`."""
        self.tap.hparams(
            hparam_dict,
            plain_values(metric_dict),
            whole(global_step),
            discrete=hparam_domain_discrete,
            run_name=below(run_name),
        )

    def add_custom_scalars_multilinechart(
        self, tags: list[str], category: str = "default", title: str = "untitled"
    ) -> None:
        """Let scalars share a chart, each a line. See `Tap.custom_scalars`."""
        self.tap.custom_scalars({category: {title: ["Multiline", tags]}})

    def add_custom_scalars_marginchart(
        self, tags: list[str], category: str = "default", title: str = "untitled"
    ) -> None:
        """Let three scalars share a chart: a line, and a band around it."""
        self.tap.custom_scalars({category: {title: ["Margin", tags]}})

    def add_custom_scalars(self, layout: dict[str, dict[str, list[Any]]]) -> None:
        """Say which scalars share a chart. See `Tap.custom_scalars`; as with torch, every kind
        of chart but "Margin" is "Multiline"."""
        self.tap.custom_scalars(charts(layout))

    # -- arrays -----------------------------------------------------------------------

    @torch_names()
    def add_tensor(
        self, tag: str, tensor: Any, global_step: Any = None, walltime: float | None = None
    ) -> None:
        """Log an array as it is. See `Tap.tensor`."""
        self.tap.tensor(tag, plain(tensor), **when(global_step, walltime))

    @torch_names()
    def add_histogram(
        self,
        tag: str,
        values: Any,
        global_step: Any = None,
        bins: Any = "tensorflow",
        walltime: float | None = None,
        max_bins: int | None = None,
    ) -> None:
        """Log how values are distributed. See `Tap.histogram`; the ranks' buckets are added up
        where their edges are the same."""
        is_of_data = isinstance(bins, str | int) and bins != "tensorflow"
        across = "each" if is_of_data else "merge"
        moment = when(global_step, walltime)
        most = at_most(max_bins, BINS_MAX)
        self.tap.histogram(tag, plain(values), bins=bins, max_bins=most, across=across, **moment)

    @torch_names()
    def add_histogram_raw(
        self,
        tag: str,
        min: Any,  # noqa: A002 - torch's names
        max: Any,  # noqa: A002
        num: Any,
        sum: Any,  # noqa: A002
        sum_squares: Any,
        bucket_limits: Any,
        bucket_counts: Any,
        global_step: Any = None,
        walltime: float | None = None,
    ) -> None:
        """Log a histogram that was counted already. See `Tap.histogram_raw`."""
        numbers = (min, max, num, sum, sum_squares)
        moment = when(global_step, walltime)
        self.tap.histogram_raw(tag, *numbers, bucket_limits, bucket_counts, **moment)

    @torch_names(audio="snd_tensor")
    def add_audio(
        self,
        tag: str,
        snd_tensor: Any,
        global_step: Any = None,
        sample_rate: float = 44100,
        walltime: float | None = None,
    ) -> None:
        """Log a sound. See `Tap.audio`."""
        rate = round(sample_rate) if isinstance(sample_rate, float) else sample_rate
        moment = when(global_step, walltime)
        self.tap.audio(tag, plain(snd_tensor), sample_rate=rate, **moment)

    @torch_names()
    def add_pr_curve(
        self,
        tag: str,
        labels: Any,
        predictions: Any,
        global_step: Any = None,
        num_thresholds: int = 127,
        weights: Any = None,
        walltime: float | None = None,
    ) -> None:
        """Log a precision-recall curve. See `Tap.pr_curve`."""
        self.tap.pr_curve(
            tag,
            plain(labels),
            plain(predictions),
            num_thresholds=at_most(num_thresholds, THRESHOLDS_MAX),
            weights=weights,
            **when(global_step, walltime),
        )

    @torch_names()
    def add_pr_curve_raw(
        self,
        tag: str,
        true_positive_counts: Any,
        false_positive_counts: Any,
        true_negative_counts: Any,
        false_negative_counts: Any,
        precision: Any,
        recall: Any,
        global_step: Any = None,
        num_thresholds: int = 127,
        weights: Any = None,
        walltime: float | None = None,
    ) -> None:
        """Log a precision-recall curve that was counted already. See `Tap.pr_curve_raw`; as with
        torch, `weights` is not looked at."""
        self.tap.pr_curve_raw(
            tag,
            true_positive_counts,
            false_positive_counts,
            true_negative_counts,
            false_negative_counts,
            precision,
            recall,
            num_thresholds=at_most(num_thresholds, THRESHOLDS_MAX),
            **when(global_step, walltime),
        )

    @torch_names(config="config_dict")
    def add_mesh(
        self,
        tag: str,
        vertices: Any,
        colors: Any = None,
        faces: Any = None,
        config_dict: dict[str, Any] | None = None,
        global_step: Any = None,
        walltime: float | None = None,
    ) -> None:
        """Log points in space, or a surface. See `Tap.mesh`."""
        moment = when(global_step, walltime)
        self.tap.mesh(tag, vertices, colors=colors, faces=faces, config=config_dict, **moment)

    @torch_names(sprite="label_img")
    def add_embedding(
        self,
        mat: Any,
        metadata: Any = None,
        label_img: Any = None,
        global_step: Any = None,
        tag: str = "default",
        metadata_header: list[str] | None = None,
    ) -> None:
        """Log points for the projector. See `Tap.embedding`."""
        self.tap.embedding(
            tag,
            plain(mat),
            whole(global_step),
            metadata=metadata,
            metadata_header=metadata_header,
            sprite=label_img,
        )

    # -- pictures ---------------------------------------------------------------------

    @torch_names(image="img_tensor")
    def add_image(
        self,
        tag: str,
        img_tensor: Any,
        global_step: Any = None,
        walltime: float | None = None,
        dataformats: str = "CHW",
    ) -> None:
        """Log a picture. See `Tap.image`."""
        moment = when(global_step, walltime)
        self.tap.image(tag, plain(img_tensor), dataformats=dataformats, **moment)

    def add_images(
        self,
        tag: str,
        img_tensor: Any,
        global_step: Any = None,
        walltime: float | None = None,
        dataformats: str = "NCHW",
    ) -> None:
        """Log a batch of pictures as one, tiled; as with torch, a single one is taken too."""
        self.add_image(tag, img_tensor, global_step, walltime, dataformats)

    @torch_names(image="img_tensor", boxes="box_tensor")
    def add_image_with_boxes(
        self,
        tag: str,
        img_tensor: Any,
        box_tensor: Any,
        global_step: Any = None,
        walltime: float | None = None,
        rescale: float = 1,
        dataformats: str = "CHW",
        labels: list[str] | None = None,
    ) -> None:
        """Log a picture with boxes. See `Tap.image_with_boxes`; as with torch, labels of another
        number than the boxes are left out."""
        texts = [labels] if isinstance(labels, str) else labels
        if texts is not None and len(texts) != len(box_tensor):
            texts = None
        self.tap.image_with_boxes(
            tag,
            plain(img_tensor),
            corners(plain(box_tensor)),
            labels=texts,
            rescale=rescale,
            dataformats=dataformats,
            **when(global_step, walltime),
        )

    @torch_names()
    def add_figure(
        self,
        tag: str,
        figure: Any,
        global_step: Any = None,
        close: bool = True,
        walltime: float | None = None,
    ) -> None:
        """Log a figure of matplotlib, or several. See `Tap.figure`."""
        self.tap.figure(tag, figure, close=close, **when(global_step, walltime))

    @torch_names(video="vid_tensor")
    def add_video(
        self,
        tag: str,
        vid_tensor: Any,
        global_step: Any = None,
        fps: float = 4,
        walltime: float | None = None,
    ) -> None:
        """Log a video, as a GIF. See `Tap.video`."""
        self.tap.video(tag, plain(vid_tensor), fps=fps, **when(global_step, walltime))

    # -- text and graphs --------------------------------------------------------------

    @torch_names(text="text_string")
    def add_text(
        self, tag: str, text_string: str, global_step: Any = None, walltime: float | None = None
    ) -> None:
        """Log text. See `Tap.text`."""
        self.tap.text(tag, text_string, **when(global_step, walltime))

    def add_onnx_graph(self, prototxt: StrPath) -> None:
        """Log the graph of a model in an ONNX file. See `Tap.onnx_graph`."""
        self.tap.onnx_graph(prototxt)

    def add_graph(
        self,
        model: Any,
        input_to_model: Any = None,
        verbose: bool = False,
        use_strict_trace: bool = True,
    ) -> None:
        """Log a model's graph. See `Tap.graph`."""
        self.tap.graph(model, input_to_model, verbose=verbose, use_strict_trace=use_strict_trace)

    # -- the end ----------------------------------------------------------------------

    def flush(self) -> None:
        """Wait, at most 10 s, until all that was logged is safe. See `Tap.flush`."""
        if self._tap is not None:
            self._tap.flush()

    def close(self) -> None:
        """Flush and end; what is logged afterwards opens it again, as with torch."""
        with self._opening:
            tap, self._tap = self._tap, None
        if tap is not None:
            tap.close()

    def _end(self) -> None:
        self.close()

    def _reopened(self) -> Tap:
        """The tap of a closed writer that is used again. What was void then is not void again."""
        with self._opening:
            if self._tap is None:
                self._tap = self._open()
            return self._tap
