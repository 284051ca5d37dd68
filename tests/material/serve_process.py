"""`mosaic-edge serve` as a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mosaic_edge
from http_service import Client

PACKAGE = Path(mosaic_edge.__file__).parents[1]


@contextmanager
def process(*options: str) -> Iterator[tuple[subprocess.Popen[str], Client, dict[str, Any]]]:
    words = [sys.executable, "-m", "mosaic_edge", "serve", "--port", "0", "--json", "--memory", "8MiB"]
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [*words, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as running:
        try:
            assert running.stdout is not None
            lines = ""
            while not lines.endswith("}\n"):
                lines += running.stdout.readline()
            said = json.loads(lines)
            yield running, Client(int(said["url"].rpartition(":")[2]), said["token"]), said
        finally:
            running.kill()
