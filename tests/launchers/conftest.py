"""Fixtures for tests that start placements."""

import signal

import pytest

from launchers import shutdown


@pytest.fixture
def signals(monkeypatch):
    """Restores the signal handlers after a test, because a placement sets its own."""
    monkeypatch.setattr(shutdown, "_listening", None)
    before = {number: signal.getsignal(number) for number in shutdown.ENDING}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
