"""Keys on the daemon's side: made, kept, read again, tied to runs."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
import zmq

from ranktap_wire.keys import read_key_file
from ranktapd import keygen
from ranktapd.access import Access, read_clients, read_secret
from ranktapd.log_budget import BURST_LINES, LINE_EVERY_S, LogBudget
from ranktapd.status import Metrics


def public_of(directory: Path, name: str) -> str:
    public = read_key_file(directory / "clients" / f"{name}.toml", ("public", "runs"))["public"]
    assert isinstance(public, str)
    return public


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """Keys of a server, of alice, and of bob, who may write two kinds of runs."""
    assert keygen.main(["--dir", str(tmp_path), "alice"]) == 0
    bobs = ["--runs", "bob/*", "--runs", "shared"]
    assert keygen.main(["--dir", str(tmp_path), "bob", *bobs]) == 0
    return tmp_path


def opened(house: Path) -> Access:
    return Access(house / "server.key", house / "clients", Metrics())


# -- keygen -----------------------------------------------------------------------------


def test_secrets_are_for_their_owner_alone(house: Path) -> None:
    for name in ("server", "alice", "bob"):
        assert mode(house / f"{name}.key") == 0o600
    assert mode(house / "clients" / "alice.toml") == 0o644


def test_a_clients_file_holds_the_servers_public_key_and_a_secret_that_fits_its_own(
    house: Path,
) -> None:
    server = read_secret(house / "server.key")
    said = read_key_file(house / "alice.key", ("server", "secret"))
    assert said["server"] == zmq.curve_public(server.encode()).decode()
    public = zmq.curve_public(said["secret"].encode()).decode()
    assert public == public_of(house, "alice") != public_of(house, "bob")


def test_what_is_there_is_never_overwritten(
    house: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in house.rglob("*") if path.is_file()}
    for names in ([], ["alice"], ["carol", "alice"]):
        capsys.readouterr()
        assert keygen.main(["--dir", str(house), *names]) == 1
        assert "exists, and is not overwritten" in capsys.readouterr().err
    (house / "clients" / "alice.toml").unlink()
    assert keygen.main(["--dir", str(house), "alice"]) == 1  # its secret is still there
    del before[house / "clients" / "alice.toml"]
    assert before == {path: path.read_bytes() for path in house.rglob("*") if path.is_file()}


def test_it_says_what_to_do_and_no_secret(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert keygen.main(["--dir", str(tmp_path), "alice"]) == 0
    said = capsys.readouterr().out
    assert f'server_key = "{tmp_path}/server.key"' in said
    assert f'client_keys = "{tmp_path}/clients"' in said
    assert "RANKTAP_KEY_FILE=" in said and "alice.key" in said
    for name in ("server", "alice"):
        allowed = ("secret", "public", "server")
        assert read_key_file(tmp_path / f"{name}.key", allowed)["secret"] not in said


@pytest.mark.parametrize("name", ["../x", "a/b", "", "server", "é", "a" * 101])
def test_a_name_that_is_no_file_name_is_refused(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert keygen.main(["--dir", str(tmp_path), name]) == 2
    assert "name: " in capsys.readouterr().err
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("pattern", ['say "hi"', "back\\slash", "new\nline", "é*", "#"])
def test_any_pattern_comes_back_as_it_was_given(tmp_path: Path, pattern: str) -> None:
    assert keygen.main(["--dir", str(tmp_path), "a", "--runs", pattern]) == 0
    ((client,), wrong) = (read_clients(tmp_path / "clients")[0].values(), [])
    assert (client.runs, wrong) == ((pattern,), [])


# -- who may write what -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("run", "allowed"),
    [("bob/x", True), ("bob/x/y", True), ("shared", True), ("bob", False), ("shared/x", False),
     ("alice/bob/x", False), ("BOB/x", False)],
)  # fmt: skip
def test_a_key_that_is_tied_to_patterns_writes_runs_that_match_one(
    house: Path, run: str, allowed: bool
) -> None:
    door = opened(house)
    assert door.refusal(public_of(house, "alice"), run) is None
    refusal = door.refusal(public_of(house, "bob"), run)
    if allowed:
        assert refusal is None
    else:
        assert refusal == (
            f"the key of 'bob' may write runs that match 'bob/*', 'shared', got run {run!r}"
        )


def test_the_directory_is_read_again_when_it_changes(house: Path) -> None:
    door = opened(house)
    alice, bob = public_of(house, "alice"), public_of(house, "bob")
    assert not door.is_gone(alice)
    door.look(10.0)
    assert door.changes == 1
    (house / "clients" / "alice.toml").unlink()
    door.look(10.5)
    assert door.changes == 1  # it has just looked
    door.look(11.5)
    assert door.changes == 2
    assert door.is_gone(alice) and not door.is_gone(bob)
    keygen.main(["--dir", str(house), "carol"])
    door.look(13.0)
    assert not door.is_gone(public_of(house, "carol"))
    path = house / "clients" / "bob.toml"
    path.write_text(path.read_text().replace("bob/", "dog/"))
    door.reread()
    assert door.refusal(bob, "bob/x") and door.refusal(bob, "dog/x") is None


def test_a_file_that_is_wrong_is_told_of_and_the_others_count(
    house: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clients = house / "clients"
    (clients / "half.toml").write_text('public = "')
    (clients / "runs.toml").write_text(f'public = "{zmq.curve_keypair()[0].decode()}"\nruns = []\n')
    (clients / "twin.toml").write_text((clients / "alice.toml").read_text())
    (clients / "notes.txt").write_text("not a key")
    (clients / ".alice.toml.swp.toml").write_text("an editor's")
    found, wrong = read_clients(clients)
    assert {client.name for client in found.values()} == {"alice", "bob"}
    assert wrong == [
        f"{clients}/half.toml: expected TOML with public, runs",
        f'{clients}/runs.toml: runs: expected a list of patterns, such as ["alice/*"]',
        f"{clients}/twin.toml: public: alice.toml has the same key, and comes first",
    ]
    opened(house)
    assert all(each in caplog.text for each in wrong)


def test_a_directory_that_is_away_for_a_moment_shuts_nobody_out(
    house: Path, caplog: pytest.LogCaptureFixture
) -> None:
    door = opened(house)
    (house / "clients").rename(house / "away")
    for now in (10.0, 20.0, 30.0):
        door.look(now)
    door.reread()
    assert door.changes == 1
    assert not door.is_gone(read_key_file(house / "away" / "alice.toml", ("public",))["public"])
    assert caplog.text.count("the keys read before hold") == 1
    (house / "away").rename(house / "clients")
    (house / "clients" / "alice.toml").unlink()
    door.look(40.0)
    assert door.changes == 2


def test_keys_that_cannot_be_read_at_the_start_are_named(house: Path) -> None:
    with pytest.raises(ValueError, match=f"{house}/no.key: No such file"):
        Access(house / "no.key", house / "clients", Metrics())
    with pytest.raises(OSError, match="No such file"):
        Access(house / "server.key", house / "no", Metrics())
    with pytest.raises(ValueError, match=r"alice\.key: expected public, secret, got server too"):
        Access(house / "alice.key", house / "clients", Metrics())


# -- lines about strangers --------------------------------------------------------------


def test_lines_about_strangers_are_few_and_say_how_many_were_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    budget = LogBudget()
    for _ in range(100):
        budget.warning(1.0, "line %(number)d", {"number": 7})
    assert caplog.messages == ["line 7"] * BURST_LINES
    budget.warning(1.1 + LINE_EVERY_S, "line %(number)d", {"number": 8})
    budget.warning(1.2 + LINE_EVERY_S, "line %(number)d", {"number": 9})
    assert caplog.messages[-1] == f"line 8 (and {100 - BURST_LINES} more like it before)"
    caplog.clear()
    for _ in range(100):
        budget.warning(1e6, "later", {})
    assert len(caplog.messages) == BURST_LINES
    assert caplog.messages[0] == "later (and 1 more like it before)"
