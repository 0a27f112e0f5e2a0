"""Small environments from textbooks and papers, whose solutions are known: `--env=gymnasium:environments.textbook:ID`.

`ShortCorridor-v0` and `Baird-v0` are from Sutton and Barto 2018, http://incompleteideas.net/book/the-book-2nd.html;
`ContinuousBandit-v0` is from Silver et al. 2014, http://proceedings.mlr.press/v32/silver14.html; `OpenLake-v0` is
Gymnasium's FrozenLake made a test of exploration.
"""

from typing import Any

import gymnasium
import numpy as np

DASHED, SOLID = 0, 1  # the actions of Baird's counterexample
BAIRD_FEATURES = np.zeros((7, 8), np.float32)  # values: 2 w_i + w_8 in the upper six, w_7 + 2 w_8 in the last
BAIRD_FEATURES[range(6), range(6)] = 2
BAIRD_FEATURES[:6, 7] = 1
BAIRD_FEATURES[6, 6:] = 1, 2


class ShortCorridor(gymnasium.Env):
    """The short corridor with switched actions (example 13.1): three states that look alike, a goal to their right.

    Action 0 goes left and action 1 right, but in the second state they are switched. Left of the first state is a wall.
    Each step's reward is -1. The best policy goes right with probability 0.59 and returns -11.6 on average.
    """

    observation_space = gymnasium.spaces.Box(0.0, 1.0, (1,), np.float32)  # one feature, the same everywhere
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.state = 0
        return np.ones(1, np.float32), {}

    def step(self, action):
        right = (action == 1) != (self.state == 1)
        self.state = self.state + 1 if right else max(0, self.state - 1)
        return np.ones(1, np.float32), -1.0, self.state == 3, False, {}


class Baird(gymnasium.Env):
    """Baird's counterexample (section 11.2): seven states, observed as their features, [8]; all rewards are 0.

    The action `SOLID` goes to the seventh state, `DASHED` to a uniformly random one of the six others. No episode ends.
    """

    observation_space = gymnasium.spaces.Box(0.0, 2.0, (8,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        return BAIRD_FEATURES[self.np_random.integers(7)].copy(), {}

    def step(self, action):
        state = 6 if action == SOLID else self.np_random.integers(6)
        return BAIRD_FEATURES[state].copy(), 0.0, False, False, {}


class ContinuousBandit(gymnasium.Env):
    """Silver et al.'s bandit (section 5.1). An episode is one action [dimensions], whose cost is (a - a*)^T C (a - a*).

    The reward is minus the cost; every number of a* is 4. Half of C's eigenvalues are 0.1 and the others 1. Its axes
    are random, but always the same for a given number of `dimensions`.
    """

    observation_space = gymnasium.spaces.Box(0.0, 1.0, (1,), np.float32)  # there is one state

    def __init__(self, dimensions: int = 10):
        if not 1 <= dimensions <= 1000:
            raise ValueError(f"dimensions={dimensions} must be from 1 to 1000")
        self.action_space = gymnasium.spaces.Box(-10.0, 10.0, (dimensions,), np.float32)
        axes, _ = np.linalg.qr(np.random.default_rng(dimensions).normal(size=(dimensions, dimensions)))
        self.C = (axes * np.where(np.arange(dimensions) % 2, 0.1, 1.0)) @ axes.T

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        return np.ones(1, np.float32), {}

    def step(self, action):
        off = np.asarray(action, np.float64) - 4.0
        return np.ones(1, np.float32), -float(off @ self.C @ off), True, False, {}


# The corridor has a limit because agents that learn from whole episodes need one. It is far above the number of steps
# that the worst initial policy takes.
gymnasium.register("ShortCorridor-v0", "environments.textbook:ShortCorridor", max_episode_steps=1000)
gymnasium.register("Baird-v0", "environments.textbook:Baird")
gymnasium.register("ContinuousBandit-v0", "environments.textbook:ContinuousBandit", max_episode_steps=1)
# 20 x 20 cells without holes. The only reward is 38 steps away, in a corner that a random walk of 100 steps hardly ever
# finds.
gymnasium.register(
    "OpenLake-v0",
    "gymnasium.envs.toy_text.frozen_lake:FrozenLakeEnv",
    max_episode_steps=100,
    kwargs={"desc": ["S" + 19 * "F", *(18 * [20 * "F"]), 19 * "F" + "G"], "is_slippery": False},
)
