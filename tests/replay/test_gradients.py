"""Gradients through real Reverb servers, and the experience that their workers keep."""

import itertools

import jax
import numpy as np
import pytest

from agents import dqn, q_learning
from agents.agent import Blocks, Gradient, TableSpec, TimeStep, Transitions, Version
from agents.parts.gradients import by_gradients
from environments.counting import CountingEnvironment
from replay import blocks, gradients, server
from replay.blocks import BlockWriter
from replay.channels import columns, item_structure
from replay.gradients import GradientWriter
from replay.local import LocalBlocks, LocalReplay
from replay.reverb_carrier import ReverbQueue
from replay.rings import CHUNK_ITEMS
from replay.rows import PULL_ITEMS, Row
from replay.structures import Structure
from runtime import devices
from tests.replay.told_transitions import stream
from tests.waiting import within

WAIT = 60.0
SPEC = CountingEnvironment(1).spec


def counting_gradient(number: int) -> Gradient:
    gradient = {"w": np.full((2, 3), number, np.float32), "b": np.float32(number / 2), "n": np.int32(number)}
    return Gradient(gradient, {"loss": np.float32(10 * number)}, np.int64(number + 2**40), np.int64(3))


@pytest.fixture
def path(serve):
    """Returns (writer, client, table, structure) of a queue with room for two gradients."""
    structure = Structure(counting_gradient(0))
    agent = q_learning.make(q_learning.Config(), SPEC)
    table = by_gradients(agent).table
    table = TableSpec(table.name, table.items, "queue", max_size=2)
    client = serve(server.build_table(table, columns(table, structure)))
    return GradientWriter(ReverbQueue(client, table.name), structure), client, table, structure


def test_each_gradient_arrives_once_in_order_and_to_the_bit(path):
    writer, client, table, structure = path
    batches = gradients.batches(ReverbQueue(client, table.name), table, structure, 2)
    for turn in range(5):
        for number in (2 * turn, 2 * turn + 1):
            within(WAIT, "a gradient to be sent", writer.append, counting_gradient(number))
        batch = within(WAIT, "two gradients", next, batches)
        expected = [counting_gradient(2 * turn), counting_gradient(2 * turn + 1)]
        jax.tree.map(np.testing.assert_array_equal, batch.sample, jax.tree.map(lambda *x: np.stack(x), *expected))
        types = zip(jax.tree.leaves(batch.sample), jax.tree.leaves(expected[0]), strict=True)
        assert all(x.dtype == y.dtype for x, y in types)
        assert batch.env_steps == 6 and batch.learner_steps.tolist() == [2 * turn + 2**40, 2 * turn + 1 + 2**40]
        np.testing.assert_array_equal(batch.losses, [20.0 * turn, 20.0 * turn + 10])


def test_a_worker_waits_for_room_until_it_is_stopped(path):
    writer, client, table, structure = path
    for number in range(2):
        within(WAIT, "a gradient to be sent", writer.append, counting_gradient(number))
    asked = []

    def stopped():
        asked.append(client.server_info()["gradients"].current_size)
        return len(asked) > 2

    writer = GradientWriter(ReverbQueue(client, table.name, stopped), structure)
    within(WAIT, "the third to be given up", writer.append, counting_gradient(2))
    assert asked == [2, 2, 2]


def test_the_structure_is_that_of_what_a_worker_computes():
    """Checks an agent that learns from blocks and one that learns from transitions, each from batches."""
    for agent, envs in (
        (q_learning.make(q_learning.Config(unroll_length=3, batch_size=2), SPEC), 2),
        (dqn.make(dqn.Config(torso="mlp", frame_stack=1, batch_size=5), SPEC), 2),
    ):
        by = by_gradients(agent)
        structure = item_structure(by, SPEC, envs)
        told = structure.unflatten(structure.leaves)
        params = agent.init(jax.random.key(0)).params
        assert jax.tree.map(lambda x: x.shape, told.gradient) == jax.tree.map(lambda x: x.shape, params)
        assert told.metrics["loss"].shape == () and told.learner_steps.dtype == np.int64


