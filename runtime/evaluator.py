"""The evaluator: plays whole episodes with the newest parameters."""

import time
from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from agents.agent import Agent, DiscreteActions, Params, TimeStep, Version
from environments.environment import Environment, Episodes
from replay.rows import Variables


def policy(agent: Agent, actions: Any, sampled: bool = False, epsilon: float = 0.0) -> Callable[..., Any]:
    """Returns the function by which evaluations act, with the signature of `agent.act`.

    It acts greedily or, if `sampled`, as in training. With probability `epsilon` it takes an action drawn uniformly
    instead; `actions`, the environment's, must then be discrete or factored.
    """
    act = agent.act if sampled else agent.act_greedily
    if not epsilon:
        return act
    choices = actions.num_actions if isinstance(actions, DiscreteActions) else np.asarray(actions.sizes)

    def act_or_err(params: Params, key: jax.Array, timestep: TimeStep, memory: Any) -> tuple[Any, Any, Any]:
        own_key, whether_key, which_key = jax.random.split(key, 3)
        action, extras, memory = act(params, own_key, timestep, memory)
        err = jax.random.bernoulli(whether_key, epsilon, action.shape[:1])
        other = jax.random.randint(which_key, action.shape, 0, choices, action.dtype)
        action = jnp.where(err.reshape(-1, *[1] * (action.ndim - 1)), other, action)
        return action, extras, agent.acted(memory, action) if agent.acted else memory

    return act_or_err


class Progress(NamedTuple):
    """How far an evaluation is."""

    episodes: int  # episodes that ended, of those that count
    steps: int  # steps of each environment


class Evaluation(NamedTuple):
    """The results of an evaluation, and the parameters that it evaluated."""

    metrics: dict[str, Any]
    episodes: Episodes
    params: Params


def play(
    agent: Agent,
    act: Callable[..., Any],
    environment: Environment,
    params: Params,
    key: jax.Array,
    episodes: int,
    stopped: Callable[[], bool] = lambda: False,
) -> Generator[Progress, None, Episodes]:
    """Plays episodes; yields its progress after each step, and returns the episodes, environment by environment.

    Each environment's first `episodes / num_envs` episodes count. Taking whichever `episodes` end first would favour
    short ones.

    Args:
      act: compiled by runtime.actor.compile_act.
      environment: a new one, which is reset here. `episodes` must be a multiple of its num_envs.
      stopped: asked before every step; once it is true, the episodes that ended so far are returned.
    """
    each = episodes // environment.num_envs
    timestep, memory = environment.reset(), agent.memory(environment.num_envs, None)
    played = [Episodes([], [], []) for _ in range(environment.num_envs)]
    count = done = 0
    while done < each * environment.num_envs and not stopped():
        action, _, memory = act(params, key, np.uint32(count), timestep, memory)
        timestep, count = environment.step(np.asarray(action)), count + 1
        if timestep.last.any():
            finished = environment.finished()
            for index, episode_return, length in zip(*finished, strict=True):
                played[index].returns.append(episode_return)
                played[index].lengths.append(length)
            done = sum(min(len(episodes.returns), each) for episodes in played)
        yield Progress(done, count)
    return Episodes(
        [index for index, episodes in enumerate(played) for _ in episodes.returns[:each]],
        [x for episodes in played for x in episodes.returns[:each]],
        [x for episodes in played for x in episodes.lengths[:each]],
    )


def count_cut(played: Episodes, cuts_at: int | None) -> int:
    """Returns how many episodes the environment cut, after `cuts_at` steps; None: it cuts none."""
    return 0 if cuts_at is None else sum(length >= cuts_at for length in played.lengths)


def next_due(env_steps: int, period: int) -> int:
    """Returns the smallest multiple of `period` above `env_steps`."""
    return env_steps - env_steps % period + period


def run(
    agent: Agent,
    act: Callable[..., Any],
    make_environment: Callable[[Version], Environment],
    variables: Variables,
    key: jax.Array,
    episodes: int,
    period: int,
    max_env_steps: int,
    due: int,
    stopped: Callable[[], bool] = lambda: False,
    cuts_at: int | None = None,
) -> Iterator[Progress | Evaluation]:
    """Evaluates the newest parameters at each multiple of `period` environment steps, and last at `max_env_steps`.

    Yields an evaluation's Progress after each of its steps, and at its end an Evaluation.

    Args:
      make_environment: makes an environment, all of whose episodes end, with a seed of its own for each version.
      key: the key of each evaluation is made from it and the version, so that no two evaluations are alike, in a
        resumed run either.
      due: environment steps at which the first evaluation is due.
      stopped: once true, the loop ends.
      cuts_at: the steps after which the environment cuts an episode; None: it cuts none.
    """
    while not stopped():
        before = time.perf_counter()
        version, params = variables.pull()
        if version.env_steps < min(due, max_env_steps):
            # Each look costs a pull: the waiting keeps pulls to a twentieth of the time, at most.
            time.sleep(min(5.0, max(0.05, 20 * (time.perf_counter() - before))))
            continue
        environment = make_environment(version)
        at = jax.random.fold_in(key, np.uint32(version.learner_steps))
        played = yield from play(agent, act, environment, params, at, episodes, stopped)
        environment.close()
        if stopped():
            return
        metrics = {
            "env_steps": version.env_steps,
            "learner_steps": version.learner_steps,
            "episodes": len(played.returns),
            "return_mean": float(np.mean(played.returns)),
            "return_std": float(np.std(played.returns)),
            "episodes_cut": count_cut(played, cuts_at),
        }
        yield Evaluation(metrics, played, params)
        if version.env_steps >= max_env_steps:
            return
        due = next_due(version.env_steps, period)
