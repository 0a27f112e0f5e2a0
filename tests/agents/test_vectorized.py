"""A population stacked in one agent, where each member does what it would do alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents import a2c, dqn, impala, pbt, pqn, vmpo
from agents.agent import DiscreteActions, EnvironmentSpec, Sample, Step, TimeStep
from agents.parts.vectorized import vectorize

SPEC = EnvironmentSpec((3,), np.dtype(np.float32), DiscreteActions(4), 20)
SMALL = {"torso": "mlp", "hidden_sizes": (8,), "frame_stack": 1, "batch_size": 6, "unroll_length": 4}
MEMBERS, T, B = 3, 4, 6


@pytest.fixture(
    params=[
        (a2c, 1, {}),
        (impala, 2, {"lstm_size": 5}),
        (vmpo, 1, {}),
        (pqn, 1, {"minibatches": 4, "epochs": 2}),
    ],
    ids=["a2c", "impala_lstm_two_tasks", "vmpo", "pqn"],
)
def population(request):
    module, tasks, fields = request.param
    agent = module.make(module.Config(**SMALL, **fields), SPEC)
    return agent, vectorize(agent, MEMBERS, tasks), tasks


def of_member(x, member, tasks, axis=0):
    index = np.flatnonzero(pbt.member_of(np.arange(MEMBERS * B), MEMBERS, tasks) == member)
    return np.take(np.asarray(x), index, axis)


def timestep(generator):
    batch = MEMBERS * B
    return TimeStep(
        generator.normal(size=(batch, 3)).astype(np.float32),
        generator.normal(size=batch).astype(np.float32),
        np.ones(batch, np.float32),
        generator.random(batch) < 0.3,
        np.zeros(batch, bool),
    )


def test_members_take_whole_rounds_of_tasks_by_turns():
    assert pbt.member_of(np.arange(8), 2, 1).tolist() == [0, 1, 0, 1, 0, 1, 0, 1]
    assert pbt.member_of(np.arange(12), 2, 3).tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 1, 1]


def test_members_equal_separate_ones(population):
    """Each member acts and learns on the rows of its own environments as a separate agent does."""
    agent, stacked, tasks = population
    generator = np.random.default_rng(0)
    key = jax.random.key(1)
    states = jax.jit(stacked.init)(key)
    alone = [jax.tree.map(lambda x, m=m: x[m], states) for m in range(MEMBERS)]
    for m, first in enumerate(jax.random.split(key, MEMBERS)):
        jax.tree.map(np.testing.assert_array_equal, alone[m], jax.jit(agent.init)(first))

    params, memory = stacked.policy(states), stacked.memory(MEMBERS * B, np.linspace(0, 1, MEMBERS * B))
    memories = [agent.memory(B, None) for _ in range(MEMBERS)]
    act, act_alone = jax.jit(stacked.act), jax.jit(agent.act)
    before, rows = memory, []
    for count in range(T + 1):
        seen, act_key = timestep(generator), jax.random.fold_in(key, count)
        action, extras, memory = act(params, act_key, seen, memory)
        for m, member_key in enumerate(jax.random.split(act_key, MEMBERS)):
            mine = jax.tree.map(lambda x, m=m: of_member(x, m, tasks), seen)
            expected, expected_extras, memories[m] = act_alone(agent.policy(alone[m]), member_key, mine, memories[m])
            np.testing.assert_array_equal(of_member(action, m, tasks), expected)
            for tree, mate in ((extras, expected_extras), (memory, memories[m])):
                jax.tree.map(
                    lambda x, y, m=m: np.testing.assert_allclose(of_member(x, m, tasks), y, rtol=2e-5, atol=2e-6),
                    tree,
                    mate,
                )
        rows.append(Step(seen.observation, action, seen.reward, seen.discount, seen.first, extras))

    sample = Sample(jax.tree.map(lambda *x: jnp.stack(x), *rows), before)
    update_key = jax.random.key(7)
    after, feedback = jax.jit(stacked.update)(states, update_key, sample)
    losses = []
    for m, member_key in enumerate(jax.random.split(update_key, MEMBERS)):
        steps = jax.tree.map(lambda x, m=m: of_member(x, m, tasks, axis=1), sample.steps)
        mine = Sample(steps, jax.tree.map(lambda x, m=m: of_member(x, m, tasks), before))
        expected, expected_feedback = jax.jit(agent.update)(alone[m], member_key, mine)
        losses.append(float(expected_feedback.metrics["loss"]))
        jax.tree.map(lambda x, y, m=m: np.testing.assert_allclose(x[m], y, rtol=2e-4, atol=2e-6), after, expected)
    np.testing.assert_allclose(feedback.metrics["loss"], np.mean(losses), rtol=1e-4)


def test_a_diverged_member_leaves_the_others_and_their_metrics_alone(population):
    agent, stacked, _ = population
    del agent
    generator = np.random.default_rng(0)
    states = jax.jit(stacked.init)(jax.random.key(0))
    broken = states._replace(params=jax.tree.map(lambda x: x.at[1].set(jnp.nan), states.params))
    batch, memory = MEMBERS * B, stacked.memory(MEMBERS * B, None)
    seen = timestep(generator)
    action, extras, _ = jax.jit(stacked.act)(stacked.policy(states), jax.random.key(0), seen, memory)
    row = Step(seen.observation, action, seen.reward, seen.discount, np.zeros(batch, bool), extras)
    sample = Sample(jax.tree.map(lambda x: jnp.stack([x] * (T + 1)), row), memory)
    update = jax.jit(stacked.update)
    well, _ = update(states, jax.random.key(0), sample)
    after, feedback = update(broken, jax.random.key(0), sample)
    for m in (0, 2):
        jax.tree.map(lambda x, y, m=m: np.testing.assert_array_equal(x[m], y[m]), after.params, well.params)
    assert all(np.isfinite(value) for value in feedback.metrics.values())


def test_a_replay_cannot_be_stacked():
    config = dqn.Config(torso="mlp", hidden_sizes=(8,), frame_stack=1)
    with pytest.raises(ValueError, match="--population_mode=separate"):
        vectorize(dqn.make(config, SPEC), MEMBERS)
