"""Lagrange multipliers: positive numbers, made from unbounded parameters that gradient steps change."""

import math
from typing import Any

import chex
import jax
import jax.numpy as jnp


def multiplier(x: Any) -> chex.Array:
    """Returns the multiplier that the parameter `x` stands for: softplus(x), at least 1e-8.

    A gradient step changes a large multiplier by an amount, not by a factor. If the parameter were its logarithm, a
    multiplier whose constraint cannot be met for a while would grow exponentially, and with it the gradient of every
    term that it weighs.
    """
    return jax.nn.softplus(x) + 1e-8


def parameter_of(value: float) -> chex.Array:
    """Returns the parameter, a float32 scalar, whose `multiplier` is `value`; for initialisation."""
    return jnp.float32(value + math.log(-math.expm1(-value)))
