"""`python tools/bench [--json]`: every kernel against a peer measured in the same run, see kernels.py.

`python tools/bench caches`: our memory against the caches of transformers on one model, see caches.py.

`python tools/bench decoders`: our memory under trained decoders, see decoders/cli.py.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

if __name__ == "__main__":
    if sys.argv[1:2] == ["caches"]:
        # Threads that wait by spinning cost CPU time that is nobody's; read when torch is loaded.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        import caches

        sys.exit(caches.main(sys.argv[2:]))
    if sys.argv[1:2] == ["decoders"]:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        from decoders import cli, decoder

        decoder.prepare_process()
        sys.exit(cli.main(sys.argv[2:]))
    import kernels

    sys.exit(kernels.main())
