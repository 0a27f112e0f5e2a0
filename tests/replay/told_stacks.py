"""The stacked transitions that Counting-v0 should give if its observations were frames, for tests to compare with."""

import numpy as np

from agents.agent import Step, Transition
from replay.structures import Structure
from tests.replay.told_transitions import Told, stream

NUMBER = np.zeros((), np.float32)


def structure_of(stack: int, shape: tuple[int, ...]) -> Structure:
    frames = np.zeros((stack, *shape), np.uint8)
    return Structure(Transition(frames, np.zeros((), np.int32), NUMBER, NUMBER, frames))


def frame(observation) -> np.ndarray:
    """Returns the frame, uint8 [2, 3], of an observation (environment, episode, step)."""
    return np.stack([np.asarray(observation), 100 + np.asarray(observation)[::-1]]).astype(np.uint8)


def framed(num_envs: int, rows: int, first_environment: int = 0):
    """Yields the Steps of `rows` rows of environments that show frames."""
    for step in stream(first_environment + num_envs, rows):
        mine = Step(*(x[first_environment:] for x in step[:5]), {})
        yield mine._replace(observation=np.stack([frame(o) for o in mine.observation]))


def stacked(told: tuple[int, int, int], stack: int) -> np.ndarray:
    """Returns the frames of the episode's newest steps; where there are too few, its first frame is repeated."""
    environment, episode, step = told
    return np.stack([frame((environment, episode, max(0, step - lag))) for lag in reversed(range(stack))])


def check(sample: Transition, index: int, told: Told, stack: int) -> None:
    np.testing.assert_array_equal(sample.observation[index], stacked(told.observation, stack))
    np.testing.assert_array_equal(sample.next_observation[index], stacked(told.next_observation, stack))
    assert (sample.action[index], sample.reward[index], sample.discount[index]) == told[1:4]
