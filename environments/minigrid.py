"""Encodes MiniGrid's observations as bits, for networks of dense layers.

An observation is 7 x 7 cells, each with codes for its object, colour and state (https://arxiv.org/abs/2306.13831).
Codes are names, not amounts, so each becomes a one-hot vector.
"""

from typing import Any

import gymnasium
import numpy as np

from environments.spaces import Observations

OBJECTS, COLOURS, STATES, DIRECTIONS = 11, 6, 3, 4
CELL = OBJECTS + COLOURS + STATES
VIEW = 7  # cells on each side of the view
LETTERS = 27  # a to z; 0 is anything else
INSTRUCTED = ("Fetch", "GoTo", "PutNear")  # tasks in which the mission says what to do; elsewhere it adds nothing


def is_instructed(name: str) -> bool:
    """Returns whether the task `MiniGrid-...` cannot be solved without reading its mission."""
    return name.removeprefix("MiniGrid-").startswith(INSTRUCTED)


def observations(name: str, space: gymnasium.spaces.Dict) -> Observations:
    """Returns how the observations of a task `MiniGrid-...` are shown to agents: by `encode`."""
    letters = space["mission"].shape[0] if is_instructed(name) else 0  # type: ignore[index]

    def show(batch: dict[str, np.ndarray]) -> np.ndarray:
        return encode(batch["image"], batch["direction"], batch["mission"] if letters else None)

    return Observations((VIEW * VIEW * CELL + DIRECTIONS + letters * LETTERS,), np.dtype(np.uint8), show)


def encode(image: np.ndarray, direction: np.ndarray, mission: np.ndarray | None = None) -> np.ndarray:
    """Encodes observations as one-hot vectors, one after another.

    Args:
      image: uint8 [B, 7, 7, 3], the cells' objects, colours and states.
      direction: int [B], the direction in which the agent looks.
      mission: uint8 [B, M], ASCII; None to leave it out.

    Returns:
      uint8 [B, n], zeros and ones: 20 for each cell, 4 for the direction, 27 for each letter of the mission.
    """
    batch, bits = len(image), _one_hot(image[..., 0], OBJECTS)
    cells = [bits, _one_hot(image[..., 1], COLOURS), _one_hot(image[..., 2], STATES)]
    parts = [np.concatenate(cells, axis=-1), _one_hot(direction, DIRECTIONS)]
    if mission is not None:
        letters = mission.astype(np.int32) - (ord("a") - 1)
        parts.append(_one_hot(np.where((letters > 0) & (letters < LETTERS), letters, 0), LETTERS))
    return np.concatenate([part.reshape(batch, -1) for part in parts], axis=1)


def _one_hot(codes: Any, count: int) -> np.ndarray:
    return np.eye(count, dtype=np.uint8)[codes]
