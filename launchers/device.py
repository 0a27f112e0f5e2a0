"""Placement `device`: environments that are JAX functions, stepped inside the compiled program that learns. Only the
evaluator, a thread of its own, steps any from Python."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax

from agents.agent import Version
from environments import Episodes, functional, settled_clip
from environments.environment import REWARD_CLIPS
from launchers import roles, settings, sittings, threads
from launchers.run import UsageError
from replay.rows import Batch
from runtime import device_learner
from runtime.rollout import Rollout

train = threads.train  # whose learner is the one below


class Turns:
    """A channel through which nothing has to travel: the learner's devices make what they learn from."""

    def __init__(self, stopped: Callable[[], bool]):
        self._stopped = stopped

    @property
    def source(self) -> "Turns":
        return self

    def batches(self) -> Iterator[Batch]:
        """One for each call of the program, until `stopped`."""
        while not self._stopped():
            yield Batch(None, None, 0)

    def feedback(self, keys: Any, priorities: Any) -> None:
        """New priorities never leave the devices."""

    def count(self) -> int:
        """Items that it has."""
        return 0

    def save(self) -> None:
        """There is nothing that the learner's own checkpoint does not hold."""


def open_learning(
    parts: roles.Parts, carrier: Any, stopped: Callable[[], bool]
) -> tuple[roles.Learning, Iterator[Batch]]:
    """The learner and its batches, until `stopped`."""
    run, agent, mesh = parts.run, parts.agent, parts.mesh
    num_envs = run.num_actors * parts.num_envs
    with sittings.hold(parts.logdir, "actor_0") as sitting:
        seed = run.seed_of("actor", 0, sitting)
    environment = functional.make(run.env, keywords=settings.keywords(run.env_kwargs))
    clip = REWARD_CLIPS[settled_clip(run.env, run.reward_clip)]
    try:
        rollout = Rollout(agent, environment, num_envs, mesh.total, seed, clip)
    except ValueError as error:
        raise UsageError(f"--placement=device: {error}; give another --envs_per_actor") from error
    program = device_learner.blocks_program(mesh, agent, rollout, run.seed_of("learner"), num_envs, run.stacked)
    start = mesh.compile(rollout.start, (mesh.REPLICATED,), rollout.specs(mesh))
    report = roles.ActorReport(parts, carrier, 0)
    actor_steps = 0

    def played(version: Version, env_steps: int, episodes: Episodes) -> None:
        nonlocal actor_steps
        actor_steps += env_steps
        report(version._asdict() | {"actor_steps": actor_steps, "pull_fraction": 0.0, "wait_fraction": 0.0}, episodes)

    make_learner = functools.partial(
        device_learner.DeviceLearner, program=program, start=start, played=played, members=run.stacked
    )
    channel = Turns(stopped)
    variables = parts.variables(carrier)
    learning = roles.Learning(parts, variables.push, carrier, channel, None, make_learner=make_learner)
    return learning, channel.batches()
