"""A sweep's trial: a process of scripts/train, whose evaluations are reported to Optuna while it runs."""

from __future__ import annotations

import contextlib
import math
import os
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence

import optuna

from launchers import configs, flags, settings
from launchers.run import Run
from launchers.settings import RayCluster, UsageError
from launchers.supervision import RoleLog
from runtime import metrics

LAST = 5  # a trial's value is the mean return of so many evaluations, its last
ENDED = 75  # the exit code of a run that was asked to end before it was done
DIVERGED = re.compile("became -?(nan|inf);")  # what a run says when a metric is not finite
PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>: sets the signal that a process gets when its parent dies
MEMORY = 0.75  # the share of an accelerator's memory that JAX takes for one process by default


def words(run: Run, values: dict[str, float]) -> list[str]:
    """Returns the flags of scripts/train for a trial's run, with these values of the tuned fields."""
    given = {name: word for name, word in flags.words_of_run().items() if name not in ("agent", "env", "tune")}
    cluster = [flags.FLAGS[name] for name in settings.declarations(RayCluster)]
    typed = configs.check_types(configs.fields(run.agent), values)
    return [
        *(f"--agent={run.agent}", f"--env={run.env}", *given.values()),
        *(flag.serialize() for flag in cluster if flag.present),
        *(f"--config.{name}={value!r}" for name, value in typed.items()),
    ]


def evaluations(logdir: pathlib.Path) -> list[tuple[float, float]]:
    """Returns (environment steps, mean return) of a run's evaluations, without returns that are not finite. If a
    sitting was lost, and a later one began at an older checkpoint, the lost evaluations are left out."""
    found: list[tuple[float, float]] = []
    for row in metrics.read(logdir / "evaluator.csv"):
        while found and found[-1][0] >= row["env_steps"]:
            found.pop()
        if math.isfinite(row["return_mean"]):
            found.append((row["env_steps"], row["return_mean"]))
    return found


class RunningTrial:
    """A trial whose run is a process of its own."""

    def __init__(self, trial: optuna.Trial, run: Run, sweep: pathlib.Path, cores: Sequence[int]):
        """Starts the trial's process.

        Args:
          trial: Optuna's trial, which has its values.
          run: the settings that all trials of the sweep share.
          sweep: the sweep's folder.
          cores: the numbers of the cores that the process may use.
        """
        self.trial, self.pruned = trial, False
        self._period, self._logdir = run.eval_period, sweep / f"trial_{trial.number}"
        self._reported = set(trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values)
        self._log = RoleLog(sweep, f"trial_{trial.number}", say)
        arguments = [*words(run, trial.params), f"--logdir={self._logdir}", f"--unfinished_code={ENDED}"]
        # The process has a session of its own, so that a terminal's Ctrl-C reaches the sweep alone, which then asks its
        # trials to end.
        program = (
            f"import ctypes, os; os.sched_setaffinity(0, {cores}); "
            f"ctypes.CDLL(None).prctl({PR_SET_PDEATHSIG}, {int(signal.SIGTERM)}); "
            "from launchers import train; train.run()"
        )
        with open(self._log.path, "ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=os.environ | memory_share(flags.FLAGS.jobs),
            )
        values = " ".join(f"{name}={value:.4g}" for name, value in trial.params.items())
        say(f"{self._log.name}{' goes on' if self._logdir.exists() else ''}: {values}")

    def look(self, stop: threading.Event) -> bool:
        """Reports the run's new evaluations and its end to Optuna, and returns whether it has ended.

        A run that Optuna would prune is asked to end; one that diverged counts as pruned. `stop` is set if something
        else has asked the run to end.

        Raises:
          UsageError: the run ended with an error, or without an evaluation.
        """
        code = self.process.poll()
        self._log.tell_warnings()
        seen, news = evaluations(self._logdir), False
        value = math.nan
        for index, (env_steps, _) in enumerate(seen):
            value = statistics.fmean(mean for _, mean in seen[max(0, index + 1 - LAST) : index + 1])
            step = int(env_steps // self._period)  # Optuna compares trials at equal steps
            if step not in self._reported:
                self.trial.report(value, step)
                self._reported.add(step)
                news = True
        if code is None:
            if news and not self.pruned and self.trial.should_prune():
                self.pruned = True
                self.process.terminate()
            return False
        name, far = self._log.name, f"at {seen[-1][0]:,.0f} env steps, return {value:.2f}" if seen else "at once"
        if code == 0 and seen:
            self.trial.study.tell(self.trial, value)
            say(f"{name} is done: return {value:.2f}")
        elif self.pruned and code in (ENDED, -signal.SIGTERM):
            self._tell_pruned(f"{name} was pruned {far}")
        elif code == 2 and DIVERGED.search(self._log.last_words()):
            self._tell_pruned(f"{name} diverged {far}")
        elif code == ENDED:
            stop.set()  # a notice of preemption or a signal ended it, and the sweep ends too
        else:
            how = f"was killed by signal {-code}" if code < 0 else f"ended with {code}"
            said = self._log.last_words().removeprefix("error: ")
            raise UsageError(f"{name} {how}: {said} ({self._log.path}); the same command goes on with the sweep")
        return True

    def _tell_pruned(self, text: str) -> None:
        self.trial.study.tell(self.trial, state=optuna.trial.TrialState.PRUNED)
        say(text)


def memory_share(jobs: int) -> Mapping[str, str]:
    """Returns the environment variables to set for a trial, so that `jobs` trials share an accelerator's memory evenly.
    There are none for one job, or where the person has set the share."""
    set_already = {"XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"} & os.environ.keys()
    return {} if jobs == 1 or set_already else {"XLA_CLIENT_MEM_FRACTION": f"{MEMORY / jobs:.4f}"}


def say(text: str) -> None:
    with contextlib.suppress(OSError):  # a sweep outlives its terminal
        print(text, flush=True)
