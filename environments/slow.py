"""An environment that keeps its actor waiting, as a simulator or a robot does: `--env=gymnasium:environments.slow:ID`.

It shows what many actors are for: they help where experience is slow to collect and the learner is not the bottleneck.
"""

import time
from typing import Any

import gymnasium
from gymnasium.envs.classic_control.cartpole import CartPoleEnv


class SlowCartPole(gymnasium.Wrapper):
    """CartPole whose every step waits for `seconds`, from 0 to 1, without computing anything."""

    def __init__(self, seconds: float = 0.005, **keywords: Any):
        if not 0.0 <= seconds <= 1.0:
            raise ValueError(f"seconds={seconds} must be from 0 to 1")
        super().__init__(CartPoleEnv(**keywords))
        self._seconds = seconds

    def step(self, action: Any) -> Any:
        time.sleep(self._seconds)
        return self.env.step(action)


gymnasium.register("SlowCartPole-v0", "environments.slow:SlowCartPole", max_episode_steps=500)
