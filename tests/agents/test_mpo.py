"""MPO, also with D4PG's critic, against its papers, https://arxiv.org/abs/1806.06920 and 1812.02256."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.stats

from agents import mpo
from agents.agent import AXIS, BoundedActions, DiscreteActions, EnvironmentSpec, Sample, Transitions
from agents.parts.multipliers import multiplier, parameter_of
from agents.parts.policies import make_policy
from tests.agents.test_ddpg import (
    ADAM_B1,
    HIGH,
    LOW,
    SIZES,
    SPEC,
    assert_trees_close,
    dense,
    finite_differences,
    float64,
    np_layers,
    np_Q,
    random_sample,
    scaled,
    timestep,
)
from tests.agents.transitions import learn

B, N, SIGMA = 8, 5, 0.5
ATOMS = np.linspace(-5.0, 5.0, 11)
BOTH = pytest.mark.parametrize("distributional", [False, True], ids=["mpo", "dmpo"])
ETA, ALPHA_MU, ALPHA_SIGMA = 0.3, 0.7, 2.0


def make(**fields):
    support = {"v_min": -5.0, "v_max": 5.0, "num_atoms": 11}
    return mpo.make(mpo.Config(**{"hidden_sizes": SIZES, "num_samples": N, **support, **fields}), SPEC)


def randomized(state, seed: int = 0):
    """Returns the state with random networks and targets that differ, and with three different multipliers."""
    rng = np.random.default_rng(seed)

    def noisy(tree):
        return jax.tree.map(lambda x: jnp.asarray(x + 0.4 * rng.normal(size=x.shape), jnp.float32), tree)

    duals = mpo.Duals(*map(parameter_of, (ETA, ALPHA_MU, ALPHA_SIGMA)))
    return state._replace(params=noisy(state.params)._replace(duals=duals), target_params=noisy(state.target_params))


def gradient_of(opt_state):
    """Returns the gradient of the first step, which Adam's first moment holds times 1 - beta_1."""
    return jax.tree.map(lambda m: np.asarray(m) / (1 - ADAM_B1), opt_state[1].mu)


# The papers in NumPy, in float64, one state and one action after another ----------------------------------------------


def np_pi(theta, s):
    """Returns mu and sigma, [B, 2] each."""
    outputs = dense(theta["params"]["Dense_0"], np_layers(theta["params"]["MLPTorso_0"], s))
    return outputs[:, :2], np.clip(SIGMA * np.exp(outputs[:, 2:]), 1e-3, 10.0)


def np_softmax(x):
    return np.exp(x - x.max()) / np.exp(x - x.max()).sum()


def np_project(returns, probabilities):
    """Splits each return's probability between the two atoms beside it."""
    found = np.zeros(len(ATOMS))
    for value, probability in zip(returns, probabilities, strict=True):
        place = (min(max(value, ATOMS[0]), ATOMS[-1]) - ATOMS[0]) / (ATOMS[1] - ATOMS[0])
        below = min(int(place), len(ATOMS) - 2)
        found[below] += probability * (1 - (place - below))
        found[below + 1] += probability * (place - below)
    return found


def np_value(phi, s, a, distributional):
    """Returns the value of one state and one action, and the outputs of the critic."""
    outputs = np_Q(phi, s[None], a[None])[0]
    return (np_softmax(outputs) @ ATOMS if distributional else outputs[0]), outputs


def np_log_density(a, mu, sigma):
    return sum(-0.5 * ((x - m) / w) ** 2 - math.log(w * math.sqrt(2 * math.pi)) for x, m, w in zip(a, mu, sigma))


def parameter(x):
    """Returns the number whose softplus is x."""
    return math.log(math.expm1(x))


