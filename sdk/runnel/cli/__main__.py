"""``python -m runnel.cli`` is ``runnel``."""

import sys

from runnel.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
