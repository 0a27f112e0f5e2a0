"""A learner whose actor is part of its compiled program: act, step, keep, sample and update, over and over, with
nothing on the host but what it records and saves."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import chex
import jax
import jax.numpy as jnp
import numpy as np

from agents.agent import AXIS, Agent, Feedback, Sample, State, Version
from environments.environment import EnvironmentFailure, Episodes
from environments.functional import Ended
from replay import filling
from replay.filling import COUNTED, FilledRings, Kept
from runtime import devices
from runtime.learner import Learner
from runtime.rollout import Acting, Rollout

STEPS_AT_ONCE = 16_384  # environment steps that one call makes, about; of 4,096, Python took a fifth of PPO's time
UPDATES_AT_ONCE = 256  # but no more updates: whoever ends the run waits for a call to end


class Made(NamedTuple):
    """What a call of a program made."""

    env_steps: chex.Array  # int32
    updates: chex.Array  # int32
    ended: Ended  # [rows, B], B of all devices


class Program(NamedTuple):
    """call(state, step, acting, kept, env_steps) -> (state, step, acting, kept, metrics, Made): compiled, all but
    `env_steps`, float32, donated. `env_steps` are those that the run had made before."""

    call: Callable[..., Any]
    rows: int  # that it makes of each environment


class Turn(Protocol):
    """Some rows, and the updates that are due by then."""

    def __call__(self, carry: Any, base: Any) -> tuple[Any, tuple[Any, Ended]]:
        """(state, step, acting, kept, metrics, env_steps, updates) -> the same, the last update's metrics, and the
        episodes that ended. A turn that may make no update carries the metrics on; of any other they are ()."""
        ...


def _compile(mesh: Any, rollout: Rollout, kept_specs: Any, turn: Turn, turns: int, metrics_of: Any) -> Any:
    """Of `turns` turns."""

    def program(state: Any, step: Any, acting: Acting, kept: Any, env_steps: Any) -> tuple[Any, ...]:
        zero = jnp.int32(0)
        carry = state, step, acting, kept, metrics_of(state, acting, kept), zero, zero
        carry, (metrics, ended) = jax.lax.scan(lambda carry, _: turn(carry, env_steps), carry, length=turns)
        *rest, _, made, updates = carry
        metrics = jax.tree.map(lambda x: x[-1], metrics)
        ended = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), ended)
        return *rest, metrics, Made(made, updates, ended)

    whole, acting = mesh.REPLICATED, rollout.specs(mesh)
    made = Made(whole, whole, mesh.COLUMNS)
    inputs = whole, whole, acting, kept_specs
    return mesh.compile(program, (*inputs, whole), (*inputs, whole, made), donate_argnums=(0, 1, 2, 3))


def _at(state: State, env_steps: Any) -> State:
    """The state, told how many environment steps the run has made, if it asks."""
    if not hasattr(state, "env_steps"):
        return state
    return state._replace(env_steps=jnp.broadcast_to(env_steps, jnp.shape(state.env_steps)))


def _live(first: Any) -> Any:
    """Transitions among rows, of all devices: those that are no first."""
    return jax.lax.psum(jnp.sum(~first, dtype=jnp.int32), AXIS)


def blocks_program(mesh: Any, agent: Agent, rollout: Rollout, seed: int, most_steps: int, members: int = 1) -> Program:
    """Blocks by the newest parameters, and the updates on them, in turns.

    Args:
      most_steps: that one call makes, if one turn makes no more.
      members: of a population that shares the environments, whose steps are counted as one member's.
    """
    items, batch, num_envs = agent.table.items, agent.batch_size, rollout.num_envs
    count = max(1, batch // num_envs)  # blocks to a batch
    parts = max(1, num_envs // batch)  # batches to a block
    rows = count * items.length  # type: ignore[union-attr]
    turns = max(1, min(most_steps // (rows * num_envs), UPDATES_AT_ONCE // parts))

    def update(base: Any, carry: Any, sample: Sample) -> tuple[Any, Any]:
        state, step, made = carry
        state = _at(state, base + (made // members).astype(jnp.float32))
        state, feedback = agent.update(state, devices.update_key(seed, step), sample)
        return (state, step + 1, made + _live(sample.steps.first[1:])), feedback.metrics

    def turn(carry: Any, base: Any) -> tuple[Any, tuple[Any, Ended]]:
        state, step, acting, kept, none, made, updates = carry
        acting, sample, ended = rollout.blocks(acting, agent.policy(state), count)
        split = Sample(
            jax.tree.map(lambda x: jnp.moveaxis(x.reshape(len(x), parts, -1, *x.shape[2:]), 1, 0), sample.steps),
            jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), sample.memory),
        )
        (state, step, made), metrics = jax.lax.scan(
            functools.partial(update, base), (state, step, made), split, unroll=parts == 1
        )
        metrics = jax.tree.map(lambda x: x[-1], metrics)
        return (state, step, acting, kept, none, made, updates + parts), (metrics, ended)

    return Program(_compile(mesh, rollout, mesh.REPLICATED, turn, turns, lambda *_: ()), turns * rows)


def _zeros(function: Callable[[], Any]) -> Any:
    """Of the shapes of what a function gives, which is not computed."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(function))


