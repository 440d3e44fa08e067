"""Lines of the log: for people, for programs, for the journal, and never two of one message."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from ranktapd import logs

SILENT = "run %(run)r: rank %(rank)d has not been heard of for %(silent_s)d s"
VALUES = {"run": "a\nb", "rank": 3, "silent_s": 30, "path": Path("x")}
HOSTILE = "\n\r\x1b[2J\x9b31m\x07\x00\x7f\u2028\u202e\udc80ä"


def record(message: str, *values: Any, level: int = logging.WARNING) -> logging.LogRecord:
    made = logging.LogRecord("ranktapd", level, "file.py", 1, message, values, None)
    made.created, made.msecs = 1_700_000_000.25, 250
    return made


def test_a_line_for_people_has_time_level_and_message() -> None:
    line = logs.formatter("text").format(record(SILENT, VALUES))
    when, level, message = re.fullmatch(r"(\d{4}-\d\d-\d\d [\d:]+,250) (\w+) (.*)", line).groups()  # type: ignore[union-attr]
    assert when and level == "WARNING"
    assert message == r"run 'a\nb': rank 3 has not been heard of for 30 s"


def test_a_line_for_programs_has_the_values_as_fields_and_an_event_without_them() -> None:
    assert json.loads(logs.formatter("json").format(record(SILENT, VALUES))) == {
        "time": "2023-11-14T22:13:20.250Z",
        "level": "warning",
        "event": "run {run}: rank {rank} has not been heard of for {silent_s} s",
        "message": r"run 'a\nb': rank 3 has not been heard of for 30 s",
        "run": "a\nb",
        "rank": 3,
        "silent_s": 30,
        "path": "x",
    }


def test_no_value_takes_the_place_of_what_every_line_has() -> None:
    values = {"time": 1, "level": 2, "event": 3, "message": 4, "run": 5}
    said = json.loads(logs.formatter("json", "own").format(record("%(run)s", values)))
    assert (said["level"], said["event"], said["message"]) == ("warning", "{run}", "5")
    assert said["time"].startswith("2023-") and said["run"] == "own"


def test_a_worker_says_which_run_it_is_of_once() -> None:
    text = logs.formatter("text", "a b")
    assert text.format(record("'x' cannot be drawn")).endswith(
        "WARNING run 'a b': 'x' cannot be drawn"
    )
    assert text.format(record("run 'a b': y")).endswith("WARNING run 'a b': y")
    assert json.loads(logs.formatter("json", "a b").format(record("'x'")))["run"] == "a b"


@pytest.mark.parametrize("kind", logs.FORMATS)
@pytest.mark.parametrize("for_journal", [False, True])
def test_a_message_is_one_printable_line_whatever_is_in_it(kind: str, for_journal: bool) -> None:
    formatter = logs.formatter(kind, HOSTILE, for_journal=for_journal)
    for each in (record(HOSTILE), record("%(name)s", {"name": HOSTILE, HOSTILE: HOSTILE})):
        line = formatter.format(each)
        assert line.isprintable()
        line.encode()  # no half of a surrogate pair
    if kind == "json":
        said = json.loads(line.removeprefix("<4>"))
        assert said["name"] == said[HOSTILE] == said["message"] == HOSTILE


@pytest.mark.parametrize(
    ("level", "priority"), [(logging.CRITICAL, 2), (logging.ERROR, 3), (logging.INFO, 6)]
)
def test_the_journal_is_given_the_level_and_no_second_time(level: int, priority: int) -> None:
    line = logs.formatter("text", for_journal=True).format(record("x", level=level))
    assert line == f"<{priority}>{logging.getLevelName(level)} x"
    line = logs.formatter("json", for_journal=True).format(record("x", level=level))
    assert line.startswith(f'<{priority}>{{"level": "') and "time" not in json.loads(line[3:])


def test_it_is_the_journal_when_the_environment_names_this_very_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open(tmp_path / "journal", "w") as file:
        found = os.fstat(file.fileno())
        monkeypatch.delenv("JOURNAL_STREAM", raising=False)
        assert not logs._is_journal(file.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
        assert logs._is_journal(file.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino + 1}")
        assert not logs._is_journal(file.fileno())


def test_an_error_that_ends_the_process_is_one_line_for_programs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    try:
        raise ValueError("of some kind")
    except ValueError:
        kind, error, trace = sys.exc_info()
    assert kind is not None and error is not None
    logs._log_exception(kind, error, trace)
    (only,) = caplog.records
    said = json.loads(logs.formatter("json").format(only))
    assert said["level"] == "critical" and said["message"] == "ended by an error: of some kind"
    assert said["traceback"].endswith("ValueError: of some kind")
