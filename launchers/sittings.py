"""Sittings: a sitting is the time that one process plays a role of a run. Only one process at a time plays a role.

LOGDIR/sittings has a file for each role. It is locked during a sitting, and says how many sittings there were: seeds
depend on that number too, so that an actor that was restarted, or a run that was resumed, goes on to other episodes.
"""

import contextlib
import fcntl
import os
import pathlib
import socket
import time
from collections.abc import Iterator

from launchers.settings import UsageError

_WIDTH = 120  # bytes of a file; it is overwritten as a whole, so that a kill leaves the old text or the new


@contextlib.contextmanager
def hold(logdir: pathlib.Path, role: str) -> Iterator[int]:
    """Has this process play a role until the block or the process ends; gives the number of sittings before this one.

    Raises:
      UsageError: another process plays the role.
    """
    path = logdir / "sittings" / role
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file_number = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UsageError(f"cannot write to --logdir {logdir}: {error.strerror}") from error
    # The lock is the process's, by fcntl: one by flock would live on in the children of a process that was killed.
    with open(file_number, "r+", errors="replace") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            who = file.read().partition(" ")[2].strip() or "another process"
            raise UsageError(
                f"{role} of {logdir} is running already ({who}): choose another --logdir, or end that one first"
            ) from error
        sitting = _count(file.read())
        words = f"{sitting + 1} process {os.getpid()} on {socket.gethostname()}"[: _WIDTH - 1]
        os.pwrite(file.fileno(), f"{words:<{_WIDTH - 1}}\n".encode(), 0)
        yield sitting


def _count(text: str) -> int:
    """Returns the number of sittings that a file's text tells of."""
    try:
        return int(text.split()[0]) if text else 0
    except (ValueError, IndexError):  # damaged: the time is a number that no sitting before can have had
        return int(time.time())
