"""A ranktapd that takes a worker for hung after four seconds instead of two minutes."""

from __future__ import annotations

import sys

from ranktapd import cli, supervisor

if __name__ == "__main__":
    supervisor.SILENT_S = 4.0
    sys.exit(cli.main())
