"""D4PG against its paper (https://arxiv.org/abs/1804.08617); what it shares with DDPG is in test_ddpg.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents import d4pg
from agents.agent import BoundedActions, EnvironmentSpec, Sample, Transition
from agents.parts import distributions
from tests.agents.transitions import finite_differences, float64

LOW, HIGH = np.array([-1.0, 0.0], np.float32), np.array([3.0, 0.5], np.float32)
SPEC = EnvironmentSpec((3,), np.dtype(np.float64), BoundedActions(LOW, HIGH))
ADAM_B1 = 0.9


def make(**fields):
    return d4pg.make(d4pg.Config(**{"hidden_sizes": (7, 5), "v_min": -5.0, "v_max": 5.0, **fields}), SPEC)


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


def randomized(state, seed: int = 0):
    rng = np.random.default_rng(seed)

    def noisy(x):
        return jnp.asarray(x + 0.4 * rng.normal(size=x.shape), jnp.float32)

    return state._replace(
        params=jax.tree.map(noisy, state.params), target_params=jax.tree.map(noisy, state.target_params)
    )


def gradient_of(opt_state):
    return jax.tree.map(lambda m: np.asarray(m) / (1 - ADAM_B1), opt_state[1].mu)


def softmax(x):
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


# The projection ------------------------------------------------------------------------------------------------------


def naive_project(returns, probabilities, atoms):
    """Splits each return's probability between the two atoms beside it, by loops over items and returns."""
    B, L = returns.shape[0], len(atoms)
    step = (atoms[-1] - atoms[0]) / (L - 1)
    projected = np.zeros((B, L))
    for i in range(B):
        for z, p in zip(returns[i], probabilities[i]):
            b = (min(max(z, atoms[0]), atoms[-1]) - atoms[0]) / step
            below = min(int(np.floor(b)), L - 2)
            projected[i, below] += p * (1 - (b - below))
            projected[i, below + 1] += p * (b - below)
    return projected


@pytest.mark.parametrize("seed", range(10))
def test_projection_is_the_double_loop(seed):
    rng = np.random.default_rng(seed)
    v_min, v_max = np.sort(rng.uniform(-20, 20, 2))
    atoms = np.linspace(v_min, v_max, int(rng.choice([2, 3, 11, 51])))
    probabilities = softmax(2 * rng.normal(size=(6, 17)))
    returns = rng.uniform(v_min - 3, v_max + 3, (6, 17))
    place = ((np.clip(returns, v_min, v_max) - v_min) / (atoms[1] - atoms[0])).astype(np.float32)
    returns32, probabilities32, atoms32 = (x.astype(np.float32) for x in (returns, probabilities, atoms))
    for got in (
        distributions.project(returns32, probabilities32, atoms32),
        distributions.project_densely(len(atoms), place, probabilities32),  # accelerators use this one
        distributions.project_by_scatter(len(atoms), place, probabilities32),
    ):
        np.testing.assert_allclose(got, naive_project(returns, probabilities, atoms), atol=2e-5)
        np.testing.assert_allclose(got.sum(axis=-1), 1.0, atol=2e-5)


def test_projection_at_and_beyond_the_ends():
    atoms = np.array([-1.0, 0.0, 1.0], np.float32)
    returns = np.array([[-1.0], [1.0], [-7.0], [1e6], [0.0], [0.25], [-1.0 + 1e-3]], np.float32)
    got = distributions.project(returns, np.ones_like(returns), atoms)
    expected = [[1, 0, 0], [0, 0, 1], [1, 0, 0], [0, 0, 1], [0, 1, 0], [0, 0.75, 0.25], [0.999, 0.001, 0]]
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_projection_of_the_atoms_is_the_identity():
    atoms = np.linspace(-10, 10, 51).astype(np.float32)
    p = softmax(np.random.default_rng(0).normal(size=(4, 51))).astype(np.float32)
    np.testing.assert_allclose(distributions.project(np.broadcast_to(atoms, p.shape), p, atoms), p, atol=1e-5)


def test_two_atoms_wide_apart_have_ddpgs_target():
    """The mean of the projected target is r + gamma^n Q', where Q' is the mean of the target critic's distribution."""
    rng = np.random.default_rng(0)
    atoms = np.array([-100.0, 100.0], np.float32)
    p = softmax(0.3 * rng.normal(size=(32, 2))).astype(np.float32)
    r, discount = rng.normal(size=32).astype(np.float32), np.where(rng.random(32) < 0.3, 0, 0.9).astype(np.float32)
    target = distributions.project(r[:, None] + discount[:, None] * atoms, p, atoms)
    np.testing.assert_allclose(target @ atoms, r + discount * (p @ atoms), atol=1e-3)


