"""Kills, ends and stops processes of real training runs, one or two at once, and checks that the runs recover.

  scripts/chaos --kills=100                       # half in a run with a queue, half in one with two replay servers
  scripts/chaos --kills=5 --finish --runs=queue   # then lets the run go on to its end, and prints its score
  scripts/chaos --kills=0 --finish --runs=queue   # the same run without faults, to compare with
  scripts/chaos --kills=20 --placement=ray        # hits processes that Ray keeps alive
  scripts/chaos --kills=20 --placement=pod        # hits one of two hosts: the other must end, and both start again

After each fault the learner, and the actors that the fault hit, must write new rows of metrics within --patience
seconds. If the learner has written nothing since it last started, this time is longer by as much as the run's first
start took. After every few faults the launcher itself is ended or killed by a signal. Within --patience seconds all
processes of the run must then be gone. No checkpoint may be lost: the newest must be at least as new as any that was
seen before, and scripts/evaluate must be able to play it. Then the same command continues the run.

With --placement=pod, a fault in one host must end both hosts within --patience seconds. If the hosts had not begun to
learn, this time is longer by as much as a start takes, and by the --connect_seconds for which hosts wait for each
other. Then both hosts are started again, and must learn. The same --seed makes the same faults at the same intervals.
"""

import contextlib
import dataclasses
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator

from launchers import flags
from launchers.ports import free_port
from launchers.settings import UsageError, setting
from runtime import metrics
from runtime.hosts import LOST_SECONDS

ROOT = pathlib.Path(__file__).resolve().parents[1]


@dataclasses.dataclass
class Chaos:
    kills: int = setting(20, "number of faults, over all runs together", least=0)
    seed: int = setting(0, "the random seed of the faults and of the runs", least=0)
    placement: str = setting("processes", "the --placement of the runs", choices=("processes", "pod", "ray"))
    runs: str = setting(
        "queue,replay",
        "which runs, with commas between: queue (IMPALA on CartPole-v1), replay (DDPG on Pendulum-v1, two replay "
        "servers)",
    )
    stop_seconds: float = setting(60.0, "seconds for which a process that is stopped (SIGSTOP) stands still", least=0)
    patience: float = setting(30.0, "seconds within which a run must have recovered from a fault", least=0)
    finish: bool = setting(
        False, "let the runs go on to their end after the faults, and print the score that each reached"
    )
    logdir: pathlib.Path = setting(
        None, "the folder in which the runs are kept", default_words="a temporary folder, removed if all went well"
    )


ENDLESS = "--max_env_steps=1000000000"
PER_LAUNCH = 6  # faults from one start of the launcher to its end; a launcher restarts a process at most ten times
RUNS = {
    "queue": ["--agent=impala", "--env=CartPole-v1", "--num_actors=2", "--actors_per_process=1"],
    "replay": [
        "--agent=ddpg",
        "--env=Pendulum-v1",
        "--num_actors=2",
        "--actors_per_process=1",
        "--num_replay_servers=2",
        "--config.replay=prioritized",
        "--config.min_replay_size=500",
    ],
}
HOSTS = 2  # hosts of a pod
LOST = 2  # the exit code of a host that has lost another
CONNECT_SECONDS = 30  # seconds in which a pod's hosts must meet
ENDS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL]  # the signals that end the launcher
SIGNALS = [signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP]  # the faults; one is drawn uniformly


class Failure(Exception):
    """A run did not take a fault as it should."""


def wait_for(what: str, condition: Callable[[], bool], seconds: float) -> float:
    """Waits until `condition()` is true; returns the seconds that this took.

    Raises:
      Failure: it was not true within `seconds`.
    """
    start = time.monotonic()
    while not condition():
        if time.monotonic() - start > seconds:
            raise Failure(f"waited {seconds:.0f} s for {what}")
        time.sleep(0.1)
    return time.monotonic() - start


def processes_of(logdir: pathlib.Path) -> Iterator[tuple[dict[str, str], int]]:
    """Yields the flags (name -> value) and the process id of each live role process of a run."""
    for entry in pathlib.Path("/proc").iterdir():
        try:
            arguments = (entry / "cmdline").read_text().replace("\0", " ").split()
            alive = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
        except (OSError, ValueError, IndexError):
            continue
        if alive and "launchers.role" in arguments and f"--logdir={logdir}" in arguments:
            yield dict(each.lstrip("-").split("=", 1) for each in arguments if "=" in each), int(entry.name)


