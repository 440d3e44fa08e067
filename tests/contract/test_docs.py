"""What docs/operations.md names exists, and what exists it names."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from ranktapd import cli
from ranktapd.config import RULES, Config
from ranktapd.status import Metrics
from tests.support.scripts import run_python

ROOT = Path(__file__).parents[2]
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
SOURCES = {
    path: path.read_text()
    for package in ("client", "daemon")
    for path in (ROOT / package).rglob("*.py")
}


def section(title: str) -> str:
    """The text under a heading."""
    _, _, rest = OPERATIONS.partition(f"\n## {title}\n")
    assert rest, f"docs/operations.md has no section {title!r}"
    return rest.partition("\n## ")[0]


def first_cells(title: str) -> list[str]:
    """What stands in backquotes in the first column of a section's table."""
    rows = [line for line in section(title).splitlines() if line.startswith("| ")][2:]
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row.split(" | ")[0])]


def test_every_setting_is_in_the_docs_and_the_other_way_round() -> None:
    assert first_cells("Settings") == list(RULES)


def test_the_docs_say_which_settings_a_running_daemon_takes_over() -> None:
    rows = [line.split(" | ") for line in section("Settings").splitlines() if line[:3] == "| `"]
    said = {row[0].strip("| `"): "yes" in row[2] for row in rows}
    assert said == {name: rule.reloads for name, rule in RULES.items()}


def test_every_limit_says_what_its_client_is_told() -> None:
    limits = [name for name in RULES if name.startswith(("max_", "min_"))]
    assert set(first_cells("Limits, and who meets them")) == set(limits)


def test_every_metric_is_in_the_docs_and_the_other_way_round() -> None:
    families = list(Metrics().registry.collect())
    names = {family.name + ("_total" if family.type == "counter" else "") for family in families}
    assert len(names) == len(families) > 10
    assert set(first_cells("Metrics")) == names


def test_every_command_of_ranktapd_is_in_the_docs_and_the_other_way_round() -> None:
    said = {name.split()[1] for name in first_cells("Commands") if name.startswith("ranktapd ")}
    assert said == set(cli.COMMANDS)
    for command in cli.COMMANDS:
        program = f"import sys; from ranktapd import cli; sys.exit(cli.main(['{command}', '-h']))"
        assert f"usage: ranktapd {command}" in run_python(program).stdout
        assert f"ranktapd {command}" in cli._DESCRIPTION


def test_every_command_of_ranktap_is_in_the_docs_and_teaches_by_examples() -> None:
    source = (ROOT / "client" / "ranktap" / "cli.py").read_text()
    commands = set(re.findall(r'add_parser\(\s*"(\w+)"', source))
    assert {"status", "top", "tail", "doctor"} <= commands
    said = {name.split()[1] for name in first_cells("Commands") if name.startswith("ranktap ")}
    assert said == commands - {"demo"}  # which is the README's
    for command in said:
        program = f"from ranktap import cli; cli.main(['{command}', '-h'])"
        shown = run_python(program).stdout
        assert f"usage: ranktap {command}" in shown
        assert len(re.findall(rf"^  (?:ssh loghost )?ranktap {command}\b", shown, re.M)) > 1


def test_every_variable_of_the_environment_is_in_the_docs_and_the_other_way_round() -> None:
    read = {
        name
        for text in SOURCES.values()
        for name in re.findall(r"environ(?:\.get)?[\[(]\"(RANKTAP_[A-Z_]+)\"", text)
    }
    assert {"RANKTAP_KEY", "RANKTAP_ENDPOINT"} <= read
    assert set(first_cells("The client's environment")) == read


@pytest.mark.parametrize("message", first_cells("Messages"))
def test_every_message_is_one_that_the_daemon_says(message: str) -> None:
    # As it stands in the source, which may be split over lines.
    daemon = "".join(text for path, text in SOURCES.items() if "ranktapd" in path.parts)
    spoken = re.sub(r'"\s*\n\s*f?"', "", daemon)
    pattern = ".*".join(re.escape(part) for part in message.split("..."))
    assert re.search(pattern, spoken + JOURNAL), message


def warnings_of(source: str) -> list[str]:
    """What a module logs at WARNING and above, or gives to a worker's notices, with `...` for
    what is put in."""
    said = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        match node.func:
            case ast.Attribute(value=whose, attr=name):
                owner = ast.unparse(whose)
            case ast.Name(id=name):
                owner = ""
            case _:
                continue
        is_logged = name in ("warning", "error", "critical", "exception") and "log" in owner
        is_noticed = name in ("tell_once", "tell_limit") or (
            name == "tell" and owner.endswith("_notices")
        )
        if is_noticed or is_logged:
            text = _text(node.args[-1 if is_noticed else 0])
            said += [text] if text else []
    return said


