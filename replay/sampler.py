"""Takes samples from Reverb's replay tables and makes batches of them, on the host, for the learner."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from agents.agent import TableSpec
from replay.channels import way
from replay.client import ask_tables
from replay.reverb_import import reverb, tf
from replay.rows import Batch, ReplayUnavailable
from replay.structures import Structure

COUNT_SECONDS = 0.2  # seconds between two requests for how much was written; each takes about a millisecond of CPU


class Replay:
    """An iterable of batches of transitions or sequences, with an equal share from each of one or more servers.

    An item i of server s is drawn with probability P_s(i) / servers. `Sample.likelihood` is this probability times the
    number of items in all tables together, so that importance weights are right for the mixture.
    """

    def __init__(self, clients: Sequence[reverb.Client], table: TableSpec, structure: Structure, batch_size: int):
        """Starts to count new experience: what is written to the tables from now on.

        Args:
          structure: that of one item, as `item_structure` returns it.

        Raises:
          ValueError: the batch does not divide over the servers.
        """
        if batch_size % len(clients):
            raise ValueError(
                f"a batch of {batch_size} is not a multiple of {len(clients)}, the number of replay servers"
            )
        self._clients, self._table, self._packing = clients, table, way(table).packing(table, structure)
        self._counter, self._steps_per_item = way(table).counter(table)
        self._share = batch_size // len(clients)
        self._written, self._counted = [0] * len(clients), time.monotonic()
        self._count_new()

    def _count_new(self) -> int:
        """Returns how many transitions were written to the tables since the last call."""
        new = 0
        for index, client in enumerate(self._clients):
            try:
                info = ask_tables(client)[self._counter]
            except ReplayUnavailable:
                continue  # the server is down: a later call counts what this one misses
            written = info.rate_limiter_info.insert_stats.completed
            new += max(0, written - self._written[index])  # a restarted server goes on from its checkpoint's count
            self._written[index] = written
        return new * self._steps_per_item

    def _dataset(self, client: reverb.Client) -> Iterator[Any]:
        leaves = self._packing.structure.leaves
        dataset = reverb.TrajectoryDataset(
            client.server_address,
            self._table.name,
            dtypes=[tf.as_dtype(leaf.dtype) for leaf in leaves],
            shapes=[tf.TensorShape(leaf.shape) for leaf in leaves],
            # One worker with one batch under way: a deeper prefetch would sample by old priorities.
            max_in_flight_samples_per_worker=self._share,
            num_workers_per_iterator=1,
        )
        return iter(dataset.batch(self._share, drop_remainder=True))

    def __iter__(self) -> Iterator[Batch]:
        """Yields batches for ever. Iterate in a thread of its own: this waits in C++ for the tables' rate limiters."""
        datasets, servers = [self._dataset(client) for client in self._clients], len(self._clients)
        while True:
            parts = [next(dataset) for dataset in datasets]
            # Items of the servers alternate, so that any part of the batch is a mixture of them too.
            mixed = [_by_turns([np.asarray(x) for x in c]) for c in zip(*(part.data for part in parts), strict=True)]
            sizes = sum(float(np.asarray(part.info.table_size)[-1]) for part in parts)
            probability = _by_turns([np.asarray(part.info.probability) for part in parts])
            likelihood = (probability * sizes / servers).astype(np.float32)
            sample = self._packing.sample(mixed)._replace(likelihood=likelihood)
            env_steps = 0
            if time.monotonic() - self._counted > COUNT_SECONDS:
                env_steps, self._counted = self._count_new(), time.monotonic()
            yield Batch(sample, None, env_steps, tuple(np.asarray(part.info.key) for part in parts))


def _by_turns(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Interleaves the parts, [b, ...] each, to [b * parts, ...]: the first rows of all, then the second, and so on."""
    return parts[0] if len(parts) == 1 else np.stack(parts, axis=1).reshape(-1, *parts[0].shape[1:])
