"""Prioritised replay's share of an update: importance weights and new priorities.

Schaul et al. 2016, https://arxiv.org/abs/1511.05952. The table itself is a TableSpec of kind "prioritized".
"""

from typing import Any

import chex
import jax.numpy as jnp
import optax

from agents.agent import Sample, Transition, pmax

EPSILON = 1e-6  # the paper's: an item whose error was 0 can still be sampled


def exponent(initial: float, steps: int, step: chex.Array) -> chex.Array:
    """beta, which rises linearly from `initial` to 1 over so many updates (section 3.4); steps of 0: it stays."""
    return jnp.asarray(optax.linear_schedule(initial, 1.0, steps)(step), jnp.float32)


def importance_weights(likelihood: chex.Array, beta: chex.Array, normalize: bool = True) -> chex.Array:
    """w_i = (N P(i))^-beta, divided by the batch's largest, over all devices, if `normalize` (section 3.4).

    Args:
      likelihood: N P(i), [B].
      beta: scalar; at 1 the weights undo the sampling's bias.
    """
    log_weights = -beta * jnp.log(likelihood)
    if normalize:  # before the power is taken: items of tiny priority would overflow
        log_weights -= pmax(log_weights.max())
    return jnp.exp(log_weights)


def weights(config: Any, sample: Sample, step: chex.Array, normalize: bool = True) -> chex.Array:
    """The importance weights of a sample of transitions, [B]; all 1 where `config.replay` is uniform.

    Args:
      config: has the fields replay, importance_exponent and importance_steps.
      step: updates so far.
      normalize: divides them by the batch's largest.
    """
    if config.replay != "prioritized":
        return jnp.ones_like(sample.steps.reward)
    beta = exponent(config.importance_exponent, config.importance_steps, step)
    return importance_weights(sample.likelihood, beta, normalize)


def priorities(errors: chex.Array) -> chex.Array:
    """p_i = |delta_i| + epsilon (section 3.3), [B] -> [B]; the table takes them to the power of alpha."""
    return jnp.abs(errors) + EPSILON


def feedback(config: Any, errors: chex.Array, largest: chex.Array) -> tuple[Any, chex.Array]:
    """What an update reports of its sample's `errors` [B], and the largest priority so far, over all devices.

    Args:
      config: has the field replay; where it is uniform there are no priorities, (), and the largest stays.
      largest: the largest priority before this update.
    """
    if config.replay != "prioritized":
        return (), largest
    new = priorities(errors)
    return new, jnp.maximum(largest, pmax(new.max()))


def largest_priority(params: Any, transition: Transition) -> chex.Array:
    """An agent's `priority` for new items, [B]: `params.max_priority`, the largest so far (algorithm 1, line 6).

    What is new is sampled soon, and then gets its own.
    """
    return jnp.broadcast_to(params.max_priority, transition.reward.shape)
