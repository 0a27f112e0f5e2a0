"""Rainbow and C51 against their papers, https://arxiv.org/abs/1710.02298 and https://arxiv.org/abs/1707.06887; what
they share with DQN is in test_action_values.py."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents import dqn, rainbow
from agents.parts.q_heads import NoisyDense
from tests.agents.test_d4pg import naive_project
from tests.agents.transitions import (
    A,
    assert_trees_close,
    finite_differences,
    float64,
    gradient_of,
    make,
    np_outputs,
    random_sample,
    random_transition,
    randomized,
    softmax,
    timestep,
)

OFF = {
    "categorical": False,
    "noisy": False,
    "double": False,
    "dueling": False,
    "replay": "uniform",
    "n_step": 1,
}
C51 = OFF | {"categorical": True, "num_atoms": 5, "v_min": -2.0, "v_max": 3.0}
ATOMS = np.linspace(-2.0, 3.0, 5)


# With all extensions off ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("double", "dueling", "replay", "loss"),
    [*itertools.product((False, True), (False, True), ("uniform", "prioritized"), ("huber",)), (*("",) * 3, "squared")],
)
def test_without_its_own_switches_it_is_dqn_to_the_bit(double, dueling, replay, loss):
    options = OFF | {"double": bool(double), "dueling": bool(dueling), "replay": replay or "uniform", "loss": loss}
    options |= {"learning_rate": 0.01, "target_period": 2, "importance_steps": 100, "importance_exponent": 0.4}
    options |= {"epsilon_initial": 0.5, "epsilon_final": 0.1, "epsilon_steps": 10, "priority_exponent": 0.6}
    without = {name: value for name, value in options.items() if name not in ("categorical", "noisy")}
    agents = make(rainbow, **options), make(dqn, **without)
    assert agents[0].table == agents[1].table
    states, feedbacks = [agent.init(jax.random.key(0)) for agent in agents], []
    now = timestep(random_transition(0, B=64).observation)
    for step in range(5):
        updates = [
            jax.jit(agent.update)(state, jax.random.key(step), random_sample(step))
            for agent, state in zip(agents, states, strict=True)
        ]
        states, feedbacks = [update[0] for update in updates], [update[1] for update in updates]
        jax.tree.map(np.testing.assert_array_equal, *states)
        jax.tree.map(np.testing.assert_array_equal, *feedbacks)
    actions = [
        agent.act(agent.policy(state), jax.random.key(7), now, agent.memory(64))[0]
        for agent, state in zip(agents, states, strict=True)
    ]
    np.testing.assert_array_equal(*actions)


# The distribution ----------------------------------------------------------------------------------------------------


def np_p(theta, x):
    """Returns the probabilities of the atoms for one observation, [A, N]."""
    return softmax(np_outputs(theta, x, len(ATOMS)))


def np_projected(theta, target_theta, j, transition, double):
    """Returns m of algorithm 1 for item j."""
    _, _, reward, discount, x_next = transition
    p_next = np_p(target_theta, x_next[j])
    Q = np.array([sum(z * p for z, p in zip(ATOMS, row)) for row in (np_p(theta, x_next[j]) if double else p_next)])
    a_star = int(np.argmax(Q))
    m, step = np.zeros(len(ATOMS)), ATOMS[1] - ATOMS[0]
    for i, z in enumerate(ATOMS):
        b = (np.clip(reward[j] + discount[j] * z, ATOMS[0], ATOMS[-1]) - ATOMS[0]) / step
        low, high = int(np.floor(b)), int(np.ceil(b))
        if low == high:
            m[low] += p_next[a_star, i]
        else:
            m[low] += p_next[a_star, i] * (high - b)
            m[high] += p_next[a_star, i] * (b - low)
    return m


@pytest.mark.parametrize(
    ("double", "dueling", "replay"),
    [(False, False, "uniform"), (True, False, "uniform"), (False, True, "uniform"), (True, True, "prioritized")],
)
@pytest.mark.parametrize("seed", [1, 2])
def test_update_is_algorithm_1(double, dueling, replay, seed):
    """The loss is the cross-entropy to the projected target, by loops over items and atoms. Priorities are the
    divergence."""
    fields = C51 | {"double": double, "dueling": dueling, "replay": replay}
    agent = make(rainbow, **fields, importance_exponent=0.7, importance_steps=0)
    state, sample = randomized(agent.init(jax.random.key(0)), seed), random_sample(seed, B=6)
    new, feedback = jax.jit(agent.update)(state, jax.random.key(1), sample)
    theta, target_theta, t = float64(state.params), float64(state.target_params), sample.steps
    m = [np_projected(theta, target_theta, j, t, double) for j in range(6)]
    weights = np.ones(6)
    if replay == "prioritized":
        weights = (1 / sample.likelihood.astype(np.float64)) ** 0.7
        weights /= weights.max()

    def entropies(theta):
        p = [np_p(theta, t.observation[j])[t.action[j]] for j in range(6)]
        return [-sum(m[j][i] * np.log(p[j][i]) for i in range(len(ATOMS))) for j in range(6)]

    def total(theta):
        return sum(w * x for w, x in zip(weights, entropies(theta))) / 6

    assert_trees_close(gradient_of(new.opt_state), finite_differences(total, state.params), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(feedback.metrics["loss"], total(theta), rtol=1e-4)
    least = [-sum(x * np.log(x) for x in m[j] if x > 0) for j in range(6)]
    divergence = np.subtract(entropies(theta), least)
    np.testing.assert_allclose(feedback.metrics["td_error"], divergence.mean(), rtol=1e-3)
    if replay == "prioritized":
        np.testing.assert_allclose(feedback.priorities, divergence + 1e-6, rtol=1e-3, atol=1e-5)
    chosen = [np_p(theta, t.observation[j])[t.action[j]] @ ATOMS for j in range(6)]
    np.testing.assert_allclose(feedback.metrics["value"], np.mean(chosen), rtol=1e-4)
    returns = t.reward[:, None] + t.discount[:, None] * ATOMS
    assert (returns < ATOMS[0]).any() and feedback.metrics["clipped_fraction"] > 0


def test_the_loop_above_projects_as_d4pgs_does():
    theta = float64(randomized(make(rainbow, **C51).init(jax.random.key(0))).params)
    t = random_transition(3)
    for j in range(8):
        Q = np_p(theta, t.next_observation[j]) @ ATOMS
        p = np_p(theta, t.next_observation[j])[np.argmax(Q)]
        returns = t.reward[j] + t.discount[j] * ATOMS
        expected = naive_project(returns[None], p[None], ATOMS)[0]
        np.testing.assert_allclose(np_projected(theta, theta, j, t, False), expected, atol=1e-9)


def test_the_greedy_action_is_that_of_the_largest_mean():
    agent = make(rainbow, **C51)
    state = randomized(agent.init(jax.random.key(0)))
    x = random_transition(0, B=64).observation
    actions, _, _ = agent.act_greedily(agent.policy(state), jax.random.key(0), timestep(x), agent.memory(64))
    expected = [np.argmax(np_p(float64(state.params), each) @ ATOMS) for each in x]
    np.testing.assert_array_equal(actions, expected)
    likeliest = [np.argmax(np_p(float64(state.params), each).max(axis=1)) for each in x]
    assert len(set(expected)) > 1 and likeliest != expected


# Noisy networks ------------------------------------------------------------------------------------------------------

P, Q = 6, 4
APPLY = jax.jit(NoisyDense.apply, static_argnums=0)


def weights_of(layer, params, key):
    """Returns the weights and the bias with the noise of a key, or without noise if the key is None."""
    x = np.concatenate([np.zeros((1, P)), np.eye(P)]).astype(np.float32)
    rows = np.asarray(APPLY(layer, params, x) if key is None else APPLY(layer, params, x, rngs={"noise": key}))
    return rows[1:] - rows[0], rows[0]


def test_a_noisy_layer_is_the_papers():
    """As in section 3, the noise is f(eps_i) f(eps_j) for weights and f(eps_j) for biases, where f(x) = sgn(x)
    sqrt(|x|)."""
    layer = NoisyDense(Q, sigma_0=0.4)
    params = layer.init(jax.random.key(0), jnp.zeros((1, P)))
    own = params["params"]
    np.testing.assert_allclose(own["sigma_kernel"], 0.4 / np.sqrt(P), rtol=1e-6)
    np.testing.assert_allclose(own["sigma_bias"], 0.4 / np.sqrt(P), rtol=1e-6)
    for mu in (own["kernel"], own["bias"]):
        assert np.abs(mu).max() <= 1 / np.sqrt(P) and np.std(mu) > 0.3 / np.sqrt(P)
    kernel, bias = weights_of(layer, params, None)
    np.testing.assert_allclose(kernel, own["kernel"], atol=1e-6)
    np.testing.assert_allclose(bias, own["bias"], atol=1e-6)
    epsilons = []
    for key in jax.random.split(jax.random.key(1), 400):
        kernel, bias = weights_of(layer, params, key)
        of_q = (bias - own["bias"]) / own["sigma_bias"]
        of_p = ((kernel - own["kernel"]) / own["sigma_kernel"] / of_q).mean(axis=1)
        np.testing.assert_allclose(
            kernel, own["kernel"] + own["sigma_kernel"] * np.outer(of_p, of_q), rtol=1e-2, atol=1e-4
        )
        epsilons.append(np.concatenate([np.sign(of_p) * of_p**2, np.sign(of_q) * of_q**2]))
    epsilons = np.array(epsilons)  # each should be standard normal, and independent of the others
    np.testing.assert_allclose(epsilons.mean(axis=0), 0.0, atol=4 / 20)
    np.testing.assert_allclose(np.cov(epsilons.T), np.eye(P + Q), atol=0.3)


def test_noise_explores_and_evaluations_have_none():
    agent = make(rainbow, **{**C51, "noisy": True, "noisy_sigma": 3.0, "epsilon_initial": 0.0, "epsilon_final": 0.0})
    state = agent.init(jax.random.key(0))
    x = random_transition(0, B=16).observation
    act, policy = jax.jit(agent.act), agent.policy(state)
    played = np.array([act(policy, jax.random.key(i), timestep(x), agent.memory(16))[0] for i in range(60)])
    assert all(len(np.unique(played[:, b])) == A for b in range(16))
    greedy = [agent.act_greedily(policy, jax.random.key(i), timestep(x), agent.memory(16))[0] for i in range(2)]
    np.testing.assert_array_equal(*greedy)


def test_an_updates_noise_is_its_keys_and_sigma_is_learnt():
    agent = make(rainbow, **{**C51, "noisy": True, "double": True, "learning_rate": 0.01})
    state, update = agent.init(jax.random.key(0)), jax.jit(agent.update)
    losses = [float(update(state, jax.random.key(i), random_sample(0))[1].metrics["loss"]) for i in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]
    new, _ = update(state, jax.random.key(0), random_sample(0))
    before, after = (s.params["params"]["advantage"]["sigma_kernel"] for s in (state, new))
    assert np.abs(after - before).max() > 1e-3


@pytest.mark.parametrize("double", [False, True])
def test_each_network_draws_noise_of_its_own(double, monkeypatch):
    """The online network, the target network and the one that selects the next action have three different keys."""
    seen: list[bytes] = []

    def make_network(*args, **kwargs):
        made = real(*args, **kwargs)

        def outputs(params, key, observation):
            jax.debug.callback(lambda data: seen.append(data.tobytes()), jax.random.key_data(key))
            return made.outputs(params, key, observation)

        return made._replace(outputs=outputs)

    real = rainbow.action_values.make_network
    monkeypatch.setattr(rainbow.action_values, "make_network", make_network)
    agent = make(rainbow, **{**C51, "noisy": True, "double": double})
    agent.update(agent.init(jax.random.key(0)), jax.random.key(1), random_sample(0))
    jax.effects_barrier()
    assert len(set(seen)) == (3 if double else 2)
