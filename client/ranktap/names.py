"""Which modules and parameters of a model are meant, and what they are called in tags.

Everything is resolved before anything is attached: a pattern that names nothing is an
error that leaves the model as it was.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

ROOT = "model"
"""What the model itself is called: its own name in `named_modules` is empty."""

_WRAPPERS = re.compile(
    r"(?:^|(?<=\.))"
    r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_fpw_module)(?:\.|$)"
)
"""torch.compile, FSDP, checkpoint_wrapper."""


def clean(name: str, data_parallel: Iterable[str] = ()) -> str:
    """The name without what wrappers put into it: the same with any wrapper, and with none.

    `data_parallel` are the names of the modules that are DistributedDataParallel or
    DataParallel; their child is called `module`, as a user's own may be too.
    """
    for wrapper in sorted(data_parallel, key=len, reverse=True):
        inner = f"{wrapper}.module" if wrapper else "module"
        if name == inner or name.startswith(inner + "."):
            name = wrapper + name[len(inner) :]
            name = name if wrapper else name.removeprefix(".")
    return _WRAPPERS.sub("", name).rstrip(".") or ROOT


def patterns(given: object, argument: str) -> tuple[str, ...] | None:
    """A pattern, or several, as a tuple; None as it is.

    Raises:
        TypeError: it is neither.
    """
    if given is None:
        return None
    if isinstance(given, str):
        return (given,)
    if isinstance(given, Sequence | set | frozenset) and all(
        isinstance(pattern, str) for pattern in given
    ):
        return tuple(given)
    raise TypeError(
        f"{argument}: expected a pattern such as 'layer1.*' or several, got {given!r} "
        f"({type(given).__name__})"
    )


def matches(name: str, given: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in given)


def check_used(given: Iterable[str] | None, known: Iterable[str], argument: str) -> None:
    """Raise ValueError for a pattern that is the pattern of nothing."""
    names = list(known)
    for pattern in given or ():
        if not any(fnmatchcase(name, pattern) for name in names):
            shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
            raise ValueError(
                f"{argument}: {pattern!r} matches no module and no parameter of the model, "
                f"which has {shown}"
            )


def choose_modules(
    modules: Mapping[str, Any], include: Sequence[str] | None, exclude: Sequence[str] | None
) -> dict[str, Any]:
    """The modules to look at: those without children; of the others those that `include` names
    in full. A container's output is mostly that of its last child."""
    return {
        name: module
        for name, module in modules.items()
        if not matches(name, exclude or ())
        and (
            name in (include or ())
            or (
                next(module.children(), None) is None
                and (include is None or matches(name, include))
            )
        )
    }


def is_chosen_parameter(
    name: str, include: Sequence[str] | None, exclude: Sequence[str] | None
) -> bool:
    """Whether a parameter is meant, by its own name or by its module's."""
    owner = name.rpartition(".")[0] or ROOT
    if matches(name, exclude or ()) or matches(owner, exclude or ()):
        return False
    return include is None or matches(name, include) or matches(owner, include)
