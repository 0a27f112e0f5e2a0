"""One role of a run: what --placement=processes starts, and what a person starts on other machines.

  scripts/role --role=replay  --logdir=... --agent=impala --env=Pong-v5 --port=8000
  scripts/role --role=learner --logdir=... --replay=host:8000
  scripts/role --role=actor   --logdir=... --replay=host:8000 --task=1

The run is LOGDIR/config.json where there is one, else the same flags as scripts/train's.
"""

from __future__ import annotations

import dataclasses
import pathlib
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from launchers import flags
from launchers.settings import UsageError, setting

if TYPE_CHECKING:
    from launchers import roles
    from launchers.run import Run

ROLES = ("replay", "learner", "actor", "evaluator")


@dataclasses.dataclass
class Place:
    """Which role of a run this is, and where it finds the others."""

    role: str = setting(None, "what this process does", choices=ROLES)
    task: int = setting(0, "which of the role's processes this is, from 0", least=0)
    member: int = setting(None, "of a population of separate learners: whose role this is, from 0", least=0)
    replay: str = setting(None, "the replay servers: host:port, or several with commas between")
    connect_seconds: float = setting(120.0, "how long to wait for the replay server", least=0)
    coordinator: str = setting(None, "several learner hosts: host:port of the first (jax.distributed)")
    num_learners: int = setting(1, "several learner hosts: how many; --task tells them apart")


flags.define(Place)

GRACE_SECONDS = 60.0  # for a role to save and end, once asked


def role() -> int:
    values = flags.FLAGS
    if not values.role:
        raise UsageError(f"--role is one of {', '.join(ROLES)}")
    if not values.logdir:
        raise UsageError("a role needs --logdir, the folder of its run")
    if values.role != "replay" and not values.replay:
        raise UsageError(f"--role={values.role} needs --replay=host:port, the address of the replay server")
    logdir = pathlib.Path(values.logdir).expanduser()
    if values.num_learners > 1 and not values.coordinator:
        raise UsageError("--num_learners needs --coordinator=host:port, the address of the first learner")
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
    if asked:
        run.check_fit()
        populations.check(run)
        populations.save(run, logdir)
    import jax

    from launchers import ports, roles
    from launchers.shutdown import stop_on_signals
    from runtime.scheduling import give_way

    if values.role == "replay":
        ports.check_port(values.port)
        if values.task >= run.num_replay_servers:
            raise UsageError(f"--task={values.task}: the run has {run.num_replay_servers} replay servers, from 0")
        run.check_fit(servers=1)
    stop = stop_on_signals()
    if values.role != "learner":
        give_way()
    if values.role == "replay" or (values.role in ("actor", "evaluator") and run.actor_backend == "cpu"):
        jax.config.update("jax_platforms", "cpu")  # leave the accelerator to the learner
    if values.num_learners > 1 and values.role == "learner":
        jax.distributed.initialize(values.coordinator, values.num_learners, values.task)
    if values.role == "replay":
        return _finish(_replay(roles.make_parts(run, logdir), logdir, values.task, values.port, stop), stop)
    if values.member not in (members := populations.learners(run)):
        raise UsageError(
            "--member is for a population of separate learners, which this run is not: leave it out"
            if members == [None]
            else f"--member is 0 to {run.population - 1}: each member of the population has roles of its own"
        )
    parts = roles.Parts(run, logdir, values.member)
    if parts.replays and values.num_learners > 1:
        raise UsageError(f"--num_learners={values.num_learners}: an agent with a replay has one learner host")
    if parts.agent.in_order and values.num_learners > 1:
        raise UsageError(f"--num_learners={values.num_learners}: an agent with eligibility traces has one learner host")
    if run.population and values.num_learners > 1:
        raise UsageError(f"--num_learners={values.num_learners}: a population's learners have one host each")
    if run.travels == "gradients" and values.num_learners > 1:
        raise UsageError(f"--num_learners={values.num_learners}: where gradients travel there is one learner host")
    return _finish(_loops(parts, values, stop), stop)


def _replay(
    members: list[roles.Parts], logdir: pathlib.Path, task: int, port: int, stop: threading.Event
) -> list[Iterator[Any]]:
    from launchers import roles

    def serve():
        server = roles.serve(members, logdir, task, port)
        print(f"serving on port {server.port}", flush=True)
        while not stop.wait(0.5):
            yield
        server.stop()

    return [serve()]


def _loops(parts: roles.Parts, values: Any, stop: threading.Event) -> list[Iterator[Any]]:
    addresses = values.replay.split(",")
    if len(addresses) != parts.run.num_replay_servers:
        raise UsageError(f"--replay names {len(addresses)} servers: the run has {parts.run.num_replay_servers}")
    from launchers import roles
    from replay.client import connect
    from replay.reverb_carrier import ReverbCarrier

    clients = [connect(address, values.connect_seconds) for address in addresses]
    carrier = ReverbCarrier(clients)
    if values.role == "learner":
        return [roles.learn(parts, carrier, stop)]
    if values.role == "evaluator":
        return [roles.evaluate(parts, carrier, stop)]
    tasks = actors_of(parts.run, values.task)
    if not tasks:
        raise UsageError(f"--task={values.task} has no actors: the run has {parts.run.num_actors} in all")
    return [roles.act(parts, carrier, task, stop) for task in tasks]


def actors_of(run: Run, task: int) -> range:
    """The actors that actor process `task` runs."""
    first = task * run.actors_per_process
    return range(first, min(first + run.actors_per_process, run.num_actors))


def _finish(loops: list[Iterator[Any]], stop: threading.Event) -> int:
    """Iterates each loop in a thread until all have ended; the first error is raised."""
    errors: list[BaseException] = []

    def iterate(loop: Iterator[Any]) -> None:
        try:
            for _ in loop:
                pass
        except BaseException as error:
            errors.append(error)

    # Daemons, and the main thread never inside Reverb: so that a signal is always heard.
    threads = [threading.Thread(target=iterate, args=(loop,), daemon=True) for loop in loops]
    for thread in threads:
        thread.start()
    deadline = None
    while any(thread.is_alive() for thread in threads) and not errors:
        threads[0].join(0.2)
        if stop.is_set():
            deadline = deadline or time.monotonic() + GRACE_SECONDS
            if time.monotonic() > deadline:
                break
    if errors:
        raise errors[0]
    return 0


def run() -> None:
    flags.main(role)


if __name__ == "__main__":
    run()
