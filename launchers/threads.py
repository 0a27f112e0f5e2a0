"""Placement `threads`: every role is a thread of this process; if Reverb carries, its servers are in it too."""

import concurrent.futures
import functools
import pathlib
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from launchers import program, roles
from launchers.program import Role
from launchers.run import Run
from launchers.shutdown import stop_on_signals
from launchers.terminal import Display
from runtime.scheduling import give_way

GRACE_SECONDS = 10.0  # how long a role without anything to save may take to end; then it is left behind


class RoleThread:
    """A role in a thread of its own."""

    def __init__(self, role: Role, work: Callable[[threading.Event], Iterator[Any]]):
        """Starts the thread. `work` takes an event, and does the role's work until that is set."""
        self._role, self._stop = role, threading.Event()
        self._work = work(self._stop)
        self._error: BaseException | None = None
        # A daemon, because a thread that waits inside Reverb must not keep the process alive.
        self._thread = threading.Thread(target=self._run, name=role.name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        if self._role.kind != "learner":
            give_way()
        try:
            for _ in self._work:
                pass
        except BaseException as error:
            self._error = error

    def ended(self) -> bool:
        """Returns whether the role has ended; raises its error, if it had one."""
        alive = self._thread.is_alive()  # looked at first: an error is there before its thread ends
        if self._error:
            raise self._error
        return not alive

    def ask(self) -> None:
        self._stop.set()

    def wait(self) -> None:
        """Waits for the role's end: a learner's for as long as it takes to save, any other's for GRACE_SECONDS."""
        self._thread.join(None if self._role.kind == "learner" else GRACE_SECONDS)


def play(
    works: Mapping[Role, Callable[[threading.Event], Iterator[Any]]], stop: threading.Event, attend: Callable[[], None]
) -> None:
    """Runs each role in a thread of its own, until all have ended or `stop` is set; raises the first error.

    Args:
      works: for each role a function that takes an event, and does the role's work until that is set.
      attend: called now and then meanwhile.
    """
    running = {role: RoleThread(role, work) for role, work in works.items()}
    program.conduct(running, stop, attend)
    for thread in running.values():
        thread.ended()  # raises an error that came while the roles ended


def connect(members: Collection[roles.Parts], logdir: pathlib.Path, port: int) -> Any:
    """Returns the carrier of roles.connect; threads of Reverb servers that it starts give way to the learner's."""
    with concurrent.futures.ThreadPoolExecutor(1, initializer=give_way) as executor:  # servers' threads inherit it
        return executor.submit(roles.connect, members, logdir, port).result()


def train(run: Run, logdir: pathlib.Path, port: int) -> bool:
    """Trains until the run is done, a signal comes or a role raises an error, which is raised here too.

    Returns whether the run was asked to end.
    """
    stop = stop_on_signals(run.preemption_notice)
    members = roles.make_parts(run, logdir)
    carrier = connect(members.values(), logdir, port)
    works = {
        role: functools.partial(roles.play, role, members[role.member], carrier)
        for role in program.roles_of(run)
        if role.kind != "replay"  # `connect` has started those
    }
    with Display(run, logdir) as display:
        play(works, stop, display.refresh)
    return stop.is_set()
