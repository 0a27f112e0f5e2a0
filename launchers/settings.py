"""The settings of a run. Each is declared once, and from its declaration follow its flag, its checks, its default,
whether a resumed run may change it, whether it tells learning curves apart, and its row in the table of docs/flags.md.

Nothing here needs JAX, so that a mistake on the command line is found before a second is spent on importing JAX.
"""

import dataclasses
import difflib
import importlib.util
import json
import math
import pathlib
import re
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

from environments import FUNCTIONAL, suite, tasks
from launchers import papers, presets

COUNT = 2**31 - 1  # the largest value of a number, unless its declaration gives another
MANY = 2**20  # the largest count of things that each take a thread, a process or an environment
LAST_PORT = 2**16 - 1
MOST_RESOURCES = 2**53  # a process may need less than this of one Ray resource
KINDS = ("replay", "learner", "evaluator", "actor")  # of roles, as in program.KINDS, whose import brings JAX
Logdir = pathlib.Path | str  # where a run lives: a folder of this machine, or a URL
STEPS = 10**15  # the largest number of environment steps, which are counted in 64 bits


class UsageError(ValueError):
    """An error that the person at the command line can mend. It is shown as one line, and the exit code is 2."""


class Only(NamedTuple):
    """The condition under which a setting has an effect. In any other run the setting is refused if it is given, and
    ignored if it is not."""

    where: str  # the condition in words, for the message that refuses the setting
    holds: Callable[[Mapping[str, Any]], bool]  # takes the run's settings by name


POPULATION = Only("a population: give --population=8, or another number of members", lambda run: run["population"] > 0)
GRADIENTS = Only("workers that send gradients: give --travels=gradients", lambda run: run["travels"] == "gradients")
REVERB = Only("Reverb's tables: give --carrier=reverb", lambda run: run["carrier"] == "reverb")
ALONE = Only("a run without a population: leave --population out", lambda run: run["population"] == 0)
GYMNASIUM = Only("Gymnasium's environments: give --env=gymnasium:ID", lambda run: "gymnasium:" in run["env"])
DISPATCHED = Only(
    "placements that dispatch each update from Python: give --placement=threads, or another than device",
    lambda run: run["placement"] != "device",
)
PROCESSES = Only(
    "actors in processes: give --placement=processes or ray", lambda run: run["placement"] in ("processes", "ray")
)


