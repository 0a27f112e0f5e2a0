"""Remakes, records and checks the baselines of launchers/baselines.py.

  scripts/baseline --list                    # what there is, what was recorded, how long it takes
  scripts/baseline ppo-CartPole-v1           # makes the seeds that are not recorded yet, and draws
  scripts/baseline 'ppo-*' --jobs=2          # two runs at a time, each on its share of the cores
  scripts/baseline --check ppo-CartPole-v1   # does a fresh seed come to what was recorded?
  scripts/baseline --pages                   # writes the pages that say what was recorded

A run is made by scripts/train in LOGDIR/NAME/seedN. At its end scripts/evaluate plays 100 episodes with the last
checkpoint. The run is recorded in docs/results/NAME, as config.json, record.json, seedN.csv and curve.png. The same
command goes on with a run that was stopped.
"""

import concurrent.futures
import contextlib
import dataclasses
import json
import os
import pathlib
import platform
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import rich.console
import rich.table

from launchers import baselines, flags, settings
from launchers.baselines import Baseline
from launchers.recorded import learners_in
from launchers.settings import UsageError, setting
from launchers.shutdown import Stop, stop_on_signals
from launchers.sweep import share_of
from runtime import metrics, records, statistics
from runtime.files import replacing
from runtime.records import Record, Result

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
CODE = ("agents", "environments", "launchers", "replay", "requirements", "runtime")
LOG = "log_0.csv"  # the rows that the environments of a run's first actor logged
CPU_SECONDS = "cpu_seconds.txt"  # the file in a run's folder that adds up the CPU time of its sittings
FRESH = 1000  # the seed of --check, which no record has


@dataclasses.dataclass
class Asked:
    seeds: int = setting(
        None,
        "number of seeds that each baseline is to have on record, numbered from 0",
        least=1,
        default_words="the baseline's own",
    )
    jobs: int = setting(1, "number of runs at a time, each on its share of the cores", least=1)
    again: bool = setting(False, "also make anew the seeds that are recorded already")
    check: bool = setting(
        False, "make one run with a seed that no record has, and say whether its return is as good as what was recorded"
    )
    list: bool = setting(False, "list the baselines, what was recorded of them, and how long a run takes")
    pages: bool = setting(False, "write the pages of the documentation that show what was recorded")
    all: bool = setting(False, "take every baseline, instead of those that are named")
    minutes: float = setting(
        None,
        "leave out baselines of which one run takes longer than this number of minutes",
        least=0,
        default_words="no limit",
    )
    episodes: int = setting(100, "number of episodes for which the last checkpoint is evaluated", least=1)
    logdir: pathlib.Path = setting(
        ROOT / "runs" / "baselines", "the folder in which the runs are kept", default_words="runs/baselines"
    )
    out: pathlib.Path = setting(RESULTS, "the folder in which the records are kept", default_words="docs/results")


class Played(NamedTuple):
    """The results that scripts/evaluate printed."""

    return_mean: float
    return_std: float
    episodes: int
    env_steps: int
    params: str


class Failure(Exception):
    """A run did not come to its end."""


