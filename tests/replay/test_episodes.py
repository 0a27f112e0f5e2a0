"""A queue of whole episodes: each is one item, in the table as soon as it is known to be over, and taken once."""

from collections.abc import Callable

import numpy as np
import pytest

from agents.agent import Sequences, Step, TableSpec
from replay import server
from replay.items import packing
from replay.sampler import sample_episodes
from replay.writer import EpisodeWriter, make_writer
from tests.replay.test_sequences import (
    WAIT,
    Item,
    check,
    episodes,
    item_of,
    memory_before,
    sequences,
    structure_of,
)
from tests.replay.test_transitions import stream
from tests.waiting import until, within

EPISODES = Sequences(burn_in=0, length=6, period=5)  # Counting-v0's have 5 actions at most


def completed(num_envs: int, rows: int) -> list[tuple[int, int, Item]]:
    """(the row that completes it, environment, rows and padding) of each episode, in the order in which they end."""
    told = []
    for environment in range(num_envs):
        for episode, over in episodes(environment, rows):
            full = len(episode) == EPISODES.length
            if full or over:  # of a shorter one only the next episode's first row tells that it is over
                padding = (None,) * (EPISODES.length - len(episode))
                told.append((episode[-1] + (not full), environment, (*episode, *padding)))
    return sorted(told, key=lambda each: each[:2])


class Written:
    """A queue and its writer."""

    def __init__(self, serve, window: Sequences = EPISODES, max_size: int = 10_000):
        self.table, self.structure = TableSpec("queue", window, "queue", max_size), structure_of(window)
        self.client = serve(server.build_table(self.table, packing(window, self.structure).structure))
        self.writer = make_writer(self.client, self.table, self.structure, None)
        assert isinstance(self.writer, EpisodeWriter)

    def write(self, num_envs: int, rows: int, stopped: Callable[[], bool] = lambda: False) -> list[tuple[bool, int]]:
        """After each row, what the writer returned and how many items there are."""
        told = []
        for row, step in enumerate(stream(num_envs, rows)):
            mine = Step(*step[:5], {"number": np.full(num_envs, row + 1, np.int32)})
            memory = memory_before(row, range(num_envs))
            sent = within(WAIT, "a row to be written", self.writer.append, mine, memory, 0, None, stopped)
            told.append((sent, self.size()))
        return told

    def size(self) -> int:
        return self.client.server_info()["queue"].current_size


def test_an_episode_is_one_sequence():
    """By the plain definition of sequences that tests/replay/test_sequences.py has."""
    for environment in range(7):
        mine = [item for _, e, item in completed(7, 45) if e == environment]
        assert mine == sequences(environment, 45, EPISODES)
        lengths = {sum(row is not None for row in item) for item in mine}
        assert min(lengths) < EPISODES.length == max(lengths)


@pytest.mark.parametrize("num_envs", [1, 7])
def test_each_episode_is_taken_once_in_order_and_to_the_last_number(serve, num_envs):
    rows, batch_size = 45, 4
    written = Written(serve)
    expected, size = completed(num_envs, rows), 0
    for row, (sent, now) in enumerate(written.write(num_envs, rows)):
        new = sum(at == row for at, *_ in expected)
        size += new
        assert sent == (new > 0), "then it is time to pull parameters"
        assert now == size, "none waits in the writer"
    batches = sample_episodes(written.client, written.table, written.structure, batch_size)
    taken: list[tuple[int, Item]] = []
    for _ in range(len(expected) // batch_size):
        batch = within(WAIT, "a batch", next, batches)
        assert batch.sample.steps.observation.shape == (6, batch_size, 3) and batch.sample.likelihood == ()
        assert batch.learner_steps is None and batch.rows == 5 * batch_size
        for column in range(batch_size):
            environment, item = item_of(batch.sample, column)
            check(batch.sample, column, environment, item)
            taken.append((environment, item))
    assert len(taken) >= 8
    # Episodes that end with the same row are in the table in any order.
    by_row = [{each[1:] for each in expected if each[0] == row} for row in range(rows)]
    for done in by_row:
        now, taken = set(taken[: len(done)]), taken[len(done) :]
        assert now <= done and (len(now) == len(done) or not taken)
    assert written.size() == len(expected) % batch_size


def test_steps_are_counted_as_they_are_learnt_from(serve):
    written = Written(serve)
    written.write(5, 45)
    expected = completed(5, 45)
    batches = sample_episodes(written.client, written.table, written.structure, 1)
    counts = [within(WAIT, "a batch", next, batches).env_steps for _ in expected]
    assert sorted(counts) == sorted(sum(row is not None for row in item) - 1 for *_, item in expected)
    assert written.size() == 0


def test_the_writer_waits_for_room_and_goes_on_when_told_to_stop(serve):
    written, asked = Written(serve, max_size=3), []

    def stopped() -> bool:
        asked.append(written.size())
        return asked.count(3) > 2  # full: then it asks each second

    written.write(1, 20, stopped)
    until(lambda: written.size() == 3, WAIT, "the table is full")
    assert asked.count(3) > 2


def test_an_episode_that_is_too_long_is_refused(serve):
    written = Written(serve, Sequences(burn_in=0, length=5, period=4))
    with pytest.raises(ValueError, match="more than 4 actions: give a larger max_episode_steps"):
        written.write(7, 45)


def test_sequences_that_are_no_whole_episodes_are_refused(serve):
    with pytest.raises(ValueError, match="a queue's sequences are whole episodes, which"):
        Written(serve, Sequences(2, 4, 2))