class Naive:
    """The losses that an update of `state` by `sample` and `key` should descend, computed naively."""

    def __init__(self, state, sample, key, distributional, squash=False):
        self.distributional = distributional
        self.s, a, self.r, self.discount, self.s_next = sample.steps
        self.a = scaled(a)
        targets = float64(state.target_params)
        self.mu, self.sigma = np_pi(targets.policy, self.s_next)
        self.raw = self.mu + self.sigma * np.asarray(jax.random.normal(key, (N, B, 2)), np.float64)
        inside = np.tanh(self.raw) if squash else np.clip(self.raw, -1, 1)
        said = [
            [np_value(targets.critic, self.s_next[j], inside[i, j], distributional) for j in range(B)] for i in range(N)
        ]
        self.values = np.array([[value for value, _ in row] for row in said])
        self.outputs = np.array([[outputs for _, outputs in row] for row in said])

    def critic_loss(self, phi):
        total = 0.0
        for j in range(B):
            value, outputs = np_value(phi, self.s[j], self.a[j], self.distributional)
            if self.distributional:
                returns = self.r[j] + self.discount[j] * ATOMS
                target = sum(np_project(returns, np_softmax(self.outputs[i, j])) for i in range(N)) / N
                total -= target @ np.log(np_softmax(outputs))
            else:
                target = self.r[j] + self.discount[j] * sum(self.values[i, j] for i in range(N)) / N
                total += 0.5 * (target - value) ** 2
        return total / B

    def weights(self, eta):
        """Returns q(a_i | s_j) over the N sampled actions, [N, B]."""
        return np.array([np_softmax(self.values[:, j] / eta) for j in range(B)]).T

    def dual(self, x, epsilon):
        """g(eta) = eta epsilon + eta E_s[log E_a[exp(Q / eta)]], eta = log(1 + e^x)."""
        eta = math.log1p(math.exp(x))
        shares = [scipy.special.logsumexp(self.values[:, j] / eta) - math.log(N) for j in range(B)]
        return eta * epsilon + eta * sum(shares) / B

    def kls(self, theta):
        """Returns KL(pi_old || pi) if pi differs from pi_old in mu alone, and if in sigma alone; means over states."""
        mu, sigma = np_pi(theta, self.s_next)
        kl_mu = kl_sigma = 0.0
        for j in range(B):
            for n in range(2):
                ratio = self.sigma[j, n] / sigma[j, n]
                kl_mu += 0.5 * ((mu[j, n] - self.mu[j, n]) / self.sigma[j, n]) ** 2 / B
                kl_sigma += (0.5 * (ratio**2 - 1) - math.log(ratio)) / B
        return kl_mu, kl_sigma

    def policy_loss(self, theta):
        """Returns the loss of the M-step with its multipliers as they are."""
        mu, sigma, weights, total = *np_pi(theta, self.s_next), self.weights(ETA), 0.0
        for j in range(B):
            for i in range(N):
                by_mu = np_log_density(self.raw[i, j], mu[j], self.sigma[j])
                by_sigma = np_log_density(self.raw[i, j], self.mu[j], sigma[j])
                total -= weights[i, j] * (by_mu + by_sigma) / B
        kl_mu, kl_sigma = self.kls(theta)
        return total + ALPHA_MU * kl_mu + ALPHA_SIGMA * kl_sigma


@BOTH
@pytest.mark.parametrize("options", [{}, {"layer_norm": False}, {"squash": True}])
def test_gradients_are_those_of_finite_differences_of_the_papers_losses(distributional, options):
    agent = make(distributional=distributional, **options)
    state, key = randomized(agent.init(jax.random.key(0))), jax.random.key(1)
    sample = random_sample(0)
    new, feedback = jax.jit(agent.update)(state, key, sample)
    naive = Naive(state, sample, key, distributional, options.get("squash", False))
    params, gradient = float64(state.params), gradient_of(new.opt_state)

    expected = finite_differences(naive.critic_loss, params.critic)
    assert max(np.abs(g).max() for g in jax.tree.leaves(expected)) > 0.05
    assert_trees_close(gradient.critic, expected, rtol=2e-3, atol=1e-4)
    np.testing.assert_allclose(feedback.metrics["critic_loss"], naive.critic_loss(params.critic), rtol=1e-4)

    expected = finite_differences(naive.policy_loss, params.policy)
    assert max(np.abs(g).max() for g in jax.tree.leaves(expected)) > 0.05
    scale = max(np.abs(g).max() for g in jax.tree.leaves(expected))
    assert_trees_close(gradient.policy, expected, rtol=2e-3, atol=1e-4 * scale)

    slope = scipy.optimize.approx_fprime([parameter(ETA)], lambda x: naive.dual(x[0], 0.1), 1e-6)
    np.testing.assert_allclose(gradient.duals.eta, slope[0], rtol=2e-3, atol=1e-5)
    kl_mu, kl_sigma = naive.kls(params.policy)
    for found, alpha, excess in (
        (gradient.duals.alpha_mu, ALPHA_MU, 1e-2 - kl_mu),
        (gradient.duals.alpha_sigma, ALPHA_SIGMA, 1e-4 - kl_sigma),
    ):
        np.testing.assert_allclose(found, -math.expm1(-alpha) * excess, rtol=2e-3)  # by the softplus's slope
    np.testing.assert_allclose([feedback.metrics[name] for name in ("kl_mu", "kl_sigma")], [kl_mu, kl_sigma], rtol=1e-3)
    q = naive.weights(ETA)
    np.testing.assert_allclose(feedback.metrics["kl"], np.sum(q * np.log(N * q + 1e-300)) / B, rtol=1e-3, atol=1e-5)


