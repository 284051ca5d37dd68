"""Fixtures that several folders share."""

from __future__ import annotations

import pytest

from exported_models import Exporter
from videos import make_video as make_video


@pytest.fixture(scope="session")
def exporter(tmp_path_factory: pytest.TempPathFactory) -> Exporter:
    """Models as others' exporters write them; see exported_models.py."""
    return Exporter(tmp_path_factory.mktemp("exported"))
