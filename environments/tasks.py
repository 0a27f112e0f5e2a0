"""Several tasks in one batch of environments, for an agent that learns all of them at once."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from agents.agent import BoundedActions, EnvironmentSpec
from environments.environment import Environment


def names(name: str) -> list[str]:
    """Splits an environment's name into its tasks: `A,B,C` has three, and a name without commas is its only task."""
    return name.split(",")


class Tasks(Environment):
    """The environments of N tasks, interleaved: environment i has task i mod N.

    Each task has a pool of environments, and the pools step one after another. `spec.max_episode_steps` bounds the
    episodes of all tasks: it is the largest of theirs, or None if a task's is not known.
    """

    def __init__(self, tasks: list[str], num_envs: int, seed: int, make: Callable[[str, int, int], Environment]):
        """Makes the pools by calling `make` with each task's name, its number of environments, and a seed of its own.

        Raises:
          ValueError: a task has no name or is named twice, `num_envs` is not a multiple of the number of tasks, or the
            tasks' observations or actions differ.
        """
        if not all(tasks) or len(set(tasks)) < len(tasks):
            raise ValueError(f"{','.join(tasks)!r} must name each task once, as in A,B")
        if num_envs % len(tasks):
            raise ValueError(
                f"{num_envs} environments are not a multiple of the {len(tasks)} tasks: give another --envs_per_actor"
            )
        self.num_envs = num_envs
        seeds = np.random.SeedSequence(seed).generate_state(len(tasks)) >> 1
        self._pools: list[Environment] = []
        try:
            for task, task_seed in zip(tasks, seeds.tolist(), strict=True):
                self._pools.append(make(task, num_envs // len(tasks), task_seed))
                _check_alike(tasks[0], self._pools[0].spec, task, self._pools[-1].spec)
        except ValueError:
            self.close()
            raise
        self.steps_per_second = self._pools[0].steps_per_second
        specs = [pool.spec for pool in self._pools]
        longest = [spec.max_episode_steps for spec in specs if spec.max_episode_steps is not None]
        self.spec = dataclasses.replace(
            specs[0],
            max_episode_steps=max(longest) if len(longest) == len(specs) else None,
            num_tasks=len(tasks),
            spaces=specs[0].spaces if all(spec.spaces == specs[0].spaces for spec in specs) else None,
        )

    def _interleaved(self, parts: list[Any]) -> np.ndarray:
        """Interleaves the tasks' arrays [B / N, ...] to [B, ...]: the first of each, the second of each, and so on."""
        return np.stack(parts, axis=1).reshape(self.num_envs, *parts[0].shape[1:])

    def _reset(self) -> np.ndarray:
        return self._interleaved([pool._reset() for pool in self._pools])

    def _step(self, action: np.ndarray, resets: np.ndarray) -> tuple[Any, ...]:
        count = len(self._pools)
        steps = [pool._step(action[i::count], resets[i::count]) for i, pool in enumerate(self._pools)]
        return tuple(self._interleaved(list(parts)) for parts in zip(*steps, strict=True))

    def logged(self) -> list[dict[str, float]]:
        count = len(self._pools)
        return [
            row | {"environment": count * row["environment"] + i}
            for i, pool in enumerate(self._pools)
            for row in pool.logged()
        ]

    def draw(self) -> np.ndarray:
        return self._pools[0].draw()

    def close(self) -> None:
        for pool in self._pools:
            pool.close()


def _check_alike(first: str, one: EnvironmentSpec, second: str, other: EnvironmentSpec) -> None:
    for what, a, b in (
        (
            "observations",
            f"{one.observation_dtype} {one.observation_shape}",
            f"{other.observation_dtype} {other.observation_shape}",
        ),
        ("actions", _describe(one.actions), _describe(other.actions)),
    ):
        if a != b:
            raise ValueError(f"tasks of one run must have the same {what}: {first} has {a}, {second} has {b}")


def _describe(actions: Any) -> str:
    if isinstance(actions, BoundedActions):
        return f"{actions.shape} from {actions.low.tolist()} to {actions.high.tolist()}"
    return str(actions)
