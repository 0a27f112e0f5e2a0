"""What kind of environment a run has, by what it shows and takes and the suite that it is of: presets go by it."""

import functools
import json
from typing import NamedTuple

import environments
from agents.agent import BoundedActions, EnvironmentSpec, FactoredActions
from environments import tasks


class Kind(NamedTuple):
    """What presets tell environments apart by."""

    suite: str  # EnvPool's own name of the suite, as "atari" or "mujoco.dmc"; "": of none
    side: int  # pixels of a frame's shorter side; 0: what is seen is a vector
    actions: str  # "discrete", "factored" or "continuous"
    small: bool  # whether a few of its factored actions are told apart
    num_tasks: int


@functools.cache
def spec_of(env: str, env_kwargs: str, atari_protocol: str) -> EnvironmentSpec:
    """What one of the environments called `env` looks like; made once in a process to be looked at.

    Args:
      env, env_kwargs, atari_protocol: as a run's settings have them.

    Raises:
      ValueError: there is no such environment.
    """
    count = len(tasks.names(env))
    keywords = json.loads(env_kwargs or "{}")
    environment = environments.make(env, count, 0, keywords=keywords, atari_protocol=atari_protocol)
    environment.close()
    return environment.spec


def kind_of(env: str, env_kwargs: str) -> Kind:
    """Raises as `spec_of` does."""
    spec = spec_of(env, env_kwargs, "nature")  # of another it is the same kind
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
