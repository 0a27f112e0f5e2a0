"""Environments that are drawn, each in its own way: `gymnasium:tests.environments.drawn:WAY-v0`.

An episode of the environment with seed s has 3 + s mod 4 steps. The observation is the number of steps so far, and the
picture's grey level is ten times that number.
"""

from typing import Any

import gymnasium
import numpy as np


def grey(time: int, *shape: int, dtype: Any = np.uint8) -> np.ndarray:
    return np.full(shape or (20, 30, 3), 10 * time).astype(dtype)


def refuse(time: int) -> None:
    raise RuntimeError("no paint is left")


# Way -> a function that returns the picture after a number of steps.
WAYS = {
    "Sound": grey,
    "None": lambda time: None,
    "Raises": refuse,
    "Floats": lambda time: grey(time, dtype=np.float32),
    "Flat": lambda time: grey(time, 20, 30),
    "Transparent": lambda time: grey(time, 20, 30, 4),
    "Several": lambda time: [grey(time), grey(time)],
    "Growing": lambda time: grey(time, 20 + time, 30, 3),
}


class Drawn(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(0.0, 100.0, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    metadata = {"render_modes": ["rgb_array"], "render_fps": 12}

    def __init__(self, way: str, render_mode: str | None = None):
        self.render_mode, self._way = render_mode, way

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self._length = 3 + seed % 4
        self._time = 0
        return self._observe(), {}

    def _observe(self) -> np.ndarray:
        return np.full(1, self._time, np.float32)

    def step(self, action):
        self._time += 1
        return self._observe(), 1.0, self._time == self._length, False, {}

    def render(self):
        assert self.render_mode == "rgb_array", "whoever is not to be drawn is not"
        return WAYS[self._way](self._time)


class Undrawn(Drawn):
    """An environment whose constructor takes no render_mode."""

    def __init__(self):
        super().__init__("Sound")


for name in WAYS:
    gymnasium.register(f"{name}-v0", Drawn, kwargs={"way": name})
gymnasium.register("Undrawn-v0", Undrawn)
