"""Where these tests run: $MOSAIC_DEVICE, cuda by default. tools/gpu_check --cpu rehearses them."""

from __future__ import annotations

import os

import pytest

from mosaic_edge import _core

# Code of a kernel that is loaded at its first launch would count as memory that a session takes later.
os.environ.setdefault("CUDA_MODULE_LOADING", "EAGER")


@pytest.fixture(scope="session")
def device() -> str:
    """Name of the backend. Without it tests are skipped, or fail where MOSAIC_NEEDS_CUDA is set."""
    name = os.environ.get("MOSAIC_DEVICE", "cuda")
    row = next(row for row in _core.backends() if row["name"] == name)
    if not row["available"]:
        if "MOSAIC_NEEDS_CUDA" in os.environ:
            pytest.fail(f"{name} is needed, but: {row['detail']}")
        pytest.skip(f"{name}: {row['detail']}")
    return name
