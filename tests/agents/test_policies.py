"""Policies against closed forms, enumerations and finite differences, or else integrals by brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.agent import BoundedActions, DiscreteActions, EnvironmentSpec, FactoredActions, Step
from agents.parts import policies
from agents.parts.networks import ActorCritic
from tests.precision import double_precision

LOW, HIGH = np.array([-2.0, 0.0, 10.0], np.float32), np.array([2.0, 1.0, 30.0], np.float32)
DISCRETE = EnvironmentSpec((4,), np.dtype(np.float32), DiscreteActions(5))
CONTINUOUS = EnvironmentSpec((4,), np.dtype(np.float32), BoundedActions(LOW, HIGH))
FACTORED = EnvironmentSpec((4,), np.dtype(np.float32), FactoredActions((3, 2, 4)))

softmax = policies.make_policy("test", DISCRETE)
factored = policies.make_policy("test", FACTORED)
FAMILIES = {
    "softmax": softmax,
    "factored": factored,
    "gaussian": policies.make_policy("test", CONTINUOUS, sigma_initial=0.5),
    "state": policies.make_policy("test", CONTINUOUS, sigma="state", sigma_initial=0.5),
    "squashed": policies.make_policy("test", CONTINUOUS, sigma_initial=0.5, squash=True),
}
ALL = pytest.mark.parametrize("family", FAMILIES)


def random_outputs(policy: policies.Policy, seed: int, shape: tuple[int, ...] = (2, 3)) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(*shape, policy.num_outputs)).astype(np.float32) * 0.7


def probabilities(outputs) -> np.ndarray:
    e = np.exp(np.asarray(outputs, np.float64))
    return e / e.sum(-1, keepdims=True)


def mu_sigma(outputs) -> tuple[np.ndarray, np.ndarray]:
    """Returns mu and sigma for Gaussian outputs with a sigma_initial of 1/2."""
    outputs = np.asarray(outputs, np.float64)
    return outputs[..., :3], 0.5 * np.exp(outputs[..., 3:])


def normal_density(x, mu, sigma) -> np.ndarray:
    return np.exp(-((x - mu) ** 2) / (2 * sigma**2)) / (sigma * np.sqrt(2 * np.pi))


def differences(f, x: np.ndarray, h: float = 1e-3) -> np.ndarray:
    """Returns the central differences of a scalar function, [x.size]."""
    steps = h * np.eye(x.size).reshape(x.size, *x.shape)
    return np.array([(f(x + step) - f(x - step)) / (2 * h) for step in steps])


# Probabilities -------------------------------------------------------------------------------------------------------


def test_softmax_is_the_closed_form():
    p, q = random_outputs(softmax, 0), random_outputs(softmax, 1)
    pi, other = probabilities(p), probabilities(q)
    for action in range(5):
        raw = np.full((2, 3), action, np.int32)
        np.testing.assert_allclose(softmax.log_prob(p, raw), np.log(pi[..., action]), rtol=1e-4)
    np.testing.assert_allclose(softmax.entropy(p), -(pi * np.log(pi)).sum(-1), rtol=1e-4)
    np.testing.assert_allclose(softmax.kl(p, q), (pi * np.log(pi / other)).sum(-1), rtol=1e-4)
    np.testing.assert_array_equal(softmax.mode(p), pi.argmax(-1))


def joint(outputs) -> np.ndarray:
    """Returns the probabilities of the factored policy's 24 actions, [..., 3, 2, 4]."""
    first, second, third = (probabilities(part) for part in np.split(np.asarray(outputs), [3, 5], axis=-1))
    return np.einsum("...i,...j,...k->...ijk", first, second, third)


def test_factored_is_the_enumerated_joint_distribution():
    assert factored.num_outputs == 9 and factored.num_free == 0
    p, q = random_outputs(factored, 0), random_outputs(factored, 1)
    pi, other, axes = joint(p), joint(q), (-3, -2, -1)
    np.testing.assert_allclose(pi.sum(axes), 1.0, rtol=1e-6)
    for action in np.ndindex(3, 2, 4):
        raw = np.tile(np.array(action, np.int32), (2, 3, 1))
        np.testing.assert_allclose(factored.log_prob(p, raw), np.log(pi[..., *action]), rtol=1e-4)
    np.testing.assert_allclose(factored.entropy(p), -(pi * np.log(pi)).sum(axes), rtol=1e-4)
    np.testing.assert_allclose(factored.kl(p, q), (pi * np.log(pi / other)).sum(axes), rtol=1e-3)
    likeliest = pi.reshape(2, 3, -1).argmax(-1)
    np.testing.assert_array_equal(factored.mode(p), np.stack(np.unravel_index(likeliest, (3, 2, 4)), axis=-1))
    assert factored.mode(p).dtype == np.int32


