"""Placement `processes`: roles are processes of their own, which this module starts, watches, restarts and ends.

The launcher computes nothing, and starts no accelerator: on a GPU that would take memory from the learner. It may be
killed without harm to what was saved, and its children then end too. Children are forked from one process that has
already imported what roles need (the standard library's forkserver), so that a role that died is back in seconds.
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
from launchers.shutdown import ENDING, stop_on_signals
from launchers.supervision import Restarts, RoleLog
from launchers.terminal import Display

Connection = multiprocessing.connection.Connection

GRACE_SECONDS = 90.0  # how long a child may take to end once it is asked; then it is killed
FORKSERVER_DIED = 255  # what multiprocessing gives as the exit code of a child that outlives the forkserver

# Modules that are imported before the roles are forked. They must not start threads that a role needs, which a fork
# would lose, or make JAX look for devices, which a fork would share.
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
    """A process of a run, and its history of restarts. The first call of `ended` starts it."""

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
          name, logdir: the name of the process and the folder of its run.
          arguments: the command line of scripts/role.
          say: called with a line for the person, at each death and each warning.
          held: an end of a pipe. The process keeps it open, which tells others that a process of this kind is left.
          awaited: the other ends of such pipes, of the kinds that need this one: if the launcher dies, they end first.
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
        """Returns the exit code; None if it runs or has not started yet (again), negative if a signal ended it."""
        code = self._process.exitcode if self._process else None
        if self._process and code == FORKSERVER_DIED and pathlib.Path(f"/proc/{self._process.pid}").exists():
            return None
        return code

    def ended(self) -> bool:
        """Starts the process, at first and whenever it died, after a pause that doubles from the third death on.

        Returns whether its work is done, which exit code 0 says; a role that a signal ended has another code.

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
        """Waits for the process to end; kills it if that takes longer than GRACE_SECONDS after `ask`."""
        while self._process and self._exit_code() is None:
            if time.monotonic() > self._deadline:
                self._signal(signal.SIGKILL)
            time.sleep(0.02)

    def _signal(self, number: signal.Signals) -> None:
        if self._process and self._process.pid and self._exit_code() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, number)


def _how(code: int) -> str:
    """Returns in words how a process ended, by its exit code (as `RoleProcess._exit_code` has it)."""
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    signals = {128 + number: number.name for number in signal.Signals}
    return f"was ended by {signals[code]}" if code in signals else f"ended with exit code {code}"


def _play(
    arguments: list[str], log: pathlib.Path, held: Connection | None = None, awaited: Sequence[Connection] = ()
) -> None:
    """Does, in the forked process, what scripts/role does with these arguments. `held` stays open until it ends."""
    with open(log, "ab") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    os.setsid()  # Ctrl-C reaches the launcher alone, which ends the roles in order
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # no terminal sends it here: _end_with_launcher does
    sys.argv = ["launchers.role", *arguments]
    setproctitle.setproctitle(" ".join(sys.argv))  # for ps
    threading.Thread(target=_end_with_launcher, args=(held, awaited), daemon=True).start()
    flags.main(role.role)


def _end_with_launcher(held: Connection | None, awaited: Sequence[Connection]) -> None:
    """Ends this process if the launcher has ended, however that happened. Runs in a thread of its own.

    It waits until the processes that need this one have ended: the learner saves while the replay servers are still
    there. SIGHUP then asks for the end, which does no harm if SIGTERM has asked before; SIGKILL follows.
    """
    launcher = multiprocessing.parent_process()
    assert launcher
    launcher.join()
    for pipe in awaited:
        pipe.poll(GRACE_SECONDS)  # until no process holds its other end any more
    os.kill(os.getpid(), signal.SIGHUP)
    time.sleep(GRACE_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


def _start_forkserver() -> None:
    """Starts the process from which roles are forked. It does not hear signals that a terminal sends to all of its
    processes, and ends when the launcher and the roles have ended."""
    _forks.set_forkserver_preload(list(PRELOADED))
    multiprocessing.resource_tracker.ensure_running()  # else the next lines start it, and it unblocks signals
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)


def train(run: Run, logdir: pathlib.Path, port: int) -> bool:
    """Trains until the run is done or a signal comes; returns whether it was asked to end. However it ends, every child
    has ended too."""
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
