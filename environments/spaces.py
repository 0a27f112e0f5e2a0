"""Gymnasium's spaces as agents know them: what becomes of any observation and of any action, decided here alone.

Networks want numbers about as large as one, or frames as bytes. So a choice among n is shown one-hot, as n numbers of
which one is 1; whole numbers between bounds are brought to [-1, 1]; pictures are bytes, whatever they were; all other
numbers are float32 as they are. A Dict or Tuple is one vector of all its parts.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from absl import logging
from gymnasium import spaces

from agents.agent import BoundedActions, DiscreteActions, FactoredActions

LEAST_SIDE = 16  # of a picture of floats, in pixels: what is smaller is a board, or a table
MOST_CHOICES = 4096  # of one number
WIDEST = 2**16  # between the bounds of whole numbers; those that are further apart bound nothing


class Observations(NamedTuple):
    """How observations of a space are shown."""

    shape: tuple[int, ...]  # of one
    dtype: np.dtype  # uint8 or float32
    show: Callable[[Any], np.ndarray]  # a batch as Gymnasium's vector environments give it -> [B, *shape]


class Actions(NamedTuple):
    """How actions of a space are chosen."""

    spec: DiscreteActions | BoundedActions | FactoredActions
    take: Callable[[np.ndarray], np.ndarray]  # an agent's, [B, ...] -> as Gymnasium's vector environments want them


FLOAT, BYTE = np.dtype(np.float32), np.dtype(np.uint8)


def observations(space: gymnasium.Space) -> Observations:
    """How a space's observations are shown. Parts of a Dict or Tuple that nothing can be made of are left out, which
    the log says once.

    Raises:
      ValueError: nothing can be made of the space.
    """
    if isinstance(space, spaces.Dict | spaces.Tuple):
        return _parts(space)
    if isinstance(space, spaces.Discrete):
        return _choices(np.array([space.n]), np.array([space.start]))
    if isinstance(space, spaces.MultiDiscrete):
        return _choices(space.nvec.reshape(-1), np.asarray(space.start).reshape(-1))
    if isinstance(space, spaces.MultiBinary):
        return _numbers(space.shape, lambda x: x)
    box = _box(space, "an observation", "Box, Discrete, MultiDiscrete, MultiBinary, Dict and Tuple")
    low, high = box.low.astype(np.float64), box.high.astype(np.float64)
    picture = _picture(box)
    if picture is not None:
        return picture
    if np.issubdtype(box.dtype, np.integer) and (high - low).max() <= WIDEST:
        span = np.maximum(high - low, 1)
        return _numbers(box.shape, lambda x: 2 * (x - low) / span - 1)
    return _numbers(box.shape, lambda x: x)


def _box(space: gymnasium.Space, of: str, supported: str) -> spaces.Box:
    """`space`, where no other kind is left; raises ValueError if it is another, or empty."""
    if not isinstance(space, spaces.Box):
        raise ValueError(f"{of} space of kind {type(space).__name__} is not supported: {supported} are")
    if not math.prod(space.shape):
        raise ValueError(f"{of} space of shape {space.shape} has no numbers in it")
    return space


def _numbers(shape: tuple[int, ...], convert: Callable[[np.ndarray], np.ndarray]) -> Observations:
    return Observations(tuple(shape), FLOAT, lambda batch: np.asarray(convert(np.asarray(batch)), np.float32))


def _choices(sizes: np.ndarray, starts: np.ndarray) -> Observations:
    if max(sizes) > MOST_CHOICES:
        raise ValueError(
            f"an observation that is one of {max(sizes)} would be shown as so many numbers, of {MOST_CHOICES} at most; "
            "wrap the environment so that it tells what the number means"
        )

    def show(batch: Any) -> np.ndarray:
        numbers = np.asarray(batch).reshape(len(batch), -1) - starts
        if ((numbers < 0) | (numbers >= sizes)).any():
            raise ValueError("an observation is a number that its space does not have")
        bits = [numbers[:, i, None] == np.arange(size) for i, size in enumerate(sizes)]
        return np.concatenate(bits, axis=1).astype(np.float32)

    return Observations((int(sum(sizes)),), FLOAT, show)


def _picture(space: spaces.Box) -> Observations | None:
    """Of frames [H, W], [H, W, channels] or likewise, as bytes; None of all else. One channel is none."""
    low, high = float(space.low.min()), float(space.high.max())
    if len(space.shape) < 2 or low != 0:
        return None
    if space.dtype == np.uint8:
        if high != 255:
            return None
    elif not np.issubdtype(space.dtype, np.floating) or high not in (1, 255) or min(space.shape[:2]) < LEAST_SIDE:
        return None
    shape = space.shape[:-1] if len(space.shape) == 3 and space.shape[-1] == 1 else space.shape

    def show(batch: Any) -> np.ndarray:
        frames = np.asarray(batch)
        if frames.dtype != np.uint8:
            if not np.isfinite(frames).all():  # of bytes it could not be told any more
                raise ValueError("a frame holds numbers that are not finite")
            frames = np.clip(np.rint(frames * (255 / high)), 0, 255).astype(np.uint8)
        return frames.reshape(-1, *shape)

    return Observations(shape, BYTE, show)


def _parts(space: spaces.Dict | spaces.Tuple) -> Observations:
    parts: list[tuple[Any, gymnasium.Space]] = (
        sorted(space.items()) if isinstance(space, spaces.Dict) else list(enumerate(space.spaces))
    )
    shown: dict[Any, Observations] = {}
    left_out = []
    for key, part in parts:
        try:
            shown[key] = observations(part)
        except ValueError:
            left_out.append(f"{key} ({type(part).__name__})")
    if not shown:
        raise ValueError(
            f"nothing of this observation can be shown to a network: {', '.join(left_out) or 'it is empty'}"
        )
    if left_out:
        logging.warning("left out of the observation, for no network can be shown it: %s", ", ".join(left_out))

    def flat(part: Observations, batch: Any) -> np.ndarray:
        x = part.show(batch)
        x = x.reshape(len(x), -1)
        return x / np.float32(255) if x.dtype == np.uint8 else x

    def show(batch: Any) -> np.ndarray:
        return np.concatenate([flat(part, batch[key]) for key, part in shown.items()], axis=1)

    return Observations((sum(math.prod(part.shape) for part in shown.values()),), FLOAT, show)


def count(space: gymnasium.Space, observation: Any) -> int | None:
    """How many observations of a space a value holds, batched as Gymnasium's vector environments do; None: it is one
    observation alone.

    Raises:
      ValueError: it is neither.
    """
    if not isinstance(space, spaces.Dict | spaces.Tuple):
        shape, one = np.shape(observation), space.shape or ()
        if shape not in (one, (*shape[:1], *one)):
            raise ValueError(f"has the shape {shape}, and not {one}, or {('B', *one)} of a batch".replace("'", ""))
        return None if shape == one else shape[0]
    named, kind = isinstance(space, spaces.Dict), Mapping if isinstance(space, spaces.Dict) else tuple
    if not isinstance(observation, kind):
        raise ValueError(f"is a {type(observation).__name__}, and not a {'dict' if named else 'tuple'} of parts")
    parts = dict(space.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces))
    given = dict(observation.items() if isinstance(observation, Mapping) else enumerate(observation))
    counts: dict[Any, int | None] = {}
    for key, part in parts.items():
        # A part without a shape is left out of what is shown; whether one is lacking is seen when it is shown.
        if key in given and (part.shape is not None or isinstance(part, spaces.Dict | spaces.Tuple)):
            try:
                counts[key] = count(part, given[key])
            except ValueError as error:
                raise ValueError(f"in its part {key!r} {error}") from error
    if len(set(counts.values())) > 1:
        raise ValueError(f"has parts that are no batch of the same size: {counts}")
    return next(iter(counts.values()), None)


def actions(space: gymnasium.Space) -> Actions:
    """How a space's actions are chosen: of several choices at once, and of whole numbers, each is a factor.

    Raises:
      ValueError: there is no agent for such actions.
    """
    if isinstance(space, spaces.Discrete):
        return Actions(DiscreteActions(int(space.n)), lambda action: np.asarray(action, space.dtype) + space.start)
    if isinstance(space, spaces.MultiDiscrete):
        return _factors(space, space.nvec, np.asarray(space.start))
    if isinstance(space, spaces.MultiBinary):
        return _factors(space, np.full(space.shape, 2), np.zeros(space.shape, int))
    box = _box(space, "an action", "Discrete, MultiDiscrete, MultiBinary and Box")
    if np.issubdtype(box.dtype, np.floating):
        spec = BoundedActions(np.asarray(box.low, np.float32), np.asarray(box.high, np.float32))
        return Actions(spec, lambda action: np.asarray(action, box.dtype))
    low, sizes = box.low.astype(np.int64), box.high.astype(np.int64) - box.low.astype(np.int64) + 1
    if sizes.max() > MOST_CHOICES or sizes.min() < 1:
        raise ValueError(
            f"an action of whole numbers from {box.low.min()} to {box.high.max()} has too many choices: "
            f"{MOST_CHOICES} is the most for one number"
        )
    return _factors(box, sizes, low)


def _factors(space: gymnasium.Space, sizes: np.ndarray, starts: np.ndarray) -> Actions:
    spec = FactoredActions(tuple(int(size) for size in sizes.reshape(-1)))
    return Actions(
        spec,
        lambda action: (np.asarray(action).reshape(-1, *space.shape) + starts).astype(space.dtype),  # type: ignore[misc]
    )
