"""Writers: a stream of Steps becomes a table's items."""

from collections.abc import Callable

import numpy as np
import reverb
from absl import logging

from agents.agent import Memory, Step, TableSpec
from replay.items import Block, Structure

STALL_SECONDS = 60  # of waiting before a warning says who waits for whom


class BlockWriter:
    """Writes one item per [T+1, B] block: T+1 rows of a whole batch, the last of which opens the next block.

    The rows are collected here and sent in one piece: a tenth of the cost of a column, a row and an environment at a
    time. `append` returns when the block is in the table, and so waits while that is full: this is what slows actors
    down to their learner.
    """

    def __init__(self, client: reverb.Client, table: TableSpec, structure: Structure):
        """`structure`: of the table's Blocks, as `block_structure` gives it."""
        if table.window.length != table.window.period + 1:
            raise ValueError(f"blocks overlap by one row, which {table.window} does not")
        self._table, self._structure = table, structure
        self._writer = client.trajectory_writer(num_keep_alive_refs=1)
        block: Block = structure.unflatten([np.zeros(leaf.shape, leaf.dtype) for leaf in structure.leaves])
        self._block, self._steps = block, Structure(block.steps)
        self._columns = self._steps.flatten(block.steps)
        self._row = 0

    def append(
        self, step: Step, memory: Memory, learner_steps: int, stopped: Callable[[], bool] = lambda: False
    ) -> bool:
        """Adds one row; true if that completed a block, which is then in the table.

        Args:
          step: [B, ...].
          memory: before the row's action; kept where the row opens a block.
          learner_steps: the version of the parameters that chose the row's action; kept likewise.
          stopped: asked while the table is full; once true, `append` returns without waiting on.
        """
        if self._row == 0:
            self._opening = memory, learner_steps
        for column, value in zip(self._columns, self._steps.flatten(step), strict=True):
            column[self._row] = value
        self._row += 1
        if self._row < self._table.window.length:
            return False
        self._send(stopped)
        for column in self._columns:
            column[0] = column[-1]
        self._row, self._opening = 1, (memory, learner_steps)
        return True

    def _send(self, stopped: Callable[[], bool]) -> None:
        memory, learner_steps = self._opening
        block = Block(self._block.steps, memory, np.int64(learner_steps))
        self._writer.append(self._structure.flatten(block))
        self._writer.create_item(self._table.name, 1.0, [column[-1] for column in self._writer.history])
        waited = 0
        while not stopped():
            try:
                return self._writer.flush(timeout_ms=1000)
            except reverb.errors.DeadlineExceededError:
                waited += 1
                if waited % STALL_SECONDS == 0:
                    logging.warning("an actor waits %d s for room in %r: does a learner run?", waited, self._table.name)

    def close(self) -> None:
        """Ends the stream; blocks not yet in the table are dropped."""
        self._writer.close()
