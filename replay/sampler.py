"""Samples from tables, as host batches for the learner."""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
import reverb

from agents.agent import Sample, TableSpec
from replay.items import Block, Structure


class Batch(NamedTuple):
    """What one update is given, and what the learner's host wants to know of it."""

    sample: Sample  # steps [T+1, B, ...], memory [B, ...]
    learner_steps: np.ndarray  # int64 [blocks], the versions that acted
    env_steps: int  # transitions: rows whose action was not thrown away


def sample_blocks(
    client: reverb.Client, table: TableSpec, structure: Structure, blocks_per_batch: int
) -> Iterator[Batch]:
    """Batches of `blocks_per_batch` on-policy blocks side by side, for ever, each block once, the oldest first.

    Waits in C++ where the queue is empty: iterate it in a thread (runtime.learner.prefetch). Blocks are asked for when
    they are needed and not before: Reverb's own prefetching would only make them older.
    """
    while True:
        samples = client.sample(table.name, num_samples=blocks_per_batch, emit_timesteps=False)
        blocks: list[Block] = [structure.unflatten(sample.data) for sample in samples]
        first = blocks[0]
        if blocks_per_batch == 1:
            sample = Sample(first.steps, first.memory)
        else:
            sample = Sample(
                jax.tree.map(lambda *x: np.concatenate(x, axis=1), *(block.steps for block in blocks)),
                jax.tree.map(lambda *x: np.concatenate(x, axis=0), *(block.memory for block in blocks)),
            )
        # A row before a first closed its episode: its action was thrown away.
        env_steps = int(np.sum(~sample.steps.first[1:]))
        yield Batch(sample, np.array([block.learner_steps for block in blocks]), env_steps)
