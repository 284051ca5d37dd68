#!/usr/bin/env python3
"""Registers, spills, code and instructions of every CUDA kernel: `python tools/kernel_resources.py`.

Compiles cpp/backend/cuda/*.cu for each architecture (default 87 and 90; --all: what the package ships) and
prints a table (--json: rows; --write: docs/results/gpu-kernels.md). Registers and spills are ptxas' word;
code and the instructions a warp needs for 16 packed keys are counted in SASS. Ends with 1 when a kernel of
attend or assign spills registers to local memory, or takes more than LIMITS.
--built TREE takes the PTX of a CUDA build (tools/aarch64 --cuda: of 87) where it has one newer than every
source, so that no file is read twice.
nvcc: $CUDACXX, PATH, build/cuda (tools/setup cuda), /usr/local/cuda. nvdisasm: PATH, build/nvdisasm
(tools/setup nvdisasm); without it nothing is counted.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from sass import Function, Turn, functions

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "cpp"
FOLDER = SOURCES / "backend" / "cuda"
SHIPPED = (80, 86, 87, 89, 90, 110)
WATCHED = ("attend", "assign")  # kernels of files that begin so must not spill
KERNELS = re.compile(r"_kernel|attend_(tensor|exact)\.h")  # of files that have some
SHOWN = ("attend_decode", "attend_prefill", "assign")  # what is paid per token, on tensor cores: on the page
PACKED = re.compile(r'MOSAIC_CODEC\(\w+, "(\w+)", Planes<')
DEFAULT = "k5v3"
TRANSPOSES = "MOVM"  # of the loops over packed pages alone: it turns weights into a right side
LIMITS = {"k5v3": 1000, "k4v4": 920, "k4v3": 880, "k3v3": 890, "k2v2": 730}
"""Instructions of a warp for 16 packed keys and values of 128 channels, and eight queries."""
KINDS = {
    "bytes and bits": ("PRMT", "LOP3", "SHF", "BREV", "FLO", "POPC"),
    "pairs of halves": ("HADD2", "HFMA2", "HMUL2"),
    "to halves": ("F2FP",),
    "tensor cores": ("HMMA", "MOVM"),
    "loads": ("LD", "LDG", "LDS"),
    "integers and moves": ("IMAD", "IADD3", "VIADD", "LEA", "MOV", "UMOV", "SEL", "CS2R"),
}
"""Opcodes of the page's second table; what is in none is "the rest"."""
NO_FMA = ("pages", "stage")  # as cuda.cmake compiles them

PTX = re.compile(rb"\.version \d[^\0]*")
TARGET = re.compile(rb"\.target sm_(\d+)")
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
    name: str = ""  # as the linker has it
    code: int = 0  # bytes
    packed: dict[str, int] = field(default_factory=dict)  # codec: instructions for 16 keys
    kinds: dict[str, int] = field(default_factory=dict)  # of them, of the codec that is the default

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
            found.append(Kernel(file, readable(entry[0]), entry[1], int(match[1]), *frame, entry[0]))
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


def find_nvdisasm() -> str | None:
    """What lists SASS, or None."""
    place = ROOT / "build/nvdisasm/nvidia/cu13/bin/nvdisasm"
    return shutil.which("nvdisasm") or (str(place) if place.is_file() else None)


def packed_codecs() -> list[str]:
    """In the order in which a kernel has their loops."""
    return PACKED.findall((ROOT / "cpp/codec/codecs.def").read_text(encoding="utf-8"))


def by_kind(turn: Turn) -> dict[str, int]:
    """A turn's instructions by what they are for."""
    kinds = {kind: sum(turn.opcodes[opcode] for opcode in opcodes) for kind, opcodes in KINDS.items()}
    return kinds | {"the rest": turn.instructions - sum(kinds.values())}


def counted(kernel: Kernel, function: Function) -> Kernel:
    """With what its SASS says."""
    turns = [turn for turn in function.turns() if turn.opcodes[TRANSPOSES] > 0]
    codecs = packed_codecs()
    packed, kinds = {}, {}
    if len(turns) == len(codecs):
        packed = {codec: turn.instructions for codec, turn in zip(codecs, turns, strict=True)}
        kinds = by_kind(turns[codecs.index(DEFAULT)])
    return replace(kernel, code=16 * sum(map(len, function.blocks)), packed=packed, kinds=kinds)


def ptx_in(made: bytes) -> dict[int, bytes]:
    """PTX by architecture in an object file that was made with -no-compress."""
    found = {}
    for text in PTX.findall(made):
        if target := TARGET.search(text):
            found[int(target[1])] = text
    return found


