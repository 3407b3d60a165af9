"""`python -m splatgen` is `splatgen`."""

import sys

from splatgen.cli import main

if __name__ == "__main__":
    sys.exit(main())
