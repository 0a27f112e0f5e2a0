"""Environments that break, each in its own way at its own place: `gymnasium:tests.environments.shaky:PLACE-WAY-v0`.

They do not break where the environment variable SHOAL_TEST_SOUND is set.
"""

import functools
import multiprocessing
import os
import warnings

import gymnasium
import numpy as np


class Odd(BaseException):
    """An exception that `except Exception` does not catch and that cannot even be printed."""

    def __str__(self):
        raise RuntimeError("nothing to print")


class Several(Exception):
    """An exception that cannot be pickled and whose message has several lines."""

    def __init__(self, one, two):
        super().__init__(f"{one}\n\n{two}")


def warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.warn("a warning that is an error", stacklevel=1)


ERRORS = {
    "RuntimeError": RuntimeError("physics exploded"),
    "ValueError": ValueError("a value"),
    "FileNotFoundError": FileNotFoundError(2, "no such file", "level.xml"),
    "AssertionError": AssertionError(),
    "MemoryError": MemoryError(),
    "StopIteration": StopIteration(3),
    "SystemExit": SystemExit(0),
    "KeyboardInterrupt": KeyboardInterrupt(),
    "GeneratorExit": GeneratorExit(),
    "Odd": Odd(),
    "Several": Several("one line", "and another"),
}
OBSERVATIONS = {
    "nan": np.array([0.0, np.nan]),
    "infinity": np.array([-np.inf, 0.0]),
    "overflow": np.array([0.0, 1e300]),  # beyond float32
    "nothing": None,
    "shape": np.zeros(3),
    "words": "up and left",
}
REWARDS = {
    "nanReward": float("nan"),
    "infiniteReward": -np.inf,
    "noReward": None,
    "vectorReward": np.array([1.0, 2.0]),
    "wordyReward": "much",
}
RESULTS = {"noResult": None, "fourResults": (np.zeros(2), 0.0, False, {})}
PLACES = {"constructor": 0, "reset": 0, "step1": 1, "step8": 8, "secondReset": 11}  # place -> the step that reaches it
LENGTH = 10  # steps in an episode


def ways(place: str) -> list[str]:
    """Returns the ways in which an environment can break at a place."""
    values = (
        [] if "constructor" in place else [*OBSERVATIONS] if "eset" in place else [*OBSERVATIONS, *REWARDS, *RESULTS]
    )
    return [*ERRORS, "warning", *values]


class Shaky(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, place, way):
        self._place, self._way, self._resets = place, way, 0
        self._broken("constructor")
        if multiprocessing.parent_process():
            self._broken("constructorElsewhere")

    def _broken(self, place):
        """Returns whether the environment is to return a broken value here; raises if its way to break is an error."""
        if place != self._place or os.environ.get("SHOAL_TEST_SOUND"):
            return False
        if self._way == "warning":
            warn()
        if self._way in ERRORS:
            raise ERRORS[self._way]
        return True

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._time = 0
        self._resets += 1
        broken = self._broken({1: "reset", 2: "secondReset"}.get(self._resets))
        return OBSERVATIONS[self._way] if broken else np.zeros(2, np.float32), {}

    def step(self, action):
        self._time += 1
        result = [np.zeros(2, np.float32), 1.0, False, self._time == LENGTH, {}]
        if self._resets == 1 and self._broken(f"step{self._time}"):
            if self._way in RESULTS:
                return RESULTS[self._way]
            result[self._way in REWARDS] = (OBSERVATIONS | REWARDS)[self._way]
        return tuple(result)


for _place in ("constructorElsewhere", *PLACES):  # the first breaks in worker processes alone
    for _way in ways(_place):
        gymnasium.register(f"{_place}-{_way}-v0", functools.partial(Shaky, _place, _way))
