"""What actors hand over and learners get, whatever the way between them: rows in, batches out."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np

from agents.agent import Memory, Params, Step, TimeStep, Version

PULL_ITEMS = 32  # transitions from one pull of parameters to the next
# Likewise for the larger networks of frames and memories, whose pulls take longer: 400 as in Ape-X and R2D2.
PULL_STEPS = 400


class Row(NamedTuple):
    """One time step of an actor's batch of environments, and what it was acted with."""

    step: Step  # [B, ...]
    memory: Memory  # [B, ...] before the row's action
    version: Version  # of the parameters that chose the action
    params: Params = None  # those parameters
    answer: TimeStep | None = None  # what the environments said next


class Writer(Protocol):
    """What an actor writes to."""

    def append(self, row: Row) -> bool:
        """Adds a row; true when it is time to pull parameters.

        It waits while there is no room or the samples are behind: this is what slows actors down to their learner.
        """
        ...

    def close(self) -> None:
        """Ends the stream; items that are not complete are dropped."""


class Source(Protocol):
    """Where an actor has its parameters from."""

    def pull(self) -> tuple[Version, Any]:
        """The newest; waits for the first."""
        ...


class Variables(Source, Protocol):
    """A variable container: parameters on their way from a learner to whoever acts."""

    def push(self, version: Version, params: Any) -> None:
        """Publishes `params`, instead of those before."""

    def filled(self) -> bool:
        """Whether anything was ever pushed."""
        ...

    def pushes(self) -> int:
        """Another number than before if there may be something new to pull; it costs less than a pull."""
        ...

    def wait(self, timeout: float = 300.0) -> None:
        """Returns once something was pushed; raises ReplayUnavailable if nothing is."""


class Batch(NamedTuple):
    """What one update is given, and what the learner's host wants to know of it."""

    sample: Any  # a Sample; Gradients where those travel; None where the learner's devices draw it themselves
    learner_steps: np.ndarray | None  # int64 [blocks], the versions that acted; None of transitions and sequences
    env_steps: int  # transitions: rows whose action was not thrown away; from a replay: written since the last batch
    keys: tuple[np.ndarray, ...] = ()  # uint64 [B / servers] of each replay server, which take turns in the batch
    losses: np.ndarray | None = None  # float32 [gradients], of gradients


class Queue(Protocol):
    """Items that are taken once each, the oldest first. An item is a list of arrays."""

    turn: Callable[[], None] | None  # what `take` calls where it would wait: of roles that take turns in one thread

    def put(self, item: list[np.ndarray]) -> None:
        """Returns once the queue holds the item, or when its writer is stopped."""

    def take(self, count: int) -> list[list[np.ndarray]]:
        """The next items; waits for them."""
        ...

    def close(self) -> None:
        """Ends what `put` began."""


Priority = Callable[[Params, Any], Any]  # (params, items) -> [b], as of an Agent, compiled


def never() -> bool:
    """Of a writer that nobody stops."""
    return False
