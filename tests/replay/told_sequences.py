"""The sequences that Counting-v0 should give, computed row by row in plain Python for tests to compare with."""

from typing import NamedTuple

import jax
import numpy as np

from agents.agent import Sample, Sequences, Step
from replay.structures import Structure
from tests.counting_rows import first_rows
from tests.replay.told_transitions import action_in

WINDOWS = [Sequences(2, 4, 2), Sequences(0, 3, 2), Sequences(3, 2, 1), Sequences(1, 6, 5), Sequences(5, 3, 1)]
Item = tuple[int | None, ...]  # the rows of a sequence; None: padding


class Memory(NamedTuple):
    rows: np.ndarray  # int32 [B], the number of rows before
    state: np.ndarray  # float32 [B, 2]
    nothing: tuple = ()


def memory_before(row: int, environments) -> Memory:
    environments = np.asarray(environments)
    state = np.stack([environments + 0.5, np.full(len(environments), -row)], axis=1)
    return Memory(np.full(len(environments), row, np.int32), state.astype(np.float32))


def episodes(environment: int, rows: int) -> list[tuple[list[int], bool]]:
    """Returns the rows of each episode in an environment's first `rows` rows, and whether each is known to be over."""
    told, found = first_rows(environment, rows), []
    for row in range(rows):
        if told[row].first:
            found.append([])
        found[-1].append(row)
    return [(each, number < len(found) - 1) for number, each in enumerate(found)]


def sequences(environment: int, rows: int, window: Sequences) -> list[Item]:
    """Returns the items that an environment's first `rows` rows give, the oldest first."""
    items: list[Item] = []
    for episode, over in episodes(environment, rows):
        start = covered = 0  # where the next item starts; how many rows the items so far cover
        while start + window.length <= len(episode) or (over and covered < len(episode)):
            places = range(start - window.burn_in, start + window.length)
            items.append(tuple(episode[p] if 0 <= p < len(episode) else None for p in places))
            covered, start = start + window.length, start + window.period
    return items


def transitions(environment: int, rows: int) -> set[int]:
    """Returns the rows whose action is known to have been executed: the next row does not open an episode."""
    told = first_rows(environment, rows)
    return {row for row in range(rows - 1) if not told[row + 1].first}


def structure_of(window: Sequences) -> Structure:
    def rows(dtype, *shape):
        return np.zeros((window.burn_in + window.length, *shape), dtype)

    step = Step(
        rows(np.float32, 3),
        rows(np.int32),
        rows(np.float32),
        rows(np.float32),
        rows(np.bool_),
        {"number": rows(np.int32)},
    )
    return Structure(Sample(step, jax.tree.map(lambda x: x[0], memory_before(0, [0]))))


def item_of(sample: Sample, column: int) -> tuple[int, Item]:
    """Returns the environment and the rows of a sequence, as its own memory and extras tell them."""
    numbers = sample.steps.extras["number"][:, column].tolist()
    return int(sample.memory.state[column, 0]), tuple(number - 1 if number else None for number in numbers)


def check(sample: Sample, column: int, environment: int, item: Item) -> None:
    """Asserts that column `column` of a batch is this item, to the last number."""
    told = first_rows(environment, max(r for r in item if r is not None) + 2)
    steps = jax.tree.map(lambda x: x[:, column], sample.steps)
    for t, row in enumerate(item):
        at = jax.tree.map(lambda x, t=t: x[t], steps)
        if row is None:
            assert at.first and not any(np.any(x) for x in jax.tree.leaves(at._replace(first=False))), "padding"
            continue
        assert tuple(at.observation.tolist()) == told[row].observation
        assert (at.action, at.first, at.extras["number"]) == (action_in(environment, row), told[row].first, row + 1)
        assert (at.reward, at.discount) == (told[row + 1].reward, told[row + 1].discount), "those that arrive next"
    opening = next(row for row in item if row is not None)
    expected = jax.tree.map(lambda x: x[0], memory_before(opening, [environment]))
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(lambda x: x[column], sample.memory), expected)
