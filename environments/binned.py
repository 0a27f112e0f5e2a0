"""Continuous actions as choices: each number of an action takes one of N evenly spaced values.

As in Tang and Agrawal 2020, https://arxiv.org/abs/1901.10500, section 4.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from agents.agent import BoundedActions, FactoredActions
from environments.environment import Environment
from environments.spaces import MOST_CHOICES


def parse(name: str) -> tuple[int, str]:
    """`binned:N:NAME` -> N and NAME.

    Raises:
      ValueError: N is not odd, below 3 or too large, or there is no NAME.
    """
    number, _, inner = name.removeprefix("binned:").partition(":")
    # Odd: else no value is the centre, where torques are 0.
    whole = number.isdecimal() and len(number) <= len(str(MOST_CHOICES))
    if not whole or not 3 <= int(number) <= MOST_CHOICES or int(number) % 2 == 0 or not inner:
        raise ValueError(
            f"{name!r} is not binned:N:NAME with an odd N from 3 to {MOST_CHOICES}, as in binned:5:Pendulum-v1"
        )
    return int(number), inner


def chooser(actions: BoundedActions, num_bins: int) -> Callable[[np.ndarray], np.ndarray]:
    """How choices, [B, F], become the actions that they stand for, float32 [B, *shape]."""
    # [N, F]
    values = np.linspace(actions.low.reshape(-1), actions.high.reshape(-1), num_bins, dtype=np.float32)
    factors = np.arange(values.shape[1])
    return lambda choices: values[choices, factors].reshape(-1, *actions.shape)


class Binned(Environment):
    """An environment with bounded actions of F numbers, each now a factor of N values from its low to its high.

    `small` of its actions are 2 F + 1: every factor at its centre, and each alone at its low and at its high.
    """

    def __init__(self, continuous: Environment, num_bins: int):
        """Takes `continuous` over: closing this closes it.

        Raises:
          ValueError: its actions are not continuous, or a bound is infinite.
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
