"""The n-step transitions that Counting-v0 should give, for tests to compare with: computed by a loop over one
environment at a time in plain notation."""

from typing import NamedTuple

import numpy as np

from agents.agent import Step, Transition
from environments.counting import CountingEnvironment
from tests.counting_rows import first_rows

GAMMA = 0.5  # a power of two, so that all sums are exact


class Told(NamedTuple):
    """A transition in plain numbers."""

    observation: tuple[int, int, int]
    action: int
    reward: float
    discount: float
    next_observation: tuple[int, int, int]


def action_in(environment: int, row: int) -> int:
    return 100 * environment + row


def windows(environment: int, rows: int, n: int, gamma: float = GAMMA) -> list[tuple[int, Told]]:
    """Returns (the row that completes it, the transition) of each window in the first `rows` rows, the oldest first."""
    told, done = first_rows(environment, rows), []
    for start in range(rows - 1):
        if told[start].last:
            continue  # its action is thrown away
        reward, discount, end = 0.0, 1.0, start
        while end < rows - 1 and end < start + n and not told[end].last:
            end += 1
            reward += discount * told[end].reward
            discount *= gamma * told[end].discount
        short = end < start + n
        if short and not told[end].last:
            continue  # the window is still open
        completed = end + short  # that an episode has ended is known from the first row of the next
        if completed < rows:
            action = action_in(environment, start)
            done.append((completed, Told(told[start].observation, action, reward, discount, told[end].observation)))
    return done


def stream(num_envs: int, rows: int):
    """Yields the Steps of `rows` rows."""
    environment = CountingEnvironment(num_envs)
    timestep = environment.reset()
    for row in range(rows):
        action = np.array([action_in(e, row) for e in range(num_envs)], np.int32)
        after = environment.step(action)
        yield Step(timestep.observation, action, after.reward, after.discount, timestep.first, {})
        timestep = after


def tell(transition: Transition) -> list[Told]:
    """Returns each transition of a batch in plain numbers."""
    return [
        Told(tuple(o.astype(int).tolist()), int(a), float(r), float(d), tuple(n.astype(int).tolist()))
        for o, a, r, d, n in zip(*map(np.asarray, transition), strict=True)
    ]