def test_clipped_fraction_is_the_probability_beyond_the_ends():
    atoms = np.array([-1.0, 0.0, 1.0], np.float32)
    p = np.array([[0.2, 0.3, 0.5], [0.1, 0.2, 0.7], [0.6, 0.3, 0.1]], np.float32)
    reward, discount = np.array([0.5, 5.0, -1.5], np.float32), np.array([1.0, 0.0, 1.0], np.float32)
    metrics = distributions.categorical_distance(
        np.zeros((3, 3), np.float32), np.log(p), reward, discount, atoms
    ).metrics
    # Item 0: 1.5 is beyond the ends. Item 1: 5 is, whatever comes after. Item 2: -2.5 and -1.5 are, -0.5 is not.
    np.testing.assert_allclose(metrics["clipped_fraction"], np.mean([0.5, 1.0, 0.9]), rtol=1e-5)


def test_categorical_errors_are_the_divergence():
    rng = np.random.default_rng(0)
    atoms = np.linspace(-3, 3, 7).astype(np.float32)
    logits, target_logits = rng.normal(size=(2, 5, 7)).astype(np.float32)
    reward, discount = rng.normal(size=5).astype(np.float32), np.full(5, 0.9, np.float32)
    distance = distributions.categorical_distance(logits, target_logits, reward, discount, atoms)
    m = naive_project(reward[:, None] + discount[:, None] * atoms, softmax(target_logits), atoms)
    q = softmax(logits.astype(np.float64))
    np.testing.assert_allclose(distance.losses, -np.sum(m * np.log(q), axis=-1), rtol=1e-5)
    divergence = np.sum(np.where(m > 0, m * np.log(np.where(m > 0, m, 1) / q), 0), axis=-1)
    np.testing.assert_allclose(distance.errors, divergence, rtol=1e-4, atol=1e-6)
    right = distributions.categorical_distance(target_logits, target_logits, 0 * reward, discount / 0.9, atoms)
    np.testing.assert_allclose(right.errors, 0.0, atol=1e-5)


# The mixture of Gaussians --------------------------------------------------------------------------------------------


def np_density(z, x):
    """Returns the mixture's density at the points x, [B, X]."""
    normal = np.exp(-0.5 * ((x[:, None] - z.means[:, None]) / z.scales[:, None]) ** 2)
    return np.sum(softmax(z.logits)[:, None] * normal / (z.scales[:, None] * np.sqrt(2 * np.pi)), axis=-1)


def test_gaussians_distance_is_the_cross_entropy():
    rng = np.random.default_rng(0)

    def mixture():
        return distributions.Gaussians(
            rng.normal(size=(3, 4)), 2 * rng.normal(size=(3, 4)), rng.uniform(0.5, 1.5, (3, 4))
        )

    z, target = mixture(), mixture()
    reward, discount = np.array([0.5, -1.0, 2.0]), np.array([0.9, 0.5, 0.0])
    as_float32 = [jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), m) for m in (z, target)]
    distance = distributions.gaussians_distance(
        jax.random.key(0), *as_float32, jnp.asarray(reward), jnp.asarray(discount), 40_000
    )
    x = np.linspace(-12, 12, 4001)
    for i in range(3):
        one = jax.tree.map(lambda a, i=i: a[i : i + 1], (z, target))
        if discount[i]:  # the density of r + gamma Z'
            moved = one[1]._replace(means=reward[i] + discount[i] * one[1].means, scales=discount[i] * one[1].scales)
            expected = -np.sum(np_density(moved, x) * np.log(np_density(one[0], x))) * (x[1] - x[0])
        else:
            expected = -np.log(np_density(one[0], reward[i : i + 1]))[0]
        np.testing.assert_allclose(distance.losses[i], expected, atol=0.03)
    q, q_next = (np.sum(softmax(m.logits) * m.means, axis=-1) for m in (z, target))
    np.testing.assert_allclose(distance.errors, np.abs(reward + discount * q_next - q), rtol=1e-4)


def test_gaussians_start_over_the_whole_range():
    z = distributions.gaussians(jnp.zeros((2, 12)), -10.0, 30.0)
    np.testing.assert_allclose(z.means, [[-5, 5, 15, 25]] * 2, rtol=1e-6)
    assert (z.scales > 1).all() and (z.scales < 10).all()
    np.testing.assert_allclose(distributions.gaussians_mean(z), 10.0, rtol=1e-6)
    tiny = distributions.gaussians(jnp.full((2, 12), -1e4), -10.0, 30.0)
    assert (tiny.scales > 0).all()


def test_gaussians_update_is_finite_at_certain_returns():
    agent = make(critic="gaussians", critic_learning_rate=1e-2)
    state = agent.init(jax.random.key(0))
    sample = random_sample(0)
    sample = sample._replace(steps=sample.steps._replace(discount=np.zeros(8, np.float32)))
    update = jax.jit(agent.update)
    losses = []
    for i in range(400):
        state, feedback = update(state, jax.random.key(i), sample)
        losses.append(float(feedback.metrics["critic_loss"]))
    assert np.isfinite(losses).all() and losses[-1] < losses[0] - 1.0
    assert float(feedback.metrics["td_error"]) < 0.5


