"""A run: everything that a command line decides, as data; from flags, to LOGDIR/config.json and back."""

import dataclasses
import difflib
import importlib
import json
import math
import os
import pathlib
import typing
from collections.abc import Iterable
from types import ModuleType
from typing import Any

import jax
import numpy as np

import environments
from agents.agent import Agent, DiscreteActions, EnvironmentSpec, Gradients, Sequences, TableSpec, Transitions, Window
from agents.gradients import by_gradients
from agents.pbt import EXPLOIT, EXPLORE
from agents.vectorized import vectorize
from environments import tasks
from launchers import presets

# Some share a file and differ in their presets.
AGENTS = {
    "a2c": "agents.a2c",
    "actor_critic": "agents.actor_critic",
    "actor_critic_lambda": "agents.actor_critic",
    "a3c": "agents.a2c",
    "all_actions": "agents.reinforce",
    "apex_dpg": "agents.apex_dpg",
    "apex_dqn": "agents.apex_dqn",
    "async_n_step_q": "agents.q_learning",
    "async_q": "agents.q_learning",
    "async_sarsa": "agents.q_learning",
    "d4pg": "agents.d4pg",
    "ddpg": "agents.ddpg",
    "double_dqn": "agents.dqn",
    "dpg": "agents.dpg",
    "dqn": "agents.dqn",
    "dueling_dqn": "agents.dqn",
    "gorila": "agents.dqn",
    "impala": "agents.impala",
    "mix_match": "agents.mix_match",
    "off_pac": "agents.off_pac",
    "ppo": "agents.ppo",
    "prioritized_dqn": "agents.dqn",
    "q_learning": "agents.q_learning",
    "r2d2": "agents.r2d2",
    "reinforce": "agents.reinforce",
    "reinforce_baseline": "agents.reinforce",
    "sarsa": "agents.q_learning",
    "trpo": "agents.trpo",
}

# What a resumed run may be given anew; all else makes another run of it.
FREE = {
    "max_env_steps",
    "placement",
    "actor_backend",
    "actors_per_process",
    "eval_episodes",
    "eval_period",
    "ready_env_steps",
    "checkpoint_seconds",
}
# What Reverb needs besides the data, about: for an item, and for each row of a stream that items share.
ITEM_BYTES, ROW_BYTES = 500, 1_000
CHOICES = {
    "placement": ("threads", "processes", "serial"),
    "actor_backend": ("cpu", "accelerator"),
    "travels": ("experience", "gradients"),
    "population_mode": ("separate", "vmap"),
    "exploit": tuple(EXPLOIT),
    "explore": tuple(EXPLORE),
    "fitness": ("training", "evaluation"),
}
# What neither preset nor command line needs to say.
DEFAULTS = {
    "seed": 0,
    "actors_per_process": 2,
    "placement": "threads",
    "actor_backend": "cpu",
    "checkpoint_seconds": 600.0,
    "publish_period": 1,
    "num_replay_servers": 1,
    "updates_per_dispatch": 1,
    "travels": "experience",
    "max_staleness": 0,
    "max_loss_deviations": 0.0,
    "population": 0,
    "tune": "",
    "population_mode": "separate",
    "exploit": "truncation",
    "explore": "perturb",
    "fitness": "training",
    "score_episodes": 20,
}
# What may be 0.
FROM_ZERO = {"seed", "max_staleness", "max_loss_deviations", "population"}


class UsageError(ValueError):
    """Something the person at the command line can mend: one line, exit code 2."""


