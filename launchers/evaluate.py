"""Evaluates a run's newest checkpoint: `scripts/evaluate --logdir=runs/... --episodes=100`."""

import dataclasses

from launchers import flags, mirror
from launchers.settings import Logdir, UsageError, setting


@dataclasses.dataclass
class Evaluation:
    logdir: Logdir = setting(None, "the run's folder, or its URL")
    episodes: int = setting(100, "episodes to play, of each member of a stacked population")
    eval_policy: str = setting(None, "greedy or sampled", choices=("greedy", "sampled"), default_words="the run's")
    eval_epsilon: float = setting(None, "how likely a random action is", least=0, most=1, default_words="the run's")


@flags.command(Evaluation)
def evaluate() -> int:
    if not flags.FLAGS.logdir:
        raise UsageError("evaluate needs --logdir, the folder of a run")
    # Only now, when the command line is understood: JAX.
    import jax
    import numpy as np

    from launchers import population as populations
    from launchers import run as runs
    from runtime import leave_out_tensorflow

    leave_out_tensorflow()  # nor Reverb: a checkpoint needs neither
    logdir = mirror.fetched(flags.FLAGS.logdir, {"checkpoints"})
    run = runs.load(logdir)
    episodes = flags.FLAGS.episodes + -flags.FLAGS.episodes % len(run.tasks)  # as many of each task
    said = {name: getattr(flags.FLAGS, name) for name in ("eval_policy", "eval_epsilon")}
    given = {name: value for name, value in said.items() if value is not None}
    run = runs.replace(run, eval_episodes=episodes, **given)
    if populations.learners(run) != [None]:
        raise UsageError(f"{logdir} is of a population: evaluate a member's, such as {logdir / 'member_0'}")
    from launchers import recorded, roles, terminal
    from runtime import evaluator

    parts = roles.Parts(run, logdir)
    state, version = recorded.restored(parts.agent, logdir)
    seed = run.seed_of("evaluate", version.learner_steps)  # the same checkpoint, the same episodes
    environment = run.make_environment(seed, run.stacked * run.eval_envs, evaluation=True)
    params = jax.device_put(parts.agent.policy(state), parts.device)
    key = jax.random.key(seed)
    of_all = run.stacked * episodes
    playing = evaluator.play(parts.agent, parts.act_in_evaluations, environment, params, key, of_all)
    played = terminal.watch(playing, of_all, run.eval_steps(parts.spec))
    environment.close()  # its games, if it has any, are processes, which would outlive this one
    for name, mean in parts.return_means(played.environments, played.returns).items():
        print(f"{name}={mean:.4f}")
    print(
        f"episodes={len(played.returns)} return_mean={np.mean(played.returns):.4f} "
        f"return_std={np.std(played.returns):.4f} env_steps={version.env_steps} "
        f"episodes_cut={evaluator.count_cut(played, run.cuts_at(parts.spec))}"
    )
    return 0


def run() -> None:
    flags.main(evaluate)


if __name__ == "__main__":
    run()
