"""Sequences: items of rows of one environment's episode and the agent's memory before them, which a replay keeps."""

import collections
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from agents.agent import Agent, EnvironmentSpec, Sample, Sequences, Step, TableSpec
from replay.flushing import CHUNK_ROWS, flush, open_stream
from replay.rings import NEVER, Look
from replay.rows import PULL_STEPS, Priority, Row, never
from replay.structures import Packing, Structure, step_structs
from replay.transitions import action_bytes, observation_bytes, priorities_of, refuse_longer

# About what Reverb needs besides its data for each row of a stream whose rows items share, as
# tests/replay/test_memory.py measures.
ROW_BYTES = 1_000
IN_FLIGHT = 2  # sequences of each environment that may be on their way to the table while an actor goes on


def structure(agent: Agent, spec: EnvironmentSpec, num_envs: int) -> Structure:
    """Returns the structure of one sequence, without a batch axis: a Sample of steps [burn_in + length, ...] and
    memory."""
    del num_envs
    items: Sequences = agent.table.items  # type: ignore[assignment]
    return structure_of_rows(agent, spec, items.burn_in + items.length)


def structure_of_rows(agent: Agent, spec: EnvironmentSpec, rows: int) -> Structure:
    """Returns the structure of `rows` rows of one environment and the memory before them, without a batch axis."""
    step, memory = step_structs(agent, spec, 1)
    steps = jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype), step)
    return Structure(Sample(steps, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), memory)))


def sequences_per_item(structure: Structure) -> int:
    del structure
    return 1


def refuse(agent: Agent, run: Any, spec: EnvironmentSpec) -> None:
    """Raises ValueError if `sequence_length` is more than an episode can have steps."""
    refuse_longer(agent, run, spec, "sequence_length", agent.table.items.length)  # type: ignore[union-attr]


def item_bytes(agent: Agent, spec: EnvironmentSpec) -> int:
    """Returns about how many bytes an item takes in Reverb, if its data cannot be compressed (see docs/replay.md)."""
    # Items share rows, and each has `period` new ones. What they hold besides observations and actions is small.
    memory = jax.tree.leaves(jax.eval_shape(lambda: agent.memory(1, None)))
    row = observation_bytes(spec) + action_bytes(spec) + ROW_BYTES
    return agent.table.items.period * row + sum(x.size * x.dtype.itemsize for x in memory)  # type: ignore[union-attr]


def counter(table: TableSpec) -> tuple[str, int]:
    """Returns the name of the Reverb table whose items count transitions, and how many each item stands for.

    Sequences differ in how many new transitions they hold, so their writers count transitions in a separate table.
    """
    return steps_table_name(table.name), table.items.period  # type: ignore[union-attr]


def items_at_once(table: TableSpec, num_envs: int) -> int:
    """Returns the most items for which the writer computes priorities at once."""
    del table
    return num_envs


def packing(table: TableSpec, structure: Structure) -> "SequencePacking":
    """Returns how items lie in Reverb's columns, and how batches are read from these."""
    del table
    return SequencePacking(structure)


def steps_table_name(table: str) -> str:
    """Returns the name of the table that counts the transitions of a `table` of sequences."""
    return f"{table}_steps"


class SequencePacking:
    """Packs sequences: each row by itself, for items share rows, and the memory before the first row."""

    def __init__(self, structure: Structure):
        """`structure` is that of one sequence or episode, as `structure_of_rows` returns it."""
        item: Sample = structure.unflatten(structure.leaves)
        self.length = rows = item.steps.reward.shape[0]
        self.rows = Packing(Structure(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), item.steps)))
        self.memory = Packing(Structure(item.memory))
        columns = [jax.ShapeDtypeStruct((rows, *x.shape), x.dtype) for x in self.rows.structure.leaves]
        self.num_row_columns, self.num_memory_columns = len(columns), len(self.memory.structure.leaves)
        nothing: Step = jax.tree.map(lambda x: np.zeros((1, *x.shape[1:]), x.dtype), item.steps)
        # The columns of a row that stands where the episode has none.
        self.padding = [column[0] for column in self.rows.pack(nothing._replace(first=np.ones(1, bool)))]
        self.structure = Structure([*columns, *self.memory.structure.leaves])

    def sample(self, columns: Sequence[np.ndarray]) -> Sample:
        """Returns a batch of sequences: a Sample of steps [T, B, ...] and memory [B, ...]."""
        rows = [column.swapaxes(0, 1) for column in columns[: self.num_row_columns]]
        return Sample(self.rows.unpack(rows), self.memory.unpack(columns[self.num_row_columns :]))


