"""Transitions: items of n steps of one environment each, which a replay keeps and samples many times."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from agents.agent import (
    Agent,
    DiscreteActions,
    EnvironmentSpec,
    Params,
    Sample,
    Stacks,
    Step,
    TableSpec,
    Transition,
    Transitions,
)
from replay.flushing import flush
from replay.rings import NEVER, Look
from replay.rows import PULL_ITEMS, Priority, Row, never
from replay.structures import Packing, Structure, step_structs

IN_FLIGHT = 16  # transitions that may be on their way to the table while an actor goes on
# Transitions that an actor keeps until it computes their priorities and writes them, all at once; at least one of each
# environment. Both cost Python as much for a few as for one. Horgan et al. 2018, appendix D, keep 50.
LOCAL_ITEMS = 16
ITEM_BYTES = 1_500  # about what Reverb needs for an item besides its data, as tests/replay/test_memory.py measures


def structure(agent: Agent, spec: EnvironmentSpec, num_envs: int) -> Structure:
    """Returns the structure of one Transition, without a batch axis."""
    del num_envs
    step, _ = step_structs(agent, spec, 1)
    number = jax.ShapeDtypeStruct((), np.float32)
    observation, action = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), step[:2])
    return Structure(Transition(observation, action, number, number, observation))


def sequences_per_item(structure: Structure) -> int:
    del structure
    return 1


def refuse(agent: Agent, run: Any, spec: EnvironmentSpec) -> None:
    """Raises ValueError if `n_step` is more than an episode can have steps."""
    refuse_longer(agent, run, spec, "n_step", agent.table.items.n)  # type: ignore[union-attr]


def refuse_longer(agent: Agent, run: Any, spec: EnvironmentSpec, field: str, steps: int) -> None:
    """Raises ValueError if no episode can have as many `steps` as the Config's `field` asks for."""
    if spec.max_episode_steps is not None and steps > spec.max_episode_steps:
        raise ValueError(
            f"config.{field}={steps} is above {spec.max_episode_steps}, the most steps of an episode of {run.env}"
        )


def item_bytes(agent: Agent, spec: EnvironmentSpec) -> int:
    """Returns about how many bytes an item takes in Reverb, if its data cannot be compressed (see docs/replay.md)."""
    del agent
    return 2 * observation_bytes(spec) + action_bytes(spec) + ITEM_BYTES


def observation_bytes(spec: EnvironmentSpec) -> int:
    return int(np.prod(spec.observation_shape)) * np.dtype(spec.observation_dtype).itemsize


def action_bytes(spec: EnvironmentSpec) -> int:
    """Returns the bytes of an action, a reward and a discount."""
    return 8 + 4 * (1 if isinstance(spec.actions, DiscreteActions) else int(np.prod(spec.actions.shape)))


def counter(table: TableSpec) -> tuple[str, int]:
    """Returns the name of the Reverb table whose items count transitions, and how many each item stands for."""
    return table.name, 1


def items_at_once(table: TableSpec, num_envs: int) -> int:
    """Returns the most items for which the writer computes priorities at once."""
    del table
    return max(LOCAL_ITEMS, num_envs)


def packing(table: TableSpec, structure: Structure) -> Packing:
    """Returns how items lie in Reverb's columns, and how batches are read from these."""
    del table
    return Packing(structure)


def priorities_of(priority: Priority | None, params: Params, items: Any, size: int) -> np.ndarray:
    """Returns the priorities of new items, float64 [size]: 1 for all if `priority` is None."""
    return np.ones(size) if priority is None else np.asarray(priority(params, items), np.float64)


class NStep:
    """Turns rows of a batch of environments into the n-step transitions that each row completes.

    A row's own transition is known only when the next row comes. That row brings o_{t+1}; if it is a `first`, the row
    before it closed an episode, and its action was thrown away. A window of n steps never reaches into the next
    episode: those that are open at an episode's last observation end there, with fewer than n steps.
    """

    def __init__(self, items: Transitions | Stacks):
        self._n, self._gamma = items.n, np.float32(items.discount)
        self._previous: Step | None = None

    def _start(self, step: Step) -> None:
        def slots(x):
            return np.zeros((self._n, *np.shape(x)), np.asarray(x).dtype)

        # Each open window has a slot, which holds its first observation and action, and its return and discount so far.
        self._observation, self._action = slots(step.observation), slots(step.action)
        self._reward, self._discount = slots(step.reward), slots(step.discount)
        self._open = np.zeros((self._n, len(step.first)), bool)
        self._slot = 0

    def _close(self, slot: int, which: np.ndarray, next_observation: np.ndarray) -> Transition:
        self._open[slot] &= ~which
        index = slice(None) if which.all() else which
        return Transition(
            self._observation[slot][index].copy(),
            self._action[slot][index].copy(),
            self._reward[slot][index].copy(),
            self._discount[slot][index].copy(),
            next_observation[index],
        )

    def append(self, step: Step) -> list[Transition]:
        """Adds row t, [B, ...]; returns the transitions that it completes, a list of Transitions [b, ...] with b <= B.

        They end at o_t or, in environments where row t is a `first`, at the observation before it.
        """
        previous, self._previous = self._previous, step
        if previous is None:
            self._start(step)
            return []
        ended, done = step.first, []
        if ended.any():
            for lag in range(self._n):
                slot = (self._slot + lag) % self._n  # from the oldest window to the newest
                which = self._open[slot] & ended
                if which.any():
                    done.append(self._close(slot, which, previous.observation))
        if ended.all():
            return done
        self._reward += self._discount * previous.reward
        self._discount *= self._gamma * previous.discount
        slot = self._slot
        self._observation[slot], self._action[slot] = previous.observation, previous.action
        self._reward[slot], self._discount[slot] = previous.reward, self._gamma * previous.discount
        self._open[slot] = ~ended
        self._slot = (slot + 1) % self._n
        which = self._open[self._slot]  # the windows that now have n steps
        if which.any():
            done.append(self._close(self._slot, which.copy(), step.observation))
        return done


