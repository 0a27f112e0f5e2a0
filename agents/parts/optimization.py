"""The learning rate as a run goes on."""

from typing import Any

import chex
import jax.numpy as jnp


def decayed(initial: Any, step: chex.Array, rows_per_update: int, decay_env_steps: int) -> chex.Array:
    """What is left of `initial` after `step` updates, falling linearly to 0 over `decay_env_steps` rows of experience,
    `rows_per_update` at a time; 0 of those: it is constant."""
    if not decay_env_steps:
        return initial
    return initial * jnp.maximum(0.0, 1.0 - step * (rows_per_update / decay_env_steps))
