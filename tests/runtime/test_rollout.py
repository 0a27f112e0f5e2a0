"""The actor inside a compiled program makes the rows that an actor on the host makes in the same environments."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.agent import AXIS, Agent, Blocks, DiscreteActions, EnvironmentSpec, TableSpec, Version
from environments.functional import Functional, FunctionalEnvironment
from replay import blocks
from replay.blocks import BlockBuilder
from runtime import actor
from runtime.rollout import Rollout
from tests.environments.test_functional import WALK

SEED, LENGTH = 7, 6


class Memory(NamedTuple):
    rows: jax.Array
    ranks: jax.Array


def agent_of(next_action: bool = False) -> Agent:
    """Returns an agent of random actions, whose memory counts the rows and holds its rank."""

    def act(params, key, timestep, memory):
        action = jax.random.randint(key, timestep.first.shape, 0, 3)
        return action + 0 * params, {"row": memory.rows}, memory._replace(rows=memory.rows + 1)

    def memory(num_envs, ranks):
        ranks = jnp.zeros(num_envs) if ranks is None else jnp.asarray(ranks)
        return Memory(jnp.zeros(num_envs, jnp.int32), ranks)

    table = TableSpec("queue", Blocks(LENGTH, next_action), "queue", 1)
    return Agent(lambda key: jnp.int32(0), lambda state: state, memory, act, act, None, table, 1)


class Writer:
    def __init__(self):
        self.rows = []

    def append(self, row):
        self.rows.append(row)
        return True

    def pull(self):
        return Version(0, 0), jnp.int32(0)


def acted(agent: Agent, num_envs: int, count: int):
    """Returns rows of an actor on the host, and the episodes that ended in them."""
    device, writer = jax.local_devices()[0], Writer()
    environment = FunctionalEnvironment(WALK, num_envs, SEED)
    ranks = np.arange(num_envs, dtype=np.float32) / max(1, num_envs - 1)
    act = actor.compile_act(agent.act, device)
    turns = actor.run(agent, act, environment, writer, writer, jax.random.key(SEED), device, ranks=ranks)
    ended = [next(turns)[1] for _ in range(count)]
    return writer.rows, [list(zip(*each, strict=True)) for each in ended]


def assert_close(one, other):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), one, other)


@pytest.mark.parametrize("num_envs", [1, 5])
def test_the_rows_are_those_of_an_actor_on_the_host(num_envs):
    agent = agent_of()
    rollout = Rollout(agent, WALK, num_envs, 1, SEED)
    acting = jax.jit(rollout.start)(jnp.int32(0))
    acting, (steps, memory, ended) = jax.jit(functools.partial(rollout.rows, length=40))(acting, jnp.int32(0))
    rows, episodes = acted(agent, num_envs, 40)
    assert bool(acting.finite)
    for index, row in enumerate(rows):
        at = jax.tree.map(lambda x, index=index: x[index], (steps, memory))
        assert_close(at, (row.step, row.memory))
        told = [
            (e, float(ended.scores.returns[index, e]), int(ended.scores.lengths[index, e]))
            for e in np.flatnonzero(ended.ended[index])
        ]
        assert_close(told, episodes[index])
    assert sum(map(len, episodes)) > 3


@pytest.mark.parametrize("next_action", [False, True])
def test_blocks_are_those_of_an_actor_on_the_host(next_action):
    num_envs, count = 4, 3
    agent = agent_of(next_action)
    builder, expected = BlockBuilder(blocks.structure(agent, WALK.spec, num_envs), next_action), []
    for row in acted(agent, num_envs, 2 * count * LENGTH + 1)[0]:
        if block := builder.append(row):
            expected.append(block)
    rollout = Rollout(agent, WALK, num_envs, 1, SEED)
    acting, made = jax.jit(rollout.start)(jnp.int32(0)), jax.jit(functools.partial(rollout.blocks, count=count))
    for turn in range(2):
        acting, sample, ended = made(acting, jnp.int32(0))
        assert ended.ended.shape == (count * LENGTH, num_envs)
        for number in range(count):
            mine = slice(number * num_envs, (number + 1) * num_envs)
            block = expected[turn * count + number]
            assert_close(jax.tree.map(lambda x, mine=mine: x[:, mine], sample.steps), block.steps)
            assert_close(jax.tree.map(lambda x, mine=mine: x[mine], sample.memory), block.memory)


def test_devices_have_environments_of_their_own_and_act_by_keys_of_their_own():
    """Two devices are the two places of a mapped axis here."""
    agent = agent_of()
    whole, shared = Rollout(agent, WALK, 6, 1, SEED), Rollout(agent, WALK, 6, 2, SEED)
    alone = whole.start(jnp.int32(0))
    acting = jax.vmap(lambda _: shared.start(jnp.int32(0)), axis_name=AXIS)(jnp.arange(2))
    for one, other in ((alone.running.timestep, acting.running.timestep), (alone.memory, acting.memory)):
        assert_close(one, jax.tree.map(lambda x: x.reshape(6, *x.shape[2:]), other))
    np.testing.assert_allclose(alone.memory.ranks, np.arange(6) / 5)
    _, (steps, _, _) = jax.vmap(lambda a: shared.rows(a, jnp.int32(0), 30), axis_name=AXIS)(acting)
    assert steps.action.shape == (2, 30, 3)
    same = np.asarray(steps.action[0] == steps.action[1]).all(axis=1)
    assert same.sum() < 10, "a ninth of all rows by chance"
    with pytest.raises(ValueError, match="6 environments are not a multiple of 4"):
        Rollout(agent, WALK, 6, 4, SEED)


@pytest.mark.parametrize("broken", ["observation", "reward"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_noticed_and_not_forgotten(broken, value):
    def reset(key):
        return jnp.int32(0), jnp.zeros(2)

    def step(key, state, action):
        bad = jnp.where(state + 1 == 4, value, 0.0)
        observation = jnp.zeros(2).at[1].add(bad if broken == "observation" else 0.0)
        reward = bad if broken == "reward" else jnp.float32(0)
        return state + 1, observation, reward, jnp.bool_(False), jnp.bool_(False)

    environment = Functional(EnvironmentSpec((2,), np.dtype(np.float32), DiscreteActions(3)), reset, step)
    rollout = Rollout(agent_of(), environment, 3, 1, SEED)
    acting = rollout.start(jnp.int32(0))
    act, finite = jax.jit(rollout.act), []
    for _ in range(7):
        acting, _ = act(acting, jnp.int32(0))
        finite.append(bool(acting.finite))
    assert finite == [True] * 3 + [False] * 4
