"""A ranktapd that takes four ranks for a crowd: it asks each of them for two batches a second."""

from __future__ import annotations

import sys

from ranktapd import cli, crowd

if __name__ == "__main__":
    crowd.BATCHES_PER_S = 8  # type: ignore[misc]
    sys.exit(cli.main())
