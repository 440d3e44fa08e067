"""The command `ranktap`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ranktap import __version__

_DESCRIPTION = """\
Every rank of a distributed PyTorch job on one TensorBoard.

  ranktap demo                 train a small network on 2 ranks and look at it
  ranktap status               what the daemon on this machine is doing: runs, ranks, lag, rates
  ranktap top                  the same as a live view: rates, lag, steps, the last loss
  ranktap tail RUN             what a run logs, as it arrives
  ranktap doctor               whether this process could log to its daemon, and if not, why
  ranktap sync DIR             send what jobs without network have left in a spool
  ranktapd --help              the daemon, for a log host
"""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="ranktap",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ranktap {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_demo(commands.add_parser("demo", help="a 2-rank DDP job, logged by all of its ranks"))
    _add_status(commands.add_parser("status", help="runs, ranks, lag and rates of a daemon"))
    _add_top(commands.add_parser("top", help="a live view of a daemon's runs and ranks"))
    _add_tail(commands.add_parser("tail", help="what a run logs, as it arrives"))
    _add_doctor(commands.add_parser("doctor", help="whether this process could log"))
    _add_sync(commands.add_parser("sync", help="send what is in a spool to a daemon"))
    options = parser.parse_args(arguments)
    if options.command == "tail":
        return _tail(options)
    if options.command == "doctor":
        return _doctor(options)
    if options.command == "top":
        return _top(options)
    if options.command == "sync":
        return _sync(options)
    if options.command == "status":
        return _status(options)
    return _demo(options)


def _status(options: argparse.Namespace) -> int:
    from ranktap import status

    try:
        return status.run(address=options.metrics, run_name=options.run, as_json=options.json)
    except KeyboardInterrupt:
        return 130
    except status.StatusError as error:
        print(f"ranktap status: {error}", file=sys.stderr)
        return 1


def _top(options: argparse.Namespace) -> int:
    from ranktap import status, top
    from ranktap.top_view import Looks

    looks = Looks(options.sort, options.tag, options.run)
    try:
        return top.run(
            address=options.metrics, looks=looks, every_s=options.every, once=options.once
        )
    except KeyboardInterrupt:
        return 130
    except (status.StatusError, top.TopError) as error:
        print(f"ranktap top: {error}", file=sys.stderr)
        return 1


def _tail(options: argparse.Namespace) -> int:
    from ranktap import status, tail

    arguments = [f"--tag={pattern}" for pattern in options.tag or []]
    arguments += [f"--lines={options.lines}"] + ([] if options.follow else ["--no-follow"])
    try:
        return tail.run(
            options.run, address=options.metrics, logdir=options.logdir, arguments=arguments
        )
    except KeyboardInterrupt:
        return 130
    except (status.StatusError, tail.TailError) as error:
        print(f"ranktap tail: {error}", file=sys.stderr)
        return 1


def _doctor(options: argparse.Namespace) -> int:
    from ranktap import doctor

    asking = doctor.Asking(
        options.endpoint, options.logdir, options.key_file, options.run, options.timeout
    )
    try:
        return doctor.run(asking, as_json=options.json)
    except KeyboardInterrupt:
        return 130


def _sync(options: argparse.Namespace) -> int:
    from ranktap import sync

    try:
        return sync.run(
            spools=options.spools,
            endpoint=options.endpoint,
            logdir=options.logdir,
            partial=options.partial,
            patience_s=options.patience,
        )
    except KeyboardInterrupt:
        print("ranktap sync: broken off; run it again to send the rest", file=sys.stderr)
        return 130
    except sync.SyncError as error:
        print(f"ranktap sync: {error}", file=sys.stderr)
        return 2


def _demo(options: argparse.Namespace) -> int:
    from ranktap import demo

    try:
        return demo.run(
            logdir=options.logdir,
            run_name=options.run,
            steps=options.steps,
            ranks=options.ranks,
            board=options.board,
        )
    except KeyboardInterrupt:
        return 130
    except demo.DemoError as error:
        print(f"ranktap demo: {error}", file=sys.stderr)
        return 1


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Trains a small CNN on scikit-learn's digits with DistributedDataParallel over gloo, on "
        "this machine's CPU. Every rank logs; a daemon started for the purpose merges them."
    )
    add = parser.add_argument
    add("--logdir", type=Path, default=Path("runs"), metavar="DIR", help="where to write (runs)")
    add("--run", metavar="NAME", help="name of the run (demo/ and the time)")
    add("--steps", type=_positive, default=300, metavar="N", help="steps to train (300)")
    add("--ranks", type=_positive, default=2, metavar="N", help="processes (2)")
    add(
        "--no-board",
        dest="board",
        action="store_false",
        help="end after training instead of showing the run in TensorBoard",
    )


def _add_status(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = """\
Asks a daemon that serves HTTP (ranktapd --metrics HOST:PORT) how it stands: the runs that are
open, how many of their ranks are here, how far the event file is behind the journal, and rates
of the last seconds. With RUN, its ranks too.

  ranktap status                                   the daemon at 127.0.0.1:9757
  ranktap status digits/lr=0.1                     one run, rank by rank
  ranktap status --json | jq '.runs[].lag_bytes'   for programs

