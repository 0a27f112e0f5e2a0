"""Rewards divided by the running deviation of discounted returns, so that values are of order 1 whatever a task pays.

Engstrom et al. 2020, https://arxiv.org/abs/2005.12729, section 3, of what PPO's code does and its paper does not say.
While it plays, an actor sums up each episode's rewards, discounted: G_t = gamma G_{t-1} + r_t, from 0 at its first
observation. A learner divides by the standard deviation of all G_t that it has seen.

All functions take a config with `normalize_rewards` and `discount`, or what `init` or `start` made of one: () where
rewards are left alone.
"""

from typing import Any

import chex
import jax.numpy as jnp

from agents.agent import Extras, Step, TimeStep
from agents.parts import normalizer
from agents.parts.normalizer import LIMIT, Normalizer


def start(config: Any, num_envs: int) -> Any:
    """G of each environment before its first observation, float32 [B]."""
    return jnp.zeros(num_envs) if config.normalize_rewards else ()


def follow(config: Any, discounted_return: Any, timestep: TimeStep) -> Any:
    """G_t of G_{t-1}, both [B], and what arrived at time t."""
    if not config.normalize_rewards:
        return ()
    return jnp.where(timestep.first, 0.0, config.discount * discounted_return + timestep.reward)


def keep(discounted_return: Any) -> Extras:
    """What `seen` needs of acting."""
    return {} if isinstance(discounted_return, tuple) else {"discounted_return": discounted_return}


def init(config: Any) -> Any:
    """Statistics of G before anything was seen: a Normalizer that divides by 1."""
    return normalizer.init(()) if config.normalize_rewards else ()


def seen(config: Any, steps: Step) -> Any:
    """The statistics of a batch alone, that of all devices, which `normalizer.join` adds to those of all before it."""
    return normalizer.of(steps.extras["discounted_return"][:-1].reshape(-1)) if config.normalize_rewards else ()


def scaled(statistics: Any, rewards: Any) -> chex.Array:
    """The rewards, any shape, divided by the deviation of G, and clipped to [-LIMIT, LIMIT]."""
    if not isinstance(statistics, Normalizer):
        return rewards
    return jnp.clip(rewards / jnp.sqrt(statistics.variance + 1e-8), -LIMIT, LIMIT)
