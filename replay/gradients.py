"""Gradients: items that workers send to the learner, while the experience behind them stays with the worker."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from agents.agent import Agent, EnvironmentSpec, Gradient, Sample, TableSpec
from replay.blocks import Block
from replay.rows import Batch, Queue
from replay.structures import Packing, Structure, params_structs


def structure(agent: Agent, spec: EnvironmentSpec, num_envs: int) -> Structure:
    """Returns the structure of a Gradient from a worker of `num_envs` environments; `agent` is from `by_gradients`."""
    from replay.channels import item_structure  # imported here: that module imports this one

    assert agent.gradient is not None
    own: TableSpec = agent.table.items.table  # type: ignore[union-attr]
    batch: int = agent.table.items.batch_size  # type: ignore[union-attr]
    item = item_structure(agent._replace(table=own), spec, num_envs)
    example = item.unflatten(item.leaves)
    if isinstance(example, Block):
        sample = Sample(example.steps, example.memory)
    else:
        steps = jax.tree.map(lambda x: jax.ShapeDtypeStruct((batch, *x.shape), x.dtype), example)
        sample = Sample(steps, likelihood=jax.ShapeDtypeStruct((batch,), np.float32))
    state = params_structs(agent)
    gradient, feedback = jax.eval_shape(agent.gradient, state, jax.eval_shape(jax.random.key, 0), sample)
    return Structure(Gradient(gradient, feedback.metrics, np.int64(0), np.int64(0)))


def columns(table: TableSpec, structure: Structure) -> Structure:
    """Returns how an item lies in Reverb's columns: all arrays of a dtype side by side."""
    del table
    return Packing(structure).structure


def sequences_per_item(structure: Structure) -> int:
    del structure
    return 1


def refuse(agent: Agent, run: Any, spec: EnvironmentSpec) -> None:
    """Raises ValueError if a worker's own experience cannot be made into a sample for a gradient.

    `agent` is the worker's own: its table describes the experience that the worker keeps.
    """
    if agent.table.kind != "queue" and run.placement == "serial" and run.carrier == "reverb":
        raise ValueError(
            f"--placement=serial --carrier=reverb has a worker send one gradient in each turn, and {run.agent} sends "
            "as many as config.samples_per_insert asks for; give --carrier=local or --placement=threads"
        )
    if agent.table.kind == "queue" and agent.batch_size != run.envs_per_actor:
        raise ValueError(
            f"config.batch_size={agent.batch_size} and --envs_per_actor={run.envs_per_actor} must be equal, "
            "because a worker computes a gradient from one block of its own environments"
        )


class GradientWriter:
    """A worker's writer, which sends each gradient as one item."""

    def __init__(self, queue: Queue, structure: Structure):
        self._queue, self._packing = queue, Packing(structure)

    def append(self, gradient: Gradient) -> None:
        """Sends a gradient; returns once the queue had room and holds it, or when the worker is stopped."""
        columns = self._packing.pack(jax.tree.map(lambda x: np.asarray(x)[None], gradient))
        self._queue.put([column[0] for column in columns])

    def close(self) -> None:
        self._queue.close()


def writer(queue: Queue, table: TableSpec, structure: Structure) -> GradientWriter:
    del table
    return GradientWriter(queue, structure)


def batches(queue: Queue, table: TableSpec, structure: Structure, batch_size: int) -> Iterator[Batch]:
    """Yields batches of `batch_size` gradients for ever, as a Gradient [batch_size, ...], each taken once, the oldest
    first."""
    del table
    packing = Packing(structure)
    while True:
        items = queue.take(batch_size)
        gradient: Gradient = packing.unpack([np.stack(column) for column in zip(*items, strict=True)])
        env_steps = int(gradient.env_steps.sum())
        yield Batch(gradient, gradient.learner_steps, env_steps, losses=gradient.metrics["loss"])
