"""Batched environments behind one interface: EnvPool's, any of Gymnasium's, and environments that are JAX functions."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from environments import tasks
from environments.environment import Environment, EnvironmentFailure, Episodes

__all__ = ["FUNCTIONAL", "Environment", "EnvironmentFailure", "Episodes", "make", "settled_clip", "suite"]

FUNCTIONAL = ("gymnax:", "brax:")  # prefixes of the names of environments that are JAX functions


@dataclasses.dataclass(frozen=True)
class _Options:
    """The options that all the environments behind one name share; `make` explains them."""

    evaluation: bool
    num_threads: int
    max_steps: int | None
    keywords: Mapping[str, Any]
    vectorization: str
    atari_protocol: str
    drawn: bool


def make(
    name: str,
    num_envs: int,
    seed: int,
    *,
    evaluation: bool = False,
    num_threads: int = 0,
    max_steps: int | None = None,
    keywords: Mapping[str, Any] | None = None,
    vectorization: str = "sync",
    atari_protocol: str = "nature",
    reward_clip: str = "auto",
    drawn: bool = False,
) -> Environment:
    """Makes `num_envs` environments called `name`, which are stepped together.

    Args:
      name: an EnvPool task (`Pong-v5`), `gymnasium:ID` or `gymnasium:module:ID`, `gymnax:ID`, `brax:NAME`,
        `MaskedCartPole-v1`, `Counting-v0`, or `binned:N:NAME`, the environment NAME whose continuous actions are
        choices among N values for each number. `A,B,C` is several tasks at once: environment i has the task i mod 3.
      num_envs: the number of environments.
      seed: fixes every episode; give each actor its own.
      evaluation: whether an episode is a whole game. In training, a lost life may end an episode of Atari.
      num_threads: the number of EnvPool's threads; 0 means one for each core.
      max_steps: the number of steps after which an episode is truncated, if it has not ended before; None for no limit
        but the environment's own.
      keywords: keyword arguments for `gymnasium.make`, settings of EnvPool's task, or what gymnax and Brax take. With
        several tasks, each gets them.
      vectorization: for Gymnasium's environments: "sync" steps one after another, "async" has each in its own process.
      atari_protocol: how Atari is played: one of environments.envpool.PROTOCOLS.
      reward_clip: how rewards are clipped for agents: one of environments.environment.REWARD_CLIPS, or "auto", which is
        "unit" (to [-1, 1]) for Atari and "none" for everything else.
      drawn: whether pictures will be asked for. Gymnasium's environments are then in this process.

    Raises:
      ValueError: in one line: the environment is unknown, one of its spaces is not supported, or it raised something
        (an EnvironmentFailure).
    """
    options = _Options(evaluation, num_threads, max_steps, keywords or {}, vectorization, atari_protocol, drawn)
    environment = _make(name, num_envs, seed, options)
    environment.name = name
    environment.reward_clip = settled_clip(name, reward_clip)
    return environment


def settled_clip(name: str, reward_clip: str) -> str:
    """Returns which of environments.environment.REWARD_CLIPS is meant for the environment called `name`: "auto" is
    resolved, and every other `reward_clip` is returned as it is."""
    if reward_clip != "auto":
        return reward_clip
    return "unit" if suite(tasks.names(name)[0]) == "atari" else "none"


def _make(name: str, num_envs: int, seed: int, options: _Options) -> Environment:
    make_inner = functools.partial(_make, options=options)
    # Backends are imported here, so that a run loads only the one that it uses.
    if "," in name:
        return tasks.Tasks(tasks.names(name), num_envs, seed, make_inner)
    if name.startswith("binned:"):
        from environments import binned

        num_bins, inner = binned.parse(name)
        environment = make_inner(inner, num_envs, seed)
        try:
            return binned.Binned(environment, num_bins)
        except ValueError:
            environment.close()
            raise
    if name.startswith("gymnasium:"):
        from environments.gymnasium import GymnasiumEnvironment

        inner = name.removeprefix("gymnasium:")
        return GymnasiumEnvironment(
            inner,
            num_envs,
            seed,
            max_steps=options.max_steps,
            keywords=options.keywords,
            vectorization=options.vectorization,
            drawn=options.drawn,
        )
    if name.startswith(FUNCTIONAL):
        from environments import functional

        made = functional.make(name, max_steps=options.max_steps, keywords=options.keywords)
        return functional.FunctionalEnvironment(made, num_envs, seed)
    if name == "Counting-v0":
        from environments.counting import CountingEnvironment

        return CountingEnvironment(num_envs)
    from environments import envpool

    if name == "MaskedCartPole-v1":
        from environments.masked import PositionsOnly

        return PositionsOnly(make_inner("CartPole-v1", num_envs, seed))
    if envpool.is_vizdoom(name):
        from environments import vizdoom

        return vizdoom.VizdoomEnvironment(
            name,
            num_envs,
            seed,
            num_threads=options.num_threads,
            max_steps=options.max_steps,
            keywords=options.keywords,
            drawn=options.drawn,
        )
    return envpool.EnvPoolEnvironment(
        name,
        num_envs,
        seed,
        evaluation=options.evaluation,
        protocol=options.atari_protocol,
        num_threads=options.num_threads,
        max_steps=options.max_steps,
        keywords=options.keywords,
        drawn=options.drawn,
    )


def suite(name: str) -> str:
    """Returns EnvPool's suite of the environment `name`, or of the one that it is built on; "" if there is none."""
    if name.startswith("binned:"):
        from environments import binned

        return suite(binned.parse(name)[1])
    if name.startswith(("gymnasium:", *FUNCTIONAL)) or name == "Counting-v0":
        return ""
    from environments import envpool

    return envpool.suite("CartPole-v1" if name == "MaskedCartPole-v1" else name)
