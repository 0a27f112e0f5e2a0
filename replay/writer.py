"""Writers: a stream of Steps becomes a table's items."""

import collections
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
import reverb
from absl import logging

from agents.agent import Memory, Params, Sample, Sequences, Step, TableSpec, Transition, Transitions, Window
from replay.items import Block, Packing, SequencePacking, StackedPacking, StackedTransition, Structure, packing
from replay.server import steps_table_name
from replay.transitions import NStep

STALL_SECONDS = 60  # of waiting before a warning says who waits for whom
# Transitions that may be on their way to the table while an actor goes on; of stacked ones, each stream's.
IN_FLIGHT = 16
SEQUENCES_IN_FLIGHT = 2  # likewise, of each environment's
# Transitions that an actor keeps until it gives them priorities and writes them, all at once (Horgan et al. 2018,
# appendix D, have 50): both cost Python as much for a few as for one. Never fewer than one of each environment.
LOCAL_ITEMS = 16
PULL_ITEMS = 32  # transitions from one pull of parameters to the next
# Likewise for the larger networks of frames and memories, whose pulls take longer: 400 as in Ape-X and R2D2.
PULL_STEPS = 400
# Rows of a stream that Reverb compresses and keeps as one, where items share them. Measured with Atari's frames: by
# twos each takes 1 kB more and twice the CPU to write; longer chunks bring more that an item does not want.
CHUNK_ROWS = 8


