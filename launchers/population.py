"""A population's members as runs, made from `--population`, `--tune` and the flags beside them; and the links between
the members' roles."""

import dataclasses
import math
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np

from agents import pbt
from agents.agent import Agent, State
from launchers import configs
from launchers import run as runs
from launchers.run import Run
from launchers.settings import UsageError, nearest
from replay.structures import Structure, state_structs
from runtime.population import COPIED, Exchange, Population, Returns, state_structure, told_structure

TUNE = "give NAME:log:LOW:HIGH, NAME:linear:LOW:HIGH or NAME:step=SIZE:LOW:HIGH, several with commas between"


def parse_ranges(tune: str) -> dict[str, pbt.Range]:
    """Returns the ranges that `--tune` names, by hyperparameter.

    Raises:
      UsageError: `tune` is not written as TUNE says, or a range is empty.
    """
    ranges: dict[str, pbt.Range] = {}
    for part in filter(None, tune.split(",")):
        try:
            name, scale, low, high = part.split(":")
            scale, _, step = scale.partition("=")
            range_ = pbt.Range(scale, float(low), float(high), float(step or 0))  # type: ignore[arg-type]
        except ValueError as error:
            raise UsageError(f"--tune={part}: {TUNE}") from error
        if scale not in ("log", "linear", "step") or (scale == "step") != (range_.step > 0):
            raise UsageError(f"--tune={part}: {TUNE}")
        if not all(map(math.isfinite, range_[1:])):
            raise UsageError(f"--tune={part}: LOW, HIGH and SIZE must be finite numbers")
        if name in ranges:
            raise UsageError(f"--tune names {name!r} twice: a hyperparameter has one range")
        if not range_.low < range_.high or (scale == "log" and range_.low <= 0):
            raise UsageError(f"--tune={part}: give LOW below HIGH, and with log both above 0, not {low} to {high}")
        ranges[name] = range_
    return ranges


def check(run: Run) -> None:
    """Raises UsageError if a run's population does not fit its agent, or makes no sense."""
    ranges = parse_ranges(run.tune)
    if run.population == 1:
        raise UsageError("--population=1 has no peers to learn from: give 2 or more")
    if not run.population:
        return
    if not ranges:
        raise UsageError(f"--population={run.population} needs --tune, the hyperparameters that it tunes: {TUNE}")
    if run.score_episodes < 2 and run.exploit == "t_test":
        raise UsageError("--exploit=t_test needs --score_episodes of 2 or more")
    if run.population_mode == "vmap" and run.travels == "gradients":
        raise UsageError("--population_mode=vmap is for agents that learn from experience: give --travels=experience")
    if run.population_mode == "separate" and run.placement == "serial":
        raise UsageError(
            "--placement=serial has only one learner: give --population_mode=vmap, which stacks all members in one, or "
            "--placement=threads"
        )
    hypers = state_structs(run.make_agent(run.spec())).hypers._fields
    check_ranges(run, ranges, hypers, f"hyperparameter of {run.agent} that can change in a running learner")


def check_ranges(run: Run, ranges: pbt.Ranges, names: Collection[str], what: str) -> None:
    """Raises UsageError if a range is of a hyperparameter that is not among `names`, or goes beyond what the agent
    takes.

    `what` says in the error what the `names` are.
    """
    for name, range_ in ranges.items():
        if name not in names:
            raise UsageError(f"--tune names {name!r}, which is not a {what}{nearest(name, names)}")
        for value in (range_.low, range_.high):
            with_values(run, {name: value})


def with_values(run: Run, values: Mapping[str, float]) -> Run:
    """Returns the run with other values of its Config's fields.

    Raises:
      UsageError: a value is out of range.
    """
    try:
        typed = configs.check_types(configs.fields(run.agent), values)
        return dataclasses.replace(run, config=dataclasses.replace(run.config, **typed))
    except ValueError as error:
        raise UsageError(f"--tune has a value that the agent does not take: {error}") from error


def draws(run: Run) -> dict[str, list[float]]:
    """Draws the members' first hyperparameters, name -> [N]; they are the same in every `population_mode`.

    Those on the scale "step" are left out: they start with the agent's own value.
    """
    drawn = pbt.draw(jax.random.key(run.seed_of("population")), parse_ranges(run.tune), run.population)
    return {name: [float(x) for x in values] for name, values in drawn.items()}


def member_run(run: Run, member: int) -> Run:
    """Returns a member's run: that of the population, as an ordinary run with the member's seed and first
    hyperparameters."""
    values = {name: drawn[member] for name, drawn in draws(run).items()}
    return dataclasses.replace(with_values(run, values), seed=run.seed_of("member", member), population=0, tune="")


