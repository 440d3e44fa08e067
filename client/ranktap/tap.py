"""A rank's handle: what user code logs to.

No call here waits for the network, the disk or the daemon, but `flush` and `close`,
and those are bounded. No call raises because of them. Wrong arguments raise at the
call, with the argument's name, what was given, and what is allowed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ranktap.arrays import Arrays
from ranktap.documents import Documents
from ranktap.images import Images

if TYPE_CHECKING:
    from ranktap.hooks import Handle
    from ranktap.watch import Watch


class Tap(Documents, Images, Arrays):
    """A rank's handle. Made by `ranktap.init`; all of it may be called from any thread.

    Where a method takes `step`, None means that of the last `step(n)`, 0 before the
    first. A value is a snapshot: changing it afterwards changes nothing.
    """

    def watch(
        self,
        model: Any,
        *,
        every: int = 100,
        include: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] | None = None,
        inputs: str | Sequence[str] = (),
        activations: str | Sequence[str] = ("moments",),
        grad_inputs: str | Sequence[str] = (),
        grad_outputs: str | Sequence[str] = (),
        gradients: str | Sequence[str] = ("moments",),
        parameters: str | Sequence[str] = ("moments",),
        updates: str | Sequence[str] = (),
        feature_maps: bool | str | Sequence[str] | None = None,
        kernels: bool | str | Sequence[str] | None = None,
        optimizer: Any = None,
        samples: int = 1,
        max_maps: int = 64,
        max_edge: int = 128,
        ranks: str | int | Sequence[int] = "all",
        name: str = "",
    ) -> Watch:
        """Hook a model, and log what its modules and parameters do, every `every`-th step.

        `include` and `exclude` are patterns on the names of modules and parameters, as
        `fnmatch` takes them. Each section, from `inputs` to `updates`, takes any of
        "moments" (scalars), "histogram" (counted on the tensor's device) and "tensor" (all
        of it travels, and the daemon counts). `feature_maps` and `kernels` take patterns,
        or True for every convolution: those of the first `samples` of a batch, at most
        `max_maps` each, shrunk to `max_edge` pixels. docs/hooks.md lists the tags.

        A step ends when an optimizer has stepped that holds some of the model's parameters;
        `optimizer` names it, or several; with False no optimizer is waited for, gradients
        are each rank's own, before DDP's all-reduce, and a step ends at `tap.step`.

        `ranks` take part: "all", a rank, or several. `name` stands before names in tags, for
        a second model. Returns the watch: `capture()`, `remove()`, and a context manager.

        Raises:
            TypeError, ValueError: an argument is not of this form, or a pattern matches nothing.
        """
        given = dict(locals())
        del given["self"], given["model"]
        from ranktap.watch import watch

        return watch(self, model, given)

    def gradient(self, tensor: Any, tag: str, *, kind: str = "moments") -> Handle:
        """Log the gradient of a tensor when backward comes to it, by `Tensor.register_hook`.

        Of a parameter, or another leaf, that is what has been added up on this rank. `kind`
        is "moments" (scalars `<tag>/mean`, `/norm`, ...), "histogram" or "tensor". The step is
        that of `tap.step` at that moment. `remove()` of the result ends it.

        Raises:
            TypeError, ValueError: an argument is not of this form; it is named.
        """
        from ranktap.hooks import gradient

        return gradient(self, tensor, tag, kind)

    def activation(self, module: Any, tag: str | None = None, kind: str = "histogram") -> Handle:
        """Log what a module puts out, each time that it runs. `tag` is "activations/" and the
        module's class when None.

        `kind` is "moments", "histogram", "tensor" or "feature_maps" (of the first sample). The
        step is that of `tap.step` at that moment. `remove()` of the result ends it.

        Raises:
            TypeError, ValueError: an argument is not of this form; it is named.
        """
        from ranktap.hooks import activation

        return activation(self, module, tag, kind)
