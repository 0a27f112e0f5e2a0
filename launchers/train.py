"""Trains an agent: `scripts/train --agent=impala --env=Pong-v5`."""

from __future__ import annotations

import contextlib
import importlib
import pathlib
from typing import TYPE_CHECKING

from launchers import flags, mirror, shutdown
from launchers.settings import Ending, Pod, RayCluster, Settings, Sitting, Tracking

if TYPE_CHECKING:
    from launchers.run import Run
    from runtime.hosts import Meeting


@flags.command(Settings, Sitting, Tracking, Pod, RayCluster, Ending)
def train() -> int:
    run, logdir = flags.run_from_flags(), flags.logdir_from_flags()
    # Only now, when the command line is understood, because these import JAX. Matplotlib waits until there is a curve.
    import jax

    from launchers import population as populations
    from launchers import ports, services, settings
    from runtime import leave_out_tensorflow

    if shutdown.asked():
        return flags.FLAGS.unfinished_code or 0
    if run.preemption_notice and shutdown.noticed(run.preemption_notice):
        raise settings.UsageError(f"--preemption_notice={run.preemption_notice} is there already: remove it first")
    settings.check_idle(flags.FLAGS, run)
    meeting = None
    if run.placement == "pod":
        from launchers import pod

        meeting = pod.meet(run)
    if run.placement == "ray":
        from launchers import ray as rays

        rays.check(run)
    host = meeting.hosts.index if meeting else 0
    if run.placement in ("processes", "ray"):
        jax.config.update("jax_platforms", "cpu")  # in this process alone: its roles have the accelerators
    if run.carrier == "local":
        leave_out_tensorflow()
    settings.check_port(flags.FLAGS.port, run)
    ports.check_port(flags.FLAGS.port)
    populations.check(run)
    run.check_fit(run.num_replay_servers)  # before anything is written
    if not host:  # the first host has the evaluator, and tracks all of the run
        run.check_drawn()
        services.check(flags.FLAGS.track)
    # Each host of a pod has its own replays, and the first restores the learner for all hosts.
    replays = [f"replay_{host * run.num_replay_servers + server}" for server in range(run.num_replay_servers)]
    with mirror.mirrored(logdir, {*replays} if host else {"checkpoints", *replays}) as folder:
        return _train(run, folder, meeting)


def _train(run: Run, logdir: pathlib.Path, meeting: Meeting | None) -> int:
    """Trains in the folder `logdir` of this machine, and returns the exit code. Draws the curves at the end."""
    from launchers import population as populations
    from launchers import settings, sittings, tracking
    from launchers.terminal import native_lines_in, tell_of_end

    host = meeting.hosts.index if meeting else 0
    of_host = f"_{host}" if host else ""
    track = "none" if host else flags.FLAGS.track
    with sittings.hold(logdir, f"train{of_host}"):
        populations.save(run, logdir)  # only now: the run of another command that is still going on keeps its settings
        _tell_of_begin(run, logdir)
        native = {"reverb": run.carrier == "reverb", "native": run.placement in ("pod", "ray")}
        log = next((name for name, there in native.items() if there), None)
        lines = native_lines_in(logdir / "logs" / f"{log}{of_host}.log") if log else contextlib.nullcontext()
        placement = importlib.import_module(f"launchers.{run.placement}")  # this one alone: each imports much
        with lines, tracking.tracked(track, logdir):
            if shutdown.asked() and not meeting:
                asked_to_end = True
            else:  # the hosts of a pod end together
                asked_to_end = placement.train(run, logdir, flags.FLAGS.port, *([meeting] if meeting else []))
    code = (flags.FLAGS.unfinished_code if asked_to_end else None) or 0
    if host:
        return code
    if not asked_to_end:
        tell_of_end(run, logdir)
    from runtime import plot

    if plot.draw(populations.logdirs(run, logdir), logdir / "curve.png", settings.decisive):
        print(f"the learning curve is {logdir / 'curve.png'}")
    if plot.draw_lineages(logdir, logdir / "lineages.png"):
        print(f"the population's hyperparameters and scores are in {logdir / 'lineages.png'}")
    return code


def _tell_of_begin(run: Run, logdir: pathlib.Path) -> None:
    """Prints what is about to be trained, and what a person may want to know of it."""
    who = f"{run.population} members of {run.agent} learn" if run.population else f"{run.agent} learns"
    print(f"{who} {run.env} for {run.max_env_steps:,} env steps; {run.placement}; in {logdir}", flush=True)
    if run.carrier == "reverb":
        print(
            "Reverb listens on every network interface of this machine: docs/machines.md#keeping-strangers-out",
            flush=True,
        )
    spec = run.spec()
    first = run.steps_before_update(run.make_agent(spec))
    if first > run.max_env_steps:
        print(
            f"the first update is due after {first:,} env steps, and a run is at least that long: for a shorter one "
            "give a smaller replay to begin with, or smaller batches",
            flush=True,
        )
    cut = run.cuts_at(spec)
    if cut is not None:
        limit = (
            "no time limit" if spec.max_episode_steps is None else f"a time limit of {spec.max_episode_steps:,} steps"
        )
        print(
            f"{limit} is known for {run.env}: an evaluation's episodes are cut after {cut:,} steps (--eval_max_steps)",
            flush=True,
        )


def run() -> None:
    shutdown.listen()
    flags.main(train)


if __name__ == "__main__":
    run()