class _OpenSequence(NamedTuple):
    end: int  # the number of the episode's rows with which the sequence is complete
    memory: list[Any]  # Reverb's references to the memory's columns
    values: list[np.ndarray]  # the memory's columns themselves


class _Stream:
    """One environment's stream of rows in Reverb, and the sequences that are open in it."""

    def __init__(self, client: Any, window: Sequences, padding: list[np.ndarray], num_memory_columns: int):
        """`padding` is the columns of a row that stands where the episode has none."""
        self._window, self._padding, self._size = window, padding, window.burn_in + window.length
        # The rows of an episode's last sequence must stay in reach until the next episode's first row is added.
        rows, memories = self._size + window.burn_in + 1, self._size // window.period + 2
        self.writer = open_stream(
            client, [max(CHUNK_ROWS, rows)] * len(padding) + [memories] * num_memory_columns, len(padding)
        )
        self._recent: collections.deque[list[np.ndarray]] = collections.deque(maxlen=self._size)
        self._open: collections.deque[_OpenSequence] = collections.deque()
        # The episode's rows so far; the row that the next sequence learns from first; rows that complete ones cover.
        self._rows = self._next = self._covered = 0
        self._pads = 0  # rows of padding since the last row of an episode

    def opens(self, first: bool) -> bool:
        """Returns whether a sequence starts with the next row, which is an episode's first if `first`."""
        return first or self._next - self._window.burn_in <= self._rows

    def append(self, row: list[np.ndarray], first: bool, memory: list[np.ndarray]) -> list["_Sequence"]:
        """Adds a row; returns the sequences that it completes.

        These are at most two: the last one of an episode that is over, and one of the row's own episode.
        """
        done = []
        if first:
            # The oldest open sequence is padded and written only if it has a row that no complete sequence has.
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
    """A complete sequence, which is ready to be written as an item."""

    writer: Any  # Reverb's writer of the environment's stream
    columns: list[Any]  # Reverb's references to the item's columns
    rows: list[list[np.ndarray]]  # the rows themselves, packed
    memory: list[np.ndarray]  # the memory before them, packed


class SequenceWriter:
    """Writes each environment's sequences to Reverb. To another table, which counts, it writes an item for each
    `period` transitions."""

    def __init__(
        self,
        client: Any,
        table: TableSpec,
        structure: Structure,
        priority: Priority | None = None,
        stopped: Callable[[], bool] = never,
    ):
        """`priority` gives a Sample of new items their priorities, all 1 if it is None; `stopped` is asked while the
        table makes the writer wait."""
        self._window: Sequences = table.items  # type: ignore[assignment]
        if self._window.period >= self._window.length:
            raise ValueError(f"sequences must overlap by at least one row, and these do not: {self._window}")
        self._client, self._table, self._packing = client, table, SequencePacking(structure)
        self._priority, self._stopped, self._streams = priority, stopped, list[_Stream]()
        self._counter = client.trajectory_writer(num_keep_alive_refs=1)
        self._steps = 0

    def append(self, row: Row) -> bool:
        """Adds a row, as every Writer does; returns True each time the environments made another PULL_STEPS
        transitions. On return, at most IN_FLIGHT sequences of each environment are not in the table yet."""
        step = row.step
        rows = self._packing.rows.pack(step)
        if not self._streams:
            self._streams = [
                _Stream(self._client, self._window, self._packing.padding, self._packing.num_memory_columns)
                for _ in step.first
            ]
        opens = [stream.opens(first) for stream, first in zip(self._streams, step.first, strict=True)]
        memories = self._packing.memory.pack(row.memory) if any(opens) else []
        done: list[_Sequence] = []
        for index, stream in enumerate(self._streams):
            mine = [column[index] for column in rows]
            done += stream.append(mine, step.first[index], [column[index] for column in memories])
        if done:
            sample = None if self._priority is None else self._sample(done)
            priorities = priorities_of(self._priority, row.params, sample, len(done))
            for sequence, priority in zip(done, priorities, strict=True):
                sequence.writer.create_item(self._table.name, priority, sequence.columns)
            for sequence in done:
                flush(sequence.writer, self._table.name, IN_FLIGHT, self._stopped)
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


