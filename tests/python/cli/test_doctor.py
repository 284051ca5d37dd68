"""What `doctor` says of GPUs: NVML is asked one question at a time, and may know none of the answers."""

from __future__ import annotations

import sys
from io import StringIO
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from mosaic_edge.cli.doctor import examine, show_doctor

ANSWERS = {
    "nvmlInit": None,
    "nvmlSystemGetDriverVersion": b"580.65",
    "nvmlDeviceGetCount": 2,
    "nvmlDeviceGetHandleByIndex": object(),
    "nvmlDeviceGetName": "Orin",
    "nvmlDeviceGetMemoryInfo": SimpleNamespace(free=3 << 30, total=8 << 30),
    "nvmlDeviceGetPowerUsage": 14600,
    "nvmlShutdown": None,
}


def gpus(monkeypatch: pytest.MonkeyPatch, silent: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """What examine() says with an NVML that refuses the questions in `silent`."""
    nvml = ModuleType("pynvml")

    def refuse(*_: object) -> None:
        raise RuntimeError("Not Supported")

    for name, answer in ANSWERS.items():
        setattr(nvml, name, refuse if name in silent else lambda *_, answer=answer: answer)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    return examine()["gpus"]


def test_each_gpu_is_named_with_its_driver_memory_and_power(monkeypatch):
    found = gpus(monkeypatch)
    assert [gpu["name"] for gpu in found] == ["GPU 0", "GPU 1"]
    assert found[0]["detail"] == "Orin, driver 580.65, 3.0 GiB free of 8.0 GiB, 15 W"
    assert all(gpu["ok"] for gpu in found)


@pytest.mark.parametrize("question", sorted(set(ANSWERS) - {"nvmlInit"}))
def test_a_question_nvml_does_not_answer_costs_that_answer_alone(monkeypatch, question):
    found = gpus(monkeypatch, (question,))
    if question == "nvmlDeviceGetCount":
        assert found == [{"ok": False, "name": "NVML", "detail": "driver 580.65, no GPU"}]
        return
    detail = found[1]["detail"]
    assert ("Orin" in detail) == (question != "nvmlDeviceGetName")
    assert ("3.0 GiB free" in detail) == (question != "nvmlDeviceGetMemoryInfo")
    assert ("15 W" in detail) == (question != "nvmlDeviceGetPowerUsage")
    assert ("driver 580.65" in detail) == (question != "nvmlSystemGetDriverVersion")


def test_no_driver_and_no_package_are_one_line_each(monkeypatch):
    assert gpus(monkeypatch, ("nvmlInit",)) == [{"ok": False, "name": "NVML", "detail": "Not Supported"}]
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "pip install 'mosaic_edge[gpu]'" in examine()["gpus"][0]["detail"]


def test_the_table_names_the_extra_to_install_brackets_and_all(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    console = Console(width=400, record=True, file=StringIO())
    show_doctor(examine(), console)
    assert "pip install 'mosaic_edge[gpu]'" in console.export_text()