class TransitionWriter:
    """Writes one item per environment and step to Reverb: an n-step Transition, packed.

    It writes LOCAL_ITEMS at a time, or as many as there are environments if these are more.
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
        self._table, self._packing, self._priority, self._stopped = table, Packing(structure), priority, stopped
        self._n_step = NStep(table.items)  # type: ignore[arg-type]
        self._writer = client.trajectory_writer(num_keep_alive_refs=1)
        # Calls Reverb's C++ writer directly: to find columns in nested structures, its Python layer takes as much time
        # as all else that writing an item takes. A packed item is a flat list.
        self._unnested: Any = self._writer._writer
        self._local: list[Transition] = []
        self._items = 0

    def append(self, row: Row) -> bool:
        """Adds a row, as every Writer does; returns True each time another PULL_ITEMS items were written.

        On return, at most IN_FLIGHT of the items that were written are not in the table yet.
        """
        before, size = self._items, max(LOCAL_ITEMS, len(row.step.first))
        self._local += self._n_step.append(row.step)
        while sum(len(transition.reward) for transition in self._local) >= size:
            together = jax.tree.map(lambda *x: np.concatenate(x), *self._local)
            self._local = [jax.tree.map(lambda x: x[size:], together)]
            self._write(jax.tree.map(lambda x: x[:size], together), row.params)
        return before // PULL_ITEMS != self._items // PULL_ITEMS

    def _write(self, transition: Transition, params: Params) -> None:
        priorities = priorities_of(self._priority, params, transition, len(transition.reward))
        for row, priority in zip(zip(*self._packing.pack(transition), strict=True), priorities, strict=True):
            columns = [[reference] for reference in self._unnested.Append(list(row))]
            self._unnested.CreateItem(self._table.name, priority, columns, [True] * len(columns))
            self._items += 1
            # Not after each item: to ask what is in flight costs a third of what writing an item does.
            if self._items % (IN_FLIGHT // 2) == 0:
                flush(self._writer, self._table.name, IN_FLIGHT // 2, self._stopped)

    def close(self) -> None:
        self._writer.close()


def writer(
    client: Any, table: TableSpec, structure: Structure, priority: Priority | None, stopped: Callable[[], bool]
) -> TransitionWriter:
    return TransitionWriter(client, table, structure, priority, stopped)


class TransitionCut:
    """The Cut (replay/rings.py) of transitions: how they lie in a ring of rows. The anchor is the row of o_t."""

    memory_gap = 0
    pull_period = PULL_ITEMS

    def __init__(self, items: Transitions | Stacks, structure: Structure):
        """`structure` is that of one Transition, whose observations are not stacked."""
        self._n, self._gamma = items.n, np.float32(items.discount)
        self._stack: int = getattr(items, "stack", 1)
        self.back, self.ahead = self._stack - 1, items.n
        item: Transition = structure.unflatten(structure.leaves)
        self._rest = Packing(Structure((item.action, item.reward, item.discount)))
        self.kept_structs = item.observation, self._rest.structure.leaves
        self.memory_structs: list[Any] = []

    def kept(self, step: Step, xp: Any = np) -> tuple[Any, list[Any]]:
        return step.observation, self._rest.pack((step.action, step.reward, step.discount), xp)

    def kept_memory(self, memory: Any, xp: Any = np) -> list[Any]:
        return []

    def opens(self, position: np.ndarray) -> np.ndarray:
        return np.zeros(position.shape, bool)

    def completed_by(self, position: Any, over: Any, xp: Any = np) -> Any:
        row = np.arange(len(position))[:, None]
        # The row before a `first` is no anchor: it closed its episode, and its action was thrown away.
        return xp.where(over == row + 1, NEVER, xp.minimum(row + self._n, over))

    def cut(self, kept: Any, look: Look) -> Sample:
        observation, rest = kept
        ahead = jnp.arange(self._n + 1)
        place = look.position(ahead)
        same = jnp.cumprod(place == place[:, :1] + ahead, axis=1).astype(bool)  # in the anchor's episode
        action, rewards, discounts = self._rest.unpack(look.rows(rest, ahead[:-1]))
        reward, discount = rewards[:, 0], self._gamma * discounts[:, 0]
        for k in range(1, self._n):
            reward = jnp.where(same[:, k + 1], reward + discount * rewards[:, k], reward)
            discount = jnp.where(same[:, k + 1], discount * (self._gamma * discounts[:, k]), discount)
        steps, start = same[:, 1:].sum(axis=1), place[:, :1]
        lags = jnp.arange(1 - self._stack, 1)

        def frames(end):
            """Returns the newest frames up to offsets `end` [B]; the episode's first is repeated where it has fewer."""
            return look.rows(observation, jnp.maximum(end[:, None] + lags, -start))

        observations = frames(jnp.zeros_like(steps)), frames(steps)
        if self._stack == 1:
            observations = jax.tree.map(lambda x: x[:, 0], observations)
        return Sample(Transition(observations[0], action[:, 0], reward, discount, observations[1]))


def ring(table: TableSpec, structure: Structure) -> TransitionCut:
    """Returns the Cut of the table's items: how they lie in rings of rows."""
    return TransitionCut(table.items, structure)  # type: ignore[arg-type]
