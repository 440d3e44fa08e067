"""The wheel, where a training environment would put it: without torch and TensorBoard."""

from __future__ import annotations

import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tensorboard.util import tensor_util

import ranktap
from tests.support.daemons import DaemonProcess
from tests.support.event_files import accumulate

ROOT = Path(__file__).parents[2]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]


def run(*command: str | Path, status: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=110)
    assert done.returncode == status, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    run(*PIP, "wheel", "--quiet", "--no-deps", "--wheel-dir", directory, ROOT)
    (built,) = directory.iterdir()
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment's directory of programs; the wheel is in it, with what it requires."""
    directory = tmp_path_factory.mktemp("environment")
    venv.create(directory, with_pip=False, symlinks=True)
    python = directory / "bin" / "python"
    constraints = ROOT / "constraints.txt"
    # pip's cache has all of it: nothing is downloaded a second time.
    run(*PIP, "--python", python, "install", "--quiet", "-c", constraints, wheel)
    return directory / "bin"


def test_the_wheel_holds_three_typed_packages_two_commands_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (entry_points,) = (name for name in names if name.endswith("entry_points.txt"))
        commands = archive.read(entry_points).decode()
    tops = {name.partition("/")[0] for name in names}
    info = f"ranktap-{ranktap.__version__}.dist-info"
    assert tops == {"ranktap", "ranktap_wire", "ranktapd", info}
    for package in ("ranktap", "ranktap_wire", "ranktapd"):
        assert f"{package}/py.typed" in names
    assert f"{info}/licenses/LICENSE" in names
    assert "ranktap = ranktap.cli:main" in commands
    assert "ranktapd = ranktapd.cli:main" in commands
    assert not [name for name in names if "test" in name or name.endswith(".pyc")]


def test_it_brings_four_packages_and_no_more(environment: Path) -> None:
    listed = run(*PIP, "--python", environment / "python", "list", "--format=freeze").stdout
    installed = {line.partition("==")[0].replace("_", "-") for line in listed.splitlines()}
    assert installed == {"ranktap", "google-crc32c", "msgpack", "numpy", "pyzmq"}


def test_without_torch_numbers_and_arrays_are_logged_to_a_daemon_elsewhere(
    environment: Path, start_daemon: Callable[..., DaemonProcess]
) -> None:
    daemon = start_daemon()
    program = """
import sys
import numpy as np
import ranktap

with ranktap.init("run", endpoint=sys.argv[1]) as tap:
    for step in range(1000):
        tap.scalar("loss", step / 4, step)
        tap.scalars({"a": np.float32(step), "b": step}, step, prefix="many")
    tap.histogram("values", np.arange(100.0), 1)
    tap.image("picture", np.full((3, 4, 5), 255, np.uint8), 1)
    tap.image_grid("grid", np.zeros((4, 1, 5, 5), np.float16), 1, normalize=True)
    tap.text("note", "words", 1)
    assert tap.flush()
assert tap.close()
assert "torch" not in sys.modules
print(ranktap.__file__)
"""
    said = run(environment / "python", "-I", "-W", "error", "-c", program, daemon.endpoint)
    assert Path(said.stdout.strip()).is_relative_to(environment.parent), "not from the wheel"
    assert said.stderr == ""
    said = run(environment / "ranktap", "doctor", f"--endpoint={daemon.endpoint}")
    assert "no torch" in said.stdout and "All is well" in said.stdout
    assert daemon.stop() == 0
    shown = accumulate(daemon.logdir / "run")
    for tag, slope in (("loss", 0.25), ("many/a", 1.0), ("many/b", 1.0)):
        points = [(point.step, point.value) for point in shown.Scalars(tag)]
        assert points == [(step, slope * step) for step in range(1_000)]
    assert shown.Histograms("values")[0].histogram_value.num == 100
    sizes = [(image.height, image.width) for tag in ("picture", "grid")
             for image in shown.Images(tag)]  # fmt: skip
    assert sizes == [(4, 5), (9, 30)]
    text = tensor_util.make_ndarray(shown.Tensors("note/text_summary")[0].tensor_proto)
    np.testing.assert_array_equal(text, [b"words"])


def test_a_daemon_cannot_be_started_from_it_and_the_error_says_what_to_install(
    environment: Path, tmp_path: Path
) -> None:
    # A directory of logs that is called like the package is not the package.
    (tmp_path / "tensorboard").mkdir()
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import ranktap; "
    program += f"ranktap.init('run', logdir={str(tmp_path)!r})"
    said = run(environment / "python", "-I", "-c", program, status=1).stderr.splitlines()[-1]
    assert said.startswith("ModuleNotFoundError: ")
    assert "lacks tensorboard, isal, prometheus_client: pip install 'ranktap[daemon]'" in said
    said = run(environment / "ranktapd", "--logdir", tmp_path / "runs", status=2).stderr
    assert said == (
        "ranktapd: lacks tensorboard, isal, prometheus_client: pip install 'ranktap[daemon]'\n"
    )
    assert not (tmp_path / "runs").exists()


def test_its_commands_say_their_version(environment: Path) -> None:
    for command in ("ranktap", "ranktapd"):
        said = run(environment / command, "--version").stdout
        assert said == f"{command} {ranktap.__version__}\n"
