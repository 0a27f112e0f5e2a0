"""Ape-X DPG against its paper (https://arxiv.org/abs/1803.00933); what it shares with the others is in test_ddpg.py."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents import apex_dpg, d4pg
from agents.agent import BoundedActions, EnvironmentSpec, Sample, TimeStep, Transition

LOW, HIGH = np.array([-1.0, 0.0], np.float32), np.array([3.0, 0.5], np.float32)
SPEC = EnvironmentSpec((3,), np.dtype(np.float64), BoundedActions(LOW, HIGH))


def make(**fields):
    return apex_dpg.make(apex_dpg.Config(**{"hidden_sizes": (7, 5), "v_min": -5.0, "v_max": 5.0, **fields}), SPEC)


def random_sample(seed: int, B: int = 8) -> Sample:
    rng = np.random.default_rng(seed)
    transition = Transition(
        observation=rng.normal(size=(B, 3)),
        action=rng.uniform(LOW, HIGH, (B, 2)).astype(np.float32),
        reward=rng.normal(size=B).astype(np.float32),
        discount=np.where(rng.random(B) < 0.3, 0.0, 0.9).astype(np.float32),
        next_observation=rng.normal(size=(B, 3)),
    )
    return Sample(transition, (), np.exp(rng.normal(size=B)).astype(np.float32))


def timestep(B: int) -> TimeStep:
    zeros = np.zeros(B, np.float32)
    return TimeStep(np.zeros((B, 3)), zeros, zeros + 1, zeros == 0, zeros > 0)


def randomized(state, seed: int = 0):
    rng = np.random.default_rng(seed)

    def noisy(x):
        return jnp.asarray(x + 0.4 * rng.normal(size=x.shape), jnp.float32)

    return state._replace(
        params=jax.tree.map(noisy, state.params), target_params=jax.tree.map(noisy, state.target_params)
    )


@pytest.mark.parametrize("noise", ["gaussian", "ou"])
def test_each_environment_has_its_own_noise(noise):
    """The noise's standard deviation is noise_scale^(1 + noise_spread rank) times half the range of actions, for either
    kind of noise."""
    agent = make(noise=noise, noise_scale=0.3, noise_spread=3.0)
    params = agent.policy(agent.init(jax.random.key(0)))
    ranks, copies = np.array([0.0, 0.25, 0.5, 1.0], np.float32), 5000
    memory = agent.memory(4 * copies, np.repeat(ranks, copies))
    noisy, extras, memory = jax.jit(agent.act)(params, jax.random.key(0), timestep(4 * copies), memory)
    greedy, _, _ = jax.jit(agent.act_greedily)(params, jax.random.key(0), timestep(4 * copies), memory)
    std = np.std(np.asarray((noisy - greedy) / ((HIGH - LOW) / 2)).reshape(4, copies, 2), axis=1)
    np.testing.assert_allclose(std, np.repeat(0.3 ** (1 + 3.0 * ranks)[:, None], 2, axis=1), rtol=0.05)
    np.testing.assert_array_equal(memory.rank, np.repeat(ranks, copies))
    assert extras == {}


def test_without_ranks_all_explore_as_the_first():
    agent = make()
    params = agent.policy(agent.init(jax.random.key(0)))
    a, _, _ = agent.act(params, jax.random.key(0), timestep(4), agent.memory(4))
    b, _, _ = agent.act(params, jax.random.key(0), timestep(4), agent.memory(4, np.zeros(4, np.float32)))
    c, _, _ = agent.act(params, jax.random.key(0), timestep(4), agent.memory(4, np.ones(4, np.float32)))
    np.testing.assert_array_equal(a, b)
    assert np.abs(a - b).max() < np.abs(a - c).max()


@pytest.mark.parametrize("critic", ["categorical", "gaussians"])
def test_actors_priorities_are_the_updates_own(critic):
    agent = make(critic=critic)
    state = randomized(agent.init(jax.random.key(0)))
    sample = random_sample(0)
    priorities = jax.jit(agent.priority)(agent.policy(state), sample.steps)
    _, feedback = jax.jit(agent.update)(state, jax.random.key(5), sample)
    assert priorities.shape == (8,) and np.ptp(priorities) > 0.1
    np.testing.assert_allclose(priorities, feedback.priorities, rtol=1e-4, atol=1e-6)


def test_actors_priorities_normalise():
    """Actors normalise by the statistics that were published with the parameters; the learner's update would first
    bring them up to date."""
    agent, plain = make(normalize_observations=True), make()
    state = randomized(agent.init(jax.random.key(0)))
    mean, variance = np.array([1.0, 2.0, 3.0], np.float32), np.array([4.0, 9.0, 0.25], np.float32)
    state = state._replace(normalizer=state.normalizer._replace(mean=mean, variance=variance))
    t = random_sample(0).steps
    raw = t._replace(
        observation=mean + np.sqrt(variance) * t.observation,
        next_observation=mean + np.sqrt(variance) * t.next_observation,
    )
    got = jax.jit(agent.priority)(agent.policy(state), raw)
    expected = jax.jit(plain.priority)(plain.policy(state._replace(normalizer=())), t)
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-5)


def test_update_is_d4pgs():
    fields = {"hidden_sizes": (7, 5), "v_min": -5.0, "v_max": 5.0, "num_atoms": 11, "n_step": 3}
    apex = make(**fields)
    weights = {"importance_exponent": 0.4, "normalize_weights": True, "max_gradient_norm": 40.0}
    plain = d4pg.make(d4pg.Config(**fields, **weights, replay="prioritized"), SPEC)
    state = randomized(apex.init(jax.random.key(0)))
    got = jax.jit(apex.update)(state, jax.random.key(1), random_sample(0))
    expected = jax.jit(plain.update)(state, jax.random.key(1), random_sample(0))
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    assert apex.table == plain.table and apex.table.kind == "prioritized"


def test_every_field_of_d4pgs_is_one_of_ours():
    ours, theirs = ({f.name for f in dataclasses.fields(m.Config)} for m in (apex_dpg, d4pg))
    assert ours == theirs - {"replay"} | {"noise_spread", "eviction_exponent"}


@pytest.mark.parametrize(("field", "value"), [("noise_spread", -1.0), ("noise_scale", 1.5), ("v_min", 1e9)])
def test_settings_out_of_range_are_refused(field, value):
    with pytest.raises(ValueError, match=f"config.{field}"):
        apex_dpg.Config(**{field: value})
