"""Sequences: which rows of an episode make an item, its padding, memory and priority, and how steps are counted."""

import itertools

import numpy as np
import pytest

from agents.agent import Sample, Sequences, Step, TableSpec, Version
from replay import server
from replay.channels import way
from replay.client import connect
from replay.rows import PULL_STEPS, Row
from replay.sampler import Replay
from replay.sequences import SequencePacking, SequenceWriter, steps_table_name
from tests.replay.told_sequences import (
    WINDOWS,
    Item,
    check,
    episodes,
    item_of,
    memory_before,
    sequences,
    structure_of,
    transitions,
)
from tests.replay.told_transitions import stream
from tests.waiting import until, within

WAIT = 60.0


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("environment", range(5))
def test_the_plain_definition_leaves_nothing_out_and_nothing_twice(window, environment):
    """Checks the plain definition of sequences, with which the other tests compare."""
    rows = 60
    items, over = sequences(environment, rows, window), max(e[0] for e, done in episodes(environment, rows) if not done)
    trained = [item[window.burn_in :] for item in items]
    covered = [{a for a, b in itertools.pairwise(t) if None not in (a, b)} for t in trained]
    assert {row for row in transitions(environment, rows) if row < over} <= set().union(*covered)
    assert len(set(items)) == len(items)
    for number, each in enumerate(covered):
        assert each - set().union(*covered[:number], *[set()]), "each item has something of its own"


def test_sequences_told_by_hand():
    """Environment 0's episodes have 1, 3 and 5 actions, and so 2, 4 and 6 rows."""
    assert sequences(0, 13, Sequences(2, 4, 2)) == [
        (None, None, 0, 1, None, None),
        (None, None, 2, 3, 4, 5),
        (None, None, 6, 7, 8, 9),
        (6, 7, 8, 9, 10, 11),
    ]
    assert sequences(0, 13, Sequences(0, 3, 2)) == [(0, 1, None), (2, 3, 4), (4, 5, None), (6, 7, 8), (8, 9, 10),
                                                    (10, 11, None)]  # fmt: skip
    assert sequences(0, 5, Sequences(3, 2, 1)) == [
        (None, None, None, 0, 1),
        (None, None, None, 2, 3),
        (None, None, 2, 3, 4),
    ]


class Written:
    """A table, its writer and the rows in it; by default a queue, so that each item can be read once, in order."""

    def __init__(self, serve, window: Sequences, priority=None, kind="queue"):
        self.window = window
        self.table = TableSpec("replay", window, kind, 10_000)
        self.structure = structure_of(window)
        self.packing = way(self.table).packing(self.table, self.structure)
        assert isinstance(self.packing, SequencePacking)
        self.client = serve(server.build_table(self.table, self.packing.structure), server.build_steps_table("replay"))
        self.writer = SequenceWriter(self.client, self.table, self.structure, priority)

    def write(self, environments: range, rows: int, params=None) -> list[bool]:
        pulls = []
        for row, step in enumerate(stream(environments.stop, rows)):
            mine = Step(
                *(x[environments.start :] for x in step[:5]), {"number": np.full(len(environments), row + 1, np.int32)}
            )
            memory = memory_before(row, environments)
            pulls.append(
                within(WAIT, "a row to be written", self.writer.append, Row(mine, memory, Version(0, 0), params))
            )
        for writer in [each.writer for each in self.writer._streams] + [self.writer._counter]:
            within(WAIT, "the last items to be written", writer.flush)
        return pulls

    def size(self, table: str = "replay") -> int:
        return self.client.server_info()[table].current_size

    def counted(self) -> int:
        return self.client.server_info()[steps_table_name("replay")].rate_limiter_info.insert_stats.completed

    def read(self) -> tuple[Sample, list[float]]:
        """Reads all items and their priorities."""
        samples = within(WAIT, "items", list, self.client.sample("replay", self.size(), emit_timesteps=False))
        columns = [np.stack(c) for c in zip(*(sample.data for sample in samples), strict=True)]
        return self.packing.sample(columns), [sample.info.priority for sample in samples]


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("num_envs", [1, 7])
def test_every_sequence_of_every_environment(serve, window, num_envs):
    rows = 45
    written = Written(serve, window)
    written.write(range(num_envs), rows)
    expected = {(e, item) for e in range(num_envs) for item in sequences(e, rows, window)}
    assert written.size() == len(expected)
    sample, priorities = written.read()
    assert sample.steps.observation.shape == (window.burn_in + window.length, len(expected), 3)
    assert sample.steps.first.dtype == np.bool_ and sample.memory.rows.dtype == np.int32
    for column in range(len(expected)):
        environment, item = item_of(sample, column)
        expected.remove((environment, item))
        check(sample, column, environment, item)
    assert not expected and set(priorities) == {1.0}


def test_an_actors_priorities_are_of_the_finished_sequences(serve):
    given = []

    def priority(params, sample):
        given.append(sample)
        return params * (1.0 + sample.steps.action.max(axis=0) + sample.memory.rows)

    window = Sequences(2, 4, 2)
    written = Written(serve, window, priority)
    written.write(range(6), 40, params=2.0)
    sample, priorities = written.read()
    assert priorities == (2.0 * (1.0 + sample.steps.action.max(axis=0) + sample.memory.rows)).tolist()
    columns = [(*item_of(part, c), part, c) for part in given for c in range(part.steps.reward.shape[1])]
    expected = {(e, item) for e in range(6) for item in sequences(e, 40, window)}
    assert len(columns) == len(expected) == len(priorities)
    for environment, item, part, column in columns:
        expected.remove((environment, item))
        check(part, column, environment, item)


