"""Samples from tables, as host batches for the learner."""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
import reverb

from agents.agent import Memory, Sample, Step, TableSpec
from replay.items import Block, Structure


class Batch(NamedTuple):
    """What one update is given, and what the learner's host wants to know of it."""

    sample: Sample  # steps [T+1, B, ...], memory [B, ...]
    learner_steps: np.ndarray  # int64 [blocks], the versions that acted
    env_steps: int  # transitions: rows whose action was not thrown away
    rows: int  # T * B, those too


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
            yield _batch(
                jax.tree.map(lambda *x: np.concatenate(x, axis=1), *(block.steps for block in blocks)),
                jax.tree.map(lambda *x: np.concatenate(x, axis=0), *(block.memory for block in blocks)),
                learner_steps,
            )
            continue
        for start in range(0, num_envs, batch_size):
            part = slice(start, start + batch_size)
            yield _batch(
                jax.tree.map(lambda x, part=part: x[:, part], blocks[0].steps),
                jax.tree.map(lambda x, part=part: x[part], blocks[0].memory),
                learner_steps,
            )


def _batch(steps: Step, memory: Memory, learner_steps: np.ndarray) -> Batch:
    # A row before a first closed its episode: its action was thrown away.
    return Batch(Sample(steps, memory), learner_steps, int(np.sum(~steps.first[1:])), steps.first[1:].size)