class Share(NamedTuple):
    """A default that is a fraction of another setting: `of` divided by `parts`, rounded down, and at least 1."""

    of: str
    parts: int

    def __call__(self, values: Mapping[str, Any]) -> int:
        return max(1, values[self.of] // self.parts)

    def __str__(self) -> str:
        return f"a {self.parts}th of {self.of}"


PRESET = "preset"  # the default of a setting that every preset sets
BOOKS: dict[str, Any] = {"tuned": presets, "paper": papers}  # the modules among which --preset chooses


class Setting(NamedTuple):
    """The declaration of one setting."""

    help: str
    kind: Any  # int, float, str, bool, pathlib.Path or Logdir
    default: Any  # a value, a Share, PRESET, or None if there is no default
    least: float | None  # the bounds of a number, both included; None for any other kind
    most: float | None
    choices: tuple[str, ...]  # the allowed texts; (): any text
    free: bool  # whether a resumed run may change it; else a changed value makes it another run
    learnt: bool  # whether it influences what the run has learnt when it ends
    only: Only | None  # the runs in which it has an effect; None: in all
    see: str  # the page to which docs/flags.md links for more; "": none
    default_words: str  # the default in words, where it is not a plain value


def setting(
    default: Any,
    help: str,
    *,
    least: float = 1,
    most: float = COUNT,
    choices: Iterable[str] = (),
    free: bool = False,
    learnt: bool = True,
    only: Only | None = None,
    see: str = "",
    default_words: str = "",
) -> Any:
    """Returns a dataclass field that carries a declaration. `Setting` explains the arguments; the bounds `least` and
    `most` count for numbers alone."""
    words = dict(help=help, least=least, most=most, choices=tuple(choices), free=free, learnt=learnt, only=only)
    metadata = {"declared": words | dict(default=default, see=see, default_words=default_words)}
    if default == PRESET or isinstance(default, Share):
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def declarations(of: type) -> dict[str, Setting]:
    """Returns the settings that a dataclass declares, by name."""
    found, kinds = {}, typing.get_type_hints(of)
    for field in dataclasses.fields(of):
        if declared := field.metadata.get("declared"):
            kind = kinds[field.name]
            limits = {} if kind in (int, float) else {"least": None, "most": None}
            found[field.name] = Setting(**{"kind": kind} | declared | limits)
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of a run, without its agent's Config. Each is a flag of the same name."""

    agent: str = setting("impala", "the algorithm, by its name in the README's table of agents")
    env: str = setting(
        "CartPole-v1",
        "the environment: an EnvPool task, gymnasium:ID, gymnasium:module:ID, gymnax:ID, brax:NAME, "
        "MaskedCartPole-v1, binned:N:NAME, or several tasks A,B,C",
        see="environments.md",
    )
    preset: str = setting(
        "tuned",
        "where the settings that are not given come from: Shoal's own tuned ones, or those of the agent's paper, for "
        "the paper's environments",
        choices=BOOKS,
        learnt=False,
        see="#the-papers-settings",
    )
    env_kwargs: str = setting(
        "",
        'keyword arguments with which the environment is made, as a JSON object: {"k": 1}',
        see="environments.md#keywords",
    )
    atari_protocol: str = setting(
        "nature",
        "how Atari is played: as in Mnih et al. 2015 (nature), or as in Machado et al. 2018 (machado)",
        choices=("nature", "machado"),
        see="environments.md#atari",
    )
    reward_clip: str = setting(
        "auto",
        "how the rewards that agents see are clipped; none: not at all; unit: to [-1, 1]; soft_asymmetric: as in "
        "IMPALA's paper on DMLab; auto: unit on Atari, else none",
        choices=("auto", "none", "unit", "soft_asymmetric"),
        see="environments.md#rewards",
    )
    gymnasium_vectorization: str = setting(
        "sync",
        "how Gymnasium's environments step: one after another (sync), or each in a process of its own (async)",
        choices=("sync", "async"),
        free=True,
        learnt=False,
        only=GYMNASIUM,
        see="environments.md#processes",
    )
    seed: int = setting(
        0,
        "the random seed of the initial parameters, the environments and the actions",
        least=0,
        most=2**63 - 1,
        learnt=False,
    )
    max_env_steps: int = setting(
        PRESET,
        "the length of the run in environment steps (actions, not frames): steps learned from, or with a replay, "
        "steps written to it",
        most=STEPS,
        free=True,
        learnt=False,
    )
    stop_at_return: float = setting(
        None,
        "end the run before --max_env_steps once an evaluation's return_mean is at least this high; for that, roles "
        "on several machines need one --logdir, a folder that they share",
        least=-STEPS,
        most=STEPS,
        free=True,
        learnt=False,
        only=ALONE,
        see="running.md#stopping-at-a-return",
    )
    num_actors: int = setting(PRESET, "number of actors, each with --envs_per_actor environments", most=MANY)
    envs_per_actor: int = setting(PRESET, "number of environments that an actor steps together", most=MANY)
    placement: str = setting(
        "threads",
        "where the roles (actors, learner, evaluator, replay servers) run; threads: in threads of one process; "
        "processes: in processes of this machine; serial: by turns in one thread, where agents with a replay or that "
        "learn from whole episodes need --carrier=local; pod: on several hosts, each of which is given this command; "
        "ray: on the nodes of a Ray cluster; device: inside the compiled program that learns, for environments that "
        "are JAX functions",
        choices=("threads", "processes", "serial", "pod", "ray", "device"),
        free=True,
        learnt=False,
        see="running.md#placements",
    )
    actors_per_process: int = setting(
        2,
        "number of actors that share a process, with --placement=processes or ray",
        most=MANY,
        free=True,
        learnt=False,
        only=PROCESSES,
    )
    actor_backend: str = setting(
        "cpu",
        "the device on which actors and the evaluator compute",
        choices=("cpu", "accelerator"),
        free=True,
        learnt=False,
    )
    eval_episodes: int = setting(PRESET, "number of episodes in each evaluation", free=True, learnt=False)
    eval_max_steps: int = setting(
        27_000,
        "number of steps after which an episode of an evaluation is cut, if the environment has not ended it",
        free=True,
        learnt=False,
        see="evaluating.md#episodes-that-are-cut",
    )
    eval_policy: str = setting(
        "greedy",
        "how evaluations choose actions: greedily, or sampled from the policy as in training",
        choices=("greedy", "sampled"),
        free=True,
        learnt=False,
        see="evaluating.md#evaluating",
    )
    eval_epsilon: float = setting(
        0.0,
        "the probability with which an action of an evaluation is replaced by a uniformly random one, where actions "
        "are discrete",
        least=0,
        most=1,
        free=True,
        learnt=False,
        see="evaluating.md#evaluating",
    )
    eval_period: int = setting(
        Share("max_env_steps", 20),
        "environment steps from one evaluation to the next",
        most=STEPS,
        free=True,
        learnt=False,
    )
    video_period: int = setting(
        0,
        "number of evaluations from one that is filmed to the next; its first episode is written to LOGDIR/videos as "
        "a GIF; 0: none is filmed",
        least=0,
        free=True,
        learnt=False,
        see="evaluating.md#videos",
    )
    checkpoint_seconds: float = setting(
        600.0, "seconds from one checkpoint to the next", least=0, most=COUNT, free=True, learnt=False
    )
    preemption_notice: str = setting(
        "",
        "a file that appears, or a URL that answers, when this machine is about to be taken away; the run then saves "
        "and ends in order; empty: no notice is looked for",
        free=True,
        learnt=False,
        see="running.md#preemption",
    )
    carrier: str = setting(
        "reverb" if importlib.util.find_spec("reverb") else "local",
        "what carries experience and parameters between the roles: Reverb's servers, or (local) the memory of one "
        "process, with replays on the learner's devices",
        choices=("reverb", "local"),
        learnt=False,
        see="replay.md#the-local-carrier",
        default_words="reverb where it is installed",
    )
    mapper: str = setting(
        "shard_map",
        "the JAX transformation by which an update runs on all of the learner's devices",
        choices=("shard_map", "pmap"),
        free=True,
        learnt=False,
    )
    publish_period: int = setting(
        1, "number of updates after which the learner publishes its parameters again, for the other roles"
    )
    synchronous: bool = setting(
        False,
        "actors wait until the learner has learned from what they wrote, so that every batch is collected with the "
        "newest parameters",
        see="ppo.md#in-step",
    )
    num_replay_servers: int = setting(
        1,
        "number of Reverb servers over which a replay is divided",
        most=MANY,
        only=REVERB,
        see="replay.md#several-servers",
    )
    updates_per_dispatch: int = setting(
        1,
        "number of updates from a replay that run in one call of the compiled program, without Python in between",
        free=True,
        learnt=False,
        only=DISPATCHED,
        see="replay.md#several-updates-at-once",
    )
    travels: str = setting(
        "experience",
        "what actors send to the learner: experience, or gradients that they compute from their own experience, as "
        "the workers of A3C and Gorila do",
        choices=("experience", "gradients"),
        see="gradients.md",
    )
    max_staleness: int = setting(
        0,
        "drop a gradient if the learner has made more than this number of updates since the parameters at which it "
        "was computed; 0: drop none for that",
        least=0,
        only=GRADIENTS,
        see="gradients.md",
    )
    max_loss_deviations: float = setting(
        0.0,
        "drop a gradient if its loss is more than this number of standard deviations above the running mean of all "
        "gradients' losses; 0: drop none for that",
        least=0,
        only=GRADIENTS,
        see="gradients.md",
    )
    population: int = setting(
        0,
        "number of members, which learn side by side and copy each other's parameters and hyperparameters; 0: an "
        "ordinary run, without a population",
        least=0,
        most=4096,
        see="pbt.md#usage",
    )
    tune: str = setting(
        "",
        "the hyperparameters that a population tunes, NAME:SCALE:LOW:HIGH with commas between: "
        "learning_rate:log:1e-5:1e-2,alpha:step=0.05:0:1",
        only=POPULATION,
    )
    population_mode: str = setting(
        "separate",
        "whether each member has a learner of its own (separate), or all are stacked in one learner by jax.vmap (vmap)",
        choices=("separate", "vmap"),
        learnt=False,
        only=POPULATION,
    )
    exploit: str = setting(
        "truncation",
        "the rule by which a member decides whose state and hyperparameters it copies; none: it copies nobody's",
        choices=("truncation", "tournament", "t_test", "none"),
        only=POPULATION,
    )
    explore: str = setting(
        "perturb",
        "how hyperparameters are varied after they were copied: each moved a little (perturb), some drawn anew "
        "(resample), or not at all (none)",
        choices=("perturb", "resample", "none"),
        only=POPULATION,
    )
    fitness: str = setting(
        "training",
        "the episodes by whose returns a member is scored: its actors' in training, or its evaluations'",
        choices=("training", "evaluation"),
        only=POPULATION,
    )
    ready_env_steps: int = setting(
        Share("max_env_steps", 20),
        "environment steps of a member from one comparison with the other members to the next",
        most=STEPS,
        free=True,
        only=POPULATION,
    )
    score_episodes: int = setting(
        20, "number of a member's last episodes whose mean return is its score", only=POPULATION
    )

    @property
    def tasks(self) -> list[str]:
        """The names of the tasks among which the run's environments are divided: most often one."""
        return tasks.names(self.env)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sitting:
    """The flags of one sitting, a process's turn at a run. They are no part of the run, and config.json lacks them."""

    logdir: Logdir = setting(
        None,
        "the run's folder, as a path or a URL; a run that is there already is resumed",
        free=True,
        see="running.md#a-logdir-that-is-a-url",
        default_words="runs/AGENT-ENV-TIME",
    )
    port: int = setting(
        0,
        "the port of the replay server; of several that this command starts, the first one's, with the next ports for "
        "the others; 0: any free port",
        least=0,
        most=LAST_PORT,
        free=True,
    )


@dataclasses.dataclass
class Tracking:
    """The flag that names the service to which a run's numbers are sent while it goes on."""

    track: str = setting(
        "none",
        "the service to which the run's numbers and settings are sent: Weights & Biases or MLflow",
        choices=("none", "wandb", "mlflow"),
        free=True,
        see="running.md#weights--biases-and-mlflow",
    )


@dataclasses.dataclass
class Pod:
    """The flags by which a pod's host knows its own index, how many hosts there are, and the address of the first.
    Those that the cluster provides itself need not be given."""

    coordinator: str = setting(
        None,
        "with --placement=pod: host:port of the first host, which uses the port after it too; left out where JAX finds "
        "the hosts itself (TPU pods, SLURM, Open MPI)",
        free=True,
        see="machines.md#a-pod",
    )
    num_hosts: int = setting(
        None,
        "with --placement=pod: number of hosts; left out where JAX finds them itself",
        most=MANY,
        free=True,
        see="machines.md#a-pod",
    )
    host: int = setting(
        None,
        "with --placement=pod: which of the hosts this is, from 0; left out where JAX finds them itself",
        least=0,
        free=True,
        see="machines.md#a-pod",
    )
    connect_seconds: float = setting(
        120.0,
        "with --placement=pod or ray: seconds to wait until all hosts have met, or until the cluster has room for the "
        "run",
        least=0,
        free=True,
        see="machines.md#a-pod",
    )


@dataclasses.dataclass
class RayCluster:
    """The flags that say where a Ray cluster is, which resources of its nodes a run's processes need, and over how many
    hosts the learner is spread."""

    ray_address: str = setting(
        None,
        "with --placement=ray: the address of the cluster, host:port, or auto on one of its nodes; without it and the "
        "variable RAY_ADDRESS, a cluster of this machine alone is started",
        free=True,
        see="machines.md#a-ray-cluster",
    )
    ray_resources: str = setting(
        None,
        "with --placement=ray: the resources of a node that a process of each kind of role needs, as JSON: "
        '{"learner": {"CPU": 4, "GPU": 1}}',
        free=True,
        see="machines.md#a-ray-cluster",
        default_words="a core each; for a learner also all GPUs or TPU chips of a node, for a replay server its memory",
    )
    num_learners: int = setting(
        1,
        "with --placement=ray: number of hosts over which the learner is spread, for agents with a queue (no replay)",
        most=MANY,
        free=True,
        see="machines.md#a-ray-cluster",
    )


@dataclasses.dataclass
class Ending:
    """The flag for programs that start a run again: the exit code by which they see that the run is not finished."""

    unfinished_code: int = setting(
        None,
        "the exit code if the run ends before it is done although nothing needs fixing: after a signal, a preemption "
        "notice or the loss of a pod's host; 1 and 2 mean that something needs fixing",
        least=3,
        most=255,
        free=True,
        see="running.md#programs-that-start-runs-again",
        default_words="0 after a signal or a notice, 2 after the loss of a host",
    )


# The flags that belong to some placements. With any other they have no effect, and `check_idle` refuses them.
OF_PLACEMENT = {
    "coordinator": ("pod",),
    "num_hosts": ("pod",),
    "host": ("pod",),
    "connect_seconds": ("pod", "ray"),
    "ray_address": ("ray",),
    "ray_resources": ("ray",),
    "num_learners": ("ray",),
}


DECLARED = declarations(Settings)


def resolve(agent: str, env: str, given: Mapping[str, Any], used: Collection[str] = ()) -> Settings:
    """Returns the settings of an agent's run in an environment. Each is the `given` value, else the preset's, else the
    default.

    Args:
      agent, env: these choose the preset.
      given: the settings that the person gave, by name.
      used: names of settings that are accepted even where their `Only` does not hold.

    Raises:
      UsageError: a given value is not allowed by its declaration or has no effect in such a run, or there is no preset
        for this agent and environment.
    """
    said = {"agent": agent, "env": env} | dict(given)
    for name, value in said.items():
        check_value(name, value, DECLARED[name])
    env_kwargs = said.get("env_kwargs", "")
    keywords(env_kwargs)
    plain = {name: each.default for name, each in DECLARED.items() if each.only is None}
    book = BOOKS[said.get("preset", DECLARED["preset"].default)]
    try:
        first = book.of(agent)[0].run
        _refuse_idle(given, plain | first | said, used)  # before the environment is made, which takes long
        values = said | book.find(agent, env, env_kwargs).run | said
        if values.get("placement") == "device":  # nothing travels there, and `check` wants it so
            values.setdefault("carrier", "local")
    except ValueError as error:
        raise UsageError(str(error)) from error
    if "atari_protocol" in given and suite(tasks.names(env)[0]) != "atari":
        raise UsageError(f"--atari_protocol is for Atari, such as --env=Pong-v5: leave it out for --env={env}")
    if "eval_episodes" not in given:  # rounded up, so that every task has equally many
        values["eval_episodes"] += -values["eval_episodes"] % len(tasks.names(env))
    if given.get("env_kwargs"):  # one spelling, however the person spaced and ordered them
        values["env_kwargs"] = json.dumps(keywords(values["env_kwargs"]), sort_keys=True)
    settings = Settings(**complete(values))
    check(settings)
    return settings


def _refuse_idle(given: Mapping[str, Any], known: Mapping[str, Any], used: Collection[str]) -> None:
    """Raises UsageError if a setting that is `given`, and not among `used`, has no effect in a run of the `known`
    settings."""
    for name in given:
        only = DECLARED[name].only
        if only and name not in used and not only.holds(known):
            raise UsageError(f"--{name} is for {only.where}, or leave --{name} out")


def saved(logdir: pathlib.Path) -> dict[str, Any]:
    """Returns the run of LOGDIR/config.json as data: each setting by name, and under `config` the fields of the agent's
    Config, unchecked. A setting that is missing, because an older version did not have it, gets its default.

    Raises:
      UsageError: the file cannot be read, or it holds something that no run has.
    """
    path = logdir / "config.json"
    try:
        values = json.loads(path.read_text())
        json.dumps(values)  # fails on values nested too deeply to be written again, which Shoal never writes
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"no run in {logdir}: its config.json cannot be read ({error})") from error
    if not isinstance(values, dict) or not isinstance(values.get("config"), dict):
        raise UsageError(f"{path} was written by another version: it does not hold a run with its config")
    try:
        for name in DECLARED.keys() & values.keys():
            check_value(name, values[name], DECLARED[name])
        for name in {"agent", "env"} - values.keys():
            raise KeyError(name)
        return complete(values)
    except KeyError as error:
        raise UsageError(f"{path} was written by another version: it lacks {error}") from error
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def complete(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the `values`, by name, with the defaults of the settings that they leave out. A setting that every preset
    sets has none, and stays out.

    Raises:
      KeyError: a default is a fraction of a setting that `values` lack.
    """
    plain = {name: each.default for name, each in DECLARED.items() if each.default != PRESET}
    return {
        name: default(values) if isinstance(default, Share) else default
        for name, default in plain.items()
        if name not in values
    } | dict(values)


def check(settings: Settings) -> None:
    """Raises UsageError if a declaration does not allow its setting's value, or if two settings do not fit together."""
    for name, declared in DECLARED.items():
        check_value(name, getattr(settings, name), declared)
    if settings.carrier == "reverb" and not importlib.util.find_spec("reverb"):
        raise UsageError("--carrier=reverb: Reverb is not installed (it needs Python 3.11): give --carrier=local")
    if settings.placement == "device":
        _check_on_device(settings)
    if settings.carrier == "local" and settings.placement in ("processes", "ray"):
        raise UsageError(
            f"--placement={settings.placement} needs --carrier=reverb (and Python 3.11), because only Reverb connects "
            "several processes: give --placement=threads"
        )
    if settings.placement == "ray" and not importlib.util.find_spec("ray"):
        raise UsageError("--placement=ray: Ray is not installed: pip install ray, or give --placement=processes")
    environments = max(1, settings.population) * settings.num_actors * settings.envs_per_actor
    if environments > MANY:
        raise UsageError(
            f"--num_actors={settings.num_actors} and --envs_per_actor={settings.envs_per_actor} are {environments:,} "
            f"environments{' in all members' if settings.population else ''}, and {MANY:,} is the most: give fewer"
        )
    keywords(settings.env_kwargs)
    if "://" in settings.preemption_notice and not re.match("https?://[^/]", settings.preemption_notice):
        raise UsageError(
            f"--preemption_notice={settings.preemption_notice}: give a file, or an http:// or https:// address"
        )
    count = len(settings.tasks)
    for name in ("envs_per_actor", "eval_episodes"):
        if getattr(settings, name) % count:
            raise UsageError(f"--{name}={getattr(settings, name)} must be a multiple of the {count} tasks of --env")


def _check_on_device(settings: Settings) -> None:
    """Raises UsageError if the environments cannot be stepped inside the learner's compiled program."""
    if not all(name.startswith(FUNCTIONAL) for name in settings.tasks):
        raise UsageError(
            "--placement=device steps environments that are JAX functions: give --env=gymnax:ID or brax:NAME, or "
            f"another placement for {settings.env}"
        )
    for name, wanted in (("carrier", "local"), ("travels", "experience")):
        if getattr(settings, name) != wanted:
            raise UsageError(
                f"--{name}={getattr(settings, name)}: with --placement=device actors and learner are one program, "
                f"which sends nothing: give --{name}={wanted}, or another --placement"
            )
    if len(settings.tasks) > 1:
        raise UsageError(
            f"--env={settings.env}: with --placement=device all environments must have the same task: name one task, "
            "or give --placement=threads"
        )


def check_idle(flags: Any, settings: Settings) -> None:
    """Raises UsageError if one of the `flags` that were given has no effect in the run."""
    given = {name for name in flags if flags[name].present}
    for name, placements in OF_PLACEMENT.items():
        if name in given and settings.placement not in placements:
            which = " or ".join(placements)
            raise UsageError(f"--{name} is for --placement={which}: give that, or leave --{name} out")
    if "port" in given and settings.carrier != "reverb":
        raise UsageError(
            f"--port={flags['port'].value} is for Reverb's server: give --carrier=reverb, or leave --port out"
        )


def check_port(port: int, settings: Settings) -> None:
    """Raises UsageError if the ports from `port` on are too few for the run's replay servers, which take one each."""
    last = port + settings.num_replay_servers - 1
    if settings.carrier == "reverb" and last > LAST_PORT:
        raise UsageError(
            f"--port={port}: the {settings.num_replay_servers} replay servers would use the ports from {port} to "
            f"{last}, and {LAST_PORT} is the last that there is: give a lower --port"
        )


def keywords(env_kwargs: str) -> dict[str, Any]:
    """Returns the environment's keywords that --env_kwargs gives.

    Raises:
      UsageError: the text is no JSON object.
    """
    try:
        value = json.loads(env_kwargs or "{}")
    except (ValueError, RecursionError) as error:
        value = error
    if not isinstance(value, dict):
        why = f" ({value})" if isinstance(value, Exception) else ""
        raise UsageError(
            f"""--env_kwargs={env_kwargs} is not a JSON object{why}: give, for example, --env_kwargs='{{"k": 1}}'"""
        )
    return value


def resources(text: str | None) -> dict[str, dict[str, float]]:
    """Returns what --ray_resources says: for each kind of role, the amounts that a process needs, by the names of Ray's
    resources.

    Raises:
      UsageError: the text is not of this form, or an amount is not allowed.
    """
    example = """--ray_resources='{"learner": {"CPU": 4, "GPU": 1}}'"""
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--ray_resources={text} is not JSON ({error}): give, for example, {example}") from error
    if not isinstance(value, dict) or not all(isinstance(each, dict) for each in value.values()):
        raise UsageError(
            f"--ray_resources={text} must be a JSON object with an object for each kind of role: give, for example, "
            f"{example}"
        )
    for kind, each in value.items():
        if kind not in KINDS:
            raise UsageError(f"--ray_resources: {kind!r} is not a kind of role: the kinds are {', '.join(KINDS)}")
        for name, amount in each.items():
            number = isinstance(amount, int | float) and not isinstance(amount, bool)
            if not number or not 0 <= amount < MOST_RESOURCES:  # written so that NaN is refused too
                raise UsageError(
                    f"--ray_resources: {kind} has {name}: {amount!r}, but an amount must be a number, 0 or more and "
                    f"below {MOST_RESOURCES}"
                )
            # This is Ray's own rule: a process may have half of one GPU, but not one and a half.
            if name != "memory" and amount > 1 and amount != int(amount):
                raise UsageError(
                    f"--ray_resources: {kind} has {name}: {amount}, but an amount above 1 must be a whole number"
                )
    return value


def check_value(name: str, value: Any, declared: Setting) -> None:
    """Raises UsageError unless the declaration of --`name` allows `value`."""
    if declared.kind in (bool, pathlib.Path, Logdir):
        if not isinstance(value, declared.kind):
            raise UsageError(
                f"--{name} must be {'true or false' if declared.kind is bool else 'a path'}, not {value!r}"
            )
        return
    if declared.kind is str:
        if not isinstance(value, str):
            raise UsageError(f"--{name} must be text, not {value!r}")
        if declared.choices and value not in declared.choices:
            raise UsageError(f"--{name} is one of {', '.join(declared.choices)}, not {value!r}")
        return
    if value is None and declared.default is None:  # a number without a default, which was not given
        return
    kinds, noun = (int, "a whole number") if declared.kind is int else (int | float, "a finite number")
    infinite = isinstance(value, float) and not math.isfinite(value)  # a large int may be no float
    if isinstance(value, bool) or not isinstance(value, kinds) or infinite:
        raise UsageError(f"--{name} must be {noun}, not {value!r}")
    if declared.least is not None and value < declared.least:
        raise UsageError(f"--{name} must be {declared.least} or more, not {value}")
    if declared.most is not None and value > declared.most:
        raise UsageError(f"--{name} must be {declared.most} or less, not {value}")


def local_path(text: str) -> pathlib.Path:
    """Returns the path that a person names, with `~` expanded.

    Raises:
      UsageError: the text is no path of this machine.
    """
    if not text or "\0" in text:
        raise UsageError("give the path of a file or a folder")
    if "://" in text:
        raise UsageError("give a path on this machine, not a URL: copy or mount what is elsewhere")
    try:
        return pathlib.Path(text).expanduser()
    except RuntimeError as error:
        raise UsageError(f"there is no user {text.split('/')[0].removeprefix('~')!r} here") from error


def differing(old: Mapping[str, Any], new: Mapping[str, Any], *, strictly: bool = False) -> list[str]:
    """Returns a phrase for each setting that makes the run `new` another run than `old`, both as in config.json. With
    `strictly`, settings that a resumed run may change count too."""
    free = {"config"} | {name for name, declared in DECLARED.items() if declared.free and not strictly}
    flat = [
        {name: value for name, value in run.items() if name not in free}
        | {f"config.{name}": value for name, value in run["config"].items() if name != "decay_env_steps"}
        for run in (old, new)
    ]
    return [
        f"{name} is {flat[0].get(name)}, not {flat[1].get(name)}"
        for name in sorted(flat[0].keys() | flat[1].keys())
        if flat[0].get(name) != flat[1].get(name)
    ]


def decisive(run: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that influence what a run learns, and the fields of its Config. `run` is as in config.json.
    Runs that agree in all of them share a learning curve."""
    known = complete({name: value for name, value in run.items() if name != "config"})
    settled = {
        name
        for name, declared in DECLARED.items()
        if not declared.learnt or (declared.only and not declared.only.holds(known))
    }
    return {name: value for name, value in (known | run["config"]).items() if name not in settled}


def nearest(name: str, names: Iterable[str], *, listing: bool = True) -> str:
    """Returns the end of a message about an unknown name: the known names nearest to it, else (if `listing`) all.

    Nearness does not depend on capital letters.
    """
    spelt = {name.lower(): name for name in sorted(names)}
    near = difflib.get_close_matches(name.lower(), spelt, n=3, cutoff=0.5)
    if near:
        return f"; did you mean {', '.join(spelt[each] for each in near)}?"
    return f"; there are {', '.join(spelt.values())}" if listing else ""
