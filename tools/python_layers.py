"""The layers of python/mosaic_edge, for check_layers.py: who may import whom.

    shown, threads  <-  models, world, sources  <-  engine  <-  evaluation, serve  <-  cli

An import inside a function, one for the type checker and one by name (import_module) count like any other;
what the package's own __init__ hands out on demand is not looked at. models/onnx and models/hf know nothing
of each other, and what lies beside them knows neither, but for models/__init__.py, which chooses.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "mosaic_edge"
ENGINE = "engine"  # all modules at the top, and the packages of MEMBERS
MEMBERS = {"profiles"}
PROGRAM = "__main__.py"  # at the top; of cli
BASE = {"shown", "threads"}  # how an error shows what it was given; threads, started or refused in words
BELOW = {
    **{name: set[str]() for name in BASE},
    "models": BASE,
    "world": BASE,
    "sources": BASE,
    ENGINE: {*BASE, "models", "world", "sources"},
    "evaluation": {*BASE, ENGINE, "models", "world", "sources"},
    "serve": {*BASE, ENGINE, "models", "sources"},
    "cli": {*BASE, "serve", "evaluation", ENGINE, "models", "world", "sources"},
}
APART = ("onnx", "hf")  # of models
ROOT_NAMES = {"_core", "DEFAULT_POLICY", "__version__"}  # of mosaic_edge itself, for everyone
FOREIGN_C = {"ctypes", "cffi", "pybind11"}  # other ways from Python into C++
SYSTEM_CALLS = {("models", "hf", "mapped.py")}  # ctypes for calls of the system that Python does not have
NOT_SHIPPED = {"tools", "tests"}
IMPORTERS = {"__import__", "import_module"}


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
        if first == "ctypes" and path.parts[2:] in SYSTEM_CALLS:
            continue
        if first in FOREIGN_C or first == "_core":
            yield f"{at}; C++ is reached only through mosaic_edge._core"
        elif first in NOT_SHIPPED:
            yield f"{at}; {first}/ is not part of the package"
        elif first == PACKAGE:
            for fault in _faults(path.parts[2:], inside, root):
                yield f"{at}; {fault}"
    if _layer(path.parts[2:]) is None:
        yield f"{path}:1: '{path.parts[2]}' is not a layer; there are {', '.join(BELOW)}"


def _imports(path: Path, tree: ast.Module, root: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of every import; of `from a import b` a.b where that is a module, or no module can be
    meant."""
    package = list(path.parts[1:-1])
    importers = IMPORTERS | {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.name in IMPORTERS
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                yield node.lineno, whole if base == PACKAGE or _is_module(whole, root) else base
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func).split(".")[-1] in importers
            and (name := _named(node, package))
        ):
            yield node.lineno, name


def _named(call: ast.Call, package: list[str]) -> str:
    """The module import_module or __import__ is given; of an f-string what stands before the first brace."""
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    name = call.args[0] if call.args else given.get("name")
    if isinstance(name, ast.JoinedStr):
        start = name.values[0] if name.values else None
        text = _text(start).rpartition(".")[0]
        return "" if text == PACKAGE else text
    text = _text(name)
    if not text.startswith("."):
        return text
    anchor = _text(call.args[1] if len(call.args) > 1 else given.get("package"))
    parts = anchor.split(".") if anchor else package
    inside = text.lstrip(".")
    return ".".join([*parts[: len(parts) - (len(text) - len(inside)) + 1], inside])


def _text(node: ast.expr | None) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def _is_module(name: str, root: Path) -> bool:
    path = root / "python" / name.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").is_file()


def _layer(parts: tuple[str, ...]) -> str | None:
    """Of a file or module below the package; None for a folder that is none."""
    if parts == (PROGRAM,):
        return "cli"
    if len(parts) < 2 or parts[0] in MEMBERS:
        return ENGINE if parts[0].removesuffix(".py") not in BELOW else parts[0].removesuffix(".py")
    return parts[0] if parts[0] in BELOW else None


def _faults(parts: tuple[str, ...], target: list[str], root: Path) -> Iterator[str]:
    """What is wrong with a module of `parts` importing mosaic_edge.<target>."""
    if not target:
        yield "inside the package a module is imported by its own name"
        return
    if target[0] in ROOT_NAMES:
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
