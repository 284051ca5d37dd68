"""The layers of python/mosaic_edge, for check_layers.py: who may import whom.

    models, world, sources  <-  engine  <-  evaluation, serve  <-  cli

An import inside a function and one for the type checker count like any other. models/onnx and models/hf know
nothing of each other, and what lies beside them knows neither, but for models/__init__.py, which chooses.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "mosaic_edge"
ENGINE = "engine"  # all modules at the top, and the packages of MEMBERS
MEMBERS = {"profiles"}
BELOW = {
    "models": set[str](),
    "world": set[str](),
    "sources": set[str](),
    ENGINE: {"models", "world", "sources"},
    "evaluation": {ENGINE, "models", "world", "sources"},
    "serve": {ENGINE, "models", "sources"},
    "cli": {"serve", "evaluation", ENGINE, "models", "world", "sources"},
}
APART = ("onnx", "hf")  # of models
ROOT_NAMES = {"_core", "DEFAULT_POLICY", "__version__"}  # of mosaic_edge itself, for everyone
FOREIGN_C = {"ctypes", "cffi", "pybind11"}  # other ways from Python into C++


def check_imports(path: Path, text: str, root: Path) -> Iterator[str]:
    """Faults of one file of the package, as "path:line: message"."""
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        yield f"{path}:{error.lineno}: does not parse: {error.msg}"
        return
    for line, name in sorted(_imports(path, tree, root)):
        at = f"{path}:{line}: imports {name}"
        first, *inside = name.split(".")
        if first in FOREIGN_C or first == "_core":
            yield f"{at}; C++ is reached only through mosaic_edge._core"
        elif first == PACKAGE:
            for fault in _faults(path.parts[2:], inside, root):
                yield f"{at}; {fault}"
    if _layer(path.parts[2:]) is None:
        yield f"{path}:1: '{path.parts[2]}' is not a layer; there are {', '.join(BELOW)}"


def _imports(path: Path, tree: ast.Module, root: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of every import; of `from a import b` a.b where that is a module, or no module can be
    meant."""
    package = list(path.parts[1:-1])
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                yield node.lineno, whole if base == PACKAGE or _is_module(whole, root) else base
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and node.args:
            name = node.args[0]
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                yield node.lineno, name.value


def _is_module(name: str, root: Path) -> bool:
    path = root / "python" / name.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").is_file()


def _layer(parts: tuple[str, ...]) -> str | None:
    """Of a file or module below the package; None for a folder that is none."""
    if len(parts) < 2 or parts[0] in MEMBERS:
        return ENGINE if parts[0].removesuffix(".py") not in BELOW else parts[0].removesuffix(".py")
    return parts[0] if parts[0] in BELOW else None


def _faults(parts: tuple[str, ...], target: list[str], root: Path) -> Iterator[str]:
    """What is wrong with a module of `parts` importing mosaic_edge.<target>."""
    if not target or target[0] in ROOT_NAMES or parts == ("__init__.py",):
        return
    if not _is_module(f"{PACKAGE}.{target[0]}", root):
        yield "inside the package a name is imported from the module that defines it"
        return
    mine, theirs = _layer(parts), _layer(tuple(target))
    if mine is not None and theirs is not None and theirs != mine and theirs not in BELOW[mine]:
        yield f"{mine} may import only {', '.join(sorted(BELOW[mine] | {mine}))}"
    if mine == theirs == "models" and len(target) > 1 and target[1] in APART and parts[1] != target[1]:
        if parts[1] in APART:
            yield f"models/{parts[1]} and models/{target[1]} know nothing of each other"
        elif parts[1] != "__init__.py":
            yield "only models/__init__.py chooses between models/onnx and models/hf"
