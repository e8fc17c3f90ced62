"""`python -m citrus_tool`: the `citrus` command where its script is not on the path."""

from __future__ import annotations

import sys

from citrus_tool.cli import main

if __name__ == "__main__":
    sys.exit(main())
