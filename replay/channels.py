"""The ways of travelling, and the one place that tells them apart.

A way is a module that says what an item is, and how items get from an actor's rows to a learner's batches. Its
functions, which BUILD.md describes, are
  for every way: `structure` (an item's shapes), `sequences_per_item`, and `refuse` (raises for unsuitable runs);
  for a queue: `columns`, `writer` and `batches`;
  for a replay in Reverb: `packing`, `writer`, `counter`, `item_bytes` and `items_at_once`;
  for a replay on the learner's devices: `ring` (how items are cut from a ring of rows).
To add a way, write the module and add a line to WAYS.
"""

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np

from agents.agent import (
    Agent,
    Blocks,
    EnvironmentSpec,
    Gradients,
    Sequences,
    Stacks,
    TableSpec,
    Transitions,
    WholeEpisodes,
)
from replay import blocks, episodes, gradients, sequences, stacks, transitions
from replay.rows import Batch, Priority, Queue, never
from replay.structures import Structure

WAYS: dict[type, ModuleType] = {
    Blocks: blocks,
    WholeEpisodes: episodes,
    Transitions: transitions,
    Stacks: stacks,
    Sequences: sequences,
    Gradients: gradients,
}


def way(table: TableSpec) -> Any:
    """Returns the module of the way by which the table's items travel."""
    return WAYS[type(table.items)]


def item_structure(agent: Agent, spec: EnvironmentSpec, num_envs: int) -> Structure:
    """Returns the structure of an item of the agent's table, for actors of `num_envs` environments each."""
    structure: Structure = way(agent.table).structure(agent, spec, num_envs)
    return structure


def columns(table: TableSpec, structure: Structure) -> Structure:
    """Returns the structure of the columns in which a Reverb table holds an item of `structure`."""
    of = way(table)
    result: Structure = (
        of.columns(table, structure) if table.kind == "queue" else of.packing(table, structure).structure
    )
    return result


class QueueChannel:
    """The channel of items that are learnt from once: it takes them through a queue of either carrier."""

    source = None  # samples come through the host, with the batches

    def __init__(
        self,
        table: TableSpec,
        structure: Structure,
        batch_size: int,
        open_queue: Callable[[int, Callable[[], bool]], Queue],
    ):
        """`open_queue`: (task, stopped) -> the queue for actor `task`; the learner opens it as task 0."""
        self._table, self._structure, self._batch_size, self._open = table, structure, batch_size, open_queue
        self.turn: Callable[[], None] | None = None  # called instead of waiting, where roles take turns in one thread
        self.stopped: Callable[[], bool] = never  # never called here: the thread that fetches may be left waiting

    def writer(self, task: int, priority: Priority | None, stopped: Callable[[], bool]) -> Any:
        """Returns the Writer of actor `task`."""
        del priority  # items that are learnt from once have no priorities
        return way(self._table).writer(self._open(task, stopped), self._table, self._structure)

    def batches(self) -> Iterator[Batch]:
        """Yields batches for ever, of each item once, the oldest first; waits while the queue is empty."""
        queue = self._open(0, never)
        queue.turn = self.turn
        batches: Iterator[Batch] = way(self._table).batches(queue, self._table, self._structure, self._batch_size)
        return batches

    def feedback(self, keys: tuple[np.ndarray, ...], priorities: np.ndarray) -> None:
        """Does nothing: a queue has no priorities."""

    def count(self) -> int:
        """Returns 0: a queue has no items that would be missed after a restart."""
        return 0

    def save(self) -> None:
        """Does nothing: on-policy experience would be stale after a restart."""
