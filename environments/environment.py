"""The batched environment that actors and evaluators step, whatever is behind it."""

import abc
import contextlib
import math
import pathlib
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from agents.agent import EnvironmentSpec, TimeStep

MOST_LETTERS = 300  # of what an error says


def _soft_asymmetric(reward: Any, xp: Any = np) -> Any:
    """Losses count less than gains: DMLab's rewards in Espeholt et al. 2018, https://arxiv.org/abs/1802.01561."""
    squeezed = xp.tanh(reward)
    return np.float32(0.3) * xp.minimum(squeezed, 0) + np.float32(5.0) * xp.maximum(squeezed, 0)


# What becomes of the rewards that agents see, by name; float32 [B] -> float32 [B]. `xp`: jax.numpy inside a program.
REWARD_CLIPS: dict[str, Callable[..., Any] | None] = {
    "none": None,
    "unit": lambda reward, xp=np: xp.clip(reward, -1.0, 1.0),
    "soft_asymmetric": _soft_asymmetric,
}


class Episodes(NamedTuple):
    """Episodes that ended, in the order in which they did: undiscounted, unclipped returns and lengths in actions.
    Where a lost life ends an episode it is the whole game that counts."""

    environments: list[int]
    returns: list[float]
    lengths: list[int]


class EnvironmentFailure(ValueError):
    """An environment raised something, or gave what nobody can learn from: one line for the person who mends it."""


def describe(error: BaseException) -> str:
    """An error in one line: its kind, its words, and the last place in code that is neither installed nor Shoal's."""
    if isinstance(error, EnvironmentFailure):
        return str(error)
    words = " ".join("".join(traceback.format_exception_only(error)).split())
    here = pathlib.Path(__file__).parent
    places = [
        f" ({path.name}, line {frame.lineno})"
        for frame in traceback.extract_tb(error.__traceback__)
        if (path := pathlib.Path(frame.filename)).parent != here and "site-packages" not in path.parts
    ]
    return words[:MOST_LETTERS] + "".join(places[-1:])


@contextlib.contextmanager
def making(name: str) -> Iterator[None]:
    """Whatever is raised while the environment `name` is made becomes an EnvironmentFailure: a module may end the
    interpreter, a constructor may raise anything."""
    try:
        yield
    except BaseException as error:
        raise EnvironmentFailure(f"environment {name} cannot be made: {describe(error)}") from error


