"""Continuous actions: their bounds, and the noise that explores.

Agents work in [-1, 1]; environments in [low, high]. Noise has unit scale here and is multiplied where it is added.
"""

from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from agents.agent import BoundedActions, EnvironmentSpec


def bounded_actions(agent: str, spec: EnvironmentSpec) -> BoundedActions:
    """The spec's actions.

    Raises:
      ValueError: they are discrete, or a bound is infinite or above the other.
    """
    actions = spec.actions
    if not isinstance(actions, BoundedActions):
        raise ValueError(f"{agent} needs continuous actions; this environment's are discrete")
    if not (np.isfinite(actions.low).all() and np.isfinite(actions.high).all() and (actions.low < actions.high).all()):
        raise ValueError(f"{agent} needs actions with finite bounds, low < high; not {actions.low} and {actions.high}")
    return actions


def to_bounds(bounds: BoundedActions, x: chex.Array) -> chex.Array:
    """[-1, 1] -> [low, high], float32 [B, *shape]; what lies outside is clipped."""
    low, high = jnp.asarray(bounds.low, jnp.float32), jnp.asarray(bounds.high, jnp.float32)
    return jnp.clip(low + 0.5 * (x + 1.0) * (high - low), low, high)


def from_bounds(bounds: BoundedActions, action: chex.Array) -> chex.Array:
    """[low, high] -> [-1, 1], float32 [B, *shape]."""
    low, high = jnp.asarray(bounds.low, jnp.float32), jnp.asarray(bounds.high, jnp.float32)
    return 2.0 * (jnp.asarray(action, jnp.float32) - low) / (high - low) - 1.0


class Noise(NamedTuple):
    """What noise there is, and its memory: [B, *shape] for 'ou', () for 'gaussian'."""

    kind: Literal["gaussian", "ou"]
    shape: tuple[int, ...]
    theta: float = 0.15
    dt: float = 1.0

    def memory(self, num_envs: int) -> Any:
        """Before the first step."""
        return jnp.zeros((num_envs, *self.shape)) if self.kind == "ou" else ()

    def sample(self, key: jax.Array, memory: Any, first: chex.Array) -> tuple[chex.Array, Any]:
        """Unit noise [B, *shape] and the memory after it; first: bool [B], the process starts at 0 again.

        Gaussian: independent N(0, 1). Ornstein-Uhlenbeck: dx = -theta x dt + dW, a step of Euler's.
        """
        normal = jax.random.normal(key, (first.shape[0], *self.shape))
        if self.kind == "gaussian":
            return normal, memory
        x = jnp.where(per_environment(first, self.shape), 0.0, memory)
        x = x - self.theta * x * self.dt + self.dt**0.5 * normal
        return x, x


def per_environment(x: Any, shape: tuple[int, ...]) -> chex.Array:
    """A scalar or [B] that broadcasts against [B, *shape]."""
    return jnp.reshape(x, (-1, *(1 for _ in shape)))
