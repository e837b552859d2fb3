"""What every test shares: a plain environment, an option that forbids skipping, hypothesis without its wall clock."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# A shell lets what it starts in the background ignore Ctrl-C, and so would every program the tests start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A deadline fails on a busy machine, not on a slow program; derandomized runs fail for everybody or for nobody.
settings.register_profile(
    "quantcli",
    deadline=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
# HYPOTHESIS_PROFILE=thorough looks for what the usual run does not meet.
settings.register_profile("thorough", settings.get_profile("quantcli"), derandomize=False, max_examples=3000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quantcli"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-skips", action="store_true", help="a test that is skipped fails")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let a test fail that would be skipped, where that is asked for."""
    report = yield
    if report.skipped and item.config.getoption("--no-skips"):
        report.outcome = "failed"
        report.longrepr = f"skipped: {report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr}"
    return report


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in the caller's environment changes what is printed."""
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "PYTHONWARNINGS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a run fail that begins to quantize."""

    def refuse(*_: Any) -> Any:
        raise AssertionError("a weight was read")

    monkeypatch.setattr("quantcli.passes.quantize.write", refuse)