class Environment(abc.ABC):
    """`num_envs` environments stepped together.

    An episode's last observation is delivered (`last`), the action that answers it is thrown away, and the row
    after it is the next episode's first, with reward 0. A subclass produces raw steps in `_reset` and `_step`; the
    bookkeeping of first, last, discount and returns is here, once; and so is the door through which nothing comes that
    is not finite or of another shape than the spec's.

    Agents see rewards as `reward_clip` makes them, in training and in evaluations alike: an LSTM may be fed them.
    Returns are of the rewards as they are.
    """

    spec: EnvironmentSpec
    num_envs: int
    # `environments.make` sets these two.
    name = "without a name"
    reward_clip = "none"  # one of REWARD_CLIPS
    steps_per_second = 30.0  # as people are to see it

    def reset(self) -> TimeStep:
        """Starts (only once, before the first step) and returns the episodes' first TimeStep.

        Raises:
          EnvironmentFailure: as `step` does.
        """
        batch = self.num_envs
        self._steps, self._shapes = 0, ((batch, *self.spec.observation_shape), (batch,))
        self._returns = np.zeros(batch, np.float64)
        self._lengths = np.zeros(batch, np.int64)
        self._episodes = Episodes([], [], [])
        self._last = np.zeros(batch, bool)
        self._over = np.ones(batch, bool)  # whether the next episode that opens begins a score, too
        self._clip = REWARD_CLIPS[self.reward_clip]
        reward = np.zeros(batch, np.float32)
        try:
            observation = self._reset()
            self._check(observation, reward)
        except BaseException as error:
            raise EnvironmentFailure(f"environment {self.name} failed at its reset: {describe(error)}") from error
        return TimeStep(observation, reward, np.ones(batch, np.float32), np.ones(batch, bool), self._last)

    def step(self, action: np.ndarray) -> TimeStep:
        """Steps every environment with `action` [B, ...] and returns the next TimeStep.

        Raises:
          EnvironmentFailure: an environment raised anything at all, or what it gave is not finite or of another shape.
        """
        first = self._last
        opening = np.count_nonzero(first)  # a quarter of the time of `any`
        self._steps += 1
        try:
            observation, reward, terminated, truncated, over = self._step(np.asarray(action), first)
            if opening:
                reward = np.where(first, np.float32(0.0), reward)
            self._check(observation, reward)
        except BaseException as error:
            raise EnvironmentFailure(
                f"environment {self.name} failed at its step {self._steps}: {describe(error)}"
            ) from error
        last = (terminated | truncated) & ~first
        discount = np.ones(self.num_envs, np.float32)
        self._returns += reward
        self._lengths += 1
        if opening:
            self._lengths[first] -= 1  # nobody acted
            self._returns[first & self._over] = 0.0
            self._lengths[first & self._over] = 0
        if np.count_nonzero(last):
            discount[terminated & last] = 0.0
            ended = over & last
            self._episodes.environments.extend(np.flatnonzero(ended).tolist())
            self._episodes.returns.extend(self._returns[ended].tolist())
            self._episodes.lengths.extend(self._lengths[ended].tolist())
        self._last, self._over = last, over
        if self._clip:
            reward = self._clip(reward)
        return TimeStep(observation, reward, discount, first, last)

    def _check(self, observation: np.ndarray, reward: np.ndarray) -> None:
        """Raises EnvironmentFailure unless these are finite and [B, ...]."""
        if (observation.shape, reward.shape) != self._shapes:
            raise EnvironmentFailure(
                f"observations and rewards have the shapes {observation.shape} and {reward.shape}, not "
                f"{self._shapes[0]} and {self._shapes[1]}"
            )
        # A sum of squares is finite only if all are, and takes half the time of looking at each.
        squares = float(reward.dot(reward))
        if observation.dtype.kind == "f":
            numbers = observation.ravel()
            squares += float(numbers.dot(numbers))
        if not math.isfinite(squares):
            _check_finite("observation", observation)
            _check_finite("reward", reward)

    def finished(self) -> Episodes:
        """The episodes that ended since the last call."""
        episodes, self._episodes = self._episodes, Episodes([], [], [])
        return episodes

    def logged(self) -> list[dict[str, float]]:
        """The rows that environments wanted to have kept since the last call, each with the number of its
        `environment`; of those that ask for nothing there are none."""
        return []

    @abc.abstractmethod
    def _reset(self) -> np.ndarray:
        """The first observations, [B, ...]."""

    @abc.abstractmethod
    def _step(self, action: np.ndarray, resets: np.ndarray) -> tuple[Any, Any, Any, Any, Any]:
        """(observation, reward, terminated, truncated, over), each [B, ...]. `over`: the game is, whose return is kept:
        for most it is where the episode ends; a lost life may end an episode and no game.

        Where `resets` is true the action is ignored, the observation opens a new episode and the rest is ignored.
        """

    def draw(self) -> np.ndarray:
        """A picture of the first environment as it is now, uint8 [height, width, 3], of environments that were made to
        be drawn. Whoever calls it has it raise anything, as `_step` may."""
        raise EnvironmentFailure("it has no pictures")

    def close(self) -> None:
        """Frees what the environments hold."""


def _check_finite(what: str, values: np.ndarray) -> None:
    """Raises EnvironmentFailure unless all are finite."""
    for index in np.argwhere(~np.isfinite(values)):
        number = values[tuple(index)]
        raise EnvironmentFailure(
            f"the {what} of environment {index[0]} (from 0 on, of {len(values)}) has {number} in it"
        )
