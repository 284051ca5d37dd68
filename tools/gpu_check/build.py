"""Stage 0: what the others run, for the one GPU that is there; a part that fails costs only itself."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tarfile
from pathlib import Path

from check import ROOT, Check, StageError

NEEDS: tuple[str, ...] = ()
LEAST_SECONDS = 30.0
LIMIT = 240.0  # of all compilers; 30 to 55 s are expected on 16 cores
FILES = {"bench": "kernels_bench", "tests": "mosaic_tests", "module": "_core*.so"}
# The parts of each attempt to configure: CMake stops at the first thing it misses, so that is left out.
ATTEMPTS = (("bench", "tests", "module"), ("bench", "module"), ("bench", "tests"), ("bench",))


def asked(*command: str, holding: str = "") -> str:
    """The first line (with a word) of what a command says; empty where it fails or is not there."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return ""
    lines = [line for line in done.stdout.strip().splitlines() if holding in line]
    return lines[0].strip() if lines else ""


def nvcc_of() -> str:
    return os.environ.get("CUDACXX") or shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"


TORCH_QUERY = (
    "import torch; p = torch.cuda.get_device_properties(0); "
    "print(f'{p.major}.{p.minor}, , {p.name}, {p.total_memory >> 20} MiB')"
)


def gpu_of(check: Check) -> list[str]:
    """Compute capability, driver, name, memory of the first GPU; empty words where nobody says them."""
    query = "--query-gpu=compute_cap,driver_version,name,memory.total"
    for smi in ("nvidia-smi", "/usr/local/nvidia/bin/nvidia-smi"):  # on no Jetson before JetPack 7
        found = asked(smi, query, "--format=csv,noheader").split(", ")
        if len(found) == 4:
            return found
    found = asked(check.python, "-c", TORCH_QUERY).split(", ")
    return found if len(found) == 4 else [""] * 4


def describe(check: Check) -> str:
    """The machine, as a line of results; returns the GPU's architecture as CMake names it."""
    capability, driver, name, memory = [""] * 4 if check.cpu else gpu_of(check)
    torch = "from importlib.metadata import version; print(version('torch'))"
    device = "CPU (rehearsal)" if check.cpu else f"{name}, sm_{capability.replace('.', '')}, {memory}"
    check.write(
        "machine", device=device, driver=driver,
        nvcc="" if check.cpu else asked(nvcc_of(), "--version", holding="release"),
        torch=asked(check.python, "-c", torch), python=platform.python_version(), cores=os.cpu_count(),
        commit=asked("git", "rev-parse", "--short", "HEAD"), rehearsal=check.cpu, budget=check.budget,
    )  # fmt: skip
    return f"{capability.replace('.', '')}-real" if capability else "native"


def configure(check: Check, parts: tuple[str, ...], architecture: str) -> bool:
    """Whether CMake has all that these parts need."""
    options = ["-DMOSAIC_BENCH=ON", "-DMOSAIC_WERROR=OFF", f"-DMOSAIC_CUDA={'OFF' if check.cpu else 'ON'}"]
    options += [f"-DMOSAIC_TESTS={'ON' if 'tests' in parts else 'OFF'}"]
    options += [f"-DMOSAIC_PYTHON={'ON' if 'module' in parts else 'OFF'}"]
    if not check.cpu:
        options.append(f"-DCMAKE_CUDA_ARCHITECTURES={architecture}")
    if "module" in parts:
        pybind11 = asked(check.python, "-m", "pybind11", "--cmakedir")
        options += [f"-DPython_EXECUTABLE={shutil.which(check.python)}", f"-Dpybind11_DIR={pybind11}"]
    if "DOCTEST_INCLUDE_DIR" in os.environ:
        options.append(f"-DDOCTEST_INCLUDE_DIR={os.environ['DOCTEST_INCLUDE_DIR']}")
    if shutil.which("ninja"):
        options += ["-G", "Ninja"]
    name = f"configure-{'-'.join(parts)}"
    return check.run(name, ["cmake", "-S", ROOT, "-B", check.tree, *options], 60).code == 0


def take(check: Check, folder: Path) -> bool:
    """Use what was built into a folder. True: all parts are there."""
    for part, pattern in FILES.items():
        found = [*folder.glob(pattern)]
        if not found:
            continue
        check.parts.add(part)
        if folder != check.tree and part != "module":
            link(found[0], check.tree / found[0].name)
        if part == "module":
            shutil.rmtree(check.site, ignore_errors=True)
            package = check.site / "mosaic_edge"
            package.mkdir(parents=True)
            for source in (ROOT / "python" / "mosaic_edge").iterdir():
                if not source.name.startswith("_core"):
                    link(source, package / source.name)
            link(found[0], package / found[0].name)
    return len(check.parts) == len(FILES)


def adopt(check: Check, folder: Path) -> bool:
    """Stage 0 where everything was built before: --built."""
    check.stage = "build"
    describe(check)
    whole = take(check, folder)
    missing = ", ".join(sorted(set(FILES) - check.parts))
    why = f"of {folder.name}" + (f", without {missing}" if missing else "")
    check.write("stage", number=0, state="adopted", seconds=0.0, why=why)
    return whole


def link(to: Path, at: Path) -> None:
    at.unlink(missing_ok=True)
    at.symlink_to(to.resolve())


def pack(check: Check) -> None:
    """Stripped copies for --built in a second call."""
    beside = check.out / "built.tar.gz.part"
    with tarfile.open(beside, "w:gz") as tar:
        for pattern in FILES.values():
            for built in check.tree.glob(pattern):
                bare = check.work / built.name
                if check.run(f"strip-{built.name}", ["strip", "-o", bare, built], 20).code == 0:
                    tar.add(bare, built.name)
                    bare.unlink()
    beside.replace(check.out / "built.tar.gz")


def play(check: Check) -> None:
    architecture = describe(check)
    parts = next((parts for parts in ATTEMPTS if configure(check, parts, architecture)), ())
    if not parts:
        raise StageError("cmake: not even the bench can be configured", tail_of(check, "configure-bench"))
    generator = ["--", "-k", "0"] if (check.tree / "build.ninja").exists() else ["--", "-k"]
    jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", str(os.cpu_count()))
    done = check.run("build", ["cmake", "--build", check.tree, "-j", jobs, *generator], LIMIT)
    take(check, check.tree)
    if not check.cpu:
        pack(check)
    missing = sorted(set(FILES) - check.parts)
    if missing or done.code != 0:
        where = "build" if parts == ATTEMPTS[0] else f"configure-{'-'.join(ATTEMPTS[0])}"
        raise StageError(f"without {', '.join(missing) or 'a good end'}: {where}.log", tail_of(check, where))


def tail_of(check: Check, name: str) -> str:
    log = check.work / f"{name}.log"
    return "\n".join(log.read_text(errors="replace").splitlines()[-25:]) if log.exists() else ""
