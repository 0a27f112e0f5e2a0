"""Writers: a stream of Steps becomes a table's items."""

from collections.abc import Callable
from typing import Any

import numpy as np
import reverb
from absl import logging

from agents.agent import Memory, Params, Step, TableSpec, Transition, Transitions, Window
from replay.items import Block, Packing, Structure
from replay.transitions import NStep

STALL_SECONDS = 60  # of waiting before a warning says who waits for whom
IN_FLIGHT = 16  # transitions that may be on their way to the table while an actor goes on
PULL_ITEMS = 32  # transitions from one pull of parameters to the next


class BlockWriter:
    """Writes one item per [T+1, B] block: T+1 rows of a whole batch, the last of which opens the next block.

    The rows are collected here and sent in one piece: a tenth of the cost of a column, a row and an environment at a
    time. `append` returns when the block is in the table, and so waits while that is full: this is what slows actors
    down to their learner.
    """

    def __init__(self, client: reverb.Client, table: TableSpec, structure: Structure):
        """`structure`: of the table's Blocks, as `block_structure` gives it."""
        assert isinstance(table.window, Window)
        if table.window.length != table.window.period + 1:
            raise ValueError(f"blocks overlap by one row, which {table.window} does not")
        self._table, self._structure = table, structure
        self._writer = client.trajectory_writer(num_keep_alive_refs=1)
        block: Block = structure.unflatten([np.zeros(leaf.shape, leaf.dtype) for leaf in structure.leaves])
        self._block, self._steps = block, Structure(block.steps)
        self._columns = self._steps.flatten(block.steps)
        self._row = 0

    def append(
        self,
        step: Step,
        memory: Memory,
        learner_steps: int,
        params: Params = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Adds one row; true if that completed a block, which is then in the table.

        Args:
          step: [B, ...].
          memory: before the row's action; kept where the row opens a block.
          learner_steps: the version of the parameters that chose the row's action; kept likewise.
          params: those parameters; of no use here.
          stopped: asked while the table is full; once true, `append` returns without waiting on.
        """
        del params
        if self._row == 0:
            self._opening = memory, learner_steps
        for column, value in zip(self._columns, self._steps.flatten(step), strict=True):
            column[self._row] = value
        self._row += 1
        if self._row < len(self._columns[0]):
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
        _flush(self._writer, self._table.name, 0, stopped)

    def close(self) -> None:
        """Ends the stream; blocks not yet in the table are dropped."""
        self._writer.close()


class TransitionWriter:
    """Writes one item per environment and step: an n-step Transition, packed."""

    def __init__(
        self,
        client: reverb.Client,
        table: TableSpec,
        packing: Packing,
        priority: Callable[[Params, Transition], Any] | None = None,
    ):
        """`priority`: (params, transition [B, ...]) -> [B], of new items; None: 1."""
        assert isinstance(table.window, Transitions)
        self._table, self._packing, self._priority = table, packing, priority
        self._n_step = NStep(table.window)
        self._writer = client.trajectory_writer(num_keep_alive_refs=1)
        self._items = 0

    def append(
        self,
        step: Step,
        memory: Memory,
        learner_steps: int,
        params: Params = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Adds one row, [B, ...]; true each time another PULL_ITEMS items were written.

        Returns once all but IN_FLIGHT items are in the table, and so waits while the table's rate limiter does.
        """
        del memory, learner_steps
        before = self._items
        for transition in self._n_step.append(step):
            priorities = np.ones(len(transition.reward))
            if self._priority is not None:
                priorities = np.asarray(self._priority(params, transition), np.float64)
            for row, priority in zip(zip(*self._packing.pack(transition), strict=True), priorities, strict=True):
                self._writer.append(list(row))
                self._writer.create_item(self._table.name, priority, [c[-1] for c in self._writer.history])
            self._items += len(priorities)
        _flush(self._writer, self._table.name, IN_FLIGHT, stopped)
        return before // PULL_ITEMS != self._items // PULL_ITEMS

    def close(self) -> None:
        """Ends the stream; transitions that are still open are dropped."""
        self._writer.close()


def make_writer(
    client: reverb.Client, table: TableSpec, structure: Structure, priority: Callable[..., Any] | None
) -> BlockWriter | TransitionWriter:
    """The writer that a table's window asks for; `structure` as `item_structure` gives it."""
    if isinstance(table.window, Window):
        return BlockWriter(client, table, structure)
    return TransitionWriter(client, table, Packing(structure), priority)


def _flush(writer: reverb.TrajectoryWriter, table: str, in_flight: int, stopped: Callable[[], bool]) -> None:
    """Waits until all items but `in_flight` are in the table, or until `stopped`."""
    waited = 0
    while not stopped():
        try:
            return writer.flush(block_until_num_items=in_flight, timeout_ms=1000)
        except reverb.errors.DeadlineExceededError:
            waited += 1
            if waited % STALL_SECONDS == 0:
                logging.warning("an actor waits %d s for room in %r: does a learner run?", waited, table)
