"""A ranktapd that is handed its sockets, as a service manager does it.

    python -m tests.support.socket_activated FD,FD... --logdir ...

The descriptors become 3, 4 ... of this process, which then becomes the daemon.
"""

from __future__ import annotations

import fcntl
import os
import sys

FIRST_FD = 3
FAR = 100


def main() -> None:
    # Out of the way first: one of them may be where another has to go.
    given = [fcntl.fcntl(int(fd), fcntl.F_DUPFD_CLOEXEC, FAR) for fd in sys.argv[1].split(",")]
    for place, fd in enumerate(given, FIRST_FD):
        os.dup2(fd, place, inheritable=True)
    os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(given))}
    os.execv(sys.executable, [sys.executable, "-m", "ranktapd", *sys.argv[2:]])


if __name__ == "__main__":
    main()