def member_logdir(logdir: pathlib.Path, member: int) -> pathlib.Path:
    return logdir / f"member_{member}"


def learners(run: Run) -> list[int | None]:
    """Returns the members that have learners of their own; [None] if the run has one learner for all."""
    return list(range(run.population)) if run.population and run.stacked == 1 else [None]


def logdirs(run: Run, logdir: pathlib.Path) -> list[pathlib.Path]:
    """Returns the folders to which the learners of a run write."""
    return [logdir if member is None else member_logdir(logdir, member) for member in learners(run)]


def save(run: Run, logdir: pathlib.Path) -> None:
    """Writes the config.json of a run and of its members; those that are there already must be this run's.

    Raises:
      UsageError: the logdir cannot be written or belongs to another run.
    """
    runs.save(run, logdir)
    for member in learners(run):
        if member is not None:
            runs.save(member_run(run, member), member_logdir(logdir, member))


def member_of(run: Run, logdir: pathlib.Path, member: int | None, num_tasks: int) -> tuple[Run, pathlib.Path, "Peers"]:
    """Returns the run of one of a run's learners, the folder to which it writes, and its Peers.

    `member` is one of `learners(run)`; the other arguments are as for Peers.
    """
    peers = Peers(run, logdir, member, num_tasks)
    return (run, logdir, peers) if member is None else (member_run(run, member), member_logdir(logdir, member), peers)


class Peers:
    """The links of a learner's roles with the rest of its population. In a run without a population they do nothing."""

    def __init__(self, run: Run, logdir: pathlib.Path, member: int | None, num_tasks: int):
        """
        Args:
          run, logdir: the population's run and folder, or those of an ordinary run.
          member: the member whose learner it is; None if it is that of all members, stacked, or of an ordinary run.
          num_tasks: the number of tasks that the environments share out among them.
        """
        self._prefix = "" if member is None else _prefix(member)
        self._draws = draws(run) if run.population and member is None else {}
        self._population: Population | None = None
        if run.population:
            actors = tuple(f"actor_{task}" for task in range(run.num_actors))
            self._population = Population(
                size=run.population,
                member=member,
                ranges=parse_ranges(run.tune),
                exploit=run.exploit,
                explore=run.explore,
                ready_env_steps=run.ready_env_steps,
                score_episodes=run.score_episodes,
                reporters=actors if run.fitness == "training" else ("evaluator",),
                num_tasks=num_tasks,
                logdir=logdir,
            )

    def name(self, table: str) -> str:
        """Returns the name of the learner's own `table` in the replay servers, which all members share."""
        return self._prefix + table

    def vary(self, state: State) -> State:
        """Returns a new state of stacked members with the hyperparameters drawn for each; any other as it is."""
        drawn = {name: np.asarray(values, np.float32) for name, values in self._draws.items()}
        return state._replace(hypers=state.hypers._replace(**drawn)) if drawn else state

    def containers(self, agent: Agent) -> dict[str, Structure]:
        """Returns, by name, the structures of the variable containers by which this learner and its reporters, which
        are the roles that see its episodes end, tell the population's learners of returns and states."""
        if self._population is None:
            return {}
        told = {self.name(reporter): told_structure(self._population) for reporter in self._population.reporters}
        if self._population.member is None:
            return told
        return told | {self.name("state"): state_structure(state_structs(agent)), self.name("copied"): COPIED}

    def returns(self, carrier: Any, reporter: str) -> Returns | None:
        """Returns the Returns by which a role, named `reporter`, tells the learners of its episodes; None if the
        population does not judge by that role."""
        if self._population is None or reporter not in self._population.reporters:
            return None
        structure = told_structure(self._population)
        return Returns(self._population, carrier.variables(structure, self.name(reporter)))

    def exchange(self, carrier: Any, agent: Agent, key: jax.Array, env_steps: int) -> Exchange | None:
        """Returns the Exchange by which this learner takes its turns in the population; None if there is none.

        Args:
          key: for what is random in the turns.
          env_steps: how far the learner has come.
        """
        if self._population is None:
            return None
        separate = self._population.member is not None
        prefixes = [_prefix(member) for member in range(self._population.size)] if separate else [""]
        told, shown = told_structure(self._population), state_structure(state_structs(agent)) if separate else None
        returns = [[carrier.variables(told, p + r) for r in self._population.reporters] for p in prefixes]
        states = [carrier.variables(shown, p + "state") for p in prefixes] if separate else []
        copied = [carrier.variables(COPIED, p + "copied") for p in prefixes] if separate else []
        return Exchange(self._population, returns, states, copied, key, env_steps)


def _prefix(member: int) -> str:
    return f"member_{member}_"
