"""QR-DQN against its paper (https://arxiv.org/abs/1710.10044); what it shares with DQN is in test_action_values.py."""

import jax
import numpy as np
import pytest

from agents import qr_dqn
from agents.parts.distributions import quantile_distance
from tests.agents.transitions import (
    assert_trees_close,
    finite_differences,
    float64,
    gradient_of,
    make,
    np_outputs,
    np_rho,
    random_sample,
    random_transition,
    randomized,
    timestep,
)

N = 4
TAU_HAT = [(2 * i + 1) / (2 * N) for i in range(N)]


def theta_of(params, x):
    """theta_i(x, a), [A, N]."""
    return np_outputs(params, x, N)


@pytest.mark.parametrize("kappa", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("seed", range(3))
def test_the_quantile_huber_loss_is_the_double_loop(kappa, seed):
    """Differences above 0 have the weight tau, those below 1 - tau. The loss sums over quantiles the means over
    targets."""
    rng = np.random.default_rng(seed)
    quantiles, targets = 2 * rng.normal(size=(5, 4)), 2 * rng.normal(size=(5, 7))
    for fractions in (rng.random(4), rng.random((5, 4))):
        got = quantile_distance(*(x.astype(np.float32) for x in (quantiles, fractions, targets)), kappa)
        tau = np.broadcast_to(fractions, (5, 4))
        expected = [
            sum(sum(np_rho(tau[b, i], targets[b, j] - quantiles[b, i], kappa) for j in range(7)) / 7 for i in range(4))
            for b in range(5)
        ]
        np.testing.assert_allclose(got.losses, expected, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(got.errors, np.array(expected) / 4, rtol=1e-4, atol=1e-6)


def test_the_loss_is_least_at_the_quantiles():
    rng = np.random.default_rng(0)
    samples = np.sort(rng.exponential(size=(1, 400))).astype(np.float32)
    fractions = np.float32([0.1, 0.5, 0.9])

    def loss(q):
        return quantile_distance(q, fractions, samples, 0.0).losses.sum()

    q = np.zeros((1, 3), np.float32)
    step = jax.jit(lambda q: q - 0.02 * jax.grad(loss)(q))
    for _ in range(3_000):
        q = step(q)
    np.testing.assert_allclose(q[0], np.quantile(samples, fractions), atol=0.06)
    np.testing.assert_array_equal(
        jax.grad(lambda targets: quantile_distance(q, fractions, targets, 1.0).losses.sum())(samples), 0.0
    )


@pytest.mark.parametrize(
    ("double", "dueling", "replay", "kappa"),
    [
        (False, False, "uniform", 1.0),
        (True, False, "uniform", 0.3),
        (False, True, "uniform", 1.0),
        (True, True, "prioritized", 1.0),
    ],
)
def test_update_is_algorithm_1(double, dueling, replay, kappa):
    fields = {"double": double, "dueling": dueling, "replay": replay, "kappa": kappa}
    agent = make(qr_dqn, num_quantiles=N, **fields, importance_exponent=0.7, importance_steps=0)
    state, sample = randomized(agent.init(jax.random.key(0))), random_sample(1, B=6)
    new, feedback = jax.jit(agent.update)(state, jax.random.key(1), sample)
    params, target_params, t = float64(state.params), float64(state.target_params), sample.steps
    targets = []
    for j in range(6):
        next_theta = theta_of(target_params, t.next_observation[j])
        selector = theta_of(params, t.next_observation[j]) if double else next_theta
        a_star = np.argmax([sum(row) / N for row in selector])
        targets.append([t.reward[j] + t.discount[j] * x for x in next_theta[a_star]])
    weights = np.ones(6)
    if replay == "prioritized":
        weights = (1 / sample.likelihood.astype(np.float64)) ** 0.7
        weights /= weights.max()

    def losses(params):
        found = []
        for j in range(6):
            theta = theta_of(params, t.observation[j])[t.action[j]]
            rho = [[np_rho(TAU_HAT[i], targets[j][k] - theta[i], kappa) for k in range(N)] for i in range(N)]
            found.append(sum(sum(row) / N for row in rho))
        return found

    def total(params):
        return sum(w * x for w, x in zip(weights, losses(params))) / 6

    assert_trees_close(gradient_of(new.opt_state), finite_differences(total, state.params), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(feedback.metrics["loss"], total(params), rtol=1e-4)
    if replay == "prioritized":
        np.testing.assert_allclose(feedback.priorities, np.array(losses(params)) / N + 1e-6, rtol=1e-4)
    chosen = [theta_of(params, t.observation[j])[t.action[j]].mean() for j in range(6)]
    np.testing.assert_allclose(feedback.metrics["value"], np.mean(chosen), rtol=1e-4)


def test_the_greedy_action_is_that_of_the_largest_mean():
    agent = make(qr_dqn, num_quantiles=N)
    state = randomized(agent.init(jax.random.key(0)))
    x = random_transition(0, B=64).observation
    actions, _, _ = agent.act_greedily(agent.policy(state), jax.random.key(0), timestep(x), agent.memory(64))
    quantiles = [theta_of(float64(state.params), each) for each in x]
    expected = [np.argmax(q.mean(axis=1)) for q in quantiles]
    np.testing.assert_array_equal(actions, expected)
    assert len(set(expected)) > 1 and [np.argmax(q.max(axis=1)) for q in quantiles] != expected
