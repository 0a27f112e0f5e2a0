"""Population-based training of running learners (Jaderberg et al. 2017, algorithm 1; agents/pbt.py has the rules).

There is no coordinator. When it is a member's turn, its learner shows its state to its peers, reads what their episodes
returned, and either copies a peer or goes on; all this goes through variable containers. Members that are stacked in
one learner take their turns together. When a member copies another, the returns of its earlier episodes no longer
count, for they say nothing about its new state.
"""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from agents import pbt
from agents.agent import State, Version
from environments.environment import Episodes
from replay.rows import Variables
from replay.structures import Structure
from runtime.evaluator import next_due
from runtime.learner import Learner, NotFinite
from runtime.metrics import Recorder


class Population(NamedTuple):
    """How a population is trained, and which of its members a learner has."""

    size: int  # N, the number of members
    member: int | None  # the member that this learner trains; None: all of them, stacked
    ranges: Mapping[str, pbt.Range]  # by name, the hyperparameters that are tuned
    exploit: str  # a rule of pbt.EXPLOIT
    explore: str  # a rule of pbt.EXPLORE
    ready_env_steps: int  # environment steps of a member from one of its turns to the next
    score_episodes: int  # K, how many of its last episodes a member is scored by, from each reporter
    reporters: tuple[str, ...]  # roles that tell of their episodes: the actors, or the evaluator
    num_tasks: int  # number of tasks in a member's environments
    logdir: pathlib.Path  # the population's

    @property
    def members(self) -> list[int]:
        """The members that this learner trains."""
        return list(range(self.size)) if self.member is None else [self.member]


NO_VERSION = Version(np.int64(0), np.int64(0))
NEVER = -1  # in place of the environment steps at a member's last copy, if it has copied nobody


class Told(NamedTuple):
    """A reporter's message about the members of one learner: the last K episodes of each."""

    returns: np.ndarray  # float32 [members, K], NaN while there are fewer episodes
    env_steps: np.ndarray  # int64 [members, K], those of the parameters that acted when the episode ended


def told_structure(population: Population) -> Structure:
    """Returns the structure of (Version, Told)."""
    shape = len(population.members), population.score_episodes
    return Structure((NO_VERSION, Told(np.zeros(shape, np.float32), np.zeros(shape, np.int64))))


def state_structure(state: State) -> Structure:
    """Returns the structure of (Version, a member's whole state)."""
    return Structure((NO_VERSION, state))


COPIED = Structure((NO_VERSION, np.int64(NEVER)))  # (Version, a member's environment steps at its last copy)


class Returns:
    """Tells the learners what the episodes of one reporter, an actor or the evaluator, returned."""

    def __init__(self, population: Population, container: Variables):
        self._population, self._container = population, container
        self._last: list[list[tuple[float, int]]] = [[] for _ in population.members]

    def add(self, version: Version, episodes: Episodes) -> None:
        """Adds `episodes` played with parameters of `version`; `pbt.member_of` says which member played each."""
        if not episodes.returns:
            return
        k, tasks = self._population.score_episodes, self._population.num_tasks
        for environment, value in zip(episodes.environments, episodes.returns, strict=True):
            self._last[pbt.member_of(environment, len(self._last), tasks)].append((value, version.env_steps))
        self._last = [values[-k:] for values in self._last]
        padded = [[(math.nan, 0)] * (k - len(values)) + values for values in self._last]
        told = np.array(padded)  # [members, K, 2] in float64, which holds any run's number of steps exactly
        self._container.push(version, Told(told[..., 0].astype(np.float32), told[..., 1].astype(np.int64)))


