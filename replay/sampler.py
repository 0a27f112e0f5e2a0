"""Samples from tables, as host batches for the learner."""

import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import reverb
import tensorflow as tf

from agents.agent import Sample, Sequences, TableSpec, Window
from replay.items import Block, Structure, packing
from replay.server import steps_table_name

COUNT_SECONDS = 0.05  # between two looks at how much was written


class Batch(NamedTuple):
    """What one update is given, and what the learner's host wants to know of it."""

    sample: Any  # a Sample; a Gradient where those travel
    learner_steps: np.ndarray | None  # int64 [blocks], the versions that acted; None of transitions and sequences
    env_steps: int  # transitions: rows whose action was not thrown away; from a replay: written since the last batch
    rows: int  # T * B, those too
    keys: tuple[np.ndarray, ...] = ()  # uint64 [B / servers] of each replay server, which take turns in the batch
    losses: np.ndarray | None = None  # float32 [gradients], of gradients


def sample_blocks(client: reverb.Client, table: TableSpec, structure: Structure, batch_size: int) -> Iterator[Batch]:
    """Batches of `batch_size` sequences for ever, from blocks taken once each, the oldest first.

    Blocks of fewer environments are put side by side; blocks of more are split into several batches. Waits in C++ where
    the queue is empty: iterate it in a thread (runtime.learner.prefetch). Blocks are asked for when they are needed and
    not before: Reverb's own prefetching would only make them older.
    """
    num_envs = structure.unflatten(structure.leaves).steps.first.shape[1]
    while True:
        samples = client.sample(table.name, num_samples=max(1, batch_size // num_envs), emit_timesteps=False)
        blocks: list[Block] = [structure.unflatten(sample.data) for sample in samples]
        learner_steps = np.array([block.learner_steps for block in blocks])
        if len(blocks) > 1:
            sample = Sample(
                jax.tree.map(lambda *x: np.concatenate(x, axis=1), *(block.steps for block in blocks)),
                jax.tree.map(lambda *x: np.concatenate(x, axis=0), *(block.memory for block in blocks)),
            )
            yield _batch(sample, learner_steps)
            continue
        for start in range(0, num_envs, batch_size):
            part = slice(start, start + batch_size)
            sample = Sample(
                jax.tree.map(lambda x, part=part: x[:, part], blocks[0].steps),
                jax.tree.map(lambda x, part=part: x[part], blocks[0].memory),
            )
            yield _batch(sample, learner_steps)


def count_for_each(batches: Iterator[Batch], members: int) -> Iterator[Batch]:
    """The same batches, their steps counted as those of one of `members` who share them evenly."""
    left = 0
    for batch in batches:
        each, left = divmod(left + batch.env_steps, members)
        yield batch._replace(env_steps=each, rows=batch.rows // members)


def _batch(sample: Sample, learner_steps: np.ndarray | None) -> Batch:
    # A row before a first closed its episode: its action was thrown away. Padding is first.
    first = sample.steps.first[1:]
    return Batch(sample, learner_steps, int(np.sum(~first)), first.size)


def sample_episodes(client: reverb.Client, table: TableSpec, structure: Structure, batch_size: int) -> Iterator[Batch]:
    """Batches of `batch_size` whole episodes for ever, each taken once, the oldest first; waits as `sample_blocks`.

    `structure` is of one item, as `item_structure` gives it.
    """
    assert isinstance(table.window, Sequences)
    packed = packing(table.window, structure)
    while True:
        samples = list(client.sample(table.name, num_samples=batch_size, emit_timesteps=False))
        sample = packed.sample([np.stack(c) for c in zip(*(sample.data for sample in samples), strict=True)])
        yield _batch(sample, None)


class Replay:
    """Batches of transitions or sequences from the replay tables of one or more servers, an equal share of each.

    An item of server s is drawn with probability P_s(i) / servers; `Sample.likelihood` is that times the size of all
    tables together, so that importance weights are right for the mixture.
    """

    def __init__(self, clients: Sequence[reverb.Client], table: TableSpec, structure: Structure, batch_size: int):
        """Counts what is written to the tables from now on as new experience.

        Args:
          structure: of one item, as `item_structure` gives it.

        Raises:
          ValueError: the batch does not divide over the servers.
        """
        if batch_size % len(clients):
            raise ValueError(f"a batch of {batch_size} does not divide over {len(clients)} replay servers")
        assert not isinstance(table.window, Window)
        self._clients, self._table, self._packing = clients, table, packing(table.window, structure)
        # A transition is a step. Sequences are not so many steps each: their writers count.
        window = table.window
        self._counter, self._steps_per_item = (
            (steps_table_name(table.name), window.period) if isinstance(window, Sequences) else (table.name, 1)
        )
        self._share = batch_size // len(clients)
        self._written, self._counted = [0] * len(clients), time.monotonic()
        self._count_new()

    def _count_new(self) -> int:
        """Transitions written to the tables since the last call."""
        new = 0
        for index, client in enumerate(self._clients):
            try:
                info = client.server_info(timeout=60)[self._counter]
            except (reverb.errors.ReverbError, RuntimeError):
                continue  # it is down: the next call counts what it missed
            written = info.rate_limiter_info.insert_stats.completed
            new += max(0, written - self._written[index])  # a server that came back counts from its checkpoint
            self._written[index] = written
        return new * self._steps_per_item

    def _dataset(self, client: reverb.Client) -> Iterator[Any]:
        leaves = self._packing.structure.leaves
        dataset = reverb.TrajectoryDataset(
            client.server_address,
            self._table.name,
            dtypes=[tf.as_dtype(leaf.dtype) for leaf in leaves],
            shapes=[tf.TensorShape(leaf.shape) for leaf in leaves],
            # One worker with a batch under way: a deeper prefetch would sample by priorities that are old.
            max_in_flight_samples_per_worker=self._share,
            num_workers_per_iterator=1,
        )
        return iter(dataset.batch(self._share, drop_remainder=True))

    def __iter__(self) -> Iterator[Batch]:
        """Samples for ever; waits in C++ for the tables' rate limiters: iterate it in a thread."""
        datasets, servers = [self._dataset(client) for client in self._clients], len(self._clients)
        while True:
            parts = [next(dataset) for dataset in datasets]
            # Servers by turns, so that any part of the batch is a mixture of them too.
            mixed = [_by_turns([np.asarray(x) for x in c]) for c in zip(*(part.data for part in parts), strict=True)]
            sizes = sum(float(np.asarray(part.info.table_size)[-1]) for part in parts)
            probability = _by_turns([np.asarray(part.info.probability) for part in parts])
            likelihood = (probability * sizes / servers).astype(np.float32)
            sample = self._packing.sample(mixed)._replace(likelihood=likelihood)
            env_steps = 0
            if time.monotonic() - self._counted > COUNT_SECONDS:
                env_steps, self._counted = self._count_new(), time.monotonic()
            yield Batch(sample, None, env_steps, env_steps, tuple(np.asarray(part.info.key) for part in parts))


def _by_turns(parts: Sequence[np.ndarray]) -> np.ndarray:
    """[b, ...] each -> [b * parts, ...]: the first rows of all, the second of all, and so on."""
    return parts[0] if len(parts) == 1 else np.stack(parts, axis=1).reshape(-1, *parts[0].shape[1:])
