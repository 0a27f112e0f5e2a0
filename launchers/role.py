"""Plays one role of a run, in a process that --placement=processes starts, or a person on another machine.

  scripts/role --role=replay  --logdir=... --agent=impala --env=Pong-v5 --port=8000
  scripts/role --role=learner --logdir=... --replay=host:8000
  scripts/role --role=actor   --logdir=... --replay=host:8000 --task=1

The run is read from LOGDIR/config.json if that exists; otherwise give scripts/train's flags, the same to each role.
"""

from __future__ import annotations

import dataclasses
import functools
import multiprocessing
import pathlib
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from launchers import flags, mirror, ports, shutdown
from launchers.settings import KINDS, MANY, Settings, Sitting, UsageError, setting

if TYPE_CHECKING:
    from launchers.program import Role
    from launchers.run import Run
    from replay.reverb_carrier import ReverbCarrier

SLACK_STEPS = 1_000_000  # environment steps by which a run's last batch may go beyond its end


@dataclasses.dataclass
class Place:
    """The flags that say which role of a run this process plays, and where it finds the others."""

    role: str = setting(None, "the role that this process plays", choices=KINDS)
    task: int = setting(0, "which of the processes with this role this is, from 0", least=0)
    member: int = setting(
        None, "in a population with separate learners: the member that this role belongs to, from 0", least=0
    )
    replay: str = setting(
        None,
        "the address of the replay server, host:port; of several servers all, in the order of their tasks, with "
        "commas between",
    )
    connect_seconds: float = setting(120.0, "seconds to wait for the replay servers", least=0)
    coordinator: str = setting(None, "with several learner hosts: host:port of the first one, for jax.distributed")
    num_learners: int = setting(
        1, "number of hosts over which the learner is spread; --task tells them apart", most=MANY
    )


@flags.command(Settings, Sitting, Place)
def role() -> int:
    values = flags.FLAGS
    if not values.role:
        raise UsageError(f"scripts/role needs --role, which is one of {', '.join(KINDS)}")
    if not values.logdir:
        raise UsageError("a role needs --logdir, the folder of its run")
    if values.role != "replay" and not values.replay:
        raise UsageError(f"--role={values.role} needs --replay=host:port, the address of the replay server")
    if values.num_learners > 1 and not values.coordinator:
        raise UsageError(
            f"--num_learners={values.num_learners} needs --coordinator=host:port, the address of the first learner"
        )
    for flag, addresses in (("replay", values.replay), ("coordinator", values.coordinator)):
        for address in addresses.split(",") if addresses else []:
            ports.parse_address(f"--{flag}", address)
    saves = {"learner": {"checkpoints"}, "replay": {f"replay_{values.task}"}}
    with mirror.mirrored(values.logdir, saves.get(values.role, set())) as folder:
        return _play(folder)


def _play(logdir: pathlib.Path) -> int:
    """Plays the role that the flags name; returns the exit code. `logdir` is a folder of this machine."""
    values = flags.FLAGS
    saved = (logdir / "config.json").exists() and not flags.any_given()
    # --actors_per_process is taken whatever the placement: it says which actors belong to --task.
    asked = None if saved else flags.run_from_flags(used=("actors_per_process",))
    # JAX is imported only here, once the command line is understood; TensorFlow and Reverb only below, once there is
    # such a run.
    from launchers import population as populations
    from launchers import run as runs

    run = asked or runs.load(logdir)
    if run.carrier == "local":
        raise UsageError(
            "--carrier=local has all roles of a run in one process, so scripts/role cannot play one of them: give "
            "--carrier=reverb, to scripts/train too"
        )
    leave_accelerators(run, values.role)
    if asked:
        populations.check(run)
        run.check_fit()
    from launchers import program
    from launchers.program import Role

    hosts = values.num_learners
    if hosts > 1:
        run.check_hosts(hosts)
    process = Role(values.role, values.task, values.member)
    processes = program.processes_of(run, hosts)
    if process not in processes:
        raise UsageError(_missing(process, list(processes)))
    if process.kind == "replay":
        ports.check_port(values.port)
        run.check_fit(servers=1)
    elif values.replay.count(",") + 1 != run.num_replay_servers:
        raise UsageError(
            f"--replay={values.replay} names {values.replay.count(',') + 1} servers, but the run has "
            f"{run.num_replay_servers}: name each of them once"
        )
    if process.kind == "evaluator":
        run.check_drawn()
    # A launcher on this machine looks for the notice itself, and asks its roles to end in their order.
    stop = shutdown.stop_on_signals("" if multiprocessing.parent_process() else run.preemption_notice)
    if isinstance(values.logdir, str) and run.stop_at_return is not None:
        raise UsageError(
            f"--stop_at_return with --logdir={values.logdir}: the learner reads the evaluations in a folder that all "
            "roles share, not at a URL: give such a folder as --logdir, or leave --stop_at_return out"
        )
    if asked:
        populations.save(run, logdir)
    replay = values.replay.split(",") if values.replay else []
    take_part(run, logdir, process, stop, replay, values.port, values.connect_seconds, values.coordinator or "", hosts)
    if process.kind in ("learner", "evaluator") and not stop.is_set():
        from launchers.terminal import tell_of_end

        tell_of_end(run, logdir)
    return stop.exit_code  # 0 only if the work is done


