"""Normalises observations to mean 0 and variance 1, by running statistics of all that were sampled for learning."""

from typing import Any, NamedTuple

import chex
import jax.numpy as jnp

from agents.agent import Transition, pmean, psum

LIMIT = 10.0  # bounds normalised numbers: one that has hardly ever moved may one day move far


class Normalizer(NamedTuple):
    """Running statistics of each number of an observation; float32 [*observation_shape]."""

    mean: chex.Array
    variance: chex.Array
    count: chex.Array  # float32 scalar: how many observations there were, on all devices; 0 at first


def init(shape: tuple[int, ...]) -> Normalizer:
    """Returns the statistics before any observation of `shape`; normalising by them does nothing."""
    return Normalizer(jnp.zeros(shape), jnp.ones(shape), jnp.float32(0))


def of(observations: Any) -> Normalizer:
    """Returns the statistics of observations [B, ...] alone, over all devices."""
    x = jnp.asarray(observations, jnp.float32)
    mean = pmean(x.mean(axis=0))
    variance = pmean(jnp.square(x - mean).mean(axis=0))
    # The count is over all devices, so that a run may be resumed on another number of devices.
    return Normalizer(mean, variance, jnp.float32(psum(x.shape[0])))


def join(normalizer: Any, other: Any) -> Any:
    """Merges the statistics of two sets of observations. () and () give ().

    It computes eq. 2.1 of Chan et al. 1979, which does not lose small variances to rounding.
    """
    if not isinstance(normalizer, Normalizer):
        return normalizer
    count = normalizer.count + other.count
    new = other.count / count
    delta = other.mean - normalizer.mean
    return Normalizer(
        mean=normalizer.mean + new * delta,
        variance=(1 - new) * normalizer.variance + new * other.variance + new * (1 - new) * jnp.square(delta),
        count=count,
    )


def update(normalizer: Any, observations: Any) -> Any:
    """Adds the observations [B, ...] of every device to a Normalizer's statistics; () stays ()."""
    return join(normalizer, of(observations)) if isinstance(normalizer, Normalizer) else normalizer


def apply(normalizer: Normalizer | tuple[()], observation: Any, limit: float = LIMIT) -> chex.Array:
    """Normalises observations [B, ...] and clips them to [-limit, limit], float32. With () only the type changes."""
    x = jnp.asarray(observation, jnp.float32)
    if not isinstance(normalizer, Normalizer):
        return x
    # The 1e-8 keeps a number that never moved at 0.
    return jnp.clip((x - normalizer.mean) / jnp.sqrt(normalizer.variance + 1e-8), -limit, limit)


def transition(normalizer: Normalizer | tuple[()], transition: Transition) -> Transition:
    """Normalises both observations of a transition, as `apply` does."""
    return transition._replace(
        observation=apply(normalizer, transition.observation),
        next_observation=apply(normalizer, transition.next_observation),
    )