def played_below(launcher: int) -> Iterator[tuple[str, int]]:
    """Yields the role's name and the process id of each live process below a launcher in which Ray plays a role."""
    parents, names = {}, {}
    for entry in pathlib.Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError, IndexError):
            title = (entry / "cmdline").read_text().strip("\0 ")
            state, parent = (entry / "stat").read_text().rsplit(")", 1)[1].split()[:2]
            parents[int(entry.name)] = int(parent)
            found = re.fullmatch(r"ray::((replay|learner|evaluator|actor)_\d+)", title)
            if found and state != "Z":
                names[int(entry.name)] = found[1]
    for process, name in names.items():
        above: int | None = process
        while above and above != launcher:
            above = parents.get(above)
        if above:
            yield name, process


@dataclasses.dataclass
class Run:
    """A run, which may be started and ended any number of times."""

    name: str
    logdir: pathlib.Path
    arguments: list[str]  # flags besides those of RUNS
    patience: float  # seconds in which the run must have recovered from a fault
    placement: str = "processes"
    newest: int = 0  # updates of the newest checkpoint seen so far
    slowest: float = 0.0  # seconds of the slowest recovery so far
    start_up: float = 0.0  # seconds that the run's first start took
    rows_before: int = 0  # rows that the learner had written before the run's last start
    launcher: subprocess.Popen = dataclasses.field(init=False)
    hosts: list[subprocess.Popen] = dataclasses.field(init=False)

    def start(self) -> None:
        command = [str(ROOT / "scripts" / "train"), *RUNS[self.name], f"--placement={self.placement}", *self.arguments]
        command += [f"--logdir={self.logdir}", "--checkpoint_seconds=5"]
        self.logdir.mkdir(parents=True, exist_ok=True)
        self.rows_before = self.rows("learner")
        with open(self.logdir / "launcher.log", "ab") as log:
            self.launcher = subprocess.Popen(command, stdout=log, stderr=log)

    def processes(self) -> dict[str, int]:
        """Returns the live role processes, name -> process id."""
        if self.placement == "ray":
            return dict(played_below(self.launcher.pid))
        return {f"{given['role']}_{given['task']}": process for given, process in processes_of(self.logdir)}

    def rows(self, role: str) -> int:
        return len(metrics.read(self.logdir / f"{role}.csv"))

    @property
    def over(self) -> bool:
        return self.launcher.poll() is not None

    def wait_for_rows(self, roles: list[str], seconds: float, starting: float) -> None:
        """Returns once each of `roles` has written two more rows, or the run is done.

        Raises:
          Failure: that took more than `seconds` and `starting` seconds together, or the launcher failed.
        """
        before = {role: self.rows(role) for role in roles}

        def more() -> bool:
            if self.launcher.poll():
                raise Failure(f"the launcher ended with exit code {self.launcher.returncode}")
            return self.over or all(self.rows(role) >= count + 2 for role, count in before.items())

        waited = wait_for(f"rows of {', '.join(roles)}", more, seconds + starting)
        self.slowest = max(self.slowest, waited - starting)

    def check_checkpoints(self) -> None:
        saved = [int(path.name.split("_")[-1]) for path in (self.logdir / "checkpoints").glob("learner_steps_*[0-9]")]
        if saved and max(saved) < self.newest:
            raise Failure(f"the checkpoint of update {self.newest} is gone: the newest is of {max(saved)}")
        self.newest = max([self.newest, *saved])

    def fault(self, rng: random.Random, stop_seconds: float) -> str:
        """Does a fault to one or two processes and waits for the run to recover; returns in words what it did."""
        time.sleep(rng.uniform(0.0, 8.0))  # so that some processes are hit while they start
        wait_for("a role's process", lambda: bool(self.processes()) or self.over, 120.0)
        alive = self.processes()
        victims = rng.sample(sorted(alive), min(len(alive), rng.choice([1, 1, 2])))
        number = rng.choice(SIGNALS)
        for victim in victims:
            _send(alive[victim], number)
        if number == signal.SIGSTOP:
            time.sleep(stop_seconds)
            for victim in victims:
                _send(alive[victim], signal.SIGCONT)
        writing = [victim for victim in victims if victim.startswith("actor")]
        starting = self.rows("learner") <= self.rows_before
        self.wait_for_rows(["learner", *writing], self.patience, self.start_up if starting else 0.0)
        self.check_checkpoints()
        return f"{number.name} of {' and '.join(victims) or 'nobody: the run is done'}"

    def end(self, number: signal.Signals | None) -> None:
        """Ends the launcher by a signal, or, if it is None, waits until it ends by itself; then checks what it left.

        Raises:
          Failure: something is not as it should be.
        """
        if number:
            self.launcher.send_signal(number)
        wait_for("the launcher's end", lambda: self.over, self.patience if number else 3600.0)
        if self.launcher.returncode != (-number if number == signal.SIGKILL else 0):
            raise Failure(f"the launcher ended with exit code {self.launcher.returncode}")
        wait_for("the last process to be gone", lambda: not self.processes(), self.patience)
        self.check_checkpoints()
        self.check_evaluates()

    def check_evaluates(self) -> None:
        """Raises Failure unless the newest checkpoint can be evaluated."""
        command = [str(ROOT / "scripts" / "evaluate"), f"--logdir={self.logdir}", "--episodes=5"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        except subprocess.TimeoutExpired as error:
            raise Failure(f"waited {error.timeout:.0f} s for the end of evaluate") from error
        if done.returncode:
            raise Failure(f"evaluate ended with exit code {done.returncode}: {done.stderr.strip()[-300:]}")

    def go_on(self) -> None:
        """Has the run go on after a fault. Does nothing here, because the launcher itself does that."""

    def kill(self) -> None:
        """Kills all processes of the run that are left."""
        self.launcher.kill()
        for process in self.processes().values():
            _send(process, signal.SIGKILL)
        wait_for("the killed run's end", lambda: not self.processes(), 60.0)

    def score(self) -> str:
        last = metrics.latest(self.logdir, "evaluator")
        return f"{last['return_mean']:.1f} at {last['env_steps']:,.0f} env steps" if last else "none"


class PodRun(Run):
    """A run of a pod of two hosts on this machine. A fault of one ends both, but for a stop below LOST_SECONDS."""

    def start(self) -> None:
        port = free_port()
        of_run = [word for word in RUNS[self.name] if not word.startswith("--actors_per_process")]
        command = [str(ROOT / "scripts" / "train"), *of_run, "--placement=pod", *self.arguments]
        command += [f"--logdir={self.logdir}", "--checkpoint_seconds=5", f"--coordinator=localhost:{port}"]
        command += [f"--connect_seconds={CONNECT_SECONDS}"]
        self.logdir.mkdir(parents=True, exist_ok=True)
        self.rows_before = self.rows("learner")
        self.hosts = []
        for host in range(HOSTS):
            with open(self.logdir / f"host_{host}.log", "ab") as log:
                words = [*command, f"--num_hosts={HOSTS}", f"--host={host}"]
                self.hosts.append(subprocess.Popen(words, stdout=log, stderr=log))
        self.launcher = self.hosts[0]

    def processes(self) -> dict[str, int]:
        return {f"host_{index}": host.pid for index, host in enumerate(self.hosts) if host.poll() is None}

    @property
    def over(self) -> bool:
        return not self.processes()

    def fault(self, rng: random.Random, stop_seconds: float) -> str:
        time.sleep(rng.uniform(0.0, 8.0))
        victim, number = rng.randrange(HOSTS), rng.choice([*SIGNALS, *ENDS[:2]])
        process = self.hosts[victim]
        process.send_signal(number)
        if number == signal.SIGSTOP:
            time.sleep(stop_seconds)
            process.send_signal(signal.SIGCONT)
            if stop_seconds < LOST_SECONDS:  # the other host takes it for lost only after that
                self.wait_for_rows(["learner"], self.patience, self.start_up)
                return f"{number.name} of host_{victim}, which went on"
        starting = CONNECT_SECONDS + self.start_up if self.rows("learner") <= self.rows_before else 0.0
        waited = wait_for("both hosts' ends", lambda: self.over, self.patience + starting)
        self.slowest = max(self.slowest, waited - starting)
        # While hosts meet, one that is asked to end does so by the signal alone, for they cannot agree on it yet.
        allowed = {0, LOST, -number, 128 + number}
        for host, each in enumerate(self.hosts):
            if each.returncode not in allowed:
                raise Failure(f"host_{host} ended with exit code {each.returncode}")
        self.check_checkpoints()
        return f"{number.name} of host_{victim}"

    def go_on(self) -> None:
        if not self.over:
            return
        self.start()
        before = self.rows("learner")
        seconds = self.patience + self.start_up
        wait_for("rows of the learner", lambda: self.over or self.rows("learner") > before, seconds)
        if self.over:
            raise Failure(f"the hosts ended with exit codes {[host.returncode for host in self.hosts]}")

    def end(self, number: signal.Signals | None) -> None:
        if number:
            self.launcher.send_signal(number)
        wait_for("both hosts' ends", lambda: self.over, self.patience if number else 3600.0)
        self.check_checkpoints()
        self.check_evaluates()

    def kill(self) -> None:
        for process in self.processes().values():
            _send(process, signal.SIGKILL)
        wait_for("the killed run's end", lambda: self.over, 60.0)


def _send(process: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, number)


def folder_for_runs(logdir: pathlib.Path | None, name: str) -> pathlib.Path:
    """Returns the folder for the runs of the command `name`, prints it, and makes this process ready to start them."""
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)  # under nohup the launchers, too, would ignore this signal
    folder = pathlib.Path(logdir or tempfile.mkdtemp(prefix=f"shoal_{name}_")).absolute()
    print(f"the runs are in {folder}", flush=True)
    return folder


