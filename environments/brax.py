"""Brax (Freeman et al. 2021, https://arxiv.org/abs/2106.13281): rigid bodies as JAX functions."""

import contextlib
import io
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from agents.agent import BoundedActions, EnvironmentSpec
from environments.environment import check_limit
from environments.functional import Functional, cut

EPISODE_LENGTH = 1000  # as in Brax's own training


def make(name: str, keywords: Mapping[str, Any]) -> Functional:
    """Makes the environment that Brax registered as `name`.

    Args:
      keywords: keyword arguments for `brax.envs.get_environment`, such as `backend`; and `episode_length`, the
        number of steps after which an episode is truncated.

    Raises:
      ValueError: Brax is not installed, or has no such environment.
    """
    try:
        # Importing Brax prints which of MuJoCo's packages it did not find.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            from brax import envs
    except ModuleNotFoundError as error:
        raise ValueError(f"brax:{name} needs Brax, and {error.name} is not installed: pip install brax") from error
    keywords = dict(keywords)
    length = check_limit("episode_length", keywords.pop("episode_length", EPISODE_LENGTH))
    try:
        environment = envs.get_environment(name, **keywords)
    except KeyError as error:
        raise ValueError(f"Brax has no {name!r}; it has {', '.join(sorted(envs._envs))}") from error
    bound = np.ones(environment.action_size, np.float32)
    shape = (int(environment.observation_size),)
    spec = EnvironmentSpec(shape, np.dtype(np.float32), BoundedActions(-bound, bound))

    def observe(state):
        return jnp.asarray(state.obs, jnp.float32)

    def reset(key):
        state = environment.reset(key)
        return state, observe(state)

    def step(key, state, action):
        del key  # the state holds the keys for what is random
        state = environment.step(state, action)
        return state, observe(state), jnp.asarray(state.reward, jnp.float32), state.done > 0, jnp.bool_(False)

    return cut(Functional(spec, reset, step), length)
