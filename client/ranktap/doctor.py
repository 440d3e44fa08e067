"""`ranktap doctor`: whether this process could log to its daemon, one check after another.

    rank, run       who this is, from the environment, as `ranktap.init` reads it
    versions        of what is installed here
    keys            those of the environment, or of --key-file
    endpoint        which daemon it is, and why this one
    name, reach     is its host known, does it take a connection, is it a ZeroMQ socket
    daemon, access  is it a ranktapd, does it let this client in, and to this run
    clock           how far the two clocks are apart

A check that fails says what to do; what depends on it is not tried. Nothing is left behind: no
session is opened, so the daemon makes no run.
"""

from __future__ import annotations

import grp
import json
import os
import platform
import shutil
import stat
import time
from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Final

from ranktap import __version__, embedded, keys, opening, probe, ranks
from ranktap.probe import Asked
from ranktap.tables import printable
from ranktap_wire import limits, places, rules
from ranktap_wire.messages import PROTOCOL, ProbeAnswer

CLOCK_OFF_S: Final = 1.0
"""Machines that keep time by NTP agree to some milliseconds. Where they are a second apart, no
one does it any more, and "when" means something else on each."""
EMBEDDED_FREE_BYTES: Final = 256 * limits.MIB
"""What a daemon that a job starts keeps free: below it nothing is accepted."""

_VARIABLES: Final = (
    *(name for _, *names in ranks.LAUNCHERS for name in names),
    "TORCHELASTIC_RUN_ID", "GROUP_WORLD_SIZE", "SLURM_JOB_ID", "SLURM_STEP_ID", "PMIX_NAMESPACE",
)  # fmt: skip
"""What of the environment says who a rank is."""


@dataclass(frozen=True, slots=True)
class Check:
    """What one check came to: `ok`, `note` (it works, and may not be meant), or `FAIL`."""

    name: str
    level: str
    text: str
    advice: str = ""
    """What to do about it."""


@dataclass(frozen=True, slots=True)
class Asking:
    """What the person who asks has said."""

    endpoint: str | None = None
    logdir: str | None = None
    key_file: Path | None = None
    run: str | None = None
    timeout_s: float = 5.0


def run(asking: Asking, *, as_json: bool) -> int:
    """Check everything and say it; 0 when all is well, 1 when something is not."""
    checks = []
    for check in examine(asking):
        checks.append(check)
        if not as_json:
            _show(check)
    failed = sum(check.level == "FAIL" for check in checks)
    if as_json:
        said = {"well": not failed, "checks": [asdict(check) for check in checks]}
        print(json.dumps(said, indent=2))
    elif failed:
        print(f"\n{failed} of {len(checks)} checks failed; what depends on them was not tried.")
    else:
        print("\nAll is well: this process could log there.")
    return 1 if failed else 0


def _show(check: Check) -> None:
    print(f"{check.level:6}{check.name:10}{printable(check.text)}", flush=True)
    if check.advice:
        print(f"{'':16}{printable(check.advice)}", flush=True)


def examine(asking: Asking) -> Iterator[Check]:
    """The checks, as they are made."""
    if opening.is_disabled():
        yield Check("disabled", "FAIL", "RANKTAP_DISABLED is set: nothing is logged", "unset it")
    name = yield from _identity(asking.run)
    yield _versions()
    try:
        own = _keys(asking)
    except ValueError as error:
        yield Check("keys", "FAIL", str(error), "ranktapd keygen NAME makes such a file")
        return
    endpoint: str | None
    try:
        choice = opening.choose(asking.endpoint, asking.logdir)
    except (TypeError, ValueError) as error:
        yield Check("endpoint", "FAIL", str(error))
        return
    except LookupError as error:
        yield Check("endpoint", "FAIL", str(error), _service_socket())
        return
    if choice.logdir is not None:
        endpoint = yield from _embedded(choice.logdir)
        if endpoint is None:
            return
    else:
        endpoint = choice.endpoint
        assert endpoint is not None
        yield Check("endpoint", "ok", f"{endpoint}, because {choice.why}")
    yield from _keys_found(own, asking, endpoint)
    yield from _daemon(endpoint, own, name, asking.timeout_s)


# -- this process -----------------------------------------------------------------------


