"""Environments with one kind of observations and actions each: `gymnasium:tests.launchers.plain_environments:ID`."""

import functools

import gymnasium
import numpy as np
from gymnasium import spaces


class Plain(gymnasium.Env):
    """An environment with given spaces, whose observations are noise and whose episodes have 20 steps."""

    def __init__(self, observation_space, action_space):
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._time = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self._time += 1
        return self.observation_space.sample(), 1.0, False, self._time == 20, {}


def frame(*shape: int) -> spaces.Box:
    return spaces.Box(0, 255, shape, np.uint8)


TWO, NUMBERS = spaces.Discrete(2), spaces.Box(-1.0, 1.0, (2,), np.float32)
KINDS = {
    "Grey84-v0": (frame(84, 84), TWO),
    "Grey12-v0": (frame(12, 12), TWO),
    "Colour24-v0": (frame(24, 30, 3), spaces.MultiDiscrete([3, 2])),
    "Colour36-v0": (frame(36, 36, 3), NUMBERS),
    "Factored-v0": (NUMBERS, spaces.MultiDiscrete([3, 2])),
    "Continuous-v0": (NUMBERS, NUMBERS),
}
for name, both in KINDS.items():
    gymnasium.register(name, functools.partial(Plain, *both))
