"""Searches an agent's hyperparameters by many runs: `scripts/sweep --agent=a2c --env=CartPole-v1 --trials=30
--tune=learning_rate:log:1e-5:1e-2`. All other flags of scripts/train describe the runs.

Each trial is an ordinary run in LOGDIR/trial_N, a process of scripts/train. Optuna chooses its values and says which
trials are not worth continuing; its study is in LOGDIR/study.log. The same command continues a sweep.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shlex
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from launchers import configs, flags, settings, shutdown
from launchers.settings import Ending, RayCluster, Settings, UsageError, setting

if TYPE_CHECKING:
    from agents.pbt import Ranges
    from launchers.run import Run


@dataclasses.dataclass
class Sweep:
    tune: str = setting(
        "",
        "the fields of the agent's Config that are tuned, NAME:SCALE:LOW:HIGH with commas between: "
        "learning_rate:log:1e-5:1e-2,unroll_length:step=5:5:40",
    )
    trials: int = setting(None, "number of trials in all, those that the sweep has already included")
    sampler: str = setting(
        "tpe",
        "how values are chosen: by Optuna's TPE from the results of earlier trials, or at random",
        choices=("tpe", "random"),
    )
    pruner: str = setting(
        "median",
        "which trials are ended early: those whose best so far is below the median of finished trials at the same "
        "point (median), or none",
        choices=("median", "none"),
    )
    jobs: int = setting(1, "number of trials that run at a time, each on its share of the cores", most=1024)
    logdir: pathlib.Path = setting(
        None, "the sweep's folder; a sweep that is there already is continued", default_words="runs/AGENT-ENV-TIME"
    )


POLL_SECONDS = 0.5  # between two looks at the trials


@flags.command(Settings, RayCluster, Ending, Sweep)
def sweep() -> int:
    asked = flags.FLAGS
    if not asked.trials:
        raise UsageError("a sweep needs --trials, the number of runs that it makes: give, for example, --trials=50")
    if not asked.tune:
        raise UsageError(
            "a sweep needs --tune, the fields that it tunes: give, for example, --tune=learning_rate:log:1e-5:1e-2"
        )
    if asked["population"].present:
        raise UsageError("--population: the trials of a sweep have no population: leave it out, or use scripts/train")
    run = flags.run_from_flags(used=("tune",))
    if run.placement == "pod":
        raise UsageError("--placement=pod: a sweep starts its trials on this machine only: give another --placement")
    settings.check_idle(asked, run)
    # JAX is imported only now, when the command line is understood. It computes nothing here.
    import jax

    from launchers import run as runs
    from launchers import sittings
    from runtime import leave_out_tensorflow

    jax.config.update("jax_platforms", "cpu")
    leave_out_tensorflow()
    if run.preemption_notice and shutdown.noticed(run.preemption_notice):
        raise UsageError(f"--preemption_notice={run.preemption_notice} is there already: remove it first")
    ranges = ranges_of(run)
    run.check_fit(run.num_replay_servers)
    logdir = pathlib.Path(flags.logdir_from_flags())
    if (logdir / "config.json").exists():
        new = json.loads(json.dumps(run.to_json()))
        if different := settings.differing(settings.saved(logdir), new, strictly=True):
            raise UsageError(f"{logdir} holds another sweep or run ({'; '.join(different)}): choose another --logdir")
    runs.save(run, logdir)
    with sittings.hold(logdir, "sweep"):
        stop = shutdown.stop_on_signals(run.preemption_notice)
        search(run, ranges, logdir, stop)
    return (asked.unfinished_code if stop.is_set() else None) or 0


def ranges_of(run: Run) -> Ranges:
    """Returns the ranges that --tune gives.

    Raises:
      UsageError: they do not fit the agent, or are of a field that is also given by --config.
    """
    from launchers import population as populations

    ranges = populations.parse_ranges(run.tune)
    numbers = {name: kind for name, kind in configs.fields(run.agent).items() if kind in (int, float)}
    if not ranges:
        raise UsageError(f"--tune={run.tune} names no field: {populations.TUNE}")
    populations.check_ranges(run, ranges, numbers, f"field of {run.agent}'s Config that is a number")
    for name, range_ in ranges.items():
        if flags.FLAGS[f"config.{name}"].present:
            raise UsageError(f"--config.{name} sets a field that --tune is to choose: leave one of the two out")
        if numbers[name] is int:
            if not (range_.scale == "step" and range_.low.is_integer() and range_.step.is_integer()):
                raise UsageError(
                    f"--tune: {name} takes whole numbers: give {name}:step=SIZE:LOW:HIGH, with three whole numbers"
                )
            for value in (range_.low, range_.high):
                flags.run_from_flags(used=("tune",), config={name: value}).check_fit()
    return ranges


def share_of(cores: Sequence[int], job: int, jobs: int) -> Sequence[int]:
    """Returns the part of the `cores` that job number `job` of `jobs` may use. If there are more jobs than cores, some
    jobs share a core."""
    return cores[job * len(cores) // jobs : (job + 1) * len(cores) // jobs] or [cores[job % len(cores)]]


def search(run: Run, ranges: Ranges, logdir: pathlib.Path, stop: threading.Event) -> None:
    """Runs trials until there are --trials of them or `stop` is set; then prints what was found."""
    # Only now, when there is a sweep, because they import Optuna.
    from launchers import study as studies
    from launchers.trial import RunningTrial, say, words

    asked, study = flags.FLAGS, studies.load(logdir, flags.FLAGS.pruner)
    cores, unfinished = sorted(os.sched_getaffinity(0)), studies.unfinished(study)
    running: dict[int, RunningTrial] = {}  # by the number of the job that runs it

    def following() -> int | None:
        """Returns the number of the next trial to run, an unfinished one first; None if there is none."""
        if unfinished:
            return unfinished.pop(0)
        count = len(study.get_trials(deepcopy=False))
        return count if count < asked.trials else None

    try:
        while not stop.is_set():
            for job in [job for job, each in running.items() if each.look(stop)]:
                del running[job]
            for job in sorted({*range(asked.jobs)} - running.keys()):
                if stop.is_set() or (number := following()) is None:
                    break
                trial = studies.trial(study, number, ranges, asked.sampler, run.seed_of("sweep", number))
                running[job] = RunningTrial(trial, run, logdir, share_of(cores, job, asked.jobs))
            if not running:
                break
            stop.wait(POLL_SECONDS)
    finally:
        for each in running.values():
            each.process.terminate()
        for each in running.values():
            each.process.wait()
    studies.show(study, ranges, logdir)
    if best := studies.best(study):
        command = shlex.join(["scripts/train", *words(run, best.params)])
        say(f"the best is trial_{best.number}; make it again by\n  {command}")
    if stop.is_set():
        say("the sweep was asked to end: the same command goes on with it")


if __name__ == "__main__":
    shutdown.listen()
    flags.main(sweep)
