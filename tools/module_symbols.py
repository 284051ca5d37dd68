#!/usr/bin/env python3
"""`tools/module_symbols.py WHEEL PYTHON`: whether a wheel's module fits its name and a Python, unloaded.

For wheels of another architecture whose Python cannot be had here: PYTHON, of the same version, has the same
C API. Refused are a module named for, or compiled for, another version or machine than the wheel, one that
hands out more than its PyInit, and one that asks for what PYTHON does not have. Needs readelf.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

MACHINES = {"x86_64": "Advanced Micro Devices X86-64", "aarch64": "AArch64"}  # as readelf calls them
ASK = "import ctypes, sys; print(*(n for n in sys.stdin.read().split() if not hasattr(ctypes.pythonapi, n)))"


def faults(wheel: Path, python: str) -> list[str]:
    """What is wrong with it, in words; empty when nothing is."""
    named = re.search(r"-cp3(\d+)-cp3\1-[a-z0-9_.]*?_(x86_64|aarch64)\.whl$", wheel.name)
    if not named:
        return [f"its name says neither a Python nor {' or '.join(MACHINES)}"]
    minor, machine = named.groups()
    expected = f"mosaic_edge/_core.cpython-3{minor}-{machine}-linux-gnu.so"
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as folder:
        modules = [name for name in archive.namelist() if name.endswith(".so")]
        if modules != [expected]:
            return [f"has {modules}, expected {expected} alone"]
        read = readelf(archive.extract(expected, folder))
    found = []
    if f"Machine: {MACHINES[machine]}\n" not in re.sub(r" {2,}", " ", read):
        found.append(f"its module is not for {machine}")
    given, asked = symbols(read)
    if given != ["PyInit__core"]:
        found.append(f"its module hands out {', '.join(given) or 'nothing'}, expected PyInit__core alone")
    names = [name for name in asked if re.match(r"_?Py", name)]
    ask = [python, "-c", ASK]
    answer = subprocess.run(ask, input=" ".join(names), capture_output=True, text=True, check=True)
    if missing := answer.stdout.split():
        found.append(f"its module asks for {', '.join(missing)}, which {python} does not have")
    return found


def readelf(path: str) -> str:
    """The header and the dynamic symbols."""
    command = ["readelf", "--wide", "--file-header", "--dyn-syms", path]
    environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout


def symbols(read: str) -> tuple[list[str], list[str]]:
    """The names that a module defines for others, and those that it takes from others."""
    given, asked = [], []
    for line in read.splitlines():
        # number: value size type binding visibility section name
        if row := re.match(r"\s*\d+: [0-9a-f]+\s+\S+ \S+\s+(?:GLOBAL|WEAK)\s+\S+\s+(\S+) ([^\s@]+)", line):
            (asked if row[1] == "UND" else given).append(row[2])
    return given, asked


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    wrong = faults(Path(sys.argv[1]), sys.argv[2])
    for fault in wrong:
        print(f"tools/module_symbols.py: {Path(sys.argv[1]).name}: {fault}", file=sys.stderr)
    sys.exit(bool(wrong))
