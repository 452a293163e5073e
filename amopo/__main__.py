"""`python -m amopo` is the `amopo` command."""

import sys

from amopo.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
