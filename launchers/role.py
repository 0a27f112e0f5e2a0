"""One role of a run: what --placement=processes starts, and what a person starts on other machines.

  scripts/role --role=replay  --logdir=... --agent=impala --env=Pong-v5 --port=8000
  scripts/role --role=learner --logdir=... --replay=host:8000
  scripts/role --role=actor   --logdir=... --replay=host:8000 --task=1

The run is LOGDIR/config.json where there is one, else the same flags as scripts/train's.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from launchers import flags, mirror
from launchers.settings import MANY, Settings, Sitting, UsageError, setting

if TYPE_CHECKING:
    from launchers.program import Role
    from launchers.run import Run
    from replay.reverb_carrier import ReverbCarrier

SLACK_STEPS = 1_000_000  # by which a run's last batch may lead beyond its end
KINDS = ("replay", "learner", "evaluator", "actor")  # program.KINDS, which brings JAX


@dataclasses.dataclass
class Place:
    """Which role of a run this is, and where it finds the others."""

    role: str = setting(None, "what this process does", choices=KINDS)
    task: int = setting(0, "which of the role's processes this is, from 0", least=0)
    member: int = setting(None, "of a population of separate learners: whose role this is, from 0", least=0)
    replay: str = setting(None, "the replay servers: host:port, or several with commas between")
    connect_seconds: float = setting(120.0, "how long to wait for the replay server", least=0)
    coordinator: str = setting(None, "several learner hosts: host:port of the first (jax.distributed)")
    num_learners: int = setting(1, "several learner hosts: how many; --task tells them apart", most=MANY)


@flags.command(Settings, Sitting, Place)
def role() -> int:
    values = flags.FLAGS
    if not values.role:
        raise UsageError(f"--role is one of {', '.join(KINDS)}")
    if not values.logdir:
        raise UsageError("a role needs --logdir, the folder of its run")
    if values.role != "replay" and not values.replay:
        raise UsageError(f"--role={values.role} needs --replay=host:port, the address of the replay server")
    if values.num_learners > 1 and not values.coordinator:
        raise UsageError("--num_learners needs --coordinator=host:port, the address of the first learner")
    for flag, addresses in (("replay", values.replay), ("coordinator", values.coordinator)):
        _check_addresses(flag, addresses.split(",") if addresses else [])
    saves = {"learner": {"checkpoints"}, "replay": {f"replay_{values.task}"}}
    with mirror.mirrored(values.logdir, saves.get(values.role, set())) as folder:
        return _play(folder)


def _play(logdir: pathlib.Path) -> int:
    """The role that the flags name, in a folder of this machine."""
    values = flags.FLAGS
    saved = (logdir / "config.json").exists() and not flags.any_given()
    # --actors_per_process says which actors are --task's, wherever they run.
    asked = None if saved else flags.run_from_flags(used=("actors_per_process",))
    # Only now, when the command line is understood: JAX, and below, when there is such a run, TensorFlow and Reverb.
    from launchers import population as populations
    from launchers import run as runs

    run = asked or runs.load(logdir)
    if run.carrier == "local":
        raise UsageError(
            "a run with --carrier=local has all its roles in one process: give scripts/train --carrier=reverb"
        )
    import jax

    if values.role == "replay" or (values.role != "learner" and run.actor_backend == "cpu"):
        jax.config.update("jax_platforms", "cpu")  # leave the accelerator to the learner
    if asked:
        populations.check(run)
        run.check_fit()
    from launchers import ports, program, roles, threads
    from launchers.program import Role
    from launchers.shutdown import stop_on_signals
    from runtime.scheduling import give_way

    if values.num_learners > 1:
        run.check_hosts(values.num_learners)
    process = Role(values.role, values.task, values.member)
    processes = program.processes_of(run, values.num_learners)
    if process not in processes:
        raise UsageError(_missing(process, list(processes)))
    if process.kind == "replay":
        ports.check_port(values.port)
        run.check_fit(servers=1)
    elif values.replay.count(",") + 1 != run.num_replay_servers:
        raise UsageError(f"--replay names {values.replay.count(',') + 1} servers: the run has {run.num_replay_servers}")
    stop = stop_on_signals(run.preemption_notice)
    if process.kind != "learner":
        give_way()
    if asked:
        populations.save(run, logdir)
    if process.kind == "learner" and values.num_learners > 1:
        jax.distributed.initialize(values.coordinator, values.num_learners, process.task)
    works: dict[Role, Any]
    if process.kind == "replay":
        members = roles.make_parts(run, logdir).values()
        works = {process: functools.partial(roles.serving, members, logdir, process.task, values.port)}
    else:
        parts = roles.Parts(run, logdir, process.member)
        carrier = _carrier(run, values.replay.split(","), values.connect_seconds)
        works = {role: functools.partial(roles.play, role, parts, carrier) for role in processes[process]}
    # The main thread is never inside Reverb, so that a signal is always heard.
    threads.play(works, stop, lambda: None)
    if process.kind == "learner" and values.num_learners > 1:
        jax.distributed.shutdown()  # once all hosts are here: those that are left without the first break off
    return stop.exit_code  # 0 is for work that is done


def _check_addresses(flag: str, addresses: Sequence[str]) -> None:
    """Raises UsageError unless each is host:port."""
    for address in addresses:
        host, _, port = address.rpartition(":")
        if not host or not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 2**16:
            raise UsageError(f"--{flag}: {address!r} is no address, which is host:port, as localhost:8000 is")


def _missing(process: Role, processes: Sequence[Role]) -> str:
    """Why a run has no such process."""
    members = {each.member for each in processes if each.kind == process.kind}
    if process.member not in members:
        return (
            f"--member is for roles of a population's separate learners, which --role={process.kind} here is not"
            if members == {None}
            else f"--member is 0 to {len(members) - 1}: each member of the population has roles of its own"
        )
    tasks = sum(each._replace(task=0) == process._replace(task=0) for each in processes)
    return f"--task={process.task}: the run has {tasks} processes with --role={process.kind}, numbered from 0"


def _carrier(run: Run, addresses: Sequence[str], seconds: float) -> ReverbCarrier:
    """Connected to the replay servers, within so many seconds."""
    from replay.client import connect
    from replay.reverb_carrier import ReverbCarrier

    clients = [connect(address, seconds) for address in addresses]
    return ReverbCarrier(clients, max_env_steps=run.max_rows + SLACK_STEPS)


def run() -> None:
    flags.main(role)


if __name__ == "__main__":
    run()
