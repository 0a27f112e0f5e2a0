"""gymnax (Lange 2022, https://github.com/RobertTLange/gymnax): classic control, MinAtar and bsuite as JAX functions."""

import warnings
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from agents.agent import BoundedActions, DiscreteActions, EnvironmentSpec
from environments.functional import Functional


def make(name: str, keywords: Mapping[str, Any]) -> Functional:
    """Makes the environment that gymnax registered as `name`; `keywords` are fields of its parameters.

    Raises:
      ValueError: gymnax is not installed, it has no such environment, or the parameters have no such field.
    """
    try:
        with warnings.catch_warnings():  # gymnax imports its drawing libraries, which may warn
            warnings.simplefilter("ignore")
            import gymnax
    except ModuleNotFoundError as error:
        raise ValueError(
            f"gymnax:{name} needs gymnax, and {error.name} is not installed: pip install gymnax"
        ) from error
    if name not in gymnax.registered_envs:
        raise ValueError(f"gymnax has no {name!r}; it has {', '.join(gymnax.registered_envs)}")
    environment, params = gymnax.make(name)
    for field in keywords.keys() - {each for each in vars(params)}:
        raise ValueError(f"--env_kwargs: {name} has no {field!r}; it has {', '.join(sorted(vars(params)))}")
    params = params.replace(**keywords)
    shown, dtype = _observations(environment.observation_space(params))
    limit = getattr(params, "max_steps_in_episode", None)
    spec = EnvironmentSpec(
        shown, np.dtype(dtype), _actions(environment.action_space(params)), None if limit is None else int(limit)
    )

    def observe(observation):
        return jnp.asarray(observation, dtype).reshape(shown)

    def reset(key):
        observation, state = environment.reset_env(key, params)
        return state, observe(observation)

    def step(key, state, action):
        observation, state, reward, terminated, _ = environment.step_env(key, state, action, params)
        terminated = jnp.asarray(terminated, bool)
        truncated = jnp.asarray(environment.is_truncated(state, params), bool) & ~terminated
        return state, observe(observation), jnp.asarray(reward, jnp.float32), terminated, truncated

    return Functional(spec, reset, step)


def _observations(space: Any) -> tuple[tuple[int, ...], Any]:
    """Returns the shape and type of what agents see: bytes stay bytes, all else is float32, a choice is one number."""
    from gymnax.environments import spaces

    if not isinstance(space, spaces.Box | spaces.Discrete):
        raise ValueError(f"observations are a {type(space).__name__}: agents take a Box or a Discrete space")
    shape = tuple(space.shape) or (1,)
    return shape, np.uint8 if space.dtype == jnp.uint8 else np.float32


def _actions(space: Any) -> DiscreteActions | BoundedActions:
    from gymnax.environments import spaces

    if isinstance(space, spaces.Discrete):
        return DiscreteActions(int(space.n))
    if isinstance(space, spaces.Box):
        low, high = (np.array(np.broadcast_to(bound, space.shape), np.float32) for bound in (space.low, space.high))
        return BoundedActions(low, high)
    raise ValueError(f"actions are a {type(space).__name__}: agents take a Discrete space or a Box")
