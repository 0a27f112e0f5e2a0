"""Gymnasium's spaces as an EnvironmentSpec's parts."""

import gymnasium
import numpy as np

from agents.agent import BoundedActions, DiscreteActions


def observation_spec(space: gymnasium.Space) -> tuple[tuple[int, ...], np.dtype]:
    """The shape and dtype of one observation: bytes stay bytes, a Dict is flattened, all else is float32."""
    if isinstance(space, gymnasium.spaces.Dict):
        return (sum(int(np.prod(observation_spec(part)[0], dtype=int)) for part in space.values()),), np.dtype(
            np.float32
        )
    if isinstance(space, gymnasium.spaces.Discrete):
        return (), np.dtype(np.float32)
    if not isinstance(space, gymnasium.spaces.Box):
        raise ValueError(
            f"an observation space of kind {type(space).__name__} is not supported: Box, Dict or Discrete is"
        )
    return space.shape, np.dtype(np.uint8 if space.dtype == np.uint8 else np.float32)


def action_spec(space: gymnasium.Space) -> DiscreteActions | BoundedActions:
    """One environment's actions."""
    if isinstance(space, gymnasium.spaces.Discrete):
        return DiscreteActions(int(space.n))
    if isinstance(space, gymnasium.spaces.Box):
        return BoundedActions(np.asarray(space.low, np.float32), np.asarray(space.high, np.float32))
    raise ValueError(f"an action space of kind {type(space).__name__} is not supported: Discrete or Box is")