def _text(node: ast.expr) -> str | None:
    match node:
        case ast.Constant(value=str(text)):
            return re.sub(r"%(\(\w+\))?[srd]", "...", text)
        case ast.JoinedStr(values=parts):
            return "".join(_text(part) or "..." for part in parts)
    return None


def test_every_warning_and_error_of_the_daemon_is_in_the_docs() -> None:
    documented = [
        ".*".join(map(re.escape, message.split("..."))) for message in first_cells("Messages")
    ]
    said = [
        text
        for path, source in SOURCES.items()
        if "ranktapd" in path.parts
        for text in warnings_of(source)
        # Some only pass on what others said.
        if re.search("[a-z]", re.sub(r"\.\.\.|^run |^ranktapd:", "", text))
    ]
    assert len(said) > 30
    missing = [text for text in said if not any(re.search(each, text) for each in documented)]
    assert missing == [], "docs/operations.md, Messages, does not say what these mean"


JOURNAL = "".join(
    text for path, text in SOURCES.items() if path.name in ("journal.py", "segment.py")
)


# -- what the pages say of tests ----------------------------------------------------------

PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def missing_tests(page: str) -> list[str]:
    """Tests and files of tests that a page names, and that are not there."""
    missing = []
    for file, name in re.findall(r"(tests/[\w/.]+\.py)(?:::(\w+))?", page):
        path = ROOT / file
        text = path.read_text() if path.exists() else None
        if text is None or (name and not re.search(rf"^def {name}\(", text, re.MULTILINE)):
            missing.append(f"{file}::{name}" if name else file)
    return missing


def test_every_test_that_a_page_names_exists() -> None:
    assert [name for page in PAGES for name in missing_tests(page.read_text())] == []


def test_a_test_that_does_not_exist_is_noticed() -> None:
    here = "tests/contract/test_docs.py"
    said = f"`{here}::test_of_nothing`, `tests/unit/test_nothing.py`, `{here}::section`, `{here}`"
    assert missing_tests(said) == [f"{here}::test_of_nothing", "tests/unit/test_nothing.py"]


def test_every_guarantee_names_a_test() -> None:
    text = (ROOT / "docs" / "guarantees.md").read_text()
    promises = re.split(r"\n\n\*\*", text)[1:]
    assert len(promises) > 20
    for promise in promises:
        assert re.search(r"\n- `tests/[\w/]+\.py::test_\w+`", promise), promise


def test_what_is_said_to_be_slow_is_and_the_other_way_round() -> None:
    text = (ROOT / "docs" / "guarantees.md").read_text()
    for file, name, rest in re.findall(
        r"^- `(tests/[\w/]+\.py)::(\w+)`((?:[^\n]|\n  )*)", text, re.M
    ):
        source = (ROOT / file).read_text()
        above = re.search(rf"((?:^@.*\n(?:    .*\n|\)\n)*)*)^def {name}\(", source, re.MULTILINE)
        assert above is not None
        is_slow = "@pytest.mark.slow" in above[1] or re.search(
            r"^pytestmark = .*mark\.slow", source, re.M
        )
        assert bool(is_slow) == ("(*slow*" in rest), name


# -- systemd/ranktapd.toml --------------------------------------------------------------


def settings_of_the_example(*, with_defaults: bool) -> dict[str, Any]:
    text = (ROOT / "systemd" / "ranktapd.toml").read_text()
    if with_defaults:
        text = re.sub(r"^# (?=\w+ = )", "", text, flags=re.MULTILINE)
    return tomllib.loads(text)


def test_the_example_has_every_setting_with_its_default() -> None:
    example = settings_of_the_example(with_defaults=True)
    assert list(example) == list(RULES)
    # These have no default, or one that depends on the machine.
    apart = {
        "logdir",
        "state_dir",
        "listen",
        "socket_group",
        "server_key",
        "client_keys",
        "metrics",
    }
    default = Config()
    for name in set(RULES) - apart:
        assert example[name] == getattr(default, name), name


def test_the_example_says_which_settings_a_running_daemon_takes_over() -> None:
    text = (ROOT / "systemd" / "ranktapd.toml").read_text()
    before, after = text.split("# -- limits ---")
    assert "# All reload." in after
    limits = {name for name in RULES if f"# {name} = " in after}
    single = set(re.findall(r"reloads, for[^\n]*\n(?:# [^\n]*\n)*?# (\w+) = ", before))
    assert limits | single == {name for name, rule in RULES.items() if rule.reloads}
