"""Work on what a model directory brought that may not end or not fit - its chat template, its tokenizer - in
a child process with limits of time and memory, so that they and Ctrl-C end it. trials.py has what is called.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from mosaic_edge import _core
from mosaic_edge.models.vlm import ModelError

CPU_SECONDS = 20
WALL_SECONDS = 180.0
"""Longer, because a busy machine is no fault of the model's."""
MEMORY_BYTES = 4 << 30
OF_THE_MACHINE = (_core.DeviceError, MemoryError)
"""What is no fault of what a directory brought, however it is tried."""
_NO_MEMORY = ("bad_alloc", "allocate memory", "out of memory")
"""In what ONNX Runtime, torch and CUDA say, each by errors whose classes say nothing."""
_OUT_OF_TIME = (9, 24)  # SIGKILL and SIGXCPU: what a limit of CPU time ends in
_CHILD = """
import json, sys
path, seconds, memory, call, given = json.load(sys.stdin)
sys.path[:] = path
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
except (ImportError, ValueError, OSError):
    pass
try:
    from mosaic_edge.models import trials
    made = {"made": getattr(trials, call)(*given)}
except MemoryError:
    made = {"error": "no memory left"}
except Exception as error:
    made = {"error": " ".join(str(error).split())[:300] or type(error).__name__}
json.dump(made, sys.stdout)
"""


def limited(where: str, call: str, *given: object) -> Any:
    """What `call` of trials.py gives for `given` (plain data) in a process of its own. ModelError, named
    `where`, for an error there, or when it takes more than CPU_SECONDS or MEMORY_BYTES; DeviceError where the
    system has no process for it."""
    request = json.dumps([sys.path, CPU_SECONDS, MEMORY_BYTES, call, given])
    limits = f"{CPU_SECONDS} s and {MEMORY_BYTES >> 20} MiB are allowed"
    try:
        ran = subprocess.run(
            [sys.executable, "-I", "-c", _CHILD],
            input=request.encode(),
            capture_output=True,
            timeout=WALL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ModelError(f"{where}: takes too long ({limits})") from None
    except OSError as error:
        raise _core.DeviceError(
            f"{where}: trying it needs a process of its own, and there is none ({error.strerror or error}). "
            "Raise the limit of processes (ulimit -u, TasksMax=, --pids-limit), of open files or of memory "
            "that this one has."
        ) from None
    if -ran.returncode in _OUT_OF_TIME:
        raise ModelError(f"{where}: takes too long ({limits})")
    try:
        said = json.loads(ran.stdout)
    except ValueError:
        raise ModelError(
            f"{where}: ended the process that tried it, code {ran.returncode} ({limits})"
        ) from None
    if "error" in said:
        raise ModelError(f"{where}: {said['error']} ({limits})")
    return said["made"]


def says_no_memory(error: BaseException) -> bool:
    """Whether a library says by it that there was no memory left."""
    return isinstance(error, MemoryError) or any(said in str(error) for said in _NO_MEMORY)


def check_memory(error: BaseException, where: str) -> None:
    """MemoryError, named `where`, for an error that says so: of the machine, or of what asks for too much."""
    if says_no_memory(error):
        cause = " ".join(str(error).split())[:300] or type(error).__name__
        raise MemoryError(
            f"{where}: no memory is left for it ({cause}). Raise the limit of memory that this process has "
            "(ulimit -v, MemoryMax=), or take a smaller model."
        ) from None
