"""The batched environment that actors and evaluators step, whatever is behind it."""

import abc
from typing import Any, NamedTuple

import numpy as np

from agents.agent import EnvironmentSpec, TimeStep


class Episodes(NamedTuple):
    """Episodes that ended, in the order in which they did: undiscounted, unclipped returns and lengths in actions."""

    environments: list[int]
    returns: list[float]
    lengths: list[int]


class Environment(abc.ABC):
    """`num_envs` environments stepped together.

    An episode's last observation is delivered (`last`), the action that answers it is thrown away, and the row
    after it is the next episode's first, with reward 0. A subclass produces raw steps in `_reset` and `_step`; the
    bookkeeping of first, last, discount and returns is here, once.
    """

    spec: EnvironmentSpec
    num_envs: int

    def reset(self) -> TimeStep:
        """Starts (only once, before the first step) and returns the episodes' first TimeStep."""
        batch = self.num_envs
        self._returns = np.zeros(batch, np.float64)
        self._lengths = np.zeros(batch, np.int64)
        self._episodes = Episodes([], [], [])
        self._last = np.zeros(batch, bool)
        observation = self._reset()
        return TimeStep(
            observation, np.zeros(batch, np.float32), np.ones(batch, np.float32), np.ones(batch, bool), self._last
        )

    def step(self, action: np.ndarray) -> TimeStep:
        """Steps every environment with `action` [B, ...] and returns the next TimeStep."""
        observation, reward, raw_reward, terminated, truncated = self._step(np.asarray(action), self._last)
        first = self._last
        last = (terminated | truncated) & ~first
        discount = 1.0 - (terminated & last).astype(np.float32)
        self._returns += raw_reward
        self._lengths += 1
        if first.any():
            reward = np.where(first, np.float32(0.0), reward)
            self._returns[first] = 0.0
            self._lengths[first] = 0
        if last.any():
            self._episodes.environments.extend(np.flatnonzero(last).tolist())
            self._episodes.returns.extend(self._returns[last].tolist())
            self._episodes.lengths.extend(self._lengths[last].tolist())
        self._last = last
        return TimeStep(observation, reward, discount, first, last)

    def finished(self) -> Episodes:
        """The episodes that ended since the last call."""
        episodes, self._episodes = self._episodes, Episodes([], [], [])
        return episodes

    @abc.abstractmethod
    def _reset(self) -> np.ndarray:
        """The first observations, [B, ...]."""

    @abc.abstractmethod
    def _step(self, action: np.ndarray, resets: np.ndarray) -> tuple[Any, Any, Any, Any, Any]:
        """(observation, reward, unclipped reward, terminated, truncated), each [B, ...].

        Where `resets` is true the action is ignored, the observation opens a new episode and the rest is ignored.
        """

    def close(self) -> None:
        """Frees what the environments hold."""