# The E-step ----------------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(("start", "epsilon"), [(0.02, 0.1), (1.0, 0.1), (0.3, 0.7)])
def test_the_temperature_goes_to_the_minimum_of_its_dual_where_the_constraint_holds(distributional, start, epsilon):
    """The values are fixed, and the temperature starts on either side of the dual's minimum, which scipy confirms.
    There the reweighted actions diverge from the policy's by epsilon on average."""
    agent = make(distributional=distributional, eta=start, epsilon=epsilon, target_period=10**6)
    state, key, sample = randomized(agent.init(jax.random.key(0))), jax.random.key(1), random_sample(0)
    duals = state.params.duals._replace(eta=parameter_of(start))
    state = state._replace(params=state.params._replace(duals=duals))

    state, metrics = learn(agent, state, sample, jnp.broadcast_to(key, (3_000,)))
    naive = Naive(state, sample, key, distributional)
    best = scipy.optimize.minimize_scalar(lambda x: naive.dual(x, epsilon), bounds=(-8, 4), method="bounded")
    np.testing.assert_allclose(metrics["eta"][-1], math.log1p(math.exp(best.x)), rtol=1e-2)
    np.testing.assert_allclose(metrics["kl"][-1], epsilon, rtol=2e-2)


# The divergences -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_decoupled_divergences_are_those_of_quadrature_and_sum_up_where_sigma_stays(seed):
    rng = np.random.default_rng(seed)
    bounds = BoundedActions(-np.ones(1, np.float32), np.ones(1, np.float32))
    family = make_policy("mpo", EnvironmentSpec((3,), np.dtype(np.float32), bounds), "state", SIGMA)
    new, old = rng.normal(size=(2, 2)).astype(np.float32) * [0.6, 0.4]

    def distribution(mu, log_sigma):
        return scipy.stats.norm(mu, SIGMA * math.exp(log_sigma))

    p = distribution(*old)
    for part, q in zip(
        family.decoupled(new, old), (distribution(new[0], old[1]), distribution(old[0], new[1])), strict=True
    ):
        low, high = p.ppf(1e-12), p.ppf(1 - 1e-12)
        integral, _ = scipy.integrate.quad(lambda x, q=q: p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), low, high)
        np.testing.assert_allclose(family.kl(old, part), integral, rtol=1e-3, atol=1e-6)
    whole = np.array([new[0], old[1]])
    np.testing.assert_allclose(family.kl(old, whole), sum(family.kl(old, x) for x in family.decoupled(whole, old)))


