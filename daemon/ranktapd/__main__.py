"""python -m ranktapd."""

import sys

from ranktapd.cli import main

sys.exit(main())
