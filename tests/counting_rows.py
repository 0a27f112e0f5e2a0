"""Counting-v0 row by row, without arrays. Tests compare the real environment, and windows of its rows, with these."""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

from environments.counting import episode_length, terminates


class Row(NamedTuple):
    """What one environment returns at one time step."""

    observation: tuple[int, int, int]  # environment, episode, step
    reward: float  # the reward that arrives with the observation
    discount: float  # the discount that arrives with it
    first: bool
    last: bool


def rows_of(environment: int) -> Iterator[Row]:
    for episode in itertools.count():
        length = episode_length(environment, episode)
        for step in range(length + 1):
            yield Row(
                observation=(environment, episode, step),
                reward=10.0 * episode + step if step > 0 else 0.0,
                discount=0.0 if step == length and terminates(environment, episode) else 1.0,
                first=step == 0,
                last=step == length,
            )


def first_rows(environment: int, count: int) -> list[Row]:
    return list(itertools.islice(rows_of(environment), count))
