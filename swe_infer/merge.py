"""``python -m swe_infer.merge``."""

import sys

from swe_infer.cli.merge import main

if __name__ == "__main__":
    sys.exit(main())
