"""A run's program, as data: its roles, which processes they share, and in which order they end.

The placements and scripts/role interpret it; roles.py has what each role does. A replay server is a role only where
Reverb carries the experience.
"""

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, Protocol

from launchers import population as populations
from launchers.run import Run

ATTEND_SECONDS = 0.25  # between two looks at the roles of a run


class Kind(NamedTuple):
    """What holds of every role of a kind."""

    after: tuple[str, ...]  # the kinds whose roles must all have ended before it may: they need it
    asked: bool  # it ends when it is asked to; others end by themselves when their work is done


KINDS = {
    "replay": Kind(("learner", "evaluator", "actor"), asked=True),
    "learner": Kind((), asked=False),  # at max_env_steps; it saves, the servers' replays too
    "evaluator": Kind(("learner",), asked=False),  # once it has evaluated the learner's last parameters
    "actor": Kind(("learner",), asked=True),
}


class Role(NamedTuple):
    """One role of a run."""

    kind: str  # one of KINDS
    task: int = 0  # tells the roles of a kind apart
    member: int | None = None  # of a population of separate learners: whose role it is

    @property
    def name(self) -> str:
        return f"{self.kind}_{self.task}" + ("" if self.member is None else f"_member_{self.member}")


def roles_of(run: Run) -> list[Role]:
    """A run's roles, in the order in which they start."""
    servers = [Role("replay", task) for task in range(run.num_replay_servers)] if run.carrier == "reverb" else []
    members = populations.learners(run)
    of_their_own = range(0 if run.placement == "device" else run.num_actors)  # there the learner is the actor, too
    actors = [Role("actor", task, member) for member in members for task in of_their_own]
    return [*servers, *(Role(kind, 0, member) for kind in ("learner", "evaluator") for member in members), *actors]


def processes_of(run: Run, num_learners: int = 1) -> dict[Role, list[Role]]:
    """A run's processes, each named as a role is, and the roles in each: `actors_per_process` actors of a member share
    one, every other role has its own; a learner may be spread over `num_learners` of them, one a host."""
    processes: dict[Role, list[Role]] = {}
    for role in roles_of(run):
        if role.kind == "learner":
            processes |= {role._replace(task=host): [role] for host in range(num_learners)}
            continue
        share = role.task // run.actors_per_process if role.kind == "actor" else role.task
        processes.setdefault(role._replace(task=share), []).append(role)
    return processes


class Running(Protocol):
    """A role that runs, or several that share a process."""

    def ended(self) -> bool:
        """Whether it has ended as it should. What broke down is mended, or told by an exception."""

    def ask(self) -> None:
        """Asks it to end; again if it was asked before."""

    def wait(self) -> None:
        """Returns once it has ended, or could not be brought to."""


def conduct(running: Mapping[Role, Running], stop: threading.Event, attend: Callable[[], None]) -> None:
    """Lets roles run until all have ended, each in its turn; `stop`, or an exception, brings their ends forward and
    keeps the order. `attend` is called now and then meanwhile. Roles that run elsewhere are not waited for: if all that
    needs a role is elsewhere, `stop` alone ends it."""
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