def replay_program(
    mesh: Any, agent: Agent, rollout: Rollout, seed: int, most_steps: int, source: FilledRings
) -> Program:
    """Rows by the newest parameters into a replay, and the updates that are owed then, in turns: as many as
    `samples_per_insert` of the agent's table says, or where it says nothing as often as an actor pulls.

    Args:
      most_steps: that one call makes, if one turn makes no more.
      source: the replay.
    """
    table, batch, ring = agent.table, agent.batch_size, source.ring
    ratio = table.samples_per_insert or batch / ring.cut.pull_period
    in_turn = ring.chunk * rollout.num_envs
    turns = max(1, min(most_steps // in_turn, int(UPDATES_AT_ONCE * batch / (in_turn * ratio))))
    drawing = devices.drawing_update(mesh, agent, seed, source)

    def turn(carry: Any, base: Any) -> tuple[Any, tuple[Any, Ended]]:
        state, step, acting, kept, metrics, made, updates = carry
        params = agent.policy(state)
        acting, (steps, memory, ended) = rollout.rows(acting, params, ring.chunk)
        rows, masses, filled, completed = filling.append(
            ring, agent.priority, kept.rows, kept.masses, kept.filling, steps, memory, params
        )
        made += _live(steps.first)
        kept = _insert(kept._replace(rows=rows, masses=masses, filling=filled), jax.lax.psum(completed, AXIS))
        enough = (kept.inserted >= table.min_size) & (jax.lax.pmin(masses.count[0], AXIS) > 0)

        def is_due(carry: Any) -> Any:
            return enough & (carry[2].owed >= batch)

        def update(carry: Any) -> Any:
            state, step, kept, _, updates = carry
            state = _at(state, base + made.astype(jnp.float32))
            (state, step, masses), metrics = drawing((state, step, kept.masses), kept.rows)
            kept = kept._replace(masses=masses, owed=kept.owed - batch, ranked=kept.ranked.at[1].add(batch))
            return state, step, kept, metrics, updates + 1

        state, step, kept, metrics, updates = jax.lax.while_loop(is_due, update, (state, step, kept, metrics, updates))
        return (state, step, acting, kept, metrics, made, updates), (metrics, ended)

    def _insert(kept: Kept, count: Any) -> Kept:
        """Has so many more items; what was inserted before there were `min_size` is not owed any samples."""
        inserted = jnp.minimum(kept.inserted + count, COUNTED)
        owing = jnp.clip(kept.inserted + count - table.min_size, 0, count)
        kept = kept._replace(inserted=inserted, owed=kept.owed + ratio * owing.astype(jnp.float32))
        if not ring.ranked:
            return kept
        places = ring.anchors * ring.devices
        stale = (inserted >= 2 * kept.ranked[0]) | (kept.ranked[1] >= places)
        masses = jax.lax.cond(stale, ring.rank, lambda masses: masses, kept.masses)
        ranked = jnp.where(stale, jnp.stack([inserted, jnp.int32(0)]), kept.ranked)
        return kept._replace(masses=masses, ranked=ranked)

    def metrics_of(state: Any, acting: Acting, kept: Kept) -> Any:
        return _zeros(lambda: drawing((state, jnp.uint32(0), kept.masses), kept.rows)[1])

    return Program(_compile(mesh, rollout, source.kept_specs, turn, turns, metrics_of), turns * ring.chunk)


class Replay(Protocol):
    """What a program keeps, between its calls."""

    def give(self) -> Any:
        """As a program takes it, whose it is from then on."""

    def take(self, kept: Any, rows: int) -> None:
        """As it was given back, after so many rows."""


class DeviceLearner(Learner):
    """A Learner whose batches say only that it is to go on."""

    def __init__(
        self,
        *args: Any,
        program: Program,
        replay: Replay,
        start: Callable[[Any], Acting],
        played: Callable[[Version, int, Episodes], None],
        members: int = 1,
        **kwargs: Any,
    ):
        """The arguments of a Learner, and:

        Args:
          replay: has what the program keeps.
          start: of parameters on the devices, compiled.
          played: told of a version, the transitions that were made, and the episodes that ended.
          members: of a population that shares the environments.
        """
        super().__init__(*args, **kwargs)
        self._program, self._replay, self._played, self._members = program, replay, played, members
        self._acting = start(self._policy(self.state))
        self._left = 0  # transitions that are no whole one of each member

    def _compile(self, agent: Agent, seed: int, source: Any) -> Callable[..., Any]:
        """Its program has the updates."""
        return lambda *_: None

    def run(self, batches: Iterator[Any]) -> Iterator[tuple[Feedback, dict[str, Any]]]:
        """As a Learner's; yields after each call of the program that made an update."""
        for _ in batches:
            base = self._mesh.put(np.float32(self.version.env_steps))
            self.state, self._step, self._acting, kept, metrics, made = self._program.call(
                self.state, self._step, self._acting, self._replay.give(), base
            )
            self._replay.take(kept, self._program.rows)
            env_steps, updates = (int(x) for x in self._mesh.host((made.env_steps, made.updates)))  # waits for it
            if not self._mesh.host(self._acting.finite):
                raise EnvironmentFailure(
                    "an environment on the devices gave an observation or a reward that is not finite"
                )
            each, self._left = divmod(self._left + env_steps, self._members)
            before = self.version.learner_steps
            self.version = Version(before + updates, self.version.env_steps + each)
            self._played(self.version, env_steps, episodes_of(self._mesh.fetch(made.ended, self._mesh.COLUMNS)))
            if not updates:
                continue
            if before // self._publish_period != self.version.learner_steps // self._publish_period:
                self.publish()
            yield Feedback(metrics), {"wait_seconds": 0.0, "lag": 0.0}


def episodes_of(ended: Ended) -> Episodes:
    """The episodes that ended, in the order in which they did, of an Ended [rows, B] on the host."""
    row, environment = np.nonzero(ended.ended)
    scores = ended.scores
    return Episodes(
        environment.tolist(),
        scores.returns[row, environment].astype(float).tolist(),
        scores.lengths[row, environment].tolist(),
    )
