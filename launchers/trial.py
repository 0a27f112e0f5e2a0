"""A sweep's trial: a process of scripts/train, whose evaluations Optuna is told of while it goes on."""

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

LAST = 5  # evaluations, whose mean return is what a trial is worth
ENDED = 75  # the exit code of a run that was asked to end before it was done
DIVERGED = re.compile("became -?(nan|inf);")  # what a run says when a metric is not finite
PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>: which signal a process gets when the one that started it has died
MEMORY = 0.75  # of an accelerator's, which JAX takes for a process that is alone on it


def words(run: Run, values: dict[str, float]) -> list[str]:
    """The flags of scripts/train that make a trial's run, of these values of what is tuned."""
    given = {name: word for name, word in flags.words_of_run().items() if name not in ("agent", "env", "tune")}
    cluster = [flags.FLAGS[name] for name in settings.declarations(RayCluster)]
    typed = configs.check_types(configs.fields(run.agent), values)
    return [
        *(f"--agent={run.agent}", f"--env={run.env}", *given.values()),
        *(flag.serialize() for flag in cluster if flag.present),
        *(f"--config.{name}={value!r}" for name, value in typed.items()),
    ]


def evaluations(logdir: pathlib.Path) -> list[tuple[float, float]]:
    """(environment steps, mean return) of a run's evaluations, those of a sitting that was lost left out."""
    found: list[tuple[float, float]] = []
    for row in metrics.read(logdir / "evaluator.csv"):
        while found and found[-1][0] >= row["env_steps"]:
            found.pop()
        if math.isfinite(row["return_mean"]):
            found.append((row["env_steps"], row["return_mean"]))
    return found


class RunningTrial:
    """A trial whose run goes on in a process of its own."""

    def __init__(self, trial: optuna.Trial, run: Run, sweep: pathlib.Path, cores: Sequence[int]):
        """Starts it.

        Args:
          trial: Optuna's, with its values.
          run: what all trials of the sweep have in common.
          sweep: its folder.
          cores: those that the process may compute on.
        """
        self.trial, self.pruned = trial, False
        self._period, self._logdir = run.eval_period, sweep / f"trial_{trial.number}"
        self._reported = set(trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values)
        self._log = RoleLog(sweep, f"trial_{trial.number}", say)
        arguments = [*words(run, trial.params), f"--logdir={self._logdir}", f"--unfinished_code={ENDED}"]
        # In a session of its own: a terminal's Ctrl-C is to reach the sweep alone, which asks its trials to end.
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
        """Tells Optuna of the run's evaluations, and how it ended; whether it has. One that is not worth going on with
        is asked to end.

        Raises:
          UsageError: it ended by an error.
        """
        code = self.process.poll()
        self._log.tell_warnings()
        seen, news = evaluations(self._logdir), False
        value = math.nan
        for index, (env_steps, _) in enumerate(seen):
            value = statistics.fmean(mean for _, mean in seen[max(0, index + 1 - LAST) : index + 1])
            step = int(env_steps // self._period)  # trials are compared where they have come equally far
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
            stop.set()  # a notice, or somebody's signal
        else:
            how = f"was killed by signal {-code}" if code < 0 else f"ended with {code}"
            said = self._log.last_words().removeprefix("error: ")
            raise UsageError(f"{name} {how}: {said} ({self._log.path}); the same command goes on with the sweep")
        return True

    def _tell_pruned(self, text: str) -> None:
        self.trial.study.tell(self.trial, state=optuna.trial.TrialState.PRUNED)
        say(text)


def memory_share(jobs: int) -> Mapping[str, str]:
    """What is set for a trial in its environment: of several at a time each has a part of an accelerator's memory."""
    set_already = {"XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"} & os.environ.keys()
    return {} if jobs == 1 or set_already else {"XLA_CLIENT_MEM_FRACTION": f"{MEMORY / jobs:.4f}"}


def say(text: str) -> None:
    with contextlib.suppress(OSError):  # a sweep outlives its terminal
        print(text, flush=True)
