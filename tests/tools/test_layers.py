"""The layer check finds what it must, in trees that are wrong on purpose, and nothing in this one."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "check_layers.py"

GOOD = {
    "cpp/DESIGN.md": "\n" * 600,
    "cpp/core/ids.h": '#pragma once\n#include <cstdint>\n/* once:\n#include "store/page.h"\n*/\n',
    "cpp/core/clock.h": "int a = 1'000, b = 1'0;\n#include <cstdint>\n",
    "cpp/core/text.cc": 'auto a = R"(\n#include "store/page.h"\n)";\n// \\\n#include "store/page.h"\n',
    "cpp/codec/codecs.def": '// the list\nMOSAIC_CODEC(kFp16, "fp16", Fp16)\n',
    "cpp/codec/fp16.h": '#include "core/ids.h"\n',
    "cpp/backend/ops.h": '#include <memory>\n#include "codec/codec.h"\n',
    "cpp/backend/cuda/cuda_device.cc": "#include <cuda_runtime.h>\n",
    "cpp/memory/arena.h": '#include "backend/device.h"\n',
    "cpp/policy/full.h": '#include "store/page.h"\n#include "policy/policy.h"\n',
    "cpp/bindings/module.cc": '#include <pybind11/pybind11.h>\n#include "runtime/kv_memory.h"\n',
    "python/mosaic_edge/engine.py": "from . import _core\nfrom mosaic_edge._core import KvMemory\n",
    "python/mosaic_edge/models/tiny/__init__.py": "",
    "python/mosaic_edge/__init__.py": "__import__(f'mosaic_edge.{_HOME[0]}')\n",
    "python/mosaic_edge/config.py": "from mosaic_edge import DEFAULT_POLICY, _core\n",
    "python/mosaic_edge/models/__init__.py": "def f():\n    from mosaic_edge.models.onnx import vlm\n",
    "python/mosaic_edge/models/vlm.py": "import numpy as np\n",
    "python/mosaic_edge/models/onnx/vlm.py": "from mosaic_edge.models import vlm\nimport onnx\n",
    "python/mosaic_edge/models/hf/vlm.py": "from ..vlm import Vlm\nfrom . import rope\n",
    "python/mosaic_edge/models/hf/rope.py": "",
    "python/mosaic_edge/world/script.py": "",
    "python/mosaic_edge/sources/files.py": "",
    "python/mosaic_edge/profiles/__init__.py": "from mosaic_edge.config import SessionConfig\n",
    "python/mosaic_edge/evaluation/runner.py": "from mosaic_edge import engine\nimport mosaic_edge.world\n",
    "python/mosaic_edge/serve/live.py": "from mosaic_edge.sources.files import Frame\n",
    "python/mosaic_edge/__main__.py": "from mosaic_edge.cli import run\n",
    "python/mosaic_edge/cli/run.py": "from ..evaluation import runner\nfrom mosaic_edge.serve import live\n",
    "tests/cpp/arena_test.cc": "#include <doctest/doctest.h>\n",
}

# What is wrong: a file, its text, and words of the one line that must name it.
BAD = [
    ("cpp/core/ids.h", '#include "codec/codec.h"\n', "core may include only core"),
    ("cpp/codec/fp16.h", '\n  #  include "backend/ops.h"\n', "cpp/codec/fp16.h:2: includes backend/ops.h"),
    ("cpp/backend/ops.h", '#include "memory/arena.h"\n', "backend may include only core, codec, backend"),
    ("cpp/memory/arena.h", "#include <store/page.h>\n", "memory may include only"),
    ("cpp/store/page.h", '#include "policy/policy.h"\n', "store may include only"),
    ("cpp/runtime/kv_memory.h", '#include "bindings/types.h"\n', "runtime may include only"),
    ("cpp/core/ids.h", '#include "dtype.h"\n', 'as "layer/file.h"'),
    ("cpp/core/ids.h", '#include "../core/dtype.h"\n', 'as "layer/file.h"'),
    ("cpp/backend/cpu/attend.cc", "#include <cuda_fp16.h>\n", "CUDA headers only under cpp/backend/cuda"),
    ("cpp/store/page.h", '#include "cublas_v2.h"\n', "CUDA headers only under cpp/backend/cuda"),
    ("cpp/bindings/module.cc", "#include <torch/extension.h>\n", "no Torch under cpp/"),
    ("cpp/backend/cuda/attend.cu", "#include <ATen/ATen.h>\n", "no Torch under cpp/"),
    ("cpp/extra/thing.h", "", "'extra' is not a layer"),
    ("cpp/store/page_utils.h", "", "'page_utils' is a grab-bag name"),
    ("python/mosaic_edge/world/common/a.py", "", "'common' is a grab-bag name"),
    ("tests/python/helpers.py", "", "'helpers' is a grab-bag name"),
    ("cpp/memory/tier_manager.cc", "", "'tier_manager' is a grab-bag name"),
    ("cpp/backend/cpu/avx2/attend.cc", "", "4 levels below cpp/; at most 3"),
    ("python/mosaic_edge/models/tiny/deep/down/x.py", "", "5 levels below python/mosaic_edge/; at most 4"),
    ("cpp/store/page.h", "\n" * 501, "cpp/store/page.h:501: 501 lines; a file stops at 500"),
    ("tests/python/test_a.py", "\n" * 600, "600 lines"),
    ("tests/cpp/store/page_test.cc", "\n" * 501, "501 lines; a file stops at 500"),
    ("python/mosaic_edge/engine.py", "import ctypes\n", "imports ctypes; C++ is reached only through"),
    ("python/mosaic_edge/engine.py", "def f():\n    from cffi import FFI\n", "engine.py:2: imports cffi"),
    ("python/mosaic_edge/engine.py", "import _core\n", "imports _core"),
    ("python/mosaic_edge/engine.py", "def f(:\n", "does not parse"),
    (
        "python/mosaic_edge/models/rope.py",
        "import mosaic_edge.world.script\n",
        "models may import only models",
    ),
    (
        "python/mosaic_edge/models/rope.py",
        "from mosaic_edge.config import SessionConfig\n",
        "rope.py:1: imports mosaic_edge.config; models may import only models",
    ),
    (
        "python/mosaic_edge/world/script.py",
        "from mosaic_edge.models import vlm\n",
        "world may import only shown, threads, world",
    ),
    (
        "python/mosaic_edge/world/script.py",
        "from ..engine import Engine\n",
        "imports mosaic_edge.engine; world",
    ),
    (
        "python/mosaic_edge/sources/files.py",
        "from .. import config\n",
        "sources may import only shown, sources, threads",
    ),
    (
        "python/mosaic_edge/engine.py",
        "def f():\n    from mosaic_edge.evaluation.runner import evaluate\n",
        "engine.py:2: imports mosaic_edge.evaluation.runner; engine may import only",
    ),
    (
        "python/mosaic_edge/profiles/__init__.py",
        "from importlib import import_module\nimport_module('mosaic_edge.cli.run')\n",
        "imports mosaic_edge.cli.run; engine may import only",
    ),
    ("python/mosaic_edge/evaluation/runner.py", "import mosaic_edge.cli\n", "evaluation may import only"),
    (
        "python/mosaic_edge/evaluation/runner.py",
        "from mosaic_edge.serve.live import live\n",
        "evaluation may import only engine, evaluation, models, shown, sources, threads, world",
    ),
    ("python/mosaic_edge/serve/live.py", "from mosaic_edge.cli import run\n", "serve may import only"),
    ("python/mosaic_edge/engine.py", "from mosaic_edge.cli import run\n", "engine may import only"),
    (
        "python/mosaic_edge/models/onnx/vlm.py",
        "from mosaic_edge.models.hf.rope import rope_of\n",
        "models/onnx and models/hf know nothing of each other",
    ),
    (
        "python/mosaic_edge/models/hf/vlm.py",
        "if TYPE_CHECKING:\n    from ..onnx import vlm\n",
        "models/hf and models/onnx know nothing of each other",
    ),
    (
        "python/mosaic_edge/models/vlm.py",
        "def f():\n    import mosaic_edge.models.hf.vlm\n",
        "only models/__init__.py chooses",
    ),
    (
        "python/mosaic_edge/evaluation/runner.py",
        "from mosaic_edge import Engine\n",
        "a name is imported from the module that defines it",
    ),
    ("python/mosaic_edge/extras/thing.py", "", "'extras' is not a layer"),
    (
        "cpp/codec/codecs.def",
        'MOSAIC_CODEC(kInt2, "int2", Int2)\n',
        "'int2' is listed, but there is no cpp/codec/int2.h",
    ),
    (
        "cpp/codec/codecs.def",
        'MOSAIC_CODEC(kK2V2, "k2v2", Lattice<2, 2>)\n',
        "'lattice' is listed, but there is no cpp/codec/lattice.h",
    ),
    # Spelled so that a careless reader sees nothing.
    (
        "cpp/store/page.h",
        '#include "store/../runtime/plan.h"\n',
        "store/../runtime/plan.h; write project includes",
    ),
    ("cpp/store/page.h", "#include <../runtime/plan.h>\n", "../runtime/plan.h; write project includes"),
    ("cpp/store/page.h", '#include "./runtime/plan.h"\n', "./runtime/plan.h; write project includes"),
    ("cpp/store/page.h", "#include <cpp/runtime/plan.h>\n", "cpp/runtime/plan.h; write project includes"),
    ("cpp/store/page.h", '#include /**/ "runtime/plan.h"\n', "page.h:1: includes runtime/plan.h; store"),
    (
        "cpp/store/page.h",
        '/* a\nb */ #include /* c\n */ "runtime/plan.h"\n',
        "page.h:2: includes runtime/plan.h",
    ),
    ("cpp/store/page.h", '\n#include \\\n "runtime/plan.h"\n', "page.h:2: includes runtime/plan.h; store"),
    ("cpp/store/page.h", '\n#inc\\\nlude "runtime/parts.h"\n', "page.h:2: includes runtime/parts.h; store"),
    (
        "cpp/store/page.h",
        'char c = \'"\';\n#include "runtime/log.h"\n',
        "page.h:2: includes runtime/log.h; store",
    ),
    (
        "cpp/store/page.h",
        '#define P "runtime/plan.h"\n#include P\n',
        "page.h:2: includes P; an include names",
    ),
    *(
        (
            f"cpp/store/page{end}",
            '#include "policy/policy.h"\n',
            f"page{end}:1: includes policy/policy.h; store",
        )
        for end in (".inl", ".inc", ".hh", ".hxx", ".cuh")
    ),
    ("cpp/store/page.inl", "\n" * 501, "cpp/store/page.inl:501: 501 lines; a file stops at 500"),
    ("cpp/thing.cc", '#include "core/ids.h"\n', "'thing.cc' is not a layer"),
    ("cpp/store/page.h", "#include <pybind11/numpy.h>\n", "pybind11/numpy.h; headers of Python only"),
    ("cpp/core/ids.h", "#include <Python.h>\n", "Python.h; headers of Python only under cpp/bindings"),
    *(
        ("cpp/backend/cpu/attend.cc", f"#include <{header}>\n", f"{header}; CUDA headers only")
        for header in ("mma.h", "driver_types.h", "nvrtc.h", "cutlass/cutlass.h", "vector_types.h")
    ),
    *(
        ("cpp/bindings/module.cc", f"#include <{header}>\n", f"{header}; no Torch under cpp/")
        for header in ("caffe2/core/tensor.h", "c10/core/Device.h")
    ),
    ("cpp/store/PageUtils.h", "", "'PageUtils' is a grab-bag name"),
    ("cpp/store/shared_stuff.h", "", "'shared_stuff' is a grab-bag name"),
    ("tools/demo-helpers.py", "", "'demo-helpers' is a grab-bag name"),
    (
        "cpp/codec/int3.h",
        "struct Int3 {\n  static constexpr bool kRecord = false;\n};\n",
        "codecs.def does not list",
    ),
    ("python/second/__init__.py", "", "'second' stands beside mosaic_edge"),
    (
        "python/mosaic_edge/engine.py",
        "import mosaic_edge\n",
        "engine.py:1: imports mosaic_edge; inside the package",
    ),
    (
        "python/mosaic_edge/world/script.py",
        "import mosaic_edge as m\n",
        "script.py:1: imports mosaic_edge; inside",
    ),
    (
        "python/mosaic_edge/engine.py",
        "from tools.demo import show\n",
        "tools.demo; tools/ is not part of the package",
    ),
    (
        "python/mosaic_edge/__init__.py",
        "from mosaic_edge.cli import run\n",
        "__init__.py:1: imports mosaic_edge.cli.run",
    ),
    *(
        (
            "python/mosaic_edge/engine.py",
            f"{line}\n",
            f"imports mosaic_edge.cli{rest}; engine may import only",
        )
        for line, rest in (
            ("__import__('mosaic_edge.cli.a')", ".a"),
            ("import importlib as i; i.import_module(name='mosaic_edge.cli.b')", ".b"),
            ("importlib.import_module('.cli.c', 'mosaic_edge')", ".c"),
            ("importlib.import_module('.cli.d', package=__package__)", ".d"),
            ("from importlib import import_module as load; load('mosaic_edge.cli.e')", ".e"),
            ("importlib.import_module(f'mosaic_edge.cli.{name}')", ""),
        )
    ),
]


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.fixture(scope="module")
def check() -> Iterator[Callable[[Path], list[str]]]:
    """tools/check_layers.py's own, with the folder it imports from on the path, as its process has it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TOOL.parent))
        spec = importlib.util.spec_from_file_location("check_layers", TOOL)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module.check


