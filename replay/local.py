"""A worker's own experience, which never leaves its process: the newest block, or a replay."""

from collections.abc import Iterator
from typing import Any, Protocol

import jax

from agents.agent import Agent, Sample, TableSpec
from replay.blocks import Block, BlockBuilder
from replay.ring_channel import RingChannel
from replay.rows import Row, Writer, never
from replay.structures import Structure


class Experience(Writer, Protocol):
    """What a worker writes to and learns from."""

    # Whether a sample's gradient belongs to the parameters that made it, or to the newest.
    on_policy: bool

    def samples(self) -> Iterator[Sample]:
        """What is due to be learnt from after `append` was true; perhaps nothing yet."""


class LocalBlocks:
    """The newest [T+1, B] block, learnt from once."""

    on_policy = True

    def __init__(self, structure: Structure, next_action: bool = False):
        """`structure`, `next_action`: as a BlockBuilder's."""
        self._builder = BlockBuilder(structure, next_action)
        self._block: Block | None = None

    def append(self, row: Row) -> bool:
        """As of any Writer; true if the row completed a block."""
        self._block = self._builder.append(row)
        return self._block is not None

    def samples(self) -> Iterator[Sample]:
        block, self._block = self._block, None
        if block is not None:
            yield Sample(block.steps, block.memory)

    def close(self) -> None:
        """There is nothing to end."""


class LocalReplay:
    """A replay of the worker's own on its device, a share of the whole run's."""

    on_policy = False

    def __init__(
        self,
        mesh: Any,
        agent: Agent,
        structure: Structure,
        batch_size: int,
        num_envs: int,
        max_rows: int,
        workers: int,
        seed: int,
    ):
        """
        Args:
          mesh: of the worker's device alone.
          structure: of one item, as `item_structure` gives it.
          workers: that share the table's sizes.
        """
        table = agent.table
        # The worker keeps to samples_per_insert by itself: it writes and samples by turns, and would wait for itself.
        self._per_item = table.samples_per_insert / batch_size
        self._min_size = -(-table.min_size // workers)
        share = TableSpec(table.name, table.items, table.kind, -(-table.max_size // workers), self._min_size)
        self._channel = channel = RingChannel(mesh, agent, share, structure, batch_size, 1, num_envs, max_rows)
        self._writer = channel.writer(0, None, never)
        self._key = mesh.put(jax.random.key_data(jax.random.key(seed)))
        self._counted, self._owed, self._drawn = 0, 0.0, 0

        def draw(rows, masses, key, number):
            return channel.draw(rows, masses, jax.random.fold_in(jax.random.wrap_key_data(key), number), batch_size)[0]

        self._draw = mesh.compile(draw, (*channel.specs, mesh.REPLICATED, mesh.REPLICATED), mesh.REPLICATED)
        self._mesh = mesh

    def append(self, row: Row) -> bool:
        """As of the table's Writer."""
        return self._writer.append(row)

    def written(self) -> int:
        """Items so far."""
        return self._channel.drain()

    def samples(self) -> Iterator[Sample]:
        """As many as `samples_per_insert` wants for what was written, once the table has its minimum."""
        written = self.written()
        if written < self._min_size:
            return
        if self._counted:
            self._owed += self._per_item * (written - self._counted) if self._per_item else 1.0
        self._counted = written
        while self._owed >= 1.0:
            self._owed -= 1.0
            self._drawn += 1
            number = self._mesh.put(jax.numpy.uint32(self._drawn))
            yield self._mesh.one(self._draw(self._channel.rows, self._channel.masses, self._key, number))

    def close(self) -> None:
        self._writer.close()
