"""`python -m mosaic_edge.cli`."""

from __future__ import annotations

import sys

from mosaic_edge.cli import main

sys.exit(main())