def run(root: Path) -> tuple[int, list[str]]:
    done = subprocess.run([sys.executable, str(TOOL), str(root)], capture_output=True, text=True)
    return done.returncode, (done.stdout + done.stderr).splitlines()


def test_a_good_tree_passes(tmp_path):
    write(tmp_path, GOOD)
    assert run(tmp_path) == (0, [])


@pytest.mark.parametrize(("name", "text", "words"), BAD, ids=[words for _, _, words in BAD])
def test_one_fault_is_one_line_that_names_it(tmp_path, check, name, text, words):
    write(tmp_path, {**GOOD, name: text})
    lines = check(tmp_path)
    assert len(lines) == 1
    assert lines[0].startswith(name)
    assert words in lines[0]


def test_every_fault_is_printed_and_the_code_is_1(tmp_path, check):
    write(tmp_path, {**GOOD, "cpp/core/a.h": '#include "store/page.h"\n', "cpp/core/utils.h": "\n" * 501})
    code, lines = run(tmp_path)
    assert code == 1
    assert len(lines) == 3
    assert lines == check(tmp_path)


def test_a_folder_that_is_no_checkout_is_refused(tmp_path):
    code, lines = run(tmp_path)
    assert code == 1
    assert "expected the repository's root" in lines[0]


def test_this_tree_keeps_its_layers(check):
    assert check(ROOT) == []
