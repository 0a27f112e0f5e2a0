"""Waits that end: a test that hangs says what it waited for."""

import threading
import time
from collections.abc import Callable
from typing import Any


def within(seconds: float, what: str, function: Callable[..., Any], *args: Any) -> Any:
    """Returns `function(*args)`, called in a thread of its own. Raises AssertionError, which names `what`, if the call
    takes longer than `seconds`."""
    outcome: list[Any] = []

    def call():
        try:
            outcome.extend((True, function(*args)))
        except BaseException as error:
            outcome.extend((False, error))

    thread = threading.Thread(target=call, name=what, daemon=True)  # a daemon, because it may be stuck in C++ for ever
    thread.start()
    thread.join(seconds)
    assert len(outcome) == 2, f"waited {seconds} s in vain for {what}"
    returned, result = outcome
    if not returned:
        raise result
    return result


def until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Returns once `condition()` holds. Raises AssertionError, which names `what`, if that takes over `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain until {what}"
        time.sleep(0.01)
