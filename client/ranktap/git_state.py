"""The commit of the code that runs, out of the files in .git; git itself is never run.

    .git/HEAD -> "ref: refs/heads/main" -> .git/refs/heads/main, or a line of .git/packed-refs
    .git/index -> each tracked file's size and time, and the hash of what it should hold

Layouts are those of git's own documentation: gitrepository-layout(5), gitformat-index(5).
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

LOOK_S: Final = 0.25
"""How long the files of a repository may be looked at: about 50,000 on a disk of one's own."""

HASHED_BYTES: Final = 8 << 20
"""The largest file that is read to tell whether it has changed."""

_COMMIT: Final = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_SHA1_BYTES: Final = 20
_FIXED_BYTES: Final = 62
"""Of an entry of the index, before its name."""
_EXTENDED: Final = 0x4000
_UNWATCHED: Final = 0x8000
"""Flags of an entry: it has two bytes more; its file is to be taken as unchanged."""
_SKIPPED: Final = 0x4000
"""Among those two bytes: its file need not be there."""


def commit_of(directory: Path, look_s: float = LOOK_S) -> str | None:
    """The commit that the work tree around a directory has checked out; None when there is none.

    With "+" when a file that git tracks differs from what was added last, and "?" when that
    could not be told in `look_s` seconds.

    Raises:
        OSError, ValueError: there is a .git that cannot be read.
    """
    for tree in (directory, *directory.parents):
        git = tree / ".git"
        if git.is_file():
            # A linked work tree, or a submodule.
            git = tree / git.read_text().removeprefix("gitdir:").strip()
        if (git / "HEAD").is_file():
            commit = _head(git)
            return None if commit is None else commit + _mark(git, tree, look_s)
    return None


def _head(git: Path) -> str | None:
    said = (git / "HEAD").read_text().strip()
    if not said.startswith("ref:"):
        return said if _COMMIT.fullmatch(said) else None
    ref = said.removeprefix("ref:").strip()
    shared = git / "commondir"
    common = git / shared.read_text().strip() if shared.is_file() else git
    for place in (git, common):
        if (place / ref).is_file():
            said = (place / ref).read_text().strip()
            return said if _COMMIT.fullmatch(said) else None
    packed = common / "packed-refs"
    for line in packed.read_text().splitlines() if packed.is_file() else []:
        commit, _, name = line.partition(" ")
        if name == ref:
            return commit
    return None  # nothing was committed yet


def _mark(git: Path, tree: Path, look_s: float) -> str:
    deadline = time.monotonic() + look_s
    try:
        for number, entry in enumerate(_tracked((git / "index").read_bytes())):
            if _is_changed(tree, entry):
                return "+"
            if number % 64 == 0 and time.monotonic() > deadline:
                return "?"
    except (OSError, ValueError, IndexError):
        return "?"
    return ""


@dataclass(frozen=True, slots=True)
class _Tracked:
    path: bytes
    mode: int
    modified_s: int
    modified_ns: int
    nbytes: int
    sha1: bytes


def _tracked(index: bytes) -> Iterator[_Tracked]:
    """The files that an index has.

    Raises:
        ValueError, IndexError: it is none of versions 2 to 4, with SHA-1.
    """
    version = int.from_bytes(index[4:8], "big")
    if index[:4] != b"DIRC" or version not in (2, 3, 4):
        raise ValueError(f"an index of version {version}")
    at, path = 12, b""
    for _ in range(int.from_bytes(index[8:12], "big")):
        words = [int.from_bytes(index[at + 4 * i : at + 4 * i + 4], "big") for i in range(10)]
        flags = int.from_bytes(index[at + 60 : at + 62], "big")
        name = at + _FIXED_BYTES + (2 if flags & _EXTENDED else 0)
        more = int.from_bytes(index[at + 62 : name], "big")
        kept = 0
        if version == 4:
            cut, name = _varint(index, name)
            kept = len(path) - cut
        end = index.index(b"\0", name)
        path = path[:kept] + index[name:end]
        if not (flags & _UNWATCHED or more & _SKIPPED):
            sha1 = index[at + 40 : at + 40 + _SHA1_BYTES]
            yield _Tracked(path, words[6], words[2], words[3], words[9], sha1)
        # Up to version 3 one to eight zeros fill an entry up to a multiple of 8.
        at = end + 1 if version == 4 else at + (end - at) // 8 * 8 + 8


def _varint(index: bytes, at: int) -> tuple[int, int]:
    """A number, the most significant seven bits first, and where it ends."""
    number = index[at] & 0x7F
    while index[at] & 0x80:
        at += 1
        number = (number + 1) << 7 | index[at] & 0x7F
    return number, at + 1


def _is_changed(tree: Path, entry: _Tracked) -> bool:
    kind = stat.S_IFMT(entry.mode)
    if kind not in (stat.S_IFREG, stat.S_IFLNK):
        return False  # a submodule
    path = os.path.join(os.fsencode(tree), entry.path)  # noqa: PTH118
    try:
        found = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    # A size of 0 says that git itself was not sure.
    if stat.S_IFMT(found.st_mode) != kind or (
        entry.nbytes and found.st_size & 0xFFFFFFFF != entry.nbytes
    ):
        return True
    seconds, ns = divmod(found.st_mtime_ns, 1_000_000_000)
    if entry.nbytes and (seconds & 0xFFFFFFFF, ns) == (entry.modified_s, entry.modified_ns):
        return False
    # It was written since; perhaps the same. A copied work tree has other times throughout.
    if found.st_size > HASHED_BYTES:
        raise ValueError(f"{path!r} has {found.st_size} bytes")
    if kind == stat.S_IFLNK:
        content = os.readlink(path)  # noqa: PTH115
    else:
        with open(path, "rb") as file:
            content = file.read()
    blob = b"blob %d\0" % len(content) + content
    return hashlib.sha1(blob, usedforsecurity=False).digest() != entry.sha1