@BOTH
def test_the_first_update_has_no_divergence_and_multipliers_as_set(distributional):
    """The target policy starts as a copy of the policy. While nothing diverges, the multipliers fall."""
    agent = make(distributional=distributional, eta=2.0, alpha_mu=3.0, alpha_sigma=4.0, dual_learning_rate=0.01)
    state = agent.init(jax.random.key(0))
    new, feedback = jax.jit(agent.update)(state, jax.random.key(0), random_sample(0))
    np.testing.assert_allclose([feedback.metrics[name] for name in ("kl_mu", "kl_sigma")], 0.0, atol=1e-7)
    np.testing.assert_allclose(multiplier(jnp.stack(state.params.duals)), [2.0, 3.0, 4.0], rtol=1e-6)
    np.testing.assert_allclose(np.subtract(state.params.duals, new.params.duals)[1:], 0.01, rtol=1e-2)


@BOTH
@pytest.mark.parametrize("rate", [1e-2, 1e-1])
def test_multipliers_of_constraints_that_cannot_be_met_grow_no_faster_than_their_learning_rate(distributional, rate):
    """Here the policy is far from its target and stays there. Multipliers that were learnt as logarithms would grow to
    e^20 and e^200, and after such gradients Adam would no longer move the policy."""
    agent = make(distributional=distributional, policy_learning_rate=1e-9, dual_learning_rate=rate, target_period=10**6)
    state, sample = randomized(agent.init(jax.random.key(0))), random_sample(0)

    metrics = learn(agent, state, sample, jax.random.split(jax.random.key(1), 2_000))[1]
    assert metrics["kl_mu"].min() > 1e-2
    assert metrics["kl_sigma"].min() > 1e-4
    for name, initial in (("alpha_mu", ALPHA_MU), ("alpha_sigma", ALPHA_SIGMA)):
        grown = metrics[name][-1] - initial
        assert 0.5 * 2_000 * rate < grown < 1.2 * 2_000 * rate, name
    assert metrics["gradient_norm"].max() < 1e6


@pytest.mark.parametrize(("epsilon_mu", "epsilon_sigma"), [(1e-3, 1e-5), (1e-2, 1e-3)])
def test_the_policy_stays_within_both_constraints_of_a_target_that_stays(epsilon_mu, epsilon_sigma):
    options = {"epsilon_mu": epsilon_mu, "epsilon_sigma": epsilon_sigma, "target_period": 10**6, "epsilon": 1.0}
    agent = make(**options, policy_learning_rate=1e-3, dual_learning_rate=0.1, eta=0.1)
    state = agent.init(jax.random.key(0))
    state = state._replace(target_params=state.target_params._replace(critic=randomized(state).target_params.critic))
    sample = random_sample(0)

    _, metrics = learn(agent, state, sample, jax.random.split(jax.random.key(0), 4_000))
    for name, epsilon in (("kl_mu", epsilon_mu), ("kl_sigma", epsilon_sigma)):
        np.testing.assert_allclose(metrics[name][-1_000:].mean(), epsilon, rtol=0.3, err_msg=name)


# Steps and targets ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("period", [1, 3])
def test_targets_are_copied_once_in_a_period(period):
    agent = make(target_period=period)
    state, update = randomized(agent.init(jax.random.key(0))), jax.jit(agent.update)
    for number in range(1, 7):
        old = state
        state, _ = update(state, jax.random.key(number), random_sample(number))
        source = state.params if number % period == 0 else old.target_params
        jax.tree.map(
            np.testing.assert_array_equal,
            tuple(state.target_params),
            (source.policy, source.critic),
        )


def test_targets_start_as_copies():
    state = make().init(jax.random.key(3))
    jax.tree.map(np.testing.assert_array_equal, tuple(state.target_params), tuple(state.params[:2]))
    pointers = [{x.unsafe_buffer_pointer() for x in jax.tree.leaves(t)} for t in (state.params, state.target_params)]
    assert not pointers[0] & pointers[1], "shared buffers could not be donated"


@pytest.mark.parametrize("part", mpo.Learnt._fields)
def test_learning_rates_are_the_states(part):
    """Adam's first step has the learning rate's size, and each part that is learnt has a learning rate of its own."""
    agent = make()
    state = randomized(agent.init(jax.random.key(0)))
    mine = "dual" if part == "duals" else part
    rates = {f"{of}_learning_rate": jnp.float32(0.25 * (of == mine)) for of in ("policy", "critic", "dual")}
    new, _ = jax.jit(agent.update)(
        state._replace(hypers=state.hypers._replace(**rates)), jax.random.key(0), random_sample(0)
    )
    moved = jax.tree.map(lambda a, b: np.abs(np.asarray(a - b)).max(), new.params, state.params)._asdict()
    np.testing.assert_allclose(max(jax.tree.leaves(moved.pop(part))), 0.25, rtol=1e-2)
    assert max(jax.tree.leaves(tuple(moved.values()))) == 0.0


