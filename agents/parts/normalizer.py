"""Observations brought to mean 0 and variance 1, by running statistics over all that was sampled for learning."""

from typing import Any, NamedTuple

import chex
import jax.numpy as jnp

from agents.agent import Transition, pmean, psum

LIMIT = 10.0  # of a normalised number: what has hardly ever moved may one day move far


class Normalizer(NamedTuple):
    """Statistics of each number of an observation; float32 [*observation_shape]."""

    mean: chex.Array
    variance: chex.Array
    count: chex.Array  # float32 scalar: the observations behind them, of all devices; 0 at first, the identity


def init(shape: tuple[int, ...]) -> Normalizer:
    """Before any observation of `shape`: normalising does nothing."""
    return Normalizer(jnp.zeros(shape), jnp.ones(shape), jnp.float32(0))


def of(observations: Any) -> Normalizer:
    """The statistics of observations [B, ...] alone, of those of every device."""
    x = jnp.asarray(observations, jnp.float32)
    mean = pmean(x.mean(axis=0))
    variance = pmean(jnp.square(x - mean).mean(axis=0))
    # Of all devices, so that a run may go on with another number of them.
    return Normalizer(mean, variance, jnp.float32(psum(x.shape[0])))


def join(normalizer: Any, other: Any) -> Any:
    """The statistics of what is behind either; () with () stays ().

    As in Chan et al. 1979 (eq. 2.1), which does not lose small variances to rounding.
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
    """Adds observations [B, ...] to a Normalizer's statistics, those of every device alike; () stays ()."""
    return join(normalizer, of(observations)) if isinstance(normalizer, Normalizer) else normalizer


def apply(normalizer: Normalizer | tuple[()], observation: Any, limit: float = LIMIT) -> chex.Array:
    """[B, ...] -> float32 [B, ...], within [-limit, limit]; with an empty normaliser nothing but the type changes."""
    x = jnp.asarray(observation, jnp.float32)
    if not isinstance(normalizer, Normalizer):
        return x
    # The small number keeps what never moved at 0.
    return jnp.clip((x - normalizer.mean) / jnp.sqrt(normalizer.variance + 1e-8), -limit, limit)


def transition(normalizer: Normalizer | tuple[()], transition: Transition) -> Transition:
    """A transition with both of its observations normalised, as `apply` does it."""
    return transition._replace(
        observation=apply(normalizer, transition.observation),
        next_observation=apply(normalizer, transition.next_observation),
    )