class Exchange:
    """A learner's turns in its population; the learner's loop calls it after each update."""

    def __init__(
        self,
        population: Population,
        returns: Sequence[Sequence[Variables]],
        states: Sequence[Variables],
        copied: Sequence[Variables],
        key: jax.Array,
        env_steps: int,
    ):
        """
        Args:
          population: how the population is trained, and which members this learner has.
          returns: for each learner of the population, the containers that its reporters fill; stacked members have one
            learner.
          states, copied: a container of each member's state, and of when it last copied another; empty if members are
            stacked.
          key: for all random choices, so that the same seed and episodes give the same turns.
          env_steps: environment steps that the learner has made.
        """
        self._population, self._returns, self._states, self._key = population, returns, states, key
        self._containers = copied
        self._copied = np.full(population.size, NEVER, np.int64)  # environment steps at each member's last copy
        self._due = next_due(env_steps, population.ready_env_steps)
        self._turns = 0
        self._recorders = {m: Recorder(population.logdir, f"lineage_{m}") for m in population.members}

    def start(self, learner: Learner) -> None:
        """Takes part from now on; called before the first update.

        A member that has shown its state before was interrupted while its peers went on. It goes on from the best of
        them. If none of them has a score yet, it goes on from its own state: the saved or the shown one, whichever is
        newer.
        """
        if self._population.member is None:
            self._record(learner.version, learner.host_state(), self._scores(), self._population.members)
            return
        me, state = self._population.member, learner.host_state()
        scores = np.array(self._scores())
        if not self._states[me].filled():
            self._states[me].push(learner.version, state)
        elif self._scored_peers(scores):
            self.rescue(learner, "it was interrupted")
            return
        else:
            logging.warning(
                "member %d goes on from its own state: it was interrupted, and no other member has a score yet", me
            )
            version, shown = self._states[me].pull()
            if version.learner_steps > learner.version.learner_steps:
                state = shown
                learner.replace(state)
        self._record(learner.version, state, scores, {me: me})

    def __call__(self, learner: Learner) -> None:
        if learner.version.env_steps < self._due:
            return
        self._due = next_due(learner.version.env_steps, self._population.ready_env_steps)
        state, population, members = learner.host_state(), self._population, self._population.members
        returns = self._read_returns()
        if population.member is None:
            returns[~_finite(state, population.size)] = -np.inf
        else:
            self._states[population.member].push(learner.version, state)
            if not _finite(jax.tree.map(lambda x: x[None], state), 1)[0]:
                returns[population.member] = -np.inf
            shown = np.array([container.filled() for container in self._states])  # none after a server's restart
            returns[~shown] = np.nan
        donors = np.asarray(pbt.EXPLOIT[population.exploit](self._next_key(), returns))
        copied = {m: int(donors[m]) for m in members}
        self._record(learner.version, self._copy(learner, state, copied), pbt.scores(returns), copied)

    def rescue(self, learner: Learner, why: str) -> None:
        """Has the member go on from the best peer's state; `why` is logged.

        Raises:
          NotFinite: no peer has shown a state and has a score, or the members are stacked in one learner.
        """
        me = self._population.member
        scores = np.array(self._scores())
        peers = self._scored_peers(scores)
        if me is None or not peers:
            raise NotFinite(f"{why}, and no member of the population has come far enough to take its place")
        donor = max(peers, key=lambda m: scores[m])
        logging.warning("member %d goes on from member %d: %s", me, donor, why)
        self._record(learner.version, self._copy(learner, None, {me: donor}), scores, {me: donor})

    def _scored_peers(self, scores: np.ndarray) -> list[int]:
        """Returns the other members that have shown a state and have a score. One that just copied another has none."""
        states = enumerate(self._states)
        return [m for m, state in states if m != self._population.member and state.filled() and not np.isnan(scores[m])]

    def _copy(self, learner: Learner, state: State, donors: dict[int, int]) -> State:
        """Has members take their donors' states, with hyperparameters varied; returns the learner's state after that.

        `donors` are by member; a member that is its own donor keeps its state.
        """
        moved = [member for member, donor in donors.items() if member != donor]
        if not moved:
            return state
        self._copied[moved] = learner.version.env_steps
        if self._containers:
            self._containers[moved[0]].push(learner.version, self._copied[moved[0]])
        ranges, rule = self._population.ranges, self._population.explore
        if self._population.member is None:
            index = np.array([donors[m] for m in self._population.members])
            state = jax.tree.map(lambda x: x[index], state)
        else:
            state = self._states[donors[moved[0]]].pull()[1]
        values = {name: getattr(state.hypers, name) for name in ranges}
        varied = pbt.explore(self._next_key(), rule, values, ranges)
        if self._population.member is None:
            copied = np.isin(self._population.members, moved)
            varied = {name: np.where(copied, value, values[name]) for name, value in varied.items()}
        hypers = {name: np.asarray(value, values[name].dtype) for name, value in varied.items()}
        state = state._replace(hypers=state.hypers._replace(**hypers))
        learner.replace(state)
        return state

    def _next_key(self) -> jax.Array:
        self._turns += 1
        return jax.random.fold_in(self._key, self._turns)

    def _read_returns(self) -> np.ndarray:
        """Returns what the members' episodes returned, [N, reporters * K], and updates `self._copied`.

        Episodes played by parameters from before a member's last copy are NaN.
        """
        shape = self._population.size // len(self._returns), self._population.score_episodes
        nothing = Told(np.full(shape, np.nan, np.float32), np.zeros(shape, np.int64))
        rows = []
        for containers in self._returns:
            told = [c.pull()[1] if c.filled() else nothing for c in containers]
            rows.append(Told(*(np.concatenate(parts, axis=1) for parts in zip(*told, strict=True))))
        for member, container in enumerate(self._containers):
            if container.filled():
                self._copied[member] = container.pull()[1]
        returns, env_steps = (np.concatenate(parts) for parts in zip(*rows, strict=True))
        return np.where(env_steps > self._copied[:, None], returns, np.nan)

    def _scores(self) -> Any:
        return pbt.scores(self._read_returns())

    def _record(self, version: Version, state: State, scores: Any, donors: Any) -> None:
        """Writes a row for each of the learner's members: whose state it goes on with, and its hyperparameters."""
        for member in self._population.members:
            hypers = {name: np.asarray(getattr(state.hypers, name)) for name in self._population.ranges}
            if self._population.member is None:
                hypers = {name: value[member] for name, value in hypers.items()}
            row = {"member": member, "donor": donors[member], "score": float(scores[member])}
            self._recorders[member].write(
                version._asdict() | row | {name: float(value) for name, value in hypers.items()}
            )

    def close(self) -> None:
        for recorder in self._recorders.values():
            recorder.close()


def _finite(state: State, size: int) -> np.ndarray:
    """Returns bool [size]: for each member, whether its part of a stacked state has only finite numbers."""
    leaves = [x for x in jax.tree.leaves(state) if np.issubdtype(x.dtype, np.floating)]
    return np.all([np.isfinite(x).reshape(size, -1).all(axis=1) for x in leaves], axis=0)
