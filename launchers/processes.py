"""Placement `processes`: each role a process of its own, started, watched, restarted and ended here.

The launcher computes nothing: it may be killed without harm to what was saved, and its children end with it.
"""

import ctypes
import pathlib
import signal
import subprocess
import sys
import time

from launchers import population as populations
from launchers.ports import free_port
from launchers.run import Run, UsageError
from launchers.shutdown import stop_on_signals
from launchers.terminal import Display

MAX_RESTARTS = 10  # of one process; then the run ends
HEALTHY_SECONDS = 300.0  # a process that lived so long starts again with a clean slate
GRACE_SECONDS = 90.0  # for a child to end once asked; then it is killed
PR_SET_PDEATHSIG = 1


class Process:
    """One role's process and its history of restarts."""

    def __init__(self, name: str, arguments: list[str], logdir: pathlib.Path):
        self.name, self._arguments = name, arguments
        self.log = logdir / "logs" / f"{name}.log"
        self.log.parent.mkdir(exist_ok=True)
        self.restarts, self._restart_at = 0, 0.0
        self._popen: subprocess.Popen | None
        self._start()

    def _start(self) -> None:
        self._started = time.monotonic()
        with open(self.log, "ab") as log:
            self._popen = subprocess.Popen(
                [sys.executable, "-P", "-m", "launchers.role", *self._arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches the launcher alone, which ends the roles in order
                preexec_fn=_die_with_parent,
            )

    def poll(self) -> int | None:
        """The exit code, once it has ended (negative: the signal that ended it)."""
        return self._popen.poll() if self._popen else None

    def watch(self) -> str | None:
        """Restarts the process if it died, after a while that doubles each time; the news, if there are any.

        Raises:
          UsageError: it ended with exit code 2 (a person must mend something) or died too often.
        """
        now = time.monotonic()
        if self._popen is None:
            if now >= self._restart_at:
                self._start()
            return None
        code = self._popen.poll()
        if code is None:
            return None
        if code == 2:
            raise UsageError(f"{self.name}: {self.last_line().removeprefix('error: ')}")
        if now - self._started > HEALTHY_SECONDS:
            self.restarts = 0
        if self.restarts >= MAX_RESTARTS:
            raise UsageError(f"{self.name} died {MAX_RESTARTS + 1} times; its last words are in {self.log}")
        delay = min(30.0, 0.5 * 2**self.restarts)
        self.restarts += 1
        self._popen, self._restart_at = None, now + delay
        reason = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return f"{self.name} {reason}; restart {self.restarts} of {MAX_RESTARTS} in {delay:.1f} s ({self.log})"

    def last_line(self) -> str:
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("error: ")]
        return (errors or lines or ["no words"])[-1]

    def terminate(self) -> None:
        if self._popen and self._popen.poll() is None:
            self._popen.terminate()

    def wait(self, deadline: float) -> None:
        """Waits for the end until `deadline` (of time.monotonic), then kills."""
        if not self._popen:
            return
        try:
            self._popen.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()


def _die_with_parent() -> None:
    """Linux tells this child when the launcher dies, however it dies."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def train(run: Run, logdir: pathlib.Path, port: int) -> None:
    """Trains until `max_env_steps` or a signal; on any way out, every child has ended."""
    ports = [port + task if port else free_port() for task in range(run.num_replay_servers)]
    replay = ",".join(f"localhost:{port}" for port in ports)
    stop = stop_on_signals()
    children: list[Process] = []

    def start(role: str, task: int = 0, member: int | None = None) -> Process:
        name = f"{role}_{task}" if member is None else f"{role}_{task}_member_{member}"
        arguments = [f"--role={role}", f"--task={task}", f"--logdir={logdir.absolute()}"]
        arguments += [f"--port={ports[task]}"] if role == "replay" else [f"--replay={replay}"]
        arguments += [] if member is None else [f"--member={member}"]
        children.append(Process(name, arguments, logdir))
        return children[-1]

    members = populations.learners(run)
    actor_processes = range(-(-run.num_actors // run.actors_per_process))
    try:
        for task in range(run.num_replay_servers):
            start("replay", task)
        learners = [start("learner", 0, member) for member in members]
        evaluators = [start("evaluator", 0, member) for member in members]
        actors = [start("actor", task, member) for member in members for task in actor_processes]
        with Display(run, logdir) as display:
            # A learner ends by itself at max_env_steps; an evaluator once it has evaluated the last parameters.
            for endings in (learners, evaluators):
                while any(ending.poll() != 0 for ending in endings) and not stop.is_set():
                    for child in children:
                        if child.poll() != 0:
                            news = child.watch()
                            if news:
                                display.say(news)
                    display.refresh()
                    stop.wait(0.25)
                if endings is learners and not stop.is_set():
                    end(actors)
                    children = [child for child in children if child not in actors]
    finally:
        # The learner first: it saves, and nothing it needs may end before it has.
        end([child for child in children if child.name.startswith("learner")])
        end([child for child in children if not child.name.startswith("replay")])
        end(children)


def end(children: list[Process]) -> None:
    for child in children:
        child.terminate()
    deadline = time.monotonic() + GRACE_SECONDS
    for child in children:
        child.wait(deadline)
