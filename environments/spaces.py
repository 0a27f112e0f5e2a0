"""Converts between Gymnasium's spaces and what agents see and do. All decisions about this are in this module.

Networks want numbers of order 1, or frames as bytes. So a choice among n becomes a one-hot vector of n numbers; whole
numbers between bounds are scaled to [-1, 1]; pictures become bytes, whatever their type; all other numbers become
float32 and keep their values. A Dict or Tuple becomes one vector of all its parts.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from absl import logging
from gymnasium import spaces

from agents.agent import BoundedActions, DiscreteActions, FactoredActions

LEAST_SIDE = 16  # pixels: an array of floats with a smaller side is no picture, but a board or a table
MOST_CHOICES = 4096  # the most choices that one number may have
# Bounds of whole numbers that are further apart than this are taken for no bounds. No choice of an action has more.
WIDEST = 2**16


class Observations(NamedTuple):
    """How observations of a space are shown to agents."""

    shape: tuple[int, ...]  # of one observation
    dtype: np.dtype  # uint8 or float32
    show: Callable[[Any], np.ndarray]  # a batch as Gymnasium's vector environments give it -> [B, *shape]


class Actions(NamedTuple):
    """How agents choose actions of a space."""

    spec: DiscreteActions | BoundedActions | FactoredActions
    take: Callable[[np.ndarray], np.ndarray]  # an agent's actions, [B, ...] -> those of Gymnasium's vector environments


FLOAT, BYTE = np.dtype(np.float32), np.dtype(np.uint8)


def observations(space: gymnasium.Space) -> Observations:
    """Returns how a space's observations are shown.

    Unsupported parts of a Dict or Tuple are left out, about which one warning is logged.

    Raises:
      ValueError: the space is not supported, or none of its parts is.
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
    if np.issubdtype(box.dtype, np.integer) and np.max(high - low) <= WIDEST:
        span = np.maximum(high - low, 1)
        return _numbers(box.shape, lambda x: 2 * (x - low) / span - 1)
    return _numbers(box.shape, lambda x: x)


def _box(space: gymnasium.Space, of: str, supported: str) -> spaces.Box:
    """Returns `space` as a Box; raises ValueError if it is of another kind, or has no numbers in it."""
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
            f"an observation that is one of {max(sizes)} choices would be shown as {max(sizes)} numbers, and "
            f"{MOST_CHOICES} is the most: wrap the environment so that it tells what the number means"
        )

    def show(batch: Any) -> np.ndarray:
        numbers = np.asarray(batch).reshape(len(batch), -1) - starts
        if ((numbers < 0) | (numbers >= sizes)).any():
            raise ValueError("has a number that its space does not have")
        bits = [numbers[:, i, None] == np.arange(size) for i, size in enumerate(sizes)]
        return np.concatenate(bits, axis=1).astype(np.float32)

    return Observations((int(sum(sizes)),), FLOAT, show)


def _picture(space: spaces.Box) -> Observations | None:
    """Returns how pictures are shown, as bytes; None if the space is not one of pictures.

    A picture has two axes or more and bounds from 0 to 255, or for floats also from 0 to 1. An axis of one channel is
    dropped.
    """
    low, high = float(np.min(space.low)), float(np.max(space.high))
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
            if not np.isfinite(frames).all():  # this must be checked here, since bytes cannot show it
                raise ValueError("holds numbers that are not finite")
            frames = np.clip(np.rint(frames * (255 / high)), 0, 255).astype(np.uint8)
        return frames.reshape(-1, *shape)

    return Observations(shape, BYTE, show)


@functools.cache  # once for each process, which may make an environment several times
def _warn_of_left_out(parts: str) -> None:
    logging.warning("these parts of the observation are left out, because they cannot be shown to a network: %s", parts)


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
            f"no part of this observation can be shown to a network: {', '.join(left_out) or 'it is empty'}"
        )
    if left_out:
        _warn_of_left_out(", ".join(left_out))

    def flat(part: Observations, batch: Any) -> np.ndarray:
        x = part.show(batch)
        x = x.reshape(len(x), -1)
        return x / np.float32(255) if x.dtype == np.uint8 else x

    def show(batch: Any) -> np.ndarray:
        return np.concatenate([flat(part, batch[key]) for key, part in shown.items()], axis=1)

    return Observations((sum(math.prod(part.shape) for part in shown.values()),), FLOAT, show)


def count(space: gymnasium.Space, observation: Any) -> int | None:
    """Returns the size of a batch of observations, as Gymnasium's vector environments make them; None if it is a single
    observation.

    Raises:
      ValueError: it is neither. The message is the end of a sentence that begins "An observation of NAME".
    """
    if not isinstance(space, spaces.Dict | spaces.Tuple):
        one = space.shape or ()
        try:
            shape = np.shape(observation)
        except ValueError as error:
            raise ValueError("is no array: its parts have different shapes (reset and step return more)") from error
        if shape not in (one, (*shape[:1], *one)):
            raise ValueError(f"has the shape {shape}, and not {one}, or {('B', *one)} of a batch".replace("'", ""))
        if shape == (0, *one):
            raise ValueError("is a batch of none")
        return None if shape == one else shape[0]
    named, kind = isinstance(space, spaces.Dict), Mapping if isinstance(space, spaces.Dict) else tuple
    if not isinstance(observation, kind):
        raise ValueError(f"is a {type(observation).__name__}, and not a {'dict' if named else 'tuple'} of parts")
    parts = dict(space.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces))
    given = dict(observation.items() if isinstance(observation, Mapping) else enumerate(observation))
    counts: dict[Any, int | None] = {}
    for key, part in parts.items():
        # Parts without a shape are not shown to agents. A part that is missing is found when the observation is shown.
        if key in given and (part.shape is not None or isinstance(part, spaces.Dict | spaces.Tuple)):
            try:
                counts[key] = count(part, given[key])
            except ValueError as error:
                raise ValueError(f"in its part {key!r} {error}") from error
    if len(set(counts.values())) > 1:
        raise ValueError(f"has parts that are not batches of the same size: {counts}")
    return next(iter(counts.values()), None)


def actions(space: gymnasium.Space) -> Actions:
    """Returns how a space's actions are chosen. In a space of several choices, or of whole numbers, each is a factor.

    Raises:
      ValueError: no agent can choose such actions.
    """
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        most = np.max(space.n if isinstance(space, spaces.Discrete) else space.nvec)
        if most > WIDEST:
            raise ValueError(f"an action that is one of {most:,} choices is too much for a network: at most {WIDEST:,}")
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
    if np.max(sizes) > MOST_CHOICES or np.min(sizes) < 1:
        raise ValueError(
            f"an action of whole numbers from {np.min(box.low)} to {np.max(box.high)} has too many choices: "
            f"{MOST_CHOICES} is the most for one number"
        )
    return _factors(box, sizes, low)


def _factors(space: gymnasium.Space, sizes: np.ndarray, starts: np.ndarray) -> Actions:
    spec = FactoredActions(tuple(int(size) for size in sizes.reshape(-1)))
    return Actions(
        spec,
        lambda action: (np.asarray(action).reshape(-1, *space.shape) + starts).astype(space.dtype),  # type: ignore[misc]
    )
