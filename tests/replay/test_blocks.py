"""Tests blocks from the environment through the actor, the writer and a real Reverb server to the learner's batch."""

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.agent import Agent, Blocks, TableSpec, Version
from environments.counting import CountingEnvironment
from replay import blocks
from replay.blocks import BlockWriter, count_for_each
from replay.reverb_carrier import ReverbQueue
from replay.rows import Batch, Row
from replay.structures import params_structure
from replay.variables import VariableContainer
from runtime import actor
from tests.counting_rows import first_rows
from tests.waiting import until, within

WAIT = 60.0


class RowMemory(NamedTuple):
    rows: np.ndarray  # int32 [B], rows acted in so far
    unused: tuple = ()


def counting_agent(window: Blocks, max_size: int) -> Agent:
    """Returns an agent whose action is the row (modulo 5), whose extras are the row and the version that acted, and
    whose memory counts the rows before."""

    def act(params, key, timestep, memory):
        version = jnp.broadcast_to(params["version"], memory.rows.shape)
        extras = {"row": memory.rows, "version": version}
        return memory.rows % 5, extras, RowMemory(memory.rows + 1)

    def init(key):
        return {"version": jnp.int32(0)}

    return Agent(
        init=init,
        policy=lambda state: state,
        memory=lambda num_envs, ranks: RowMemory(jnp.zeros(num_envs, jnp.int32)),
        act=act,
        act_greedily=act,
        update=lambda state, key, sample: (state, None),
        table=TableSpec("queue", window, "queue", max_size),
        batch_size=1,
    )


class Path:
    """A path of real parts from end to end: `num_actors` actors of `num_envs` environments each, which take turns.

    `serve` is the fixture serve_here or serve_apart.
    """

    def __init__(self, serve, window: Blocks, num_envs: int, num_actors: int = 1, max_blocks: int = 100):
        self.num_envs = num_envs
        self.agent = counting_agent(window, max_size=max_blocks * num_envs)
        self.table = self.agent.table
        spec = CountingEnvironment(num_envs).spec
        self.structure = blocks.structure(self.agent, spec, num_envs)
        params = params_structure(self.agent)
        self.client = serve(self.table, self.structure, num_envs, params)
        self.variables = VariableContainer(self.client, params)
        self.push(0)
        device = jax.devices()[0]
        act = actor.compile_act(self.agent.act, device)
        self.actors = []
        for index in range(num_actors):
            environment = CountingEnvironment(num_envs, first_environment=index * num_envs)
            writer = BlockWriter(ReverbQueue(self.client, self.table.name), self.structure, window.next_action)
            loop = actor.run(self.agent, act, environment, self.variables, writer, jax.random.key(0), device)
            self.actors.append(loop)

    def push(self, version: int) -> None:
        self.variables.push(Version(version, 100 * version), {"version": np.int32(version)})

    def write(self, index: int = 0) -> None:
        """Lets an actor write one more block."""
        within(WAIT, "the actor to write a block", next, self.actors[index])

    def batches(self, count: int, batch_size: int | None = None) -> list[Batch]:
        """Returns the next batches, of one block each unless `batch_size` says otherwise."""
        batches = self.sampled(batch_size or self.num_envs)
        return [within(WAIT, f"batch {i}", next, batches) for i in range(count)]

    def sampled(self, batch_size: int) -> Iterator[Batch]:
        return blocks.batches(ReverbQueue(self.client, self.table.name), self.table, self.structure, batch_size)


def version_of(row: int, window: Blocks) -> int:
    """Returns the version that acts in a row if one is pushed after each block: actors pull once a block is sent."""
    return max(0, row - window.next_action) // window.length


def check_rows(steps, column: int, environment: int, rows: range, window: Blocks) -> None:
    """Asserts that column `column` of a batch holds exactly `rows` of `environment`. The last row holds only what is
    known before its action, unless that action belongs to the block."""
    told = first_rows(environment, rows.stop + 1)
    expected = {
        "action": [row % 5 for row in rows],
        # The reward and the discount of a_t arrive with o_{t+1}.
        "reward": [told[row + 1].reward for row in rows],
        "discount": [told[row + 1].discount for row in rows],
        "row": list(rows),
        "version": [version_of(row, window) for row in rows],
    }
    if not window.next_action:
        expected = {field: [*values[:-1], 0] for field, values in expected.items()}
    expected["observation"] = [told[row].observation for row in rows]
    expected["first"] = [told[row].first for row in rows]
    for field, value in expected.items():
        found = steps.extras[field] if field in steps.extras else getattr(steps, field)
        np.testing.assert_array_equal(found[:, column], value, field)


