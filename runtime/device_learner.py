"""A learner whose actor is part of its compiled program, for --placement=device.

The program acts, steps the environments, keeps, samples and updates, over and over. The host only records and saves.
"""

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

STEPS_AT_ONCE = 16_384  # environment steps of one call, about; with 4,096, Python took a fifth of PPO's time
UPDATES_AT_ONCE = 256  # most updates of one call: whoever ends the run waits for the call under way


class Made(NamedTuple):
    """The counts and the ended episodes of one call of a program."""

    env_steps: chex.Array  # int32
    updates: chex.Array  # int32
    ended: Ended  # [rows, B], where B counts the environments of all devices


class Program(NamedTuple):
    """A compiled program that makes experience and learns from it.

    call(state, step, acting, kept, env_steps) -> (state, step, acting, kept, metrics, Made). All arguments are donated
    but `env_steps`, float32: the environment steps that the run had made before the call. `metrics` are those of the
    last update.
    """

    call: Callable[..., Any]
    rows: int  # rows that one call makes of each environment


class Turn(Protocol):
    """One turn of a program: it makes some rows, and then the updates that are due."""

    def __call__(self, carry: Any, base: Any) -> tuple[Any, tuple[Any, Ended]]:
        """Returns the next carry, and (the metrics of the last update, the episodes that ended).

        Args:
          carry: (state, step, acting, kept, metrics, env_steps, updates), the last two counted in this call. If turns
            always make an update, the carried metrics are (); else they are those of the last update so far.
          base: float32, the environment steps that the run had made before the call.
        """
        ...


def _compile(mesh: Any, rollout: Rollout, kept_specs: Any, turn: Turn, turns: int, metrics_of: Any) -> Any:
    """Compiles a program of `turns` turns; `metrics_of` gives the metrics that the first turn is carried."""

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
    """Returns the state with the run's environment steps in its field `env_steps`, if it has such a field."""
    if not hasattr(state, "env_steps"):
        return state
    return state._replace(env_steps=jnp.broadcast_to(env_steps, jnp.shape(state.env_steps)))


def _live(first: Any) -> Any:
    """Counts the transitions among the rows of all devices: the rows that do not open an episode."""
    return jax.lax.psum(jnp.sum(~first, dtype=jnp.int32), AXIS)


def blocks_program(mesh: Any, agent: Agent, rollout: Rollout, seed: int, most_steps: int, members: int = 1) -> Program:
    """Returns a program whose turns make blocks with the newest parameters, and then the updates on them.

    Args:
      most_steps: the most environment steps of one call, unless a single turn makes more.
      members: how many members of a population share the environments; the agent is told the steps of one member.
    """
    items, batch, num_envs = agent.table.items, agent.batch_size, rollout.num_envs
    count = max(1, batch // num_envs)  # blocks in a batch
    parts = max(1, num_envs // batch)  # batches in a block
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
    """Returns zeros in the shapes of what a function returns, without computing it."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(function))


def replay_program(
    mesh: Any, agent: Agent, rollout: Rollout, seed: int, most_steps: int, source: FilledRings
) -> Program:
    """Returns a program whose turns put rows, made with the newest parameters, into a replay and make the due updates.

    The table's `samples_per_insert` says how many updates are due. If it is 0, one is due for every `pull_period` new
    items, which is how often an actor pulls elsewhere.

    Args:
      most_steps: the most environment steps of one call, unless a single turn makes more.
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

        def are_due(number: int) -> Callable[[Any], Any]:
            return lambda carry: enough & (carry[2].owed >= number * batch)

        def update(carry: Any) -> Any:
            state, step, kept, _, updates = carry
            state = _at(state, base + made.astype(jnp.float32))
            (state, step, masses), metrics = drawing((state, step, kept.masses), kept.rows)
            kept = kept._replace(masses=masses, owed=kept.owed - batch, ranked=kept.ranked.at[1].add(batch))
            return state, step, kept, metrics, updates + 1

        def update_unmeasured(carry: Any) -> Any:
            return *update(carry)[:3], carry[3], carry[4] + 1

        # Compiled twice: nobody reads the metrics of an update that is not a turn's last, and they take time.
        carry = state, step, kept, metrics, updates
        carry = jax.lax.while_loop(are_due(2), update_unmeasured, carry)
        state, step, kept, metrics, updates = jax.lax.while_loop(are_due(1), update, carry)
        return (state, step, acting, kept, metrics, made, updates), (metrics, ended)

    def _insert(kept: Kept, count: Any) -> Kept:
        """Counts `count` new items and the samples owed for them; the first `min_size` items are owed none."""
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
    """Holds what a program keeps, between the program's calls."""

    def give(self) -> Any:
        """Returns the `kept` to call the program with. The call is donated its memory."""

    def take(self, kept: Any, rows: int) -> None:
        """Takes the `kept` that the program returned, after it made `rows` rows of each environment."""


class DeviceLearner(Learner):
    """A Learner whose program makes its own experience: a batch tells it only to call the program once more."""

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
        """Takes the arguments of a Learner, and:

        Args:
          replay: holds what the program keeps.
          start: compiled; from parameters on the devices to the first Acting.
          played: called after each call of the program with (the new version, the transitions that the call made, the
            episodes that ended).
          members: how many members of a population share the environments.
        """
        super().__init__(*args, **kwargs)
        self._program, self._replay, self._played, self._members = program, replay, played, members
        self._acting = start(self._policy(self.state))
        self._left = 0  # transitions that were left when all so far were divided evenly among the members

    def _compile(self, agent: Agent, seed: int, source: Any) -> Callable[..., Any]:
        """Compiles nothing: the program makes the updates."""
        return lambda *_: None

    def run(self, batches: Iterator[Any]) -> Iterator[tuple[Feedback, dict[str, Any]]]:
        """Does as Learner.run does, and yields after each call of the program that made an update."""
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
    """Returns the episodes that ended, in the order in which they did, from an Ended [rows, B] on the host."""
    row, environment = np.nonzero(ended.ended)
    scores = ended.scores
    return Episodes(
        environment.tolist(),
        scores.returns[row, environment].astype(float).tolist(),
        scores.lengths[row, environment].tolist(),
    )
