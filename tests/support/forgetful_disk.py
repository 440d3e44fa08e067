"""A disk that forgets what was not synced, told what processes did to a real one.

A traced operation changes what the file system shows; only a sync makes it stay: that of a
file its bytes, that of a directory the names in it. A power cut may leave of everything
else any part: of a file's new bytes a beginning, with zeros in any place of it; of the
names made, moved and removed in a directory any of them. A rename happens or does not.

Of POSIX no more is used than this. Real file systems forget less.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from tests.support.interposer import Call, Operation


@dataclass(eq=False)
class File:
    data: bytearray = field(default_factory=bytearray)
    synced: bytes = b""


@dataclass(eq=False)
class Directory:
    entries: dict[str, File | Directory] = field(default_factory=dict)
    synced: dict[str, File | Directory] = field(default_factory=dict)
    changes: list[dict[str, File | Directory | None]] = field(default_factory=list)
    """Since the last sync, in order: what a name stands for from then on; None: nothing.
    Those of one change happen together."""

    def change(self, **names: File | Directory | None) -> None:
        self.changes.append(names)
        _apply(self.entries, names)


class Disk:
    """What is below `root`, which is there from the beginning."""

    def __init__(self, root: Path) -> None:
        self._root = PurePosixPath(root)
        self._top = Directory()

    def do(self, operation: Operation) -> None:
        """What a process has done; sends and receives do nothing to a disk."""
        call = operation.call
        if call in (Call.SEND, Call.RECEIVE):
            return
        parent, name = self._place(operation.path)
        node = parent.entries.get(name)
        if call is Call.MKDIR:
            parent.change(**{name: Directory()})
        elif call is Call.UNLINK:
            parent.change(**{name: None})
        elif call is Call.RENAME:
            target, new_name = self._place(operation.data.decode())
            assert target is parent, "no rename goes to another directory"
            parent.change(**{name: None, new_name: node})
        elif call is Call.LINK:
            target, new_name = self._place(operation.data.decode())
            target.change(**{new_name: node})
        elif call is Call.OPEN and node is None:
            parent.change(**{name: File()})
        elif call is Call.SYNC:
            _sync(self._top if operation.path == str(self._root) else node)
        else:
            assert isinstance(node, File), operation
            end = operation.offset + len(operation.data)
            if call is Call.WRITE:
                node.data.extend(bytes(max(0, end - len(node.data))))
                node.data[operation.offset : end] = operation.data
            elif call is Call.TRUNCATE:
                del node.data[operation.offset :]
            elif operation.offset:  # an open that empties the file
                node.data.clear()

    def lay_out(self, target: Path) -> None:
        """What processes that have not ended see, as real files."""
        _lay_out(self._top, target, lambda each: each.entries, lambda file: bytes(file.data))

    def lay_out_synced(self, target: Path) -> None:
        """Only what was synced."""
        _lay_out(self._top, target, lambda each: each.synced, lambda file: file.synced)

    def lay_out_by_chance(self, target: Path, chance: random.Random) -> None:
        """What was synced, and of the rest what chance leaves."""

        def names(directory: Directory) -> dict[str, File | Directory]:
            left = dict(directory.synced)
            for change in directory.changes:
                if chance.random() < 0.5:
                    _apply(left, change)
            return left

        def content(file: File) -> bytes:
            if not file.data.startswith(file.synced):  # it was cut, or emptied
                return bytes(chance.choice((file.data, file.synced)))
            rest = file.data[len(file.synced) :]
            del rest[chance.choice((0, len(rest), chance.randint(0, len(rest)))) :]
            if chance.random() < 0.3:
                hole = slice(*sorted((chance.randint(0, len(rest)), chance.randint(0, len(rest)))))
                rest[hole] = bytes(len(rest[hole]))
            return file.synced + rest

        _lay_out(self._top, target, names, content)

    def _place(self, path: str) -> tuple[Directory, str]:
        *parents, name = PurePosixPath(path).relative_to(self._root).parts or ("",)
        at = self._top
        for parent in parents:
            below = at.entries[parent]
            assert isinstance(below, Directory), path
            at = below
        return at, name


def _apply(
    entries: dict[str, File | Directory], change: dict[str, File | Directory | None]
) -> None:
    for name, node in change.items():
        if node is None:
            entries.pop(name, None)
        else:
            entries[name] = node


def _sync(node: File | Directory | None) -> None:
    if isinstance(node, File):
        node.synced = bytes(node.data)
    else:
        assert node is not None
        node.synced = dict(node.entries)
        node.changes.clear()


def _lay_out(
    directory: Directory,
    target: Path,
    names: Callable[[Directory], dict[str, File | Directory]],
    content: Callable[[File], bytes],
) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for name, node in names(directory).items():
        if isinstance(node, File):
            (target / name).write_bytes(content(node))
        else:
            _lay_out(node, target / name, names, content)


def after(operations: Iterable[Operation], root: Path) -> Disk:
    """The disk when these were done."""
    disk = Disk(root)
    for operation in operations:
        disk.do(operation)
    return disk
