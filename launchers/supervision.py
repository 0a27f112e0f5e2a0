"""The log of a role that runs in another process, and the count of its deaths."""

import contextlib
import pathlib
import re
import shutil
import time
from collections.abc import Callable

from launchers.settings import UsageError

MAX_RESTARTS = 10  # of one process; after one more death the run ends
HEALTHY_SECONDS = 300.0  # if a process lived longer than this, its earlier deaths no longer count
PAUSE_SECONDS = 0.5, 30.0  # the shortest and the longest pause before a process starts again
NO_ROOM = 1 << 20  # a disk with fewer bytes free counts as full
WARNING = re.compile(r"WARNING:absl:(.*)")  # a line of a role's log that is a warning


class RoleLog:
    """LOGDIR/logs/NAME.log, to which a role's process writes."""

    def __init__(self, logdir: pathlib.Path, name: str, say: Callable[[str], None]):
        """`say` is called with a line for each of the role's warnings."""
        self.name, self.path, self._say = name, logdir / "logs" / f"{name}.log", say
        self.path.parent.mkdir(exist_ok=True)
        self._told = self.path.stat().st_size if self.path.exists() else 0  # bytes of it that were looked through

    def tell_warnings(self) -> None:
        """Says what the role has warned of since the last call: nobody reads its log while all goes well."""
        with contextlib.suppress(OSError), open(self.path, "rb") as file:
            file.seek(self._told)
            for line in file:
                if not line.endswith(b"\n"):  # it is being written
                    break
                self._told += len(line)
                if found := WARNING.match(line.decode(errors="replace").rstrip()):
                    self._say(f"{self.name}: {found[1]}")

    def last_words(self) -> str:
        """Returns the log's last error, else its last line; or the reason why there is neither."""
        try:
            text = self.path.read_text(errors="replace")
        except OSError as error:
            return f"{self.path} cannot be read ({error.strerror}): was the logdir removed?"
        lines = [line for line in text.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("error: ")]
        if not errors and shutil.disk_usage(self.path.parent).free < NO_ROOM:
            return f"no space is left for {self.path}: make room, then give the same command again"
        return (errors or lines or ["no words"])[-1]


class Restarts:
    """The count of a process's deaths, which says how long to wait before it starts again."""

    def __init__(self, log: RoleLog, say: Callable[[str], None]):
        """`say` is called with a line at each death."""
        self._log, self._say = log, say
        self._count, self._started = 0, time.monotonic()

    def begin(self) -> None:
        """Notes that the process starts now."""
        self._started = time.monotonic()

    def after(self, how: str) -> float:
        """Counts a death, and returns the seconds to wait before the process starts again.

        They double from the third death on. `how` says in words how the process died.

        Raises:
          UsageError: it died too often.
        """
        if time.monotonic() - self._started > HEALTHY_SECONDS:
            self._count = 0
        name, path = self._log.name, self._log.path
        if self._count >= MAX_RESTARTS:
            raise UsageError(f"{name} {how}, as {MAX_RESTARTS} times before, so the run ends: its log {path} says why")
        shortest, longest = PAUSE_SECONDS
        pause = min(longest, shortest * 2 ** max(0, self._count - 1))
        self._count += 1
        self._say(f"{name} {how}; restart {self._count} of {MAX_RESTARTS} in {pause:.1f} s ({path})")
        return pause