The status is 1 when nothing answers, or there is no such run."""
    add = parser.add_argument
    add("run", nargs="?", metavar="RUN", help="show this run and its ranks (all runs)")
    add("--json", action="store_true", help="all that the daemon says, as JSON")
    add("--metrics", default="127.0.0.1:9757", metavar="HOST:PORT",
        help="the daemon's setting of this name (127.0.0.1:9757)")  # fmt: skip


def _add_top(parser: argparse.ArgumentParser) -> None:
    from ranktap.top_view import SORTS

    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = """\
Shows what a daemon that serves HTTP (ranktapd --metrics HOST:PORT) is doing, and goes on: of
each run that is open how many of its ranks are here, records and bytes a second, for how long
and by how many bytes the event file is behind, what was dropped and what came too late, the
step, and the last loss. With RUN its ranks: what a step takes, who is slow, who is away.

  ranktap top                                the daemon at 127.0.0.1:9757
  ranktap top digits/lr=0.1                  one run, rank by rank
  ranktap top --sort lag --every 0.5         who is furthest behind comes first
  ranktap top --tag 'val/acc*'               another value than a loss
  ranktap top --once | head                  one plain table, also where there is no terminal

j, k and Enter show the ranks of a run, b goes back, s sorts by the next column, q ends it. It
needs rich (pip install 'ranktap[top]'), but for --once. From elsewhere:
ssh -L 9757:127.0.0.1:9757 loghost"""
    add = parser.add_argument
    add("run", nargs="?", metavar="RUN", help="show this run and its ranks (all runs)")
    add("--every", type=_seconds, default=2.0, metavar="SECONDS", help="how often it asks (2)")
    add("--once", action="store_true", help="print one plain table and end")
    add("--sort", choices=tuple(SORTS), default="run", help="what comes first (run)")
    add("--tag", metavar="PATTERN",
        help="show the last value of a tag like this, * is anything (a loss)")  # fmt: skip
    add("--metrics", default="127.0.0.1:9757", metavar="HOST:PORT",
        help="the daemon's setting of this name (127.0.0.1:9757)")  # fmt: skip


def _add_tail(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = """\
Shows what a run logs as it arrives in its event file: time, step, tag, value. What one rank logs
alone is here within a second of its call, what several log when all of them have. It is for the
machine where the event files are (or where they are mounted), and needs ranktap[daemon].

  ranktap tail digits/lr=0.1                       where the daemon at 127.0.0.1:9757 writes
  ranktap tail digits/lr=0.1 --logdir runs         without a daemon's word
  ranktap tail digits/lr=0.1 --tag 'loss/*' --tag accuracy
  ssh loghost ranktap tail digits/lr=0.1           from another machine

