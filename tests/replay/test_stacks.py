"""Stacked transitions: frames that are written once come back as the stacks that an agent acts on."""

import dataclasses

import envpool
import numpy as np
import pytest

import environments
from agents.agent import Sample, Stacks, Step, TableSpec, Transition, Version
from environments.envpool import NATURE
from replay import server
from replay.channels import way
from replay.client import connect
from replay.rows import PULL_STEPS, Row, never
from replay.sampler import Replay
from replay.stacks import IN_FLIGHT, StackedPacking, StackedTransitionWriter
from tests.replay.told_stacks import check, framed, structure_of
from tests.replay.told_transitions import GAMMA, windows
from tests.waiting import within

WAIT = 60.0


class Written:
    """A table, its writer and the rows in it; by default a queue, so that each item can be read once, in order."""

    def __init__(self, serve, window: Stacks, shape=(2, 3), priority=None, kind="queue"):
        self.table = TableSpec("replay", window, kind, 10_000)
        self.structure = structure_of(window.stack, shape)
        self.packing = way(self.table).packing(self.table, self.structure)
        assert isinstance(self.packing, StackedPacking)
        self.client = serve(server.build_table(self.table, self.packing.structure))
        self.writer = way(self.table).writer(self.client, self.table, self.structure, priority, never)
        assert isinstance(self.writer, StackedTransitionWriter)

    def write(self, steps, params=None) -> list[bool]:
        told = [
            within(WAIT, "a row to be written", self.writer.append, Row(step, (), Version(0, 0), params))
            for step in steps
        ]
        for stream_writer in self.writer._writers:
            within(WAIT, "the last items to be written", stream_writer.flush)
        return told

    def size(self) -> int:
        return self.client.server_info()["replay"].current_size

    def read(self, count: int) -> tuple[Transition, list[float]]:
        """Reads the `count` oldest items and their priorities."""
        samples = within(WAIT, "items", list, self.client.sample("replay", count, emit_timesteps=False))
        columns = [np.stack(c) for c in zip(*(sample.data for sample in samples), strict=True)]
        return self.packing.sample(columns).steps, [sample.info.priority for sample in samples]


@pytest.mark.parametrize(("n", "stack", "num_envs"), [(1, 2, 3), (1, 4, 1), (3, 4, 6), (5, 2, 4)])
def test_every_item_has_the_stacks_of_its_two_ends(serve, n, stack, num_envs):
    """Episodes have 1 to 5 steps, terminated or truncated: some are shorter than n or the stack, others longer."""
    rows = 45
    written = Written(serve, Stacks(n, GAMMA, stack))
    written.write(framed(num_envs, rows))
    expected = [told for e in range(num_envs) for _, told in windows(e, rows, n)]
    assert written.size() == len(expected) > 30
    transition, priorities = written.read(len(expected))
    assert transition.observation.shape == (len(expected), stack, 2, 3) and transition.observation.dtype == np.uint8
    by_start = {(told.observation[0], told.action): told for told in expected}
    assert len(by_start) == len(expected)
    for index in range(len(expected)):
        start = int(transition.observation[index, -1, 0, 0]), int(transition.action[index])
        check(transition, index, by_start.pop(start), stack)
    assert not by_start and set(priorities) == {1.0}


def test_items_of_several_servers_are_sampled_as_they_were_written(serve):
    """Each of two servers has its own environments. They take turns in a batch; the likelihood is the mixture's."""
    n, stack, rows = 3, 4, 40
    servers = [Written(serve, Stacks(n, GAMMA, stack), kind="uniform") for _ in range(2)]
    batches = iter(Replay([w.client for w in servers], servers[0].table, servers[0].structure, 16))
    expected = []
    for index, written in enumerate(servers):
        written.write(framed(index + 2, rows, 2 * index))
        mine = range(2 * index, 3 * index + 2)
        expected.append({(e, told.action): told for e in mine for _, told in windows(e, rows, n)})
    environments_of = [{e for e, _ in each} for each in expected]
    assert not environments_of[0] & environments_of[1]
    sizes, seen, counted = [len(each) for each in expected], set(), 0
    for _ in range(300):
        batch = within(WAIT, "a batch", next, batches)
        sample, transition = batch.sample, batch.sample.steps
        for index in range(16):
            start = int(transition.observation[index, -1, 0, 0]), int(transition.action[index])
            check(transition, index, expected[index % 2][start], stack)
            assert sample.likelihood[index] == pytest.approx(sum(sizes) / sizes[index % 2] / 2, rel=1e-5)
            seen.add(start)
        counted += batch.env_steps
        if len(seen) == sum(sizes) and counted == sum(sizes):
            break
    assert len(seen) == counted == sum(sizes)


