"""Placement `ray`: each process of a run is on whatever node of a Ray cluster has room for it. Ray ships the code and
places the processes, and again those that died, on another node if theirs is gone. Reverb carries the experience, as
it does between processes without Ray.

The replay servers, the learner and the evaluator are one placement group: Ray finds room for all of them at once, and
new room for those whose node is lost. Actors have no state and are placed one by one: the run goes on with those for
which there is room, and more actors join as nodes do.
"""

import contextlib
import logging
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import ray
from ray.util.placement_group import PlacementGroup, placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from launchers import flags, ports, program, role, settings
from launchers.processes import GRACE_SECONDS
from launchers.program import Role
from launchers.run import Run
from launchers.settings import UsageError
from launchers.shutdown import Stop, stop_on_signals, watch
from launchers.supervision import Restarts, RoleLog
from launchers.terminal import Display

ROOT = pathlib.Path(__file__).parent.parent
LEFT_OUT = [".git", ".venv*", "docs", "tests", "runs"]  # not sent to the nodes; nor is what .gitignore names
# Beginnings of the names of environment variables that a run's processes get from this one.
HANDED_ON = ("GLIBC_TUNABLES", "JAX_", "XLA_", "SHOAL_")
NAMED = {"CPU", "GPU", "memory"}  # resources for which Ray has options of their own
ACCELERATORS = ("GPU", "TPU")
GB = 1e9
WAITING_SECONDS = 30.0  # how long a process waits for a place before a line says so
LOOK_SECONDS = 1.0  # between two looks for a place
SERVING_SECONDS = 300.0  # how long a replay server that has its place may take to answer
PROBE_SECONDS = 10.0  # for somebody to answer at the cluster's address
KEPT_SECONDS = 300.0  # after which a node that is to be taken away is gone

Needs = dict[str, float]  # name of one of Ray's resources -> amount


