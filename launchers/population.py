"""A population's members as runs, from `--population`, `--tune` and the flags beside them; and what their roles have to
do with each other."""

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

TUNE = "--tune is NAME:log:LOW:HIGH, NAME:linear:LOW:HIGH or NAME:step=SIZE:LOW:HIGH, several with commas between"


def parse_ranges(tune: str) -> dict[str, pbt.Range]:
    """The ranges that `--tune` names.

    Raises:
      UsageError: it is not written as it should be, or a range is empty.
    """
    ranges: dict[str, pbt.Range] = {}
    for part in filter(None, tune.split(",")):
        try:
            name, scale, low, high = part.split(":")
            scale, _, step = scale.partition("=")
            range_ = pbt.Range(scale, float(low), float(high), float(step or 0))  # type: ignore[arg-type]
        except ValueError as error:
            raise UsageError(f"{TUNE}; not {part!r}") from error
        if scale not in ("log", "linear", "step") or (scale == "step") != (range_.step > 0):
            raise UsageError(f"{TUNE}; not {part!r}")
        if not all(map(math.isfinite, range_[1:])):
            raise UsageError(f"--tune={part}: LOW, HIGH and SIZE are finite numbers")
        if name in ranges:
            raise UsageError(f"--tune names {name!r} twice: a hyperparameter has one range")
        if not range_.low < range_.high or (scale == "log" and range_.low <= 0):
            raise UsageError(
                f"--tune={part}: a range is LOW below HIGH, both above 0 on the scale log; not {low} to {high}"
            )
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
        raise UsageError("--population_mode=vmap stacks learners of experience: leave out --travels=gradients")
    if run.population_mode == "separate" and run.placement == "serial":
        raise UsageError(
            "--placement=serial has one learner: give --population_mode=vmap, which stacks the members in it, or "
            "--placement=threads"
        )
    hypers = state_structs(run.make_agent(run.spec())).hypers._fields
    check_ranges(run, ranges, hypers, f"hyperparameter of {run.agent} that can change in a running learner")


def check_ranges(run: Run, ranges: pbt.Ranges, names: Collection[str], what: str) -> None:
    """Raises UsageError if one of the ranges is of none of the `names`, each of which is a `what`, or goes beyond what
    the agent takes."""
    for name, range_ in ranges.items():
        if name not in names:
            raise UsageError(f"--tune names {name!r}, which is no {what}{nearest(name, names)}")
        for value in (range_.low, range_.high):
            with_values(run, {name: value})


def with_values(run: Run, values: Mapping[str, float]) -> Run:
    """The run with other values of its Config's fields.

    Raises:
      UsageError: one is out of range.
    """
    try:
        typed = configs.check_types(configs.fields(run.agent), values)
        return dataclasses.replace(run, config=dataclasses.replace(run.config, **typed))
    except ValueError as error:
        raise UsageError(f"--tune goes beyond what the agent takes: {error}") from error


def draws(run: Run) -> dict[str, list[float]]:
    """What each member's hyperparameters are at first, name -> [N]; the same in every mode."""
    drawn = pbt.draw(jax.random.key(run.seed_of("population")), parse_ranges(run.tune), run.population)
    return {name: [float(x) for x in values] for name, values in drawn.items()}


def member_run(run: Run, member: int) -> Run:
    """An ordinary run: the population's, with this member's seed and first hyperparameters."""
    values = {name: drawn[member] for name, drawn in draws(run).items()}
    return dataclasses.replace(with_values(run, values), seed=run.seed_of("member", member), population=0, tune="")


def member_logdir(logdir: pathlib.Path, member: int) -> pathlib.Path:
    return logdir / f"member_{member}"


def learners(run: Run) -> list[int | None]:
    """The members that have learners of their own; else None alone, for the one learner."""
    return list(range(run.population)) if run.population and run.stacked == 1 else [None]


def logdirs(run: Run, logdir: pathlib.Path) -> list[pathlib.Path]:
    """Where the learners of a run write."""
    return [logdir if member is None else member_logdir(logdir, member) for member in learners(run)]


def save(run: Run, logdir: pathlib.Path) -> None:
    """Writes the config.json of a run and of its members, or checks that they are this run's.

    Raises:
      UsageError: the logdir cannot be written or belongs to another run.
    """
    runs.save(run, logdir)
    for member in learners(run):
        if member is not None:
            runs.save(member_run(run, member), member_logdir(logdir, member))


def member_of(run: Run, logdir: pathlib.Path, member: int | None, num_tasks: int) -> tuple[Run, pathlib.Path, "Peers"]:
    """The run of one of a run's learners, where it writes, and what it has to do with the others."""
    peers = Peers(run, logdir, member, num_tasks)
    return (run, logdir, peers) if member is None else (member_run(run, member), member_logdir(logdir, member), peers)


class Peers:
    """What the roles of a learner have to do with the rest of its population; of a run without one, nothing."""

    def __init__(self, run: Run, logdir: pathlib.Path, member: int | None, num_tasks: int):
        """
        Args:
          run, logdir: the population's, or those of an ordinary run.
          member: whose learner it is; None: all members', stacked, or the one of an ordinary run.
          num_tasks: that the environments have.
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
        """That of the learner's own table, in servers that all members share."""
        return self._prefix + table

    def vary(self, state: State) -> State:
        """A new state of stacked members, with the hyperparameters that were drawn for each."""
        drawn = {name: np.asarray(values, np.float32) for name, values in self._draws.items()}
        return state._replace(hypers=state.hypers._replace(**drawn)) if drawn else state

    def containers(self, agent: Agent) -> dict[str, Structure]:
        """By name, what this learner and its reporters tell the others, in variable containers."""
        if self._population is None:
            return {}
        told = {self.name(reporter): told_structure(self._population) for reporter in self._population.reporters}
        if self._population.member is None:
            return told
        return told | {self.name("state"): state_structure(state_structs(agent)), self.name("copied"): COPIED}

    def returns(self, carrier: Any, reporter: str) -> Returns | None:
        """Where a `reporter` tells the learners of episodes; None if they do not ask it."""
        if self._population is None or reporter not in self._population.reporters:
            return None
        structure = told_structure(self._population)
        return Returns(self._population, carrier.variables(structure, self.name(reporter)))

    def exchange(self, carrier: Any, agent: Agent, key: jax.Array, env_steps: int) -> Exchange | None:
        """The population's, as this learner takes part in it, `env_steps` after its beginning."""
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
