"""`mosaic-edge doctor`: what is installed, what is missing and how to get it."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
import warnings
from importlib import import_module, metadata
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mosaic_edge import __version__
from mosaic_edge.cli import command
from mosaic_edge.cli.options import Json
from mosaic_edge.cli.output import console, print_json, visible
from mosaic_edge.config import format_bytes

NEEDED = ("numpy", "av", "tokenizers", "psutil", "typer", "rich")
OPTIONAL = {"onnxruntime": "cpu", "matplotlib": "eval", "torch": "hf", "transformers": "hf"}
"""Module -> the extra that brings it."""

FLAGS = (
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_int8",
    "asimd",
    "asimddp",
    "i8mm",
    "bf16",
)


@command
def doctor(
    spill_dir: Annotated[str | None, typer.Option(help="Folder of spill files to test.")] = None,
    model: Annotated[str | None, typer.Option(help="Say whether its weights fit; none is read.")] = None,
    json: Json = False,
) -> None:
    """Show versions, backends, what is missing and how to get it. Always ends with 0."""
    found = examine(spill_dir, model)
    if json:
        print_json(found)
    else:
        show_doctor(found, console())


def examine(spill_dir: str | None = None, model: str | None = None) -> dict[str, Any]:
    """Look at everything a session depends on. "ok" or not; "detail" says why, or what is there."""
    memory = _memory()
    weights = {} if model is None else {"weights": _weights(model, memory["available_bytes"])}
    return weights | {
        "mosaic_edge": __version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "instruction_sets": _instruction_sets(),
        "packages": [_package(name, None) for name in NEEDED]
        + [_package(name, extra) for name, extra in OPTIONAL.items()],
        "core": _core(),
        "gpus": (gpus := _gpus()),
        "quantised": _quantised(any(gpu["ok"] for gpu in gpus)),
        "providers": _providers(),
        "model": _model(),
        "profiles": _profiles(),
        "memory": memory,
        "spill": _spill(spill_dir),
    }


def _package(name: str, extra: str | None) -> dict[str, Any]:
    names = (name, f"{name}-gpu")
    found = next((d for d in metadata.distributions() if d.name.lower() in names), None)
    if found is not None:
        return {"name": found.name, "ok": True, "detail": found.version, "extra": extra}
    wanted = f"mosaic_edge[{extra}]" if extra else name
    return {"name": name, "ok": False, "detail": f"not installed: pip install '{wanted}'", "extra": extra}


def _core() -> dict[str, Any]:
    try:
        core = import_module("mosaic_edge._core")
    except ImportError as error:
        return {
            "ok": False,
            "detail": f"the compiled core does not load: {error}",
            "backends": [],
            "policies": [],
        }
    return {
        "ok": True,
        "detail": core.__file__,
        "backends": core.backends(),
        "policies": list(core.policies()),
    }


def _gpus() -> list[dict[str, Any]]:
    """What NVML says of each GPU. It may be absent, or know little (Jetson): every question is guarded."""
    try:
        nvml = import_module("pynvml")
        nvml.nvmlInit()
    except ModuleNotFoundError:
        why = "pynvml is not installed: pip install 'mosaic_edge[gpu]'"
        return [{"ok": False, "name": "NVML", "detail": why}]
    except Exception as error:  # no driver, no permission: one line says which
        return [{"ok": False, "name": "NVML", "detail": str(error) or type(error).__name__}]

    def ask(question: Any, *given: Any) -> Any:
        try:
            answer = question(*given)
        except Exception:  # NVMLError_NotSupported and its like
            return None
        return answer.decode() if isinstance(answer, bytes) else answer

    found = []
    driver = ask(nvml.nvmlSystemGetDriverVersion) or "unknown"
    for number in range(ask(nvml.nvmlDeviceGetCount) or 0):
        device = ask(nvml.nvmlDeviceGetHandleByIndex, number)
        memory = ask(nvml.nvmlDeviceGetMemoryInfo, device)
        watts = ask(nvml.nvmlDeviceGetPowerUsage, device)
        parts = [f"driver {driver}"]
        if memory is not None:
            parts.append(f"{format_bytes(memory.free)} free of {format_bytes(memory.total)}")
        if watts is not None:
            parts.append(f"{watts / 1000:.0f} W")
        name = ask(nvml.nvmlDeviceGetName, device) or "unnamed"
        found.append({"ok": True, "name": f"GPU {number}", "detail": ", ".join([name, *parts])})
    ask(nvml.nvmlShutdown)
    return found or [{"ok": False, "name": "NVML", "detail": f"driver {driver}, no GPU"}]


def _providers() -> dict[str, Any]:
    try:
        runtime = import_module("onnxruntime")
    except ImportError as error:
        missing = error.name == "onnxruntime"
        how = "not installed: pip install 'mosaic_edge[cpu]', or 'mosaic_edge[gpu]' on a GPU"
        why = how if missing else str(error)
        return {"ok": False, "detail": f"onnxruntime: {why}", "names": []}
    return {"ok": True, "detail": runtime.__version__, "names": list(runtime.get_available_providers())}


def _quantised(gpu: bool) -> list[dict[str, Any]]:
    """Formats of quantised checkpoints, and what each lacks here."""
    from mosaic_edge.models.hf.quantised import FORMATS, what_lacks

    found = []
    for name, form in FORMATS.items():
        lacks = what_lacks(name, gpu)
        detail = f"needs {lacks}" if lacks else "" if gpu else form.on_cpu
        found.append({"name": name, "ok": lacks is None, "detail": detail})
    return found


def _model() -> dict[str, Any]:
    folder = Path(__file__).parents[1] / "models" / "tiny"
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) if folder.is_dir() else 0
    if not list(folder.rglob("*.onnx")):
        return {"ok": False, "detail": f"mosaic-tiny is not in {folder}"}
    return {"ok": True, "detail": f"mosaic-tiny, {size / 2**20:.1f} MiB in {folder}"}


def _weights(model: str, available: int) -> dict[str, Any]:
    """Whether a model's weights fit into the machine's memory, by the sizes of its files."""
    from mosaic_edge.models import weights_on_disk

    try:
        found = weights_on_disk(model)
    except ValueError as error:
        return {"ok": False, "name": model, "detail": str(error)}
    more = f", {format_bytes(found.loaded)} once loaded" if found.loaded > found.stored else ""
    fits = 0 < found.loaded <= available
    verdict = "they fit" if fits else "too large" if found.stored else "no weights"
    detail = f"{model}: {format_bytes(found.stored)} ({found.layout}){more}; {verdict}"
    free = f"{format_bytes(available)} of memory are free"
    return {
        "ok": fits,
        "name": model,
        "detail": f"{detail}: {free}",
        "layout": found.layout,
        "stored_bytes": found.stored,
        "loaded_bytes": found.loaded,
    }


def _profiles() -> dict[str, Any]:
    from mosaic_edge.profiles import known_profiles, read_profile

    try:
        titles = {name: read_profile(name).title for name in known_profiles()}
    except ValueError as error:
        return {"ok": False, "detail": str(error), "titles": {}}
    detail = ", ".join(titles) or "none came with this package"
    return {"ok": bool(titles), "detail": detail, "titles": titles}


def _memory() -> dict[str, Any]:
    import psutil

    memory = psutil.virtual_memory()
    return {"ok": True, "total_bytes": memory.total, "available_bytes": memory.available}


def _spill(asked: str | None) -> dict[str, Any]:
    from mosaic_edge.spill_folder import memory_kind, spill_folder

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is said below
            folder = spill_folder(asked)
    except ValueError as error:
        return {"ok": False, "folder": tempfile.tempdir or "", "detail": str(error), "free_bytes": 0}
    kind = memory_kind(folder)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0" * 4096)
            file.flush()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        why = f"not writable: {error.strerror or error}. Set spill_dir="
        return {"ok": False, "folder": folder, "detail": why, "free_bytes": 0}
    said = "writable" if kind is None else f"in RAM ({kind}): spilling there saves none. Set spill_dir="
    return {"ok": kind is None, "folder": folder, "detail": said, "free_bytes": free}


def _instruction_sets() -> list[str]:
    """Of FLAGS, those the kernel reports for the first CPU; empty where there is no /proc/cpuinfo."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, flags = line.partition(":")
            if name.strip() in ("flags", "Features"):
                present = set(flags.split())
                return [flag for flag in FLAGS if flag in present]
    except OSError:
        pass
    return []


