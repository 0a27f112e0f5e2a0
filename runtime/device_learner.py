"""A learner whose actor is part of its compiled program: act, step, sample and update, over and over, with nothing on
the host but what it records and saves."""

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from agents.agent import AXIS, Agent, Feedback, Sample, Version
from environments.environment import EnvironmentFailure, Episodes
from runtime import devices
from runtime.learner import Learner
from runtime.rollout import Acting, Rollout

STEPS_AT_ONCE = 4096  # environment steps that one call makes, about: Python costs little beside so many


class Made(NamedTuple):
    """What a call of the program made."""

    env_steps: Any  # int32
    updates: Any  # int32
    ended: Any  # Ended [rows, B], B of all devices


def blocks_program(mesh: Any, agent: Agent, rollout: Rollout, seed: int, num_envs: int, members: int) -> tuple[Any, int]:
    """A compiled program(state, step, acting, env_steps) -> (state, step, acting, metrics, Made), and how many rows it
    makes: blocks by the newest parameters, and the updates on them, in turns.

    State, step and acting are donated. `env_steps`, float32, are those that the run had made before; `members`: of a
    population that shares the environments, whose steps are counted as one member's.
    """
    items, batch = agent.table.items, agent.batch_size
    count = max(1, batch // num_envs)  # blocks to a batch
    parts = max(1, count * num_envs // batch)  # batches to a block
    rows = count * items.length  # type: ignore[union-attr]
    turns = max(1, STEPS_AT_ONCE // (rows * num_envs))

    def turn(carry: Any, base: Any) -> tuple[Any, Any]:
        state, step, acting, made = carry
        acting, sample, ended = rollout.blocks(acting, agent.policy(state), count)

        def update(carry: Any, sample: Sample) -> tuple[Any, Any]:
            state, step, made = carry
            if hasattr(state, "env_steps"):
                now = base + (made // members).astype(jnp.float32)
                state = state._replace(env_steps=jnp.broadcast_to(now, state.env_steps.shape))
            state, feedback = agent.update(state, devices.update_key(seed, step), sample)
            live = jax.lax.psum(jnp.sum(~sample.steps.first[1:], dtype=jnp.int32), AXIS)
            return (state, step + 1, made + live), feedback.metrics

        if parts == 1:
            (state, step, made), metrics = update((state, step, made), sample)
        else:
            split = Sample(
                jax.tree.map(lambda x: jnp.moveaxis(x.reshape(x.shape[0], parts, -1, *x.shape[2:]), 1, 0), sample.steps),
                jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), sample.memory),
            )
            (state, step, made), metrics = jax.lax.scan(update, (state, step, made), split)
            metrics = jax.tree.map(lambda x: x[-1], metrics)
        return (state, step, acting, made), (metrics, ended)

    def program(state: Any, step: Any, acting: Acting, env_steps: Any) -> tuple[Any, ...]:
        carry = state, step, acting, jnp.int32(0)
        (state, step, acting, made), (metrics, ended) = jax.lax.scan(
            lambda carry, _: turn(carry, env_steps), carry, length=turns
        )
        metrics, ended = (
            jax.tree.map(lambda x: x[-1], metrics),
            jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), ended),
        )
        return state, step, acting, metrics, Made(made, jnp.int32(turns * parts), ended)

    whole, acting = mesh.REPLICATED, rollout.specs(mesh)
    made = Made(whole, whole, mesh.COLUMNS)
    return mesh.compile(
        program, (whole, whole, acting, whole), (whole, whole, acting, whole, made), donate_argnums=(0, 1, 2)
    )


class DeviceLearner(Learner):
    """A Learner whose batches say only that it is to go on."""

    def __init__(self, *args: Any, program: Any, start: Any, played: Callable[[Version, int, Episodes], None], members: int = 1, **kwargs: Any):
        """The arguments of a Learner, and:

        Args:
          program: as `blocks_program` gives it.
          start: (params on the devices) -> Acting, compiled.
          played: told of a version, the transitions that were made, and the episodes that ended.
        """
        super().__init__(*args, **kwargs)
        self._program, self._played, self._members = program, played, members
        self._acting = start(self._policy(self.state))
        self._left = 0  # transitions that are no whole one of each member

    def _compile(self, agent: Agent, seed: int, source: Any) -> Callable[..., Any]:
        """Its program has the updates."""
        return lambda *_: None

    def run(self, batches: Iterator[Any]) -> Iterator[tuple[Feedback, dict[str, Any]]]:
        for _ in batches:
            base = self._mesh.put(np.float32(self.version.env_steps))
            self.state, self._step, self._acting, metrics, made = self._program(
                self.state, self._step, self._acting, base
            )
            env_steps, updates = (int(x) for x in self._mesh.host((made.env_steps, made.updates)))  # waits for it
            if not self._mesh.host(self._acting.finite):
                raise EnvironmentFailure("an environment on the devices gave an observation or a reward that is not finite")
            each, self._left = divmod(self._left + env_steps, self._members)
            before = self.version.learner_steps
            self.version = Version(before + updates, self.version.env_steps + each)
            self._played(self.version, env_steps, episodes_of(self._mesh.fetch(made.ended, self._mesh.COLUMNS)))
            if before // self._publish_period != self.version.learner_steps // self._publish_period:
                self.publish()
            yield Feedback(metrics), {"wait_seconds": 0.0, "lag": 0.0}


def episodes_of(ended: Any) -> Episodes:
    """The episodes that ended, in the order in which they did, of an Ended [rows, B] on the host."""
    row, environment = np.nonzero(ended.ended)
    scores = ended.scores
    return Episodes(
        environment.tolist(),
        scores.returns[row, environment].astype(float).tolist(),
        scores.lengths[row, environment].tolist(),
    )