class Runs:
    """Makes runs with scripts/train and scripts/evaluate, several at a time; a signal ends them in good order."""

    def __init__(self, asked: Asked, stop: Stop):
        self._asked, self._stop = asked, stop
        self._children: set[subprocess.Popen] = set()
        self._lock = threading.Lock()
        cores = sorted(os.sched_getaffinity(0))
        self._shares = [share_of(cores, job, asked.jobs) for job in range(asked.jobs)]

    def make(self, baseline: Baseline, seed: int, logdir: pathlib.Path) -> Result:
        """Trains one seed in `logdir`, or goes on with a run that is there, and evaluates it.

        Raises:
          Failure: training or evaluating failed, or all runs were asked to end.
        """
        with self._lock:
            share = self._shares.pop()
        try:
            os.sched_setaffinity(0, share)  # for this thread, and so for the processes that it starts
            words = [*baseline.flags.split(), f"--seed={seed}", f"--logdir={logdir}"]
            logdir.mkdir(parents=True, exist_ok=True)
            self._play(["scripts/train", *words], logdir, logdir / CPU_SECONDS)
            learners = learners_in(logdir)
            played = [self._evaluate(each, logdir) for each in learners]
        finally:
            with self._lock:
                self._shares.append(share)
        # The learner's rows count too: with placement serial, the evaluator's clock starts at its first evaluation.
        last = [metrics.read(each / f"{role}.csv")[-1] for each in learners for role in ("evaluator", "learner")]
        return Result(
            return_mean=sum(each.return_mean for each in played) / len(played),
            return_std=played[0].return_std if len(played) == 1 else None,
            episodes=sum(each.episodes for each in played),
            env_steps=max(each.env_steps for each in played),
            wall_seconds=round(max(row["wall_seconds"] for row in last), 1),
            cpu_seconds=spent(logdir / CPU_SECONDS),
            params=played[0].params if len(played) == 1 else None,
            date=time.strftime("%Y-%m-%d"),
            **_origin(len(share)),
        )

    def _evaluate(self, member: pathlib.Path, logdir: pathlib.Path) -> Played:
        said = self._play(["scripts/evaluate", f"--logdir={member}", f"--episodes={self._asked.episodes}"], logdir)
        (line,) = (line for line in said.splitlines() if line.startswith("episodes="))
        found = dict(word.split("=", 1) for word in line.split())
        return Played(
            float(found["return_mean"]),
            float(found["return_std"]),
            int(found["episodes"]),
            int(found["env_steps"]),
            found["params"],
        )

    def _play(self, command: list[str], logdir: pathlib.Path, costs: pathlib.Path | None = None) -> str:
        """Runs a command; returns what it printed, which LOGDIR/baseline.log keeps. The CPU seconds that it took are
        added to the number in the file `costs`, however it ends.

        Raises:
          Failure: the command failed, or all runs were asked to end.
        """
        log = logdir / "baseline.log"
        with open(log, "a+") as file:
            start = file.seek(0, os.SEEK_END)
            with self._lock:
                if self._stop.is_set():
                    raise Failure("ended on request")
                # In a session of its own it does not get Ctrl-C: this process does, and ends it in good order.
                child = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file, start_new_session=True)
                self._children.add(child)
            _, status, used = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
            if costs:
                with replacing(costs) as new:
                    new.write_text(f"{spent(costs) + used.ru_utime + used.ru_stime:.1f}\n")
            with self._lock:
                self._children.remove(child)
            file.seek(start)
            said = file.read()
        if self._stop.is_set():
            raise Failure("ended on request")
        if child.returncode:
            words = (said.strip().splitlines() or ["it said nothing"])[-1]
            raise Failure(f"{command[0]} ended with {child.returncode}: {words} ({log} has the rest)")
        return said

    def end(self) -> None:
        """Asks every run to save what it has and end."""
        with self._lock:
            for child in self._children:
                with contextlib.suppress(ProcessLookupError):
                    child.send_signal(signal.SIGTERM)


def spent(costs: pathlib.Path) -> float:
    """Returns the CPU seconds that a run's sittings have taken so far, as its file `costs` has them; 0 without one."""
    return float(costs.read_text()) if costs.exists() else 0.0


def _origin(cores: int) -> dict[str, str]:
    """Returns the fields of a Result that say with which code and on what machine a run was made."""
    git = ["git", "-C", str(ROOT)]
    commit = changed = ""
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        commit = subprocess.check_output([*git, "rev-parse", "--short=10", "HEAD"], text=True).strip()
        changed = subprocess.check_output([*git, "status", "--porcelain", "--", *CODE], text=True).strip()
    stamp = pathlib.Path(sys.prefix, "shoal.stamp").read_text().split()
    stack = "" if stamp[2] == "3.11" else "next-"
    processor = re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
    return {
        "commit": commit + ("+" if changed else ""),
        "lock": f"{stack}{stamp[0]}.lock {stamp[1][:12]}, Python {platform.python_version()}",
        "machine": f"{cores} core{'s' * (cores > 1)} of {processor[1] if processor else platform.machine()}",
    }


