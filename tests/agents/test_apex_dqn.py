"""Ape-X DQN against its paper (https://arxiv.org/abs/1803.00933); what it shares with DQN is in test_dqn.py."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents import apex_dqn, dqn
from agents.agent import DiscreteActions, EnvironmentSpec, Sample, TimeStep, Transition, Transitions

A = 4
SPEC = EnvironmentSpec((3,), np.dtype(np.float32), DiscreteActions(A))
SMALL = {"torso": "mlp", "frame_stack": 1, "hidden_sizes": (7,), "min_replay_size": 10}


def make(**fields):
    return apex_dqn.make(apex_dqn.Config(**{**SMALL, **fields}), SPEC)


def random_sample(seed: int, B: int = 8) -> Sample:
    rng = np.random.default_rng(seed)
    transition = Transition(
        observation=rng.normal(size=(B, 3)).astype(np.float32),
        action=rng.integers(A, size=B).astype(np.int32),
        reward=rng.normal(size=B).astype(np.float32),
        discount=np.where(rng.random(B) < 0.3, 0.0, 0.9).astype(np.float32),
        next_observation=rng.normal(size=(B, 3)).astype(np.float32),
    )
    return Sample(transition, (), np.exp(rng.normal(size=B)).astype(np.float32))


def timestep(B: int) -> TimeStep:
    zeros = np.zeros(B, np.float32)
    return TimeStep(np.zeros((B, 3), np.float32), zeros, zeros + 1, zeros == 0, zeros > 0)


def randomized(state, seed: int = 0):
    rng = np.random.default_rng(seed)

    def noisy(x):
        return jnp.asarray(x + 0.6 * rng.normal(size=x.shape), jnp.float32)

    return state._replace(
        params=jax.tree.map(noisy, state.params), target_params=jax.tree.map(noisy, state.target_params)
    )


def explored(agent, params, ranks, copies: int) -> np.ndarray:
    """Returns, for each rank, the share of its actions that were not the greedy ones."""
    B = copies * len(ranks)
    memory = agent.memory(B, np.repeat(np.float32(ranks), copies))
    action, extras, memory = jax.jit(agent.act)(params, jax.random.key(0), timestep(B), memory)
    greedy, _, _ = jax.jit(agent.act_greedily)(params, jax.random.key(0), timestep(B), memory)
    np.testing.assert_array_equal(memory.rank, np.repeat(np.float32(ranks), copies))
    assert extras == {}
    return np.mean(np.asarray(action != greedy).reshape(len(ranks), copies), axis=1)


def test_each_environment_has_its_own_epsilon():
    """As in section 4.1, epsilon_i = epsilon^(1 + alpha i / (N - 1)) for i = 0 .. N - 1."""
    N, copies, epsilon, alpha = 5, 20_000, 0.6, 3.0
    agent = make(epsilon=epsilon, epsilon_spread=alpha)
    params = agent.policy(randomized(agent.init(jax.random.key(0))))
    epsilons = np.array([epsilon ** (1 + alpha * i / (N - 1)) for i in range(N)])
    p = epsilons * (A - 1) / A  # one random action in A is the greedy one
    got = explored(agent, params, [i / (N - 1) for i in range(N)], copies)
    assert (np.abs(got - p) < 4 * np.sqrt(p * (1 - p) / copies)).all(), (got, p)


def test_the_papers_ladder():
    agent = make()
    params = agent.policy(randomized(agent.init(jax.random.key(0))))
    np.testing.assert_allclose(params.dqn.epsilon, 0.4, rtol=1e-6)
    got = explored(agent, params, [0.0, 1.0], 20_000)
    np.testing.assert_allclose(got, [0.4 * 0.75, 0.4**8 * 0.75], atol=0.012)
    assert 0 < got[1] < 0.003


def test_a_runs_only_environment_has_epsilon_itself():
    """Its rank is 0, as is every rank where no ranks are given."""
    agent = make(epsilon=0.3)
    params = agent.policy(randomized(agent.init(jax.random.key(0))))
    np.testing.assert_allclose(explored(agent, params, [0.0], 20_000), 0.3 * 0.75, atol=0.012)
    a, b = (agent.act(params, jax.random.key(0), timestep(64), agent.memory(64, r))[0] for r in (None, np.zeros(64)))
    np.testing.assert_array_equal(a, b)


def test_epsilon_is_the_states():
    """Epsilon is the state's `epsilon_final`, which a population may tune, and does not change with the number of
    updates."""
    agent = make()
    state = agent.init(jax.random.key(0))
    for step in (0, 10**6):
        np.testing.assert_allclose(agent.policy(state._replace(step=jnp.int32(step))).dqn.epsilon, 0.4, rtol=1e-6)
    tuned = state._replace(hypers=state.hypers._replace(epsilon_final=jnp.float32(0.1)))
    np.testing.assert_allclose(agent.policy(tuned).dqn.epsilon, 0.1, rtol=1e-6)


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("dueling", [True, False])
def test_actors_priorities_are_the_updates_own(double, dueling):
    agent = make(double=double, dueling=dueling)
    state, sample = randomized(agent.init(jax.random.key(0))), random_sample(0)
    priorities = jax.jit(agent.priority)(agent.policy(state), sample.steps)
    _, feedback = jax.jit(agent.update)(state, jax.random.key(5), sample)
    assert priorities.shape == (8,) and np.ptp(priorities) > 0.1
    np.testing.assert_allclose(priorities, feedback.priorities, rtol=1e-5)


def test_actors_priorities_are_those_of_stacked_frames():
    spec = dataclasses.replace(SPEC, observation_shape=(20, 20), observation_dtype=np.dtype(np.uint8))
    agent = apex_dqn.make(apex_dqn.Config(torso="shallow", frame_stack=3, min_replay_size=10), spec)
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (2, 4, 3, 20, 20), dtype=np.uint8)
    sample = random_sample(0, B=4)
    sample = sample._replace(steps=sample.steps._replace(observation=frames[0], next_observation=frames[1]))
    state = agent.init(jax.random.key(0))
    priorities = jax.jit(agent.priority)(agent.policy(state), sample.steps)
    _, feedback = jax.jit(agent.update)(state, jax.random.key(0), sample)
    np.testing.assert_allclose(priorities, feedback.priorities, rtol=1e-4, atol=1e-5)
    assert agent.memory(5, None).dqn.frames.shape == (5, 2, 20, 20)


def test_update_is_dqns():
    apex = make(n_step=3)
    fields = {"dueling": True, "double": True, "loss": "squared", "replay": "prioritized", "n_step": 3}
    numbers = {"importance_exponent": 0.4, "importance_steps": 0, "max_gradient_norm": 40.0, "batch_size": 512}
    fields["head_size"] = 512
    paper = {"learning_rate": 2.5e-4 / 4, "optimizer_epsilon": 1.5e-7, "rmsprop_decay": 0.95, "target_period": 2500}
    sizes = {"replay_size": 2_000_000, "samples_per_insert": 0.8}
    epsilons = {"epsilon_initial": 0.4, "epsilon_final": 0.4, "epsilon_steps": 0}
    plain = dqn.make(dqn.Config(**SMALL, **fields, **numbers, **paper, **sizes, **epsilons), SPEC)
    state = randomized(apex.init(jax.random.key(0)))
    got = jax.jit(apex.update)(state, jax.random.key(1), random_sample(0))
    expected = jax.jit(plain.update)(state, jax.random.key(1), random_sample(0))
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    assert apex.table == plain.table and apex.batch_size == 512
    table = apex.table
    assert table.kind == "prioritized" and table.priority_exponent == 0.6 and table.items == Transitions(3, 0.99)


def test_every_field_of_dqns_is_one_of_ours():
    ours, theirs = ({f.name for f in dataclasses.fields(m.Config)} for m in (apex_dqn, dqn))
    schedule = {"epsilon_initial", "epsilon_final", "epsilon_steps"}
    assert ours == theirs - {"replay"} - schedule | {"epsilon", "epsilon_spread"}


@pytest.mark.parametrize(
    ("field", "value"), [("epsilon", 0.0), ("epsilon", 1.0), ("epsilon", np.nan), ("epsilon_spread", -1.0)]
)
def test_settings_out_of_range_are_refused(field, value):
    with pytest.raises(ValueError, match=f"config.{field} must be"):
        apex_dqn.Config(**{field: value})