class Writer(Protocol):
    """What an actor writes to."""

    def append(
        self,
        step: Step,
        memory: Memory,
        learner_steps: int,
        params: Params = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Adds one row of a batch of environments; true when it is time to pull parameters.

        It waits while the table has no room or its rate limiter does: this is what slows actors down to their learner.

        Args:
          step: [B, ...].
          memory: before the row's action, [B, ...].
          learner_steps: the version of the parameters that chose the row's action.
          params: those parameters.
          stopped: asked while the table makes it wait; once true, `append` returns without waiting on.
        """

    def close(self) -> None:
        """Ends the stream; items that are not complete are dropped."""


class BlockBuilder:
    """Collects rows of a batch of environments to [T+1, B] blocks; a block's last row opens the next."""

    def __init__(self, table: TableSpec, structure: Structure):
        """`structure`: of the table's Blocks, as `block_structure` gives it."""
        assert isinstance(table.window, Window)
        if table.window.length != table.window.period + 1:
            raise ValueError(f"blocks overlap by one row, which {table.window} does not")
        block: Block = structure.unflatten([np.zeros(leaf.shape, leaf.dtype) for leaf in structure.leaves])
        self._block, self._steps = block, Structure(block.steps)
        self._columns = self._steps.flatten(block.steps)
        self._row = 0

    def append(self, step: Step, memory: Memory, learner_steps: int) -> Block | None:
        """Adds a row; the block that it completes, until the next call: then its arrays are written over. The memory
        and the version are kept of the row that opens it."""
        if self._row == len(self._columns[0]):
            for column in self._columns:
                column[0] = column[-1]
            self._row = 1
        if self._row == 0:
            self._opening = memory, learner_steps
        for column, value in zip(self._columns, self._steps.flatten(step), strict=True):
            column[self._row] = value
        self._row += 1
        if self._row < len(self._columns[0]):
            return None
        opening, self._opening = self._opening, (memory, learner_steps)
        return Block(self._block.steps, opening[0], np.int64(opening[1]))


class BlockWriter:
    """Writes one item per [T+1, B] block: T+1 rows of a whole batch, the last of which opens the next block.

    The rows are collected here and sent in one piece: a tenth of the cost of a column, a row and an environment at a
    time.
    """

    def __init__(self, client: reverb.Client, table: TableSpec, structure: Structure):
        """`structure`: of the table's Blocks, as `block_structure` gives it."""
        self._table, self._structure, self._builder = table, structure, BlockBuilder(table, structure)
        self._writer = client.trajectory_writer(num_keep_alive_refs=1)

    def append(
        self,
        step: Step,
        memory: Memory,
        learner_steps: int,
        params: Params = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> bool:
        """As of any Writer; true if the row completed a block, which is then in the table."""
        del params
        block = self._builder.append(step, memory, learner_steps)
        if block is None:
            return False
        self._writer.append(self._structure.flatten(block))
        self._writer.create_item(self._table.name, 1.0, [column[-1] for column in self._writer.history])
        flush(self._writer, self._table.name, 0, stopped)
        return True

    def close(self) -> None:
        self._writer.close()


class TransitionWriter:
    """Writes one item per environment and step: an n-step Transition, packed; LOCAL_ITEMS at a time, or one of each
    environment where there are more of those."""

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
        # Reverb's Python layer finds columns in nested structures, at the price of all the rest of writing an item; a
        # packed item is a flat list.
        self._unnested: Any = self._writer._writer
        self._local: list[Transition] = []
        self._items = 0

    def append(
        self,
        step: Step,
        memory: Memory,
        learner_steps: int,
        params: Params = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> bool:
        """As of any Writer; true each time another PULL_ITEMS items were written. All but IN_FLIGHT are there then."""
        del memory, learner_steps
        before, size = self._items, items_at_once(self._table, len(step.first))
        self._local += self._n_step.append(step)
        while sum(len(transition.reward) for transition in self._local) >= size:
            together = jax.tree.map(lambda *x: np.concatenate(x), *self._local)
            self._local = [jax.tree.map(lambda x: x[size:], together)]
            self._write(jax.tree.map(lambda x: x[:size], together), params, stopped)
        return before // PULL_ITEMS != self._items // PULL_ITEMS

    def _write(self, transition: Transition, params: Params, stopped: Callable[[], bool]) -> None:
        priorities = _priorities(self._priority, params, transition, len(transition.reward))
        for row, priority in zip(zip(*self._packing.pack(transition), strict=True), priorities, strict=True):
            columns = [[reference] for reference in self._unnested.Append(list(row))]
            self._unnested.CreateItem(self._table.name, priority, columns, [True] * len(columns))
            self._items += 1
            # Not after each, for a look at what is in flight costs a third of writing an item.
            if self._items % (IN_FLIGHT // 2) == 0:
                flush(self._writer, self._table.name, IN_FLIGHT // 2, stopped)

    def close(self) -> None:
        self._writer.close()


class StackedTransitionWriter:
    """Writes one item per environment and step: an n-step Transition of stacked frames, each frame written once.

    Each environment's frames are a stream of their own. An item refers to n + stack of them, of which its two stacks
    are parts. An episode's first frame stands in the stream as often, so that no item sees the episode before.
    """

    def __init__(
        self,
        client: reverb.Client,
        table: TableSpec,
        packing: StackedPacking,
        priority: Callable[[Params, Transition], Any] | None = None,
    ):
        """`priority`: (params, transition [B, ...]) -> [B], of new items; None: 1."""
        assert isinstance(table.window, Transitions)
        self._client, self._table, self._packing, self._priority = client, table, packing, priority
        self._n_step, self._lags = NStep(table.window), np.arange(table.window.stack)[::-1]
        self._writers: list[reverb.TrajectoryWriter] = []
        self._row = self._items = 0

    def _start(self, step: Step) -> None:
        batch, frames = len(step.first), self._packing.frames
        kept = [2 * frames, *([1] * (len(self._packing.structure.leaves) - 1))]
        self._writers = [_stream(self._client, [max(CHUNK_ROWS, rows) for rows in kept]) for _ in range(batch)]
        self._opened = np.zeros(batch, int)  # the row of each environment's episode's first frame
        if self._priority is not None:
            self._recent = np.zeros((frames + 1, *step.observation.shape), step.observation.dtype)

    def append(
        self,
        step: Step,
        memory: Memory,
        learner_steps: int,
        params: Params = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> bool:
        """As of any Writer; true each time another PULL_STEPS items were written. All but IN_FLIGHT of each environment
        are there then."""
        del memory, learner_steps
        if not self._writers:
            self._start(step)
        before, environments = self._items, np.arange(len(self._writers))
        self._opened = np.where(step.first, self._row, self._opened)
        if self._priority is not None:
            self._recent[self._row % len(self._recent)] = step.observation
        done: list[list[tuple[float, list[np.ndarray]]]] = [[] for _ in self._writers]
        # Windows are made of where frames are, not of frames.
        place = np.stack([environments, np.full_like(environments, self._row), self._opened], axis=1)
        for transition in self._n_step.append(step._replace(observation=place)):
            places, size = transition.observation, len(transition.reward)
            steps = (transition.next_observation - places)[:, 1].astype(np.int32)
            rest = StackedTransition(transition.action, transition.reward, transition.discount, steps)
            if self._priority is not None:
                transition = transition._replace(
                    observation=self._stacks(places), next_observation=self._stacks(transition.next_observation)
                )
            priorities = _priorities(self._priority, params, transition, size)
            columns = zip(*self._packing.rest.pack(rest), strict=True)
            for environment, priority, row in zip(places[:, 0], priorities, columns, strict=True):
                done[environment].append((priority, list(row)))
            self._items += size
        for writer, frame, first, items in zip(self._writers, step.observation, step.first, done, strict=True):
            self._write(writer, frame, first, items)
            flush(writer, self._table.name, IN_FLIGHT, stopped)
        self._row += 1
        return before // PULL_STEPS != self._items // PULL_STEPS

    def _stacks(self, places: np.ndarray) -> np.ndarray:
        """[b, stack, ...] the frames up to `places` (environment, row, row of the episode's first) [b, 3]."""
        environment, row, opened = places.T
        rows = np.maximum(row[:, None] - self._lags, opened[:, None])
        return self._recent[rows % len(self._recent), environment[:, None]]

    def _write(self, writer: Any, frame: np.ndarray, first: bool, items: list[tuple[float, list[np.ndarray]]]) -> None:
        """Adds a frame to its stream, and the items that it completes: those of an episode that is over end before it,
        any other with it."""
        size = self._packing.frames
        frames = writer.history[0][-size:] if first and items else None
        for index in range(size if first else 1):
            priority, rest = items[index] if index < len(items) else (0.0, [])
            writer.append([frame, *rest])
            if rest:
                history = writer.history
                writer.create_item(
                    self._table.name, priority, [frames or history[0][-size:], *(c[-1] for c in history[1:])]
                )

    def close(self) -> None:
        for writer in self._writers:
            writer.close()


class _OpenSequence(NamedTuple):
    end: int  # rows of the episode when it is complete
    memory: list[Any]  # the memory's columns, in Reverb's keeping
    values: list[np.ndarray]  # the same


class _Stream:
    """One environment's rows, on their way to its sequences."""

    def __init__(self, client: reverb.Client, window: Sequences, padding: list[np.ndarray], num_memory_columns: int):
        """`padding`: a row's columns where there is no row."""
        self._window, self._padding, self._size = window, padding, window.burn_in + window.length
        # What an episode's last sequence refers to is needed until the next episode's first row was added.
        rows, memories = self._size + window.burn_in + 1, self._size // window.period + 2
        self.writer = _stream(
            client, [max(CHUNK_ROWS, rows)] * len(padding) + [memories] * num_memory_columns, len(padding)
        )
        self._recent: collections.deque[list[np.ndarray]] = collections.deque(maxlen=self._size)
        self._open: collections.deque[_OpenSequence] = collections.deque()
        self._rows = self._next = self._covered = 0
        self._pads = 0  # since the last row

    def opens(self, first: bool) -> bool:
        """Whether a sequence starts with the next row."""
        return first or self._next - self._window.burn_in <= self._rows

    def append(self, row: list[np.ndarray], first: bool, memory: list[np.ndarray]) -> list["_Sequence"]:
        """Adds a row; the sequences that it completes: of an episode that is over, and one of its own, at most."""
        done = []
        if first:
            # Whether the oldest open sequence has anything to learn from that none before it has.
            if self._open and self._covered < self._rows:
                while self._rows + self._pads < self._open[0].end:
                    self._pad()
                done.append(self._finish())
            while self._pads < self._window.burn_in:
                self._pad()
            self._open.clear()
            self._rows = self._next = self._covered = 0
        opens = self.opens(first)
        self.writer.append([*row, *memory] if opens else row)
        self._recent.append(row)
        self._pads = 0
        if opens:
            kept = [column[-1] for column in self.writer.history[len(row) :]]
            while self.opens(False):
                self._open.append(_OpenSequence(self._next + self._window.length, kept, memory))
                self._next += self._window.period
        self._rows += 1
        if self._open[0].end == self._rows:
            self._covered = self._rows
            done.append(self._finish())
        return done

    def _pad(self) -> None:
        self.writer.append(self._padding)
        self._recent.append(self._padding)
        self._pads += 1

    def _finish(self) -> "_Sequence":
        sequence, history = self._open.popleft(), self.writer.history
        columns = [column[-self._size :] for column in history[: len(self._padding)]]
        return _Sequence(self.writer, [*columns, *sequence.memory], list(self._recent), sequence.values)


class _Sequence(NamedTuple):
    """A complete one."""

    writer: Any
    columns: list[Any]  # in Reverb's keeping
    rows: list[list[np.ndarray]]  # the same, packed
    memory: list[np.ndarray]


class SequenceWriter:
    """Writes sequences of each environment, and to a table of its own an item for each `period` transitions."""

    def __init__(
        self,
        client: reverb.Client,
        table: TableSpec,
        packing: SequencePacking,
        priority: Callable[[Params, Sample], Any] | None = None,
    ):
        """`priority`: (params, Sample of b sequences) -> [b], of new items; None: 1."""
        assert isinstance(table.window, Sequences)
        if table.window.period >= table.window.length:
            raise ValueError(f"sequences overlap by a row at least, which {table.window} do not")
        self._client, self._table, self._packing, self._priority = client, table, packing, priority
        self._window, self._streams = table.window, list[_Stream]()
        self._counter = client.trajectory_writer(num_keep_alive_refs=1)
        self._steps = 0

    def append(
        self,
        step: Step,
        memory: Memory,
        learner_steps: int,
        params: Params = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> bool:
        """As of any Writer; true each time the environments made another PULL_STEPS transitions. All sequences but
        SEQUENCES_IN_FLIGHT of each environment are in the table then."""
        del learner_steps
        rows = self._packing.rows.pack(step)
        if not self._streams:
            self._streams = [
                _Stream(self._client, self._window, self._packing.padding, self._packing.num_memory_columns)
                for _ in step.first
            ]
        opens = [stream.opens(first) for stream, first in zip(self._streams, step.first, strict=True)]
        memories = self._packing.memory.pack(memory) if any(opens) else []
        done: list[_Sequence] = []
        for index, stream in enumerate(self._streams):
            row = [column[index] for column in rows]
            done += stream.append(row, step.first[index], [column[index] for column in memories])
        if done:
            sample = None if self._priority is None else self._sample(done)
            priorities = _priorities(self._priority, params, sample, len(done))
            for sequence, priority in zip(done, priorities, strict=True):
                sequence.writer.create_item(self._table.name, priority, sequence.columns)
            for sequence in done:
                flush(sequence.writer, self._table.name, SEQUENCES_IN_FLIGHT, stopped)
        before, self._steps = self._steps, self._steps + int(np.sum(~step.first))
        for _ in range(before // self._window.period, self._steps // self._window.period):
            self._counter.append([np.int32(0)])
            self._counter.create_item(steps_table_name(self._table.name), 1.0, [self._counter.history[0][-1]])
        return before // PULL_STEPS != self._steps // PULL_STEPS

    def _sample(self, sequences: list[_Sequence]) -> Sample:
        columns = [
            np.stack([np.stack(column) for column in c]) for c in zip(*(zip(*s.rows) for s in sequences), strict=True)
        ]
        memory = [np.stack(c) for c in zip(*(s.memory for s in sequences), strict=True)]
        return self._packing.sample([*columns, *memory])

    def close(self) -> None:
        for stream in self._streams:
            stream.writer.close()
        self._counter.close()


def items_at_once(table: TableSpec, num_envs: int) -> int:
    """The most items whose priorities a table's writer asks for at once."""
    return num_envs if getattr(table.window, "stack", 0) != 1 else max(LOCAL_ITEMS, num_envs)


class EpisodeWriter:
    """Writes whole episodes, for a queue: one item of each, its rows and padding, sent in one piece when it is over.

    Measured with episodes of 500 rows, a row takes an eighth of the CPU time that it takes by itself; with episodes of
    20 and 480 rows of padding, a fortieth.
    """

    def __init__(self, client: reverb.Client, table: TableSpec, packing: SequencePacking):
        window = table.window
        assert isinstance(window, Sequences)
        if (window.burn_in, window.length) != (0, window.period + 1):
            raise ValueError(f"a queue's sequences are whole episodes, which {window} are not")
        self._table, self._packing, self._length = table, packing, window.length
        self._writer = client.trajectory_writer(num_keep_alive_refs=1)
        self._rows: list[np.ndarray] = []  # [B, length, size] of each column
        self._memories: list[np.ndarray] = []  # [B, size] of each column, before the episode's first row

    def _start(self, num_envs: int) -> None:
        shape = (num_envs, self._length)
        self._rows = [np.tile(padding, (*shape, 1)) for padding in self._packing.padding]
        self._memories = [np.zeros((num_envs, *x.shape), x.dtype) for x in self._packing.memory.structure.leaves]
        self._size = np.zeros(num_envs, int)  # rows of each environment's episode

    def append(
        self,
        step: Step,
        memory: Memory,
        learner_steps: int,
        params: Params = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> bool:
        """As of any Writer; true if episodes were completed, which are then in the table.

        Raises:
          ValueError: an episode is longer than the table's sequences.
        """
        del learner_steps, params
        if not self._rows:
            self._start(len(step.first))
        over = np.flatnonzero(step.first & (self._size > 0))
        for environment in over:  # a row earlier it was not known
            self._send(environment)
        if np.any(~step.first & (self._size == 0)):
            raise ValueError(f"an episode has more than {self._length - 1} actions: give a larger max_episode_steps")
        environments = np.arange(len(self._size))
        for column, row in zip(self._rows, self._packing.rows.pack(step), strict=True):
            column[environments, self._size] = row
        for column, row in zip(self._memories, self._packing.memory.pack(memory), strict=True):
            column[step.first] = row[step.first]
        self._size += 1
        full = np.flatnonzero(self._size == self._length)
        for environment in full:
            self._send(environment)
        if not len(over) and not len(full):
            return False
        flush(self._writer, self._table.name, 0, stopped)
        return True

    def _send(self, environment: int) -> None:
        self._writer.append([column[environment].copy() for column in (*self._rows, *self._memories)])
        self._writer.create_item(self._table.name, 1.0, [column[-1] for column in self._writer.history])
        self._size[environment] = 0
        for column, padding in zip(self._rows, self._packing.padding, strict=True):
            column[environment] = padding

    def close(self) -> None:
        self._writer.close()


def make_writer(
    client: reverb.Client, table: TableSpec, structure: Structure, priority: Callable[..., Any] | None
) -> Writer:
    """The writer that a table's window asks for; `structure` as `item_structure` gives it."""
    if isinstance(table.window, Window):
        return BlockWriter(client, table, structure)
    packed = packing(table.window, structure)
    if isinstance(packed, SequencePacking) and table.kind == "queue":
        return EpisodeWriter(client, table, packed)
    if isinstance(packed, SequencePacking):
        return SequenceWriter(client, table, packed, priority)
    if isinstance(packed, StackedPacking):
        return StackedTransitionWriter(client, table, packed, priority)
    return TransitionWriter(client, table, packed, priority)


def _priorities(priority: Callable[..., Any] | None, params: Params, items: Any, size: int) -> np.ndarray:
    """float64 [size]"""
    return np.ones(size) if priority is None else np.asarray(priority(params, items), np.float64)


def _stream(client: reverb.Client, kept: Sequence[int], num_rows: int | None = None) -> reverb.TrajectoryWriter:
    """A writer of one environment's stream, whose column i can refer to the newest `kept[i]`; the first `num_rows`
    columns (None: all) are compressed by CHUNK_ROWS, the others one by one."""
    writer = client.trajectory_writer(num_keep_alive_refs=max(kept))
    for index, rows in enumerate(kept):
        chunk = CHUNK_ROWS if num_rows is None or index < num_rows else 1
        writer.configure((index,), num_keep_alive_refs=rows, max_chunk_length=chunk)
    return writer


def flush(writer: reverb.TrajectoryWriter, table: str, in_flight: int, stopped: Callable[[], bool]) -> None:
    """Waits until all items but `in_flight` are in the table, or until `stopped`."""
    waited = 0
    while not stopped():
        try:
            return writer.flush(block_until_num_items=in_flight, timeout_ms=1000)
        except reverb.errors.DeadlineExceededError:
            waited += 1
            if waited % STALL_SECONDS == 0:
                logging.warning("an actor waits %d s for room in %r: does a learner run?", waited, table)
