"""A run: everything that a command line decides, as data; from flags, to LOGDIR/config.json and back."""

import dataclasses
import json
import math
import os
import pathlib
import typing
from collections.abc import Collection
from typing import Any

import jax
import numpy as np

import environments
import runtime  # noqa: F401  JAX is set up before its first computation
from agents.agent import Agent, Blocks, BoundedActions, EnvironmentSpec
from agents.parts.gradients import by_gradients
from agents.parts.vectorized import vectorize
from launchers import recorded, settings
from launchers.configs import agent_module, make_config
from launchers.kinds import spec_of
from launchers.settings import UsageError
from replay import channels, gradients, structures
from replay.rings import Ring


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run(settings.Settings):
    """The settings of a run, its agent's Config among them."""

    config: Any  # the agent's Config

    def make_agent(self, spec: EnvironmentSpec, check: bool = True) -> Agent:
        """The agent; the same in every role.

        Args:
          check: whether what it learns from must be able to travel here, which who only acts need not ask.

        Raises:
          UsageError: it does not fit the environment.
        """
        try:
            agent = agent_module(self.agent).make(self.config, spec)
            travelling = by_gradients(agent) if self.travels == "gradients" else agent
            if self.stacked > 1:
                travelling = vectorize(agent, self.stacked, spec.num_tasks)
            if self.synchronous and isinstance(travelling.table.items, Blocks):
                items = dataclasses.replace(travelling.table.items, one_version=True)
                travelling = travelling._replace(table=dataclasses.replace(travelling.table, items=items))
        except ValueError as error:
            raise UsageError(str(error)) from error
        if check:
            self._check_fit(agent, spec)
        return travelling

    def _check_fit(self, agent: Agent, spec: EnvironmentSpec) -> None:
        """Raises UsageError if what the agent learns from cannot travel so."""
        try:
            if self.travels == "gradients":
                gradients.refuse(agent, self, spec)
            channels.way(agent.table).refuse(agent, self, spec)
        except ValueError as error:
            raise UsageError(str(error)) from error
        if self.synchronous:
            self._check_synchronous(agent)
        if self.eval_epsilon and isinstance(spec.actions, BoundedActions):
            raise UsageError(
                f"--eval_epsilon={self.eval_epsilon} is for discrete actions; this environment's are continuous"
            )
        if agent.table.kind != "queue" and self.travels != "gradients":
            self._check_replay(agent)
            return
        why = "where gradients travel" if self.travels == "gradients" else f"{self.agent} has a queue, not a replay;"
        for name in ("num_replay_servers", "updates_per_dispatch"):
            if getattr(self, name) > 1:
                raise UsageError(f"--{name}={getattr(self, name)}: {why} leave it at 1")

    def _check_synchronous(self, agent: Agent) -> None:
        """Raises UsageError if actors cannot wait for the update on what they wrote."""
        if not isinstance(agent.table.items, Blocks) or self.travels == "gradients":
            why = "here gradients travel" if self.travels == "gradients" else f"{self.agent} does not"
            raise UsageError(
                f"--synchronous is for agents that learn from blocks of their actors' rows, as a2c, ppo, trpo do: {why}"
            )
        if self.num_actors * self.envs_per_actor != agent.batch_size:
            raise UsageError(
                f"--synchronous: all actors' environments make one batch, so --num_actors={self.num_actors} times "
                f"--envs_per_actor={self.envs_per_actor} must be config.batch_size={agent.batch_size}"
            )
        if self.placement == "pod":
            raise UsageError("--synchronous is of one host: give another --placement than pod")
        if self.publish_period != 1:
            raise UsageError(f"--synchronous publishes each update: leave out --publish_period={self.publish_period}")

    def _check_replay(self, agent: Agent) -> None:
        if self.placement == "serial" and self.carrier == "reverb":
            raise UsageError(
                f"--placement=serial repeats a run to the bit, which {self.agent}'s replay in Reverb cannot: its "
                "random sampling has no seed; give --carrier=local or --placement=threads"
            )
        table, batch = agent.table, agent.batch_size * self.updates_per_dispatch
        if self.carrier == "reverb" and table.kind == "prioritized":
            for name, plain in (("priority", "proportional"), ("uniform_fraction", 0.0)):
                if getattr(table, name) != plain:
                    raise UsageError(
                        f"config.{name}={getattr(table, name)}: Reverb has no such sampler, it draws in proportion to "
                        f"priorities alone; give --carrier=local or --config.{name}={plain}"
                    )
        if self.carrier == "local" and table.eviction_exponent:
            raise UsageError(
                f"config.eviction_exponent={table.eviction_exponent}: the rings of --carrier=local are written over in "
                "the order of time; give --carrier=reverb or --config.eviction_exponent=0"
            )
        if batch % self.num_replay_servers:
            raise UsageError(f"a batch of {batch} does not divide over --num_replay_servers={self.num_replay_servers}")
        share = table.max_size // self.num_replay_servers
        for name, size in (
            ("minimum size", table.min_size // self.num_replay_servers),
            ("batch", agent.batch_size // self.num_replay_servers),
            ("n-step window", getattr(table.items, "n", 1)),
        ):
            if size > share:
                raise UsageError(f"the replay's {name}, {size}, is larger than the replay itself, {share} a server")
        if self.num_actors < self.num_replay_servers:
            raise UsageError(
                f"--num_replay_servers={self.num_replay_servers} is more than --num_actors={self.num_actors}: an actor "
                "writes to one server, and the learner would wait for those without"
            )

    def make_environment(self, seed: int, num_envs: int, *, evaluation: bool = False, drawn: bool = False) -> Any:
        """The run's environments, so many in one object; an `evaluation`'s episodes all end, and those that are `drawn`
        can be asked for pictures."""
        max_steps = self.eval_max_steps if evaluation else None
        try:
            return environments.make(
                self.env,
                num_envs,
                seed,
                evaluation=evaluation,
                max_steps=max_steps,
                keywords=settings.keywords(self.env_kwargs),
                vectorization=self.gymnasium_vectorization,
                atari_protocol=self.atari_protocol,
                reward_clip=self.reward_clip,
                drawn=drawn,
            )
        except ValueError as error:
            raise UsageError(str(error)) from error

    def check_drawn(self) -> None:
        """Raises UsageError if `video_period` asks for pictures and the run's environments cannot be drawn here."""
        if not self.video_period:
            return
        from environments.filmed import Filmed  # only now: most runs have no videos

        try:
            environment = Filmed(self.make_environment(0, len(self.tasks), evaluation=True, drawn=True))
            try:
                environment.reset()
            finally:
                environment.close()
        except (UsageError, environments.EnvironmentFailure) as error:
            raise UsageError(f"--video_period={self.video_period}: {error}") from error

    def spec(self) -> EnvironmentSpec:
        """What one of the run's environments looks like."""
        try:
            return spec_of(self.env, self.env_kwargs, self.atari_protocol)
        except ValueError as error:
            raise UsageError(str(error)) from error

    def ends_at(self, logdir: pathlib.Path) -> float:
        """After how many environment steps the run is done, as far as is known now: `max_env_steps`, or those of the
        first evaluation that came to `stop_at_return`, if they are fewer."""
        if self.stop_at_return is None:
            return self.max_env_steps
        from runtime import metrics  # only now: a mistake is to wait for nothing

        evaluations = metrics.read(logdir / "evaluator.csv")
        come = (row["env_steps"] for row in evaluations if row.get("return_mean", -math.inf) >= self.stop_at_return)
        return min(self.max_env_steps, next(come, math.inf))

    def cuts_at(self, spec: EnvironmentSpec) -> int | None:
        """After how many steps an evaluation's episode is cut; None: the environment's own time limit comes first."""
        longest = spec.max_episode_steps
        return None if longest is not None and longest <= self.eval_max_steps else self.eval_max_steps

    def eval_steps(self, spec: EnvironmentSpec) -> int:
        """Steps that each environment of an evaluation makes, at most; one is lost between two episodes."""
        longest = min(filter(None, (spec.max_episode_steps, self.eval_max_steps)))
        return self.eval_episodes // self.eval_envs * (longest + 1) - 1

    def check_fit(self, servers: int = 0) -> EnvironmentSpec:
        """What one of the run's environments looks like, as `spec` says it.

        Raises:
          UsageError: there is no such environment, the agent does not fit it, or this machine has no room for what
            `servers` of the run's replay servers hold.
        """
        spec = self.spec()
        agent = self.make_agent(spec)
        if self.travels == "gradients":
            agent = agent._replace(table=agent.table.items.table)  # type: ignore[union-attr]
        table = agent.table
        self._check_sizes(agent, spec)
        if table.kind == "queue":
            return spec
        if self.carrier == "local" or self.travels == "gradients":
            self._check_rings(agent, spec)
            return spec
        items = self._most_items(agent) * servers // self.num_replay_servers
        self._check_room(
            items * channels.way(table).item_bytes(agent, spec),
            f"a replay of {items:,} {type(table.items).__name__.lower()}",
            "--config.replay_size",
        )
        return spec

    def replay_bytes(self) -> int:
        """What all of the run's replay servers hold, about; of what is learnt from once it is little, and 0 here."""
        spec = self.spec()
        agent = self.make_agent(spec)
        if agent.table.kind == "queue":
            return 0
        return self._most_items(agent) * channels.way(agent.table).item_bytes(agent, spec)

    def _most_items(self, agent: Agent) -> int:
        """How many items its replay comes to hold."""
        steps = channels.way(agent.table).counter(agent.table)[1]  # to an item
        return min(agent.table.max_size, -(-self.max_env_steps // steps))

    def check_hosts(self, num_learners: int) -> None:
        """Raises UsageError if a learner cannot be spread over so many hosts, more than one."""
        agent = self.make_agent(self.spec())
        for why, one_host in (
            ("an agent with a replay has one learner host", agent.table.kind != "queue"),
            ("an agent with eligibility traces has one learner host", agent.in_order),
            ("a population's learners have one host each", self.population > 0),
            ("actors in step with their learner have one host of it: give --synchronous=false", self.synchronous),
            ("where gradients travel there is one learner host", self.travels == "gradients"),
        ):
            if one_host:
                raise UsageError(f"--num_learners={num_learners}: {why}")

    def check_pod(self, count: int) -> None:
        """Raises UsageError if a pod of so many hosts cannot run this, each with an even part of every batch."""
        agent = self.make_agent(self.spec())
        for why, alone in (
            ("a population's members are not spread over hosts", self.population > 0),
            ("eligibility traces are of one host's environments", agent.in_order),
            ("where gradients travel there is one learner host", self.travels == "gradients"),
        ):
            if alone:
                raise UsageError(f"--placement=pod: {why}; give --placement=threads")
        batch = agent.batch_size
        if batch % count:
            raise UsageError(f"--num_hosts={count} does not divide config.batch_size={batch}")
        table, share = agent.table, batch // count
        if table.kind != "queue":
            if table.max_size // count < max(1, share):
                raise UsageError(f"--num_hosts={count}: a host's part of the replay is smaller than of a batch")
        elif isinstance(table.items, Blocks) and max(share, self.envs_per_actor) % min(share, self.envs_per_actor):
            raise UsageError(
                f"--num_hosts={count}: a host's part of a batch, {share}, and --envs_per_actor={self.envs_per_actor} "
                "do not divide"
            )

    def _check_sizes(self, agent: Agent, spec: EnvironmentSpec) -> None:
        """Raises UsageError unless this machine has room for the agent's state, and for what an update takes."""
        state = structures.nbytes(structures.state_structs(agent))
        self._check_room(state, "the agent's state", "--config.hidden_sizes")
        structure = channels.item_structure(agent, spec, self.stacked * self.envs_per_actor)
        queue = agent.table.kind == "queue"
        in_item = channels.way(agent.table).sequences_per_item(structure) if queue else 1
        items = -(-agent.batch_size * self.updates_per_dispatch // in_item)
        wanted = "--envs_per_actor or --config.unroll_length" if queue else "--config.batch_size"
        self._check_room(items * structures.nbytes(structure.leaves), "what an update learns from", wanted)

    def _check_rings(self, agent: Agent, spec: EnvironmentSpec) -> None:
        """Likewise, of a replay on the learner's devices, or the workers'."""
        by_workers = self.travels == "gradients"
        devices = 1 if by_workers else jax.local_device_count()
        try:
            structure = channels.item_structure(agent, spec, self.envs_per_actor)
            cut = channels.way(agent.table).ring(agent.table, structure)
            actors, num_envs = self.num_actors, self.envs_per_actor
            if self.placement == "device":  # where one has all environments
                actors, num_envs = 1, actors * num_envs
            ring = Ring(agent.table, cut, actors, num_envs, devices, self.max_rows)
        except ValueError as error:
            raise UsageError(str(error)) from error
        stats = None if by_workers else jax.local_devices()[0].memory_stats()  # of an accelerator
        room = stats["bytes_limit"] if stats and "bytes_limit" in stats else None
        rows = ring.num_actors * ring.length * ring.share
        self._check_room(ring.nbytes, f"a replay of {rows:,} rows on each device", "--config.replay_size", room)

    def _check_room(self, size: int, what: str, wanted: str, room: int | None = None) -> None:
        """Raises UsageError unless `size` bytes fit in `room`, or in this machine's memory."""
        there = room or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if size > there:
            raise UsageError(
                f"{what} takes about {size / 1e9:.1f} GB and this {'device' if room else 'machine'} has "
                f"{there / 1e9:.1f} GB: give a smaller {wanted}"
            )

    @property
    def max_rows(self) -> int:
        """Rows that a run can write, at most: an episode of one step is two."""
        return 2 * self.max_env_steps

    def seed_of(self, role: str, task: int = 0, sitting: int = 0) -> int:
        """A seed, a non-negative int32 unlike any other's: for one role's task, and for each time that a process takes
        it up. Of an evaluation the task is the learner's steps."""
        entropy = [self.seed, *role.encode(), task, *([sitting] if sitting else [])]
        return int(np.random.SeedSequence(entropy).generate_state(1)[0] >> 1)

    @property
    def stacked(self) -> int:
        """Members that share a learner, actors and an evaluator, each of which has so many times the environments."""
        return self.population if self.population_mode == "vmap" and self.population else 1

    @property
    def eval_envs(self) -> int:
        """Environments of an evaluation: the most, up to 100, that share its episodes evenly, and the tasks. Where each
        is a process, up to as many as an actor has."""
        count = len(self.tasks)
        most = self.envs_per_actor if self.gymnasium_vectorization == "async" else 100
        return max(n for n in range(count, max(most, count) + 1, count) if self.eval_episodes % n == 0)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def make(
    agent: str,
    env: str,
    overrides: dict[str, Any],
    config_overrides: dict[str, Any],
    used: Collection[str] = (),
) -> Run:
    """The run of an agent in an environment: the preset's settings, then the overrides that are not None; `used` is as
    for `settings.resolve`.

    Raises:
      UsageError: an unknown agent, field or a value out of range.
    """
    module = agent_module(agent)
    given = {name: value for name, value in overrides.items() if value is not None}
    settled = dataclasses.asdict(settings.resolve(agent, env, given, used))
    config = settings.BOOKS[settled["preset"]].find(agent, env, settled["env_kwargs"]).config | config_overrides
    if "decay_env_steps" in typing.get_type_hints(module.Config):
        config.setdefault("decay_env_steps", settled["max_env_steps"])
    run = Run(config=make_config(module, config), **settled)
    # Presets have their own sizes in step: of others nobody asked for it.
    return run if "synchronous" in given or _can_be_in_step(run) else dataclasses.replace(run, synchronous=False)


def _can_be_in_step(run: Run) -> bool:
    """Whether --synchronous fits what else is set; members of a population copy each other between two updates."""
    one_batch = run.num_actors * run.envs_per_actor == getattr(run.config, "batch_size", None)
    alone = not run.population and run.placement != "pod"
    return one_batch and run.publish_period == 1 and run.travels == "experience" and alone


def replace(run: Run, **changes: Any) -> Run:
    """`run` with other settings, checked anew."""
    run = dataclasses.replace(run, **changes)
    settings.check(run)
    return run


def save(run: Run, logdir: pathlib.Path) -> None:
    """Writes LOGDIR/config.json, or checks that it is this run's, and LOGDIR/spec.json.

    Raises:
      UsageError: the logdir cannot be written or belongs to another run, or there is no such environment.
    """
    path = logdir / "config.json"
    try:
        logdir.mkdir(parents=True, exist_ok=True)
        if path.exists():
            old, new = (json.loads(json.dumps(each.to_json())) for each in (load(logdir), run))
            different = settings.differing(old, new)
            if different:
                raise UsageError(
                    f"{logdir} holds another run ({'; '.join(different)}): choose another --logdir or the same settings"
                )
        elif any((logdir / "checkpoints").glob("*")):
            raise UsageError(
                f"{logdir} has checkpoints of a run, but no config.json to say which: choose another --logdir"
            )
        recorded.write(path, run.to_json())
        recorded.save_spec(run, logdir)
    except OSError as error:
        raise UsageError(f"cannot write to --logdir {logdir}: {error.strerror}") from error


def load(logdir: pathlib.Path, check: bool = True) -> Run:
    """The run of LOGDIR/config.json.

    Args:
      check: whether it must be able to go on here, which a policy need not: where it was trained there may have been
        Reverb.

    Raises:
      UsageError: there is none, or it is not one of this version's.
    """
    path, values = logdir / "config.json", settings.saved(logdir)
    try:
        config = make_config(agent_module(values["agent"]), values.pop("config"))
        run = Run(config=config, **values)
        if check:
            settings.check(run)
    except TypeError as error:
        raise UsageError(f"{path} was written by another version: {error}") from error
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    return run
