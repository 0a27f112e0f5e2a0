"""Exploration: bounds and noise for continuous actions, epsilon-greedy for discrete ones.

Continuous actions are in [-1, 1] for agents and in [low, high] for environments. Noise has unit scale here; the agent
that adds it multiplies it by its own scale.
"""

from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from agents.agent import BoundedActions, DiscreteActions, EnvironmentSpec, FactoredActions


def unsuitable(agent: str, needed: str, spec: EnvironmentSpec) -> ValueError:
    """Returns the error to raise where an agent that needs `needed` actions is given another kind."""
    actions = spec.actions
    if isinstance(actions, FactoredActions):
        have = "factored; use a2c, impala, ppo, trpo or vmpo"
    elif isinstance(actions, DiscreteActions):
        have = "discrete; use dqn, r2d2, sac, a2c, impala, ppo, trpo or vmpo"
    else:
        have = "continuous; use ddpg, td3, sac, d4pg, mpo, a2c, impala, ppo, trpo or vmpo"
    return ValueError(f"{agent} needs {needed} actions; this environment's are {have}")


def bounded_actions(agent: str, spec: EnvironmentSpec) -> BoundedActions:
    """Returns the spec's actions, which must be continuous and bounded.

    Raises:
      ValueError: the actions are discrete or factored, a bound is infinite, or low is not below high.
    """
    actions = spec.actions
    if not isinstance(actions, BoundedActions):
        raise unsuitable(agent, "continuous", spec)
    if not (np.isfinite(actions.low).all() and np.isfinite(actions.high).all() and (actions.low < actions.high).all()):
        raise ValueError(f"{agent} needs actions with finite bounds, low < high; not {actions.low} and {actions.high}")
    return actions


def to_bounds(bounds: BoundedActions, x: chex.Array) -> chex.Array:
    """Maps actions from [-1, 1] to [low, high], float32 [B, *shape]; numbers outside are clipped."""
    low, high = jnp.asarray(bounds.low, jnp.float32), jnp.asarray(bounds.high, jnp.float32)
    return jnp.clip(low + 0.5 * (x + 1.0) * (high - low), low, high)


def from_bounds(bounds: BoundedActions, action: chex.Array) -> chex.Array:
    """Maps actions from [low, high] to [-1, 1], float32 [B, *shape]."""
    low, high = jnp.asarray(bounds.low, jnp.float32), jnp.asarray(bounds.high, jnp.float32)
    return 2.0 * (jnp.asarray(action, jnp.float32) - low) / (high - low) - 1.0


class Noise(NamedTuple):
    """A kind of action noise. Its memory is [B, *shape] for 'ou' (Ornstein-Uhlenbeck), and () for 'gaussian'."""

    kind: Literal["gaussian", "ou"]
    shape: tuple[int, ...]  # of one action
    theta: float = 0.15  # of 'ou': how strongly the process is drawn back to 0
    dt: float = 1.0  # of 'ou': the time between two steps

    def memory(self, num_envs: int) -> Any:
        """Returns the memory before the first step."""
        return jnp.zeros((num_envs, *self.shape)) if self.kind == "ou" else ()

    def sample(self, key: jax.Array, memory: Any, first: chex.Array) -> tuple[chex.Array, Any]:
        """Returns unit noise [B, *shape] and the memory after it.

        Gaussian noise is independent N(0, 1). Ornstein-Uhlenbeck noise is an Euler step of dx = -theta x dt + dW, which
        starts at 0 again where `first`, bool [B], is true.
        """
        normal = jax.random.normal(key, (first.shape[0], *self.shape))
        if self.kind == "gaussian":
            return normal, memory
        x = jnp.where(per_environment(first, self.shape), 0.0, memory)
        x = x - self.theta * x * self.dt + self.dt**0.5 * normal
        return x, x


def random_at_first(step: chex.Array, key: jax.Array, action: chex.Array) -> chex.Array:
    """Returns `action` [B, *shape]; before the first update, while `step` is 0, uniform noise in [-1, 1] instead."""
    # The fold keeps this key apart from the noise's.
    uniform = jax.random.uniform(jax.random.fold_in(key, 1), action.shape, minval=-1.0, maxval=1.0)
    return jnp.where(step == 0, uniform, action)


def per_environment(x: Any, shape: tuple[int, ...]) -> chex.Array:
    """Reshapes a scalar or [B] so that it broadcasts against [B, *shape]."""
    return jnp.reshape(x, (-1, *(1 for _ in shape)))


def discrete_actions(agent: str, spec: EnvironmentSpec) -> int:
    """Returns the number of actions.

    Raises:
      ValueError: the actions are continuous or factored.
    """
    if not isinstance(spec.actions, DiscreteActions):
        raise unsuitable(agent, "discrete", spec)
    return spec.actions.num_actions


def ranks_or_zeros(num_envs: int, ranks: Any) -> chex.Array:
    """Returns each environment's rank among all of the run's, from 0 to 1, float32 [num_envs].

    The ranks are 0 if `ranks` is None; a run's only environment has rank 0.
    """
    return jnp.zeros(num_envs) if ranks is None else jnp.asarray(ranks, jnp.float32)


def linear_epsilon(initial: Any, final: Any, steps: float, step: chex.Array) -> chex.Array:
    """Returns epsilon after `step` of the `steps` over which it goes linearly from `initial` to `final`.

    With 0 steps it is `final` from the start.
    """
    return jnp.asarray(optax.linear_schedule(initial, final, steps)(step) if steps else final, jnp.float32)


def epsilon_greedy(key: jax.Array, values: chex.Array, epsilon: Any) -> chex.Array:
    """Draws a uniformly random action with probability epsilon, and else takes the action of the largest value.

    Args:
      values: Q(s, .), [B, A].
      epsilon: a scalar, or [B].

    Returns:
      Actions, int32 [B]. Among equal values the first action is the greedy one.
    """
    explore_key, action_key = jax.random.split(key)
    random = jax.random.randint(action_key, values.shape[:1], 0, values.shape[-1], jnp.int32)
    return jnp.where(jax.random.uniform(explore_key, random.shape) < epsilon, random, greedy(values))


def epsilon_greedy_probabilities(values: chex.Array, epsilon: Any) -> chex.Array:
    """Returns the probability of each action under `epsilon_greedy`, [B, A]."""
    num_actions = values.shape[-1]
    epsilon = jnp.reshape(epsilon, (-1, 1))
    return epsilon / num_actions + (1.0 - epsilon) * jax.nn.one_hot(greedy(values), num_actions)


def greedy(values: chex.Array) -> chex.Array:
    """Returns the actions of the largest values, the first among equals: [..., A] -> int32 [...]."""
    return jnp.argmax(values, axis=-1).astype(jnp.int32)
