"""Tasks of an evaluation on the CPUs of a Ray cluster, an actor each.

A stream is recorded by one node and read by others that share no disk with it: its folder travels as bytes,
through Ray's object store, and is unpacked where it is needed, once a process.
"""

from __future__ import annotations

import io
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Run = Callable[[dict[Any, Any]], Iterator[tuple[Any, Any]]]


class Node:
    """An actor: a process of the cluster with a model of its own."""

    def __init__(self, start: Callable[[], None]) -> None:
        start()
        self._folder = tempfile.TemporaryDirectory(prefix="mosaic-eval-")
        self._unpacked: dict[str, Path] = {}

    def work(
        self, function: Callable[..., Any], arguments: list[Any], folders: list[int], *packed: bytes
    ) -> Any:
        """Make the call. Arguments that are paths are folders of the driver's: those at `folders` are
        unpacked here, any other is a folder to write into. One that is the result is handed back as bytes."""
        for at, data in zip(folders, packed, strict=True):
            name = str(arguments[at])
            if name not in self._unpacked:
                self._unpacked[name] = unpack(data, self._new_folder())
            arguments[at] = self._unpacked[name]
        for at, argument in enumerate(arguments):
            if isinstance(argument, Path) and at not in folders:
                arguments[at] = self._new_folder()
        result = function(*arguments)
        return pack(result) if isinstance(result, Path) else result

    def _new_folder(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self._folder.name))


@contextmanager
def cluster(address: str, start: Callable[[], None]) -> Iterator[tuple[Run, int]]:
    """What runs tasks (function, *arguments) on the cluster at `address`, and on how many CPUs. start() is
    called by every actor first. ImportError without ray, ValueError for a cluster that is not there."""
    try:
        import ray
    except ModuleNotFoundError:
        raise ImportError("ray is not installed: pip install 'mosaic_edge[ray]'") from None
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ValueError(f"ray={address!r}: {' '.join(str(error).split())[:300]}") from None
    try:
        wide = max(1, int(ray.cluster_resources().get("CPU", 1)))
        actor = ray.remote(num_cpus=1)(Node)
        nodes = [actor.remote(start) for _ in range(wide)]
        with tempfile.TemporaryDirectory(prefix="mosaic-eval-") as folder:
            yield _Tasks(ray, nodes, Path(folder)).run, wide
    finally:
        ray.shutdown()


class _Tasks:
    """Gives the next task to the actor that is free."""

    def __init__(self, ray: Any, nodes: list[Any], folder: Path) -> None:
        self._ray, self._free, self._folder = ray, nodes, folder
        self._stored: dict[Path, Any] = {}

    def run(self, tasks: dict[Any, Any]) -> Iterator[tuple[Any, Any]]:
        """(key, result) of every task as they end; what it raises is raised here."""
        waiting, running = list(tasks.items()), dict[Any, tuple[Any, Any]]()
        while waiting or running:
            while waiting and self._free:
                key, (function, *arguments) = waiting.pop(0)
                node = self._free.pop()
                running[self._begin(node, function, arguments)] = key, node
            done, _ = self._ray.wait(list(running), num_returns=1)
            key, node = running.pop(done[0])
            self._free.append(node)
            result = self._ray.get(done[0])
            yield key, self._received(result) if isinstance(result, bytes) else result

    def _begin(self, node: Any, function: Callable[..., Any], arguments: list[Any]) -> Any:
        folders = [
            at
            for at, argument in enumerate(arguments)
            if isinstance(argument, Path) and argument in self._stored
        ]
        packed = [self._stored[arguments[at]] for at in folders]
        return node.work.remote(function, arguments, folders, *packed)

    def _received(self, packed: bytes) -> Path:
        """A stream that was recorded: in a folder here, which the driver deletes, and in the object store."""
        made = unpack(packed, Path(tempfile.mkdtemp(dir=self._folder)))
        self._stored = {path: held for path, held in self._stored.items() if path.exists()}
        self._stored[made] = self._ray.put(packed)
        return made


def pack(folder: Path) -> bytes:
    """What is in a folder, as bytes."""
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as tar:
        tar.add(folder, arcname=".")
    return held.getvalue()


def unpack(packed: bytes, folder: Path) -> Path:
    """The folder, with what pack() found."""
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        tar.extractall(folder, filter="data")
    return folder
