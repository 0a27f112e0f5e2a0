"""Who plays a role of a run: one process at a time, and never the same episodes again.

LOGDIR/sittings has a file for each role. It is locked while a process plays the role, and says how many did before:
seeds come from that number too, so that an actor that was restarted, or a run that was resumed, goes on to other
episodes.
"""

import contextlib
import fcntl
import os
import pathlib
import socket
import time
from collections.abc import Iterator

from launchers.settings import UsageError

_WIDTH = 120  # of what a file says; always overwritten as a whole, so that a kill leaves the old or the new


@contextlib.contextmanager
def hold(logdir: pathlib.Path, role: str) -> Iterator[int]:
    """Plays a role until the block ends, or this process does; gives how many sittings the role had before.

    Raises:
      UsageError: another process plays it.
    """
    path = logdir / "sittings" / role
    path.parent.mkdir(exist_ok=True)
    # A lock of the process, by fcntl: one by flock would live on in the children of a process that was killed.
    with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+", errors="replace") as file:
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
    """How many sittings a file tells of."""
    try:
        return int(text.split()[0]) if text else 0
    except (ValueError, IndexError):  # damaged: a number that none before can have had
        return int(time.time())
