"""The command line as `python -m neighbor_grpo`."""

import sys

from neighbor_grpo.cli import main

sys.exit(main())
