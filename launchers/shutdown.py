"""Ending on request: the signals in ENDING and a cloud's notice ask for an orderly end; a second Ctrl-C or SIGTERM is
obeyed at once. Commands that have nothing to save end by an Interruption."""

import contextlib
import http.client
import os
import signal
import threading
import urllib.request
from collections.abc import Iterator

from absl import logging

from environments.environment import Interruption

NOTICE_SECONDS = 1.0  # between two looks for a notice; clouds give half a minute or more
NONE_YET = (b"", b"FALSE", b"NONE")  # what a URL answers while there is no notice

# What asks a process to end: a terminal (Ctrl-C, Ctrl-\, and when it is closed), `kill`, batch systems (SLURM and SGE
# send the signal that a user chooses), and a limit on CPU time.
ENDING = (
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGHUP,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGXCPU,
)
AT_ONCE = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)  # whose second one is obeyed at once


class Stop(threading.Event):
    """An event that is set when the process is to end.

    `exit_code` says by which signal, as shells do: 128 plus its number. A cloud's notice counts as a SIGTERM, which
    clouds send next. It is 0 if no signal or notice set the event.
    """

    exit_code = 0


_listening: Stop | None = None  # what `listen` made


def listen() -> None:
    """Begins to hear signals at the start of a command that calls `stop_on_signals` only later. So one that comes while
    it starts asks for an orderly end too."""
    global _listening
    _listening = stop_on_signals()


def asked() -> bool:
    """Returns whether a signal has asked for the end since `listen` was called."""
    return _listening is not None and _listening.is_set()


def stop_on_signals(notice: str = "") -> Stop:
    """Returns a Stop that the signals in ENDING set, and also the `notice` (see `noticed`) unless it is "". It is set
    already if a signal has come since `listen` was called.

    The main thread hears signals, when it returns to Python from time to time; called in another thread, this sets no
    handlers. Where SIGHUP is ignored already, as under nohup, it stays ignored.
    """
    stop = _listening or Stop()

    def handle(number, frame):
        stop.exit_code = 128 + number
        stop.set()
        # Others may come more than once: a terminal that is closed says so by the kernel and by its shell.
        for which in ENDING:
            signal.signal(which, signal.SIG_DFL if which in AT_ONCE else signal.SIG_IGN)

    if not stop.is_set() and _hears():
        for which in ENDING:
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


def _hears() -> bool:
    """Returns whether this thread is the one that hears signals."""
    return threading.current_thread() is threading.main_thread()


@contextlib.contextmanager
def handlers_kept() -> Iterator[None]:
    """Puts back how signals were heard before the block, for a run is made in it and this process goes on."""
    before = {number: signal.getsignal(number) for number in ENDING if _hears()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def interrupt_on_signals() -> None:
    """Has Ctrl-C, SIGTERM and SIGHUP end a command by an Interruption, so that what it began is tidied up. A second of
    them is obeyed at once.

    Signals that are ignored, or that the command hears already, are left alone. Call it in the main thread.
    """
    plain = (signal.SIG_DFL, signal.default_int_handler)
    alone = [which for which in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(which) in plain]

    def interrupt(number, frame):
        for which in alone:
            if signal.getsignal(which) == interrupt:
                signal.signal(which, signal.SIG_DFL)
        raise Interruption(number)

    for which in alone:
        signal.signal(which, interrupt)


def noticed(notice: str) -> bool:
    """Returns whether the file `notice` is there, or the URL `notice` answers anything but NONE_YET.

    A URL that does not answer, or answers with an error, says nothing.
    """
    if "://" not in notice:
        return os.path.exists(os.path.expanduser(notice))  # pathlib's raises an error if there is no such user
    request = urllib.request.Request(notice, headers={"Metadata-Flavor": "Google"})  # Google's servers insist on it
    with contextlib.suppress(OSError, http.client.HTTPException), urllib.request.urlopen(request, timeout=5) as answer:
        return answer.read(1000).strip().upper() not in NONE_YET
    return False
