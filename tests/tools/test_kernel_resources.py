"""tools/kernel_resources.py reads what ptxas says of each kernel, and counts loops in SASS."""

from __future__ import annotations

import importlib.util
import os
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
    monkeypatch.setattr(sys, "argv", ["kernel_resources", "--arch", "110"])
    for spilling, code in (("attend", 1), ("attend_decode", 1), ("assign", 1), ("score", 0)):
        monkeypatch.setattr(
            tool,
            "compile_one",
            lambda nvcc, source, arch, tree, spilling=spilling: [
                tool.Kernel(source.stem, "k_kernel", arch, 9, 0, 4 * (source.stem == spilling), 0)
            ],
        )
        assert tool.main() == code
        assert ("spills on sm_110" in capsys.readouterr().err) == bool(code)


# A loop of two ways, the longer of which is rare, in front of a loop without products and an end.
SASS = """
.text._ZN6mosaic13tensor_kernelEv:
_ZN6mosaic13tensor_kernelEv:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   PRMT R2, R3, R4, R5 ;
        /*0020*/                   HMMA.16816.F32 R8, R4, R6, R8 ;
        /*0030*/               @P0 BRA `(.L_x_2) ;
        /*0040*/                   FMUL R1, R1, R2 ;
        /*0050*/                   FMUL R1, R1, R3 ;
        /*0060*/                   FMUL R1, R1, R4 ;
.L_x_2:
        /*0070*/              @!P1 LOP3.LUT R2, R2, R3, R4, 0xe8, !PT ;
        /*0080*/               @P2 BRA `(.L_x_1) ;
.L_x_3:
        /*0090*/                   IADD3 R1, R1, 0x1, RZ ;
        /*00a0*/              @!P0 BRA `(.L_x_3) ;
        /*00b0*/                   EXIT ;
"""


def test_a_turn_of_a_loop_is_the_shortest_way_round_that_has_its_products(tool: ModuleType) -> None:
    (function,) = tool.functions(SASS).values()
    (turn,) = function.turns()
    assert (turn.instructions, turn.products, turn.meets) == (5, 1, False)
    assert turn.opcodes == {"PRMT": 1, "HMMA": 1, "BRA": 2, "LOP3": 1}
    assert sum(map(len, function.blocks)) == 12


def test_a_loop_that_grows_past_its_limit_fails_and_so_does_one_that_is_not_found(tool: ModuleType) -> None:
    few = tool.Kernel("attend_decode_128", "tensor_kernel", 90, 9, 0, 0, 0, code=16, packed=dict(tool.LIMITS))
    assert tool.faults_of([few]) == []
    more = tool.replace(few, packed=few.packed | {"k5v3": tool.LIMITS["k5v3"] + 1})
    (fault,) = tool.faults_of([more])
    assert f"takes {tool.LIMITS['k5v3'] + 1} instructions for 16 keys of k5v3" in fault
    (fault,) = tool.faults_of([tool.replace(few, packed={})])
    assert "not found" in fault
    assert tool.faults_of([tool.replace(few, packed={}, code=0)]) == []  # there is no nvdisasm


def test_every_packed_codec_has_a_limit(tool: ModuleType) -> None:
    assert list(tool.LIMITS) == tool.packed_codecs()
    assert "k5v3" in tool.LIMITS


def test_the_page_has_every_packed_codec_on_every_processor_within_the_limits(tool: ModuleType) -> None:
    text = (Path(__file__).resolve().parents[2] / "docs/results/gpu-kernels.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "|" in line
    ]
    head = next(row for row in rows if row[0] == "codec" and row[-1].startswith("at most"))
    assert head[1:-1] == [f"D = {dim}, sm_{arch}" for dim in (128, 64) for arch in (87, 90, 110)]
    counted = {
        row[0]: [int(cell) for cell in row[1:]]
        for row in rows
        if len(row) == len(head) and row[0] in tool.LIMITS
    }
    assert {codec: counts[-1] for codec, counts in counted.items()} == tool.LIMITS
    assert all(0 < count <= counts[-1] for counts in counted.values() for count in counts)
    spilled = {(row[0].split()[0], int(row[1])): int(row[3]) for row in rows if row[0].startswith(tool.SHOWN)}
    assert {at: count for at, count in spilled.items() if count > 0} == {}
    assert {file for file, _ in spilled} >= {"assign", "attend_prefill", "attend_decode_64"}


def test_ptx_is_taken_out_of_an_object_as_it_lies_there(tool: ModuleType) -> None:
    first = b".version 9.0\n.target sm_87\n.address_size 64\n.entry f() { ret; }\n"
    second = first.replace(b"87", b"90")
    made = b"\x7fELF\0.shstrtab\0" + b"\x09W\0\0" + first + b"\0\0\x01" + second + b"\0.version\0"
    assert tool.ptx_in(made) == {87: first, 90: second}
    assert tool.ptx_in(b"\x7fELF\0.version\0") == {}


def test_a_build_older_than_a_source_is_not_believed(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "cpp/score.cu"
    made = tmp_path / "build/CMakeFiles/core.dir/cpp/score.cu.o"
    for path, text in ((source, b"kernel"), (made, b"\0.version 9.0\n.target sm_87\n\0")):
        path.parent.mkdir(parents=True)
        path.write_bytes(text)
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    monkeypatch.setattr(tool, "SOURCES", tmp_path / "cpp")
    os.utime(source, (1000, 1000))
    os.utime(made, (1001, 1001))
    assert tool.built_ptx(tmp_path / "build", source, 87) == b".version 9.0\n.target sm_87\n"
    assert tool.built_ptx(tmp_path / "build", source, 90) is None
    assert tool.built_ptx(tmp_path, source, 87) is None
    (tmp_path / "cpp/other.h").write_text("newer")
    assert tool.built_ptx(tmp_path / "build", source, 87) is None
