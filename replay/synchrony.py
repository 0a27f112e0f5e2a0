"""Keeps actors in step with their learner: before each item, an actor waits for parameters that are new to it."""

import time
from collections.abc import Callable
from typing import Any

from absl import logging

from agents.agent import Version
from replay.rows import Variables

STALL_SECONDS = 60  # seconds that an actor waits for the next version before it acts with the last one again
POLL_SECONDS = 0.001  # seconds between two checks for the next version


class NextVersion:
    """The Source of an actor that is in step with its learner: each pull returns another version than the last one."""

    def __init__(self, variables: Variables, stopped: Callable[[], bool]):
        """`stopped` is asked while there is no other version; once it is True, the last version is returned again."""
        self._variables, self._stopped = variables, stopped
        self._pushes: int | None = None
        self._last: tuple[Version, Any] | None = None

    def pull(self) -> tuple[Version, Any]:
        """Waits for the next version and returns it.

        After STALL_SECONDS, returns the last version again: the experience that the learner waits for may have been
        lost with a replay server.
        """
        deadline = time.monotonic() + STALL_SECONDS
        while not self._last or not self._stopped():
            pushes = self._variables.pushes()
            if pushes != self._pushes:
                self._pushes, newest = pushes, self._variables.pull()
                if not self._last or newest[0] != self._last[0]:
                    self._last = newest
                    break
            if time.monotonic() > deadline:
                logging.warning("no new parameters came for %d s: acting with the last ones again", STALL_SECONDS)
                break
            time.sleep(POLL_SECONDS)
        assert self._last
        return self._last
