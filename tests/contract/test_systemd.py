"""The units: systemd finds nothing to say about them, and they are as closed as they can be."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UNITS = ROOT / "systemd"
NAMES = ("ranktapd.service", "ranktapd.socket", "ranktap-tensorboard.service")
INSTALLED = "/opt/ranktap/bin"

needs_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)
Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path) -> Install:
    """The units with some drop-ins in a directory, with programs that are there."""

    def copy(*drop_ins: str) -> Path:
        for name in NAMES:
            text = (UNITS / name).read_text()
            (tmp_path / name).write_text(text.replace(INSTALLED, str(Path(sys.executable).parent)))
        for each in drop_ins:
            shutil.copytree(UNITS / each, tmp_path, dirs_exist_ok=True)
        return tmp_path

    return copy


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *map(str, arguments)], capture_output=True, text=True, timeout=60
    )


@needs_analyze
@pytest.mark.parametrize("drop_ins", [(), ("ipc-only",), ("tcp",)], ids=str)
def test_systemd_has_nothing_to_say_about_the_units(
    install: Install, drop_ins: tuple[str, ...]
) -> None:
    directory = install(*drop_ins)
    done = analyze("verify", *(directory / name for name in NAMES))
    # Its status is 0 for keys that it does not know, too.
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs_analyze
def test_systemd_does_say_what_it_does_not_know(install: Install) -> None:
    unit = install() / "ranktapd.service"
    unit.write_text(unit.read_text().replace("ProtectHome=", "ProtectHomes="))
    assert "ProtectHomes" in analyze("verify", unit).stderr


@needs_analyze
@pytest.mark.parametrize(
    ("name", "drop_ins", "at_most"),
    [
        ("ranktapd.service", (), 1.2),
        ("ranktapd.service", ("ipc-only",), 0.5),
        ("ranktap-tensorboard.service", (), 1.2),
    ],
)
def test_a_service_is_as_closed_as_it_can_be(
    install: Install, name: str, drop_ins: tuple[str, ...], at_most: float
) -> None:
    done = analyze("security", "--offline=true", install(*drop_ins) / name)
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert found is not None, done.stdout + done.stderr
    assert float(found[1]) <= at_most, done.stdout


def test_every_program_of_the_units_is_installed_with_the_daemon() -> None:
    programs = {
        program
        for name in NAMES
        for program in re.findall(
            rf"^ExecStart={INSTALLED}/(\S+)", (UNITS / name).read_text(), re.M
        )
    }
    assert programs == {"ranktapd", "tensorboard"}
    for program in programs:
        assert (Path(sys.executable).parent / program).exists()


def test_the_units_agree_on_users_sockets_and_directories() -> None:
    service, socket, board = ((UNITS / name).read_text() for name in NAMES)
    settings = (UNITS / "ranktapd.toml").read_text()
    for text, said in (
        (service, "User=ranktapd\nGroup=ranktap\n"),
        (socket, "SocketUser=ranktapd\nSocketGroup=ranktap\nSocketMode=0660\n"),
        (socket, "ListenStream=/run/ranktap/ranktapd.sock\nListenStream=127.0.0.1:5757\n"),
        (service, "StateDirectory=ranktap\n"),
        (settings, 'state_dir = "/var/lib/ranktap"\n'),
        (service, "LogsDirectory=ranktap\n"),
        (settings, 'logdir = "/var/log/ranktap"\n'),
        (board, "--logdir /var/log/ranktap "),
        (board, "ReadOnlyPaths=/var/log/ranktap\n"),
        (board, "SupplementaryGroups=ranktap\n"),
        ((UNITS / "ranktap.sysusers").read_text(), 'u ranktapd -:ranktap "ranktapd"'),
        ((UNITS / "ranktap.tmpfiles").read_text(), "d /run/ranktap 0750 ranktapd ranktap -\n"),
    ):
        assert said in text


@pytest.mark.skipif(shutil.which("systemd-sysusers") is None, reason="no systemd-sysusers")
def test_the_user_and_its_group_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    done = subprocess.run(
        ["systemd-sysusers", f"--root={tmp_path}", UNITS / "ranktap.sysusers"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    group = re.search(r"^ranktap:\w*:(\d+):", (tmp_path / "etc" / "group").read_text(), re.M)
    user = re.search(
        r"^ranktapd:\w*:\d+:(\d+):.*:/var/lib/ranktap:", (tmp_path / "etc" / "passwd").read_text(),
        re.M,
    )  # fmt: skip
    assert group is not None and user is not None and user[1] == group[1]
