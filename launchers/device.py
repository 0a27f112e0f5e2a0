"""Placement `device`: environments that are JAX functions are stepped inside the compiled program that learns. Only the
evaluator, in a thread of its own, steps environments from Python."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

from agents.agent import Version
from environments import Episodes, functional, settled_clip
from launchers import roles, settings, sittings, threads
from launchers.run import UsageError
from replay.filling import FilledRings
from replay.rows import Batch, never
from runtime import device_learner
from runtime.checkpoint import Checkpointer
from runtime.rollout import Rollout

train = threads.train  # roles.open_learning takes the learner from `open_learning` below


class Turns:
    """The channel of agents without a replay. It carries nothing: the learner's devices make the rows that they learn
    from, and learn from them at once."""

    def __init__(self) -> None:
        self.stopped: Callable[[], bool] = never

    @property
    def source(self) -> "Turns":
        return self

    def batches(self) -> Iterator[Batch]:
        """Yields an empty batch for each call of the learner's program, until `stopped`."""
        while not self.stopped():
            yield Batch(None, None, 0)

    def feedback(self, keys: Any, priorities: Any) -> None:
        """Does nothing: there are no priorities."""

    def give(self) -> tuple[()]:
        """Returns what the program keeps between its calls: nothing."""
        return ()

    def take(self, kept: Any, rows: int) -> None:
        """Does nothing: nothing is kept."""

    def count(self) -> int:
        """Returns the number of items that are kept."""
        return 0

    def save(self) -> None:
        """Does nothing: the learner's own checkpoint holds all there is."""


def _channel(parts: roles.Parts, num_envs: int) -> tuple[Any, Checkpointer | None]:
    """Returns the learner's channel and the Checkpointer of its replay, as roles.open_channel does; None without one.

    `num_envs` is the number of all environments: the program's one actor has them all.
    """
    if not parts.replays:
        return Turns(), None
    checkpointer, saved = roles.restore_replay(parts)
    sizes = parts.batch_size, 1, num_envs, parts.run.max_rows
    try:
        return FilledRings(parts.mesh, parts.agent, parts.table, parts.items, *sizes, saved), checkpointer
    except ValueError as error:
        raise UsageError(str(error)) from error


def open_learning(
    parts: roles.Parts, carrier: Any, stopped: Callable[[], bool]
) -> tuple[roles.Learning, Iterator[Batch]]:
    """Returns the learner and its batches, which end once `stopped` is true."""
    run, agent, mesh = parts.run, parts.agent, parts.mesh
    num_envs = run.num_actors * parts.num_envs
    with sittings.hold(parts.logdir, "actor_0") as sitting:
        seed = run.seed_of("actor", 0, sitting)
    environment = functional.make(run.env, keywords=settings.keywords(run.env_kwargs))
    clip = functional.clip_of(settled_clip(run.env, run.reward_clip))
    channel, replay = _channel(parts, num_envs)
    channel.stopped = stopped
    rollout = Rollout(agent, environment, num_envs, mesh.total, seed, clip)
    # One call makes at most the steps from one evaluation to the next, from one comparison of a population's members to
    # the next, and those of the whole run: each happens between two calls. All three are steps of each member.
    each = min(run.eval_period, run.max_env_steps, *([run.ready_env_steps] if run.population else []))
    of_program = mesh, agent, rollout, run.seed_of("learner"), min(device_learner.STEPS_AT_ONCE, each * run.stacked)
    program = (
        device_learner.replay_program(*of_program, channel)
        if parts.replays
        else device_learner.blocks_program(*of_program, run.stacked)
    )
    start = mesh.compile(rollout.start, (mesh.REPLICATED,), rollout.specs(mesh))
    report = roles.ActorReport(parts, carrier, 0)
    actor_steps = 0

    def played(version: Version, env_steps: int, episodes: Episodes) -> None:
        nonlocal actor_steps
        actor_steps += env_steps
        report(version._asdict() | {"actor_steps": actor_steps, "pull_fraction": 0.0, "wait_fraction": 0.0}, episodes)

    make_learner = functools.partial(
        device_learner.DeviceLearner,
        program=program,
        replay=channel,
        start=start,
        played=played,
        members=run.stacked,
    )
    push = parts.variables(carrier).push
    learning = roles.Learning(parts, push, carrier, channel, replay, make_learner=make_learner)
    return learning, channel.batches()
