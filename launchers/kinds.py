"""Kinds of environments, by which presets are chosen: the suite, and the form of the observations and actions."""

import functools
import json
from typing import NamedTuple

import environments
from agents.agent import BoundedActions, EnvironmentSpec, FactoredActions
from environments import tasks


class Kind(NamedTuple):
    """The properties by which presets tell environments apart."""

    suite: str  # EnvPool's own name of its suite, such as "atari" or "mujoco.dmc"; "": not EnvPool's
    side: int  # pixels of a frame's shorter side; 0: observations are no frames
    actions: str  # "discrete", "factored" or "continuous"
    small: bool  # whether FactoredActions.small names a few of its factored actions, enough to begin with
    num_tasks: int


@functools.cache
def spec_of(env: str, env_kwargs: str, atari_protocol: str) -> EnvironmentSpec:
    """Returns the spec of one of the environments called `env`. It makes one to look at, once in a process.

    Args:
      env, env_kwargs, atari_protocol: as in a run's settings.

    Raises:
      ValueError: there is no such environment.
    """
    count = len(tasks.names(env))
    keywords = json.loads(env_kwargs or "{}")
    environment = environments.make(env, count, 0, keywords=keywords, atari_protocol=atari_protocol)
    environment.close()
    return environment.spec


def kind_of(env: str, env_kwargs: str) -> Kind:
    """Returns the kind of the environment called `env`. Raises ValueError as `spec_of` does."""
    spec = spec_of(env, env_kwargs, "nature")  # the other Atari protocol would give the same kind
    actions = spec.actions
    return Kind(
        environments.suite(tasks.names(env)[0]),
        min(spec.frame_sides, default=0),
        "continuous"
        if isinstance(actions, BoundedActions)
        else "factored"
        if isinstance(actions, FactoredActions)
        else "discrete",
        isinstance(actions, FactoredActions) and bool(actions.small),
        spec.num_tasks,
    )
