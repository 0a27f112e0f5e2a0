"""PQN against Gallici et al. 2024, restated as plainly as can be."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from agents import pqn, q_learning
from agents.agent import AXIS, Blocks, BoundedActions, DiscreteActions, EnvironmentSpec, Sample, TimeStep
from agents.parts import torsos
from tests.agents.test_q_learning import random_steps

D, A, T, B = 3, 3, 6, 4
SPEC = EnvironmentSpec((D,), np.dtype(np.float32), DiscreteActions(A))
SMALL = {"torso": "mlp", "frame_stack": 1, "hidden_sizes": (8,), "unroll_length": T, "batch_size": B, "minibatches": 4}


def make(**fields):
    return pqn.make(pqn.Config(**SMALL | fields), SPEC)


def naive_targets(q, steps, gamma: float, lambda_: float) -> np.ndarray:
    """Returns the targets [T, B], computed backwards, one environment after another. Rows that are no transitions have
    NaN."""
    rows, batch = steps.reward[:-1].shape
    targets = np.full((rows, batch), np.nan)
    for b in range(batch):
        R = None  # the target of the row after, if this is of the same episode
        for t in reversed(range(rows)):
            if steps.first[t + 1, b]:  # the episode's last observation
                R = None
                continue
            best = q[t + 1, b].max()
            ahead = best if R is None else lambda_ * R + (1 - lambda_) * best
            R = targets[t, b] = steps.reward[t, b] + gamma * steps.discount[t, b] * ahead
    return targets


@pytest.mark.parametrize("lambda_", [0.0, 0.65, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_targets_are_the_loops(lambda_, seed):
    """This holds whatever ends a return: the block's end, a termination, a truncation, or a row whose action is thrown
    away."""
    steps, gamma = random_steps(seed, 9, 5), 0.9
    q = np.random.default_rng(seed).normal(size=(10, 5, A)).astype(np.float32)
    live = steps.live
    got = np.asarray(pqn.q_lambda_targets(q, steps.reward[:-1], gamma * steps.discount[:-1], live, lambda_))
    expected = naive_targets(q, steps, gamma, lambda_)
    assert (np.isnan(expected) == (live == 0)).all() and np.isfinite(got).all()
    np.testing.assert_allclose(got[live > 0], expected[live > 0], atol=1e-5)
    closing = (live[:-1] > 0) & (live[1:] == 0)
    assert {0.0, 1.0} <= set(steps.discount[:-2][closing]), "an episode was terminated, and one was truncated"


def test_a_lambda_of_0_is_q_learning_and_of_1_is_n_step_q_learning():
    steps = random_steps(1, T, B)
    q = np.random.default_rng(0).normal(size=(T + 1, B, A)).astype(np.float32)
    rows = steps.reward[:-1], 0.9 * steps.discount[:-1]
    chosen = np.take_along_axis(q[:-1], steps.action[:-1, :, None], axis=-1)[..., 0]
    one_step = q_learning.td_errors("q_learning", q, steps.action, *rows, 0.1, q)
    n_step = q_learning.n_step_errors(q, steps.action, *rows, steps.live, q)
    for lambda_, errors in ((0.0, one_step), (1.0, n_step)):
        got = pqn.q_lambda_targets(q, *rows, steps.live, lambda_) - chosen
        np.testing.assert_allclose(steps.live * got, steps.live * np.asarray(errors), atol=1e-5)


@pytest.mark.parametrize("max_gradient_norm", [0.0, 0.1])
def test_epochs_of_minibatches_are_the_papers_loop(max_gradient_norm):
    """The targets are computed once. Then rows are shuffled, and each minibatch is a step of RAdam on the mean over its
    transitions."""
    options = {"epochs": 3, "learning_rate": 0.03, "discount": 0.9, "lambda_": 0.6, "reward_scale": 0.5}
    agent = make(**options, max_gradient_norm=max_gradient_norm)
    state, key, steps = agent.init(jax.random.key(0)), jax.random.key(7), random_steps(2, T, B, (D,))
    after, feedback = jax.jit(agent.update)(state, key, Sample(steps, agent.memory(B, None)))

    network = pqn.QNetwork("mlp", A, (8,), "relu", normalized=True)
    q = lambda params: network.apply(params, steps.observation, jnp.zeros((T + 1, B), bool), ())[0]
    targets = naive_targets(np.asarray(q(state.params)), steps._replace(reward=0.5 * steps.reward), 0.9, 0.6)
    targets, live = jnp.nan_to_num(targets).reshape(-1), jnp.asarray(steps.live).reshape(-1)

    def loss(params, rows):
        values = q(params)[:-1].reshape(-1, A)[rows]
        errors = targets[rows] - values[jnp.arange(len(rows)), jnp.asarray(steps.action[:-1]).reshape(-1)[rows]]
        return (live[rows] * 0.5 * errors**2).sum() / jnp.maximum(live[rows].sum(), 1e-6)

    clip = optax.clip_by_global_norm(max_gradient_norm) if max_gradient_norm else optax.identity()
    radam = optax.chain(clip, optax.radam(0.03))
    slope = jax.jit(jax.grad(loss))
    params, opt_state = state.params, radam.init(state.params)
    for epoch_key in jax.random.split(key, 3):
        for rows in np.asarray(jax.random.permutation(epoch_key, T * B)).reshape(4, -1):
            updates, opt_state = radam.update(slope(params, rows), opt_state)
            params = optax.apply_updates(params, updates)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4), after.params, params)
    assert any((x != y).any() for x, y in zip(*map(jax.tree.leaves, (after.params, state.params)), strict=True))
    assert after.step == 1 and all(np.isfinite(x) for x in jax.tree.leaves(feedback.metrics))


def test_rows_whose_action_was_thrown_away_teach_nothing():
    agent, steps = make(epochs=1, minibatches=2), random_steps(3, T, B, (D,))
    state, memory, dead = agent.init(jax.random.key(0)), agent.memory(B, None), np.zeros((T + 1, B), bool)
    dead[:-1] = steps.live == 0
    other = steps._replace(
        reward=np.where(dead, 1e3, steps.reward).astype(np.float32),
        action=np.where(dead, (steps.action + 1) % A, steps.action),
        discount=np.where(dead, 0.5, steps.discount).astype(np.float32),
    )
    update = jax.jit(agent.update)
    first, second = (update(state, jax.random.key(0), Sample(each, memory))[0] for each in (steps, other))
    assert dead.any()
    jax.tree.map(np.testing.assert_array_equal, first.params, second.params)


def test_epsilon_falls_with_environment_steps_and_acting_has_it():
    agent = make(epsilon_initial=0.9, epsilon_final=0.1, epsilon_env_steps=200)
    state, N = agent.init(jax.random.key(0)), 6000
    for env_steps, epsilon in [(0, 0.9), (50, 0.7), (200, 0.1), (10**9, 0.1)]:
        policy = agent.policy(state._replace(env_steps=jnp.float32(env_steps)))
        assert policy.epsilon == pytest.approx(epsilon, rel=1e-5)
        now = TimeStep(np.ones((N, D), np.float32), np.zeros(N), np.ones(N), np.zeros(N, bool), np.zeros(N, bool))
        greedy, _, _ = agent.act_greedily(policy, jax.random.key(1), now, agent.memory(N, None))
        action, extras, _ = jax.jit(agent.act)(policy, jax.random.key(1), now, agent.memory(N, None))
        assert len(set(np.asarray(greedy))) == 1 and extras == {}
        assert np.mean(np.asarray(action) != greedy) == pytest.approx(epsilon * (A - 1) / A, abs=0.03)
    constant = make(epsilon_final=0.3, epsilon_env_steps=0)
    assert constant.policy(constant.init(jax.random.key(0))).epsilon == pytest.approx(0.3)
    long = make(epsilon_env_steps=10**12)  # more than an int32 holds
    state = long.init(jax.random.key(0))._replace(env_steps=jnp.float32(5e11))
    assert long.policy(state).epsilon == pytest.approx(0.5005, rel=1e-4)


def test_two_shards_are_one_batch():
    agent = make(epochs=2, minibatches=1, learning_rate=0.01)
    state, steps, memory = agent.init(jax.random.key(0)), random_steps(5, T, B, (D,)), agent.memory(B, None)
    whole, feedback = jax.jit(agent.update)(state, jax.random.key(1), Sample(steps, memory))
    halves = Sample(jax.tree.map(lambda x: np.stack(np.split(x, 2, axis=1)), steps), memory)
    states = jax.tree.map(lambda x: jnp.stack([x, x]), state)
    sharded, fed = jax.vmap(agent.update, axis_name=AXIS)(states, jnp.stack([jax.random.key(1)] * 2), halves)
    jax.tree.map(lambda x: np.testing.assert_array_equal(x[0], x[1]), sharded.params)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y[0], atol=1e-4), whole.params, sharded.params)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y[0], rtol=1e-3), feedback.metrics, fed.metrics)


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("torso", ["mlp", "shallow", "nature"])
def test_a_normalised_torso_does_not_see_how_large_its_weights_are(torso, normalized):
    """By table 1 of Ba et al. 2016, scaling the weights of a normalised layer changes nothing."""
    network = torsos.make_torso(torso, (7, 5), "relu", jnp.float32, normalized=normalized)
    seen = np.random.default_rng(0).integers(0, 255, (2, 36, 36, 2)).astype(np.uint8)
    params = network.init(jax.random.key(0), seen)
    larger = jax.tree.map(lambda x: 3.0 * x if x.ndim > 1 else x, params)
    features = [np.asarray(network.apply(each, seen)) for each in (params, larger)]
    assert np.abs(features[0]).max() > 0.1
    assert np.allclose(*features, atol=1e-2) == normalized


@pytest.mark.parametrize(("minibatches", "multiple"), [(4, 2), (8, 4), (3, 1)])
def test_table_and_the_least_share_of_a_device(minibatches, multiple):
    agent = make(minibatches=minibatches)
    assert agent.table.items == Blocks(T) and agent.table.kind == "queue" and agent.batch_size == B
    assert agent.share_multiple == multiple


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"minibatches": 5}, "minibatches=5 does not divide a batch of 24 rows"),
        ({"epochs": 0}, "epochs"),
        ({"lambda_": 1.1}, "lambda_"),
        ({"epsilon_env_steps": -1}, "epsilon_env_steps"),
    ],
)
def test_settings_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        pqn.Config(**SMALL | options)


def test_continuous_actions_are_refused():
    ones = np.ones(2, np.float32)
    with pytest.raises(ValueError, match=r"^pqn needs discrete actions"):
        pqn.make(pqn.Config(**SMALL), EnvironmentSpec((D,), np.dtype(np.float32), BoundedActions(-ones, ones)))
