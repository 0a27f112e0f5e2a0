"""Stacks: n-step transitions whose observations are stacks of the newest frames; a replay keeps each frame once."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from agents.agent import Agent, EnvironmentSpec, Sample, Stacks, Step, TableSpec, Transition
from replay import transitions
from replay.flushing import CHUNK_ROWS, flush, open_stream
from replay.rows import PULL_STEPS, Priority, Row, never
from replay.structures import Packing, Structure
from replay.transitions import NStep, TransitionCut, action_bytes, observation_bytes, priorities_of

IN_FLIGHT = 16  # transitions of each environment that may be on their way to the table while an actor goes on


def structure(agent: Agent, spec: EnvironmentSpec, num_envs: int) -> Structure:
    """Returns the structure of one Transition with stacked observations [stack, ...], without a batch axis."""
    single = transitions.structure(agent, spec, num_envs)
    item: Transition = single.unflatten(single.leaves)
    frame, stack = item.observation, agent.table.items.stack  # type: ignore[union-attr]
    frames = jax.ShapeDtypeStruct((stack, *frame.shape), frame.dtype)
    return Structure(item._replace(observation=frames, next_observation=frames))


sequences_per_item, refuse, counter = transitions.sequences_per_item, transitions.refuse, transitions.counter


def item_bytes(agent: Agent, spec: EnvironmentSpec) -> int:
    """Returns about how many bytes an item takes in Reverb, if its data cannot be compressed (see docs/replay.md)."""
    del agent
    return observation_bytes(spec) + action_bytes(spec) + transitions.ITEM_BYTES


def items_at_once(table: TableSpec, num_envs: int) -> int:
    """Returns the most items for which the writer computes priorities at once."""
    del table
    return num_envs


def packing(table: TableSpec, structure: Structure) -> "StackedPacking":
    """Returns how items lie in Reverb's columns, and how batches are read from these."""
    return StackedPacking(table.items, structure)  # type: ignore[arg-type]


class StackedTransition(NamedTuple):
    """A stacked transition without its frames."""

    action: Any
    reward: Any
    discount: Any
    steps: Any  # int32, n or fewer: the steps from the observation to the next observation


class StackedPacking:
    """Packs transitions of stacked frames: n + stack consecutive frames of a stream, and the small rest, packed.

    Items share frames. The last frames of an item are those of its next observation.
    """

    def __init__(self, items: Stacks, structure: Structure):
        """`structure` is that of one Transition, without a batch axis."""
        item: Transition = structure.unflatten(structure.leaves)
        self._stack, frame = items.stack, item.observation
        self.frames = items.n + items.stack
        self.rest = Packing(
            Structure(StackedTransition(item.action, item.reward, item.discount, jax.ShapeDtypeStruct((), np.int32)))
        )
        frames = jax.ShapeDtypeStruct((self.frames, *frame.shape[1:]), frame.dtype)
        self.structure = Structure([frames, *self.rest.structure.leaves])

    def sample(self, columns: Sequence[np.ndarray]) -> Sample:
        """Returns a Sample of a batch of Transitions whose observations are [B, stack, ...]."""
        frames, rest = columns[0], self.rest.unpack(columns[1:])
        next_start = self.frames - self._stack
        rows = (next_start - rest.steps)[:, None] + np.arange(self._stack)
        observation = frames[np.arange(len(frames))[:, None], rows]
        return Sample(Transition(observation, rest.action, rest.reward, rest.discount, frames[:, next_start:]))


