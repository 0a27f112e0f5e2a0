"""The same rows, written to a replay of either carrier, give the same items, and these give the same update."""

from importlib.util import find_spec
from typing import Any

import jax
import numpy as np
import pytest

from agents.agent import Sample, Step, Version
from launchers import roles
from launchers import run as runs
from replay.rows import Row, never
from tests.waiting import within

WAIT = 120.0
SMALL = {"batch_size": 16, "min_replay_size": 1, "replay_size": 5_000, "samples_per_insert": 0.0}
CASES: dict[str, tuple[str, str, int, dict[str, Any]]] = {  # agent, environment, rows, config
    "transitions": ("ddpg", "Pendulum-v1", 230, {"hidden_sizes": (8,)}),
    "5-step transitions": ("d4pg", "Pendulum-v1", 230, {"hidden_sizes": (8,), "n_step": 5}),
    "prioritised transitions": ("prioritized_dqn", "CartPole-v1", 100, {"n_step": 3}),
    "stacks": ("prioritized_dqn", "Pong-v5", 40, {"torso": "shallow", "n_step": 2}),
    "sequences": ("r2d2", "CartPole-v1", 80, {"burn_in": 2}),
    "sequences that episodes cut": ("r2d2", "CartPole-v1", 80, {"sequence_length": 6, "overlap": 3, "lstm_size": 8}),
}


def rows_of(parts: roles.Parts, count: int) -> list[Row]:
    """Returns the rows that an actor with the initial parameters experiences."""
    environment = parts.run.make_environment(parts.run.seed_of("actor"), parts.num_envs)
    timestep, memory = environment.reset(), parts.agent.memory(parts.num_envs, None)
    params = jax.device_put(parts.agent.policy(parts.init()), parts.device)
    rows = []
    for number in range(count):
        action, extras, following = parts.act(params, jax.random.key(0), np.uint32(number), timestep, memory)
        action = np.asarray(action)
        successor = environment.step(action)
        step = Step(timestep.observation, action, successor.reward, successor.discount, timestep.first, extras)
        rows.append(Row(step, memory, Version(0, 0), params))
        timestep, memory = successor, following
    environment.close()
    return rows


def key_of(sample: Sample, index: int) -> bytes:
    """Returns bytes that identify an item, from fields that no carrier computes: a transition's action and its first
    and last observations, or all rows of a sequence."""
    steps = sample.steps
    if isinstance(steps, Step):
        parts = [x[:, index] for x in jax.tree.leaves((steps.observation, steps.action, steps.reward, steps.first))]
    else:
        parts = [x[index] for x in jax.tree.leaves((steps.observation, steps.action, steps.next_observation))]
    return b"".join(np.ascontiguousarray(part).tobytes() for part in parts)


def column(sample: Sample, index: int) -> Sample:
    """Returns one item of a batch, with a batch axis."""
    at = slice(index, index + 1)
    axis = (slice(None), at) if isinstance(sample.steps, Step) else at
    steps = jax.tree.map(lambda x: np.asarray(x)[axis], sample.steps)
    return Sample(steps, jax.tree.map(lambda x: np.asarray(x)[at], sample.memory), np.ones(1, np.float32))


def of_reverb(parts: roles.Parts, carrier: Any, channel: Any) -> dict[bytes, Sample]:
    """Returns all items, found by sampling until none is missing."""
    (client,) = carrier._clients
    items: dict[bytes, Sample] = {}
    keys: set[int] = set()
    batches = parts.batches(channel)
    for _ in range(1_000):
        batch = within(WAIT, "a batch", next, batches)
        for index, key in enumerate(batch.keys[0].tolist()):
            if key not in keys:
                keys.add(key)
                items[key_of(batch.sample, index)] = column(batch.sample, index)
        if len(keys) == client.server_info()[parts.table.name].current_size:
            return items
    raise AssertionError("sampling leaves items out")


def of_rings(channel: Any) -> dict[bytes, Sample]:
    anchors = np.flatnonzero(np.asarray(channel.masses.of_rows)).astype(np.int32)
    sample = jax.tree.map(np.asarray, jax.jit(channel.ring.look)(channel.rows, anchors))
    return {key_of(sample, index): column(sample, index) for index in range(len(anchors))}


@pytest.mark.skipif(find_spec("reverb") is None, reason="needs Reverb, beside the other carrier")
@pytest.mark.parametrize("name", CASES)
def test_the_same_rows_are_the_same_items_and_give_the_same_update(name, tmp_path):
    agent, env, count, config = CASES[name]
    items: dict[str, dict[bytes, Sample]] = {}
    for carrier_name in ("reverb", "local"):
        settings = {"carrier": carrier_name, "num_actors": 1, "envs_per_actor": 4, "updates_per_dispatch": 1}
        parts = roles.Parts(runs.make(agent, env, settings, SMALL | config), tmp_path / carrier_name)
        if carrier_name == "reverb":
            rows = rows_of(parts, count)
        carrier = roles.connect([parts], parts.logdir, 0)
        channel = parts.channel(carrier)
        # Priorities, which decide what is drawn but not what an item is, are all 1.
        writer = channel.writer(0, None, never)
        for row in rows:
            within(WAIT, "a row to be written", writer.append, row)
            if carrier_name == "local":
                channel.drain()
        writer.close()
        items[carrier_name] = of_rings(channel) if carrier_name == "local" else of_reverb(parts, carrier, channel)
    # Either carrier may keep the newest rows back for a while.
    both = sorted(set(items["reverb"]) & set(items["local"]))
    assert len(both) >= 0.75 * max(len(each) for each in items.values()) > 12
    state, update = parts.init(), jax.jit(parts.agent.update)
    for start in range(0, len(both) - 15, 16):
        ends = []
        for mine in items.values():
            columns = [mine[key] for key in both[start : start + 16]]
            axis = 1 if isinstance(columns[0].steps, Step) else 0
            steps = jax.tree.map(lambda *x, axis=axis: np.concatenate(x, axis), *(each.steps for each in columns))
            rest = jax.tree.map(lambda *x: np.concatenate(x), *(each[1:] for each in columns))
            ends.append(update(state, jax.random.key(1), Sample(steps, *rest)))
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), *ends)
    first, last = jax.tree.leaves(parts.agent.policy(state)), jax.tree.leaves(parts.agent.policy(ends[0][0]))
    assert any(np.any(np.asarray(x) != np.asarray(y)) for x, y in zip(first, last, strict=True)), "it learns"


def test_items_are_told_apart():
    """The test above would notice a difference: rows that differ have different keys."""
    step = Step(*(np.arange(8.0).reshape(2, 4) for _ in range(5)), {})
    sample = Sample(step, (), None)
    assert len({key_of(sample, index) for index in range(4)}) == 4
    other = sample._replace(steps=step._replace(reward=step.reward + 1))
    assert key_of(other, 0) != key_of(sample, 0)
