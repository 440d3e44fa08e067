"""The walls of the house (DESIGN, section 9): who may import what.

Twice, because each way sees what the other does not: import-linter follows the contracts
of pyproject.toml; reading the sources shows every import, wherever in a file it stands,
and holds modules that do not exist yet to the same rules.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.scripts import run_python

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "ranktap": ROOT / "client" / "ranktap",
    "ranktap_wire": ROOT / "client" / "ranktap_wire",
    "ranktapd": ROOT / "daemon" / "ranktapd",
}

MAY_IMPORT_TORCH = {
    "ranktap.tap", "ranktap.drop_in", "ranktap.hooks", "ranktap.reduce", "ranktap.staging",
    "ranktap.integrations",
    # The rooms of `watch`: what sits on modules, and what is worked out on the tensor's device.
    "ranktap.watch", "ranktap.probes", "ranktap.recorder", "ranktap.phases", "ranktap.collect",
    "ranktap.pictures",
    "ranktap.tracing",  # a model's graph is torch's to make
    "ranktap.demo_job",  # the training that `ranktap demo` shows: user code
}  # fmt: skip
MAY_IMPORT_ZMQ = {
    "ranktap.connection", "ranktapd.intake", "ranktapd.daemon", "ranktapd.status",
    # CURVE keys, and what a handshake with them comes to.
    "ranktapd.access", "ranktapd.keygen", "ranktapd.check", "ranktap.keys",
    "ranktapd.listeners", "ranktapd.service_manager", "ranktapd.replies",
    "ranktap.probe",  # the doctor's look at a daemon: no session, nothing logged
    "ranktap.resend",  # sessions whose process is gone: a sender without an outbox and a thread
}  # fmt: skip
CLOCKS = {"time", "datetime"}
FILES = {"os", "io", "pathlib", "tempfile", "shutil", "glob", "mmap", "fcntl"}
SOCKETS = {"zmq", "socket", "select", "selectors", "asyncio", "ssl"}
THREADS = {"threading", "multiprocessing", "subprocess", "concurrent", "signal", "queue"}
CHANCE = {"random", "secrets", "uuid"}
CONFIG = {"ranktapd.config", "argparse", "tomllib"}
EVENT_FILES = {
    "ranktapd.event_file", "ranktapd.summary_writer", "ranktapd.scalar_encoder",
    "ranktapd.tensor_statistics", "ranktapd.fold", "ranktapd.scalars", "ranktapd.blobs",
    "ranktapd.embeddings", "ranktapd.drawing", "ranktapd.output", "ranktapd.run_files",
    "ranktapd.checkpoint", "ranktapd.run_worker", "ranktapd.render", "tensorboard",
}  # fmt: skip


# -- reading imports ------------------------------------------------------------------------


def imports(source: str, module: str, *, is_package: bool = False) -> set[str]:
    """Every module that a module's source imports, by its full name; inside functions too.

    `from a import b` counts as `a` and `a.b`, as b may be a module. What is imported only for
    the type checker does not count.
    """
    found: set[str] = set()
    package = module if is_package else module.rpartition(".")[0]
    for node in _run_nodes(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                base = ".".join([*parts[: len(parts) - node.level + 1], *filter(None, [base])])
            found.add(base)
            found.update(f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            name = ast.unparse(node.func)
            first = node.args[0]
            if name in ("importlib.import_module", "import_module", "__import__"):
                assert isinstance(first, ast.Constant), f"{module}: an import that cannot be read"
                found.add(str(first.value))
    return found


def _run_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a source but those under `if TYPE_CHECKING`."""
    yield tree
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            for other in child.orelse:
                yield from _run_nodes(other)
        else:
            yield from _run_nodes(child)


def files_of_the_house() -> dict[str, Path]:
    """Each module of the three packages, and where it is."""
    files = {}
    for package, directory in PACKAGES.items():
        for path in directory.rglob("*.py"):
            parts = [package, *path.relative_to(directory).with_suffix("").parts]
            files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


def read_house() -> dict[str, set[str]]:
    """Each module of the three packages with what it imports."""
    return {
        module: imports(path.read_text(), module, is_package=path.name == "__init__.py")
        for module, path in files_of_the_house().items()
    }


HOUSE = read_house()


def is_within(module: str, names: set[str]) -> bool:
    """Whether a module is one of `names`, or inside one."""
    return any(module == name or module.startswith(f"{name}.") for name in names)


def reached_from(module: str) -> set[str]:
    """What a module imports, directly or through modules of the house."""
    reached: set[str] = set()
    waiting = [each for each in HOUSE if is_within(each, {module})]
    assert waiting, f"there is no module {module}"
    while waiting:
        for name in HOUSE[waiting.pop()] - reached:
            reached.add(name)
            if name in HOUSE:
                waiting.append(name)
    return reached


def importers_of(package: str) -> set[str]:
    return {
        module
        for module, imported in HOUSE.items()
        if any(is_within(name, {package}) for name in imported)
    }


