"""``python -m poolwatch`` is the command ``poolwatch``."""

import sys

from poolwatch.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