@pytest.mark.parametrize("kind", ["uniform", "prioritized"])
def test_sequences_of_two_servers_are_sampled_as_they_were_written(serve, kind):
    window, rows = Sequences(2, 4, 2), 30

    def priority(params, sample):
        return 1.0 + sample.memory.rows % 3

    servers = [Written(serve, window, priority, kind) for _ in range(2)]
    batches = iter(Replay([w.client for w in servers], servers[0].table, servers[0].structure, 8))
    mine = [range(2), range(2, 5)]
    for written, environments in zip(servers, mine, strict=True):
        written.write(environments, rows)
    expected = [{(e, item) for e in each for item in sequences(e, rows, window)} for each in mine]
    sizes = [len(each) for each in expected]

    def weight(item: Item) -> float:
        opening = next(row for row in item if row is not None)
        return 1.0 + opening % 3 if kind == "prioritized" else 1.0

    sums, seen, steps = [sum(weight(item) for _, item in each) for each in expected], set(), 0
    counted = [period for written in servers if (period := written.counted() * window.period)]
    for _ in range(400):
        batch = within(WAIT, "a batch", next, batches)
        assert batch.sample.likelihood.dtype == np.float32
        for column in range(8):
            environment, item = item_of(batch.sample, column)
            assert (environment, item) in expected[column % 2], "servers take turns"
            check(batch.sample, column, environment, item)
            probability = weight(item) / sums[column % 2] / 2
            assert batch.sample.likelihood[column] == pytest.approx(sum(sizes) * probability, rel=1e-5)
            seen.add((environment, item))
        steps += batch.env_steps
        if len(seen) == sum(sizes) and steps == sum(counted):
            break
    assert len(seen) == sum(sizes)
    assert steps == sum(counted)


@pytest.mark.parametrize("window", WINDOWS)
def test_transitions_are_counted_to_less_than_a_period(serve, window):
    written = Written(serve, window)
    for rows in (7, 40):
        before = written.counted()
        written.writer = SequenceWriter(written.client, written.table, written.structure)
        written.write(range(4), rows)
        executed = sum(len(transitions(e, rows)) for e in range(4))
        assert written.counted() - before == executed // window.period
    assert written.size(steps_table_name("replay")) == 1, "however many were counted"


def test_actors_pull_after_so_many_transitions(serve):
    written = Written(serve, Sequences(0, 3, 2))
    pulls = written.write(range(20), 60)
    assert sum(pulls) == sum(len(transitions(e, 60)) for e in range(20)) // PULL_STEPS == 2


def test_a_restart_brings_back_sequences_and_counts(tmp_path):
    window, rows, counts = Sequences(2, 4, 2), 30, []
    path = tmp_path / "replay_0"
    spec = TableSpec("replay", window, "uniform", 10_000)
    packed = way(spec).packing(spec, structure_of(window))

    def tables():
        return [server.build_table(spec, packed.structure), server.build_steps_table("replay")]

    expected = {(e, item) for e in range(3) for item in sequences(e, rows, window)}
    for turn in range(2):
        running = server.serve(tables(), None, path)
        try:
            client = connect(f"localhost:{running.port}", 30)
            written = Written(lambda *_, client=client: client, window, kind="uniform")
            batches = Replay([client], written.table, written.structure, 16)
            if turn:
                for _, batch in zip(range(10), batches, strict=False):
                    for column in range(16):
                        environment, item = item_of(batch.sample, column)
                        assert (environment, item) in expected
                        check(batch.sample, column, environment, item)
                    assert not batch.env_steps, "what was there before is counted already"
            written.write(range(3), rows)
            counts.append((written.size(), written.counted()))
            within(WAIT, "the checkpoint", server.save_tables, client)
        finally:
            running.stop()
    executed = sum(len(transitions(e, rows)) for e in range(3))
    assert counts == [(len(expected) * turn, executed // 2 * turn) for turn in (1, 2)]
    with pytest.raises(ValueError, match="steps's size is 1, not None"):
        server.serve(tables()[:1], None, path)


def test_sequences_that_do_not_overlap_are_refused(serve):
    with pytest.raises(ValueError, match="overlap by at least one row"):
        Written(serve, Sequences(0, 4, 4))


def test_the_writer_waits_for_room_and_goes_on_when_told_to_stop(serve):
    window = Sequences(0, 2, 1)
    table = TableSpec("replay", window, "queue", 3)
    structure = structure_of(window)
    packed = way(table).packing(table, structure)
    client = serve(server.build_table(table, packed.structure), server.build_steps_table("replay"))
    asked = []

    def stopped() -> bool:
        asked[-1] += 1
        return asked[-1] > 1

    writer = SequenceWriter(client, table, structure, stopped=stopped)
    for row, step in enumerate(stream(1, 60)):
        asked.append(0)
        mine = step._replace(extras={"number": np.full(1, row + 1, np.int32)})
        memory = memory_before(row, range(1))
        within(WAIT, "a row to be written", writer.append, Row(mine, memory, Version(0, 0)))
        if asked[-1] > 1:
            break
    assert asked[-1] == 2
    until(lambda: client.server_info()["replay"].current_size == 3, WAIT, "the table is full")
