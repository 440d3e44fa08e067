"""docs/hooks.md says what `watch` writes."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from ranktap import Tap
from ranktap.collect import ALONE, FIELDS

PAGE = (Path(__file__).parents[2] / "docs" / "hooks.md").read_text()


def scalars(cell: str) -> tuple[str, ...]:
    return tuple(re.findall(r"`(\w+)`", cell))


def test_the_table_of_tags_has_every_section_with_its_scalars() -> None:
    rows = re.findall(r"^\| `(\w+)`[^|]*\|[^|]*\| `\1/<\w+>` \|([^|]*)\|$", PAGE, re.MULTILINE)
    told = {section: scalars(cell) for section, cell in rows if scalars(cell)}
    # That of non-finite values is told once for all of them.
    assert told == {
        section: tuple(field for field in fields if field != "non_finite")
        for section, fields in FIELDS.items()
    }
    (row,) = re.findall(r"^\| `tap\.gradient\(.*\|([^|]*)\|$", PAGE, re.MULTILINE)
    assert scalars(row) == tuple(field for field in ALONE if field != "non_finite")


def test_each_scalar_is_explained() -> None:
    explained = {
        name
        for cell in re.findall(r"^\| ((?:`\w+` ?)+)\|[^|]*\|$", PAGE, re.MULTILINE)
        for name in scalars(cell)
    }
    assert {field for fields in FIELDS.values() for field in fields} <= explained


def test_each_argument_of_watch_is_named() -> None:
    arguments = set(inspect.signature(Tap.watch).parameters) - {"self", "model"}
    assert [name for name in sorted(arguments) if not re.search(rf"`{name}\b", PAGE)] == []
