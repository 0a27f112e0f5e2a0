"""Evaluates a run's newest checkpoint, or its best: `scripts/evaluate --logdir=runs/... --episodes=100`."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import pathlib
from typing import TYPE_CHECKING, Any

from launchers import flags, mirror
from launchers.settings import Logdir, UsageError, setting

if TYPE_CHECKING:
    from agents.agent import Version
    from launchers import roles


@dataclasses.dataclass
class Evaluation:
    logdir: Logdir = setting(None, "the run's folder, or its URL")
    episodes: int = setting(100, "number of episodes to play; with a population of stacked members, of each member")
    checkpoint: str = setting(
        "newest",
        "which parameters to play: those of the newest checkpoint, or those that did best in the run's own evaluations",
        choices=("newest", "best"),
    )
    eval_policy: str = setting(
        None,
        "how actions are chosen: greedily, or sampled from the policy as in training",
        choices=("greedy", "sampled"),
        default_words="the run's",
    )
    eval_epsilon: float = setting(
        None,
        "the probability with which an action is replaced by a uniformly random one, where actions are discrete",
        least=0,
        most=1,
        default_words="the run's",
    )

    video: pathlib.Path = setting(
        None, "a file to which a video of the first episode is written; its ending, .gif or .mp4, is the type"
    )


@flags.command(Evaluation)
def evaluate() -> int:
    if not flags.FLAGS.logdir:
        raise UsageError("evaluate needs --logdir, the folder of a run")
    asked, video = flags.FLAGS.logdir, flags.FLAGS.video
    if video:
        _check(video)
    # JAX is imported only now, when the command line is understood.
    import jax
    import numpy as np

    from environments import filmed
    from launchers import population as populations
    from launchers import run as runs
    from runtime import best, leave_out_tensorflow

    leave_out_tensorflow()  # a checkpoint needs neither TensorFlow nor Reverb
    newest = flags.FLAGS.checkpoint == "newest"
    logdir = mirror.fetched(asked, {"checkpoints"}) if newest else mirror.fetched(asked, set(), best.FILE)
    run = runs.load(logdir)
    episodes = flags.FLAGS.episodes + -flags.FLAGS.episodes % len(run.tasks)  # equally many of each task
    said = {name: getattr(flags.FLAGS, name) for name in ("eval_policy", "eval_epsilon")}
    given = {name: value for name, value in said.items() if value is not None}
    run = runs.replace(run, eval_episodes=episodes, **given)
    if populations.learners(run) != [None]:
        raise UsageError(f"{logdir} is the folder of a population: give a member's, such as {logdir / 'member_0'}")
    from launchers import roles, terminal
    from runtime import evaluator

    parts = roles.Parts(run, logdir)
    version, params = (_newest if newest else _best)(parts)
    seed = run.seed_of("evaluate", version.learner_steps)  # the same checkpoint always plays the same episodes
    environment = run.make_environment(seed, run.stacked * run.eval_envs, evaluation=True, drawn=bool(video))
    if video:
        environment = filmed.Filmed(environment)
    with contextlib.closing(environment):  # its games may be processes, which would outlive this one
        params = jax.device_put(params, parts.device)
        key = jax.random.key(seed)
        of_all = run.stacked * episodes
        playing = evaluator.play(parts.agent, parts.act_in_evaluations, environment, params, key, of_all)
        played = terminal.watch(playing, of_all, run.eval_steps(parts.spec))
    for name, mean in parts.return_means(played.environments, played.returns).items():
        print(f"{name}={mean:.4f}")
    print(
        f"episodes={len(played.returns)} return_mean={np.mean(played.returns):.4f} "
        f"return_std={np.std(played.returns):.4f} env_steps={version.env_steps} "
        f"episodes_cut={evaluator.count_cut(played, run.cuts_at(parts.spec))} params={_digest(params)}",
        flush=True,
    )
    if video:
        from runtime import video as videos

        videos.write(video, environment.pictures, environment.per_second)
        print(f"{video} shows the first episode: length={played.lengths[0]} return={played.returns[0]:.4f}")
    return 0


def _digest(params: Any) -> str:
    """Returns the beginning of the SHA-256 of the parameters, which shows whether two runs played the same ones."""
    import jax
    import numpy as np

    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()[:12]


def _check(video: pathlib.Path) -> None:
    """Raises UsageError unless a video can be written to the path `video`."""
    from runtime import video as videos

    try:
        videos.check(video)
    except ValueError as error:
        raise UsageError(f"--video: {error}") from error


def _newest(parts: roles.Parts) -> tuple[Version, Any]:
    """Returns the version and the parameters of the newest checkpoint."""
    from launchers import recorded

    state, version = recorded.restored(parts.agent, parts.logdir)
    return version, parts.agent.policy(state)


def _best(parts: roles.Parts) -> tuple[Version, Any]:
    """Returns the version and the parameters that did best in the run's own evaluations, and prints their return."""
    from launchers import recorded

    found = recorded.best_of(parts.agent, parts.logdir, "--checkpoint=NAME")
    print(f"at {found.version.env_steps:,} env steps the run's own evaluation came to {found.return_mean:.4f}")
    return found.version, found.params


def run() -> None:
    flags.main(evaluate)


if __name__ == "__main__":
    run()
