"""Any Gymnasium environment, batched by gymnasium.vector."""

from typing import Any

import gymnasium
import numpy as np

from agents.agent import EnvironmentSpec
from environments.environment import Environment, flatten_observation
from environments.spaces import action_spec, observation_spec


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
        shape, dtype = observation_spec(self._vector.single_observation_space)
        self._dict = isinstance(self._vector.single_observation_space, gymnasium.spaces.Dict)
        longest = self._vector.spec.max_episode_steps if self._vector.spec else None
        self.spec = EnvironmentSpec(shape, dtype, action_spec(self._vector.single_action_space), longest)

    def _observe(self, observation: Any) -> np.ndarray:
        if self._dict:
            return flatten_observation(observation, self.num_envs)
        return np.array(observation, self.spec.observation_dtype)  # a copy: gymnasium reuses its buffer

    def _reset(self) -> np.ndarray:
        return self._observe(self._vector.reset(seed=self._seed)[0])

    def _step(self, action: np.ndarray, resets: np.ndarray) -> tuple[Any, ...]:
        observation, reward, terminated, truncated, _ = self._vector.step(action)
        reward = np.asarray(reward, np.float32)
        return self._observe(observation), reward, reward, terminated, truncated

    def close(self) -> None:
        self._vector.close()
