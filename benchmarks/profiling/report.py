"""Profiles to a report: what kinds of work each process's CPU time went to, and its top."""

from __future__ import annotations

import io
import json
import pstats
import re
from collections import Counter
from pathlib import Path
from typing import Any

KINDS = {
    "checksum": r"crc32c|google_crc32c",
    "deflate": r"isal|igzip|deflate|compress|crc32'",
    "system calls": r"posix\.|zmq|'_poll'|'send'|'recv'|select|_socket|method 'poll'|time\.sleep"
    r"|_zmq|recv_multipart|send_multipart|socket",
    "copies": r"'copy'|'tobytes'|'astype'|'join'|concatenate|'repeat'|'extend'|copyto|frombuffer"
    r"|numpy\.array\b|ascontiguousarray|'transpose'|'tolist'|'reshape'",
    "numpy": r"numpy|ufunc|'reduce'|'take'|'sort'|'argsort'|'cumsum'|'nonzero'|'view'",
    "protobuf, msgpack": r"google\._upb|SerializeToString|msgpack|upb|ParseFromString|FromString",
    "torch": r"torch",
}
"""Kinds of functions of C, by what their names hold; the first that matches. The rest is
"other C"."""

FILES = {"importlib": "imports", "/zmq/": "pyzmq"}
"""Of functions of Python, by what their file's name holds; pyzmq's are compiled."""

TOP = 25


def report(directory: Path) -> str:
    """Of all processes that left a profile in this directory."""
    parts = []
    for path in sorted(directory.glob("*.json"), key=lambda path: _about(path)["name"]):
        about = _about(path)
        parts.append(
            f"== {about['name']}: from its start {about['user']:.2f} s user, "
            f"{about['system']:.2f} s system\n"
        )
        for thread, file in about["threads"]:
            parts.append(_thread(thread, directory / file))
    return "\n".join(parts)


def _about(path: Path) -> dict[str, Any]:
    about: dict[str, Any] = json.loads(path.read_text())
    return about


def _thread(name: str, path: Path) -> str:
    text = io.StringIO()
    stats = pstats.Stats(str(path), stream=text)
    total: float = stats.total_tt  # type: ignore[attr-defined]
    kinds = by_kind(stats.stats)  # type: ignore[attr-defined]
    if total < 0.005:
        return f"-- {name}: {total * 1e3:.1f} ms\n"
    shares = ", ".join(f"{kind} {spent / total:.0%}" for kind, spent in kinds.most_common())
    stats.sort_stats("tottime").print_stats(TOP)
    table = text.getvalue().partition("ncalls")[2]
    return f"-- {name}: {total:.3f} s of CPU: {shares}\n   ncalls{table.rstrip()}\n"


def by_kind(stats: dict[tuple[str, int, str], Any]) -> Counter[str]:
    """Own time of all functions, by what kind of work they are."""
    spent: Counter[str] = Counter()
    for (file, _, function), (_, _, own, _, _) in stats.items():
        spent[kind_of(file, function)] += own
    return spent


def kind_of(file: str, function: str) -> str:
    """What kind of work a function is; those of C have "~" for a file."""
    if file != "~":
        return next((kind for part, kind in FILES.items() if part in file), "Python")
    return next((kind for kind, names in KINDS.items() if re.search(names, function)), "other C")