class Claim(NamedTuple):
    """The host on which a process runs, and a port that is free there."""

    host: str
    port: int

    @property
    def address(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Player:
    """A process of a run, on the node that Ray gave it. What it prints goes to LOGDIR/logs and to Ray's logs."""

    def __init__(self, run: Run, logdir: pathlib.Path, process: Role, num_learners: int):
        self._part = run, logdir, process, num_learners
        self._asked = Stop()
        log = RoleLog(logdir, process.name, print).path
        # `tee` is a process of its own, and so writes this one's last words too.
        tee = subprocess.Popen(["tee", "-a", log], stdin=subprocess.PIPE, start_new_session=True)
        assert tee.stdin
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        for descriptor in (1, 2):
            os.dup2(tee.stdin.fileno(), descriptor)
        tee.stdin.close()
        self._terminated = False
        signal.signal(signal.SIGTERM, self._terminate)  # Ray's own handler would wait for ever for `play` to return
        role.leave_accelerators(run, process.kind)

    def _terminate(self, number: int, frame: Any) -> None:
        """Handles SIGTERM: the role ends in order, and begins again in another process."""
        self._terminated = True
        self._asked.set()

    def claim(self, port: int) -> Claim:
        """Returns this node's address, and `port`; a free one if that is 0."""
        here = ray.get_runtime_context().get_node_id()
        (host,) = [node["NodeManagerAddress"] for node in ray.nodes() if node["NodeID"] == here]
        return Claim(host, port or ports.free_port())

    def play(self, replay: Sequence[str], port: int, coordinator: str) -> bool:
        """Does what `role.take_part` does.

        Returns True if the work is done or was asked to end, and False if the node will be taken away.
        """
        run, logdir, process, num_learners = self._part
        if run.preemption_notice:
            watch(run.preemption_notice, self._asked)
        try:
            role.take_part(run, logdir, process, self._asked, replay, port, SERVING_SECONDS, coordinator, num_learners)
        except flags.MENDABLE as error:
            print(f"error: {flags.one_line(error)}", flush=True)
            raise UsageError(flags.one_line(error)) from None
        except BaseException:
            traceback.print_exc()
            os._exit(1)  # and another process follows
        if self._terminated:
            os._exit(128 + signal.SIGTERM)
        return not self._asked.exit_code

    def ask(self) -> None:
        """Asks it to end."""
        self._asked.set()

    def stay(self, seconds: float) -> None:
        """Returns None after `seconds`, if this process is still there."""
        time.sleep(seconds)


class RayRole:
    """A process of a run, as the launcher sees it: a program.Running.

    Each time that it starts it is a new Ray actor, which is called a life of it here. An actor that Ray itself starts
    again, while its node goes away, may get only half of the code, and is then dead for good.
    """

    def __init__(self, process: Role, cluster: "Cluster", needs: Needs, strategy: Any):
        """`needs` is what a node must have free for the process; `strategy` is Ray's, which chooses the node."""
        self.process, self._cluster, self._needs = process, cluster, needs
        self._log = RoleLog(cluster.logdir, process.name, cluster.say)
        self._restarts = Restarts(self._log, cluster.say)
        own = {{"CPU": "num_cpus", "GPU": "num_gpus"}.get(name, name): needs[name] for name in needs.keys() & NAMED}
        others = {name: amount for name, amount in needs.items() if name not in NAMED}
        self._options = {**own, "resources": others, "scheduling_strategy": strategy, "max_concurrency": 4}
        self._player: Any = None  # the Ray actor of the present life
        self.claim: Claim | None = None
        self._claiming: Any = None
        self._playing: Any = None
        self._again_at, self._deadline = 0.0, 0.0
        self._waits_since, self._stays = 0.0, False

    def ended(self) -> bool:
        """Starts the process once it and all that it needs have a place, and again whenever it died.

        Returns whether its work is done.

        Raises:
          UsageError: a person must mend something, or it died too often.
        """
        self._log.tell_warnings()
        try:
            if self._playing is None:
                self._begin()
                return False
            if not _is_ready(self._playing):
                return False
            done = ray.get(self._playing)
        except UsageError as error:  # Ray raises an error of its own that is a UsageError too
            raise UsageError(f"{self.process.name}: {flags.one_line(getattr(error, 'cause', error))}") from None
        except ray.exceptions.RayError as error:
            self._bury(error)
            return False
        if done is False:
            self._cluster.say(f"{self.process.name}: its node will be taken away; it goes on elsewhere")
            self._stays, self._playing = True, self._player.stay.remote(KEPT_SECONDS)
            return False
        if done is None:  # the node is still there: `stay` returned
            self.restart()
            return False
        return True

    def _begin(self) -> None:
        """Asks Ray for a place, if it has not yet, and has the process play once it and all that it needs have one."""
        if time.monotonic() < self._again_at:
            return
        if self.claim is None:
            if self._player is None:
                self._player = ray.remote(Player).options(**self._options).remote(*self._cluster.part(self.process))
                self._claiming = self._player.claim.remote(self._cluster.port_of(self.process))
                self._waits_since = time.monotonic()
                self._restarts.begin()
            if not _is_ready(self._claiming):
                if time.monotonic() > self._waits_since + WAITING_SECONDS:
                    self._waits_since = float("inf")
                    self._cluster.say(f"{self.process.name} waits for a node with {_words(self._needs)} free")
                return
            self.claim = ray.get(self._claiming)
            self._cluster.placed(self)
        told = self._cluster.tell(self)
        if told is not None:
            self._playing = self._player.play.options(name=self.process.name).remote(*told)

    def _bury(self, error: ray.exceptions.RayError) -> None:
        meant, played = self._stays, self._playing is not None
        self._leave()
        if meant:
            return
        how = "died, or its node did" if played else f"could not begin: {flags.one_line(error)}"
        self._again_at = time.monotonic() + self._restarts.after(how)
        self._cluster.died(self)

    def restart(self) -> None:
        """Ends its present life if it plays; `ended` then starts it again, wherever there is room."""
        if self._playing is not None:
            self._leave()

    def _leave(self) -> None:
        """Kills the Ray actor of the present life, if there is one."""
        if self._player is not None:
            ray.kill(self._player)
        self._player = self.claim = self._claiming = self._playing = None
        self._stays = False

    def ask(self) -> None:
        self._deadline = time.monotonic() + GRACE_SECONDS
        if self._playing is not None:
            self._player.ask.remote()

    def wait(self) -> None:
        """Waits for the end, until GRACE_SECONDS after `ask`; then kills the Ray actor, whether it has ended or not."""
        if self._playing is not None:
            ray.wait([self._playing], timeout=max(0.0, self._deadline - time.monotonic()))
        self._leave()


class Cluster:
    """The launcher's knowledge of where a run's processes are, from which it tells each what to do with the others."""

    def __init__(self, run: Run, logdir: pathlib.Path, port: int, say: Callable[[str], None]):
        self.run, self.logdir, self.say, self.num_learners = run, logdir, say, flags.FLAGS.num_learners
        self._port, self._roles = port, list[RayRole]()
        self._served: dict[int, Claim] = {}  # a replay server's task -> the last place that it had

    def start(self, needs: Mapping[Role, Needs], group: PlacementGroup, places: Sequence[Role]) -> dict[Role, RayRole]:
        """Returns a RayRole for each process. Those in `places` get the bundles of `group`, in that order."""
        for process, each in needs.items():
            strategy: Any = "SPREAD"
            if process in places:
                strategy = PlacementGroupSchedulingStrategy(group, places.index(process))
            self._roles.append(RayRole(process, self, each, strategy))
        return {each.process: each for each in self._roles}

    def part(self, process: Role) -> tuple[Run, pathlib.Path, Role, int]:
        """Returns the arguments with which the Player of a process is made."""
        return self.run, self.logdir, process, self.num_learners

    def port_of(self, process: Role) -> int:
        """Returns the port that a replay server is to have; 0 means any, also for all other processes.

        A server that was there before keeps its port, because others may wait for it there.
        """
        if process.kind != "replay":
            return 0
        before = self._served.get(process.task)
        return before.port if before else self._port and self._port + process.task

    def placed(self, of: RayRole) -> None:
        """Notes that a process has a place. If a replay server has moved, all but the servers start again."""
        if of.process.kind != "replay":
            return
        assert of.claim
        before, self._served[of.process.task] = self._served.get(of.process.task), of.claim
        if before and before != of.claim:
            self.say(f"{of.process.name} has moved to {of.claim.address}: all other processes start again")
            for each in self._roles:
                if each.process.kind != "replay":
                    each.restart()

    def tell(self, to: RayRole) -> tuple[Any, ...] | None:
        """Returns the arguments of `Player.play` for a process; None if others that it needs have no place yet."""
        if to.process.kind == "replay":
            assert to.claim
            return [], to.claim.port, ""
        if len(self._served) < self.run.num_replay_servers:
            return None
        coordinator = ""
        if to.process.kind == "learner" and self.num_learners > 1:
            gang = [each for each in self._roles if each.process.kind == "learner"]
            if any(each.claim is None for each in gang):
                return None
            first = gang[0].claim
            assert first
            coordinator = first.address
        return [self._served[task].address for task in sorted(self._served)], 0, coordinator

    def died(self, of: RayRole) -> None:
        """Notes that a process died. The hosts of a learner break off together, so all of them begin again."""
        if of.process.kind == "learner":
            for each in self._roles:
                if each is not of and each.process.kind == "learner" and self.num_learners > 1:
                    each.restart()


def train(run: Run, logdir: pathlib.Path, port: int) -> bool:
    """Trains until the run is done or a signal comes; returns whether it was asked to end. However it ends, every
    process has ended too."""
    logdir = logdir.absolute()
    processes = list(program.processes_of(run, flags.FLAGS.num_learners))
    with Display(run, logdir) as display, _ray_lines_in(logdir / "logs" / "ray.log"), joined(len(processes)):
        stop = stop_on_signals(run.preemption_notice)  # only now: Ray takes signals for itself when it starts
        needs = {process: needs_of(run, process.kind) for process in processes}
        places = [process for process in processes if process.kind != "actor"]
        group = reserve(needs, places, stop, display.say)
        if group is not None:
            running = Cluster(run, logdir, port, display.say).start(needs, group, places)
            program.conduct(running, stop, display.refresh)
    return stop.is_set()


@contextlib.contextmanager
def _ray_lines_in(path: pathlib.Path) -> Iterator[None]:
    """Appends what Ray prints to a file: when a process or a node is gone, Ray prints a page, in the middle of the live
    line. A Display that is there already writes to the terminal as before."""
    path.parent.mkdir(exist_ok=True)
    with (
        open(path, "a", buffering=1, errors="backslashreplace") as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
    ):
        yield


def check(run: Run) -> None:
    """Raises UsageError if flags of this placement cannot be obeyed, or if nothing answers at --ray_address."""
    values = flags.FLAGS
    settings.resources(values.ray_resources)
    if isinstance(values.logdir, str):
        raise UsageError(f"--logdir={values.logdir}: with --placement=ray give a folder that all nodes share")
    if values.num_learners > 1:
        run.check_hosts(values.num_learners)
    what, address = cluster_address()
    if address not in ("local", "auto") and "://" not in address:  # a scheme: another way into a cluster, Ray's own
        probe(what, *ports.parse_address(what, address))


def cluster_address() -> tuple[str, str]:
    """Returns which flag or variable says where the Ray cluster is, and the address: "local" where neither is given."""
    if given := flags.FLAGS.ray_address:
        return "--ray_address", given
    return "RAY_ADDRESS", os.environ.get("RAY_ADDRESS") or "local"


def probe(what: str, host: str, port: int) -> None:
    """Raises UsageError if nothing answers at an address, which `what` gave. Ray itself would wait for minutes."""
    try:
        socket.create_connection((host.strip("[]"), port), PROBE_SECONDS).close()
    except OSError as error:
        raise UsageError(f"{what}={host}:{port}: nobody answers there ({error.strerror or error})") from error


@contextlib.contextmanager
def joined(processes: int) -> Iterator[None]:
    """Connects to the cluster that --ray_address, or else the variable RAY_ADDRESS, names, until the block ends.

    If neither is given, a cluster of this machine alone is started for that time, with room for `processes` processes.

    Raises:
      UsageError: no cluster answers.
    """
    what, address = cluster_address()
    own: dict[str, Any] = {}
    if address == "local":  # no data goes through Ray, so its store of objects has the least size allowed
        own = {"num_cpus": max(processes, os.cpu_count() or 1), "object_store_memory": 80 * 2**20}
        os.environ.setdefault("RAY_worker_niceness", "0")  # by default its workers give way to all else on this machine
    handed_on = {name: value for name, value in os.environ.items() if name.startswith(HANDED_ON)}
    shipped = {"working_dir": str(ROOT), "excludes": LEFT_OUT, "env_vars": handed_on}
    try:
        ray.init(address, runtime_env=shipped, log_to_driver=False, logging_level=logging.ERROR, **own)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        if address == "auto" and isinstance(error, ConnectionError):
            why = "none runs on this machine: `ray start --head` starts one, or leave --ray_address out"
        else:
            why = flags.one_line(error)
        raise UsageError(f"{what}={address}: no Ray cluster could be joined: {why}") from error
    try:
        yield
    finally:
        ray.shutdown()


def needs_of(run: Run, kind: str) -> Needs:
    """Returns what a process with a role of this kind needs of a node.

    That is a core; for a replay server also memory for what it holds, and for a learner as many accelerators as the
    node with the most of them has. What --ray_resources says of the kind replaces these.
    """
    needs: Needs = {"CPU": 1.0}
    if kind == "replay":
        needs["memory"] = run.replay_bytes() // run.num_replay_servers
    if kind == "learner":
        for name in ACCELERATORS:
            needs[name] = max(node.get(name, 0.0) for node in _nodes())
    needs |= settings.resources(flags.FLAGS.ray_resources).get(kind, {})
    return {name: amount for name, amount in needs.items() if amount}


def reserve(
    needs: Mapping[Role, Needs], places: Sequence[Role], stop: threading.Event, say: Callable[[str], None]
) -> PlacementGroup | None:
    """Reserves room for the processes in `places`, a bundle for each, and waits for nodes that could have the others.

    Returns None if `stop` was set before there was room.

    Raises:
      UsageError: there is no room after --connect_seconds.
    """
    # Several hosts of a learner are spread over nodes; otherwise processes that talk much are close together.
    several = sum(process.kind == "learner" for process in places) > 1
    group = placement_group([dict(needs[process]) for process in places], "SPREAD" if several else "PACK")
    ready, deadline = group.ready(), time.monotonic() + flags.FLAGS.connect_seconds
    said = False
    while not stop.is_set():
        if ray.wait([ready], timeout=LOOK_SECONDS)[0] and all(map(_is_anywhere, needs.values())):
            return group
        if time.monotonic() > deadline:
            raise UsageError(_lack(needs))
        if not said:
            say("waiting for room in the Ray cluster")
            said = True
    return None


def _lack(needs: Mapping[Role, Needs]) -> str:
    """Returns words for the person that say why there is no room."""
    nodes = _nodes()
    for process, each in needs.items():
        for name, amount in each.items():
            most = max(node.get(name, 0.0) for node in nodes)
            if most < amount:
                return (
                    f"{process.name} needs {_words({name: amount})}, and the most that a node of the Ray cluster has "
                    f"is {_words({name: most})}: add a node, or give --ray_resources"
                )
    first = {process: each for process, each in needs.items() if process.kind != "actor" or process.task == 0}
    names = {name for each in first.values() for name in each}
    wanted = {name: sum(each.get(name, 0.0) for each in first.values()) for name in sorted(names)}
    free = {name: ray.available_resources().get(name, 0.0) for name in wanted}
    return (
        f"the Ray cluster has no room for {', '.join(process.name for process in first)}: together they need "
        f"{_words(wanted)}, and {_words(free)} are free: add nodes, or give --ray_resources"
    )


def _nodes() -> list[Needs]:
    """Returns what each node of the cluster that is alive has in all, free or not."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _words(needs: Needs) -> str:
    return ", ".join(
        f"{amount / GB:.1f} GB of memory" if name == "memory" else f"{amount:,.10g} {name}"
        for name, amount in needs.items()
    )


def _is_anywhere(needs: Needs) -> bool:
    """Returns whether some node of the cluster would have room for `needs` if nothing else were on it."""
    return any(all(node.get(name, 0.0) >= amount for name, amount in needs.items()) for node in _nodes())


def _is_ready(reference: Any) -> bool:
    return bool(ray.wait([reference], timeout=0)[0])
