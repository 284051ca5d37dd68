#!/usr/bin/env python3
"""Registers, stack and spills of every CUDA kernel, as ptxas has them: `python tools/kernel_resources.py`.

Compiles cpp/backend/cuda/*.cu for each architecture (default 87 and 90; --all: what the package ships) and
prints a table (--json: rows). Ends with 1 when a kernel of attend or assign spills registers to local memory:
those two are paid per token. nvcc: $CUDACXX, PATH, build/cuda (tools/setup cuda), /usr/local/cuda.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "cpp" / "backend" / "cuda"
SHIPPED = (80, 86, 87, 89, 90, 110)
WATCHED = ("attend", "attend_tensor", "assign")  # files whose kernels must not spill
NO_FMA = ("pages",)  # as cuda.cmake compiles them

ENTRY = re.compile(r"Compiling entry function '(\w+)' for 'sm_(\d+)'")
SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
PROPERTIES = re.compile(r"Function properties for (\w+)")
REGISTERS = re.compile(r"Used (\d+) registers")


@dataclass(frozen=True)
class Kernel:
    """One kernel on one architecture. Bytes are per thread."""

    file: str
    kernel: str
    arch: int
    registers: int
    stack: int
    spill_stores: int
    spill_loads: int

    @property
    def spilled(self) -> int:
        """Bytes stored and loaded because registers ran out."""
        return self.spill_stores + self.spill_loads

    @property
    def spills(self) -> bool:
        """Whether registers ran out."""
        return self.spilled > 0


def parse(file: str, text: str) -> list[Kernel]:
    """The kernels in ptxas' -v output; functions that are not kernels are passed over."""
    found: list[Kernel] = []
    entry: tuple[str, int] | None = None
    about = ""
    frame = (0, 0, 0)
    for line in text.splitlines():
        if match := ENTRY.search(line):
            entry, frame = (match[1], int(match[2])), (0, 0, 0)
        elif match := PROPERTIES.search(line):
            about = match[1]
        elif (match := SPILLS.search(line)) and entry and about == entry[0]:
            frame = (int(match[1]), int(match[2]), int(match[3]))
        elif (match := REGISTERS.search(line)) and entry:
            found.append(Kernel(file, readable(entry[0]), entry[1], int(match[1]), *frame))
            entry = None
    return found


def readable(mangled: str) -> str:
    """`attend_kernel<16,128,1>` of its mangled name."""
    name = re.search(r"\d+([a-z][a-z_]*_kernel)(.*)", mangled)
    if not name:
        return mangled
    values = re.match(r"I((?:L[a-z]\d+E)+)E", name[2])
    numbers = re.findall(r"L[a-z](\d+)E", values[1]) if values else []
    return name[1] + (f"<{','.join(numbers)}>" if numbers else "")


def find_nvcc() -> str | None:
    """The compiler to use, or None."""
    places = (ROOT / "build/cuda/nvidia/cu13/bin/nvcc", Path("/usr/local/cuda/bin/nvcc"))
    return (
        os.environ.get("CUDACXX")
        or shutil.which("nvcc")
        or next((str(place) for place in places if place.is_file()), None)
    )


def compile_one(nvcc: str, source: Path, arch: int) -> list[Kernel]:
    """Compile one file for one architecture and read what ptxas says."""
    command = [
        nvcc,
        "-std=c++20",
        "--expt-relaxed-constexpr",
        f"-I{ROOT / 'cpp'}",
        f"-arch=sm_{arch}",
        "-cubin",
    ]
    command += ["-Xptxas=-v", "-Werror=all-warnings", "-o", os.devnull, str(source)]
    command += ["-fmad=false"] if source.stem in NO_FMA else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"kernel_resources: {source.name} for sm_{arch} does not compile:\n{done.stderr}")
    return parse(source.stem, done.stderr + done.stdout)


def main() -> int:
    """Print the table; 1 when a watched kernel spills more than is known of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--arch", type=int, action="append", help="an architecture, such as 87; repeat for more"
    )
    parser.add_argument("--all", action="store_true", help="every architecture the package ships")
    parser.add_argument("--json", action="store_true", help="rows as JSON")
    options = parser.parse_args()
    nvcc = find_nvcc()
    if nvcc is None:
        print("kernel_resources: no nvcc. Run tools/setup cuda, or set CUDACXX=.", file=sys.stderr)
        return 1
    archs = SHIPPED if options.all else options.arch or (87, 90)
    sources = sorted(path for path in FOLDER.glob("*.cu") if "_kernel" in path.read_text(encoding="utf-8"))
    jobs = [(source, arch) for source in sources for arch in archs]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        rows = [row for found in pool.map(lambda job: compile_one(nvcc, *job), jobs) for row in found]
    faults = [row for row in rows if row.spills and row.file in WATCHED]
    if options.json:
        print(json.dumps([asdict(row) for row in rows]))
    else:
        print(f"{'file':<12} {'kernel':<28} {'sm':>4} {'registers':>9} {'stack':>6} {'spilled':>8}")
        for row in rows:
            numbers = f"{row.arch:>4} {row.registers:>9} {row.stack:>6} {row.spilled:>8}"
            print(f"{row.file:<12} {row.kernel:<28} {numbers}")
    for row in faults:
        print(f"kernel_resources: {row.kernel} spills on sm_{row.arch}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
