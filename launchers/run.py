"""A run as data: everything that a command line decides. It is made from flags, or loaded from LOGDIR/config.json."""

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
    """The settings of a run, including its agent's Config."""

    config: Any  # the agent's Config

    def make_agent(self, spec: EnvironmentSpec, check: bool = True) -> Agent:
        """Returns the run's agent, as every role makes it.

        Args:
          check: whether to check that the agent and its way of learning fit the run's other settings. Callers that only
            act with the agent pass False.

        Raises:
          UsageError: the agent does not fit the environment, or (with `check`) the run's other settings.
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
        """Raises UsageError if the agent cannot learn, or be evaluated, with the run's settings as they are."""
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
        why = (
            "with --travels=gradients" if self.travels == "gradients" else f"{self.agent} has a queue, not a replay, so"
        )
        for name in ("num_replay_servers", "updates_per_dispatch"):
            if getattr(self, name) > 1:
                raise UsageError(f"--{name}={getattr(self, name)}: {why} it must be 1")

    def _check_synchronous(self, agent: Agent) -> None:
        """Raises UsageError if the run cannot have actors that wait for the update on what they wrote."""
        if not isinstance(agent.table.items, Blocks) or self.travels == "gradients":
            who = f"{self.agent} with --travels=gradients" if self.travels == "gradients" else self.agent
            raise UsageError(
                "--synchronous is for agents that learn from blocks of their actors' rows, such as a2c, ppo and trpo: "
                f"{who} does not, so leave --synchronous out"
            )
        if self.num_actors * self.envs_per_actor != agent.batch_size:
            raise UsageError(
                f"--synchronous: all actors' environments make one batch, so --num_actors={self.num_actors} times "
                f"--envs_per_actor={self.envs_per_actor} must be config.batch_size={agent.batch_size}"
            )
        if self.placement == "pod":
            raise UsageError("--synchronous works on one host only: leave it out, or give another --placement than pod")
        if self.publish_period != 1:
            raise UsageError(
                f"--synchronous publishes the parameters after each update: leave out --publish_period="
                f"{self.publish_period}"
            )

    def _check_replay(self, agent: Agent) -> None:
        if self.placement == "serial" and self.carrier == "reverb":
            raise UsageError(
                f"--placement=serial repeats a run bit for bit, but Reverb samples {self.agent}'s replay at random and "
                "without a seed: give --carrier=local or --placement=threads"
            )
        table, batch = agent.table, agent.batch_size * self.updates_per_dispatch
        if self.carrier == "reverb" and table.kind == "prioritized":
            for name, plain in (("priority", "proportional"), ("uniform_fraction", 0.0)):
                if getattr(table, name) != plain:
                    raise UsageError(
                        f"config.{name}={getattr(table, name)}: Reverb can only sample in proportion to the "
                        f"priorities: give --carrier=local or --config.{name}={plain}"
                    )
        if self.carrier == "local" and table.eviction_exponent:
            raise UsageError(
                f"config.eviction_exponent={table.eviction_exponent}: with --carrier=local a full replay always "
                "replaces its oldest rows: give --carrier=reverb or --config.eviction_exponent=0"
            )
        if batch % self.num_replay_servers:
            raise UsageError(f"--num_replay_servers={self.num_replay_servers} must divide a batch of {batch}")
        share = table.max_size // self.num_replay_servers
        for name, size in (
            ("minimum size", table.min_size // self.num_replay_servers),
            ("batch", agent.batch_size // self.num_replay_servers),
            ("n-step window", getattr(table.items, "n", 1)),
        ):
            if size > share:
                raise UsageError(
                    f"the replay's {name}, {size}, is larger than the replay itself, which has {share} items on each "
                    "server: give a larger --config.replay_size"
                )
        if self.num_actors < self.num_replay_servers:
            raise UsageError(
                f"--num_replay_servers={self.num_replay_servers} is more than --num_actors={self.num_actors}: each "
                "actor writes to one server, so the learner would wait for ever for a server without an actor"
            )

    def make_environment(self, seed: int, num_envs: int, *, evaluation: bool = False, drawn: bool = False) -> Any:
        """Returns `num_envs` of the run's environments as one batched environment.

        Args:
          evaluation: whether they are for an evaluation: every episode then ends, after `eval_max_steps` at the latest.
          drawn: whether pictures of them will be asked for.

        Raises:
          UsageError: they cannot be made.
        """
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
        from environments.filmed import Filmed  # imported here: most runs have no videos

        try:
            environment = Filmed(self.make_environment(0, len(self.tasks), evaluation=True, drawn=True))
            try:
                environment.reset()
            finally:
                environment.close()
        except (UsageError, environments.EnvironmentFailure) as error:
            raise UsageError(f"--video_period={self.video_period}: {error}") from error

    def spec(self) -> EnvironmentSpec:
        """Returns the spec of one of the run's environments; raises UsageError if none can be made."""
        try:
            return spec_of(self.env, self.env_kwargs, self.atari_protocol)
        except ValueError as error:
            raise UsageError(str(error)) from error

    def ends_at(self, logdir: pathlib.Path) -> float:
        """Returns after how many environment steps the run is done, as far as is known now.

        These are `max_env_steps`, or the steps of the first evaluation whose mean return reached `stop_at_return`, if
        they are fewer.
        """
        if self.stop_at_return is None:
            return self.max_env_steps
        from runtime import metrics  # imported here: a mistake at the command line is reported without waiting for it

        evaluations = metrics.read(logdir / "evaluator.csv")
        come = (row["env_steps"] for row in evaluations if row.get("return_mean", -math.inf) >= self.stop_at_return)
        return min(self.max_env_steps, next(come, math.inf))

    def cuts_at(self, spec: EnvironmentSpec) -> int | None:
        """Returns the steps after which an evaluation's episode is cut; None if the environment's own time limit comes
        first."""
        longest = spec.max_episode_steps
        return None if longest is not None and longest <= self.eval_max_steps else self.eval_max_steps

    def steps_before_update(self, agent: Agent) -> int:
        """Returns about how many environment steps the run makes before the agent's first update."""
        table, items = agent.table, agent.table.items
        if table.kind != "queue":
            return table.min_size * getattr(items, "period", 1)
        return agent.batch_size * getattr(items, "length", 0)  # whole episodes have any length

    def eval_steps(self, spec: EnvironmentSpec) -> int:
        """Returns the most steps that an environment makes in an evaluation; one step is lost between two episodes."""
        longest = min(filter(None, (spec.max_episode_steps, self.eval_max_steps)))
        return self.eval_episodes // self.eval_envs * (longest + 1) - 1

    def check_fit(self, servers: int = 0) -> EnvironmentSpec:
        """Checks that the run can work here; returns the spec of one of its environments, as `spec` does.

        Args:
          servers: how many of the run's Reverb replay servers this machine is to have.

        Raises:
          UsageError: there is no such environment, the agent does not fit it or the settings, or this machine has no
            room for the agent's state, a batch, or what the servers (or the local carrier's replay) hold.
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
        """Estimates the bytes that all of the run's replay servers hold together; 0 for a queue, which holds little."""
        spec = self.spec()
        agent = self.make_agent(spec)
        if agent.table.kind == "queue":
            return 0
        return self._most_items(agent) * channels.way(agent.table).item_bytes(agent, spec)

    def _most_items(self, agent: Agent) -> int:
        """Returns the most items that the agent's replay comes to hold."""
        steps = channels.way(agent.table).counter(agent.table)[1]  # transitions per item
        return min(agent.table.max_size, -(-self.max_env_steps // steps))

    def check_hosts(self, num_learners: int) -> None:
        """Raises UsageError if the run's learner cannot be spread over `num_learners` hosts, two or more."""
        agent = self.make_agent(self.spec())
        for why, one_host in (
            ("an agent with a replay learns on one host", agent.table.kind != "queue"),
            ("an agent with eligibility traces learns on one host", agent.in_order),
            ("each learner of a population is on one host", self.population > 0),
            ("with --synchronous (which --synchronous=false turns off) the learner is on one host", self.synchronous),
            ("with --travels=gradients the learner is on one host", self.travels == "gradients"),
        ):
            if one_host:
                raise UsageError(f"--num_learners={num_learners}: {why}; leave --num_learners out")

    def check_pod(self, count: int) -> None:
        """Raises UsageError if a pod of `count` hosts cannot run this, each host with an equal part of every batch."""
        agent = self.make_agent(self.spec())
        for why, alone in (
            ("the members of a population cannot be on several hosts", self.population > 0),
            ("an agent with eligibility traces learns on one host", agent.in_order),
            ("with --travels=gradients the learner is on one host", self.travels == "gradients"),
        ):
            if alone:
                raise UsageError(f"--placement=pod: {why}; give --placement=threads")
        batch = agent.batch_size
        if batch % count:
            raise UsageError(f"--num_hosts={count} must divide config.batch_size={batch}: each host has an equal part")
        table, share = agent.table, batch // count
        if table.kind != "queue":
            if table.max_size // count < max(1, share):
                raise UsageError(
                    f"--num_hosts={count}: a host's part of the replay would be smaller than its part of a batch: give "
                    "fewer hosts or a larger --config.replay_size"
                )
        elif isinstance(table.items, Blocks) and max(share, self.envs_per_actor) % min(share, self.envs_per_actor):
            raise UsageError(
                f"--num_hosts={count}: a host's part of a batch is {share}, and --envs_per_actor={self.envs_per_actor} "
                "must divide it or be a multiple of it"
            )

    def _check_sizes(self, agent: Agent, spec: EnvironmentSpec) -> None:
        """Raises UsageError unless this machine has room for the agent's state, and for the batch of an update."""
        state = structures.nbytes(structures.state_structs(agent))
        self._check_room(state, "the agent's state", "--config.hidden_sizes")
        structure = channels.item_structure(agent, spec, self.stacked * self.envs_per_actor)
        queue = agent.table.kind == "queue"
        in_item = channels.way(agent.table).sequences_per_item(structure) if queue else 1
        items = -(-agent.batch_size * self.updates_per_dispatch // in_item)
        wanted = "--envs_per_actor or --config.unroll_length" if queue else "--config.batch_size"
        self._check_room(items * structures.nbytes(structure.leaves), "the batch of an update", wanted)

    def _check_rings(self, agent: Agent, spec: EnvironmentSpec) -> None:
        """Raises UsageError unless a replay in rings can be built, and each device has room for its part.

        The rings are on the learner's devices or, where gradients travel, with the workers, in this machine's memory.
        """
        by_workers = self.travels == "gradients"
        devices = 1 if by_workers else jax.local_device_count()
        try:
            structure = channels.item_structure(agent, spec, self.envs_per_actor)
            cut = channels.way(agent.table).ring(agent.table, structure)
            actors, num_envs = self.num_actors, self.envs_per_actor
            if self.placement == "device":  # one actor, inside the learner's program, has all of them
                actors, num_envs = 1, actors * num_envs
            ring = Ring(agent.table, cut, actors, num_envs, devices, self.max_rows)
        except ValueError as error:
            raise UsageError(str(error)) from error
        stats = None if by_workers else jax.local_devices()[0].memory_stats()  # only accelerators have them
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
        """The most rows that a run can write: even an episode of one step takes two rows."""
        return 2 * self.max_env_steps

    def seed_of(self, role: str, task: int = 0, sitting: int = 0) -> int:
        """Returns a seed, a non-negative int32, of its own for each role, task and sitting.

        A new sitting begins each time that a process takes the role up. For an evaluation, `task` is the learner's
        number of updates.
        """
        entropy = [self.seed, *role.encode(), task, *([sitting] if sitting else [])]
        return int(np.random.SeedSequence(entropy).generate_state(1)[0] >> 1)

    @property
    def stacked(self) -> int:
        """The number of population members that are stacked in one learner; 1 where none are.

        Such members also share the actors and the evaluator, each of which has that many times the environments.
        """
        return self.population if self.population_mode == "vmap" and self.population else 1

    @property
    def eval_envs(self) -> int:
        """The number of environments of an evaluation: the most, up to 100, that share its episodes evenly and have
        each task equally often. Where each environment is a process, `envs_per_actor` takes the place of 100."""
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
    """Returns the run of an agent in an environment: the preset's settings, replaced by the overrides that are given.

    Args:
      overrides: settings by name; None means that one is not given.
      config_overrides: fields of the agent's Config.
      used: as in `settings.resolve`.

    Raises:
      UsageError: an agent or a field is unknown, or a value is out of range.
    """
    module = agent_module(agent)
    given = {name: value for name, value in overrides.items() if value is not None}
    settled = dataclasses.asdict(settings.resolve(agent, env, given, used))
    config = settings.BOOKS[settled["preset"]].find(agent, env, settled["env_kwargs"]).config | config_overrides
    if "decay_env_steps" in typing.get_type_hints(module.Config):
        config.setdefault("decay_env_steps", settled["max_env_steps"])
    run = Run(config=make_config(module, config), **settled)
    # A preset's `synchronous` is meant for the preset's own sizes: other sizes drop it, unless it was asked for.
    return run if "synchronous" in given or _can_be_in_step(run) else dataclasses.replace(run, synchronous=False)


def _can_be_in_step(run: Run) -> bool:
    """Returns whether --synchronous fits the other settings. A population does not fit: its members copy each other
    between two updates."""
    one_batch = run.num_actors * run.envs_per_actor == getattr(run.config, "batch_size", None)
    alone = not run.population and run.placement != "pod"
    return one_batch and run.publish_period == 1 and run.travels == "experience" and alone


def replace(run: Run, **changes: Any) -> Run:
    """Returns `run` with other settings, which are checked again."""
    run = dataclasses.replace(run, **changes)
    settings.check(run)
    return run


def save(run: Run, logdir: pathlib.Path) -> None:
    """Writes LOGDIR/config.json and LOGDIR/spec.json. A config.json that is there already must be this run's.

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
    """Returns the run of LOGDIR/config.json.

    Args:
      check: whether to check that the run can go on here. A caller that only wants its policy passes False: the run may
        have been trained where Reverb was installed.

    Raises:
      UsageError: there is no run in LOGDIR, or another version of Shoal wrote it.
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