def writer(
    client: Any, table: TableSpec, structure: Structure, priority: Priority | None, stopped: Callable[[], bool]
) -> SequenceWriter:
    return SequenceWriter(client, table, structure, priority, stopped)


class SequenceCut:
    """The Cut (replay/rings.py) of sequences: how they lie in a ring of rows. The anchor is the first row after the
    burn-in."""

    pull_period = PULL_STEPS

    def __init__(self, items: Sequences, structure: Structure):
        """`structure` is that of one sequence."""
        self._items = items
        self.back, self.ahead = items.burn_in, items.length - 1
        item: Sample = structure.unflatten(structure.leaves)
        row: Step = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), item.steps)
        self._rest = Packing(Structure((row.action, row.reward, row.discount, row.extras)))
        self._memory = Packing(Structure(item.memory))
        self.kept_structs = row.observation, self._rest.structure.leaves
        self.memory_structs = self._memory.structure.leaves
        # The first sequence that opens later than its episode opens at this row; the next ones, `period` rows apart.
        self.memory_gap = items.period - items.burn_in % items.period

    def kept(self, step: Step, xp: Any = np) -> tuple[Any, list[Any]]:
        return step.observation, self._rest.pack((step.action, step.reward, step.discount, step.extras), xp)

    def kept_memory(self, memory: Any, xp: Any = np) -> list[Any]:
        return self._memory.pack(memory, xp)

    def opens(self, position: Any) -> Any:
        # An episode's first row needs no memory: there every network sets its memory back.
        return (position > 0) & ((position + self._items.burn_in) % self._items.period == 0)

    def completed_by(self, position: Any, over: Any, xp: Any = np) -> Any:
        items, row = self._items, np.arange(len(position))[:, None]
        whole = row + items.length <= over
        # Of those that the episode's end cuts short, only the oldest is an item, unless the one before it ended with
        # the episode.
        oldest = (position == 0) | (row - items.period + items.length < over)
        completed = xp.where(whole, row + items.length - 1, xp.where(oldest, over, NEVER))
        return xp.where(position % items.period == 0, completed, NEVER)

    def cut(self, kept: Any, look: Look) -> Sample:
        observation, rest = kept
        burn_in = self._items.burn_in
        offsets = jnp.arange(-burn_in, self._items.length)
        place = look.position(offsets)
        anchor = place[:, burn_in : burn_in + 1]
        same = jnp.cumprod((place == anchor + offsets) | (offsets < 0), axis=1).astype(bool) & (anchor + offsets >= 0)
        action, reward, discount, extras = self._rest.unpack(look.rows(rest, offsets))
        step = Step(look.rows(observation, offsets), action, reward, discount, place == 0, extras)

        def padded(x):
            x = jnp.where(same.reshape(*same.shape, *[1] * (x.ndim - 2)), x, jnp.zeros_like(x))
            return jnp.moveaxis(x, 1, 0)

        steps: Step = jax.tree.map(padded, step)
        opened = jnp.maximum(-burn_in, -anchor[:, 0])
        inside = anchor[:, 0] > burn_in  # else the sequence opened with its episode: its memory is zeros
        memory = [jnp.where(inside[:, None], x, jnp.zeros_like(x)) for x in look.memory(opened)]
        return Sample(steps._replace(first=steps.first | ~same.T), self._memory.unpack(memory))


def ring(table: TableSpec, structure: Structure) -> SequenceCut:
    """Returns the Cut of the table's items: how they lie in rings of rows."""
    return SequenceCut(table.items, structure)  # type: ignore[arg-type]