def built_ptx(tree: Path, source: Path, arch: int) -> bytes | None:
    """Of a file as a build has it, or None where it has none, or one older than a source."""
    made = next(tree.glob(f"CMakeFiles/*.dir/{source.relative_to(ROOT)}.o"), None)
    if made is None or made.stat().st_mtime < max(path.stat().st_mtime for path in SOURCES.rglob("*.*")):
        return None
    return ptx_in(made.read_bytes()).get(arch)


def compile_one(nvcc: str, source: Path, arch: int, tree: Path | None = None) -> list[Kernel]:
    """Compile one file for one architecture and read what ptxas says."""
    command = [nvcc, f"-arch=sm_{arch}", "-cubin", "-Xptxas=-v", "-Werror=all-warnings"]
    ptx = built_ptx(tree, source, arch) if tree is not None else None
    nvdisasm = find_nvdisasm()
    with tempfile.TemporaryDirectory() as folder:
        cubin, given = Path(folder) / "kernels.cubin", source
        if ptx is not None:
            given = Path(folder) / f"{source.stem}.ptx"
            given.write_bytes(ptx)
        else:
            command += ["-std=c++20", "--expt-relaxed-constexpr", f"-I{SOURCES}"]
            command += ["-fmad=false"] if source.stem in NO_FMA else []
        done = subprocess.run(
            [*command, "-o", str(cubin), str(given)], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise SystemExit(
                f"kernel_resources: {source.name} for sm_{arch} does not compile:\n{done.stderr}"
            )
        kernels = parse(source.stem, done.stderr + done.stdout)
        if nvdisasm is None:
            return kernels
        listing = subprocess.run([nvdisasm, "-c", str(cubin)], capture_output=True, text=True, check=True)
    found = functions(listing.stdout)
    return [counted(kernel, found[kernel.name]) for kernel in kernels]


def faults_of(rows: list[Kernel]) -> list[str]:
    """What must not be, in words."""
    faults = [
        f"{row.kernel} spills on sm_{row.arch}" for row in rows if row.spills and row.file.startswith(WATCHED)
    ]
    for row in rows:
        if row.file == "attend_decode_128" and row.code > 0:
            if not row.packed:
                faults.append(f"{row.kernel} on sm_{row.arch}: its loops over packed pages are not found")
            faults += [
                f"{row.kernel} on sm_{row.arch} takes {count} instructions for 16 keys of {codec}, "
                f"at most {LIMITS[codec]}"
                for codec, count in row.packed.items()
                if count > LIMITS[codec]
            ]
    return faults


def show(rows: list[Kernel]) -> None:
    """A table for a terminal."""
    head = f"{'registers':>9} {'stack':>6} {'spilled':>8} {'code':>8}  instructions for 16 packed keys"
    print(f"{'file':<18} {'kernel':<28} {'sm':>4} {head}")
    for row in rows:
        numbers = f"{row.arch:>4} {row.registers:>9} {row.stack:>6} {row.spilled:>8} {row.code:>8}"
        packed = " ".join(f"{codec} {count}" for codec, count in row.packed.items())
        print(f"{row.file:<18} {row.kernel:<28} {numbers}  {packed}".rstrip())


def main() -> int:
    """Print the table; 1 when a kernel takes what it must not."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--arch", type=int, action="append", help="an architecture, such as 87; repeat for more"
    )
    parser.add_argument("--all", action="store_true", help="every architecture the package ships")
    parser.add_argument("--built", type=Path, metavar="TREE", help="a CUDA build whose PTX is taken")
    parser.add_argument("--json", action="store_true", help="rows as JSON")
    parser.add_argument("--write", action="store_true", help="write docs/results/gpu-kernels.md")
    options = parser.parse_args()
    nvcc = find_nvcc()
    if nvcc is None:
        print("kernel_resources: no nvcc. Run tools/setup cuda, or set CUDACXX=.", file=sys.stderr)
        return 1
    archs = SHIPPED if options.all else options.arch or (87, 90)
    sources = sorted(path for path in FOLDER.glob("*.cu") if KERNELS.search(path.read_text(encoding="utf-8")))
    if options.write:
        sources = [source for source in sources if source.stem.startswith(SHOWN)]
    jobs = [(source, arch) for source in sources for arch in archs]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(lambda job: compile_one(nvcc, job[0], job[1], options.built), jobs)
        rows = [row for kernels in found for row in kernels]
    if options.json:
        print(json.dumps([asdict(row) for row in rows]))
    elif options.write:
        from kernel_page import PAGE, page

        PAGE.write_text(page(rows), encoding="utf-8")
        print(PAGE)
    else:
        show(rows)
    faults = faults_of(rows)
    for fault in faults:
        print(f"kernel_resources: {fault}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