def test_local_blocks_are_the_queues(serve):
    table = TableSpec("queue", Blocks(3), "queue", max_size=100)
    agent = q_learning.make(q_learning.Config(unroll_length=3, batch_size=2), SPEC)
    structure = blocks.structure(agent._replace(table=table), SPEC, 2)
    client = serve(server.build_table(table, structure, 1))
    local, writer = LocalBlocks(structure), BlockWriter(ReverbQueue(client, "queue"), structure)
    mine = []
    steps = list(stream(2, 20))
    for row, (step, after) in enumerate(itertools.pairwise(steps)):
        memory = q_learning.Memory(np.full(2, row, np.float32), None)
        answer = TimeStep(after.observation, step.reward, step.discount, after.first, after.first)
        told = Row(step, memory, Version(row, 0), answer=answer)
        complete = local.append(told)
        assert complete == within(WAIT, "a row to be written", writer.append, told)
        assert not list(local.samples()) if not complete else True
        if complete:
            mine += [jax.tree.map(np.copy, sample) for sample in local.samples()]
            assert not list(local.samples()), "learnt from once"
    assert len(mine) == 6
    batches = blocks.batches(ReverbQueue(client, "queue"), table, structure, 2)
    for sample in mine:
        jax.tree.map(np.testing.assert_array_equal, sample, within(WAIT, "a block", next, batches).sample)


def test_a_local_replay_is_sampled_as_often_as_asked_and_after_its_minimum():
    table = TableSpec("replay", Transitions(1, 0.9), "uniform", max_size=1000, min_size=100, samples_per_insert=4.0)
    agent = dqn.make(dqn.Config(torso="mlp", frame_stack=1), SPEC)._replace(table=table)
    structure = item_structure(agent, SPEC, 1)
    mesh = devices.make_mesh(devices=jax.local_devices()[:1])
    replay = LocalReplay(mesh, agent, structure, 8, num_envs=1, max_rows=10**6, workers=2, seed=0)
    counts, seen, first = [], set(), None
    for step in stream(1, 600):
        if not replay.append(Row(step, (), Version(0, 0), None)):
            continue
        samples = within(WAIT, "samples", list, replay.samples())
        assert all(sample.steps.reward.shape == (8,) for sample in samples)
        seen |= {int(action) for sample in samples for action in sample.steps.action}
        counts.append(len(samples))
        written = replay.written()
        # Half of the minimum is this worker's share. No samples are owed for the items written until it is reached.
        if first is None and written >= 50:
            first = written
        assert sum(counts) == (0 if first is None else (written - first) * 4 // 8)
    assert 50 <= first <= 50 + PULL_ITEMS + CHUNK_ITEMS and sum(counts) > 100
    assert len(seen) > 200, "of all that was written"


def test_each_worker_draws_by_a_seed_of_its_own():
    table = TableSpec("replay", Transitions(1, 0.9), "uniform", max_size=1000)
    agent = dqn.make(dqn.Config(torso="mlp", frame_stack=1), SPEC)._replace(table=table)
    mesh, drawn = devices.make_mesh(devices=jax.local_devices()[:1]), []
    for seed in (3, 3, 4):
        replay = LocalReplay(mesh, agent, item_structure(agent, SPEC, 1), 8, 1, max_rows=10**6, workers=1, seed=seed)
        samples = []
        for step in stream(1, 300):
            if replay.append(Row(step, (), Version(0, 0), None)):
                samples += [sample.steps.action.tolist() for sample in replay.samples()]
        drawn.append(samples)
    assert len(drawn[0]) > 3 and drawn[0] == drawn[1] and drawn[0] != drawn[2]
    assert len({tuple(sample) for sample in drawn[0]}) == len(drawn[0]), "nor is a draw repeated"
