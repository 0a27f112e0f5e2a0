"""Ending on request: Ctrl-C, SIGTERM and a closed terminal ask for an orderly end; a second Ctrl-C or SIGTERM is obeyed
at once."""

import signal
import threading


class Stop(threading.Event):
    """Set when the process is to end; `exit_code` tells by which signal, as shells do: 128 and its number."""

    exit_code = 0


def stop_on_signals() -> Stop:
    """A Stop that SIGINT, SIGTERM and SIGHUP set. Call it in the main thread, which must return to Python to hear them.

    Where SIGHUP is ignored already, as under nohup, it stays so.
    """
    stop = Stop()

    def handle(number, frame):
        stop.exit_code = 128 + number
        stop.set()
        for which in (signal.SIGINT, signal.SIGTERM):
            signal.signal(which, signal.SIG_DFL)
        # A terminal that is closed says so more than once: by the kernel and by its shell.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    for which in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if which != signal.SIGHUP or signal.getsignal(which) != signal.SIG_IGN:
            signal.signal(which, handle)
    return stop