def test_imports_are_read_wherever_they_stand() -> None:
    source = """
import a.b
from c import d
from . import e
from ..f import g
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import only_for_types
else:
    import h
def f():
    try:
        import i
    except ImportError:
        import importlib
        importlib.import_module("j.k")
"""
    found = imports(source, "house.room.module")
    assert found >= {"a.b", "c", "c.d", "house.room.e", "house.f.g", "h", "i", "j.k"}
    assert "only_for_types" not in found


def test_the_house_was_found() -> None:
    assert {"ranktap.tap", "ranktap_wire.frames", "ranktapd.render.grid"} <= set(HOUSE)
    assert "ranktap.outbox" in HOUSE["ranktap.base"]


# -- the walls --------------------------------------------------------------------------------


def test_import_linters_contracts_are_kept() -> None:
    # A process of its own: it configures logging, and so silences every logger that is there.
    program = "import importlinter.cli as cli; raise SystemExit(cli.lint_imports(no_cache=True))"
    said = run_python(program, cwd=ROOT).stdout
    assert "0 broken" in said


def test_the_daemon_imports_neither_the_client_nor_torch() -> None:
    for module in HOUSE:
        if is_within(module, {"ranktapd"}):
            assert not [name for name in HOUSE[module] if is_within(name, {"ranktap", "torch"})]


def test_the_client_never_imports_the_daemon() -> None:
    assert not {m for m in importers_of("ranktapd") if is_within(m, {"ranktap", "ranktap_wire"})}


def test_the_wire_imports_neither_side_no_sockets_and_no_torch() -> None:
    for package in ("ranktap", "ranktapd", "zmq", "torch"):
        assert not {m for m in importers_of(package) if is_within(m, {"ranktap_wire"})}, package


def test_torch_is_imported_only_where_a_tensor_or_a_hook_needs_it() -> None:
    strangers = {m for m in importers_of("torch") if not is_within(m, MAY_IMPORT_TORCH)}
    assert not strangers


def test_sockets_are_opened_only_at_the_ends_of_the_wire() -> None:
    assert importers_of("zmq") >= {"ranktap.connection", "ranktapd.intake"}
    assert not {m for m in importers_of("zmq") if not is_within(m, MAY_IMPORT_ZMQ)}


def test_sockets_of_the_operating_system_are_the_connections_too() -> None:
    opening = {
        module
        for module, path in files_of_the_house().items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("socket.socket", "socket.create_connection", "socketpair")
    }
    # job_daemon looks for a port that is free; it sends nothing.
    known = {"ranktap.connection", "ranktap.job_daemon"}
    assert opening == known | (opening & MAY_IMPORT_ZMQ)


def test_the_outbox_knows_no_sockets_and_no_disk() -> None:
    assert not [n for n in reached_from("ranktap.outbox") if is_within(n, SOCKETS | FILES)]


@pytest.mark.parametrize("module", ["ranktapd.windows", "ranktapd.blob_windows", "ranktapd.render"])
def test_windows_and_render_know_no_clock_file_socket_thread_or_configuration(module: str) -> None:
    forbidden = CLOCKS | FILES | SOCKETS | THREADS | CHANCE | CONFIG
    assert not [name for name in reached_from(module) if is_within(name, forbidden)]


@pytest.mark.parametrize("module", ["ranktapd.windows", "ranktapd.blob_windows", "ranktapd.render"])
def test_windows_and_render_open_and_print_nothing(module: str) -> None:
    for name, path in files_of_the_house().items():
        if not is_within(name, {module}) and name not in reached_from(module):
            continue
        called = {
            node.func.id
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert not called & {"open", "print", "input", "exec", "eval"}, name


def test_delivery_is_pure() -> None:
    forbidden = CLOCKS | FILES | SOCKETS | THREADS | CHANCE | CONFIG
    assert not [n for n in reached_from("ranktap_wire.delivery") if is_within(n, forbidden)]


@pytest.mark.parametrize("module", ["ranktapd.intake", "ranktapd.admission", "ranktapd.replies"])
def test_the_intake_never_touches_an_event_file(module: str) -> None:
    assert not [n for n in reached_from(module) if is_within(n, EVENT_FILES)]


def test_nothing_is_pickled() -> None:
    pickles = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal"}
    for module in HOUSE:
        assert not [name for name in HOUSE[module] if is_within(name, pickles)], module


# -- in a running interpreter -----------------------------------------------------------------


def loaded_by(*modules: str) -> set[str]:
    """Every module that is loaded once these are imported."""
    program = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    return set(run_python(program).stdout.split())


def test_a_daemon_loads_neither_torch_nor_the_client() -> None:
    loaded = loaded_by("ranktapd.daemon", "ranktapd.run_worker", "ranktapd.cli")
    assert "ranktapd.fold" in loaded
    assert not loaded & {"torch", "ranktap", "tensorflow"}


def test_the_daemons_main_process_loads_nothing_that_only_workers_need() -> None:
    # It stays small, and a poisonous record can end only a worker.
    assert not [name for name in loaded_by("ranktapd.daemon") if is_within(name, EVENT_FILES)]


def test_the_wire_loads_neither_sockets_nor_torch() -> None:
    modules = [name for name in HOUSE if is_within(name, {"ranktap_wire"})]
    loaded = loaded_by(*modules)
    assert set(modules) <= loaded
    assert not loaded & {"zmq", "torch", "ranktap", "ranktapd"}