def transitions(environments: range, rows: range) -> int:
    """Counts the rows, without the block's last, whose action was executed: the next row does not open an episode."""
    return sum(not first_rows(e, rows.stop)[row + 1].first for e in environments for row in rows[:-1])


@pytest.mark.parametrize("next_action", [False, True])
@pytest.mark.parametrize("length", [5, 1, 12])
def test_every_row_of_every_block_is_where_it_belongs(serve_here, length, next_action):
    num_envs, count = 3, 6
    window = Blocks(length, next_action)
    path = Path(serve_here, window, num_envs)
    for block in range(count):
        path.write()
        path.push(block + 1)
    for block, batch in enumerate(path.batches(count)):
        rows = range(block * length, block * length + length + 1)
        for environment in range(num_envs):
            check_rows(batch.sample.steps, environment, environment, rows, window)
        np.testing.assert_array_equal(batch.sample.memory.rows, [rows.start] * num_envs, "the memory before row 0")
        np.testing.assert_array_equal(batch.learner_steps, [version_of(rows.start, window)], "that acted in row 0")
        assert batch.env_steps == transitions(range(num_envs), rows)


@pytest.mark.parametrize("place", ["serve_here", "serve_apart"])
def test_blocks_stand_side_by_side_in_a_batch_the_oldest_first(request, place):
    """Two actors take turns: a batch of three blocks holds one of each actor and then the first actor's next."""
    num_envs, window = 2, Blocks(5)
    path = Path(request.getfixturevalue(place), window, num_envs, num_actors=2)
    order = [(block, index) for block in range(3) for index in range(2)]
    for block, index in order:
        path.write(index)
        if index == 1:
            path.push(block + 1)
    batches = path.sampled(3 * num_envs)
    for told in (order[:3], order[3:]):
        batch = within(WAIT, "a batch of three blocks", next, batches)
        left = len(order) - order.index(told[-1]) - 1
        assert path.client.server_info()["queue"].current_size == left, "no more is asked for than a batch needs"
        assert batch.sample.steps.reward.shape == (6, 3 * num_envs)
        expected_transitions = 0
        for position, (block, index) in enumerate(told):
            rows = range(5 * block, 5 * block + 6)
            environments = range(index * num_envs, (index + 1) * num_envs)
            for offset, environment in enumerate(environments):
                check_rows(batch.sample.steps, position * num_envs + offset, environment, rows, window)
            memory = batch.sample.memory.rows[position * num_envs : (position + 1) * num_envs]
            np.testing.assert_array_equal(memory, [rows.start] * num_envs)
            assert batch.learner_steps[position] == version_of(rows.start, window)
            expected_transitions += transitions(environments, rows)
        assert batch.env_steps == expected_transitions


def test_a_block_of_many_environments_is_split_into_batches(serve_here):
    num_envs, window = 6, Blocks(5)
    path = Path(serve_here, window, num_envs)
    for block in range(2):
        path.write()
        path.push(block + 1)
    batches = path.batches(6, batch_size=2)
    for number, batch in enumerate(batches):
        block, part = divmod(number, 3)
        rows, environments = range(5 * block, 5 * block + 6), range(2 * part, 2 * part + 2)
        assert batch.sample.steps.reward.shape == (6, 2)
        for column, environment in enumerate(environments):
            check_rows(batch.sample.steps, column, environment, rows, window)
        np.testing.assert_array_equal(batch.sample.memory.rows, [rows.start] * 2)
        np.testing.assert_array_equal(batch.learner_steps, [version_of(rows.start, window)])
        assert batch.env_steps == transitions(environments, rows)


