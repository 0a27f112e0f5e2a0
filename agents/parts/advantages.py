"""Advantage estimates, for agents that learn from blocks of rows."""

from typing import Any

import chex
import jax
import jax.numpy as jnp

from agents.agent import pmean


def gae(values: Any, rewards: Any, discounts: Any, live: Any, lambda_: Any) -> chex.Array:
    """Returns generalised advantage estimates (Schulman et al. 2016, https://arxiv.org/abs/1506.02438, eq. 16), cut off
    at the block's end.

    With a lambda of 1 the estimate is the return less V(s_t): the return to the end of the episode, or to the end of
    the block, where V(s_T) is the bootstrap value. With a lambda of 0 it is the one-step TD error.

    Args:
      values: V(s_0) .. V(s_T), float32 [T+1, B].
      rewards: r_t, which arrived with s_{t+1}, [T, B].
      discounts: gamma, or 0 where s_{t+1} is terminal, [T, B]. Where a time limit ended the episode the discount is
        gamma: V(s_{t+1}), the value of the episode's last observation, then bootstraps for what was cut off.
      live: 1 where row t is a transition, 0 where its action was thrown away, [T, B].
      lambda_: scalar.

    Returns:
      Advantages [T, B], 0 on dead rows. Advantage + V(s_t) is the target of V(s_t). Gradients pass through them.
    """
    import rlax  # here, not above: where TensorFlow is installed it takes seconds

    # A dead row gets its own value as its reward, and a discount of 0. Then its error, r + 0 V(s_{t+1}) - V(s_t), is 0,
    # and no later row adds to an earlier one across it.
    rewards, discounts = jnp.where(live > 0, rewards, values[:-1]), jnp.where(live > 0, discounts, 0.0)
    advantages = jax.vmap(rlax.truncated_generalized_advantage_estimation, in_axes=(1, 1, None, 1), out_axes=1)
    return advantages(rewards, discounts, lambda_, values)


def explained_variance(errors: Any, targets: Any) -> chex.Array:
    """Returns 1 - Var(errors) / Var(targets) over all rows of all devices; `errors` are the targets less the values."""

    def variance(x):
        return pmean(jnp.square(x).mean()) - jnp.square(pmean(x.mean()))

    return 1.0 - variance(errors) / (variance(targets) + 1e-8)


def normalize(advantages: Any, live: Any) -> chex.Array:
    """Scales advantages [T, B] to mean 0 and variance 1 over the live rows of all devices; dead rows stay 0."""
    weights = live / jnp.maximum(pmean(live.mean()), 1e-6)
    mean = pmean(jnp.mean(weights * advantages))
    variance = pmean(jnp.mean(weights * jnp.square(advantages - mean)))
    return live * (advantages - mean) / (jnp.sqrt(variance) + 1e-8)
