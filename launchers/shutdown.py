"""Ending on request: Ctrl-C and SIGTERM ask for an orderly end; a second one is obeyed at once."""

import signal
import threading


def stop_on_signals() -> threading.Event:
    """An event that SIGINT and SIGTERM set. Call it in the main thread, which must return to Python to hear them."""
    stop = threading.Event()

    def handle(number, frame):
        stop.set()
        for which in (signal.SIGINT, signal.SIGTERM):
            signal.signal(which, signal.SIG_DFL)

    for which in (signal.SIGINT, signal.SIGTERM):
        signal.signal(which, handle)
    return stop
