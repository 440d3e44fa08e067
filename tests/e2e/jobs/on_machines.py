"""A rank of a job on several machines, which is told `logdir=` alone. Arguments: logdir.

It initialises a process group, as training does, logs `x` = 4**rank at five steps for each line
of its standard input, and says where its daemon is, and whether it has everything.
"""

from __future__ import annotations

import logging
import sys

import torch.distributed as dist

import ranktap
from ranktap_wire import limits

limits.ANSWER_TIMEOUT_S = 1.0  # type: ignore[misc]
logging.basicConfig(format="%(message)s", stream=sys.stderr)

tap = ranktap.init("job", logdir=sys.argv[1])  # before there is a store
dist.init_process_group("gloo")
print("here", flush=True)
step = 0
for _ in sys.stdin:
    for _ in range(5):
        tap.scalar("x", 4.0**tap.rank, step)
        step += 1
    print(tap.flush(timeout=30), tap._sender._connection.where.partition("://")[0], flush=True)
print(tap.close(timeout=30), "", flush=True)
dist.destroy_process_group()
