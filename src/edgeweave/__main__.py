"""``python -m edgeweave`` is ``edgeweave``."""

from __future__ import annotations

import sys

from edgeweave.cli import main

if __name__ == "__main__":
    sys.exit(main())
