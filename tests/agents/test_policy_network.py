"""A network's inputs, which must be the same in acting, in evaluation and in learning."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents import a2c, impala, ppo, ppo_rnd, vmpo
from agents.agent import BoundedActions, DiscreteActions, EnvironmentSpec, FactoredActions, Sample, Step, TimeStep
from agents.parts import policy_network

T, B = 7, 3
LOW, HIGH = np.float32([-2.0, 0.0]), np.float32([2.0, 6.0])
ACTIONS = {
    "discrete": DiscreteActions(3),
    "factored": FactoredActions((2, 3)),
    "bounded": BoundedActions(LOW, HIGH),
}
MODULES = {"a2c": a2c, "impala": impala, "ppo": ppo, "ppo_rnd": ppo_rnd, "vmpo": vmpo}
OPTIONS = {
    "torso": "mlp", "hidden_sizes": (6,), "lstm_size": 4, "frame_stack": 1, "unroll_length": T, "batch_size": B,
    "lstm_previous": True,
}  # fmt: skip


def spec_of(actions: str) -> EnvironmentSpec:
    return EnvironmentSpec((2,), np.dtype(np.float32), ACTIONS[actions])


def config_of(module, **more):
    own = {"minibatches": 1, "epochs": 1} if module in (ppo, ppo_rnd) else {}
    return module.Config(**OPTIONS | own | more)


def timesteps(rng: np.random.Generator, length: int):
    """Yields timesteps of episodes that end at random."""
    first = np.ones(B, bool)
    for _ in range(length):
        reward = np.where(first, 0, rng.normal(size=B)).astype(np.float32)
        yield TimeStep(rng.normal(size=(B, 2)).astype(np.float32), reward, np.ones(B, np.float32), first, first)
        first = rng.random(B) < 0.3


def randomised(params, scale: float = 0.5):
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(9), len(leaves))
    return structure.unflatten([scale * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves)])


@pytest.mark.parametrize("actions", ACTIONS)
def test_learning_sees_what_acting_saw(actions):
    """This holds for every row of two consecutive blocks, also for the last row, of which only the observation is
    known."""
    spec, config = spec_of(actions), config_of(impala)
    f = policy_network.functions("impala", config, spec)
    params, memory = randomised(f.init(jax.random.key(0))), f.memory(B, None)
    told, rows, befores = [], [], []
    for t, timestep in enumerate(timesteps(np.random.default_rng(1), 2 * T + 1)):
        befores.append(memory)
        outputs, memory = f.outputs(params, timestep, memory)
        action, extras, memory = f.play(f.policy.sample(jax.random.key(t), outputs), timestep, memory)
        told.append(outputs)
        rows.append((timestep, action, extras))

    for start in (0, T):
        block = rows[start : start + T + 1]
        steps = [
            Step(now.observation, action, after.reward, after.discount, now.first, extras)
            for (now, action, extras), (after, _, _) in itertools.pairwise(block)
        ]
        last = block[-1][0]
        answer = jax.tree.map(jnp.zeros_like, steps[-1])._replace(observation=last.observation, first=last.first)
        steps = jax.tree.map(lambda *x: jnp.stack(x), *steps, answer)
        outputs, _ = f.unroll(params, steps, befores[start])
        np.testing.assert_allclose(outputs, np.stack(told[start : start + T + 1]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("actions", ACTIONS)
def test_the_network_depends_on_the_last_action_and_reward_but_at_an_episodes_first_row(actions):
    spec = spec_of(actions)
    f = policy_network.functions("impala", config_of(impala), spec)
    params = randomised(f.init(jax.random.key(0)))
    one = next(iter(timesteps(np.random.default_rng(0), 1)))
    other = {"discrete": 2, "factored": np.array([1, 2]), "bounded": np.float32([1.5, 4.0])}[actions]
    memory = f.memory(B, None)
    changed = memory._replace(previous_action=jnp.zeros_like(memory.previous_action) + other)
    for first in (False, True):
        timestep = one._replace(first=np.full(B, first))
        plain, _ = f.outputs(params, timestep, memory)
        for case in (
            f.outputs(params, timestep, changed)[0],
            f.outputs(params, timestep._replace(reward=one.reward + 2.0), memory)[0],
        ):
            assert (np.abs(case - plain).max() > 1e-3) != first


@pytest.mark.parametrize("name", MODULES)
def test_evaluations_remember_the_action_that_was_played(name):
    """The memory holds the action that was chosen, greedily or not, and after `agent.acted` the action that replaced
    it."""
    module, spec = MODULES[name], spec_of("discrete")
    agent = module.make(config_of(module), spec)
    state = agent.init(jax.random.key(0))
    timestep = next(iter(timesteps(np.random.default_rng(0), 1)))
    for act in (agent.act, agent.act_greedily):
        action, _, memory = act(agent.policy(state), jax.random.key(1), timestep, agent.memory(B, None))
        np.testing.assert_array_equal(memory.previous_action, action)
        replaced = agent.acted(memory, jnp.full(B, 2))
        np.testing.assert_array_equal(replaced.previous_action, [2] * B)
    plain = module.make(dataclasses.replace(config_of(module), lstm_previous=False), spec)
    assert plain.acted is None and plain.memory(B, None).previous_action == ()


@pytest.mark.parametrize("name", MODULES)
def test_an_lstm_with_the_last_action_learns(name):
    """An update is finite and moves all parameters, those of the added inputs included."""
    module, spec = MODULES[name], spec_of("discrete")
    agent = module.make(config_of(module), spec)
    state, memory, rows = agent.init(jax.random.key(0)), agent.memory(B, None), []
    before = memory
    for t, timestep in enumerate(timesteps(np.random.default_rng(2), T + 1)):
        action, extras, memory = agent.act(agent.policy(state), jax.random.key(t), timestep, memory)
        rows.append(Step(timestep.observation, action, timestep.reward, timestep.discount, timestep.first, extras))
    steps = jax.tree.map(lambda *x: np.stack(x), *rows)
    steps = steps._replace(reward=np.roll(steps.reward, -1, axis=0))
    after, feedback = jax.jit(agent.update)(state, jax.random.key(0), Sample(steps, before))
    assert all(np.isfinite(x) for x in feedback.metrics.values())
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), state.params, after.params)
    assert min(jax.tree.leaves(moved)) > 0


@pytest.mark.parametrize("name", MODULES)
def test_it_needs_an_lstm(name):
    module = MODULES[name]
    with pytest.raises(ValueError, match="lstm_previous=True is for networks with an LSTM"):
        module.make(config_of(module, lstm_size=0), spec_of("discrete"))
