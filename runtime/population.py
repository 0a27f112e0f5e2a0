"""Population-based training of running learners (Jaderberg et al. 2017, algorithm 1; agents/pbt.py has the rules).

Nobody presides: when a member's turn has come, its learner shows its peers its state and looks at what their episodes
returned, all through variable containers; it copies or goes on. Members that are stacked in one learner take their
turns together. What a member's episodes returned before it copied another says nothing of the state that it has now: it
no longer counts.
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
    """How a population is trained, and which part of it a learner has."""

    size: int  # N
    member: int | None  # whose learner this is; None: all members', stacked
    ranges: Mapping[str, pbt.Range]
    exploit: str  # a rule of pbt.EXPLOIT
    explore: str  # a rule of pbt.EXPLORE
    ready_env_steps: int  # environment steps of a member from one of its turns to the next
    score_episodes: int  # K
    reporters: tuple[str, ...]  # roles that see episodes end: actors, or the evaluator
    num_tasks: int  # that a member's environments have
    logdir: pathlib.Path  # the population's

    @property
    def members(self) -> list[int]:
        """Those of this learner."""
        return list(range(self.size)) if self.member is None else [self.member]


NO_VERSION = Version(np.int64(0), np.int64(0))
NEVER = -1  # environment steps, where a member has copied nobody


class Told(NamedTuple):
    """What a reporter says of a learner's members, of each its last K episodes."""

    returns: np.ndarray  # float32 [members, K], NaN before there are so many
    env_steps: np.ndarray  # int64 [members, K], of the parameters that played them to their end


def told_structure(population: Population) -> Structure:
    """Of (Version, Told)."""
    shape = len(population.members), population.score_episodes
    return Structure((NO_VERSION, Told(np.zeros(shape, np.float32), np.zeros(shape, np.int64))))


def state_structure(state: State) -> Structure:
    """Of (Version, a member's whole state)."""
    return Structure((NO_VERSION, state))


COPIED = Structure((NO_VERSION, np.int64(NEVER)))  # of (Version, a member's environment steps when it copied last)


class Returns:
    """Tells the learners what the episodes of one actor, or of the evaluator, returned."""

    def __init__(self, population: Population, container: Variables):
        self._population, self._container = population, container
        self._last: list[list[tuple[float, int]]] = [[] for _ in population.members]

    def add(self, version: Version, episodes: Episodes) -> None:
        """`episodes` of environments that the learner's members share, as `pbt.member_of` says."""
        if not episodes.returns:
            return
        k, tasks = self._population.score_episodes, self._population.num_tasks
        for environment, value in zip(episodes.environments, episodes.returns, strict=True):
            self._last[pbt.member_of(environment, len(self._last), tasks)].append((value, version.env_steps))
        self._last = [values[-k:] for values in self._last]
        padded = [[(math.nan, 0)] * (k - len(values)) + values for values in self._last]
        told = np.array(padded)  # [members, K, 2], in float64, which counts any run's steps
        self._container.push(version, Told(told[..., 0].astype(np.float32), told[..., 1].astype(np.int64)))


class Exchange:
    """A learner's turns: call it after each update."""

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
          population: how, and whose learner this is.
          returns: the containers that the reporters of each member's learner fill; of stacked members, one learner's.
          states, copied: one for each member; of stacked members none.
          key: for what is random; the same seed and episodes, the same turns.
          env_steps: how far the learner has come.
        """
        self._population, self._returns, self._states, self._key = population, returns, states, key
        self._containers = copied
        self._copied = np.full(population.size, NEVER, np.int64)  # environment steps at each one's last copy
        self._due = next_due(env_steps, population.ready_env_steps)
        self._turns = 0
        self._recorders = {m: Recorder(population.logdir, f"lineage_{m}") for m in population.members}

    def start(self, learner: Learner) -> None:
        """Before the first update. A member that has shown its state before was interrupted while its peers went on: it
        goes on from the best of them, or while none of them has a score from the newer of what it saved and showed."""
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
            logging.warning("member %d goes on from itself: it was interrupted, and no other has a score yet", me)
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
            shown = np.array([container.filled() for container in self._states])  # a restarted server has none at first
            returns[~shown] = np.nan
        donors = np.asarray(pbt.EXPLOIT[population.exploit](self._next_key(), returns))
        copied = {m: int(donors[m]) for m in members}
        self._record(learner.version, self._copy(learner, state, copied), pbt.scores(returns), copied)

    def rescue(self, learner: Learner, why: str) -> None:
        """Goes on from the best peer's state.

        Raises:
          NotFinite: there is none.
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
        """The other members that have shown a state and have a score: one that has just copied another has none."""
        states = enumerate(self._states)
        return [m for m, state in states if m != self._population.member and state.filled() and not np.isnan(scores[m])]

    def _copy(self, learner: Learner, state: State, donors: dict[int, int]) -> State:
        """The learner's state once its members have what their donors had, hyperparameters varied."""
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
        """[N, K of all of a member's reporters together]."""
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
        """A row for each of the learner's members: whose state it goes on with, and with which hyperparameters."""
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
    """bool [size]: whose part of a stacked state has nothing but finite numbers."""
    leaves = [x for x in jax.tree.leaves(state) if np.issubdtype(x.dtype, np.floating)]
    return np.all([np.isfinite(x).reshape(size, -1).all(axis=1) for x in leaves], axis=0)
