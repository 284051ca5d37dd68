"""Weights on their way from mapped files to where and what they are to be, none of them held twice.

transformers leaves a weight in the type of its file as pages of the mapped file, which cost nothing until
they are read. What is converted here is done tensor by tensor, and the pages of what it was are let go of at
once: as long as one tensor of a file lives the whole file stays mapped, and its pages count as resident.
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import re
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from mosaic_edge.models.hf.sizes import Stored, on_meta

_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ (\d+)")


_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def type_of_files(built: Any, stored: Stored, wanted: torch.dtype) -> torch.dtype | None:
    """The type that all weights have in their files, where they can be read in it and converted to `wanted`
    afterwards, with the same result; None where transformers has to convert while it reads, or nothing has
    to be. built: the model's configuration."""
    numbers = {name for name in stored.types if name.startswith(("F", "BF"))}
    here = _TYPES.get(numbers.pop()) if len(numbers) == 1 else None
    if here is None or here == wanted:
        return None
    half = here if wanted == torch.float32 else wanted
    try:
        model = on_meta(built, dtype=half)
    except Exception:  # from_pretrained() fails by it too, and says what is wrong
        return None
    for module in model.modules():
        kept = ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict")
        tables = [module._buffers[name] for name in module._non_persistent_buffers_set]
        if any(getattr(module, name, None) for name in kept) or any(
            table is not None and table.dtype == half for table in tables
        ):
            return None
    return here


class MappedWeights:
    """The tensors of a model that was loaded, and which of them are pages of files that nobody wrote to."""

    def __init__(self, model: Any, device: str, dtype: torch.dtype | None) -> None:
        """device, dtype: what the weights are to be; None: they are of that type already."""
        self._device, self._dtype = device, dtype
        here = [x for x in (*model.parameters(), *model.buffers()) if x.device.type == "cpu"]
        mappings = list(_clean_mappings())
        self._spans: dict[int, int] = {}  # of each mapped tensor: where it begins, how long it is
        for start, length in map(_span, filter(_is_plain, here)):
            if any(first <= start and start + length <= last for first, last in mappings):
                self._spans[start] = length
        self._computed = {  # tables that are in no file keep the type that their module made them in
            id(module._buffers[name])
            for module in model.modules()
            for name in module._non_persistent_buffers_set
        }

    def settle(self, module: Any) -> None:
        """All tensors of a module, where and what they are to be."""

        def settled(x: torch.Tensor) -> torch.Tensor:
            converted = x.is_floating_point() and id(x) not in self._computed
            made = x.to(self._device, self._dtype if converted else None)
            if made is not x:
                self.let_go(x)
            return made

        module._apply(settled)  # as Module.to() does
        if self._dtype is not None:
            for part in module.modules():
                if hasattr(part, "config"):
                    part.config.dtype = self._dtype

    def let_go(self, x: torch.Tensor) -> None:
        """Drop the pages of a tensor that is not read again. Those it shares with others come back from their
        file when they are."""
        if not _is_plain(x):
            return
        start, length = _span(x)
        if self._spans.pop(start, 0) >= length > 0:
            first, last = start & -mmap.PAGESIZE, start + length
            _libc().madvise(
                ctypes.c_void_p(first), ctypes.c_size_t(last - first), ctypes.c_int(mmap.MADV_DONTNEED)
            )

    @staticmethod
    def tidy() -> None:
        """Free what young cycles of objects hold, and give back what was freed between tensors that stay:
        glibc keeps it otherwise, and takes new memory for the next one all the same."""
        gc.collect(1)
        with suppress(AttributeError):  # another C library
            _libc().malloc_trim(0)


def _is_plain(x: torch.Tensor) -> bool:
    """Numbers in a row, of torch's own kind."""
    return type(x.data) is torch.Tensor and x.layout == torch.strided and x.is_contiguous()


def _span(x: torch.Tensor) -> tuple[int, int]:
    return x.data_ptr(), x.numel() * x.element_size()


def _clean_mappings() -> Iterator[tuple[int, int]]:
    """From where to where files are mapped into this process without a page that was written to. Elsewhere
    than on Linux none is known."""
    try:
        with Path("/proc/self/smaps").open() as smaps:
            here: tuple[int, int] | None = None
            for line in smaps:
                if found := _MAPPING.match(line):
                    first, last, inode = found.groups()
                    here = (int(first, 16), int(last, 16)) if inode != "0" else None
                elif here and line.startswith("Anonymous:") and line.split()[1] == "0":
                    yield here
    except OSError:
        return


@lru_cache(1)
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)