def test_an_actors_priorities_are_of_the_stacked_items(serve):
    """Priorities are computed from the item as it will be when it is sampled, with the parameters at that time."""
    given = []

    def priority(params, transition):
        given.append(transition)
        return params * (1.0 + transition.action)

    written = Written(serve, Stacks(3, GAMMA, 4), priority=priority)
    written.write(framed(5, 40), params=2.0)
    count = written.size()
    transition, priorities = written.read(count)
    assert priorities == (2.0 * (1 + transition.action)).tolist()
    assert sum(len(part.reward) for part in given) == count
    told = Transition(*(np.concatenate(x) for x in zip(*given, strict=True)))

    def in_order(t):
        return [x[np.argsort(t.action, kind="stable")] for x in t]

    for ours, theirs in zip(in_order(told), in_order(transition), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_actors_pull_after_so_many_items(serve):
    written = Written(serve, Stacks(1, GAMMA, 2))
    pulls = written.write(framed(20, 60))
    transitions = sum(len(windows(e, 60, 1)) for e in range(20))
    assert sum(pulls) == transitions // PULL_STEPS == 2


def test_stacks_of_atari_equal_envpools_own(serve):
    """Compares stacks that went through the table, from the first reset, within episodes and across their starts. The
    game is Breakout because its random games are short. A lost life does not end an episode here: after it EnvPool's
    stack would go on, and ours would begin anew."""
    num_envs, stack = 2, 4
    ours = environments.make("Breakout-v5", num_envs, seed=5, evaluation=True)
    options = NATURE | {"stack_num": stack, "reward_clip": True, "episodic_life": False}
    theirs = envpool.make("Breakout-v5", env_type="gymnasium", num_envs=num_envs, seed=5, **options)
    written = Written(serve, Stacks(2, 1.0, stack), (84, 84))
    rng, opened = np.random.default_rng(0), np.zeros(num_envs, int)
    timestep, steps, stacks = ours.reset(), [], [theirs.reset()[0]]  # by row
    while (opened < 2).any():
        assert len(steps) < 1500, "random play loses in some 200 steps"
        for _ in range(20):
            action = rng.integers(4, size=num_envs).astype(np.int32)
            after = ours.step(action)
            stacks.append(theirs.step(action)[0])
            name = num_envs * len(steps) + np.arange(num_envs, dtype=np.int32)  # tells where an item comes from
            steps.append(Step(timestep.observation, name, after.reward, after.discount, timestep.first, {}))
            opened += timestep.first
            timestep = after
    ours.close()
    theirs.close()
    written.write(steps)
    count = written.size()
    assert count >= num_envs * (len(steps) - 4)
    while count:
        transition, _ = written.read(min(count, 100))
        count -= len(transition.reward)
        for index, (row, environment) in enumerate(divmod(name, num_envs) for name in transition.action.tolist()):
            later = row + (1 if steps[row + 2].first[environment] else 2)
            np.testing.assert_array_equal(transition.observation[index], stacks[row][environment])
            np.testing.assert_array_equal(transition.next_observation[index], stacks[later][environment])


def test_a_restarted_server_has_the_items_and_goes_on_counting(tmp_path):
    window = Stacks(2, GAMMA, 3)
    table = TableSpec("replay", window, "uniform", 1000)
    packed = way(table).packing(table, structure_of(3, (2, 3)))
    written, counts = [], []
    for _ in range(2):
        running = server.serve([server.build_table(table, packed.structure)], None, tmp_path / "replay_0")
        try:
            client = connect(f"localhost:{running.port}", 30)
            mine = Written(lambda _, client=client: client, window, kind="uniform")
            mine.write(framed(3, 20))
            info = client.server_info()["replay"]
            counts.append(info.rate_limiter_info.insert_stats.completed)
            assert info.current_size == counts[-1]
            batches = iter(Replay([client], table, mine.structure, 32))
            for _ in range(5):
                sample: Sample = within(WAIT, "a batch", next, batches).sample
                starts = {(e, t.action): t for e in range(3) for _, t in windows(e, 20, 2)}
                for index in range(32):
                    start = int(sample.steps.observation[index, -1, 0, 0]), int(sample.steps.action[index])
                    check(sample.steps, index, starts[start], 3)
            within(WAIT, "the checkpoint", server.save_tables, client)
            written.append(sum(len(windows(e, 20, 2)) for e in range(3)))
        finally:
            running.stop()
    assert counts == [written[0], 2 * written[0]]
    other = dataclasses.replace(table, items=Stacks(3, GAMMA, 3))
    another = way(other).packing(other, structure_of(3, (2, 3)))
    with pytest.raises(ValueError, match=r"uint8\[5, 2, 3\], int32\[2\], float32\[2\], not uint8\[6, 2, 3\]"):
        server.serve([server.build_table(other, another.structure)], None, tmp_path / "replay_0")


def test_the_writer_waits_for_room_and_goes_on_when_told_to_stop(serve):
    written = Written(serve, Stacks(1, GAMMA, 2))
    table = dataclasses.replace(written.table, max_size=4)
    client = serve(server.build_table(table, written.packing.structure))
    asked = []

    def stopped() -> bool:
        asked[-1] += 1  # asked again after each time-out of the flush that waits for the table
        return asked[-1] > 1

    writer = way(table).writer(client, table, written.structure, None, stopped)
    for step in framed(1, 4 * IN_FLIGHT):
        asked.append(0)
        within(WAIT, "a row to be written", writer.append, Row(step, (), Version(0, 0)))
        if asked[-1] > 1:
            break
    assert asked[-1] == 2 and len(asked) >= 4 + IN_FLIGHT
    assert client.server_info()["replay"].current_size == 4
