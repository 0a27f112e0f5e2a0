"""The base class of all batched environments, which actors and evaluators step."""

import abc
import contextlib
import math
import pathlib
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from agents.agent import EnvironmentSpec, TimeStep

MOST_LETTERS = 300  # an error's text is cut to so many


def _soft_asymmetric(reward: Any, xp: Any = np) -> Any:
    """Makes losses count less than gains: DMLab's rewards in Espeholt et al. 2018, https://arxiv.org/abs/1802.01561."""
    squeezed = xp.tanh(reward)
    return np.float32(0.3) * xp.minimum(squeezed, 0) + np.float32(5.0) * xp.maximum(squeezed, 0)


# How rewards are clipped for agents, by name: functions float32 [B] -> float32 [B], or None for no change. `xp` is the
# array module: numpy, or jax.numpy inside a compiled program.
REWARD_CLIPS: dict[str, Callable[..., Any] | None] = {
    "none": None,
    "unit": lambda reward, xp=np: xp.clip(reward, -1.0, 1.0),
    "soft_asymmetric": _soft_asymmetric,
}


class Episodes(NamedTuple):
    """Episodes that have ended, in the order in which they ended.

    Where a lost life ends an episode, an entry here is a whole game.
    """

    environments: list[int]  # the index of each one's environment
    returns: list[float]  # undiscounted sums of unclipped rewards
    lengths: list[int]  # in actions


class EnvironmentFailure(ValueError):
    """The error of an environment that raised something or returned unusable values: one line of text for the user."""


class Interruption(KeyboardInterrupt):
    """A signal ends this process. If that happens while an environment steps, the environment has not failed.

    It has the signal's number; any other KeyboardInterrupt may be the environment's own.
    """


def describe(error: BaseException) -> str:
    """Describes an error in one line: its type, its message, and the innermost line of code in its traceback that is
    neither in an installed package nor in environments/.

    Raises:
      Interruption: the error is one, which is no environment's.
    """
    if isinstance(error, Interruption):
        raise error
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


def check_limit(name: str, steps: Any) -> int:
    """Returns `steps`, the most that an episode has, as the user's keyword `name` gives it.

    Raises:
      ValueError: it is no whole number from 1.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"--env_kwargs: {name} is a number of steps: it must be a whole number from 1, not {steps}")
    return steps


@contextlib.contextmanager
def making(name: str) -> Iterator[None]:
    """Turns whatever is raised while the environment `name` is made into an EnvironmentFailure.

    A user's module may end the interpreter, and a constructor may raise anything.
    """
    try:
        yield
    except BaseException as error:
        raise EnvironmentFailure(f"environment {name} cannot be made: {describe(error)}") from error


class Environment(abc.ABC):
    """`num_envs` environments stepped together.

    An episode's last observation is delivered (`last`), the action that answers it is thrown away, and the row
    after it is the next episode's first, with reward 0. A subclass produces raw steps in `_reset` and `_step`. This
    class keeps track of first, last, discount and returns, and checks that observations and rewards are finite and have
    the spec's shapes.

    Agents see rewards clipped by `reward_clip`, in evaluations too, since an LSTM may be fed them. Returns are sums of
    unclipped rewards.
    """

    spec: EnvironmentSpec
    num_envs: int
    # `environments.make` sets the next two.
    name = "without a name"
    reward_clip = "none"  # one of REWARD_CLIPS
    steps_per_second = 30.0  # the speed at which videos show it

    def reset(self) -> TimeStep:
        """Starts the environments and returns the first TimeStep. It is called only once, before the first step.

        Raises:
          EnvironmentFailure: as for `step`.
        """
        batch = self.num_envs
        self._steps, self._shapes = 0, ((batch, *self.spec.observation_shape), (batch,))
        self._returns = np.zeros(batch, np.float64)
        self._lengths = np.zeros(batch, np.int64)
        self._episodes = Episodes([], [], [])
        self._last = np.zeros(batch, bool)
        self._over = np.ones(batch, bool)  # whether the next episode also begins a new game, whose return starts at 0
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
          EnvironmentFailure: an environment raised anything at all, or returned values that are not finite or do not
            have the spec's shape.
        """
        first = self._last
        opening = np.count_nonzero(first)  # takes a quarter of the time of `any`
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
            self._lengths[first] -= 1  # this step was a reset, not an action
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
        """Raises EnvironmentFailure unless both are finite and have the right shapes."""
        if (observation.shape, reward.shape) != self._shapes:
            raise EnvironmentFailure(
                f"observations and rewards have the shapes {observation.shape} and {reward.shape}, not "
                f"{self._shapes[0]} and {self._shapes[1]}"
            )
        # A sum of squares is finite only if all numbers are, and takes half the time of checking each.
        squares = float(reward.dot(reward))
        if observation.dtype.kind == "f":
            numbers = observation.ravel()
            squares += float(numbers.dot(numbers))
        if not math.isfinite(squares):
            _check_finite("observation", observation)
            _check_finite("reward", reward)

    def finished(self) -> Episodes:
        """Returns the episodes that have ended since the last call."""
        episodes, self._episodes = self._episodes, Episodes([], [], [])
        return episodes

    def logged(self) -> list[dict[str, float]]:
        """Returns the rows that environments have asked to log since the last call.

        Each row has the index of its `environment`. Most environments log nothing.
        """
        return []

    @abc.abstractmethod
    def _reset(self) -> np.ndarray:
        """Returns the first observations, [B, ...]."""

    @abc.abstractmethod
    def _step(self, action: np.ndarray, resets: np.ndarray) -> tuple[Any, Any, Any, Any, Any]:
        """Returns (observation, reward, terminated, truncated, over), each [B, ...].

        `over` says where a game has ended, whose return is then recorded. Mostly that is where the episode ends, but a
        lost life may end an episode without ending the game. Where `resets` is true the action is to be ignored and the
        observation is the first of a new episode; the caller ignores the other results there.
        """

    def draw(self) -> np.ndarray:
        """Returns a picture of the first environment as it is now, uint8 [height, width, 3].

        The environments must have been made with `drawn`. It may raise anything, as `_step` may, and the caller must
        handle it.
        """
        raise EnvironmentFailure("it has no pictures")

    def close(self) -> None:
        """Frees the environments' resources."""


def _check_finite(what: str, values: np.ndarray) -> None:
    """Raises EnvironmentFailure, naming the environment, unless all values are finite."""
    for index in np.argwhere(~np.isfinite(values)):
        number = values[tuple(index)]
        raise EnvironmentFailure(
            f"the {what} of environment {index[0]} (of {len(values)}, counted from 0) has {number} in it"
        )
