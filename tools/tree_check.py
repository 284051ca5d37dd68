"""What the checks of this repository's tree have in common as commands (check_layers.py, check_words.py)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path


def run(name: str, check: Callable[[Path], list[str]]) -> int:
    """Print the faults of the root that is named, by default this repository's; 1 when there are any."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent
    if not (root / "cpp").is_dir():
        print(f"{name}: got {root}, expected the repository's root (no cpp/ in it)", file=sys.stderr)
        return 1
    faults = check(root)
    for fault in faults:
        print(fault)
    return 1 if faults else 0
