"""gymnax (Lange 2022, https://github.com/RobertTLange/gymnax): classic control, MinAtar and bsuite as JAX functions."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from agents.agent import BoundedActions, DiscreteActions, EnvironmentSpec
from environments.environment import check_limit
from environments.functional import Functional
from environments.spaces import WIDEST

LIMIT = "max_steps_in_episode"  # gymnax's parameter for the most steps of an episode


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
    if LIMIT in keywords:
        check_limit(LIMIT, keywords[LIMIT])
    params = params.replace(**keywords)
    shape, dtype, observe = _observations(environment.observation_space(params))
    limit = getattr(params, LIMIT, None)
    limit = None if limit is None else int(limit)
    spec = EnvironmentSpec(shape, np.dtype(dtype), _actions(environment.action_space(params)), limit)

    def reset(key):
        observation, state = environment.reset_env(key, params)
        return state, observe(observation)

    def step(key, state, action):
        observation, state, reward, terminated, _ = environment.step_env(key, state, action, params)
        terminated = jnp.asarray(terminated, bool)
        truncated = jnp.asarray(environment.is_truncated(state, params), bool) & ~terminated
        return state, observe(observation), jnp.asarray(reward, jnp.float32), terminated, truncated

    return Functional(spec, reset, step)


def _observations(space: Any) -> tuple[tuple[int, ...], Any, Callable[[Any], Any]]:
    """Returns the shape and type of what agents see, and the function that shows it to them.

    As environments/spaces.py has it: a choice is one-hot, whole numbers are scaled to [-1, 1], bytes stay bytes, and
    floats keep their values, also those of pictures.
    """
    from gymnax.environments import spaces

    if isinstance(space, spaces.Discrete):
        return (int(space.n),), np.float32, lambda observation: jax.nn.one_hot(observation, int(space.n))
    if not isinstance(space, spaces.Box):
        raise ValueError(f"observations are a {type(space).__name__}: agents take a Box or a Discrete space")
    shape = tuple(space.shape) or (1,)
    dtype = np.uint8 if space.dtype == jnp.uint8 else np.float32
    low, span = np.asarray(space.low, np.float64), np.subtract(space.high, space.low, dtype=np.float64)
    scaled = dtype == np.float32 and jnp.issubdtype(space.dtype, jnp.integer) and np.max(span) <= WIDEST

    def show(observation):
        x = jnp.asarray(observation, dtype).reshape(shape)
        return 2 * (x - low.astype(dtype)) / np.maximum(span, 1).astype(dtype) - 1 if scaled else x

    return shape, dtype, show


def _actions(space: Any) -> DiscreteActions | BoundedActions:
    from gymnax.environments import spaces

    if isinstance(space, spaces.Discrete):
        return DiscreteActions(int(space.n))
    if isinstance(space, spaces.Box):
        low, high = (np.array(np.broadcast_to(bound, space.shape), np.float32) for bound in (space.low, space.high))
        return BoundedActions(low, high)
    raise ValueError(f"actions are a {type(space).__name__}: agents take a Discrete space or a Box")
