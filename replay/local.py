"""A worker's own experience, which never leaves its process: the newest block, or a replay."""

from collections.abc import Callable, Iterator
from typing import Protocol

from agents.agent import Memory, Params, Sample, Step, TableSpec, Window
from replay.items import Block, Structure, packing
from replay.sampler import Replay
from replay.server import build_table, serve
from replay.writer import BlockBuilder, Writer, make_writer


class Experience(Writer, Protocol):
    """What a worker writes to and learns from."""

    # Whether a sample's gradient belongs to the parameters that made it, or to the newest.
    on_policy: bool

    def samples(self) -> Iterator[Sample]:
        """What is due to be learnt from after `append` was true; perhaps nothing yet."""


class LocalBlocks:
    """The newest [T+1, B] block, learnt from once."""

    on_policy = True

    def __init__(self, table: TableSpec, structure: Structure):
        self._builder = BlockBuilder(table, structure)
        self._block: Block | None = None

    def append(
        self,
        step: Step,
        memory: Memory,
        learner_steps: int,
        params: Params = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> bool:
        """As of any Writer; true if the row completed a block."""
        del params, stopped
        self._block = self._builder.append(step, memory, learner_steps)
        return self._block is not None

    def samples(self) -> Iterator[Sample]:
        block, self._block = self._block, None
        if block is not None:
            yield Sample(block.steps, block.memory)

    def close(self) -> None:
        """There is nothing to end."""


class LocalReplay:
    """A replay on a Reverb server of the worker's own, a share of the whole run's."""

    on_policy = False

    def __init__(self, table: TableSpec, structure: Structure, batch_size: int, workers: int):
        """`structure`: of one item, as `item_structure` gives it; `workers`: that share the table's sizes."""
        # The worker keeps to samples_per_insert by itself: it writes and samples by turns, and would wait for itself.
        self._per_item = table.samples_per_insert / batch_size
        table = TableSpec(
            table.name, table.window, table.kind, -(-table.max_size // workers), -(-table.min_size // workers)
        )
        self._table = table
        assert not isinstance(table.window, Window)
        self._server = serve([build_table(table, packing(table.window, structure).structure)], None, None)
        self._client = self._server.localhost_client()
        self._writer = make_writer(self._client, table, structure, None)
        self._batches = iter(Replay([self._client], table, structure, batch_size))
        self._counted, self._owed = 0, 0.0

    def append(
        self,
        step: Step,
        memory: Memory,
        learner_steps: int,
        params: Params = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> bool:
        """As of the table's Writer."""
        return self._writer.append(step, memory, learner_steps, params, stopped)

    def written(self) -> int:
        """Items so far."""
        return self._client.server_info()[self._table.name].rate_limiter_info.insert_stats.completed

    def samples(self) -> Iterator[Sample]:
        """As many as `samples_per_insert` wants for what was written, once the table has its minimum."""
        written = self.written()
        if written < self._table.min_size:
            return
        if self._counted:
            self._owed += self._per_item * (written - self._counted) if self._per_item else 1.0
        self._counted = written
        while self._owed >= 1.0:
            self._owed -= 1.0
            yield next(self._batches).sample

    def close(self) -> None:
        self._writer.close()
        self._server.stop()


def make_experience(table: TableSpec, structure: Structure, batch_size: int, workers: int) -> Experience:
    """What an agent's own table asks for; `structure` of one of its items."""
    if isinstance(table.window, Window):
        return LocalBlocks(table, structure)
    return LocalReplay(table, structure, batch_size, workers)
