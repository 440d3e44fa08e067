"""`ranktapd keygen`: the server's key, and one for each client.

    DIR/server.key             the daemon's: server_key = "DIR/server.key"
    DIR/NAME.key               the client's: carried to it, then deleted here
    DIR/clients/NAME.toml      lets it in: client_keys = "DIR/clients"

Nothing is ever overwritten: a key that is in use cannot be made again.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from pathlib import Path

import zmq

from ranktapd import access

DIRECTORY = Path("/etc/ranktap")


def main(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    try:
        for name in options.names:
            access.check_name(name)
            if name == "server":
                raise ValueError("name: 'server' is the daemon's own, got it for a client")
        for line in generate(options.dir, options.names, options.runs):
            print(line)
    except FileExistsError as error:
        print(f"ranktapd keygen: {error.filename} exists, and is not overwritten", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"ranktapd keygen: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    except ValueError as error:
        print(f"ranktapd keygen: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ranktapd keygen",
        description="Makes the daemon's key, unless it is there, and a key for each client named.",
    )
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="a client: a person, a machine or a project")
    add("--dir", type=Path, default=DIRECTORY, metavar="DIR", help=f"where to ({DIRECTORY})")
    add(
        "--runs",
        action="append",
        metavar="PATTERN",
        help="what the clients may write, such as 'alice/*'; may be given several times "
        "(every run)",
    )
    return parser


def generate(directory: Path, names: list[str], runs: list[str] | None) -> list[str]:
    """Make the keys; what to do with them, in lines for a person.

    Raises:
        OSError: a file cannot be written; FileExistsError, before anything is written,
            when one is there.
        ValueError: the server's key that is there is none.
    """
    directory = directory.absolute()
    clients = directory / "clients"
    server = directory / "server.key"
    files = [path for name in names for path in _files(directory, name)]
    for path in files if names else [server]:
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    clients.mkdir(mode=0o755, parents=True, exist_ok=True)
    said = []
    if not server.exists():
        public, secret = _pair()
        _write(
            server, 0o600,
            "# ranktapd: the daemon's own key. Whoever has it can pass for this daemon.",
            secret=secret, public=public,
        )  # fmt: skip
        said += _server_lines(server, clients)
    public = zmq.curve_public(access.read_secret(server).encode()).decode()
    for name in names:
        client_public, client_secret = _pair()
        secret_file, public_file = _files(directory, name)
        _write(
            secret_file, 0o600,
            f"# ranktap: the key of {name!r}. Whoever has it can log as {name!r}.",
            server=public, secret=client_secret,
        )  # fmt: skip
        _write(
            public_file, 0o644, f"# ranktapd: lets {name!r} in; delete this file to shut it out.",
            public=client_public, runs=runs,
        )  # fmt: skip
        said += _client_lines(secret_file, public_file)
    return said


def _files(directory: Path, name: str) -> tuple[Path, Path]:
    return directory / f"{name}.key", directory / "clients" / f"{name}{access.SUFFIX}"


def _pair() -> tuple[str, str]:
    public, secret = zmq.curve_keypair()
    return public.decode(), secret.decode()


def _write(path: Path, mode: int, comment: str, **said: str | list[str] | None) -> None:
    """A new file of that mode from its first moment on: create_certificates of pyzmq makes
    one that everyone can read."""
    lines = [comment]
    for name, value in said.items():
        if isinstance(value, list):
            lines.append(f"{name} = [{', '.join(map(_quoted, value))}]")
        elif value is not None:
            lines.append(f"{name} = {_quoted(value)}")
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with open(fd, "w") as file:
        os.fchmod(fd, mode)  # a key that others let in is of no use behind a strict umask
        file.write("\n".join(lines) + "\n")
        file.flush()
        os.fsync(fd)


def _quoted(text: str) -> str:
    """A string of TOML."""
    escaped = "".join(
        f"\\U{ord(each):08x}" if each in '"\\' or not each.isprintable() else each for each in text
    )
    return f'"{escaped}"'


def _server_lines(server: Path, clients: Path) -> list[str]:
    lines = [f"{server}: the daemon's key. In its configuration:",
             f'    server_key = "{server}"',
             f'    client_keys = "{clients}"']  # fmt: skip
    if os.geteuid() == 0:
        lines.append(f"    and the file must be readable by its user: chown ranktapd {server}")
    return lines


def _client_lines(secret_file: Path, public_file: Path) -> list[str]:
    return [
        f"{secret_file}: carry it to the client, delete it here, and set there",
        f"    RANKTAP_KEY_FILE=/where/it/is/{secret_file.name}",
        f"{public_file}: lets it in, without a restart of the daemon; delete it to shut it out",
    ]
