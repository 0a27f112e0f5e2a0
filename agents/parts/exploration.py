"""Exploration: for continuous actions their bounds and noise, for discrete ones epsilon-greedy.

With continuous actions, agents work in [-1, 1], environments in [low, high]. Noise has unit scale here and is
multiplied where it is added.
"""

from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from agents.agent import BoundedActions, DiscreteActions, EnvironmentSpec, FactoredActions


def unsuitable(agent: str, needed: str, spec: EnvironmentSpec) -> ValueError:
    """What to raise where an agent that needs `needed` actions is given another kind."""
    actions = spec.actions
    if isinstance(actions, FactoredActions):
        have = "factored; use a2c, impala, ppo, trpo or vmpo"
    elif isinstance(actions, DiscreteActions):
        have = "discrete; use dqn, r2d2, sac, a2c, impala, ppo, trpo or vmpo"
    else:
        have = "continuous; use ddpg, td3, sac, d4pg, mpo, a2c, impala, ppo, trpo or vmpo"
    return ValueError(f"{agent} needs {needed} actions; this environment's are {have}")


def bounded_actions(agent: str, spec: EnvironmentSpec) -> BoundedActions:
    """The spec's actions.

    Raises:
      ValueError: they are discrete or factored, or a bound is infinite or above the other.
    """
    actions = spec.actions
    if not isinstance(actions, BoundedActions):
        raise unsuitable(agent, "continuous", spec)
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


def random_at_first(step: chex.Array, key: jax.Array, action: chex.Array) -> chex.Array:
    """`action` [B, *shape], but before the first update, while `step` is 0, independent uniform numbers of [-1, 1]."""
    uniform = jax.random.uniform(jax.random.fold_in(key, 1), action.shape, minval=-1.0, maxval=1.0)  # not the noise's
    return jnp.where(step == 0, uniform, action)


def per_environment(x: Any, shape: tuple[int, ...]) -> chex.Array:
    """A scalar or [B] that broadcasts against [B, *shape]."""
    return jnp.reshape(x, (-1, *(1 for _ in shape)))


def discrete_actions(agent: str, spec: EnvironmentSpec) -> int:
    """How many actions there are.

    Raises:
      ValueError: they are continuous or factored.
    """
    if not isinstance(spec.actions, DiscreteActions):
        raise unsuitable(agent, "discrete", spec)
    return spec.actions.num_actions


def ranks_or_zeros(num_envs: int, ranks: Any) -> chex.Array:
    """Where each environment stands among all of the run's, from 0 to 1, float32 [num_envs]; 0 where that is not told,
    and for a run's only environment."""
    return jnp.zeros(num_envs) if ranks is None else jnp.asarray(ranks, jnp.float32)


def linear_epsilon(initial: Any, final: Any, steps: float, step: chex.Array) -> chex.Array:
    """epsilon, which goes linearly from `initial` to `final` over so many steps, of which `step` were made; with steps
    of 0 it is `final`."""
    return jnp.asarray(optax.linear_schedule(initial, final, steps)(step) if steps else final, jnp.float32)


def epsilon_greedy(key: jax.Array, values: chex.Array, epsilon: Any) -> chex.Array:
    """With probability epsilon any action, all alike, else that of the largest value.

    Args:
      values: Q(s, .), [B, A].
      epsilon: a scalar, or [B].

    Returns:
      int32 [B]. Among equal values the first action is the greedy one.
    """
    explore_key, action_key = jax.random.split(key)
    random = jax.random.randint(action_key, values.shape[:1], 0, values.shape[-1], jnp.int32)
    return jnp.where(jax.random.uniform(explore_key, random.shape) < epsilon, random, greedy(values))


def epsilon_greedy_probabilities(values: chex.Array, epsilon: Any) -> chex.Array:
    """Those of `epsilon_greedy`, [B, A]."""
    num_actions = values.shape[-1]
    epsilon = jnp.reshape(epsilon, (-1, 1))
    return epsilon / num_actions + (1.0 - epsilon) * jax.nn.one_hot(greedy(values), num_actions)


def greedy(values: chex.Array) -> chex.Array:
    """The actions of the largest values, the first among equals: [..., A] -> int32 [...]."""
    return jnp.argmax(values, axis=-1).astype(jnp.int32)
