"""Ways of travelling, and the one place that tells them apart.

A way is a module: `structure` of an item, `refuse` what it cannot carry, and
  of a queue: `columns`, `writer` and `batches`;
  of a replay: `packing`, `writer` for Reverb, `item_bytes`, `items_at_once`, and `ring`, its windows in a ring of rows.
To add one, write the module and a line in WAYS.
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
    """How the table's items travel."""
    return WAYS[type(table.items)]


def item_structure(agent: Agent, spec: EnvironmentSpec, num_envs: int) -> Structure:
    """Of the items in the agent's table, where an actor has `num_envs` environments."""
    structure: Structure = way(agent.table).structure(agent, spec, num_envs)
    return structure


def columns(table: TableSpec, structure: Structure) -> Structure:
    """How an item of `structure` lies in a table's columns."""
    of = way(table)
    result: Structure = (
        of.columns(table, structure) if table.kind == "queue" else of.packing(table, structure).structure
    )
    return result


class QueueChannel:
    """Items that are learnt from once, through a queue of either carrier."""

    source = None  # samples come through the host

    def __init__(
        self,
        table: TableSpec,
        structure: Structure,
        batch_size: int,
        open_queue: Callable[[int, Callable[[], bool]], Queue],
    ):
        """`open_queue`: (task, stopped) -> that actor's end of the queue; of task 0 the learner's."""
        self._table, self._structure, self._batch_size, self._open = table, structure, batch_size, open_queue
        self.turn: Callable[[], None] | None = None  # what the learner calls where it would wait, in one thread
        self.stopped: Callable[[], bool] = never  # not asked: whoever fetches may be left waiting

    def writer(self, task: int, priority: Priority | None, stopped: Callable[[], bool]) -> Any:
        """Of actor `task`."""
        del priority  # what is learnt from once has none
        return way(self._table).writer(self._open(task, stopped), self._table, self._structure)

    def batches(self) -> Iterator[Batch]:
        """Batches for ever, each item once, the oldest first. Waits where the queue is empty."""
        queue = self._open(0, never)
        queue.turn = self.turn
        batches: Iterator[Batch] = way(self._table).batches(queue, self._table, self._structure, self._batch_size)
        return batches

    def feedback(self, keys: tuple[np.ndarray, ...], priorities: np.ndarray) -> None:
        """There are no priorities."""

    def count(self) -> int:
        """Nothing that would be missed."""
        return 0

    def save(self) -> None:
        """On-policy experience is stale after a restart: nothing is kept."""