def take_part(
    run: Run,
    logdir: pathlib.Path,
    process: Role,
    stop: threading.Event,
    replay: Sequence[str] = (),
    port: int = 0,
    connect_seconds: float = 120.0,
    coordinator: str = "",
    num_learners: int = 1,
) -> None:
    """Does the work of one of a run's processes, in this process, until that is done or `stop` is set.

    Args:
      process: one of `program.processes_of(run, num_learners)`.
      replay: the addresses of the replay servers; a replay server itself needs none.
      port: where a replay server listens; 0 picks a free port.
      connect_seconds: how long to wait for each replay server.
      coordinator: the address of the first learner host, where there are several.
      num_learners: the number of learner hosts.
    """
    import jax

    from launchers import program, roles, threads
    from runtime.scheduling import give_way

    several = process.kind == "learner" and num_learners > 1
    if process.kind != "learner":
        give_way()
    if several:
        jax.distributed.initialize(coordinator, num_learners, process.task)
    works: dict[Role, Any]
    if process.kind == "replay":
        members = roles.make_parts(run, logdir).values()
        works = {process: functools.partial(roles.serving, members, logdir, process.task, port)}
    else:
        parts = roles.Parts(run, logdir, process.member)
        carrier = _carrier(run, replay, connect_seconds)
        played = program.processes_of(run, num_learners)[process]
        works = {role: functools.partial(roles.play, role, parts, carrier) for role in played}
    # Roles run in other threads, so the main thread is never inside Reverb and always hears signals.
    threads.play(works, stop, lambda: None)
    if several:
        jax.distributed.shutdown()  # waits for all hosts: if the first left early, the others would break off


def leave_accelerators(run: Run, kind: str) -> None:
    """Limits JAX to the CPU if a role of this kind computes there, so that accelerators are left to the learner.

    Call it before JAX computes anything.
    """
    import jax

    if kind == "replay" or (kind != "learner" and run.actor_backend == "cpu"):
        jax.config.update("jax_platforms", "cpu")


def _missing(process: Role, processes: Sequence[Role]) -> str:
    """Returns words for the person that say why the run, whose `processes` are given, lacks `process`."""
    members = {each.member for each in processes if each.kind == process.kind}
    if process.member not in members:
        return (
            f"--member={process.member}: in this run --role={process.kind} is not for one member of a population: "
            "leave --member out"
            if members == {None}
            else f"--role={process.kind} needs --member, from 0 to {len(members) - 1}: each member has roles of its own"
        )
    tasks = sum(each._replace(task=0) == process._replace(task=0) for each in processes)
    return f"--task={process.task}: the run has {tasks} processes with --role={process.kind}, numbered from 0"


def _carrier(run: Run, addresses: Sequence[str], seconds: float) -> ReverbCarrier:
    """Returns a carrier that is connected to the replay servers; waits for each of them for up to `seconds`."""
    from replay.client import connect
    from replay.reverb_carrier import ReverbCarrier

    clients = [connect(address, seconds) for address in addresses]
    return ReverbCarrier(clients, max_env_steps=run.max_rows + SLACK_STEPS)


def run() -> None:
    shutdown.listen()
    flags.main(role)


if __name__ == "__main__":
    run()
