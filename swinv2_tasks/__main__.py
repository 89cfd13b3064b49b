"""``python -m swinv2_tasks``: the command line."""

import sys

from swinv2_tasks.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