def test_epsilons_are_the_states():
    agent, other = make(), make(epsilon=0.5, epsilon_mu=0.3, epsilon_sigma=0.2)
    state = randomized(agent.init(jax.random.key(0)))
    tuned = state._replace(hypers=other.init(jax.random.key(0)).hypers)
    found, expected = (jax.jit(each.update)(tuned, jax.random.key(0), random_sample(0)) for each in (agent, other))
    assert_trees_close(found, expected)
    without, _ = jax.jit(agent.update)(state, jax.random.key(0), random_sample(0))
    assert all(np.abs(np.subtract(gradient_of(found[0].opt_state).duals, gradient_of(without.opt_state).duals)) > 1e-2)


@BOTH
def test_several_devices_gradient_is_the_mean_of_each_ones(distributional):
    """Each device draws its own actions. All devices report the same metrics and hold the same state."""
    agent = make(distributional=distributional, normalize_observations=False)
    state = randomized(agent.init(jax.random.key(0)))
    sample, keys = random_sample(5), jax.random.split(jax.random.key(1), 2)
    halves = jax.tree.map(lambda x: x.reshape(2, -1, *x.shape[1:]), sample)
    shards, feedback = jax.jit(jax.vmap(agent.update, in_axes=(None, 0, 0), axis_name=AXIS))(state, keys, halves)
    alone = [jax.jit(agent.update)(state, keys[i], jax.tree.map(lambda x: x[i], halves)) for i in range(2)]  # noqa: B023
    mean = jax.tree.map(lambda x, y: (x + y) / 2, *(gradient_of(each.opt_state) for each, _ in alone))
    for i in range(2):
        got = gradient_of(jax.tree.map(lambda x: x[i], shards.opt_state))  # noqa: B023
        assert_trees_close(got, mean, rtol=1e-3, atol=1e-4)
    for name in ("critic_loss", "policy_loss", "kl", "kl_mu", "kl_sigma", "td_error", "value", "sigma"):
        expected = np.mean([each.metrics[name] for _, each in alone])
        np.testing.assert_allclose(feedback.metrics[name], [expected] * 2, rtol=1e-3, atol=1e-4)
    moved = jax.tree.map(lambda x: np.abs(np.asarray(x[0] - x[1])).max(), shards)
    assert max(jax.tree.leaves(moved)) == 0.0, "devices must not drift apart"


def test_members_of_a_population_update_as_each_alone():
    agent = make(target_period=2)
    states = [randomized(agent.init(jax.random.key(m)), m)._replace(step=jnp.int32(m)) for m in range(3)]
    samples, keys = [random_sample(m) for m in range(3)], jax.random.split(jax.random.key(0), 3)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *states)
    after, feedback = jax.jit(jax.vmap(agent.update))(stacked, keys, jax.tree.map(lambda *x: np.stack(x), *samples))
    for m in range(3):
        expected, alone = jax.jit(agent.update)(states[m], keys[m], samples[m])
        assert_trees_close(jax.tree.map(lambda x, m=m: x[m], after), expected, rtol=1e-3, atol=1e-3)
        assert_trees_close(jax.tree.map(lambda x, m=m: x[m], feedback), alone, rtol=1e-3, atol=1e-4)