@dataclasses.dataclass(frozen=True)
class Run:
    """The settings of a run; each but `config` is a flag of its name."""

    agent: str
    env: str
    seed: int
    max_env_steps: int  # the run ends when the learner has consumed so many
    num_actors: int
    envs_per_actor: int
    actors_per_process: int  # where the placement is processes
    placement: str
    actor_backend: str
    eval_episodes: int
    eval_period: int  # environment steps from one evaluation to the next
    checkpoint_seconds: float
    publish_period: int  # updates from one publication of parameters to the next
    num_replay_servers: int  # an agent with a replay only
    updates_per_dispatch: int  # likewise: updates that the learner does at once, on as many minibatches
    travels: str  # from those who act to the learner: experience, or gradients, and then who acts is a worker
    max_staleness: int  # of a gradient, in updates since its parameters; an older one is dropped; 0: none is
    max_loss_deviations: float  # standard deviations of a gradient's loss above the mean, likewise
    population: int  # members that learn side by side, each as the rest of this says; 0: an ordinary run
    tune: str  # the hyperparameters that a population tunes, and their ranges
    population_mode: str  # separate: each member has a learner and actors of its own; vmap: they are stacked in one
    exploit: str  # who copies whom
    explore: str  # how what was copied is varied
    fitness: str  # whose episodes a member is judged by: those of its actors in training, or of its evaluations
    ready_env_steps: int  # of a member, from one look at its peers to the next
    score_episodes: int  # it is judged by so many of the last
    config: Any  # the agent's Config

    def make_agent(self, spec: EnvironmentSpec) -> Agent:
        """The agent; the same in every role.

        Raises:
          UsageError: it does not fit the environment.
        """
        try:
            agent = agent_module(self.agent).make(self.config, spec)
            travelling = by_gradients(agent) if self.travels == "gradients" else agent
            if self.stacked > 1:
                travelling = vectorize(agent, self.stacked, spec.num_tasks)
        except ValueError as error:
            raise UsageError(str(error)) from error
        (table,) = agent.tables
        if self.travels == "gradients":
            self._check_gradients(agent, table)
        if table.kind == "queue":
            self._check_queue(agent)
        else:
            self._check_replay(agent, table, spec)
        return travelling

    def _check_gradients(self, agent: Agent, table: TableSpec) -> None:
        if isinstance(table.window, Window) and agent.batch_size != self.envs_per_actor:
            raise UsageError(
                f"config.batch_size={agent.batch_size} and --envs_per_actor={self.envs_per_actor} differ: a worker's "
                "gradient is of one block of its own environments"
            )
        for name in ("num_replay_servers", "updates_per_dispatch"):
            if getattr(self, name) > 1:
                raise UsageError(f"--{name}={getattr(self, name)}: where gradients travel leave it at 1")

    def _check_queue(self, agent: Agent) -> None:
        if agent.in_order and (self.num_actors, self.envs_per_actor) != (1, agent.batch_size):
            raise UsageError(
                f"{self.agent} carries eligibility traces of each environment from one update to the next: give "
                f"--num_actors=1 --envs_per_actor={agent.batch_size}, config.batch_size; not {self.num_actors} actors "
                f"of {self.envs_per_actor}"
            )
        (table,) = agent.tables
        if isinstance(table.window, Sequences) and self.placement == "serial":
            raise UsageError(
                f"--placement=serial has each actor write a block in its turn, and {self.agent} learns from whole "
                "episodes, which take as long as they take; use --placement=threads"
            )
        small, large = sorted((agent.batch_size, self.envs_per_actor))
        if large % small and isinstance(table.window, Window):
            raise UsageError(
                f"config.batch_size={agent.batch_size} and --envs_per_actor={self.envs_per_actor} do not divide: "
                "a batch is whole blocks of an actor's environments, or an even part of one"
            )
        for name in ("num_replay_servers", "updates_per_dispatch"):
            if getattr(self, name) > 1:
                raise UsageError(
                    f"--{name}={getattr(self, name)}: {self.agent} has a queue, not a replay; leave it at 1"
                )

    def _check_replay(self, agent: Agent, table: TableSpec, spec: EnvironmentSpec) -> None:
        if self.placement == "serial":
            raise UsageError(
                f"--placement=serial repeats a run to the bit, which {self.agent}'s replay cannot: Reverb's random "
                "sampling has no seed; use --placement=threads"
            )
        batch = agent.batch_size * self.updates_per_dispatch
        if batch % self.num_replay_servers:
            raise UsageError(f"a batch of {batch} does not divide over --num_replay_servers={self.num_replay_servers}")
        window, longest = table.window, spec.max_episode_steps
        assert isinstance(window, Transitions | Sequences)
        field, steps = ("sequence_length", window.length) if isinstance(window, Sequences) else ("n_step", window.n)
        if longest is not None and steps > longest:
            raise UsageError(f"config.{field}={steps} is more than an episode of {self.env} can have, {longest} steps")
        share = table.max_size // self.num_replay_servers
        for name, size in (
            ("minimum size", table.min_size // self.num_replay_servers),
            ("batch", batch // self.num_replay_servers),
            ("n-step window", getattr(window, "n", 1)),
        ):
            if size > share:
                raise UsageError(f"the replay's {name}, {size}, is larger than the replay itself, {share} a server")
        if self.num_actors < self.num_replay_servers:
            raise UsageError(
                f"--num_replay_servers={self.num_replay_servers} is more than --num_actors={self.num_actors}: an actor "
                "writes to one server, and the learner would wait for those without"
            )

    def make_environment(self, role: str, task: int, num_envs: int, *, evaluation: bool = False) -> Any:
        """Environments with seeds of their own for each role and task."""
        try:
            return environments.make(self.env, num_envs, self.seed_of(role, task), evaluation=evaluation)
        except ValueError as error:
            raise UsageError(str(error)) from error

    def spec(self) -> EnvironmentSpec:
        """What one of the run's environments looks like."""
        environment = self.make_environment("spec", 0, len(self.tasks))
        environment.close()
        return environment.spec

    def check_fit(self, servers: int = 0) -> None:
        """Raises UsageError if there is no such environment, if the agent does not fit it, or if this machine has no
        room for what `servers` of the run's replay servers hold."""
        spec = self.spec()
        agent = self.make_agent(spec)
        (table,) = agent.tables
        if isinstance(table.window, Gradients):
            table = table.window.table
        if table.kind == "queue":
            return
        steps, noun = 1, "transitions"  # to an item
        if isinstance(table.window, Sequences):
            steps, noun = table.window.period, "sequences"
        items = min(table.max_size, -(-self.max_env_steps // steps)) * servers // self.num_replay_servers
        size = items * _item_bytes(agent, table, spec)
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if size > memory:
            raise UsageError(
                f"a replay of {items:,} {noun} takes about {size / 1e9:.1f} GB and this machine has "
                f"{memory / 1e9:.1f} GB: give a smaller --config.replay_size"
            )

    def seed_of(self, role: str, task: int = 0) -> int:
        """A seed for one role's task, a non-negative int32 unlike any other's."""
        entropy = [self.seed, *role.encode(), task]
        return int(np.random.SeedSequence(entropy).generate_state(1)[0] >> 1)

    @property
    def stacked(self) -> int:
        """Members that share a learner, actors and an evaluator, each of which has so many times the environments."""
        return self.population if self.population_mode == "vmap" and self.population else 1

    @property
    def tasks(self) -> list[str]:
        """The names of the tasks that the environments share out among them: most often one."""
        return tasks.names(self.env)

    @property
    def eval_envs(self) -> int:
        """Environments of an evaluation: the most, up to 100, that share its episodes evenly, and the tasks."""
        count = len(self.tasks)
        return max(n for n in range(count, max(100, count) + 1, count) if self.eval_episodes % n == 0)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def _item_bytes(agent: Agent, table: TableSpec, spec: EnvironmentSpec) -> int:
    """What an item takes in a table's memory, about, if its data cannot be compressed; docs/replay.md measures it."""
    observation = math.prod(spec.observation_shape) * np.dtype(spec.observation_dtype).itemsize
    rest = 8 + 4 * (1 if isinstance(spec.actions, DiscreteActions) else math.prod(spec.actions.shape))
    window = table.window
    if isinstance(window, Sequences):
        # Items share rows: `period` are new. What else is in them is small.
        memory = jax.tree.leaves(jax.eval_shape(lambda: agent.memory(1, None)))
        return window.period * (observation + rest + ROW_BYTES) + sum(x.size * x.dtype.itemsize for x in memory)
    if isinstance(window, Transitions) and window.stack > 1:
        return observation + rest + ROW_BYTES + ITEM_BYTES
    return 2 * observation + rest + ITEM_BYTES


def nearest(name: str, names: Iterable[str], *, listing: bool = True) -> str:
    """The end of a message about an unknown name: the names nearest to it, or else all (if `listing`)."""
    names = sorted(names)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        return f"; did you mean {', '.join(near)}?"
    return f"; there are {', '.join(names)}" if listing else ""


def agent_module(name: str) -> ModuleType:
    if name not in AGENTS:
        raise UsageError(f"unknown agent {name!r}{nearest(name, AGENTS)}")
    return importlib.import_module(AGENTS[name])


def make(agent: str, env: str, overrides: dict[str, Any], config_overrides: dict[str, Any]) -> Run:
    """The run of an agent in an environment: the preset's settings, then the overrides that are not None.

    Raises:
      UsageError: an unknown agent, field or a value out of range.
    """
    module = agent_module(agent)
    preset = presets.find(agent, env)
    settings: dict[str, Any] = DEFAULTS | {"agent": agent, "env": env}
    settings |= preset.run | {key: value for key, value in overrides.items() if value is not None}
    if overrides.get("eval_episodes") is None:  # as many of each task
        count = len(tasks.names(env))
        settings["eval_episodes"] += -settings["eval_episodes"] % count
    settings.setdefault("eval_period", max(1, settings["max_env_steps"] // 20))
    settings.setdefault("ready_env_steps", max(1, settings["max_env_steps"] // 20))
    config = preset.config | config_overrides
    if "decay_env_steps" in typing.get_type_hints(module.Config):
        config.setdefault("decay_env_steps", settings["max_env_steps"])
    run = Run(config=make_config(module, config), **settings)
    check(run)
    return run


def make_config(module: ModuleType, values: dict[str, Any]) -> Any:
    """The Config of an agent's module.

    Raises:
      UsageError: an unknown field, or a value of another type or out of range.
    """
    try:
        return module.Config(**check_types(module.Config, values))
    except ValueError as error:
        raise UsageError(str(error)) from error


def replace(run: Run, **changes: Any) -> Run:
    """`run` with other settings, checked anew."""
    run = dataclasses.replace(run, **changes)
    check(run)
    return run


def check_types(config_class: type, values: dict[str, Any]) -> dict[str, Any]:
    """`values` with the types that the fields of `config_class` declare.

    Raises:
      UsageError: an unknown field, or a value that is none of its field's.
    """
    hints = typing.get_type_hints(config_class)
    return {name: _convert(name, value, hints) for name, value in values.items()}


def _convert(name: str, value: Any, hints: dict[str, Any]) -> Any:
    if name not in hints:
        raise UsageError(f"unknown config field {name!r}{nearest(name, hints)}")
    hint = hints[name]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    try:
        if origin is typing.Literal:
            if value not in arguments:
                raise UsageError(f"config.{name} is one of {', '.join(map(str, arguments))}, not {value!r}")
            return value
        if origin is tuple:
            return tuple(arguments[0](item) for item in value)
        if hint is bool and isinstance(value, str):
            return {"true": True, "false": False}[value.lower()]
        if hint is int and isinstance(value, str | float):
            if float(value) != int(float(value)):
                raise ValueError
            return int(float(value))
        return hint(value)
    except (TypeError, ValueError, KeyError) as error:
        if isinstance(error, UsageError):
            raise
        kind = getattr(hint, "__name__", str(hint))
        raise UsageError(f"config.{name} takes a value of type {kind}, not {value!r}") from error


def check(run: Run) -> None:
    """Raises UsageError if a number is out of range or two do not fit."""
    for field in dataclasses.fields(run):
        value = getattr(run, field.name)
        least = 0 if field.name in FROM_ZERO else 1
        if field.type in ("int", int, "float", float) and field.name != "checkpoint_seconds" and value < least:
            raise UsageError(f"--{field.name} must be {least} or more, not {value}")
    for name in ("envs_per_actor", "eval_episodes"):
        if getattr(run, name) % len(run.tasks):
            raise UsageError(f"--{name}={getattr(run, name)} must be a multiple of the {len(run.tasks)} tasks of --env")
    for name, choices in CHOICES.items():
        if getattr(run, name) not in choices:
            raise UsageError(f"--{name} is one of {', '.join(choices)}, not {getattr(run, name)!r}")


def save(run: Run, logdir: pathlib.Path) -> None:
    """Writes LOGDIR/config.json, or checks that it is this run's.

    Raises:
      UsageError: the logdir cannot be written or belongs to another run.
    """
    path = logdir / "config.json"
    try:
        logdir.mkdir(parents=True, exist_ok=True)
        if path.exists():
            different = _differences(*(json.loads(json.dumps(each.to_json())) for each in (load(logdir), run)))
            if different:
                raise UsageError(
                    f"{logdir} holds another run ({'; '.join(different)}): choose another --logdir or the same settings"
                )
        elif any((logdir / "checkpoints").glob("*")):
            raise UsageError(
                f"{logdir} has checkpoints of a run, but no config.json to say which: choose another --logdir"
            )
        temporary = path.with_suffix(f".{os.getpid()}")  # roles may start at once
        temporary.write_text(json.dumps(run.to_json(), indent=2) + "\n")
        temporary.rename(path)
    except OSError as error:
        raise UsageError(f"cannot write to --logdir {logdir}: {error.strerror}") from error


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    flat = [
        {k: v for k, v in run.items() if k not in FREE and k != "config"}
        | {f"config.{k}": v for k, v in run["config"].items() if k != "decay_env_steps"}
        for run in (old, new)
    ]
    return [
        f"{k} is {flat[0].get(k)}, not {flat[1].get(k)}"
        for k in sorted(flat[0].keys() | flat[1].keys())
        if flat[0].get(k) != flat[1].get(k)
    ]


def load(logdir: pathlib.Path) -> Run:
    """The run of LOGDIR/config.json.

    Raises:
      UsageError: there is none, or it is not one of this version's.
    """
    try:
        settings = json.loads((logdir / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"no run in {logdir}: its config.json cannot be read ({error})") from error
    try:
        config = make_config(agent_module(settings["agent"]), settings.pop("config"))
        # Of a version that did not know of them yet.
        missing = DEFAULTS | {"ready_env_steps": settings["max_env_steps"]}
        return Run(config=config, **missing | settings)
    except (KeyError, TypeError) as error:
        raise UsageError(f"{logdir}/config.json was written by another version: {error}") from error
