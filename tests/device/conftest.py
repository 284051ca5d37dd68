"""Where these tests run: $MOSAIC_DEVICE, cuda by default. `gpu_check.sh --cpu` rehearses them on cpu."""

from __future__ import annotations

import os

import pytest

from mosaic_edge import _core


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
