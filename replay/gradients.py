"""Gradients on their way from workers to the learner, through a Reverb queue."""

from collections.abc import Callable, Iterator

import jax
import numpy as np
import reverb

from agents.agent import Gradient, TableSpec
from replay.items import Packing, Structure
from replay.sampler import Batch
from replay.writer import flush


class GradientWriter:
    """What a worker sends its gradients by: each is one item, all its arrays side by side."""

    def __init__(self, client: reverb.Client, table: TableSpec, structure: Structure):
        """`structure`: of one Gradient, as `item_structure` gives it."""
        self._table, self._packing = table, Packing(structure)
        self._writer = client.trajectory_writer(num_keep_alive_refs=1)

    def append(self, gradient: Gradient, stopped: Callable[[], bool] = lambda: False) -> None:
        """Sends one; returns once the queue has room for it and holds it, or when `stopped`."""
        columns = self._packing.pack(jax.tree.map(lambda x: np.asarray(x)[None], gradient))
        self._writer.append([column[0] for column in columns])
        self._writer.create_item(self._table.name, 1.0, [column[-1] for column in self._writer.history])
        flush(self._writer, self._table.name, 0, stopped)

    def close(self) -> None:
        self._writer.close()


def sample_gradients(client: reverb.Client, table: TableSpec, structure: Structure, devices: int) -> Iterator[Batch]:
    """Gradients for ever, each once, the oldest first: one for each device, [devices, ...]. Waits in C++ where the
    queue is empty: iterate it in a thread (runtime.learner.prefetch)."""
    packing = Packing(structure)
    while True:
        samples = client.sample(table.name, num_samples=devices, emit_timesteps=False)
        columns = [np.stack(column) for column in zip(*(sample.data for sample in samples), strict=True)]
        gradient: Gradient = packing.unpack(columns)
        env_steps = int(gradient.env_steps.sum())
        yield Batch(gradient, gradient.learner_steps, env_steps, env_steps, losses=gradient.metrics["loss"])
