"""Advantages of actions from the values of what they led to, for agents that learn from blocks of rows."""

from typing import Any

import chex
import jax
import jax.numpy as jnp

from agents.agent import pmean


def gae(values: Any, rewards: Any, discounts: Any, live: Any, lambda_: Any) -> chex.Array:
    """Generalised advantage estimates (Schulman et al. 2016, https://arxiv.org/abs/1506.02438, eq. 16), cut at the
    block's end.

    With a lambda of 1 it is the return to the end of the episode or of the block, there with the value of what comes
    next, less V(s_t); with 0 the one-step error.

    Args:
      values: V(s_0) .. V(s_T), float32 [T+1, B].
      rewards: r_t, which arrived with s_{t+1}, [T, B].
      discounts: gamma, 0 where s_{t+1} is terminal, [T, B]. Where a time limit ended the episode it is gamma: then
        V(s_{t+1}), of the episode's last observation, stands for what was cut off.
      live: 1 where row t is a transition, 0 where its action was thrown away, [T, B].
      lambda_: scalar.

    Returns:
      [T, B], 0 on dead rows. Advantage + V(s_t) is the target of V(s_t). Gradients pass through it.
    """
    import rlax  # here, not above: where TensorFlow is installed it takes seconds

    # On a dead row r + 0 V(s_{t+1}) - V(s_t) is 0 with its own value as the reward, and nothing comes across.
    rewards, discounts = jnp.where(live > 0, rewards, values[:-1]), jnp.where(live > 0, discounts, 0.0)
    advantages = jax.vmap(rlax.truncated_generalized_advantage_estimation, in_axes=(1, 1, None, 1), out_axes=1)
    return advantages(rewards, discounts, lambda_, values)


def explained_variance(errors: Any, targets: Any) -> chex.Array:
    """1 - Var(errors) / Var(targets), over all rows of all devices; `errors` are the targets less the values."""

    def variance(x):
        return pmean(jnp.square(x).mean()) - jnp.square(pmean(x.mean()))

    return 1.0 - variance(errors) / (variance(targets) + 1e-8)


def normalize(advantages: Any, live: Any) -> chex.Array:
    """Brings advantages [T, B] to mean 0 and variance 1 over live rows, of all devices; dead rows stay 0."""
    weights = live / jnp.maximum(pmean(live.mean()), 1e-6)
    mean = pmean(jnp.mean(weights * advantages))
    variance = pmean(jnp.mean(weights * jnp.square(advantages - mean)))
    return live * (advantages - mean) / (jnp.sqrt(variance) + 1e-8)
