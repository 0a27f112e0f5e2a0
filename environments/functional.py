"""Environments that are JAX functions.

`--placement=device` steps them inside the compiled program that learns. All other placements, and all evaluations, step
them from Python on the CPU, like any environment.

What is random in row t of environment i depends on the seed, t and i alone. It does not depend on how many environments
are stepped together, or on which device.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from agents.agent import EnvironmentSpec, TimeStep
from environments.environment import REWARD_CLIPS, Environment, making

ENVIRONMENTS = 0x5EED  # is folded into the seed's key, to give environments keys of their own


class Functional(NamedTuple):
    """One environment as pure functions. They do not reset it after an episode's end; `step_or_reset` does."""

    spec: EnvironmentSpec
    reset: Callable[[Any], tuple[Any, Any]]  # key -> (state, observation)
    # (key, state, action) -> (state, observation, reward, terminated, truncated)
    step: Callable[[Any, Any, Any], tuple[Any, Any, Any, Any, Any]]


class Scores(NamedTuple):
    """The returns and lengths so far of the episodes in B environments."""

    returns: Any  # float32 [B], sums of undiscounted, unclipped rewards
    lengths: Any  # int32 [B], in actions


class Running(NamedTuple):
    """The state of B environments between two steps."""

    states: Any  # the environments' states; each array is [B, ...]
    timestep: TimeStep  # [B, ...], the newest
    scores: Scores
    count: Any  # uint32 scalar, the number of the next row


class Ended(NamedTuple):
    """Which of B episodes ended at a step, and their scores."""

    ended: Any  # bool [B]
    scores: Scores


def make(name: str, *, max_steps: int | None = None, keywords: Mapping[str, Any] | None = None) -> Functional:
    """Makes the environment called `name`: `gymnax:ID` or `brax:NAME`.

    Args:
      max_steps: the number of steps after which an episode is truncated, if it has not ended before; None for no limit
        but the environment's own.
      keywords: settings that are to differ from the environment's defaults.

    Raises:
      EnvironmentFailure: there is no such environment or no such keyword.
    """
    with making(name):
        backend, _, inner = name.partition(":")
        if backend == "brax":  # only one is imported, since each imports much
            from environments import brax as maker
        else:
            from environments import gymnax as maker  # type: ignore[no-redef]
        environment = maker.make(inner, keywords or {})
        return environment if max_steps is None else cut(environment, max_steps)


def cut(environment: Functional, max_steps: int) -> Functional:
    """Returns the same environment with its episodes truncated after `max_steps` steps."""
    own = environment.spec.max_episode_steps
    if own is not None and own <= max_steps:
        return environment

    def reset(key):
        state, observation = environment.reset(key)
        return (state, jnp.int32(0)), observation

    def step(key, state, action):
        inner, observation, reward, terminated, truncated = environment.step(key, state[0], action)
        length = state[1] + 1
        over = truncated | (~terminated & (length >= max_steps))
        return (inner, length), observation, reward, terminated, over

    return Functional(dataclasses.replace(environment.spec, max_episode_steps=max_steps), reset, step)


def clip_of(name: str) -> Callable[[Any], Any] | None:
    """Returns the function `name` of environments.environment.REWARD_CLIPS, for JAX's arrays; None for no clipping."""
    clip = REWARD_CLIPS[name]
    return clip and functools.partial(clip, xp=jnp)


def keys(seed: int, count: Any, ids: Any) -> Any:
    """Returns the keys of row `count`, one for each of the environments `ids` [B]."""
    # The fold keeps them apart from the keys that an actor of the same seed acts with.
    row = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), ENVIRONMENTS), count)
    return jax.vmap(functools.partial(jax.random.fold_in, row))(ids)