A sub-run is named RUN/SUB-RUN. Ctrl-C ends it."""
    add = parser.add_argument
    add("run", metavar="RUN", help="the run, as TensorBoard names it; '.' is the logdir itself")
    add("--logdir", type=Path, metavar="DIR", help="where its event files are (asks the daemon)")
    add("--tag", action="append", metavar="PATTERN",
        help="only tags like this: * is anything; may be given several times (all)")  # fmt: skip
    add("-n", "--lines", type=int, default=10, metavar="N", help="begin with the last N (10)")
    add("--no-follow", dest="follow", action="store_false", help="end where the file does")
    add("--metrics", default="127.0.0.1:9757", metavar="HOST:PORT",
        help="the daemon's setting of this name (127.0.0.1:9757)")  # fmt: skip


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = """\
Checks, one thing after another, whether a tap that is opened here could log: who this rank is,
which daemon it would take and why, whether it can be reached, lets this client in, and to this
run, which versions both sides have, and how far their clocks are apart. It leaves nothing behind:
the daemon makes no run of it.

  ranktap doctor                                   as ranktap.init() without arguments
  ranktap doctor --endpoint tcp://loghost:5757 --key-file ~/.ranktap/alice.key --run alice/x
  srun ranktap doctor                              as the ranks of a Slurm job
  torchrun --nproc-per-node 2 --no-python ranktap doctor

The status is 0 when all is well, 1 when something is not."""
    add = parser.add_argument
    add("--endpoint", metavar="ENDPOINT", help="as endpoint= (RANKTAP_ENDPOINT)")
    add("--logdir", metavar="DIR", help="as logdir=: a daemon of this machine's own")
    add("--key-file", type=Path, metavar="FILE", help="instead of RANKTAP_KEY_FILE")
    add("--run", metavar="NAME", help="as run=: may it be written? (RANKTAP_RUN, or the job's id)")
    add("--timeout", type=_seconds, default=5.0, metavar="SECONDS",
        help="how long each answer is waited for (5)")  # fmt: skip
    add("--json", action="store_true", help="the checks as JSON")


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 86_400:
        raise argparse.ArgumentTypeError(f"expected a number from 0.1 to 86400, got {text!r}")
    return seconds


def _add_sync(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = """\
Sends what ranks have logged with `spool=DIR` (or RANKTAP_SPOOL=DIR) and could not send, to a
daemon. What has arrived is deleted; nothing arrives twice, however often it is broken off or
run. The event file becomes that of a job with network, but for when things arrived.

  ranktap sync spool --endpoint tcp://loghost:5757   to a daemon elsewhere (RANKTAP_ENDPOINT)
  ranktap sync spool --logdir runs                   to event files below runs/, on this machine
  ranktap sync node0 node1 node2                     spools of one job on several disks, together

The ranks of a job are merged step by step, so they are sent together: where a rank has nothing
in these spools, and none of them has reached a daemon before, the run is left as it is. A
process that is still running sends its spool itself, and is left too.

The status is 0 when nothing is left to send, 1 when something is (it is said what, and why), 2
when nothing can be sent: no spool, no daemon; 130 after Ctrl-C. Then run it again."""
    add = parser.add_argument
    add("spools", nargs="+", type=Path, metavar="DIR", help="a spool, or one run's or rank's part")
    add("--endpoint", metavar="ENDPOINT",
        help="the daemon (RANKTAP_ENDPOINT, else this machine's service)")  # fmt: skip
    add("--logdir", type=Path, metavar="LOGDIR",
        help="start a daemon here, for this, that writes below LOGDIR")  # fmt: skip
    add("--partial", action="store_true",
        help="send a run although ranks have nothing here; they may come too late")  # fmt: skip
    add("--patience", type=_positive, default=60, metavar="SECONDS",
        help="give up when the daemon has taken nothing for so long (60)")  # fmt: skip


def _positive(text: str) -> int:
    number = int(text) if text.isdigit() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, got {text!r}")
    return number


if __name__ == "__main__":
    sys.exit(main())
