"""`python -m mosaic_edge.cli`."""

from __future__ import annotations

from mosaic_edge.cli import program

program()
