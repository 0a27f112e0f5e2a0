"""A run's program, as data: its roles, which processes they share, and in which order they end.

The placements and scripts/role carry it out; roles.py has the work of each role. A replay server is a role only where
Reverb carries the experience.
"""

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, Protocol

from launchers import population as populations
from launchers.run import Run

ATTEND_SECONDS = 0.25  # between two looks at the roles of a run


class Kind(NamedTuple):
    """The rules for how the roles of one kind end."""

    after: tuple[str, ...]  # kinds whose roles must all have ended before one of this kind may: they need it
    asked: bool  # True: they end when they are asked to; False: by themselves, when their work is done


KINDS = {
    "replay": Kind(("learner", "evaluator", "actor"), asked=True),
    "learner": Kind((), asked=False),  # it ends when the run is done; it saves, and has the replay servers save
    "evaluator": Kind(("learner",), asked=False),  # once it has evaluated the learner's last parameters
    "actor": Kind(("learner",), asked=True),
}


class Role(NamedTuple):
    """One role of a run."""

    kind: str  # one of KINDS
    task: int = 0  # numbers the roles of a kind, from 0
    member: int | None = None  # in a population of separate learners, the member whose role it is; else None

    @property
    def name(self) -> str:
        return f"{self.kind}_{self.task}" + ("" if self.member is None else f"_member_{self.member}")


def roles_of(run: Run) -> list[Role]:
    """Returns a run's roles, in the order in which they start."""
    servers = [Role("replay", task) for task in range(run.num_replay_servers)] if run.carrier == "reverb" else []
    members = populations.learners(run)
    of_their_own = range(0 if run.placement == "device" else run.num_actors)  # with `device` the learner acts, too
    actors = [Role("actor", task, member) for member in members for task in of_their_own]
    return [*servers, *(Role(kind, 0, member) for kind in ("learner", "evaluator") for member in members), *actors]


def processes_of(run: Run, num_learners: int = 1) -> dict[Role, list[Role]]:
    """Returns a run's processes, each named like a role, and the roles that each of them plays.

    `actors_per_process` actors of a member share a process, and every other role has its own. A learner may be spread
    over `num_learners` processes, one on each host.
    """
    processes: dict[Role, list[Role]] = {}
    for role in roles_of(run):
        if role.kind == "learner":
            processes |= {role._replace(task=host): [role] for host in range(num_learners)}
            continue
        share = role.task // run.actors_per_process if role.kind == "actor" else role.task
        processes.setdefault(role._replace(task=share), []).append(role)
    return processes


class Running(Protocol):
    """A running role, or several roles that share a process, as `conduct` deals with them."""

    def ended(self) -> bool:
        """Returns whether it has ended as it should. If it broke down, this starts it again or raises its error."""

    def ask(self) -> None:
        """Asks it to end. It may be asked more than once."""

    def wait(self) -> None:
        """Returns once it has ended, or is given up because it does not."""


def conduct(running: Mapping[Role, Running], stop: threading.Event, attend: Callable[[], None]) -> None:
    """Lets roles run until all have ended, in the order that KINDS says.

    `stop`, or an exception, makes them end early, in the same order. `attend` is called every ATTEND_SECONDS meanwhile.
    Roles that run elsewhere are not waited for: if all roles that need one are elsewhere, only `stop` ends that one.
    """
    left = dict(running)
    here = {role.kind for role in running}
    asked = {kind for kind, each in KINDS.items() if each.asked and here & {*each.after}}

    def may_end(role: Role) -> bool:
        return not any(other.kind in KINDS[role.kind].after for other in left)

    def end(roles: Iterable[Role]) -> None:
        ending = [left[role] for role in roles]
        for each in ending:
            each.ask()
        for each in ending:
            each.wait()
        for role in roles:
            del left[role]

    try:
        while left and not stop.is_set():
            for role in [role for role, each in left.items() if each.ended()]:
                del left[role]
            end([role for role in left if role.kind in asked and may_end(role)])
            attend()
            stop.wait(ATTEND_SECONDS if left else 0.0)
    finally:
        while left:
            end([role for role in left if may_end(role)])