# Actions and observations --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("squash", [False, True])
def test_actions_are_the_gaussians_and_greedily_its_mean(squash):
    agent = make(squash=squash)
    state = randomized(agent.init(jax.random.key(0)))
    observation, key = np.random.default_rng(0).normal(size=(6, 3)), jax.random.key(5)
    mu, sigma = np_pi(float64(state.params.policy), observation)
    raw = mu + sigma * np.asarray(jax.random.normal(key, (6, 2)))
    for act, wanted in ((agent.act, raw), (agent.act_greedily, mu)):
        got, extras, memory = act(agent.policy(state), key, timestep(observation), agent.memory(6, None))
        assert (extras, memory) == ({}, ())
        inside = np.tanh(wanted) if squash else np.clip(wanted, -1, 1)
        np.testing.assert_allclose(scaled(np.asarray(got)), inside, rtol=1e-4, atol=1e-4)
        assert (np.asarray(got) >= LOW).all() and (np.asarray(got) <= HIGH).all()


def test_actors_and_updates_normalise_observations():
    """An update on raw observations equals the plain agent's on the same observations with mean 0 and variance 1. So
    does acting."""
    plain, agent = make(), make(normalize_observations=True)
    state, sample = randomized(agent.init(jax.random.key(0))), random_sample(0)
    raw = sample.steps._replace(
        observation=5 + 3 * sample.steps.observation, next_observation=5 + 3 * sample.steps.next_observation
    )
    mean, std = raw.observation.mean(axis=0), raw.observation.std(axis=0)
    ready = raw._replace(
        observation=(raw.observation - mean) / std, next_observation=(raw.next_observation - mean) / std
    )
    new, got = jax.jit(agent.update)(state, jax.random.key(0), sample._replace(steps=raw))
    _, expected = jax.jit(plain.update)(state._replace(normalizer=()), jax.random.key(0), sample._replace(steps=ready))
    assert_trees_close(got.metrics, expected.metrics, rtol=1e-3, atol=1e-4)
    acted, _, _ = agent.act_greedily(agent.policy(new), jax.random.key(0), timestep(raw.observation), ())
    wanted, _, _ = plain.act_greedily(
        plain.policy(new._replace(normalizer=())), jax.random.key(0), timestep(ready.observation), ()
    )
    np.testing.assert_allclose(acted, wanted, rtol=1e-4, atol=1e-4)


# Settings ------------------------------------------------------------------------------------------------------------


def test_table():
    agent = make(n_step=3, discount=0.9, batch_size=16, replay_size=500, min_replay_size=20, samples_per_insert=7.0)
    table = agent.table
    assert table.items == Transitions(3, 0.9) and table.kind == "uniform" and agent.batch_size == 16
    assert (table.max_size, table.min_size, table.samples_per_insert) == (500, 20, 7.0) and agent.priority is None


def test_frames_and_discrete_and_unbounded_actions_are_refused():
    bounds = BoundedActions(LOW, HIGH)
    with pytest.raises(ValueError, match=r"^mpo has no convolutions"):
        mpo.make(mpo.Config(), EnvironmentSpec((8, 8), np.dtype(np.uint8), bounds))
    with pytest.raises(ValueError, match=r"^mpo needs continuous actions; .* discrete"):
        mpo.make(mpo.Config(), EnvironmentSpec((3,), np.dtype(np.float32), DiscreteActions(3)))
    unbounded = BoundedActions(np.array([-np.inf]), np.array([1.0]))
    with pytest.raises(ValueError, match=r"^mpo needs actions with finite bounds"):
        mpo.make(mpo.Config(), EnvironmentSpec((3,), np.dtype(np.float32), unbounded))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_samples", 0),
        ("target_period", 0),
        ("epsilon", 0.0),
        ("epsilon_mu", 0.0),
        ("epsilon_sigma", -1.0),
        ("eta", 0.0),
        ("alpha_mu", 0.0),
        ("alpha_sigma", 0.0),
        ("dual_learning_rate", -1.0),
        ("critic_learning_rate", 0.0),
        ("num_atoms", 1),
        ("v_min", 200.0),
        ("min_replay_size", 10_000_000),
    ],
)
def test_settings_out_of_range_are_refused(field, value):
    with pytest.raises(ValueError, match=f"config.{field}"):
        mpo.Config(**{field: value})


def test_samples_have_what_makes_targets_differ():
    """Otherwise the tests of losses above would check less than they seem to."""
    steps = random_sample(0).steps
    assert isinstance(random_sample(0), Sample) and (steps.discount == 0).any() and (steps.discount > 0).any()
