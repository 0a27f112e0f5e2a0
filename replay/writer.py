"""Writers: a stream of Steps becomes a table's items."""

from collections.abc import Callable
from typing import Any

import numpy as np
import reverb

from agents.agent import Memory, Step, TableSpec
from replay.items import Block, Structure


class BlockWriter:
    """Writes one item per [T+1, B] block: `window.length` rows of a whole batch, a new block every `window.period`.

    The rows are collected here and sent in one piece: a tenth of the cost of a column, a row and an environment at a
    time. At most `max_in_flight` blocks wait for the table; then `append` waits, which is what slows actors down to
    their learner.
    """

    def __init__(self, client: reverb.Client, table: TableSpec, structure: Structure, max_in_flight: int = 0):
        self._table, self._structure, self._max_in_flight = table, structure, max_in_flight
        self._writer = client.trajectory_writer(num_keep_alive_refs=1)
        block: Block = structure.unflatten([np.zeros(leaf.shape, leaf.dtype) for leaf in structure.leaves])
        self._block = block
        self._rows = Structure(block.steps).flatten(block.steps)
        self._step = Structure(block.steps)
        self._row = 0

    def append(
        self, step: Step, memory: Memory, learner_steps: int, stopped: Callable[[], bool] = lambda: False
    ) -> bool:
        """Adds one row; true if that completed a block, which is then on its way.

        Args:
          step: [B, ...].
          memory: before the row's action; kept where the row opens a block.
          learner_steps: the version of the parameters that chose the row's action; kept likewise.
          stopped: asked while the table is full; once true, `append` returns without waiting on.
        """
        length, period = self._table.window.length, self._table.window.period
        columns = self._step.flatten(step)
        for rows, column in zip(self._rows, columns, strict=True):
            rows[self._row] = column
        if self._row == 0:
            self._opening = memory, learner_steps
        if self._row == period:
            self._following = memory, learner_steps
        self._row += 1
        if self._row < length:
            return False
        self._send(stopped)
        # The rows past the period open the next block.
        for rows in self._rows:
            rows[: length - period] = rows[period:]
        self._row, self._opening = length - period, self._following
        return True

    def _send(self, stopped: Callable[[], bool]) -> None:
        memory, learner_steps = self._opening
        block = Block(self._block.steps, memory, np.int64(learner_steps))
        self._writer.append(self._structure.flatten(block))
        self._writer.create_item(self._table.name, 1.0, [column[-1] for column in self._columns()])
        while not stopped():
            try:
                return self._writer.flush(self._max_in_flight, timeout_ms=1000)
            except reverb.errors.DeadlineExceededError:
                continue

    def _columns(self) -> Any:
        return self._writer.history

    def close(self) -> None:
        """Ends the stream; blocks not yet in the table are dropped."""
        self._writer.close()
