"""Divides rewards by the running standard deviation of discounted returns, so that values are of order 1 in any task.

PPO's code does this, but its paper does not say so: Engstrom et al. 2020, https://arxiv.org/abs/2005.12729, section 3.
An actor sums up each episode's discounted rewards as it goes: G_t = gamma G_{t-1} + r_t, and 0 at the episode's first
observation. The learner divides rewards by the standard deviation of all G_t that it has seen.

Every function takes a config with `normalize_rewards` and `discount`, or what `init` or `start` made from one. If
`normalize_rewards` is false these are (), and rewards are left alone.
"""

from typing import Any

import chex
import jax.numpy as jnp

from agents.agent import Extras, Step, TimeStep
from agents.parts import normalizer
from agents.parts.normalizer import LIMIT, Normalizer


def start(config: Any, num_envs: int) -> Any:
    """Returns each environment's G before its first observation, float32 [B]."""
    return jnp.zeros(num_envs) if config.normalize_rewards else ()


def follow(config: Any, discounted_return: Any, timestep: TimeStep) -> Any:
    """Returns G_t, [B], from G_{t-1} and the timestep that arrived at time t."""
    if not config.normalize_rewards:
        return ()
    return jnp.where(timestep.first, 0.0, config.discount * discounted_return + timestep.reward)


def keep(discounted_return: Any) -> Extras:
    """Returns the extras that an actor must keep for `seen`."""
    return {} if isinstance(discounted_return, tuple) else {"discounted_return": discounted_return}


def init(config: Any) -> Any:
    """Returns the learner's statistics of G before it has seen any: a Normalizer that divides by 1."""
    return normalizer.init(()) if config.normalize_rewards else ()


def seen(config: Any, steps: Step) -> Any:
    """Returns the statistics of G in one batch, over all devices; `normalizer.join` adds them to those so far."""
    return normalizer.of(steps.extras["discounted_return"][:-1].reshape(-1)) if config.normalize_rewards else ()


def scaled(statistics: Any, rewards: Any) -> chex.Array:
    """Divides rewards, of any shape, by the standard deviation of G, and clips them to [-LIMIT, LIMIT]."""
    if not isinstance(statistics, Normalizer):
        return rewards
    return jnp.clip(rewards / jnp.sqrt(statistics.variance + 1e-8), -LIMIT, LIMIT)