def _identity(run: str | None) -> Generator[Check, None, str | None]:
    """Who this is; the run's name is returned."""
    seen = [f"{name}={os.environ[name]}" for name in _VARIABLES if name in os.environ]
    read = f" ({', '.join(seen)})" if seen else ""
    try:
        identity = ranks.identify()
    except ValueError as error:
        yield Check("rank", "FAIL", str(error), "a launcher's variable that another one has set?")
        return None
    by = (
        "no launcher's variables are set"
        if identity.launcher == "none"
        else f"by {identity.launcher}"
    )
    text = f"rank {identity.rank} of {identity.world_size}, local rank {identity.local_rank}, {by}"
    strange = identity.launcher == "none" and "SLURM_PROCID" in os.environ
    yield Check(
        "rank", "note" if strange else "ok", text + read,
        "Slurm's variables count only in what srun starts" if strange else "",
    )  # fmt: skip
    why = "as given" if run else "RANKTAP_RUN is set" if os.environ.get("RANKTAP_RUN") else (
        "of the job's id" if identity.job else "of date and host, as it is alone"
    )  # fmt: skip
    try:
        name = rules.check_run(opening.run_name(run, identity, ""))
    except (TypeError, ValueError, LookupError) as error:
        yield Check("run", "FAIL", str(error))
        return None
    yield Check("run", "ok", f"{name!r}, {why}")
    return name


def _versions() -> Check:
    found = [
        f"ranktap {__version__}",
        f"protocol {PROTOCOL}",
        f"Python {platform.python_version()}",
    ]
    found += probe.zmq_versions()
    for package in ("numpy", "msgpack", "torch"):
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            found.append(f"no {package}")
    return Check("versions", "ok", ", ".join(found))


def _keys(asking: Asking) -> keys.Keys | None:
    if asking.key_file is not None:
        return keys.from_file(asking.key_file, "--key-file")
    return keys.from_environment()


def _keys_found(own: keys.Keys | None, asking: Asking, endpoint: str) -> Iterator[Check]:
    if own is None:
        return
    if endpoint.startswith("ipc://"):
        yield Check("keys", "ok", "not used over ipc, which its file's permissions guard")
        return
    file = asking.key_file or os.environ.get("RANKTAP_KEY_FILE")
    where = f"of {file}" if file else "of RANKTAP_SERVER_KEY and RANKTAP_KEY"
    text = f"public key {own.public}, {where}"
    if file and Path(file).stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        yield Check("keys", "note", f"{text}: others can read it", f"chmod 600 {file}")
    else:
        yield Check("keys", "ok", text)


# -- a daemon that a job starts -----------------------------------------------------------


def _embedded(logdir: Path) -> Generator[Check, None, str | None]:
    """What is found for `logdir=`; the endpoint of the daemon that has it is returned."""
    there = logdir
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        text = f"{logdir}: {there} cannot be written"
        yield Check("logdir", "FAIL", text, "choose another logdir")
        return None
    found = embedded.EmbeddedDaemon(logdir).endpoints()
    if found is not None:
        yield Check("endpoint", "ok", f"{found[0]}: a ranktapd has {logdir}")
        return found[0]
    yield Check("endpoint", "ok", f"none runs for {logdir}: the first local rank starts one")
    missing = places.daemon_lacks()
    if missing:
        text = f"this environment lacks {', '.join(missing)}"
        yield Check("start", "FAIL", text, "pip install 'ranktap[daemon]'")
    free = shutil.disk_usage(there).free
    text = f"{free} bytes free below {there}, {EMBEDDED_FREE_BYTES} are kept"
    full = free <= EMBEDDED_FREE_BYTES
    yield Check("disk", "FAIL" if full else "ok", text, "make room" if full else "")
    return None


# -- a daemon that runs -------------------------------------------------------------------


def _daemon(
    endpoint: str, own: keys.Keys | None, run: str | None, timeout_s: float
) -> Iterator[Check]:
    is_tcp = endpoint.startswith("tcp://")
    if is_tcp:
        host = probe.split(endpoint)[0]
        try:
            addresses = probe.resolve(endpoint)
        except OSError as error:
            text = f"{host}: {error.strerror or error}"
            yield Check("name", "FAIL", text, "is the host's name right, and known here?")
            return
        if addresses[0] != host.strip("[]"):
            yield Check("name", "ok", f"{host} is {', '.join(dict.fromkeys(addresses))}")
    try:
        mechanism = probe.greet(endpoint, timeout_s)
    except probe.StrangerError as error:
        text = f"{endpoint}: {error}"
        yield Check("reach", "FAIL", text, "no ranktapd listens there: which port has it?")
        return
    except OSError as error:
        text = f"{endpoint}: {error.strerror or str(error) or 'no answer in time'}"
        yield Check("reach", "FAIL", text, _why_not_reached(endpoint, error))
        return
    if is_tcp:
        asks = "asks for a key" if mechanism == "CURVE" else "asks for no key"
        yield Check("reach", "ok", f"{endpoint} takes connections, and {asks}")
    else:
        yield Check("reach", "ok", f"{endpoint} takes connections")
    try:
        asked = probe.ask(endpoint, own, run, timeout_s)
    except OSError as error:
        yield Check("daemon", "FAIL", str(error))
        return
    yield from _answers(asked, run, timeout_s)