class StackedTransitionWriter:
    """Writes one item per environment and step to Reverb: an n-step Transition of stacked frames.

    Each environment's frames are a stream of their own, to which a frame is written once. An item refers to n + stack
    of them, and its two stacks are parts of these. Only an episode's first frame is written n + stack times, so that
    no item reaches into the episode before.
    """

    def __init__(
        self,
        client: Any,
        table: TableSpec,
        structure: Structure,
        priority: Priority | None = None,
        stopped: Callable[[], bool] = never,
    ):
        """`priority` gives new items [B, ...] their priorities, all 1 if it is None; `stopped` is asked while the table
        makes the writer wait."""
        items: Stacks = table.items  # type: ignore[assignment]
        self._client, self._table, self._packing = client, table, StackedPacking(items, structure)
        self._priority, self._stopped = priority, stopped
        self._n_step, self._lags = NStep(items), np.arange(items.stack)[::-1]
        self._writers: list[Any] = []
        self._row = self._items = 0

    def _start(self, step: Step) -> None:
        batch, frames = len(step.first), self._packing.frames
        kept = [2 * frames, *([1] * (len(self._packing.structure.leaves) - 1))]
        self._writers = [open_stream(self._client, [max(CHUNK_ROWS, rows) for rows in kept]) for _ in range(batch)]
        self._opened = np.zeros(batch, int)  # the row in which each environment's episode began
        if self._priority is not None:
            self._recent = np.zeros((frames + 1, *step.observation.shape), step.observation.dtype)

    def append(self, row: Row) -> bool:
        """Adds a row, as every Writer does; returns True each time another PULL_STEPS items were written. On return, at
        most IN_FLIGHT items of each environment are not in the table yet."""
        step, params = row.step, row.params
        if not self._writers:
            self._start(step)
        before, environments = self._items, np.arange(len(self._writers))
        self._opened = np.where(step.first, self._row, self._opened)
        if self._priority is not None:
            self._recent[self._row % len(self._recent)] = step.observation
        done: list[list[tuple[float, list[np.ndarray]]]] = [[] for _ in self._writers]
        # NStep is given where frames are, not the frames: (environment, row, the row in which its episode began).
        place = np.stack([environments, np.full_like(environments, self._row), self._opened], axis=1)
        for transition in self._n_step.append(step._replace(observation=place)):
            places, size = transition.observation, len(transition.reward)
            steps = (transition.next_observation - places)[:, 1].astype(np.int32)
            rest = StackedTransition(transition.action, transition.reward, transition.discount, steps)
            if self._priority is not None:
                transition = transition._replace(
                    observation=self._stacks(places), next_observation=self._stacks(transition.next_observation)
                )
            priorities = priorities_of(self._priority, params, transition, size)
            columns = zip(*self._packing.rest.pack(rest), strict=True)
            for environment, priority, mine in zip(places[:, 0], priorities, columns, strict=True):
                done[environment].append((priority, list(mine)))
            self._items += size
        for writer, frame, first, items in zip(self._writers, step.observation, step.first, done, strict=True):
            self._write(writer, frame, first, items)
            flush(writer, self._table.name, IN_FLIGHT, self._stopped)
        self._row += 1
        return before // PULL_STEPS != self._items // PULL_STEPS

    def _stacks(self, places: np.ndarray) -> np.ndarray:
        """Returns the stacks of frames up to `places`, [b, stack, ...]; `places` [b, 3] are as `append` makes them."""
        environment, row, opened = places.T
        rows = np.maximum(row[:, None] - self._lags, opened[:, None])
        return self._recent[rows % len(self._recent), environment[:, None]]

    def _write(self, writer: Any, frame: np.ndarray, first: bool, items: list[tuple[float, list[np.ndarray]]]) -> None:
        """Adds a frame to its stream, and the items that it completes.

        If the frame is an episode's `first`, the items end with the frame before it; else they end with this frame.
        """
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


def writer(
    client: Any, table: TableSpec, structure: Structure, priority: Priority | None, stopped: Callable[[], bool]
) -> StackedTransitionWriter:
    return StackedTransitionWriter(client, table, structure, priority, stopped)


def ring(table: TableSpec, structure: Structure) -> TransitionCut:
    """Returns the Cut of the table's items: how they lie in rings of rows."""
    item: Transition = structure.unflatten(structure.leaves)
    frame = jax.ShapeDtypeStruct(item.observation.shape[1:], item.observation.dtype)
    single = Structure(item._replace(observation=frame, next_observation=frame))
    cut = TransitionCut(table.items, single)  # type: ignore[arg-type]
    cut.pull_period = PULL_STEPS
    return cut
