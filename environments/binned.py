"""Makes continuous actions discrete choices: each number of an action takes one of N evenly spaced values.

It is the discretisation of Tang and Agrawal 2020, https://arxiv.org/abs/1901.10500, section 4.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from agents.agent import BoundedActions, FactoredActions
from environments.environment import Environment
from environments.spaces import MOST_CHOICES


def parse(name: str) -> tuple[int, str]:
    """Splits `binned:N:NAME` into N and NAME.

    Raises:
      ValueError: N is even, below 3 or too large, or there is no NAME.
    """
    number, _, inner = name.removeprefix("binned:").partition(":")
    # N must be odd: otherwise no value would be at the centre, where torques are 0.
    whole = number.isdecimal() and len(number) <= len(str(MOST_CHOICES))
    if not whole or not 3 <= int(number) <= MOST_CHOICES or int(number) % 2 == 0 or not inner:
        raise ValueError(
            f"{name!r} is not binned:N:NAME with an odd N from 3 to {MOST_CHOICES}, as in binned:5:Pendulum-v1"
        )
    return int(number), inner


def chooser(actions: BoundedActions, num_bins: int) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the function from choices [B, F] to the actions that they stand for, float32 [B, *shape]."""
    # [N, F]
    values = np.linspace(actions.low.reshape(-1), actions.high.reshape(-1), num_bins, dtype=np.float32)
    factors = np.arange(values.shape[1])
    return lambda choices: values[choices, factors].reshape(-1, *actions.shape)


class Binned(Environment):
    """An environment whose continuous actions of F numbers became F factors, of N values from low to high each.

    Its `small` actions are 2 F + 1: all factors at their centres, and each factor alone at its low and at its high.
    """

    def __init__(self, continuous: Environment, num_bins: int):
        """Takes over `continuous`, and closes it when it is closed itself.

        Raises:
          ValueError: the actions of `continuous` are not continuous, or a bound is infinite.
        """
        self._continuous = continuous
        self.num_envs, self.steps_per_second = continuous.num_envs, continuous.steps_per_second
        actions = continuous.spec.actions
        if not isinstance(actions, BoundedActions):
            raise ValueError("binned:N:NAME needs an environment with continuous actions; use NAME alone")
        if not np.isfinite(actions.high - actions.low).all():
            raise ValueError(f"binned:N:NAME needs actions with finite bounds, not {actions.low} and {actions.high}")
        self._choose, num_factors = chooser(actions, num_bins), actions.low.size
        centre = (num_bins // 2,) * num_factors
        alone = [
            (*centre[:factor], end, *centre[factor + 1 :]) for factor in range(num_factors) for end in (0, num_bins - 1)
        ]
        self.spec = dataclasses.replace(
            continuous.spec, actions=FactoredActions((num_bins,) * num_factors, (centre, *alone))
        )

    def _reset(self) -> np.ndarray:
        return self._continuous._reset()

    def _step(self, action: np.ndarray, resets: np.ndarray) -> tuple[Any, ...]:
        return self._continuous._step(self._choose(action), resets)

    def logged(self) -> list[dict[str, float]]:
        return self._continuous.logged()

    def draw(self) -> np.ndarray:
        return self._continuous.draw()

    def close(self) -> None:
        self._continuous.close()
