"""DDPG, D4PG and TD3 may step the policy at every second or third update only; the critic steps at every update."""

import itertools

import jax
import numpy as np
import pytest

from agents import d4pg, ddpg, td3
from agents.agent import BoundedActions, EnvironmentSpec, Sample, Transition

BOUND = np.ones(2, np.float32)
SPEC = EnvironmentSpec((3,), np.dtype(np.float32), BoundedActions(-BOUND, BOUND))
MODULES = {"ddpg": ddpg, "d4pg": d4pg, "td3": td3}


def sample(number: int) -> Sample:
    rng = np.random.default_rng(number)

    def normal(*shape):
        return rng.normal(size=(8, *shape)).astype(np.float32)

    return Sample(Transition(normal(3), np.tanh(normal(2)), normal(), np.full(8, 0.9, np.float32), normal(3)))


def states(name: str, period: int, updates: int):
    """Returns the state before the first update and after each, and the metrics of each update."""
    agent = MODULES[name].make(MODULES[name].Config(hidden_sizes=(8,), batch_size=8, policy_period=period), SPEC)
    found, metrics, update = [jax.jit(agent.init)(jax.random.key(0))], [], jax.jit(agent.update)
    for number in range(updates):
        state, feedback = update(found[-1], jax.random.key(number), sample(number))
        found.append(state)
        metrics.append({name: float(value) for name, value in feedback.metrics.items()})
    return found, metrics


def differ(one, other) -> bool:
    return any(np.any(x != y) for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("period", [1, 2, 3])
def test_the_policy_steps_once_in_a_period_and_the_critic_always(name, period):
    found, metrics = states(name, period, 6)
    for number, (before, after) in enumerate(itertools.pairwise(found), 1):
        due = number % period == 0
        assert differ(before.params.policy, after.params.policy) == due
        assert differ(before.opt_state.policy, after.opt_state.policy) == due, "nor its moments"
        assert differ(before.params.critic, after.params.critic)
        assert (metrics[number - 1]["policy_gradient_norm"] > 0) == due
        assert np.isfinite(list(metrics[number - 1].values())).all()


@pytest.mark.parametrize("name", MODULES)
def test_a_step_that_is_due_is_the_usual_one(name):
    """From one state, whose step count makes a step due for both, agents with periods of 1 and 4 make the same
    update."""
    usual, rare = (
        MODULES[name].make(MODULES[name].Config(hidden_sizes=(8,), batch_size=8, policy_period=period), SPEC)
        for period in (1, 4)
    )
    state = jax.jit(usual.init)(jax.random.key(1))._replace(step=np.int32(3))
    one, other = (jax.jit(agent.update)(state, jax.random.key(2), sample(5)) for agent in (usual, rare))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7), one, other)
