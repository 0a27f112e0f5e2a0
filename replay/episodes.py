"""Whole episodes: items that are all rows of one environment's episode, which are learnt from once.

With episodes of 500 rows, sending a row was measured to take an eighth of the CPU time that sending it by itself takes;
with episodes of 20 rows and 480 rows of padding, a fortieth.
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
    """Returns the structure of one episode, without a batch axis: a Sample of steps [max_steps + 1, ...] and memory."""
    del num_envs
    return structure_of_rows(agent, spec, agent.table.items.max_steps + 1)  # type: ignore[union-attr]


def columns(table: TableSpec, structure: Structure) -> Structure:
    """Returns how an item lies in Reverb's columns: packed by dtype, rows and memory apart."""
    del table
    return SequencePacking(structure).structure


def sequences_per_item(structure: Structure) -> int:
    del structure
    return 1


def refuse(agent: Agent, run: Any, spec: EnvironmentSpec) -> None:
    """Raises ValueError where actors take turns, or are part of a compiled program.

    There a turn has a fixed length, and episodes have none.
    """
    if run.placement == "device":
        raise ValueError(
            f"--placement=device is for agents that learn from blocks of rows or from a replay: {run.agent} learns "
            "from whole episodes; give --placement=threads"
        )
    if run.placement == "serial" and run.carrier == "reverb":
        raise ValueError(
            f"--placement=serial --carrier=reverb gives each actor turns of equal length, and {run.agent} learns from "
            "whole episodes, whose length differs; give --carrier=local or --placement=threads"
        )


class EpisodeWriter:
    """Writes whole episodes to a queue: each is one item of rows and padding, sent when the episode is over."""

    def __init__(self, queue: Queue, structure: Structure):
        self._queue, self._packing = queue, SequencePacking(structure)
        self._length = self._packing.length
        self._rows: list[np.ndarray] = []  # for each column, [B, length, size]
        self._memories: list[np.ndarray] = []  # for each column of memory, [B, size], before the episode's first row

    def _start(self, num_envs: int) -> None:
        shape = (num_envs, self._length)
        self._rows = [np.tile(padding, (*shape, 1)) for padding in self._packing.padding]
        self._memories = [np.zeros((num_envs, *x.shape), x.dtype) for x in self._packing.memory.structure.leaves]
        self._size = np.zeros(num_envs, int)  # rows that each environment's episode has so far

    def append(self, row: Row) -> bool:
        """Adds a row, as every Writer does; returns True if it completed episodes, which are then in the queue.

        Raises:
          ValueError: an episode is longer than the table's `max_steps`.
        """
        step = row.step
        if not self._rows:
            self._start(len(step.first))
        over = np.flatnonzero(step.first & (self._size > 0))
        for environment in over.tolist():  # that the episode had ended is known only from the row after it
            self._send(environment)
        if np.any(~step.first & (self._size == 0)):
            raise ValueError(
                f"an episode has more than {self._length - 1} actions: give a larger --config.max_episode_steps"
            )
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
    """Yields batches of `batch_size` whole episodes for ever, each taken once, the oldest first."""
    del table
    packing = SequencePacking(structure)
    while True:
        items = queue.take(batch_size)
        yield batch_of(packing.sample([np.stack(column) for column in zip(*items, strict=True)]), None)
