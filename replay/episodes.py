"""Whole episodes: all rows of one environment's episode as one item, learnt from once.

Measured with episodes of 500 rows, a row takes an eighth of the CPU time that it takes by itself; with episodes of 20
and 480 rows of padding, a fortieth.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from agents.agent import Agent, EnvironmentSpec, TableSpec
from replay.blocks import batch_of
from replay.rows import Batch, Queue, Row
from replay.sequences import SequencePacking, structure_of_rows
from replay.structures import Structure


def structure(agent: Agent, spec: EnvironmentSpec, num_envs: int) -> Structure:
    """Of one episode, without a batch axis: a Sample of steps [max_steps + 1, ...] and memory."""
    del num_envs
    return structure_of_rows(agent, spec, agent.table.items.max_steps + 1)  # type: ignore[union-attr]


def columns(table: TableSpec, structure: Structure) -> Structure:
    """How an item lies in a table."""
    del table
    return SequencePacking(structure).structure


def sequences_per_item(structure: Structure) -> int:
    del structure
    return 1


def refuse(agent: Agent, run: Any, spec: EnvironmentSpec) -> None:
    """Raises ValueError where actors take turns, or are part of a compiled program: an episode takes as long as it
    takes."""
    if run.placement == "device":
        raise ValueError(
            f"--placement=device is for agents that learn from blocks of rows or from a replay: {run.agent} learns "
            "from whole episodes; give --placement=threads"
        )
    if run.placement == "serial" and run.carrier == "reverb":
        raise ValueError(
            f"--placement=serial --carrier=reverb has each actor write a block in its turn, and {run.agent} learns "
            "from whole episodes, which take as long as they take; give --carrier=local or --placement=threads"
        )


class EpisodeWriter:
    """Writes whole episodes: one item of each, its rows and padding, sent in one piece when it is over."""

    def __init__(self, queue: Queue, structure: Structure):
        self._queue, self._packing = queue, SequencePacking(structure)
        self._length = self._packing.length
        self._rows: list[np.ndarray] = []  # [B, length, size] of each column
        self._memories: list[np.ndarray] = []  # [B, size] of each column, before the episode's first row

    def _start(self, num_envs: int) -> None:
        shape = (num_envs, self._length)
        self._rows = [np.tile(padding, (*shape, 1)) for padding in self._packing.padding]
        self._memories = [np.zeros((num_envs, *x.shape), x.dtype) for x in self._packing.memory.structure.leaves]
        self._size = np.zeros(num_envs, int)  # rows of each environment's episode

    def append(self, row: Row) -> bool:
        """As of any Writer; true if episodes were completed, which are then in the queue.

        Raises:
          ValueError: an episode is longer than the table's sequences.
        """
        step = row.step
        if not self._rows:
            self._start(len(step.first))
        over = np.flatnonzero(step.first & (self._size > 0))
        for environment in over.tolist():  # a row earlier it was not known
            self._send(environment)
        if np.any(~step.first & (self._size == 0)):
            raise ValueError(f"an episode has more than {self._length - 1} actions: give a larger max_episode_steps")
        environments = np.arange(len(self._size))
        for column, value in zip(self._rows, self._packing.rows.pack(step), strict=True):
            column[environments, self._size] = value
        for column, value in zip(self._memories, self._packing.memory.pack(row.memory), strict=True):
            column[step.first] = value[step.first]
        self._size += 1
        full = np.flatnonzero(self._size == self._length)
        for environment in full.tolist():
            self._send(environment)
        return bool(len(over) or len(full))

    def _send(self, environment: int) -> None:
        self._queue.put([column[environment].copy() for column in (*self._rows, *self._memories)])
        self._size[environment] = 0
        for column, padding in zip(self._rows, self._packing.padding, strict=True):
            column[environment] = padding

    def close(self) -> None:
        self._queue.close()


def writer(queue: Queue, table: TableSpec, structure: Structure) -> EpisodeWriter:
    del table
    return EpisodeWriter(queue, structure)


def batches(queue: Queue, table: TableSpec, structure: Structure, batch_size: int) -> Iterator[Batch]:
    """Batches of `batch_size` whole episodes for ever, each taken once, the oldest first."""
    del table
    packing = SequencePacking(structure)
    while True:
        items = queue.take(batch_size)
        yield batch_of(packing.sample([np.stack(column) for column in zip(*items, strict=True)]), None)
