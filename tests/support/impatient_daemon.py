"""A ranktapd that lets go of a silent session after three beats instead of thirty."""

from __future__ import annotations

import sys

from ranktap_wire import limits
from ranktapd import cli

if __name__ == "__main__":
    limits.SESSION_TIMEOUT_S = 3.0  # type: ignore[misc]
    sys.exit(cli.main())
