"""`python -m circuits`, which is what launchers of several processes start."""

import sys

from circuits.cli import main

if __name__ == "__main__":
    sys.exit(main())
