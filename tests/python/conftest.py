"""Fixtures that several folders share."""

from __future__ import annotations

import gc
import signal
from collections.abc import Iterator

import pytest

from exported_models import Exporter
from videos import make_video as make_video


@pytest.fixture(scope="session", autouse=True)
def _hears_interrupts() -> Iterator[None]:
    """A shell's background job ignores SIGINT, one under nohup SIGHUP, and so would what a test starts."""
    heard = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in heard.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def exporter(tmp_path_factory: pytest.TempPathFactory) -> Exporter:
    """Models as others' exporters write them; see exported_models.py."""
    return Exporter(tmp_path_factory.mktemp("exported"))


def pytest_collection_finish() -> None:
    """Garbage is looked for among what comes from here on: torch and transformers alone are half a million
    objects."""
    gc.collect()
    gc.freeze()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Longer runs of tests that play in real time."""
    parser.addoption("--camera-seconds", type=int, default=10, help="of test_slow_model.py; 600: ten minutes")


@pytest.fixture
def camera_seconds(request: pytest.FixtureRequest) -> int:
    """How long the camera of test_slow_model.py sends."""
    seconds: int = request.config.getoption("--camera-seconds", default=10)
    return seconds