def show_doctor(found: dict[str, Any], console: Console) -> None:
    """Print a table, one finding a row."""
    table = Table(show_header=False)

    def row(name: str, ok: bool, detail: str) -> None:
        table.add_row(name, Text("ok", "green") if ok else Text("absent", "yellow"), Text(visible(detail)))

    row("mosaic_edge", True, f"{found['mosaic_edge']} on Python {found['python']}")
    row(
        "machine",
        True,
        f"{found['machine']}; {' '.join(found['instruction_sets']) or 'instruction sets unknown'}",
    )
    row("core", found["core"]["ok"], found["core"]["detail"])
    for backend in found["core"]["backends"]:
        row(f"backend {backend['name']}", backend["available"], backend["detail"])
    for gpu in found["gpus"]:
        row(gpu["name"], gpu["ok"], gpu["detail"])
    row("policies", bool(found["core"]["policies"]), ", ".join(found["core"]["policies"]))
    providers = found["providers"]
    row("ONNX Runtime", providers["ok"], f"{providers['detail']} {', '.join(providers['names'])}")
    for package in found["packages"]:
        row(package["name"], package["ok"], package["detail"])
    row("quantised weights", *_formats(found["quantised"]))
    row("model", found["model"]["ok"], found["model"]["detail"])
    if weights := found.get("weights"):
        row("weights", weights["ok"], weights["detail"])
    row("profiles", found["profiles"]["ok"], found["profiles"]["detail"])
    memory = found["memory"]
    row(
        "memory",
        True,
        f"{format_bytes(memory['available_bytes'])} free of {format_bytes(memory['total_bytes'])}",
    )
    spill = found["spill"]
    row(
        "spill",
        spill["ok"],
        f"{spill['folder']}: {spill['detail']}, {format_bytes(spill['free_bytes'])} free",
    )
    console.print(table)


def _formats(found: list[dict[str, Any]]) -> tuple[bool, str]:
    """Those that can be read, and the names of the others."""
    read = [
        f"{one['name']} ({one['detail']})" if one["detail"] else one["name"] for one in found if one["ok"]
    ]
    others = ", ".join(one["name"] for one in found if not one["ok"])
    return bool(read), f"{', '.join(read) or 'none'}; --json says what these need: {others or 'none'}"