def _settings(logdir: pathlib.Path) -> dict:
    """Returns the settings that all seeds of a run's baseline have in common."""
    saved = json.loads((learners_in(logdir)[0] / "config.json").read_text())
    return {name: value for name, value in saved.items() if name != "seed"}


def record(baseline: Baseline, seed: int, result: Result, logdir: pathlib.Path, out: pathlib.Path) -> None:
    """Adds a seed to a baseline's record and draws its curve.

    Recorded seeds are removed if their decisive settings differ, or an older version made them and kept no settings.
    They are removed first, so that no result ever stands beside other settings, whatever ends the process.
    """
    folder = out / baseline.name
    folder.mkdir(parents=True, exist_ok=True)
    config, known = folder / "config.json", records.read(folder)
    made = _settings(logdir)
    same = config.exists() and settings.decisive(json.loads(config.read_text())) == settings.decisive(made)
    kept = {} if known is None or not same else known.results
    if known and not kept:
        records.write(folder, dataclasses.replace(known, results={}))
        for path in [*folder.glob("seed*.csv"), *folder.glob("log-seed*.csv")]:
            path.unlink()
    with replacing(config) as new:
        new.write_text(json.dumps(made, indent=1) + "\n")
    for learner in learners_in(logdir):
        name = f"seed{seed}.csv" if learner == logdir else f"seed{seed}-{learner.name}.csv"
        shutil.copyfile(learner / "evaluator.csv", folder / name)
        if (learner / LOG).exists():
            shutil.copyfile(learner / LOG, folder / f"log-{name}")
    command = f"scripts/train {baseline.flags}"
    records.write(folder, Record(command, {**kept, seed: result}))
    from runtime import plot  # imported only here: it brings Matplotlib

    lines = {"published": baseline.published.value} if baseline.published and baseline.published.value else {}
    plot.draw([folder], folder / "curve.png", settings.decisive, published=lines)
    plot.draw_lineages(logdir, folder / f"lineages-seed{seed}.png")


def missing(baseline: Baseline, asked: Asked) -> Iterator[int]:
    """Yields the seeds that are to be made."""
    known = records.read(asked.out / baseline.name)
    for seed in range(asked.seeds or baseline.seeds):
        if asked.again or known is None or seed not in known.made:
            yield seed


def make(chosen: list[Baseline], asked: Asked, stop: Stop, say: Callable[[str], None]) -> int:
    """Makes and records the seeds that are missing; returns the exit code."""
    tasks = [(baseline, seed) for baseline in chosen for seed in missing(baseline, asked)]
    say(f"{len(tasks)} runs, about {_hours(sum(baseline.minutes for baseline, _ in tasks) / asked.jobs)}")
    runs, lock, done, failed = Runs(asked, stop), threading.Lock(), 0, 0

    def play(baseline: Baseline, seed: int) -> None:
        nonlocal done, failed
        logdir = asked.logdir.absolute() / baseline.name / f"seed{seed}"
        if asked.again:
            shutil.rmtree(logdir, ignore_errors=True)
        try:
            result = runs.make(baseline, seed, logdir)
        except Failure as error:
            failed += 1
            if not stop.is_set():
                say(f"{baseline.name}, seed {seed}: {error}")
            return
        with lock:
            done += 1
            record(baseline, seed, result, logdir, asked.out)
            words = f"{baseline.name}, seed {seed}: {records.number(result.return_mean)}"
            say(f"{words} in {result.wall_seconds:.0f} s; {done} of {len(tasks)}")

    _wait([(play, task) for task in tasks], asked.jobs, runs, stop)
    if stop.is_set():
        say(f"ended on request; the same command {'makes all seeds anew' if asked.again else 'goes on'}")
        return stop.exit_code
    return 1 if failed else 0


