"""Fixtures for tests that start placements."""

import signal

import pytest


@pytest.fixture
def signals():
    """Restores the signal handlers after a test, because a placement sets its own."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
