"""The roles of a run, as generators: each ends when its work is done or `stop` is set, and a placement iterates it in
whatever thread or process it likes."""

import contextlib
import dataclasses
import functools
import itertools
import pathlib
import threading
import time
import traceback
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from agents.agent import Agent, Feedback, Version
from agents.pbt import member_of
from environments import EnvironmentFailure, Episodes
from launchers import population as populations
from launchers import ports, settings, sittings
from launchers.films import Films
from launchers.program import Role
from launchers.run import Run, UsageError
from replay import channels, local, structures
from replay.blocks import count_for_each
from replay.local_carrier import LocalCarrier
from replay.rows import VARIABLES, Batch, Variables, never
from replay.synchrony import NextVersion
from runtime import actor, best, devices, evaluator, hosts, learner, worker
from runtime.advice import Advice
from runtime.checkpoint import Checkpointer, Damaged
from runtime.hosts import ALONE, Hosts
from runtime.metrics import Recorder, latest, return_means, show, show_settings

LOG_SECONDS = 1.0  # between two rows of a role's CSV
PATIENCE_SECONDS = 20.0  # how long a learner host that was asked to end waits for an update at which all end


class Parts:
    """The things that the roles of one process share: the agent, its structures and its compiled functions.

    In a population whose members have learners of their own, each member has its own Parts, and its own tables in the
    replay servers.
    """

    def __init__(self, run: Run, logdir: pathlib.Path, member: int | None = None, hosts: Hosts = ALONE):
        """
        Args:
          run, logdir: the run and its folder; of the whole population, where there is one.
          member: the population member whose Parts these are; None where there is one learner for all.
          hosts: which host of a pod this is. Hosts share batches and replays evenly, and each has `num_actors` actors.
        """
        self.spec = run.spec()
        run, logdir, peers = populations.member_of(run, logdir, member, self.spec.num_tasks)
        self.run, self.logdir, self.peers = run, logdir, peers
        self.agent = run.make_agent(self.spec)
        self.hosts, self.batch_size = hosts, self.agent.batch_size // hosts.count
        table = self.agent.table
        self.table = dataclasses.replace(
            table,
            name=peers.name(table.name),
            max_size=max(1, table.max_size // hosts.count),
            min_size=max(1, table.min_size // hosts.count),
        )
        self.num_envs = run.stacked * run.envs_per_actor
        self.device = jax.local_devices(backend="cpu" if run.actor_backend == "cpu" else None)[0]
        self.items = channels.item_structure(self.agent, self.spec, self.num_envs)
        self.gradients = run.travels == "gradients"
        if self.gradients:  # a worker's gradients, and the experience that it keeps to itself
            self.gradient = worker.compile_gradient(self.agent, self.device)
            self.own = self.agent._replace(table=self.table.items.table)  # type: ignore[union-attr]
            self.own_items = channels.item_structure(self.own, self.spec, self.num_envs)
        self.params = structures.params_structure(self.agent)
        self.act = actor.compile_act(self.agent.act, self.device)
        policy = evaluator.policy(self.agent, self.spec.actions, run.eval_policy == "sampled", run.eval_epsilon)
        self.act_in_evaluations = actor.compile_act(policy, self.device)

    @functools.cached_property
    def mesh(self) -> devices.Mesh:
        """The mesh of devices on which the learner's updates run."""
        return devices.make_mesh(self.run.mapper)

    @functools.cached_property
    def priority(self) -> Any:
        """The compiled function by which actors give their items priorities; None means a priority of 1 for all."""
        if not self.replays:
            return None
        at_once = channels.way(self.table).items_at_once(self.table, self.num_envs)
        return actor.compile_priority(self.agent.priority, at_once, self.device)

    def send(self, sample: Any) -> Any:
        """Sends a batch's sample from the host to the learner's devices."""
        return devices.send(self.mesh, sample)

    def init(self) -> Any:
        """Returns a new state of the agent."""
        # Compiled: outside jit, each operation of an initialiser is compiled on its own.
        return self.peers.vary(jax.jit(self.agent.init)(jax.random.key(self.run.seed_of("init"))))

    def place(self, task: int) -> int:
        """Returns the number that this host's actor `task` has among the actors of all hosts."""
        return self.hosts.index * self.run.num_actors + task

    @property
    def replays(self) -> bool:
        """Whether experience is kept and sampled more than once. Then it is saved and restored with the learner."""
        return self.table.kind != "queue"

    def build_tables(self) -> list[Any]:
        """Builds the tables that a replay server holds for these Parts."""
        from replay import server  # imported here: it brings TensorFlow, which is needed only where Reverb carries

        columns = channels.columns(self.table, self.items)
        per_item = channels.way(self.table).sequences_per_item(self.items)
        tables = [
            server.build_table(self.table, columns, per_item, self.run.num_replay_servers),
            server.build_variables_table(self.params, self.peers.name(VARIABLES)),
        ]
        if self.replays and channels.way(self.table).counter(self.table)[0] != self.table.name:
            tables.append(server.build_steps_table(self.table.name))
        told = self.peers.containers(self.agent)
        return tables + [server.build_variables_table(structure, name) for name, structure in told.items()]

    def channel(self, carrier: Any, saved: Any = None) -> Any:
        """Returns the channel by which experience, or gradients, travel to the learner.

        Args:
          saved: the state of a local replay, as it was last saved; None if it is new.

        Raises:
          UsageError: the channel cannot be made with the run's sizes.
        """
        size = self.mesh.size if self.gradients else self.batch_size * self.run.updates_per_dispatch
        run, rows = self.run, self.run.max_rows
        try:
            return carrier.channel(self.agent, self.table, self.items, size, run.num_actors, self.num_envs, rows, saved)
        except ValueError as error:
            raise UsageError(str(error)) from error

    def batches(self, channel: Any) -> Iterator[Batch]:
        """Returns the learner's batches. They count the environment steps that are made from now on, for one member."""
        batches: Iterator[Batch] = channel.batches()
        return batches if self.run.stacked == 1 else count_for_each(batches, self.run.stacked)

    def variables(self, carrier: Any) -> Variables:
        """Returns the variable container by which the learner's parameters reach actors and the evaluator.

        Raises:
          UsageError: the server serves another run.
        """
        try:
            variables: Variables = carrier.variables(self.params, self.peers.name(VARIABLES))
            return variables
        except ValueError as error:
            raise UsageError(str(error)) from error

    def experience(self, task: int, sitting: int) -> local.Experience:
        """Returns the store for the experience that worker `task` keeps to itself. Its seed depends on `sitting`."""
        run, own = self.run, self.own.table
        if own.kind == "queue":
            return local.LocalBlocks(self.own_items, own.items.next_action)  # type: ignore[union-attr]
        mesh = devices.make_mesh(run.mapper, [self.device])
        batch, seed = self.table.items.batch_size, run.seed_of("replay", task, sitting)  # type: ignore[union-attr]
        return local.LocalReplay(
            mesh, self.own, self.own_items, batch, self.num_envs, run.max_rows, run.num_actors, seed
        )

    def return_means(self, environments: Sequence[int], returns: Sequence[float]) -> dict[str, float]:
        """Returns the mean of each task's returns, and of each stacked member's, where there are several of them.

        Args:
          environments: the index of the environment in which each of the `returns` was made.
        """
        tasks, members = self.run.tasks, [f"member_{m}" for m in range(self.run.stacked)]
        index = np.asarray(environments, int)
        return return_means(tasks, index % len(tasks), returns) | return_means(
            members, member_of(index, len(members), len(tasks)), returns
        )


def make_parts(run: Run, logdir: pathlib.Path, hosts: Hosts = ALONE) -> dict[int | None, Parts]:
    """Makes the Parts of each learner, by population member; the key is None where there is one learner for all."""
    return {member: Parts(run, logdir, member, hosts) for member in populations.learners(run)}


def serve(members: Collection[Parts], logdir: pathlib.Path, task: int = 0, port: int = 0) -> Any:
    """Starts replay server number `task` of a run, and restores what it held when it was last saved.

    Args:
      members: the Parts of all learners, whose tables it holds.
      port: 0 picks a free one.

    Raises:
      UsageError: what was saved is another run's, or the port is taken.
    """
    from replay import server  # imported here: it brings TensorFlow, which is needed only where Reverb carries

    ports.hold_port(port)
    tables = [table for parts in members for table in parts.build_tables()]
    replays = any(parts.replays for parts in members)
    try:
        return server.serve(tables, port, logdir / f"replay_{task}" if replays else None)
    except ValueError as error:
        raise UsageError(str(error)) from error


def serving(
    members: Collection[Parts], logdir: pathlib.Path, task: int, port: int, stop: threading.Event
) -> Generator[None, None, None]:
    """Runs replay server number `task` of a run until `stop` is set."""
    server = serve(members, logdir, task, port)
    print(f"serving on port {server.port}", flush=True)
    while not stop.wait(0.5):
        yield
    server.stop()


def connect(members: Collection[Parts], logdir: pathlib.Path, port: int) -> Any:
    """Returns the carrier of a run whose roles are all in this process; if it is Reverb's, starts its servers here too.

    `port` is the first server's, and the others have the ports after it; 0 picks free ones.
    """
    first = next(iter(members))
    run = first.run
    if run.carrier == "local":
        return LocalCarrier(first.mesh, first.device)
    from replay.reverb_carrier import ReverbCarrier

    before = first.hosts.index * run.num_replay_servers
    servers = [serve(members, logdir, before + task, port and port + task) for task in range(run.num_replay_servers)]
    return ReverbCarrier([server.localhost_client() for server in servers], servers)


def play(role: Role, parts: Parts, carrier: Any, stop: threading.Event) -> Generator[Any, None, Any]:
    """Plays any role but a replay server's; yields and returns what `act`, `learn` or `evaluate` do."""
    # All hosts of a learner have the same role, so its sittings are told apart by the host, not by the task.
    place = jax.process_index() if role.kind == "learner" else parts.place(role.task)
    with sittings.hold(parts.logdir, f"{role.kind}_{place}") as sitting:
        if role.kind == "actor":
            return (yield from act(parts, carrier, role.task, sitting, stop))
        return (yield from (learn if role.kind == "learner" else evaluate)(parts, carrier, stop))


class Throttle:
    """A limit on how often something is done: a call returns True at most once in LOG_SECONDS."""

    def __init__(self):
        self._next = 0.0

    def __call__(self) -> bool:
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + LOG_SECONDS
        return True


class ActorReport:
    """An actor's report: now and then a row of its CSV, and in a population its episodes' returns for the learners."""

    def __init__(self, parts: Parts, carrier: Any, place: int):
        self._parts, self._due = parts, Throttle()
        self._recorder = Recorder(parts.logdir, f"actor_{place}")
        self._log: Recorder | None = None
        self._log_name = f"log_{place}"  # opened by the first row: most environments log nothing
        self._reported = parts.peers.returns(carrier, f"actor_{place}")
        self._start, self._start_steps = time.perf_counter(), 0
        self._returns: list[float] = []
        self._played: list[int] = []  # the environment in which each of the returns was made

    def __call__(self, metrics: dict[str, Any], episodes: Episodes, logged: Sequence[dict[str, float]] = ()) -> None:
        """
        Args:
          metrics: the actor's, as actor.run yields them. When a row is due, its other columns are added to them.
          episodes: the episodes that ended since the last call.
          logged: rows that its environments want to have kept; they go to LOGDIR/log_N.csv.
        """
        for row in logged:
            self._log = self._log or Recorder(self._parts.logdir, self._log_name)
            version = {name: metrics[name] for name in Version._fields}
            self._log.write(version | row)
        self._returns += episodes.returns
        self._played += episodes.environments
        if self._reported:
            self._reported.add(Version(metrics["learner_steps"], metrics["env_steps"]), episodes)
        if self._due():
            now = time.perf_counter()
            metrics["env_steps_per_second"] = (metrics["actor_steps"] - self._start_steps) / (now - self._start)
            metrics["episodes"] = len(self._returns)
            metrics["return_mean"] = float(np.mean(self._returns)) if self._returns else float("nan")
            metrics |= self._parts.return_means(self._played, self._returns)
            self._recorder.write(metrics)
            self._start, self._start_steps, self._returns, self._played = now, metrics["actor_steps"], [], []

    def close(self) -> None:
        self._recorder.close()
        if self._log:
            self._log.close()


def act(parts: Parts, carrier: Any, task: int, sitting: int, stop: threading.Event) -> Generator[None, None, None]:
    """Runs one actor until `stop` is set; yields each time before it pulls parameters again.

    Where gradients travel, the actor is a worker, which sends gradients. Random numbers come from the run's seed, the
    actor's number and `sitting`, which says how many processes were this actor before.
    """
    run, place = parts.run, parts.place(task)
    seed = run.seed_of("actor", place, sitting)
    environment = run.make_environment(seed, parts.num_envs)
    variables = parts.variables(carrier)
    variables.wait()
    in_step = run.synchronous and run.placement != "serial"  # with `serial`, taking turns keeps actors in step
    source = NextVersion(variables, stop.is_set) if in_step else variables
    places = np.arange(place * parts.num_envs, (place + 1) * parts.num_envs, dtype=np.float32)
    ranks = places / max(1, parts.hosts.count * run.num_actors * parts.num_envs - 1)
    key = jax.random.key(seed)
    writer = parts.channel(carrier).writer(task, parts.priority, stop.is_set)
    rest = (writer, key, parts.device, stop.is_set, ranks)
    if parts.gradients:
        experience = parts.experience(task, sitting)
        turns = worker.run(parts.agent, parts.act, parts.gradient, environment, variables, experience, *rest)
    else:
        turns = actor.run(parts.agent, parts.act, environment, source, *rest)
    with contextlib.closing(ActorReport(parts, carrier, place)) as report:
        for metrics, episodes in turns:
            report(metrics, episodes, environment.logged())
            yield
    environment.close()


class Learning:
    """The learner's role. It learns from the newest checkpoint on until the run is done, and records and saves.

    The run is done at `max_env_steps`, or once an evaluation's return reached `stop_at_return`: the learner of the
    first host, whose LOGDIR has what the evaluator writes, looks for that in LOGDIR/evaluator.csv.
    """

    def __init__(
        self,
        parts: Parts,
        publish: Callable[[Version, Any], None],
        carrier: Any,
        channel: Any,
        replay: Checkpointer | None,
        asked: Callable[[], bool] = never,
        make_learner: Callable[..., learner.Learner] | None = None,
    ):
        """Restores the newest checkpoint, if there is one, and makes the learner.

        Where there are several learner hosts, only the first records, and saves the learner's state. In a pod, each
        host publishes parameters to its own actors and saves its own replay. Elsewhere the hosts share the replay
        servers: the first alone publishes, and has the servers save what they hold.

        Args:
          publish: called with (version, params on the devices).
          channel, replay: as `open_channel` returns them.
          asked: where there are several learner hosts, whether this one is asked to end.
          make_learner: called with a Learner's arguments to make the learner; None means Learner itself.
        """
        self._run, self._mesh = parts.run, parts.mesh
        pod, self._first_host = parts.hosts.count > 1, jax.process_index() == 0
        if not parts.gradients:
            check_shares(parts.agent, parts.mesh.total if pod else parts.mesh.size)
        if not self._first_host and not pod:
            publish = _keep
        self._checkpointer = Checkpointer(parts.logdir / "checkpoints", parts.agent, owner=self._first_host)
        # In a pod the first host restores for all, so the others need not see its folder.
        saved = self._checkpointer.restore() if self._first_host or not pod else None
        if self._first_host and saved is None:
            warn_of_no_checkpoint(parts.logdir)
        state, version = saved or (parts.init(), Version(0, 0))
        self._logdir, self._ends_at = parts.logdir, float(parts.run.max_env_steps)
        self.look()
        if pod:
            state, version = hosts.share_state(state, version)
        self._channel, self._replay, self._saves_replay = channel, replay, self._first_host or pod
        warn_of_lost(self._checkpointer.counts.get("replay", 0), channel)
        if self._first_host:
            warn_of_left_out(parts)
        prioritized = parts.table.kind == "prioritized" and channel.source is None
        self._priorities = learner.PriorityUpdater(channel.feedback, parts.mesh.local) if prioritized else None
        self._learner = (make_learner or learner.Learner)(
            parts.agent,
            state,
            version,
            parts.run.seed_of("learner"),
            publish,
            parts.run.publish_period,
            self._priorities,
            parts.run.updates_per_dispatch,
            learner.Admission(parts.run.max_staleness, parts.run.max_loss_deviations) if parts.gradients else None,
            parts.mesh,
            channel.source,
            asked,
            lambda: self.version.env_steps >= self._ends_at,
        )
        self._recorder = Recorder(parts.logdir, "learner") if self._first_host else None
        key = jax.random.key(parts.run.seed_of("exchange", version.learner_steps))
        self._exchange = parts.peers.exchange(carrier, parts.agent, key, version.env_steps)
        if self._exchange:
            self._exchange.start(self._learner)
        self._advice = Advice(parts.run.max_env_steps)

    @property
    def version(self) -> Version:
        return self._learner.version

    @property
    def done(self) -> bool:
        """Whether the run is done. A learner that ends before that was asked to end."""
        return self._learner.done or self.version.env_steps >= self._ends_at

    def look(self) -> None:
        """Looks up, on the first host, after how many environment steps the run ends, as far as evaluations say now."""
        if self._first_host:
            self._ends_at = self._run.ends_at(self._logdir)

    def _at_end(self) -> bool:
        """Returns whether to end now. Several hosts end here only at `max_env_steps`, which all of them see at the same
        update; on other ends their Learners agree."""
        several = jax.process_count() > 1
        return self.version.env_steps >= (self._run.max_env_steps if several else self._ends_at)

    def publish(self) -> None:
        """Publishes the parameters as they are now, whatever publish_period says."""
        self._learner.publish()

    def run(self, batches: Iterator[Batch]) -> Iterator[Version]:
        """Learns until the run is done or the batches end; yields the version after each update.

        Raises:
          NotFinite: a metric is NaN or infinite. Nothing is saved then.
        """
        if hosts.first_says(self.done):
            self._learner.done = True
            return
        due = Throttle()
        start, start_version, waited = time.perf_counter(), self.version, 0.0
        lags: list[float] = []
        saved = time.monotonic()
        feedback = None
        for feedback, host in self._learner.run(batches):
            waited += host.pop("wait_seconds")
            if "lag" in host:
                lags.append(host["lag"])
            if self._exchange:
                self._exchange(self._learner)
            recording = due()
            if recording:
                self.look()
            if recording or self._at_end():
                now, version = time.perf_counter(), self.version
                self._record(
                    {
                        **version._asdict(),
                        "env_steps_per_second": (version.env_steps - start_version.env_steps) / (now - start),
                        "learner_steps_per_second": (version.learner_steps - start_version.learner_steps)
                        / (now - start),
                        "wait_fraction": waited / (now - start),
                        **host,
                        **self._read_metrics(feedback),
                    },
                    lags,
                )
                start, start_version, waited, lags = now, version, 0.0, []
            if time.monotonic() - saved > self._run.checkpoint_seconds:
                self._save(feedback)
                saved = time.monotonic()
            yield self.version
            if self._at_end():
                break
        if feedback is not None:
            self._save(feedback)

    def _read_metrics(self, feedback: Feedback) -> dict[str, float]:
        """Returns an update's metrics. If one is not finite, the learner goes on from another population member's state
        and all metrics are NaN; raises NotFinite if no member can give one."""
        try:
            return learner.read_metrics(feedback, self._mesh.host)
        except learner.NotFinite as error:
            if self._exchange is None:
                raise
            self._exchange.rescue(self._learner, str(error))
            return dict.fromkeys(feedback.metrics, float("nan"))

    def _save(self, feedback: Feedback) -> None:
        self._read_metrics(feedback)  # raises rather than save what is not finite
        if self._first_host:
            self._checkpointer.save(self._learner.host_state(), self.version, {"replay": self._channel.count()})
        if self._saves_replay:
            if self._replay is None:
                self._channel.save()
            else:
                self._replay.save(self._channel.state(), self.version)

    def _record(self, row: dict[str, Any], lags: list[float]) -> None:
        for line in self._advice(row):
            logging.warning("%s", line)
        if self._recorder:
            self._recorder.write(row, {"lags": lags} if lags else {})

    def close(self) -> None:
        if self._priorities:
            self._priorities.close()
        if self._recorder:
            self._recorder.close()
        if self._exchange:
            self._exchange.close()
        self._checkpointer.close()


def check_shares(agent: Agent, devices: int) -> None:
    """Raises UsageError unless a batch divides over the devices, into shares that the agent's update can cut up."""
    size, multiple = agent.batch_size, agent.share_multiple
    if size % devices:
        raise UsageError(f"config.batch_size={size} must be a multiple of {devices}, the number of devices")
    if size // devices % multiple:
        raise UsageError(
            f"config.batch_size={size} is {size // devices} for each of {devices} devices, and an update cannot cut "
            f"that into equal parts: give a multiple of {devices * multiple}"
        )


def warn_of_no_checkpoint(logdir: pathlib.Path) -> None:
    """Warns if a run that has no checkpoint has learnt before, and so begins anew."""
    if last := latest(logdir, "learner"):
        logging.warning(
            "there is no checkpoint in %s, where the run had come to %d environment steps: it begins anew",
            logdir / "checkpoints",
            last["env_steps"],
        )


def warn_of_lost(saved: int, channel: Any) -> None:
    """Warns if a replay has fewer than the `saved` items, which it had when the learner's checkpoint was made."""
    there = channel.count()
    if there < saved:
        logging.warning(
            "the replay has only %d of the %d items that were saved: the actors fill it again", there, saved
        )


def warn_of_left_out(parts: Parts) -> None:
    """Warns if a LOGDIR that hosts share has replays of hosts that are no longer there: nobody reads them now."""
    if parts.replays:
        names = [f"replay_{k}" for k in range(parts.hosts.count * parts.run.num_replay_servers, settings.MANY)]
        left = list(itertools.takewhile(lambda name: (parts.logdir / name).exists(), names))
        if left:
            logging.warning("there were more hosts before: the replays in %s are not used", ", ".join(left))


def _keep(version: Version, params: Any) -> None:
    """Publishes nothing."""


def open_channel(parts: Parts, carrier: Any) -> tuple[Any, Checkpointer | None]:
    """Returns the learner's channel, and the Checkpointer of its replay.

    A local replay gets back what it held when it was last saved. Otherwise the Checkpointer is None: replay servers
    keep checkpoints of their own, and a queue is not saved.
    """
    if parts.run.carrier != "local" or not parts.replays:
        return parts.channel(carrier), None
    checkpointer, saved = restore_replay(parts)
    return parts.channel(carrier, saved), checkpointer


def restore_replay(parts: Parts) -> tuple[Checkpointer, dict[str, Any] | None]:
    """Returns the Checkpointer of a local replay, and the state that it saved last; None if none can be restored."""
    checkpointer = Checkpointer(parts.logdir / f"replay_{parts.hosts.index}", None, keep=1, owner=True)
    try:
        restored = checkpointer.restore()
    except Damaged:  # the Checkpointer has warned; a learner can go on with an empty replay
        checkpointer.set_aside()
        restored = None
    return checkpointer, restored and restored[0]


def open_learning(
    parts: Parts, carrier: Any, stopped: Callable[[], bool], asked: Callable[[], bool] = never
) -> tuple[Learning, Iterator[Batch], learner.Publisher | None]:
    """Returns the learner, its batches, and the Publisher that pushes its parameters from a thread.

    The batches end once `stopped` is true. The Publisher is None where parameters do not pass through the host. Where
    there are several learner hosts, all end once one is `asked` to.
    """
    if parts.run.placement == "device":
        from launchers import device  # imported here: it needs this module

        return *device.open_learning(parts, carrier, stopped), None
    variables = parts.variables(carrier)
    publisher = None if parts.run.carrier == "local" else learner.Publisher(variables, parts.mesh.host)
    channel, replay = open_channel(parts, carrier)
    channel.stopped = stopped
    batches = parts.batches(channel)  # before actors get their first parameters, so that all they write is counted
    learning = Learning(parts, publisher or variables.push, carrier, channel, replay, asked)
    if channel.source is None:
        batches = learner.prefetch(batches, stopped, parts.send)
    return learning, batches, publisher


def learn(parts: Parts, carrier: Any, stop: threading.Event) -> Generator[Version, None, bool]:
    """Runs the learner until the run is done or `stop` is set; yields the version after each update.

    Where samples and parameters pass through the host, threads of their own take them there and back. Returns whether
    the run is done.

    Raises:
      UsageError: the learner broke before its first update. It would break each time that it was started.
    """
    begun = False
    several = jax.process_count() > 1
    stopped = hosts.asked_for(stop.is_set, PATIENCE_SECONDS) if several else stop.is_set
    try:
        learning, batches, publisher = open_learning(parts, carrier, stopped, stop.is_set)
        for version in learning.run(batches):
            begun = True
            yield version
    except (UsageError, EnvironmentFailure, OSError, FloatingPointError):
        raise
    except Exception as error:
        if begun:
            raise
        traceback.print_exc()  # for the role's log
        raise UsageError(f"the learner cannot begin: {type(error).__name__}: {error}") from error
    learning.publish()  # the evaluator waits for the last parameters
    if publisher:
        publisher.close()
    learning.close()
    return learning.done


def evaluate(parts: Parts, carrier: Any, stop: threading.Event) -> Generator[dict[str, Any] | None, None, None]:
    """Runs the evaluator until `stop` is set, a return reached `stop_at_return`, or the last parameters are evaluated.

    Yields each evaluation's metrics, and None now and then during one; LOGDIR/evaluating.csv then has its progress.
    """
    show_settings(parts.logdir, "evaluator", parts.run.to_json())
    with contextlib.closing(Recorder(parts.logdir, "evaluator")) as recorder:
        yield from _evaluate(parts, carrier, stop, recorder)


def _evaluate(
    parts: Parts, carrier: Any, stop: threading.Event, recorder: Recorder
) -> Generator[dict[str, Any] | None, None, None]:
    run = parts.run
    done = int(recorder.last["env_steps"]) if recorder.last else 0
    if done >= run.ends_at(parts.logdir):
        return
    keeper = best.Keeper(parts.logdir, parts.params)
    variables = parts.variables(carrier)
    variables.wait()
    reported = parts.peers.returns(carrier, "evaluator")
    films = Films(run, parts.logdir)
    of_all, due = run.stacked * run.eval_episodes, Throttle()
    bounds = {"of": of_all, "most": run.eval_steps(parts.spec)}
    due()  # so that a short evaluation, of less than LOG_SECONDS, shows no progress
    for said in evaluator.run(
        parts.agent,
        parts.act_in_evaluations,
        films.make_environment,
        variables,
        jax.random.key(run.seed_of("evaluator")),
        of_all,
        run.eval_period,
        run.max_env_steps,
        evaluator.next_due(done, run.eval_period),
        stopped=stop.is_set,
        cuts_at=run.cuts_at(parts.spec),
    ):
        if isinstance(said, evaluator.Progress):
            if due():
                show(parts.logdir, "evaluating", said._asdict() | bounds)
                yield None
            continue
        show(parts.logdir, "evaluating", None)
        metrics, episodes, params = said
        version = Version(metrics["learner_steps"], metrics["env_steps"])
        if reported:
            reported.add(version, episodes)
        metrics |= parts.return_means(episodes.environments, episodes.returns)
        keeper.show(version, params, metrics["return_mean"])  # before the row is written: it may end the run
        recorder.write(metrics)
        films.write(version)
        yield metrics
        if metrics["env_steps"] >= run.ends_at(parts.logdir):
            break
    show(parts.logdir, "evaluating", None)  # an evaluation that was stopped may have left it
