"""Any Gymnasium environment, batched by gymnasium.vector."""

from typing import Any

import gymnasium
import numpy as np

from agents.agent import EnvironmentSpec
from environments import spaces
from environments.environment import Environment


class GymnasiumEnvironment(Environment):
    """`name` is Gymnasium's own: `ID`, or `module:ID` to import a module that registers it first.

    Vectorised in this process, with Gymnasium's next-step autoreset, which is the contract of Environment.
    """

    def __init__(self, name: str, num_envs: int, seed: int):
        self.num_envs = num_envs
        try:
            self._vector = gymnasium.make_vec(
                name,
                num_envs=num_envs,
                vectorization_mode="sync",
                vector_kwargs={"autoreset_mode": gymnasium.vector.AutoresetMode.NEXT_STEP},
            )
        except (gymnasium.error.Error, ImportError) as error:
            raise ValueError(f"Gymnasium cannot make {name!r}: {' '.join(str(error).split())}") from error
        self._seed = seed
        self._observations = spaces.observations(self._vector.single_observation_space)
        self._actions = spaces.actions(self._vector.single_action_space)
        longest = self._vector.spec.max_episode_steps if self._vector.spec else None
        self.spec = EnvironmentSpec(self._observations.shape, self._observations.dtype, self._actions.spec, longest)

    def _reset(self) -> np.ndarray:
        return self._observations.show(self._vector.reset(seed=self._seed)[0])

    def _step(self, action: np.ndarray, resets: np.ndarray) -> tuple[Any, ...]:
        observation, reward, terminated, truncated, _ = self._vector.step(self._actions.take(action))
        reward = np.asarray(reward, np.float32)
        return self._observations.show(observation), reward, reward, terminated, truncated

    def close(self) -> None:
        self._vector.close()
