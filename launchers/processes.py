"""Placement `processes`: each role a process of its own, started, watched, restarted and ended here.

The launcher computes nothing, and starts no accelerator: on a GPU that would take the memory of the learner beside it.
It may be killed without harm to what was saved, and its children end with it. They are forked from one process that has
imported already what roles need (the standard library's forkserver), so that one that died is back in seconds.
"""

import contextlib
import multiprocessing
import multiprocessing.connection
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import pathlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence

import setproctitle

from launchers import flags, program, role
from launchers.ports import free_port
from launchers.run import Run, UsageError
from launchers.shutdown import stop_on_signals
from launchers.supervision import Restarts, RoleLog
from launchers.terminal import Display

Connection = multiprocessing.connection.Connection

GRACE_SECONDS = 90.0  # for a child to end once asked; then it is killed
FORKSERVER_DIED = 255  # the exit code of a process that outlives the one from which it was forked

# What is imported before the roles are forked. Nothing here may start threads that a role needs, or make JAX look for
# devices: a fork would lose the ones and share the others.
PRELOADED = (
    "launchers.roles",
    "launchers.role",
    "replay.server",
    "replay.client",
    "replay.reverb_carrier",
    "environments.envpool",
)
_forks = multiprocessing.get_context("forkserver")


class RoleProcess:
    """A process of a run, and its history of restarts. It starts when it is first looked at."""

    def __init__(
        self,
        name: str,
        arguments: list[str],
        logdir: pathlib.Path,
        say: Callable[[str], None],
        held: Connection | None = None,
        awaited: Sequence[Connection] = (),
    ):
        """
        Args:
          name, logdir: of the role and its run.
          arguments: those of scripts/role.
          say: is told of deaths.
          held: an end of a pipe that tells others, by staying open, that a process of this kind is left.
          awaited: other ends of the pipes of those who need this role: it outlives them if the launcher dies.
        """
        self.name, self._arguments = name, arguments
        self._ends = held, awaited
        self.log = RoleLog(logdir, name, say)
        self._restarts = Restarts(self.log, say)
        self._process: multiprocessing.process.BaseProcess | None = None
        self._start_at, self._deadline = 0.0, 0.0

    def _start(self) -> None:
        self._restarts.begin()
        arguments = self._arguments, self.log.path, *self._ends
        self._process = _forks.Process(target=_play, args=arguments, name=self.name)
        self._process.start()

    def _exit_code(self) -> int | None:
        """None: it runs, or does not yet (again). Negative: the signal that ended it."""
        code = self._process.exitcode if self._process else None
        if self._process and code == FORKSERVER_DIED and pathlib.Path(f"/proc/{self._process.pid}").exists():
            return None
        return code

    def ended(self) -> bool:
        """Starts the process, at first and whenever it died, after a pause that doubles from the third death on.

        With exit code 0 a role says that its work is done; one that was sent a signal says so by another.

        Raises:
          UsageError: it ended with exit code 2 (a person must mend something) or died too often.
        """
        if self._process is None:
            if time.monotonic() >= self._start_at:
                self._start()
            return False
        code = self._exit_code()
        self.log.tell_warnings()
        if code == 2:
            raise UsageError(f"{self.name}: {self.log.last_words().removeprefix('error: ')}")
        if code:
            self._process, self._start_at = None, time.monotonic() + self._restarts.after(_how(code))
        return code == 0

    def ask(self) -> None:
        self._deadline = time.monotonic() + GRACE_SECONDS
        self._signal(signal.SIGTERM)

    def wait(self) -> None:
        """Waits for the end; kills what has not ended in time."""
        while self._process and self._exit_code() is None:
            if time.monotonic() > self._deadline:
                self._signal(signal.SIGKILL)
            time.sleep(0.02)

    def _signal(self, number: signal.Signals) -> None:
        if self._process and self._process.pid and self._exit_code() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, number)


def _how(code: int) -> str:
    """In words, how a process ended with an exit code, as `RoleProcess` has them."""
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    signals = {128 + number: number.name for number in signal.Signals}
    return f"was ended by {signals[code]}" if code in signals else f"ended with exit code {code}"


def _play(
    arguments: list[str], log: pathlib.Path, held: Connection | None = None, awaited: Sequence[Connection] = ()
) -> None:
    """The life of a process: as if scripts/role had been called with these arguments. `held` stays open meanwhile."""
    with open(log, "ab") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    os.setsid()  # Ctrl-C reaches the launcher alone, which ends the roles in order
    signal.pthread_sigmask(signal.SIG_UNBLOCK, UNHEARD)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # no terminal is here to close; see _end_with_launcher
    sys.argv = ["launchers.role", *arguments]
    setproctitle.setproctitle(" ".join(sys.argv))  # for ps
    threading.Thread(target=_end_with_launcher, args=(held, awaited), daemon=True).start()
    flags.main(role.role)


def _end_with_launcher(held: Connection | None, awaited: Sequence[Connection]) -> None:
    """Ends this process if the launcher has ended, however that did, once those who need it have: the learner saves
    while the replay servers still are there. SIGHUP asks, which harms nobody who was asked by SIGTERM before."""
    launcher = multiprocessing.parent_process()
    assert launcher
    launcher.join()
    for pipe in awaited:
        pipe.poll(GRACE_SECONDS)  # until no process holds its other end any more
    os.kill(os.getpid(), signal.SIGHUP)
    time.sleep(GRACE_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


UNHEARD = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}  # by the process from which roles are forked


def _start_forkserver() -> None:
    """Starts the process from which roles are forked. What is sent to all of a terminal's processes it does not hear:
    it ends when the launcher and the roles have."""
    _forks.set_forkserver_preload(list(PRELOADED))
    multiprocessing.resource_tracker.ensure_running()  # else it is started by the next lines, and unblocks signals
    signal.pthread_sigmask(signal.SIG_BLOCK, UNHEARD)
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, UNHEARD)


def train(run: Run, logdir: pathlib.Path, port: int) -> bool:
    """Trains until the run is done or a signal; whether it was asked to end. On any way out, every child has ended."""
    ports = [port + task if port else free_port() for task in range(run.num_replay_servers)]
    replay = ",".join(f"localhost:{port}" for port in ports)
    stop = stop_on_signals(run.preemption_notice)
    _start_forkserver()
    with Display(run, logdir) as display:
        running = {}
        pipes = {kind: _forks.Pipe(duplex=False) for kind in program.KINDS}
        for process in program.processes_of(run):
            arguments = [f"--role={process.kind}", f"--task={process.task}", f"--logdir={logdir.absolute()}"]
            served = process.kind == "replay"
            arguments.append(f"--port={ports[process.task]}" if served else f"--replay={replay}")
            arguments += [] if process.member is None else [f"--member={process.member}"]
            awaited = [pipes[kind][0] for kind in program.KINDS[process.kind].after]
            held = pipes[process.kind][1]
            running[process] = RoleProcess(process.name, arguments, logdir, display.say, held, awaited)
        program.conduct(running, stop, display.refresh)
    return stop.is_set()