def check(chosen: list[Baseline], asked: Asked, stop: Stop, say: Callable[[str], None]) -> int:
    """Makes a fresh seed of each baseline and compares it with the record; returns the exit code."""
    runs, verdicts = Runs(asked, stop), []

    def play(baseline: Baseline) -> None:
        folder = asked.out / baseline.name
        logdir = asked.logdir.absolute() / baseline.name / "check"
        shutil.rmtree(logdir, ignore_errors=True)
        try:
            known = records.read(folder)
            assert known is not None
            fresh = runs.make(baseline, FRESH, logdir).return_mean
        except Failure as error:
            verdicts.append(False)
            if not stop.is_set():
                say(f"{baseline.name}: {error}")
            return
        passed, words = compare(baseline, known, fresh)
        verdicts.append(passed)
        say(f"{baseline.name}: {words}")

    _wait([(play, (baseline,)) for baseline in chosen], asked.jobs, runs, stop)
    if stop.is_set():
        return stop.exit_code
    return 0 if all(verdicts) else 1


def compare(baseline: Baseline, known: Record, fresh: float) -> tuple[bool, str]:
    """Returns whether a fresh seed's return comes to what was recorded, and a sentence about that for the terminal.

    It does if it is not below the interval in which a further seed lies with 99 % confidence, or if it is at least the
    baseline's `reproduced`.
    """
    low, high = statistics.predicted(known.returns)
    interval = f"[{records.number(low)}, {records.number(high)}]"
    recorded = f"{len(known.results)} recorded seeds: {records.spoken(known.returns)}; a further one: {interval}"
    words = f"a fresh seed came to {records.number(fresh)}; {recorded}"
    if fresh >= low:
        return True, f"{words}: {'within' if fresh <= high else 'above'}"
    if baseline.reproduced is not None and fresh >= baseline.reproduced:
        return True, f"{words}: below, but reproduced from {records.number(baseline.reproduced)} on"
    return False, f"{words}: below"


def _wait(calls: list, jobs: int, runs: Runs, stop: Stop) -> None:
    """Makes all calls, `jobs` at a time, and waits until they return. Once `stop` is set it asks the runs to end and
    begins no more calls. It raises what a call raised."""
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(function, *arguments) for function, arguments in calls]
        while not all(future.done() for future in futures):
            if stop.wait(0.2):
                runs.end()
                for future in futures:
                    future.cancel()
                break
    for future in futures:
        if not future.cancelled():
            future.result()


def table(chosen: list[Baseline], asked: Asked) -> rich.table.Table:
    shown = rich.table.Table("baseline", "seeds", "return", "minutes a run")
    for baseline in chosen:
        known = records.read(asked.out / baseline.name)
        made = len(known.made) if known else 0
        said = records.spoken(known.returns) + (" (earlier version)" if known.is_earlier else "") if known else ""
        shown.add_row(baseline.name, f"{made} of {baseline.seeds}", said, f"{baseline.minutes:g}")
    return shown


def _hours(minutes: float) -> str:
    return f"{minutes / 60:.1f} hours" if minutes >= 90 else f"{minutes:.0f} minutes"


@flags.command(Asked, arguments="the baselines' names, or patterns such as 'ppo-*'")
def baseline(*names: str) -> int:
    given: dict[str, Any] = {field.name: flags.FLAGS[field.name].value for field in dataclasses.fields(Asked)}
    asked = Asked(**given)
    console = rich.console.Console(soft_wrap=True)
    if names and asked.all:
        raise UsageError("--all takes every baseline: leave the names out, or leave --all out")
    if not names and not (asked.all or asked.list or asked.pages):
        raise UsageError("baseline needs names, a pattern such as 'ppo-*', or --all; --list lists them")
    chosen = baselines.select(names or ["*"])
    if asked.minutes is not None:
        chosen = [each for each in chosen if each.minutes <= asked.minutes]
    if asked.list:
        console.print(table(chosen, asked))
        return 0
    if asked.pages:
        from scripts import pages

        pages.write(asked.out)
        return 0
    say = lambda words: console.print(words, markup=False, highlight=False)
    if not asked.check:
        return make(chosen, asked, stop_on_signals(), say)
    unknown = [each.name for each in chosen if records.read(asked.out / each.name) is None]
    if unknown and names:
        raise UsageError(f"{', '.join(unknown)}: --check has no recorded result to compare a fresh seed with")
    return check([each for each in chosen if each.name not in unknown], asked, stop_on_signals(), say)


if __name__ == "__main__":
    flags.main(baseline)
