"""IQN against its paper (https://arxiv.org/abs/1806.06923); what it shares with DQN is in test_action_values.py."""

import jax
import numpy as np
import pytest

from agents import iqn
from tests.agents.transitions import (
    assert_trees_close,
    dense,
    finite_differences,
    float64,
    gradient_of,
    make,
    np_rho,
    random_sample,
    random_transition,
    randomized,
    timestep,
)

N, N_TARGET, K, COSINES = 3, 4, 5, 6
SIZES = {
    "num_fractions": N,
    "num_target_fractions": N_TARGET,
    "num_acting_fractions": K,
    "num_cosines": COSINES,
}


def np_z(params, x, tau, dueling=False):
    """Returns Z_tau(x, .), [A], for one observation and one fraction."""
    layers = params["params"]
    psi = np.maximum(0.0, dense(layers["MLPTorso_0"]["Dense_0"], x.astype(np.float64)))
    cosines = np.array([np.cos(np.pi * i * tau) for i in range(COSINES)])
    features = psi * np.maximum(0.0, dense(layers["phi"], cosines))
    advantages = dense(layers["advantage"], features)
    if not dueling:
        return advantages
    return dense(layers["value"], features) + advantages - advantages.mean()


def fractions(key, B):
    """Returns the fractions that an update with this key draws: for the learner, for its target, and for the choice of
    the target's action."""
    keys = jax.random.split(key, 3)
    sizes = (N, N_TARGET, K)
    return [np.asarray(jax.random.uniform(k, (B, n)), np.float64) for k, n in zip(keys, sizes, strict=True)]


@pytest.mark.parametrize(
    ("double", "dueling", "replay", "kappa"),
    [
        (False, False, "uniform", 1.0),
        (True, False, "uniform", 0.3),
        (True, True, "prioritized", 1.0),
    ],
)
def test_update_is_equation_3(double, dueling, replay, kappa):
    fields = {"double": double, "dueling": dueling, "replay": replay, "kappa": kappa}
    agent = make(iqn, **SIZES, **fields, importance_exponent=0.7, importance_steps=0)
    state, sample = randomized(agent.init(jax.random.key(0))), random_sample(1, B=6)
    new, feedback = jax.jit(agent.update)(state, jax.random.key(9), sample)
    tau, target_tau, acting_tau = fractions(jax.random.key(9), 6)
    params, target_params, t = float64(state.params), float64(state.target_params), sample.steps
    targets = []
    for j in range(6):
        chooser = params if double else target_params
        Q = sum(np_z(chooser, t.next_observation[j], f, dueling) for f in acting_tau[j]) / K
        z = [np_z(target_params, t.next_observation[j], f, dueling)[np.argmax(Q)] for f in target_tau[j]]
        targets.append([t.reward[j] + t.discount[j] * x for x in z])
    weights = np.ones(6)
    if replay == "prioritized":
        weights = (1 / sample.likelihood.astype(np.float64)) ** 0.7
        weights /= weights.max()

    def losses(params):
        found = []
        for j in range(6):
            z = [np_z(params, t.observation[j], f, dueling)[t.action[j]] for f in tau[j]]
            rho = [np_rho(tau[j][i], y - z[i], kappa) for i in range(N) for y in targets[j]]
            found.append(sum(rho) / N_TARGET)
        return found

    def total(params):
        return sum(w * x for w, x in zip(weights, losses(params))) / 6

    assert_trees_close(gradient_of(new.opt_state), finite_differences(total, state.params), rtol=2e-3, atol=1e-5)
    np.testing.assert_allclose(feedback.metrics["loss"], total(params), rtol=1e-4)
    if replay == "prioritized":
        np.testing.assert_allclose(feedback.priorities, np.array(losses(params)) / N + 1e-6, rtol=1e-4)


def test_fractions_are_drawn_anew_for_each_update():
    agent = make(iqn, **SIZES)
    state, update = randomized(agent.init(jax.random.key(0))), jax.jit(agent.update)
    losses = [float(update(state, jax.random.key(i), random_sample(0))[1].metrics["loss"]) for i in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


def test_the_greedy_action_is_that_of_the_largest_mean_over_k_fractions():
    """The K fractions are evenly spaced in evaluations, and drawn at random where actors explore."""
    agent = make(iqn, **SIZES, epsilon_initial=0.0, epsilon_final=0.0)
    state, B = randomized(agent.init(jax.random.key(0)), seed=5), 64
    x = random_transition(0, B=B).observation
    policy, params = agent.policy(state), float64(state.params)
    actions, _, _ = agent.act_greedily(policy, jax.random.key(0), timestep(x), agent.memory(B))
    even = [(k + 0.5) / K for k in range(K)]
    expected = [np.argmax(sum(np_z(params, each, f) for f in even)) for each in x]
    np.testing.assert_array_equal(actions, expected)
    assert len(set(expected)) > 1
    played = {tuple(agent.act(policy, jax.random.key(i), timestep(x), agent.memory(B))[0].tolist()) for i in range(5)}
    assert len(played) > 1
    drawn = np.asarray(jax.random.uniform(jax.random.fold_in(jax.random.key(3), 2), (B, K)), np.float64)
    expected = [np.argmax(sum(np_z(params, x[b], f) for f in drawn[b])) for b in range(B)]
    action, _, _ = agent.act(policy, jax.random.key(3), timestep(x), agent.memory(B))
    np.testing.assert_array_equal(action, expected)