@pytest.mark.parametrize("sizes", [(3, 2, 4), (3, 3), (2, 2, 2)])
def test_factors_are_drawn_independently(sizes):
    """This holds for factors of one size too, which a shared key would draw alike."""
    policy = policies.factored(sizes)
    outputs = random_outputs(policy, 0, ())
    raw = np.asarray(policy.sample(jax.random.key(0), np.tile(outputs, (40_000, 1))))
    assert raw.shape == (40_000, len(sizes)) and raw.dtype == np.int32
    frequency, expected = np.zeros(sizes), np.ones(())
    np.add.at(frequency, tuple(raw.T), 1 / len(raw))
    for part in np.split(outputs, np.cumsum(sizes)[:-1]):
        expected = np.multiply.outer(expected, probabilities(part))
    np.testing.assert_allclose(frequency, expected, atol=0.01)


@pytest.mark.parametrize("family", ["gaussian", "state"])
def test_gaussian_is_the_closed_form(family):
    policy = FAMILIES[family]
    p, q = random_outputs(policy, 0), random_outputs(policy, 1)
    (mu, sigma), (mu_q, sigma_q) = mu_sigma(p), mu_sigma(q)
    raw = np.random.default_rng(2).normal(size=(2, 3, 3)).astype(np.float32)
    log_prob = np.log(normal_density(raw, mu, sigma)).sum(-1)
    np.testing.assert_allclose(policy.log_prob(p, raw), log_prob, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(policy.entropy(p), 0.5 * np.log(2 * np.pi * np.e * sigma**2).sum(-1), rtol=1e-4)
    kl = (np.log(sigma_q / sigma) + (sigma**2 + (mu - mu_q) ** 2) / (2 * sigma_q**2) - 0.5).sum(-1)
    np.testing.assert_allclose(policy.kl(p, q), kl, rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(policy.mode(p), p[..., :3])


def test_squashed_density_has_the_change_of_variables():
    """The density of y = tanh(x) is N(x) / (1 - y^2), which integrates to 1 and gives the KL divergence."""
    policy = FAMILIES["squashed"]
    outputs = random_outputs(policy, 0, (4,)) * np.array([1, 0, 0, 1, 0, 0], np.float32)  # one number varies
    mu, sigma = (x[:, :1] for x in mu_sigma(outputs))
    y = np.tanh(np.linspace(-6, 6, 20_001))
    x, dy = np.arctanh(y), np.gradient(y)
    density = normal_density(x, mu, sigma) / (1 - y**2)
    np.testing.assert_allclose((density * dy).sum(-1), 1.0, rtol=1e-3)

    raw = np.stack([x[::100], 0 * x[::100], 0 * x[::100]], axis=-1).astype(np.float32)
    log_prob = policy.log_prob(outputs[:, None], np.tile(raw, (4, 1, 1)))
    rest = 2 * np.log(normal_density(0.0, 0.0, 0.5))  # for the two other numbers, at tanh(0)
    np.testing.assert_allclose(log_prob, np.log(density[:, ::100]) + rest, rtol=1e-3, atol=1e-3)

    other = np.roll(outputs, 1, axis=0)
    mu_q, sigma_q = (x[:, :1] for x in mu_sigma(other))
    kl = (density * np.log(normal_density(x, mu, sigma) / normal_density(x, mu_q, sigma_q)) * dy).sum(-1)
    np.testing.assert_allclose(policy.kl(outputs, other), kl, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("sigma", "tolerance"), [(0.05, 1e-3), (0.3, 1e-3), (1.0, 1e-3), (5.0, 0.1)])
@pytest.mark.parametrize("mu", [0.0, 0.4, -2.0])
def test_squashed_entropy_is_the_integral(mu, sigma, tolerance):
    bounds = BoundedActions(-np.ones(1), np.ones(1))
    policy = policies.make_policy("test", EnvironmentSpec((4,), np.dtype(np.float32), bounds), squash=True)
    x = mu + sigma * np.linspace(-8, 8, 100_001)
    p, dx = normal_density(x, mu, sigma), x[1] - x[0]
    log_derivative = -2 * np.log(np.cosh(x))
    expected = -(p * (np.log(p) - log_derivative)).sum() * dx
    got = policy.entropy(np.array([mu, np.log(sigma)], np.float32))
    np.testing.assert_allclose(got, expected, atol=tolerance)
    uniform = np.log(2.0)
    assert got < uniform, "no density on [-1, 1] has more"


def test_far_actions_have_finite_densities():
    policy = FAMILIES["squashed"]
    raw = np.full(3, 40.0, np.float32)  # its tanh is 1 in float32
    outputs = np.concatenate([raw, np.zeros(3, np.float32)])
    log_prob, gradient = jax.value_and_grad(policy.log_prob)(outputs, raw)
    assert np.isfinite(log_prob) and np.isfinite(gradient).all()
    far = np.concatenate([np.zeros(3), np.full(3, 1e4)]).astype(np.float32)
    for outputs in (far, -far):
        assert np.isfinite(policy.log_prob(outputs, policy.sample(jax.random.key(0), outputs)))
        assert np.isfinite(policy.entropy(outputs)) and np.isfinite(policy.kl(outputs, far))


# Gradients -----------------------------------------------------------------------------------------------------------


def test_score_of_the_softmax():
    """d log pi(a) / d outputs = onehot(a) - pi."""
    outputs = random_outputs(softmax, 0, ())
    for action in range(5):
        score = jax.grad(softmax.log_prob)(outputs, np.int32(action))
        np.testing.assert_allclose(score, np.eye(5)[action] - probabilities(outputs), rtol=1e-4, atol=1e-6)


def test_score_of_the_gaussian():
    """d log pi / d mu = (a - mu) / sigma^2, d log pi / d sigma = ((a - mu)^2 - sigma^2) / sigma^3."""
    policy = FAMILIES["gaussian"]
    outputs = random_outputs(policy, 0, ())
    (mu, sigma), raw = mu_sigma(outputs), np.array([0.3, -1.2, 2.0], np.float32)
    score = np.asarray(jax.grad(policy.log_prob)(outputs, raw))
    np.testing.assert_allclose(score[:3], (raw - mu) / sigma**2, rtol=1e-3)
    of_sigma = score[3:] / sigma  # d sigma / d outputs is sigma
    np.testing.assert_allclose(of_sigma, ((raw - mu) ** 2 - sigma**2) / sigma**3, rtol=1e-3, atol=1e-4)


@ALL
def test_gradients_are_finite_differences(family):
    policy = FAMILIES[family]
    with double_precision():
        p, q = (random_outputs(policy, seed, ()).astype(np.float64) for seed in (0, 1))
        raw = policy.sample(jax.random.key(0), q)
        for f in (
            lambda p: policy.log_prob(p, raw),
            policy.entropy,
            lambda p: policy.kl(p, q),
            lambda p: policy.kl(q, p),
        ):
            got = np.asarray(jax.grad(f)(p))
            assert np.abs(got).max() > 0.01
            np.testing.assert_allclose(got, differences(f, p), rtol=1e-4, atol=1e-4)


@ALL
def test_kl_is_least_at_the_policy_itself(family):
    policy = FAMILIES[family]
    p = random_outputs(policy, 0)
    np.testing.assert_allclose(policy.kl(p, p), 0.0, atol=1e-6)
    gradient = jax.grad(lambda q: policy.kl(p, q).sum())(p)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-5)
    assert (np.asarray(policy.kl(p, random_outputs(policy, 1))) > 0.01).all()


# Samples -------------------------------------------------------------------------------------------------------------


@ALL
def test_samples_follow_the_distribution(family):
    """The samples' mean of -log p is the entropy, and their mean of log p - log q is the KL divergence."""
    policy = FAMILIES[family]
    p, q = random_outputs(policy, 0, ()), random_outputs(policy, 1, ())
    raw = policy.sample(jax.random.key(0), np.tile(p, (20_000, 1)))
    log_p, log_q = policy.log_prob(p[None], raw), policy.log_prob(q[None], raw)
    np.testing.assert_allclose(-log_p.mean(), policy.entropy(p), atol=0.05)
    np.testing.assert_allclose((log_p - log_q).mean(), policy.kl(p, q), atol=0.15)
    if family not in ("softmax", "factored"):
        mu, sigma = mu_sigma(p)
        np.testing.assert_allclose(raw.mean(axis=0), mu, atol=0.05)
        np.testing.assert_allclose(raw.std(axis=0), sigma, rtol=0.03)


def test_the_environment_gets_bounded_actions_and_the_update_raw_ones():
    raw = np.array([[-1.0, -1.0, -1.0], [0.0, 0.5, 1.0], [3.0, -3.0, 1.5]], np.float32)
    for family in ("gaussian", "squashed"):
        policy = FAMILIES[family]
        action = policy.to_environment(raw)
        unit = np.tanh(raw) if family == "squashed" else np.clip(raw, -1, 1)
        np.testing.assert_allclose(action, LOW + (unit + 1) / 2 * (HIGH - LOW), rtol=1e-4, atol=1e-5)
        step = Step(None, action, None, None, None, policy.keep(raw))
        np.testing.assert_array_equal(policy.kept(step), raw)
    for policy, action in ((softmax, np.array([0, 4, 2], np.int32)), (factored, np.array([[2, 1, 3]], np.int32))):
        np.testing.assert_array_equal(policy.to_environment(action), action)
        assert policy.keep(action) == {}
        np.testing.assert_array_equal(policy.kept(Step(None, action, None, None, None, {})), action)


@pytest.mark.parametrize("shape", [(), (1,), (2, 3)])
def test_actions_of_any_shape(shape):
    spec = EnvironmentSpec((4,), np.dtype(np.float32), BoundedActions(-np.ones(shape), 3 * np.ones(shape)))
    policy = policies.make_policy("test", spec)
    outputs = random_outputs(policy, 0, (7, 5))
    raw = policy.sample(jax.random.key(0), outputs)
    assert policy.to_environment(raw).shape == (7, 5, *shape)
    assert policy.log_prob(outputs, raw).shape == policy.entropy(outputs).shape == (7, 5)


def test_unbounded_actions_are_refused():
    spec = EnvironmentSpec((4,), np.dtype(np.float32), BoundedActions(-np.ones(2), np.array([1.0, np.inf])))
    with pytest.raises(ValueError, match=r"^ppo needs actions with finite bounds"):
        policies.make_policy("ppo", spec)


# Networks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gaussian", "state"])
def test_a_free_sigma_is_no_function_of_the_observation(family):
    policy = FAMILIES[family]
    network = ActorCritic("mlp", policy.num_outputs, (8,), num_free=policy.num_free)
    x, first = np.random.default_rng(0).normal(size=(5, 2, 4)).astype(np.float32), np.zeros((5, 2), bool)
    params = network.init(jax.random.key(0), x, first, ())
    outputs, _, _ = network.apply(params, x, first, ())
    assert outputs.shape == (5, 2, 6)
    np.testing.assert_allclose(mu_sigma(outputs)[1], 0.5, rtol=0.1)  # at first both kinds have sigma_initial
    assert ("free" in params["params"]) == (family == "gaussian")
    params = jax.tree.map(lambda p: p + 0.3, params)
    sigma = mu_sigma(network.apply(params, x, first, ())[0])[1]
    spread = np.ptp(sigma, axis=(0, 1))
    np.testing.assert_array_equal(spread < 1e-9, family == "gaussian")


def test_a_value_with_a_torso_of_its_own_shares_nothing():
    network = ActorCritic("mlp", 6, (8,), num_free=3, separate_value=True)
    x, first = np.random.default_rng(0).normal(size=(5, 2, 4)).astype(np.float32), np.zeros((5, 2), bool)
    params = network.init(jax.random.key(0), x, first, ())
    by_head = [
        jax.grad(lambda params, head=head: jnp.sum(network.apply(params, x, first, ())[head] ** 2))(params)["params"]
        for head in (0, 1)
    ]
    touched = [
        {name for name, g in gradient.items() if any(np.any(x) for x in jax.tree.leaves(g))} for gradient in by_head
    ]
    assert touched[0] == {"MLPTorso_0", "policy"}  # the free outputs are 0 at first, as is their square's gradient
    assert touched[1] == {"MLPTorso_1", "value"}
