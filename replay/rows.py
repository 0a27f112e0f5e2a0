"""The types at both ends of every way of travelling: actors write rows, and learners get batches."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np

from agents.agent import Memory, Params, Step, TimeStep, Version

VARIABLES = "variables"  # the name of the variable container, where there is one alone
PULL_ITEMS = 32  # transitions that an actor writes between two pulls of parameters
# The same for stacked frames and for sequences, whose larger networks take longer to pull: 400, as in Ape-X and R2D2.
PULL_STEPS = 400


class ReplayUnavailable(ConnectionError):
    """A replay server did not answer."""


class Row(NamedTuple):
    """One time step of an actor's batch of B environments, with the memory and the parameters that it acted with."""

    step: Step  # [B, ...]
    memory: Memory  # [B, ...], the agent's memory before it chose the row's action
    version: Version  # the version of the parameters that chose the action
    params: Params = None  # these parameters
    answer: TimeStep | None = None  # the environments' next time step; only blocks need it


class Writer(Protocol):
    """The object that an actor writes its rows to."""

    def append(self, row: Row) -> bool:
        """Adds a row; returns True when the actor should pull parameters.

        Waits while the table has no room or the learner's samples are behind. This is what slows actors down to the
        pace of their learner.
        """
        ...

    def close(self) -> None:
        """Ends the stream of rows; items that are not complete are dropped."""


class Source(Protocol):
    """The object that an actor pulls its parameters from."""

    def pull(self) -> tuple[Version, Any]:
        """Returns the newest version and its parameters; waits until there are any."""
        ...


class Variables(Source, Protocol):
    """A variable container: it takes parameters from a learner to actors and evaluators."""

    def push(self, version: Version, params: Any) -> None:
        """Publishes `params`, which replace those published before."""

    def filled(self) -> bool:
        """Returns whether anything was ever pushed."""
        ...

    def pushes(self) -> int:
        """Returns a number that changes when there may be something new to pull; this costs less than a pull."""
        ...

    def wait(self, timeout: float = 300.0) -> None:
        """Returns once something was pushed; raises ReplayUnavailable if nothing was within `timeout` seconds."""


class Batch(NamedTuple):
    """The input of one update, and what the learner's host needs to know about it."""

    sample: Any  # a Sample, or a stacked Gradient where gradients travel; None where the learner's devices draw it
    # int64 [blocks or gradients], the learner's step count when it published the parameters that made each; else None.
    learner_steps: np.ndarray | None
    env_steps: int  # transitions: rows whose action was not thrown away; from a replay: written since the last batch
    # For each replay server, uint64 [B / servers], its items' keys; items of the servers alternate in the batch.
    keys: tuple[np.ndarray, ...] = ()
    losses: np.ndarray | None = None  # float32 [gradients], the loss of each where gradients travel


class Queue(Protocol):
    """A queue whose items are each taken once, the oldest first. An item is a list of arrays."""

    turn: Callable[[], None] | None  # called by `take` instead of waiting, where roles take turns in one thread

    def put(self, item: list[np.ndarray]) -> None:
        """Adds an item; returns once the queue holds the item, or when its writer is stopped."""

    def take(self, count: int) -> list[list[np.ndarray]]:
        """Takes the next `count` items out of the queue; waits for them."""
        ...

    def close(self) -> None:
        """Closes what `put` opened."""


Priority = Callable[[Params, Any], Any]  # (params, items) -> [b]: an Agent's `priority`, compiled for an actor


def never() -> bool:
    """Returns False: the `stopped` function for a writer that nobody stops."""
    return False