def named(runs: str) -> list[str]:
    """Returns the names of RUNS in a flag.

    Raises:
      UsageError: a name is not in RUNS, or there twice.
    """
    names = runs.split(",")
    if unknown := set(names) - set(RUNS):
        raise UsageError(f"--runs={runs}: {unknown.pop()!r} is not one of {', '.join(RUNS)}")
    if len(set(names)) < len(names):
        raise UsageError(f"--runs={runs}: name each run once")
    return names


def harass(run: Run, kills: int, finish: bool, stop_seconds: float, rng: random.Random) -> list[str]:
    """Does `kills` faults to a run, which then goes on to its end if `finish`; returns what went wrong."""
    failures, done = [], 0
    while True:
        run.start()
        own_end = False
        try:
            if not run.start_up:
                run.start_up = wait_for("the first rows", lambda: run.rows("learner") > 0 or run.over, 180.0)
            for _ in range(min(PER_LAUNCH, kills - done)):
                done += 1
                words = run.fault(rng, stop_seconds)
                run.go_on()
                print(f"{run.name} {done}/{kills}: {words}; slowest so far {run.slowest:.0f} s", flush=True)
            own_end = run.over or (finish and done >= kills)
            number = None if own_end else rng.choice(ENDS)
            run.end(number)
            print(f"{run.name}: ended {f'by {number.name}' if number else 'by itself'}", flush=True)
        except Failure as failure:
            failures.append(str(failure))
            print(f"{run.name} {done}/{kills}: FAILED: {failure} ({run.logdir})", flush=True)
        finally:
            run.kill()  # what is left after a failure, or when this command is ended
        if own_end or (done >= kills and not finish):
            return failures


@flags.command(Chaos)
def chaos() -> int:
    asked = flags.FLAGS
    names = named(asked.runs)
    arguments = [f"--seed={asked.seed}", *([] if asked.finish else [ENDLESS])]
    folder, failures = folder_for_runs(asked.logdir, "chaos"), []
    for index, name in enumerate(names):
        kind = PodRun if asked.placement == "pod" else Run
        run = kind(name, folder / name, arguments, asked.patience, asked.placement)
        share = len(range(index, asked.kills, len(names)))
        rng = random.Random(f"{asked.seed} {name}")
        failures += harass(run, share, asked.finish, asked.stop_seconds, rng)
        print(f"{name}: {share} faults; recovery took {run.slowest:.0f} s at most; score {run.score()}", flush=True)
    print(f"{asked.kills} faults, {len(failures)} failures" + (f"; look in {folder}" if failures else ""))
    if not failures and not asked.logdir:
        shutil.rmtree(folder)
    return int(bool(failures))


if __name__ == "__main__":
    flags.main(chaos)
