"""`python tools/bench [--json]`: every kernel against a peer measured in the same run. See kernels.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from kernels import main

if __name__ == "__main__":
    sys.exit(main())