# The update ----------------------------------------------------------------------------------------------------------


def dense(layer, x):
    return x @ layer["kernel"] + layer["bias"]


def mlp(params, x, head):
    params = params["params"]
    for i in range(2):
        x = np.maximum(0.0, dense(params["MLPTorso_0"][f"Dense_{i}"], x))
    return dense(params[head], x)


def np_pi(params, x):
    return np.tanh(mlp(params, x, "action"))


def np_logits(params, x, a):
    return mlp(params, np.concatenate([x, a], axis=-1), "value")


@pytest.mark.parametrize("replay", ["uniform", "prioritized"])
def test_gradients_are_algorithm_1s(replay):
    """Both gradients are taken at the old parameters. Importance weights are 1 / (R p_i), not divided by the
    largest."""
    agent = make(num_atoms=11, replay=replay, critic_learning_rate=0.1)
    state = randomized(agent.init(jax.random.key(0)))
    sample = random_sample(1)
    new, feedback = jax.jit(agent.update)(state, jax.random.key(1), sample)
    x, a, r, discount, x_next = sample.steps
    a = (a.astype(np.float64) - (LOW + HIGH) / 2) / ((HIGH - LOW) / 2)
    atoms = np.linspace(-5.0, 5.0, 11)
    params, targets = float64(state.params), float64(state.target_params)
    p_next = softmax(np_logits(targets.critic, x_next, np_pi(targets.policy, x_next)))
    target = naive_project(r[:, None] + discount[:, None] * atoms, p_next, atoms)
    weights = 1 / sample.likelihood.astype(np.float64) if replay == "prioritized" else np.ones(8)

    def critic_loss(w):
        return np.mean(weights * -np.sum(target * np.log(softmax(np_logits(w, x, a))), axis=-1))

    def policy_loss(theta):
        return -np.mean(softmax(np_logits(params.critic, x, np_pi(theta, x))) @ atoms)

    for network, loss in (("critic", critic_loss), ("policy", policy_loss)):
        expected = finite_differences(loss, getattr(state.params, network))
        assert max(np.abs(g).max() for g in jax.tree.leaves(expected)) > 0.03
        got = gradient_of(getattr(new.opt_state, network))
        jax.tree.map(lambda g, e: np.testing.assert_allclose(g, e, rtol=1e-3, atol=2e-5), got, expected)
        np.testing.assert_allclose(feedback.metrics[f"{network}_loss"], loss(getattr(params, network)), rtol=1e-4)
    assert 0 < feedback.metrics["clipped_fraction"] < 1


def test_weights_may_be_divided_by_the_largest():
    plain, divided = (make(replay="prioritized", normalize_weights=by_max) for by_max in (False, True))
    state = randomized(plain.init(jax.random.key(0)))
    sample = random_sample(1)
    _, a = jax.jit(plain.update)(state, jax.random.key(1), sample)
    _, b = jax.jit(divided.update)(state, jax.random.key(1), sample)
    ratio = (1 / sample.likelihood).max()
    np.testing.assert_allclose(a.metrics["critic_loss"] / b.metrics["critic_loss"], ratio, rtol=1e-4)


def test_periodic_targets():
    agent = make(target_period=3, critic_learning_rate=0.1, policy_learning_rate=0.1)
    state = randomized(agent.init(jax.random.key(0)))
    targets = state.target_params
    update = jax.jit(agent.update)
    for step in range(1, 8):
        state, _ = update(state, jax.random.key(step), random_sample(step))
        if step % 3 == 0:
            targets = state.params
        jax.tree.map(np.testing.assert_array_equal, state.target_params, targets)


@pytest.mark.parametrize("critic", ["categorical", "gaussians"])
def test_priorities_are_positive_for_both_critics(critic):
    agent = make(critic=critic, replay="prioritized")
    _, feedback = jax.jit(agent.update)(agent.init(jax.random.key(0)), jax.random.key(0), random_sample(0))
    assert (feedback.priorities > 0).all() and feedback.priorities.shape == (8,)
    assert ("clipped_fraction" in feedback.metrics) == (critic == "categorical")


@pytest.mark.parametrize(("v_min", "v_max"), [(1.0, 1.0), (2.0, -2.0), (-np.inf, 0.0), (np.nan, 1.0), (0.0, np.inf)])
def test_an_empty_support_is_refused(v_min, v_max):
    finite = np.isfinite(v_min) and np.isfinite(v_max)
    words = (
        r"config\.v_min=.* must be below config\.v_max=" if finite else r"config\.v_m(in|ax) must be a finite number"
    )
    with pytest.raises(ValueError, match=words):
        d4pg.Config(v_min=v_min, v_max=v_max)


@pytest.mark.parametrize("field", ["num_components", "num_samples", "target_period", "num_atoms"])
def test_counts_are_checked(field):
    with pytest.raises(ValueError, match=f"config.{field}"):
        d4pg.Config(**{field: 0})
