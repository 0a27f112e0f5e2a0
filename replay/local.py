"""A worker's own experience, which never leaves its process: the newest block, or a replay.

Workers compute gradients from it, and send these to the learner (runtime/worker.py).
"""

from collections.abc import Iterator
from typing import Any, Protocol

import jax

from agents.agent import Agent, Sample, TableSpec
from replay.blocks import Block, BlockBuilder
from replay.ring_channel import RingChannel
from replay.rows import Row, Writer, never
from replay.structures import Structure


class Experience(Writer, Protocol):
    """A Writer that a worker writes its rows to, and that gives it samples of them to compute gradients from."""

    # True: a sample's gradient is taken at the parameters that made the sample; False: at the newest.
    on_policy: bool

    def samples(self) -> Iterator[Sample]:
        """Yields the samples that are due after `append` returned True; there may be none yet."""


class LocalBlocks:
    """Experience that is the newest [T+1, B] block, which is learnt from once."""

    on_policy = True

    def __init__(self, structure: Structure, next_action: bool = False):
        """`structure` and `next_action` are those of a BlockBuilder."""
        self._builder = BlockBuilder(structure, next_action)
        self._block: Block | None = None

    def append(self, row: Row) -> bool:
        """Adds a row, as every Writer does; returns True if the row completed a block."""
        self._block = self._builder.append(row)
        return self._block is not None

    def samples(self) -> Iterator[Sample]:
        block, self._block = self._block, None
        if block is not None:
            yield Sample(block.steps, block.memory)

    def close(self) -> None:
        """Does nothing."""


class LocalReplay:
    """A worker's own replay on its device, which holds the worker's share of the whole run's replay."""

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
          mesh: a runtime.devices.Mesh of the worker's device alone.
          structure: that of one item, as `item_structure` returns it.
          max_rows: the rows that can ever be written to it.
          workers: how many workers share the table's sizes.
        """
        table = agent.table
        # The share below has no `samples_per_insert`, for the worker writes and samples by turns and would wait for
        # itself. `samples` keeps to the ratio instead.
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
        """Adds a row, as RingWriter does."""
        return self._writer.append(row)

    def written(self) -> int:
        """Returns how many items were completed so far."""
        return self._channel.drain()

    def samples(self) -> Iterator[Sample]:
        """Yields the batches that `samples_per_insert` asks for the items since the last call, or one batch if it is 0.

        Yields none until there are `min_size` items; no samples are due for those.
        """
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
