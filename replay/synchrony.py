"""Actors in step with their learner: each item of theirs is by its newest parameters."""

import time
from collections.abc import Callable
from typing import Any

from absl import logging

from agents.agent import Version
from replay.rows import Variables

STALL_SECONDS = 60  # of waiting for a next version before an actor acts with the last again
POLL_SECONDS = 0.001  # from one look for it to the next


class NextVersion:
    """Variables of an actor that is in step with its learner: each pull is of another version than the one before."""

    def __init__(self, variables: Variables, stopped: Callable[[], bool]):
        """`stopped`: asked while there is no other version; the last is given then."""
        self._variables, self._stopped = variables, stopped
        self._pushes: int | None = None
        self._last: tuple[Version, Any] | None = None

    def pull(self) -> tuple[Version, Any]:
        """Waits for the next version; after STALL_SECONDS it is the last one again, for what the learner was to learn
        from may have been lost with a replay server."""
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
