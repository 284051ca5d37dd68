"""A thread that is in ONNX Runtime when Python ends, and comes back while it does, aborts nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import os, sys, threading, time
import numpy as np
import onnxruntime as ort
from onnx import helper, numpy_helper
from mosaic_edge import Engine, ModelError
from mosaic_edge.models.onnx import trial

class Waits:
    "Until the thread is through with its operator: Python is going away by then."
    def __init__(self, thread):
        self.stat = f"/proc/self/task/{thread}/stat"
    def __del__(self, open=open, sleep=time.sleep, write=os.write, gone=OSError):
        still = 0
        while still < 50:
            try:
                with open(self.stat) as file:
                    runs = file.read().rpartition(") ")[2][0] == "R"
            except gone:
                break
            still = 0 if runs else still + 1
            sleep(0.01)
        write(1, b"the operator is through")

def graph():
    nodes = [
        helper.make_node("ConstantOfShape", ["wide"], ["zeros"]),
        helper.make_node("MatMul", ["zeros", "zeros"], ["product"]),
        helper.make_node("ReduceSum", ["product"], ["nothing"], keepdims=0),
        helper.make_node("Add", ["x", "nothing"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, 1, [1]) for name in "xy"]
    wide = numpy_helper.from_array(np.array([2500, 2500], np.int64), "wide")
    made = helper.make_graph(nodes, "deaf", ends[:1], ends[1:], [wide])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    return model.SerializeToString()

Engine.load("mosaic-tiny", threads=1)
trial.LOAD_SECONDS, trial.END_SECONDS = 0.01, 0.0
options = ort.SessionOptions()
options.intra_op_num_threads = 1
try:
    trial.loaded(graph(), options, ["CPUExecutionProvider"], "deaf.onnx")
except ModelError as error:
    print(error, flush=True)
left = [thread for thread in threading.enumerate() if thread.name == trial.THREAD]
sys.modules["waits"] = Waits(left[0].native_id)
"""

LOADS = """
import sys, threading, time
from mosaic_edge import Engine

def load():
    while True:
        Engine.load("mosaic-tiny", threads=1)

class Waits:
    def __del__(self, sleep=time.sleep):
        sleep(0.5)

Engine.load("mosaic-tiny", threads=1)
threading.Thread(target=load, daemon=True).start()
time.sleep(0.2)
sys.modules["waits"] = Waits()
"""


@pytest.mark.parametrize("code", [0, 3])
def test_an_operator_that_goes_on_comes_back_while_python_ends(code: int) -> None:
    words = [sys.executable, "-c", f"{PROGRAM}\nsys.exit({code})"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == code, done.stderr
    assert done.stdout.splitlines() == [
        "deaf.onnx: onnxruntime did not load it in 0.01 s: a graph that loops, or with too much to work out?",
        "the operator is through",
    ]
    assert "terminate" not in done.stderr


def test_a_daemon_thread_that_loads_a_model_aborts_nothing_when_python_ends() -> None:
    for _ in range(4):
        done = subprocess.run(
            [sys.executable, "-c", LOADS], capture_output=True, text=True, check=False, timeout=120
        )
        assert (done.returncode, done.stderr) == (0, "")
