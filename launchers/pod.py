"""Placement `pod`: a person gives every host the same command. Each host has its own actors and its own queue or
replay, and its devices are part of one mesh; only gradients go from host to host."""

import contextlib
import functools
import hashlib
import json
import pathlib
import socket
import threading
import time
from collections.abc import Callable, Generator
from typing import Any

import jax
import numpy as np

from launchers import flags, ports, program, roles, threads
from launchers.run import Run
from launchers.settings import UsageError
from launchers.shutdown import stop_on_signals
from launchers.terminal import Display
from runtime import hosts as pods
from runtime.hosts import Hosts, HostsDiffer, Meeting

HEARD_SECONDS = 2.0  # within which the end of another host is heard, which ends this one too
END_SECONDS = 60.0  # how long the first host, at its end, waits for the others to end


def meet(run: Run) -> Meeting:
    """Joins the hosts that the flags name, or that the cluster knows of. Call it before JAX computes anything.

    Raises:
      UsageError: a host is missing, or was given other settings. It is raised on every host.
    """
    values = flags.FLAGS
    given = {name: getattr(values, name) for name in ("coordinator", "num_hosts", "host")}
    if not values.logdir:
        raise UsageError(
            "--placement=pod needs --logdir: one folder that all hosts share, or a folder of its own for each"
        )
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given):
        return _meet_in_cluster(run)
    if missing:
        raise UsageError(
            f"--placement=pod lacks --{missing[0]}: give --coordinator=HOST:PORT, --num_hosts=N and --host=K, from 0; "
            "on a TPU pod, and under SLURM or Open MPI, give none of the three, because Shoal finds the hosts itself"
        )
    hosts = Hosts(values.host, values.num_hosts)
    if hosts.index >= hosts.count:
        raise UsageError(f"--host={hosts.index}: hosts are numbered from 0, below --num_hosts={hosts.count}")
    name, port = ports.parse_address("--coordinator", values.coordinator, ports=2)  # JAX's own service has the next one
    meeting = _meet(run, hosts, name, port)
    pods.start_jax(hosts, (name, port + 1))
    _check(run, meeting)
    return meeting


def _meet(run: Run, hosts: Hosts, name: str, port: int) -> Meeting:
    settings = json.loads(json.dumps(run.to_json()))
    told = {f"--{key}": value for key, value in settings.items() if key != "config"}
    told |= {f"--config.{key}": value for key, value in settings["config"].items()}
    told |= {"the code": _digest(), "the version of JAX": jax.__version__}
    try:
        meeting = Meeting(hosts, (name, port), told, flags.FLAGS.connect_seconds)
    except HostsDiffer as error:
        raise UsageError(f"--placement=pod: {error}") from error
    meeting.watch(_leave)  # before JAX starts, where hosts wait for each other for minutes
    pods.tell_before_an_abort(meeting, _leave)
    return meeting


def _leave(error: pods.HostLost) -> None:
    pods.leave(error, flags.FLAGS.unfinished_code or 2)


def _digest() -> str:
    """Returns a short digest of the project's code as this host has it, by which hosts compare it."""
    root = pathlib.Path(__file__).parent.parent
    rooms = ("agents", "environments", "launchers", "replay", "runtime")
    files = sorted(path for room in rooms for path in (root / room).rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]


def _meet_in_cluster(run: Run) -> Meeting:
    """Joins the hosts that JAX finds by itself; their devices then pass on the first host's address."""
    from jax.experimental import multihost_utils

    try:
        pods.start_jax()
    except (ValueError, RuntimeError) as error:
        raise UsageError(
            "--placement=pod: no TPU pod, SLURM or Open MPI was found here: give --coordinator=HOST:PORT, "
            f"--num_hosts=N and --host=K, from 0 ({error})"
        ) from error
    hosts = Hosts(jax.process_index(), jax.process_count())
    mine = [*map(int, socket.gethostbyname(socket.gethostname()).split(".")), ports.free_port()]
    *address, port = multihost_utils.broadcast_one_to_all(np.array(mine, np.int32)).tolist()
    meeting = _meet(run, hosts, ".".join(map(str, address)), port)
    _check(run, meeting)
    return meeting


def _check(run: Run, meeting: Meeting) -> None:
    """Raises UsageError on every host if this number of hosts cannot run it. It computes: JAX must have started."""
    try:
        run.check_pod(meeting.hosts.count)
    except UsageError:
        meeting.close(END_SECONDS)
        raise


def train(run: Run, logdir: pathlib.Path, port: int, meeting: Meeting) -> bool:
    """Trains this host's part until the run is done, a signal comes to any host, or any host has an error.

    Returns whether one of the hosts was asked to end.
    """
    stop = stop_on_signals(run.preemption_notice)  # only now: JAX's service takes SIGTERM for itself when it starts
    hosts = meeting.hosts
    members = roles.make_parts(run, logdir, hosts)
    carrier = threads.connect(members.values(), logdir, port)
    works: dict[program.Role, Callable[[threading.Event], Generator[Any, None, Any]]] = {
        role: functools.partial(roles.play, role, members[role.member], carrier)
        for role in program.roles_of(run)
        if role.kind in ("learner", "actor") or (role.kind == "evaluator" and hosts.index == 0)
    }
    works = {role: _ending(work, stop) if role.kind == "learner" else work for role, work in works.items()}
    try:
        with Display(run, logdir) if hosts.index == 0 else contextlib.nullcontext() as display:
            threads.play(works, stop, display.refresh if display else lambda: None)
    except Exception:
        # JAX breaks in many ways, most often because a host is gone. The wait gives this process the time to hear of
        # that, and to end with a line that says so.
        time.sleep(HEARD_SECONDS)
        meeting.fail()
        raise
    meeting.close(END_SECONDS)
    return stop.is_set()


def _ending(
    learn: Callable[[threading.Event], Generator[Any, None, bool]], stop: threading.Event
) -> Callable[[threading.Event], Generator[Any, None, None]]:
    """Returns a learner's work that also ends this host's other roles if it ends before the run is done: then some host
    was asked to end."""

    def work(asked: threading.Event) -> Generator[Any, None, None]:
        done = yield from learn(asked)
        if not done:
            stop.set()

    return work
