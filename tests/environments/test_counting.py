"""Counting-v0, and through it the bookkeeping that every Environment shares."""

import numpy as np
import pytest

import environments
from environments.counting import CountingEnvironment, episode_length
from tests.counting_rows import first_rows

NUM_ENVS, ROWS = 7, 60


@pytest.fixture(scope="module")
def timesteps():
    environment = environments.make("Counting-v0", NUM_ENVS, seed=0)
    return [environment.reset()] + [environment.step(np.zeros(NUM_ENVS, np.int32)) for _ in range(ROWS - 1)]


@pytest.mark.parametrize("field", ["observation", "reward", "discount", "first", "last"])
def test_every_row_says_exactly_what_the_naive_rows_say(timesteps, field):
    got = np.stack([getattr(timestep, field) for timestep in timesteps], axis=1)
    expected = [[getattr(row, field) for row in first_rows(i, ROWS)] for i in range(NUM_ENVS)]
    np.testing.assert_array_equal(got, expected)


def test_the_naive_rows_hold_every_kind_of_end():
    """Without every kind of end, the test above would check less than it seems to."""
    rows = [row for i in range(NUM_ENVS) for row in first_rows(i, ROWS)]
    assert {row.discount for row in rows if row.last} == {0.0, 1.0}
    assert {episode_length(i, episode) for i in range(NUM_ENVS) for episode in range(5)} == {1, 2, 3, 4, 5}


def test_first_environment_offsets_what_is_told():
    environment = CountingEnvironment(2, first_environment=5)
    environment.reset()
    for row in range(1, 20):
        observation = environment.step(np.zeros(2, np.int32)).observation
        np.testing.assert_array_equal(observation, [first_rows(5 + i, 20)[row].observation for i in range(2)])


def test_finished_episodes_have_exact_returns_and_lengths():
    environment = CountingEnvironment(NUM_ENVS)
    environment.reset()
    episode_of = np.zeros(NUM_ENVS, int)
    for row in range(1, ROWS):
        environment.step(np.zeros(NUM_ENVS, np.int32))
        expected = [(i, episode_of[i]) for i in range(NUM_ENVS) if first_rows(i, ROWS)[row].last]
        finished = environment.finished()
        assert finished.environments == [i for i, _ in expected]
        lengths = [episode_length(i, e) for i, e in expected]
        assert finished.lengths == lengths
        # The rewards of episode e are 10 e + 1, 10 e + 2, ...: the row that opens the next episode adds none.
        assert finished.returns == [10 * e * n + n * (n + 1) / 2 for (_, e), n in zip(expected, lengths, strict=True)]
        for i, _ in expected:
            episode_of[i] += 1
    assert episode_of.min() > 5


def test_finished_keeps_episodes_until_asked_and_tells_them_once():
    environment = CountingEnvironment(1)
    environment.reset()
    for _ in range(ROWS):
        environment.step(np.zeros(1, np.int32))
    lengths = environment.finished().lengths
    assert len(lengths) > 5
    assert lengths == [episode_length(0, episode) for episode in range(len(lengths))]
    assert environment.finished() == ([], [], [])


def test_what_a_backend_says_on_a_reset_is_ignored():
    class Noisy(CountingEnvironment):
        def _step(self, action, resets):
            observation, reward, *ends = super()._step(action, resets)
            return observation, np.where(resets, 99.0, reward), *(each | resets for each in ends)

    noisy, quiet = Noisy(NUM_ENVS), CountingEnvironment(NUM_ENVS)
    noisy.reset(), quiet.reset()
    for _ in range(ROWS):
        for got, expected in zip(noisy.step(np.zeros(NUM_ENVS)), quiet.step(np.zeros(NUM_ENVS)), strict=True):
            np.testing.assert_array_equal(got, expected)
    assert noisy.finished() == quiet.finished()
