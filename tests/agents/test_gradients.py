"""The two halves of an update (`gradient` and `apply`), and agents that learn from gradients that travel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents import a2c, d4pg, dqn, q_learning
from agents.agent import (
    AXIS,
    BoundedActions,
    DiscreteActions,
    EnvironmentSpec,
    Gradient,
    Sample,
    Step,
    TimeStep,
    Transition,
)
from agents.parts.gradients import by_gradients

SPEC = EnvironmentSpec((4,), np.dtype(np.float32), DiscreteActions(3))
T, B = 5, 6


def blocks(rng: np.random.Generator, agent) -> Sample:
    observation = rng.normal(size=(T + 1, B, 4)).astype(np.float32)
    reward = rng.normal(size=(T + 1, B)).astype(np.float32)
    first = rng.random((T + 1, B)) < 0.2
    memory = agent.memory(B, None)
    params = agent.policy(agent.init(jax.random.key(1)))
    timestep = first[0] * np.float32(0)

    action, extras, _ = agent.act(
        params, jax.random.key(0), TimeStep(observation[0], timestep, timestep, first[0], first[0]), memory
    )
    action = rng.integers(3, size=(T + 1, B)).astype(np.int32)
    extras = jax.tree.map(lambda x: jnp.stack([x] * (T + 1)), extras)
    return Sample(Step(observation, action, reward, np.ones_like(reward), first, extras), memory)


def transitions(rng: np.random.Generator, agent) -> Sample:
    del agent
    o, o_next = rng.normal(size=(2, B, 4)).astype(np.float32)
    reward = rng.normal(size=B).astype(np.float32)
    steps = Transition(o, rng.integers(3, size=B).astype(np.int32), reward, np.full(B, 0.9, np.float32), o_next)
    return Sample(steps, likelihood=np.ones(B, np.float32))


ON_POLICY = {"unroll_length": T, "batch_size": B}
MLP = {"torso": "mlp", "frame_stack": 1}
DQN = MLP | {"batch_size": B, "target_period": 2}
AGENTS = {
    "a2c": (a2c.make(a2c.Config(**MLP, **ON_POLICY), SPEC), blocks),
    "q_learning": (q_learning.make(q_learning.Config(hidden_sizes=(8,), target_period=2, **ON_POLICY), SPEC), blocks),
    "n_step_q": (q_learning.make(q_learning.Config(form="n_step_q", **ON_POLICY), SPEC), blocks),
    "dqn": (dqn.make(dqn.Config(double=True, **DQN), SPEC), transitions),
}


@pytest.mark.parametrize("name", AGENTS)
def test_an_update_is_its_halves_wherever_they_are_computed(name):
    """The update of two devices equals one that applies the mean of two gradients, each computed alone. A worker's
    state has no optimiser state."""
    agent, samples = AGENTS[name]
    by = by_gradients(agent)
    rng, key = np.random.default_rng(0), jax.random.key(2)
    state = agent.init(jax.random.key(0))
    ours = theirs = jax.tree.map(lambda x: jnp.stack([x, x]), state)
    update = jax.vmap(agent.update, axis_name=AXIS)
    apply = jax.vmap(by.update, axis_name=AXIS)
    keys = jax.random.split(key, 2)
    for _ in range(3):
        both = [samples(rng, agent) for _ in range(2)]
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *both)
        ours, expected = update(ours, keys, stacked)
        one = jax.tree.map(lambda x: x[0], theirs)
        assert by.policy(one).opt_state == ()
        gradients = [agent.gradient(by.policy(one), k, sample) for k, sample in zip(keys, both, strict=True)]
        if name not in ("dqn", "a2c"):
            # These agents divide by the mean number of live rows of all devices, which a worker alone does not know.
            live = [float((~sample.steps.first[1:]).sum()) for sample in both]
            scale = [x / np.mean(live) for x in live]
            gradients = [(jax.tree.map(lambda x, s=s: s * x, g), f) for (g, f), s in zip(gradients, scale, strict=True)]
        travelling = [Gradient(g, f.metrics, np.int64(0), np.int64(1)) for g, f in gradients]
        theirs, feedback = apply(theirs, keys, jax.tree.map(lambda *x: jnp.stack(x)[:, None], *travelling))
        assert feedback.metrics.keys() == expected.metrics.keys()
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-4, atol=1e-6), ours, theirs)
    start = jax.tree.leaves(state.params)
    moved = [bool((x != y[0]).any()) for x, y in zip(start, jax.tree.leaves(ours.params), strict=True)]
    assert any(moved)


@pytest.mark.parametrize("name", AGENTS)
def test_who_pulls_a_state_acts_as_with_its_parameters(name):

    agent, _ = AGENTS[name]
    by = by_gradients(agent)
    state, memory = agent.init(jax.random.key(0)), agent.memory(B, None)
    number = np.zeros(B, np.float32)
    timestep = TimeStep(np.ones((B, 4), np.float32), number, number, np.ones(B, bool), np.zeros(B, bool))
    for act, same in ((agent.act, by.act), (agent.act_greedily, by.act_greedily)):
        expected = act(agent.policy(state), jax.random.key(3), timestep, memory)
        got = same(by.policy(state), jax.random.key(3), timestep, memory)
        jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_agents_whose_gradients_cannot_travel_are_refused():
    prioritized = dqn.make(dqn.Config(replay="prioritized", **DQN), SPEC)
    with pytest.raises(ValueError, match="replay=uniform"):
        by_gradients(prioritized)
    bounds = BoundedActions(-np.ones(1, np.float32), np.ones(1, np.float32))
    whole = d4pg.make(d4pg.Config(), EnvironmentSpec((4,), np.dtype(np.float32), bounds))
    with pytest.raises(ValueError, match="travels=experience"):
        by_gradients(whole)
    with pytest.raises(ValueError, match="travels=experience"):
        by_gradients(AGENTS["q_learning"][0]._replace(in_order=True))