class Given:
    """A queue that holds the given blocks."""

    def __init__(self, items: list[list[np.ndarray]]):
        self.items = items

    def take(self, count: int) -> list[list[np.ndarray]]:
        return [self.items.pop(0) for _ in range(count)]


@pytest.mark.parametrize("seed", range(20))
def test_a_batch_of_one_version_leaves_out_what_is_left_of_others(seed):
    """Versions repeat, fall and rise because actors are restarted and the learner goes back to its checkpoint."""
    rng = np.random.default_rng(seed)
    blocks_each = int(rng.integers(1, 4))
    agent = counting_agent(Blocks(1, one_version=True), max_size=100)
    structure = blocks.structure(agent, CountingEnvironment(2).spec, 2)
    empty = structure.unflatten([np.zeros(x.shape, x.dtype) for x in structure.leaves])
    versions = [int(v) for v in rng.integers(0, 3, 40)] + [7] * blocks_each
    items = [
        structure.flatten(blocks.Block(empty.steps, RowMemory(np.full(2, index, np.int32)), np.int64(version)))
        for index, version in enumerate(versions)
    ]
    expected, held = [], []
    for index, version in enumerate(versions):
        held = [other for other in held if versions[other] == version] + [index]
        if len(held) == blocks_each:
            expected, held = [*expected, held], []
    batches = blocks.batches(Given(items), agent.table, structure, 2 * blocks_each)
    for indices in expected:
        batch = next(batches)
        np.testing.assert_array_equal(batch.sample.memory.rows, np.repeat(indices, 2))
        np.testing.assert_array_equal(batch.learner_steps, [versions[index] for index in indices])