def _why_not_reached(endpoint: str, error: OSError) -> str:
    if endpoint.startswith("ipc://"):
        if isinstance(error, PermissionError):
            return f"{_group_advice(Path(endpoint.removeprefix('ipc://')))}"
        if isinstance(error, FileNotFoundError):
            return "is the daemon started, and is this where it listens?"
        if isinstance(error, ConnectionRefusedError):
            return "the socket is there and nobody listens on it: is the daemon started?"
        return "it may be starting (recovering its journals), or hang: look at its log"
    host = probe.split(endpoint)[0]
    if isinstance(error, ConnectionRefusedError):
        return f"{host} is there, and nothing listens on that port: is ranktapd started, with "\
            "this address in 'listen', and not only on 127.0.0.1?"  # fmt: skip
    if isinstance(error, TimeoutError):
        return "no answer at all: a firewall between, another host, or a daemon that hangs"
    return "is there a way from this machine to that one?"


def _group_advice(path: Path) -> str:
    """Whose member one has to be, as far as it can be seen from here."""
    for each in (path, *path.parents):
        try:
            group = grp.getgrgid(each.stat().st_gid).gr_name
        except (OSError, KeyError):
            continue
        return f"it is for its owner and the group {group!r}: usermod -aG {group} USER, and log "\
            "in anew"  # fmt: skip
    return "its directory is for others"


def _service_socket() -> str:
    """What is wrong with the service's own socket."""
    endpoint = f"ipc://{places.SERVICE_SOCKET}"
    try:
        probe.greet(endpoint, 1.0)
    except OSError as error:
        return f"{endpoint}: {error.strerror or error}; {_why_not_reached(endpoint, error)}"
    except probe.StrangerError as error:
        return f"{endpoint}: {error}"
    return f"{endpoint} answers now"


def _answers(asked: Asked, run: str | None, timeout_s: float) -> Iterator[Check]:
    """What the probes came to."""
    if asked.refusal is not None:
        advice = "ranktapd keygen NAME makes keys; the daemon's log names who it refuses"
        yield Check("access", "FAIL", asked.refusal, advice)
        return
    if asked.strange is not None:
        text = f"another program answers, not a ranktapd: {asked.strange}"
        yield Check("daemon", "FAIL", text, "which port has the ranktapd?")
        return
    if asked.error is not None:
        text = f"a ranktapd that does not know the question: {asked.error.text}"
        yield Check("daemon", "note", text, "it is of an older release than this client")
        return
    if asked.answer is None:
        text = f"a ZeroMQ socket, and no answer in {timeout_s:g} s"
        yield Check("daemon", "FAIL", text, "another program, or a daemon that hangs: its log?")
        return
    yield _same_protocol(asked.answer)
    yield _let_in(asked.answer, run)
    yield _round_trip(asked.round_trips_s)
    yield _clock(asked)


def _same_protocol(answer: ProbeAnswer) -> Check:
    text = f"ranktapd {answer.daemon}, protocol {answer.protocol}"
    if answer.protocol != PROTOCOL:
        advice = "install the same release of ranktap on both sides"
        return Check("daemon", "FAIL", f"{text}; this client speaks {PROTOCOL}", advice)
    return Check("daemon", "ok", text)


def _let_in(answer: ProbeAnswer, run: str | None) -> Check:
    if answer.code is not None:
        advice = "it goes by itself, and a tap waits for it" if answer.code == "busy" else ""
        return Check("access", "FAIL", f"{answer.code}: {answer.text}", advice)
    if run is None:
        return Check("access", "ok", "let in; no run was asked about")
    return Check("access", "ok", f"let in, and run {run!r} may be written")


def _round_trip(round_trips_s: list[float]) -> Check:
    text = f"{_milliseconds(min(round_trips_s))} at best, {_milliseconds(median(round_trips_s))} "
    return Check("roundtrip", "ok", text + f"in the median of {len(round_trips_s)}")


def _clock(asked: Asked) -> Check:
    estimate = asked.clock.estimate(time.monotonic())
    if estimate is None:
        return Check("clock", "note", "the round trips took too long to tell")
    offset, error = estimate
    side = "ahead of" if offset >= 0 else "behind"
    text = f"the daemon's is {_milliseconds(abs(offset))} {side} this machine's, "
    text += f"give or take {_milliseconds(error)}"
    if abs(offset) - error > CLOCK_OFF_S:
        return Check("clock", "FAIL", text, "set them by NTP: timedatectl on both sides says more")
    return Check("clock", "ok", text)


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms" if seconds < 1 else f"{seconds:,.1f} s"
