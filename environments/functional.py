"""Environments that are JAX functions. `--placement=device` steps them inside the compiled program that learns; every
other placement, and every evaluation, steps them as it does any environment, on the CPU.

Row t of environment i draws what is random in it from the seed, t and i alone: not from how many environments are
stepped together, nor from where.
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

ENVIRONMENTS = 0x5EED  # folded into the seed


class Functional(NamedTuple):
    """One environment as pure functions, which know nothing of what comes after an episode."""

    spec: EnvironmentSpec
    reset: Callable[[Any], tuple[Any, Any]]  # key -> (state, observation)
    # (key, state, action) -> (state, observation, reward, terminated, truncated)
    step: Callable[[Any, Any, Any], tuple[Any, Any, Any, Any, Any]]


class Scores(NamedTuple):
    """Of B environments, since their episodes began: undiscounted, unclipped rewards and actions."""

    returns: Any  # float32 [B]
    lengths: Any  # int32 [B]


class Running(NamedTuple):
    """B environments on their way."""

    states: Any  # of each array [B, ...]
    timestep: TimeStep  # [B, ...], the newest
    scores: Scores
    count: Any  # uint32, steps made


class Ended(NamedTuple):
    """Which of B episodes a step ended, and how they did."""

    ended: Any  # bool [B]
    scores: Scores


def make(name: str, *, max_steps: int | None = None, keywords: Mapping[str, Any] | None = None) -> Functional:
    """The environment called `name`: `gymnax:ID` or `brax:NAME`.

    Args:
      max_steps: an episode is truncated after so many steps, if the environment has not ended it before.
      keywords: what it is to be made of otherwise than it is by itself.

    Raises:
      EnvironmentFailure: there is none, or no such keyword.
    """
    with making(name):
        backend, _, inner = name.partition(":")
        if backend == "brax":  # each brings much with it
            from environments import brax as maker
        else:
            from environments import gymnax as maker  # type: ignore[no-redef]
        environment = maker.make(inner, keywords or {})
        return environment if max_steps is None else cut(environment, max_steps)


def cut(environment: Functional, max_steps: int) -> Functional:
    """The same, its episodes truncated after `max_steps` steps."""
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
    """The function of environments.environment.REWARD_CLIPS by that name, of JAX's arrays."""
    clip = REWARD_CLIPS[name]
    return clip and functools.partial(clip, xp=jnp)


def keys(seed: int, count: Any, ids: Any) -> Any:
    """Of row `count` of each of the environments `ids` [B]."""
    # Not the keys that an actor of this seed acts with.
    row = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), ENVIRONMENTS), count)
    return jax.vmap(functools.partial(jax.random.fold_in, row))(ids)


def step_or_reset(environment: Functional, keys: Any, states: Any, action: Any, resets: Any) -> tuple[Any, ...]:
    """Steps B environments, each with its key; those where `resets` begin an episode, and what is said of them beside
    the observation is to be ignored. As `Functional.step`, of batches."""

    def one(key, state, action, reset):
        state, observation, *rest = environment.step(key, state, action)

        def choose(new: Any, old: Any) -> Any:
            # Of the kind that a reset gives, always: a compiled loop takes nothing else.
            return jnp.where(reset, new, old).astype(jnp.result_type(new))

        return *jax.tree.map(choose, environment.reset(key), (state, observation)), *rest

    return jax.vmap(one)(keys, states, action, resets)


def _reset_all(environment: Functional, seed: int, ids: Any) -> tuple[Any, Any]:
    """The first states and observations of environments `ids` [B]."""

    def strong(x):
        return jax.lax.convert_element_type(x, jnp.result_type(x))  # also what was a Python number

    return jax.tree.map(strong, jax.vmap(environment.reset)(keys(seed, jnp.uint32(0), ids)))


def start(environment: Functional, seed: int, ids: Any) -> Running:
    """B environments at the beginning of their first episodes; as `Environment.reset`."""
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
    """As `Environment.step`, to the bit: what answers an episode's last observation is thrown away, and the next row
    opens an episode. `clip`: of rewards, as agents see them."""
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
    """As other environments are stepped: from Python, on the CPU."""

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
