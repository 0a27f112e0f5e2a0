"""A queue of whole episodes: each is one item, which is in the table as soon as the episode is known to be over, and
is taken once."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from agents.agent import Sequences, Step, TableSpec, Version, WholeEpisodes
from replay import server
from replay.channels import columns, way
from replay.episodes import EpisodeWriter
from replay.reverb_carrier import ReverbQueue
from replay.rows import Batch, Row, never
from tests.replay.told_sequences import (
    Item,
    check,
    episodes,
    item_of,
    memory_before,
    sequences,
    structure_of,
)
from tests.replay.told_transitions import stream
from tests.waiting import until, within

WAIT = 60.0
EPISODES = WholeEpisodes(5)  # episodes of Counting-v0 have at most 5 actions
LENGTH = EPISODES.max_steps + 1


def as_sequences(window: WholeEpisodes) -> Sequences:
    """Returns the window of sequences that are whole episodes."""
    return Sequences(burn_in=0, length=window.max_steps + 1, period=window.max_steps)


def completed(num_envs: int, rows: int) -> list[tuple[int, int, Item]]:
    """Returns (the row that completes it, environment, rows and padding) of each episode, in the order of the ends."""
    told = []
    for environment in range(num_envs):
        for episode, over in episodes(environment, rows):
            full = len(episode) == LENGTH
            if full or over:  # the end of a shorter one shows only in the next episode's first row
                padding = (None,) * (LENGTH - len(episode))
                told.append((episode[-1] + (not full), environment, (*episode, *padding)))
    return sorted(told, key=lambda each: each[:2])


class Written:
    """A queue and its writer."""

    def __init__(
        self,
        serve,
        window: WholeEpisodes = EPISODES,
        max_size: int = 10_000,
        stopped: Callable[[], bool] = never,
    ):
        self.table, self.structure = TableSpec("queue", window, "queue", max_size), structure_of(as_sequences(window))
        self.client = serve(server.build_table(self.table, columns(self.table, self.structure)))
        queue = ReverbQueue(self.client, "queue", stopped)
        self.writer = way(self.table).writer(queue, self.table, self.structure)
        assert isinstance(self.writer, EpisodeWriter)

    def write(self, num_envs: int, rows: int) -> list[tuple[bool, int]]:
        """Writes rows; returns for each what the writer returned and how many items there were then."""
        told = []
        for row, step in enumerate(stream(num_envs, rows)):
            mine = Step(*step[:5], {"number": np.full(num_envs, row + 1, np.int32)})
            memory = memory_before(row, range(num_envs))
            sent = within(WAIT, "a row to be written", self.writer.append, Row(mine, memory, Version(0, 0)))
            told.append((sent, self.size()))
        return told

    def size(self) -> int:
        return self.client.server_info()["queue"].current_size

    def batches(self, batch_size: int) -> Iterator[Batch]:
        return way(self.table).batches(ReverbQueue(self.client, "queue"), self.table, self.structure, batch_size)


def test_an_episode_is_one_sequence():
    """Compares with the plain definition of sequences that tests/replay/test_sequences.py checks."""
    for environment in range(7):
        mine = [item for _, e, item in completed(7, 45) if e == environment]
        assert mine == sequences(environment, 45, as_sequences(EPISODES))
        lengths = {sum(row is not None for row in item) for item in mine}
        assert min(lengths) < LENGTH == max(lengths)


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
    batches = written.batches(batch_size)
    taken: list[tuple[int, Item]] = []
    for _ in range(len(expected) // batch_size):
        batch = within(WAIT, "a batch", next, batches)
        assert batch.sample.steps.observation.shape == (6, batch_size, 3) and batch.sample.likelihood == ()
        assert batch.learner_steps is None and 0 < batch.env_steps <= 5 * batch_size
        for column in range(batch_size):
            environment, item = item_of(batch.sample, column)
            check(batch.sample, column, environment, item)
            taken.append((environment, item))
    assert len(taken) >= 8
    # Episodes that end in the same row may be in the table in any order.
    by_row = [{each[1:] for each in expected if each[0] == row} for row in range(rows)]
    for done in by_row:
        now, taken = set(taken[: len(done)]), taken[len(done) :]
        assert now <= done and (len(now) == len(done) or not taken)
    assert written.size() == len(expected) % batch_size


def test_steps_are_counted_as_they_are_learnt_from(serve):
    written = Written(serve)
    written.write(5, 45)
    expected = completed(5, 45)
    batches = written.batches(1)
    counts = [within(WAIT, "a batch", next, batches).env_steps for _ in expected]
    assert sorted(counts) == sorted(sum(row is not None for row in item) - 1 for *_, item in expected)
    assert written.size() == 0


def test_the_writer_waits_for_room_and_goes_on_when_told_to_stop(serve):
    asked: list[int] = []

    def stopped() -> bool:
        asked.append(written.size())
        return asked.count(3) > 2  # once the table is full, the writer asks every second

    written = Written(serve, max_size=3, stopped=stopped)
    written.write(1, 20)
    until(lambda: written.size() == 3, WAIT, "the table is full")
    assert asked.count(3) > 2


def test_an_episode_that_is_too_long_is_refused(serve):
    written = Written(serve, WholeEpisodes(4))
    with pytest.raises(ValueError, match=r"more than 4 actions: give a larger --config\.max_episode_steps"):
        written.write(7, 45)
