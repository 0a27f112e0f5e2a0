"""The worker: it acts as an actor does, keeps its experience to itself, and sends the gradients that it computes."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from agents.agent import Agent, Gradient, State, Version
from environments.environment import Environment, Episodes
from replay.gradients import GradientWriter
from replay.local import Experience
from replay.rows import Variables
from runtime import actor


def compile_gradient(agent: Agent, device: jax.Device) -> Callable[..., tuple[Any, dict[str, Any]]]:
    """Compiles (state, key, count, sample) -> (gradient, metrics) for `device`.

    Each gradient's key is made from `key` and `count`. Give all workers of a process the same compiled function, so
    that the gradient is traced and compiled once.
    """
    assert agent.gradient is not None
    compute = agent.gradient

    def gradient_at(state, key, count, sample):
        gradient, feedback = compute(state, jax.random.fold_in(key, count), sample)
        return gradient, feedback.metrics

    return actor.compile_on(device, gradient_at)


class _Source:
    """A source of parameters that remembers what was pulled last."""

    def __init__(self, variables: Variables):
        self._variables = variables
        self.newest: tuple[Version, State] | None = None

    def pull(self) -> tuple[Version, State]:
        self.newest = self._variables.pull()
        return self.newest


def run(
    agent: Agent,
    act: Callable[..., Any],
    gradient: Callable[..., Any],
    environment: Environment,
    variables: Variables,
    experience: Experience,
    writer: GradientWriter,
    key: jax.Array,
    device: jax.Device,
    stopped: Callable[[], bool] = lambda: False,
    ranks: np.ndarray | None = None,
) -> Iterator[tuple[dict[str, Any], Episodes]]:
    """Acts and sends gradients until `stopped`; yields what an actor does, after each turn of acting and sending.

    The order is fixed: pull, act until there is something to learn from, send its gradients, then pull again. An
    on-policy gradient is taken at the parameters that acted; a gradient from a replay, at parameters pulled for it.

    Args:
      agent: an agent made by `by_gradients`, whose actors pull states as their parameters.
      act: compiled by runtime.actor.compile_act.
      gradient: compiled by `compile_gradient`.
    """
    source: Any = _Source(variables)
    gradient_key = jax.random.fold_in(key, np.uint32(2**32 - 1))  # a key that no action will get
    count = sent_steps = 0
    turns = actor.run(agent, act, environment, source, experience, key, device, stopped, ranks)
    for metrics, episodes in turns:
        for sample in experience.samples():
            if not experience.on_policy:
                source.pull()
            version, state = source.newest
            value, feedback = gradient(state, gradient_key, np.uint32(count), sample)
            if experience.on_policy:
                steps = np.sum(~sample.steps.first[1:])  # the row before a first is no transition
            else:
                steps, sent_steps = metrics["actor_steps"] - sent_steps, metrics["actor_steps"]
            writer.append(Gradient(value, feedback, np.int64(version.learner_steps), np.int64(steps)))
            count += 1
        yield metrics | {"gradients": count}, episodes
