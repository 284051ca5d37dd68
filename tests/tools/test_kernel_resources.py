"""tools/kernel_resources.py reads what ptxas says of each kernel, and only of kernels."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

PTXAS = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN6mosaic113attend_kernelILi16ELi128ELb1EEEvv' for 'sm_87'
ptxas info    : Function properties for _ZN6mosaic113attend_kernelILi16ELi128ELb1EEEvv
    16 bytes stack frame, 24 bytes spill stores, 20 bytes spill loads
ptxas info    : Used 153 registers, used 1 barriers, 592 bytes cmem[0]
ptxas info    : Compile time = 59.698 ms
ptxas info    : Compiling entry function '_ZN6mosaic115spectral_kernelENS_12SpectralArgsE' for 'sm_90'
ptxas info    : Function properties for _ZN6mosaic115spectral_kernelENS_12SpectralArgsE
    40 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Function properties for __internal_trig_reduction_slowpathd
    0 bytes stack frame, 8 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 56 registers, used 1 barriers, 40 bytes cumulative stack size
"""


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "tools" / "kernel_resources.py"
    spec = importlib.util.spec_from_file_location("kernel_resources", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["kernel_resources"] = module
    spec.loader.exec_module(module)
    return module


def test_registers_and_spills_are_those_of_the_kernel_they_stand_below(tool: ModuleType) -> None:
    first, second = tool.parse("attend", PTXAS)
    assert (first.kernel, first.arch, first.registers) == ("attend_kernel<16,128,1>", 87, 153)
    assert (first.stack, first.spill_stores, first.spill_loads, first.spills) == (16, 24, 20, True)
    assert (second.kernel, second.arch, second.registers) == ("spectral_kernel", 90, 56)
    assert (second.stack, second.spills) == (40, False)  # a function it calls has spills of its own


def test_a_watched_kernel_that_spills_fails_and_another_does_not(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tool, "find_nvcc", lambda: "nvcc")
    monkeypatch.setattr(sys, "argv", ["kernel_resources", "--arch", "87"])
    for spilling, code in (("attend", 1), ("assign", 1), ("score", 0)):
        monkeypatch.setattr(
            tool,
            "compile_one",
            lambda nvcc, source, arch, spilling=spilling: [
                tool.Kernel(source.stem, "k_kernel", arch, 9, 0, 4 * (source.stem == spilling), 0)
            ],
        )
        assert tool.main() == code
        assert ("spills on sm_87" in capsys.readouterr().err) == bool(code)
