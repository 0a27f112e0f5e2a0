"""The parts of an update that prioritised replay needs: importance weights and new priorities.

Schaul et al. 2016, https://arxiv.org/abs/1511.05952. The replay table itself is a TableSpec of kind "prioritized".
"""

from typing import Any

import chex
import jax.numpy as jnp
import optax

from agents.agent import Sample, Transition, pmax

EPSILON = 1e-6  # the paper's epsilon, by which an item whose error was 0 can still be sampled


def exponent(initial: float, steps: int, step: chex.Array) -> chex.Array:
    """Returns beta after `step` updates: it rises linearly from `initial` to 1 over `steps` updates (section 3.4).

    With 0 steps it stays at `initial`.
    """
    return jnp.asarray(optax.linear_schedule(initial, 1.0, steps)(step), jnp.float32)


def importance_weights(likelihood: chex.Array, beta: chex.Array, normalize: bool = True) -> chex.Array:
    """Returns the importance weights w_i = (N P(i))^-beta (section 3.4), [B].

    Args:
      likelihood: N P(i), [B].
      beta: scalar; at 1 the weights fully correct the sampling's bias.
      normalize: whether to divide by the largest weight in the batch, over all devices.
    """
    log_weights = -beta * jnp.log(likelihood)
    if normalize:  # in logarithms, since the weight of an item of tiny priority would overflow
        log_weights -= pmax(log_weights.max())
    return jnp.exp(log_weights)


def weights(config: Any, sample: Sample, step: chex.Array, normalize: bool = True) -> chex.Array:
    """Returns the importance weights of a sample of transitions, [B]; all are 1 if `config.replay` is uniform.

    Args:
      config: has the fields replay, importance_exponent and importance_steps.
      step: the number of updates so far.
      normalize: whether to divide by the largest weight in the batch, over all devices.
    """
    if config.replay != "prioritized":
        return jnp.ones_like(sample.steps.reward)
    beta = exponent(config.importance_exponent, config.importance_steps, step)
    return importance_weights(sample.likelihood, beta, normalize)


def priorities(errors: chex.Array) -> chex.Array:
    """Returns the priorities p_i = |delta_i| + epsilon (section 3.3), [B]; the table raises them to the power alpha."""
    return jnp.abs(errors) + EPSILON


def feedback(config: Any, errors: chex.Array, largest: chex.Array) -> tuple[Any, chex.Array]:
    """Returns the new priorities of a sample by its `errors` [B], and the largest priority so far, over all devices.

    Args:
      config: has the field replay. If it is uniform there are no priorities, (), and `largest` is returned as it is.
      largest: the largest priority before this update.
    """
    if config.replay != "prioritized":
        return (), largest
    new = priorities(errors)
    return new, jnp.maximum(largest, pmax(new.max()))


def largest_priority(params: Any, transition: Transition) -> chex.Array:
    """Returns the priority of new items, [B]: `params.max_priority`, the largest so far (algorithm 1, line 6).

    It serves as an `Agent.priority`. A new item is so sampled soon, and then gets a priority from its own error.
    """
    return jnp.broadcast_to(params.max_priority, transition.reward.shape)