@pytest.mark.parametrize("batch_size", [2, 6, 12])
def test_each_environment_brings_its_own_memory(batch_size):
    """The counting agent's memories are the same in all environments of a row; here they all differ."""
    num_envs = 6
    agent = counting_agent(Blocks(2), max_size=100)
    structure = blocks.structure(agent, CountingEnvironment(num_envs).spec, num_envs)
    empty = structure.unflatten([np.zeros(x.shape, x.dtype) for x in structure.leaves])
    items = []
    for block in range(2):
        rows = np.arange(num_envs, dtype=np.int32) + num_envs * block
        steps = empty.steps._replace(reward=np.tile(rows, (3, 1)).astype(np.float32))
        items.append(structure.flatten(blocks.Block(steps, RowMemory(rows), np.int64(0))))
    batches = blocks.batches(Given(items), agent.table, structure, batch_size)
    for number in range(2 * num_envs // batch_size):
        sample = next(batches).sample
        expected = np.arange(batch_size) + batch_size * number
        np.testing.assert_array_equal(sample.steps.reward, np.tile(expected, (3, 1)))
        np.testing.assert_array_equal(sample.memory.rows, expected)


class FullQueue:
    """A queue that holds `max_blocks` blocks, and a thread that appends to it until it is told to stop."""

    def __init__(self, serve, max_blocks: int):
        self.path = Path(serve, Blocks(1), num_envs=1, max_blocks=max_blocks)
        queue = ReverbQueue(self.path.client, self.path.table.name, self._stopped)
        writer = BlockWriter(queue, self.path.structure, next_action=True)
        self.writer, self.stop, self.sent = writer, threading.Event(), 0
        self.asked_while_sending: dict[int, int] = {}  # block -> how often `stopped` was asked
        self.thread = threading.Thread(target=self._append, daemon=True)
        self.thread.start()

    def _append(self) -> None:
        step = self.path.structure.unflatten([np.zeros(x.shape, x.dtype) for x in self.path.structure.leaves]).steps
        step = jax.tree.map(lambda x: x[0], step)
        row = 0
        while not self.stop.is_set():
            numbered = step._replace(reward=np.full(1, row, np.float32))
            self.sent += self.writer.append(Row(numbered, RowMemory(np.zeros(1, np.int32)), Version(row, 0)))
            row += 1

    def _stopped(self) -> bool:
        self.asked_while_sending[self.sent] = self.asked_while_sending.get(self.sent, 0) + 1
        return self.stop.is_set()

    def waits_with(self, block: int) -> bool:
        """Returns whether `append` waits with a block: it asks `stopped` again after each time-out of its flush."""
        return self.asked_while_sending.get(block, 0) > 1


def test_a_full_queue_makes_append_wait_and_a_sample_lets_it_go_on(serve_here):
    full = FullQueue(serve_here, max_blocks=2)
    until(lambda: full.waits_with(2), WAIT, "append waits with the third block")
    assert full.sent == 2
    assert full.path.client.server_info()["queue"].current_size == 2
    (batch,) = full.path.batches(1)
    assert batch.learner_steps.tolist() == [0], "the oldest first"
    until(lambda: full.waits_with(3), WAIT, "append waits with the fourth block")
    assert full.sent == 3
    assert [b.sample.steps.reward[:, 0].tolist() for b in full.path.batches(3)] == [[1, 2], [2, 3], [3, 4]]
    full.stop.set()
    full.thread.join(WAIT)
    assert not full.thread.is_alive(), f"waited {WAIT} s in vain for append to return"


def test_stopped_releases_an_append_that_waits(serve_here):
    full = FullQueue(serve_here, max_blocks=1)
    until(lambda: full.waits_with(1), WAIT, "append waits with the second block")
    full.stop.set()
    full.thread.join(WAIT)
    assert not full.thread.is_alive(), f"waited {WAIT} s in vain for append to return"
    within(WAIT, "the writer to close", full.writer.close)
    assert full.path.client.server_info()["queue"].current_size == 1


def test_a_queue_gives_each_block_once(serve_here):
    path = Path(serve_here, Blocks(2), num_envs=2)
    for _ in range(4):
        path.write()
    assert path.client.server_info()["queue"].current_size == 4
    path.batches(3)
    assert path.client.server_info()["queue"].current_size == 1


@pytest.mark.parametrize("seed", range(6))
def test_members_share_the_steps_evenly_and_none_is_lost(seed):
    rng = np.random.default_rng(seed)
    members, steps = int(rng.integers(1, 9)), rng.integers(0, 40, 50).tolist()
    batches = [Batch(number, np.array([number]), count) for number, count in enumerate(steps)]
    counted = list(count_for_each(iter(batches), members))
    assert [batch.sample for batch in counted] == list(range(50))
    assert [batch.learner_steps.tolist() for batch in counted] == [[number] for number in range(50)]
    np.testing.assert_array_equal(np.cumsum([batch.env_steps for batch in counted]), np.cumsum(steps) // members)


@pytest.mark.parametrize("placement", ["threads", "device"])
@pytest.mark.parametrize("num_actors", [1, 2, 3])
def test_a_batch_is_of_whole_blocks_or_an_equal_part_of_one(placement, num_actors):
    """With --placement=device, a block has the environments of all actors."""
    for envs in range(1, 13):
        for batch in range(1, 13):
            agent = counting_agent(Blocks(2), 10)._replace(batch_size=batch)
            run = SimpleNamespace(agent="a2c", placement=placement, num_actors=num_actors, envs_per_actor=envs)
            block = envs * num_actors if placement == "device" else envs
            if batch % block == 0 or block % batch == 0:
                blocks.refuse(agent, run, None)
                continue
            with pytest.raises(
                ValueError, match=rf"config.batch_size={batch} and .*--envs_per_actor={envs}: "
            ) as error:
                blocks.refuse(agent, run, None)
            assert (f"--num_actors={num_actors} times" in str(error.value)) == (placement == "device")


@pytest.mark.parametrize(("num_actors", "envs"), [(1, 4), (2, 2), (1, 2), (2, 4), (4, 1)])
def test_traces_need_the_batch_to_be_one_actors_environments(num_actors, envs):
    agent = counting_agent(Blocks(2), 10)._replace(batch_size=4, in_order=True)
    run = SimpleNamespace(agent="actor_critic", placement="threads", num_actors=num_actors, envs_per_actor=envs)
    if (num_actors, envs) == (1, 4):
        blocks.refuse(agent, run, None)
        return
    with pytest.raises(ValueError, match=rf"--num_actors=1 --envs_per_actor=4.* not {num_actors} actors with {envs}"):
        blocks.refuse(agent, run, None)
