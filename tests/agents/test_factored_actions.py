"""Factored actions: the agents that take them, and the agents whose refusal names those."""

import importlib

import jax
import numpy as np
import pytest

from agents.agent import EnvironmentSpec, FactoredActions, Sample, Step, TimeStep

SIZES, D, B, T = (3, 2, 4), 5, 4, 8
SPEC = EnvironmentSpec((D,), np.dtype(np.float32), FactoredActions(SIZES), max_episode_steps=10)
NETWORK = {"torso": "mlp", "frame_stack": 1, "hidden_sizes": (8,)}
LEARNERS = {
    "a2c": NETWORK,
    "impala": NETWORK,
    "ppo": NETWORK | {"minibatches": 2, "epochs": 2},
    "ppo_rnd": NETWORK | {"minibatches": 2, "epochs": 2, "features": 8, "learning_rate": 1e-3},
    "trpo": {"hidden_sizes": (8,)},
    "vmpo": NETWORK | {"learning_rate": 1e-2, "target_period": 1},
}


@pytest.mark.parametrize("name", LEARNERS)
def test_acts_and_learns(name):
    """An action is a choice for every factor, within the factor's size. From one observation alone, the agent learns
    the choices that are rewarded."""
    module = importlib.import_module(f"agents.{name}")
    agent = module.make(module.Config(**LEARNERS[name], unroll_length=T, batch_size=B), SPEC)
    state, memory = jax.jit(agent.init)(jax.random.key(0)), agent.memory(B, None)
    zeros, no = np.zeros(B, np.float32), np.zeros(B, bool)
    act, update = jax.jit(agent.act), jax.jit(agent.update)
    observation = np.ones((B, D), np.float32)
    early, late = [], []
    for i in range(30):
        before, rows = memory, []
        for t in range(T + 1):
            timestep = TimeStep(observation, zeros, zeros + 1, no | (i + t == 0), no)
            action, extras, memory = act(agent.policy(state), jax.random.key(100 * i + t), timestep, memory)
            assert action.shape == (B, 3) and action.dtype == np.int32
            assert (action >= 0).all() and (np.asarray(action) < SIZES).all()
            reward = np.mean(np.asarray(action) == [2, 0, 1], axis=-1).astype(np.float32)
            rows.append(Step(observation, action, reward, zeros, timestep.first, extras))
        steps = jax.tree.map(lambda *x: np.stack(x), *rows)
        state, feedback = update(state, jax.random.key(i), Sample(steps, before))
        assert all(np.isfinite(x) for x in jax.tree.leaves(feedback.metrics))
        (early if i < 10 else late).append(steps.reward.mean())
    assert np.mean(late[-10:]) > np.mean(early) + 0.02


REFUSING = ["apex_dpg", "apex_dqn", "d4pg", "ddpg", "dpg", "dqn", "iqn", "mpo", "munchausen_dqn", "pqn", "q_learning"]
REFUSING += ["qr_dqn", "r2d2", "rainbow", "sac", "td3"]


@pytest.mark.parametrize("name", REFUSING)
def test_refused_in_one_line_that_names_who_takes_them(name):
    module = importlib.import_module(f"agents.{name}")
    needed = "(discrete|continuous|discrete or continuous)"
    message = rf"^{name} needs {needed} actions; this environment's are factored; use a2c, impala, ppo"
    with pytest.raises(ValueError, match=message) as error:
        module.make(module.Config(), SPEC)
    assert "\n" not in str(error.value)
