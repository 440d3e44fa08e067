"""The commit that is checked out, as git itself tells it, without git."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from ranktap.git_state import commit_of

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git, to compare with it")


def git(directory: Path, *arguments: str) -> str:
    alone = {
        "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull,
        "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@b",
    }  # fmt: skip
    done = subprocess.run(
        ["git", *arguments], cwd=directory, env=os.environ | alone, capture_output=True, check=True
    )
    return done.stdout.decode().strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """With one commit of a file, one in a directory, and a link."""
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "train.py").write_text("print(1)\n")
    (tmp_path / "größe").write_text("")
    (tmp_path / "link").symlink_to("package")
    git(tmp_path, "init", "--quiet", "--initial-branch=main")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message=one")
    return tmp_path


def head(directory: Path) -> str:
    return git(directory, "rev-parse", "HEAD")


def test_the_commit_is_found_from_any_directory_of_the_work_tree(repository: Path) -> None:
    assert commit_of(repository) == commit_of(repository / "package") == head(repository)


def test_a_commit_that_no_branch_names_is_found(repository: Path) -> None:
    git(repository, "checkout", "--quiet", "--detach")
    assert commit_of(repository) == head(repository)


def test_a_branch_that_is_packed_is_found(repository: Path) -> None:
    git(repository, "pack-refs", "--all")
    assert not (repository / ".git" / "refs" / "heads" / "main").exists()
    assert commit_of(repository) == head(repository)


def test_a_linked_work_tree_has_its_own_commit(repository: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    git(repository, "worktree", "add", "--quiet", "-b", "side", str(other))
    git(other, "commit", "--quiet", "--allow-empty", "--message=two")
    assert commit_of(other) == head(other) != head(repository)
    assert commit_of(repository) == head(repository)


@pytest.mark.parametrize("version", ["2", "3", "4"])
def test_a_file_that_has_changed_is_marked_in_every_version_of_the_index(
    repository: Path, version: str
) -> None:
    if version == "3":  # which git uses where a flag needs it
        git(repository, "update-index", "--skip-worktree", "größe")
        (repository / "größe").unlink()
    git(repository, "update-index", "--index-version", version)
    assert (repository / ".git" / "index").read_bytes()[7] == int(version)
    commit = head(repository)
    assert commit_of(repository) == commit
    (repository / "package" / "train.py").write_text("print(2)\n")
    assert commit_of(repository) == commit + "+"


def test_a_file_or_link_that_is_gone_or_of_another_kind_is_a_change(repository: Path) -> None:
    clean = head(repository)
    for name in ("größe", "link"):
        (repository / name).unlink()
        assert commit_of(repository) == clean + "+"
        git(repository, "checkout", "--quiet", ".")
        assert commit_of(repository) == clean
    (repository / "link").unlink()
    (repository / "link").symlink_to("elsewhere")
    assert commit_of(repository) == clean + "+"
    git(repository, "checkout", "--quiet", ".")
    shutil.rmtree(repository / "package")
    (repository / "package").write_text("")
    assert commit_of(repository) == clean + "+"


def test_what_is_only_touched_or_not_tracked_is_no_change(repository: Path) -> None:
    os.utime(repository / "package" / "train.py", (1, 1))
    (repository / "notes").write_text("mine")
    assert commit_of(repository) == head(repository)


def test_where_looking_takes_too_long_it_says_that_it_does_not_know(repository: Path) -> None:
    assert commit_of(repository, look_s=-1.0) == head(repository) + "?"


def test_an_index_that_cannot_be_understood_is_told_as_not_known(repository: Path) -> None:
    index = repository / ".git" / "index"
    whole = index.read_bytes()
    for damaged in (b"", whole[:40], whole[:100], b"DIRC\0\0\0\x05" + whole[8:]):
        index.write_bytes(damaged)
        assert commit_of(repository) == head(repository) + "?"


def test_where_nothing_is_committed_there_is_no_commit(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    assert commit_of(tmp_path) is None


def test_outside_of_a_repository_there_is_no_commit(tmp_path: Path) -> None:
    assert commit_of(tmp_path) is None
