"""Lagrange's multipliers, which are positive, made of numbers that gradients step."""

import math
from typing import Any

import chex
import jax
import jax.numpy as jnp


def multiplier(x: Any) -> chex.Array:
    """The multiplier of the number `x` that gradients step: softplus(x), at least 1e-8.

    A step changes a large multiplier by so much, not by a factor: learnt as its logarithm, a multiplier whose
    constraint cannot be met for a while grows exponentially, and so does the gradient of all that it weighs.
    """
    return jax.nn.softplus(x) + 1e-8


def parameter_of(value: float) -> chex.Array:
    """The number, float32 scalar, whose `multiplier` is `value`, to begin with."""
    return jnp.float32(value + math.log(-math.expm1(-value)))
