"""An environment whose observation says which environment, episode and step it belongs to, so that tests can assert
exactly which rows a window holds."""

from typing import Any

import numpy as np

from agents.agent import DiscreteActions, EnvironmentSpec
from environments.environment import Environment


def episode_length(environment: int, episode: int) -> int:
    """Returns the number of actions in an episode: 1 to 5."""
    return 1 + (environment + 2 * episode) % 5


def terminates(environment: int, episode: int) -> bool:
    """Returns whether an episode terminates; the others are truncated."""
    return (environment + episode) % 2 == 0


class CountingEnvironment(Environment):
    """Environments that observe (environment, episode, step) as float32.

    The reward that arrives with step s of episode e is 10 e + s.
    """

    def __init__(self, num_envs: int, *, first_environment: int = 0):
        self.num_envs = num_envs
        self.spec = EnvironmentSpec((3,), np.dtype(np.float32), DiscreteActions(2), max_episode_steps=5)
        self._environment = first_environment + np.arange(num_envs)
        self._episode = np.zeros(num_envs, int)
        self._step_index = np.zeros(num_envs, int)

    def _observe(self) -> np.ndarray:
        return np.stack([self._environment, self._episode, self._step_index], axis=1).astype(np.float32)

    def _reset(self) -> np.ndarray:
        return self._observe()

    def _step(self, action: np.ndarray, resets: np.ndarray) -> tuple[Any, ...]:
        self._episode += resets
        self._step_index = np.where(resets, 0, self._step_index + 1)
        ids = list(zip(self._environment.tolist(), self._episode.tolist(), strict=True))
        over = self._step_index == np.array([episode_length(*i) for i in ids])
        terminal = np.array([terminates(*i) for i in ids])
        reward = (10 * self._episode + self._step_index).astype(np.float32)
        return self._observe(), reward, over & terminal, over & ~terminal, over
