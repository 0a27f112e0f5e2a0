"""Ending on request: Ctrl-C, SIGTERM, a closed terminal and a cloud's notice ask for an orderly end; a second Ctrl-C or
SIGTERM is obeyed at once."""

import contextlib
import http.client
import os
import pathlib
import signal
import threading
import urllib.request

from absl import logging

NOTICE_SECONDS = 1.0  # between two looks for a notice; clouds give half a minute or more
NONE_YET = (b"", b"FALSE", b"NONE")  # what a URL answers while there is no notice


class Stop(threading.Event):
    """An event that is set when the process is to end.

    `exit_code` says by which signal, as shells do: 128 plus its number. A cloud's notice counts as a SIGTERM, which
    clouds send next. It is 0 if no signal or notice set the event.
    """

    exit_code = 0


def stop_on_signals(notice: str = "") -> Stop:
    """Returns a Stop that SIGINT, SIGTERM and SIGHUP set, and also the `notice` (see `noticed`) unless it is "".

    Call it in the main thread, which hears signals only when it returns to Python from time to time. Where SIGHUP is
    ignored already, as under nohup, it stays ignored.
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
    if notice:
        watch(notice, stop)
    return stop


def watch(notice: str, stop: Stop) -> None:
    """Starts a thread that sets `stop` once there is a `notice` (see `noticed`)."""
    threading.Thread(target=_watch, args=(notice, stop), name="notice", daemon=True).start()


def _watch(notice: str, stop: Stop) -> None:
    while not stop.wait(NOTICE_SECONDS):
        if noticed(notice):
            logging.warning("%s says that this machine will be taken away: the run saves and ends", notice)
            stop.exit_code = 128 + signal.SIGTERM
            stop.set()


def noticed(notice: str) -> bool:
    """Returns whether the file `notice` is there, or the URL `notice` answers anything but NONE_YET.

    A URL that does not answer, or answers with an error, says nothing.
    """
    if "://" not in notice:
        return os.path.exists(pathlib.Path(notice).expanduser())
    request = urllib.request.Request(notice, headers={"Metadata-Flavor": "Google"})  # Google's servers insist on it
    with contextlib.suppress(OSError, http.client.HTTPException), urllib.request.urlopen(request, timeout=5) as answer:
        return answer.read(1000).strip().upper() not in NONE_YET
    return False
