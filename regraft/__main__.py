"""``python -m regraft``: the command line."""

import sys

from regraft.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
