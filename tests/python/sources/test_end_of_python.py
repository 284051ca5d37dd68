"""A thread that waits for a camera or a server when Python ends crashes nothing, and is not waited for."""

from __future__ import annotations

import socket
import subprocess
import sys
import time

import pytest

PROGRAM = """
import atexit, ctypes, math, os, signal, sys, threading, time
from mosaic_edge.sources import LiveSource, SourceError, open_source

ends = ctypes.CDLL(None)
ends.on_exit(ctypes.cast(ends.sleep, ctypes.c_void_p), None)  # for as many seconds as the exit code
url, how = sys.argv[1:]

def late():
    try:
        list(LiveSource(url, give_up_s=0.1))
    except (SourceError, RuntimeError) as error:  # from Python 3.12 on no thread starts by then
        print(error)

def interrupt():
    ending.wait()
    time.sleep(0.02)  # while the thread is waited for
    os.kill(os.getpid(), signal.SIGINT)

ending = threading.Event()
threading.Thread(target=interrupt, daemon=True).start()
if how == "late":
    atexit.register(late)  # what comes first is called last
if how == "file":
    reads = lambda: open_source(url)
else:
    source = LiveSource(url, connect_s=math.inf, read_s=math.inf) if how == "inf" else LiveSource(url)
    reads = lambda: list(source)
threading.Thread(target=reads, daemon=True).start()
sys.stdin.readline()
if how == "closed":
    source.close()
if how == "interrupted":
    atexit.register(ending.set)
sys.exit(1)
"""


@pytest.mark.parametrize(
    ("scheme", "how"),
    [
        ("tcp", "open"),
        ("tcp", "closed"),
        ("tcp", "late"),
        ("tcp", "inf"),
        ("tcp", "interrupted"),
        ("rtsp", "closed"),
        ("http", "open"),
        ("http", "file"),
    ],
)
def test_python_ends_while_a_thread_waits_for_a_server_that_says_nothing(scheme: str, how: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"{scheme}://127.0.0.1:{silent.getsockname()[1]}/cam"
        words = [sys.executable, "-c", PROGRAM, url, how]
        pipe = subprocess.PIPE
        with subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
            connection, _ = silent.accept()
            time.sleep(0.35)  # FFmpeg looks at the time every 0.1 s: in the middle
            began = time.monotonic()
            said, errors = process.communicate("now\n", 60)
            connection.close()
    assert (process.returncode, errors) == (1, "")
    assert bool(said) == (how == "late")
    assert time.monotonic() - began < 9, "but for the second of the program's own, a tenth of one"
