"""Munchausen DQN against its paper (https://arxiv.org/abs/2007.14430); what it shares with DQN is in
test_action_values.py."""

import jax
import numpy as np
import pytest

from agents import dqn, munchausen_dqn
from tests.agents.transitions import (
    A,
    assert_trees_close,
    finite_differences,
    float64,
    gradient_of,
    make,
    np_huber,
    np_outputs,
    random_sample,
    randomized,
)


def np_q(theta, x):
    return np_outputs(theta, x, 1)[:, 0] if "value" not in theta["params"] else np_outputs(theta, x, 1).squeeze(-1)


def np_log_pi(q, tau):
    """Returns ln pi(.|s) for pi = softmax(q / tau), computed relative to the largest q."""
    scaled = [(x - max(q)) / tau for x in q]
    return np.array(scaled) - np.log(sum(np.exp(x) for x in scaled))


def np_target(theta, target_theta, j, t, alpha, tau, l_0, double=False):
    """Returns the target of equation 2 with the clipped Munchausen term, by a loop over actions, and the term before it
    is clipped."""
    term = tau * np_log_pi(np_q(target_theta, t.observation[j]), tau)[t.action[j]]
    q_next = np_q(target_theta, t.next_observation[j])
    log_pi = np_log_pi(np_q(theta, t.next_observation[j]) if double else q_next, tau)
    soft = sum(np.exp(log_pi[a]) * (q_next[a] - tau * log_pi[a]) for a in range(A))
    return t.reward[j] + alpha * min(0.0, max(l_0, term)) + t.discount[j] * soft, term


@pytest.mark.parametrize(
    ("alpha", "tau", "l_0", "loss", "double", "replay"),
    [
        (0.9, 0.5, -1.0, "huber", False, "uniform"),
        (0.9, 0.03, -1.0, "squared", False, "uniform"),
        (0.5, 2.0, -0.5, "huber", True, "uniform"),
        (1.0, 0.3, -2.0, "huber", False, "prioritized"),
    ],
)
def test_update_is_equation_2(alpha, tau, l_0, loss, double, replay):
    fields = {"alpha": alpha, "tau": tau, "l_0": l_0, "loss": loss, "double": double, "replay": replay}
    agent = make(munchausen_dqn, **fields, importance_exponent=0.7, importance_steps=0)
    state, sample = randomized(agent.init(jax.random.key(0))), random_sample(2)
    new, feedback = jax.jit(agent.update)(state, jax.random.key(1), sample)
    theta, target_theta, t = float64(state.params), float64(state.target_params), sample.steps
    found = [np_target(theta, target_theta, j, t, alpha, tau, l_0, double) for j in range(8)]
    terms = [term for _, term in found]
    assert min(terms) < l_0 < max(terms)  # some are clipped, and some are not
    weights = np.ones(8)
    if replay == "prioritized":
        weights = (1 / sample.likelihood.astype(np.float64)) ** 0.7
        weights /= weights.max()

    def errors(theta):
        return [found[j][0] - np_q(theta, t.observation[j])[t.action[j]] for j in range(8)]

    def total(theta):
        losses = [np_huber(e) if loss == "huber" else 0.5 * e**2 for e in errors(theta)]
        return sum(w * x for w, x in zip(weights, losses)) / 8

    assert_trees_close(gradient_of(new.opt_state), finite_differences(total, state.params), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(feedback.metrics["loss"], total(theta), rtol=1e-4)
    np.testing.assert_allclose(feedback.metrics["td_error"], np.mean(np.abs(errors(theta))), rtol=1e-4)
    if replay == "prioritized":
        np.testing.assert_allclose(feedback.priorities, np.abs(errors(theta)) + 1e-6, rtol=1e-4)


def test_the_logarithm_stays_finite_where_an_action_has_no_probability():
    q = np.float32([[0.0, 50.0, -300.0], [1e4, -1e4, 0.0]])
    got = munchausen_dqn.scaled_log_policy(q, 0.03)
    np.testing.assert_allclose(got, [[-50, 0, -350], [0, -2e4, -1e4]], rtol=1e-5)


@pytest.mark.parametrize("double", [False, True])
def test_a_cold_policy_without_its_term_is_dqn(double):
    options = {"double": double, "learning_rate": 0.01}
    agents = make(munchausen_dqn, alpha=0.0, tau=1e-4, **options), make(dqn, **options)
    state, sample = randomized(agents[1].init(jax.random.key(0))), random_sample(0)
    (a, _), (b, _) = (jax.jit(agent.update)(state, jax.random.key(0), sample) for agent in agents)
    # A cold policy has almost no entropy, so the entropy's term in the target is almost 0.
    assert_trees_close(gradient_of(a.opt_state), gradient_of(b.opt_state), rtol=1e-2, atol=2e-3)


def test_the_soft_value_is_the_logarithm_of_a_sum():
    """sum_a pi(a) (q(a) - tau ln pi(a)) equals tau ln sum_a exp(q(a) / tau). It is above the largest q, and near it if
    tau is small."""
    q = np.random.default_rng(0).normal(size=(5, A)).astype(np.float32)
    zeros, action = np.zeros(5, np.float32), np.zeros(5, np.int32)
    for tau in (0.03, 0.5, 4.0):
        config = munchausen_dqn.Config(alpha=0.0, tau=tau)
        got = munchausen_dqn.target(config, q, action, zeros, zeros + 1, q, q)
        np.testing.assert_allclose(got, tau * np.log(np.exp(q.astype(float) / tau).sum(axis=1)), rtol=1e-4)
        assert (got >= q.max(axis=1) - 1e-6).all()
