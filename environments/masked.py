"""CartPole without velocities: a small task that needs memory."""

import dataclasses
from typing import Any

import numpy as np

from environments.environment import Environment


class PositionsOnly(Environment):
    """`MaskedCartPole-v1`: CartPole-v1 that shows the cart's position and the pole's angle, not their velocities."""

    def __init__(self, cartpole: Environment):
        self._cartpole = cartpole
        self.num_envs = cartpole.num_envs
        self.spec = dataclasses.replace(cartpole.spec, observation_shape=(2,), spaces=None)

    def _reset(self) -> np.ndarray:
        return self._cartpole._reset()[:, ::2]

    def _step(self, action: np.ndarray, resets: np.ndarray) -> tuple[Any, ...]:
        observation, *rest = self._cartpole._step(action, resets)
        return observation[:, ::2], *rest

    def draw(self) -> np.ndarray:
        return self._cartpole.draw()

    def close(self) -> None:
        self._cartpole.close()
