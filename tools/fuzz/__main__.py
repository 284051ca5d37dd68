"""`python tools/fuzz KIND [--seconds 60] [--seed 1] [--state FILE] [--workers 1]`: random work that must
neither crash, hang, pass the cap nor raise anything raw. KIND:

core      calls of a raw `_core.KvMemory`, any policy and settings, whole and broken arguments (core_calls.py)
sessions  append, ask, stream, memory, close of a Session (session_calls.py)
models    mutated files of a model directory, at the door and loaded (model_files.py)
states    mutated files of saved sessions, half of them with right checksums (state_files.py)
kills     a service that is killed at random moments while it saves, and started anew (kills.py)
sockets   mutated bytes of clients of `live`'s socket (socket_bytes.py)
http      mutated, cut and stalled requests of clients of `serve`, WebSockets among them (http_requests.py)

A case is all that one seed decides, in a child process of its own: `--seed N --cases 1` plays it again. With
--state the next run goes on where the last one ended. Exits 1 when something was found.
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(Path(__file__).parent), str(ROOT / "tests" / "material")]

KINDS = {
    "core": "core_calls",
    "sessions": "session_calls",
    "models": "model_files",
    "sockets": "socket_bytes",
    "http": "http_requests",
    "states": "state_files",
    "kills": "kills",
}


def main(arguments: list[str]) -> int:
    import cases

    parser = argparse.ArgumentParser(
        prog="tools/fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long new cases are begun")
    parser.add_argument("--seed", type=int, default=1, help="the first case")
    parser.add_argument("--cases", type=int, default=1 << 62, help="how many at most")
    parser.add_argument("--state", type=Path, help="a JSON file that remembers how far earlier runs came")
    parser.add_argument("--workers", type=int, default=1, help="cases at a time")
    given = parser.parse_args(arguments)
    kind = import_module(KINDS[given.kind])
    if hasattr(kind, "prepare"):
        kind.prepare()  # what every case needs, once before they are forked
    tally = cases.Tally.read(given.state, given.kind, given.seed)
    cases.run(kind.play, tally, given.seconds, given.cases, given.workers)
    print(tally.line())
    return 1 if tally.found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