def step_or_reset(environment: Functional, keys: Any, states: Any, action: Any, resets: Any) -> tuple[Any, ...]:
    """Steps B environments, each with its key, and returns what `Functional.step` does, as batches.

    Where `resets` is true the environment begins an episode instead. Its reward, terminated and truncated are to be
    ignored.
    """

    def one(key, state, action, reset):
        state, observation, *rest = environment.step(key, state, action)

        def choose(new: Any, old: Any) -> Any:
            # Always the dtype that a reset gives, since types must not change in a compiled loop.
            return jnp.where(reset, new, old).astype(jnp.result_type(new))

        return *jax.tree.map(choose, environment.reset(key), (state, observation)), *rest

    return jax.vmap(one)(keys, states, action, resets)


def _reset_all(environment: Functional, seed: int, ids: Any) -> tuple[Any, Any]:
    """Returns the first states and observations of the environments `ids` [B]."""

    def strong(x):
        return jax.lax.convert_element_type(x, jnp.result_type(x))  # so that Python numbers get a fixed type too

    return jax.tree.map(strong, jax.vmap(environment.reset)(keys(seed, jnp.uint32(0), ids)))


def start(environment: Functional, seed: int, ids: Any) -> Running:
    """Starts B environments at the beginning of their first episodes, as `Environment.reset` does."""
    size = len(ids)
    states, observation = _reset_all(environment, seed, ids)
    zeros, no = jnp.zeros(size), jnp.zeros(size, bool)
    return Running(
        states,
        TimeStep(observation, zeros, jnp.ones(size), ~no, no),
        Scores(zeros, jnp.zeros(size, jnp.int32)),
        jnp.uint32(1),
    )


def advance(
    environment: Functional, running: Running, action: Any, seed: int, ids: Any, clip: Callable[[Any], Any] | None
) -> tuple[Running, Ended]:
    """Makes one step, with results equal to those of `Environment.step` to the bit.

    An action that answers an episode's last observation is thrown away, and the next row begins an episode.

    Args:
      action: [B, ...].
      ids: the numbers of the environments among all of the run's, [B].
      clip: clips rewards for agents (`clip_of`).
    """
    first = running.timestep.last
    states, observation, reward, terminated, truncated = step_or_reset(
        environment, keys(seed, running.count, ids), running.states, action, first
    )
    reward = jnp.where(first, 0.0, reward)
    last = (terminated | truncated) & ~first
    scores = Scores(
        jnp.where(first, 0.0, running.scores.returns + reward), jnp.where(first, 0, running.scores.lengths + 1)
    )
    timestep = TimeStep(
        observation, clip(reward) if clip else reward, jnp.where(terminated & last, 0.0, 1.0), first, last
    )
    return Running(states, timestep, scores, running.count + 1), Ended(last, scores)


class FunctionalEnvironment(Environment):
    """A functional environment that is stepped from Python on the CPU, like other environments."""

    def __init__(self, environment: Functional, num_envs: int, seed: int):
        self.num_envs, self.spec = num_envs, environment.spec
        self._cpu = jax.local_devices(backend="cpu")[0]
        self._seed, self._ids = seed, np.arange(num_envs, dtype=np.uint32)
        self._reset_all = jax.jit(functools.partial(_reset_all, environment, seed))

        def step(states, count, ids, action, resets):
            return step_or_reset(environment, keys(seed, count, ids), states, action, resets)

        self._step_all = jax.jit(step, donate_argnums=(0,))

    def _reset(self) -> np.ndarray:
        self._count = 0
        with jax.default_device(self._cpu):
            self._states, observation = self._reset_all(self._ids)
        return np.asarray(observation)

    def _step(self, action: np.ndarray, resets: np.ndarray) -> tuple[Any, ...]:
        self._count += 1
        with jax.default_device(self._cpu):
            self._states, *said = self._step_all(self._states, np.uint32(self._count), self._ids, action, resets)
        observation, reward, terminated, truncated = (np.asarray(x) for x in said)
        return observation, reward, terminated, truncated, terminated | truncated
