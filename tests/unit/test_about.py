"""What a rank says about itself."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

import ranktap
from ranktap import about, git_state
from ranktap.ranks import Identity
from ranktap_wire import limits, rules

ALONE = Identity(0, 1, 0, None, "none")


def test_versions_command_and_job_are_said_and_obey_the_rules_of_the_wire() -> None:
    said = about.gather(ALONE, is_given=False)
    assert rules.check_about(said) == said
    assert said["torch"] == torch.__version__
    assert said["ranktap"] == ranktap.__version__
    assert said["python"] == sys.version.split()[0]
    assert said["command"].startswith(sys.orig_argv[0])
    assert f"process {os.getpid()} on " in said["job"]


def test_who_says_rank_and_world_size_by_hand_has_no_job() -> None:
    assert "job" not in about.gather(ALONE, is_given=True)
    torchrun = Identity(0, 2, 0, "lm-7b", "torchrun")
    assert about.gather(torchrun, is_given=True)["job"] == "torchrun lm-7b"


def test_of_what_is_not_imported_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    assert {"torch", "device"}.isdisjoint(about.gather(ALONE, is_given=False))
    assert "torch" not in sys.modules


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about torch without CUDA")
def test_a_torch_without_cuda_computes_on_the_cpu() -> None:
    assert about.gather(ALONE, is_given=False)["device"].startswith("cpu, ")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\n\x1b[2Jb\x00", "a  [2Jb "),
        ("größer", "größer"),
        ("\udc80", " "),
        ("ä" * 600, "ä" * 510 + "..."),
        ("a" * limits.ABOUT_VALUE_BYTES, "a" * limits.ABOUT_VALUE_BYTES),
    ],
)
def test_a_line_is_made_of_any_text(text: str, expected: str) -> None:
    assert about.line(text) == expected
    assert rules.check_about({"command": expected})


def test_the_commit_is_that_of_the_program_before_that_of_the_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[Path] = []

    def commit_of(directory: Path) -> str | None:
        asked.append(directory)
        return None if "program" in directory.name else "abc+"

    monkeypatch.setattr(git_state, "commit_of", commit_of)
    main = str(tmp_path / "program" / "main.py")
    # A worker of the test run has none.
    monkeypatch.setattr(sys.modules["__main__"], "__file__", main, raising=False)
    monkeypatch.chdir(tmp_path)
    said: dict[str, str] = {}
    about.add_commit(said)
    assert asked == [tmp_path / "program", tmp_path]
    assert said == {"git": "abc+"}


def test_a_repository_that_cannot_be_read_is_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def commit_of(directory: Path) -> str | None:
        raise PermissionError(directory)

    monkeypatch.setattr(git_state, "commit_of", commit_of)
    said: dict[str, str] = {}
    about.add_commit(said)
    assert said == {}
