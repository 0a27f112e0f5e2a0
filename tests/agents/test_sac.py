"""SAC against its papers (https://arxiv.org/abs/1812.05905, and of discrete actions https://arxiv.org/abs/1910.07207)."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from agents import sac
from agents.agent import AXIS, BoundedActions, DiscreteActions, EnvironmentSpec, Sample, Transitions
from agents.parts.policies import make_policy
from tests.agents.test_ddpg import (
    HIGH,
    LOW,
    SIZES,
    assert_trees_close,
    dense,
    finite_differences,
    float64,
    gradient_of,
    np_layers,
    np_Q,
    np_weights,
    random_sample,
    scaled,
    timestep,
)
from tests.agents.transitions import learn

NUM_ACTIONS = 4
CONTINUOUS = EnvironmentSpec((3,), np.dtype(np.float64), BoundedActions(LOW, HIGH))
DISCRETE = EnvironmentSpec((3,), np.dtype(np.float64), DiscreteActions(NUM_ACTIONS))
SPECS = {"continuous": CONTINUOUS, "discrete": DISCRETE}
BOTH = pytest.mark.parametrize("kind", SPECS)
FAMILY = make_policy("sac", CONTINUOUS, sigma="state", squash=True)


def make(kind: str, **fields):
    return sac.make(sac.Config(**{"hidden_sizes": SIZES, **fields}), SPECS[kind])


def sample_of(kind: str, seed: int) -> Sample:
    sample = random_sample(seed)
    if kind == "continuous":
        return sample
    action = np.random.default_rng(seed).integers(NUM_ACTIONS, size=8, dtype=np.int32)
    return sample._replace(steps=sample.steps._replace(action=action))


def randomized(state, seed: int = 0):
    """Returns the state with random networks and targets that differ, and with a temperature of 0.4."""
    rng = np.random.default_rng(seed)

    def noisy(tree):
        return jax.tree.map(lambda x: jnp.asarray(x + 0.4 * rng.normal(size=x.shape), jnp.float32), tree)

    params = noisy(state.params)._replace(log_alpha=jnp.log(jnp.float32(0.4)))
    return state._replace(params=params, target_critic=noisy(state.target_critic))


# The papers in NumPy, in float64 -------------------------------------------------------------------------------------


def np_mlp(params, s):
    params = params["params"]
    return dense(params["Dense_0"], np_layers(params["MLPTorso_0"], s))


def critic_of(theta, i: int):
    return jax.tree.map(lambda x: np.asarray(x, np.float64)[i], theta)


def np_soft_value(kind, phi, thetas, alpha, key, s, over_i=min):
    """Returns E[min_i Q_i - alpha log pi] and E[-log pi] for each state, computed one state after another. `over_i` may
    be another reduction than the minimum."""
    values, entropies = [], []
    epsilon = np.asarray(jax.random.normal(key, (len(s), 2)), np.float64)
    for k in range(len(s)):
        x = np_mlp(phi, s[k : k + 1])[0]
        if kind == "discrete":
            p = np.exp(x) / np.exp(x).sum()
            Q = [np_mlp(theta, s[k : k + 1])[0] for theta in thetas]
            values.append(sum(p[a] * (over_i(q[a] for q in Q) - alpha * math.log(p[a])) for a in range(NUM_ACTIONS)))
            entropies.append(-sum(p[a] * math.log(p[a]) for a in range(NUM_ACTIONS)))
            continue
        action, log_pi = [], 0.0
        for n in range(2):
            mu, sigma = x[n], math.exp(min(math.log(10.0), max(math.log(1e-3), x[2 + n])))
            u = mu + sigma * epsilon[k, n]
            action.append(math.tanh(u))
            log_pi += -0.5 * ((u - mu) / sigma) ** 2 - math.log(sigma * math.sqrt(2 * math.pi))
            log_pi -= math.log(1 - math.tanh(u) ** 2)
        value = over_i(np_Q(theta, s[k : k + 1], np.array([action]))[0, 0] for theta in thetas)
        values.append(value - alpha * log_pi)
        entropies.append(-log_pi)
    return np.array(values), np.array(entropies)


def np_values(kind, theta, sample):
    s, a = sample.steps.observation, sample.steps.action
    return np_mlp(theta, s)[np.arange(8), a] if kind == "discrete" else np_Q(theta, s, scaled(a))[:, 0]


def target_entropy(kind) -> float:
    return 0.98 * math.log(NUM_ACTIONS) if kind == "discrete" else -2.0


@BOTH
@pytest.mark.parametrize(
    ("num_critics", "replay"), [(1, "uniform"), (2, "uniform"), (2, "prioritized"), (3, "uniform")]
)
def test_critic_loss_gradient_and_priorities_are_the_papers(kind, num_critics, replay):
    agent = make(kind, num_critics=num_critics, replay=replay, importance_exponent=0.4, importance_steps=100)
    state = randomized(agent.init(jax.random.key(0)))._replace(step=jnp.int32(50))  # beta is 0.7 there
    sample, key = sample_of(kind, 1), jax.random.key(1)
    new, feedback = jax.jit(agent.update)(state, key, sample)
    targets = [critic_of(state.target_critic, i) for i in range(num_critics)]
    phi = float64(state.params.policy)
    v, _ = np_soft_value(kind, phi, targets, 0.4, jax.random.split(key)[0], sample.steps.next_observation)
    y = sample.steps.reward + sample.steps.discount * v
    w = np_weights(sample.likelihood, 0.7) if replay == "prioritized" else np.ones(8)

    losses, errors = [], []
    for i in range(num_critics):

        def loss(theta):
            return np.mean(w * (y - np_values(kind, theta, sample)) ** 2)

        theta = critic_of(state.params.critic, i)
        gradient = critic_of(gradient_of(new.opt_state.critic), i)
        assert_trees_close(gradient, finite_differences(loss, theta), rtol=1e-3, atol=1e-4)
        losses.append(loss(theta))
        errors.append(np.abs(y - np_values(kind, theta, sample)))
    np.testing.assert_allclose(feedback.metrics["critic_loss"], sum(losses), rtol=1e-4)
    if replay == "prioritized":
        np.testing.assert_allclose(feedback.priorities, np.max(errors, axis=0), rtol=1e-4, atol=1e-5)
    else:
        assert feedback.priorities == ()


@BOTH
def test_policy_and_temperature_gradients_are_those_of_finite_differences(kind):
    """The policy's gradient uses the critics after their step and the temperature before its own step. The
    temperature's gradient uses the policy's entropy before the policy's step."""
    agent = make(kind, critic_learning_rate=0.1)
    state = randomized(agent.init(jax.random.key(0)))
    sample, key = sample_of(kind, 0), jax.random.key(1)
    new, feedback = jax.jit(agent.update)(state, key, sample)
    thetas = [critic_of(new.params.critic, i) for i in range(2)]
    policy_key, s = jax.random.split(key)[1], sample.steps.observation

    def policy_loss(phi):
        return -np_soft_value(kind, phi, thetas, 0.4, policy_key, s)[0].mean()

    phi = float64(state.params.policy)
    expected = finite_differences(policy_loss, phi)
    assert max(np.abs(g).max() for g in jax.tree.leaves(expected)) > 0.05
    assert_trees_close(gradient_of(new.opt_state.policy), expected, rtol=2e-3, atol=2e-5)
    np.testing.assert_allclose(feedback.metrics["policy_loss"], policy_loss(phi), rtol=1e-4)

    _, entropies = np_soft_value(kind, phi, thetas, 0.4, policy_key, s)

    def temperature_loss(log_alpha):
        return np.mean(math.exp(log_alpha) * entropies - math.exp(log_alpha) * target_entropy(kind))

    slope = (temperature_loss(math.log(0.4) + 1e-6) - temperature_loss(math.log(0.4) - 1e-6)) / 2e-6
    np.testing.assert_allclose(gradient_of(new.opt_state.log_alpha), slope, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(feedback.metrics["entropy"], entropies.mean(), rtol=1e-4)
    np.testing.assert_allclose(feedback.metrics["alpha"], 0.4, rtol=1e-5)
    assert (new.params.log_alpha < state.params.log_alpha) == (entropies.mean() > target_entropy(kind))


# The ensemble of REDQ (Chen et al. 2021, https://arxiv.org/abs/2101.05982) -------------------------------------------


@BOTH
@pytest.mark.parametrize(("num_critics", "target_critics"), [(4, 1), (3, 2), (3, 3)])
def test_targets_use_the_least_of_a_few_critics_and_the_policy_the_mean_of_all(kind, num_critics, target_critics):
    """One subset of the critics, the same for the whole batch and for all critics' targets, explains the loss; other
    updates draw other subsets."""
    agent = make(kind, num_critics=num_critics, target_critics=target_critics, critic_learning_rate=0.1)
    state, sample = randomized(agent.init(jax.random.key(0))), sample_of(kind, 0)
    targets = [critic_of(state.target_critic, i) for i in range(num_critics)]
    thetas = [critic_of(state.params.critic, i) for i in range(num_critics)]
    phi, update = float64(state.params.policy), jax.jit(agent.update)
    subsets = list(itertools.combinations(range(num_critics), target_critics))
    values = np.array([np_values(kind, theta, sample) for theta in thetas])

    def loss_of(subset, key):
        chosen, s_next = [targets[i] for i in subset], sample.steps.next_observation
        v, _ = np_soft_value(kind, phi, chosen, 0.4, jax.random.split(key)[0], s_next)
        return np.mean(np.square(sample.steps.reward + sample.steps.discount * v - values).sum(axis=0))

    drawn = set()
    for number in range(8):
        key = jax.random.key(number)
        new, feedback = update(state, key, sample)
        misses = [abs(loss_of(subset, key) / feedback.metrics["critic_loss"] - 1) for subset in subsets]
        assert min(misses) < 1e-4
        drawn.add(np.argmin(misses))
    assert len(drawn) > 1 or len(subsets) == 1

    policy_key, s = jax.random.split(key)[1], sample.steps.observation
    stepped = [critic_of(new.params.critic, i) for i in range(num_critics)]

    def policy_loss(phi):
        return -np_soft_value(kind, phi, stepped, 0.4, policy_key, s, over_i=lambda q: np.mean(list(q)))[0].mean()

    np.testing.assert_allclose(feedback.metrics["policy_loss"], policy_loss(phi), rtol=1e-4)
    expected = finite_differences(policy_loss, phi)
    assert_trees_close(gradient_of(new.opt_state.policy), expected, rtol=2e-3, atol=2e-5)


# The squashed Gaussian -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mu", "sigma"), [(0.0, 1.0), (0.8, 0.3), (-1.5, 0.7), (0.3, 2.0), (2.0, 0.05)])
def test_log_density_of_the_squashed_gaussian_is_that_of_quadrature(mu, sigma):
    """The density's integral is 1 over all actions, and up to a bound it is the Gaussian's distribution function. The
    entropy by quadrature is the samples' mean of -log pi."""
    spec = EnvironmentSpec((3,), np.dtype(np.float32), BoundedActions(-np.ones(1, np.float32), np.ones(1, np.float32)))
    family = make_policy("sac", spec, sigma="state", squash=True)
    outputs = jnp.array([mu, math.log(sigma)], jnp.float32)
    log_prob = jax.jit(lambda u: family.log_prob(outputs, u[None]))

    def density(a):
        return math.exp(log_prob(jnp.float32(math.atanh(a))))

    edges = [math.tanh(mu + k * sigma) for k in (-8, -4, -2, -1, 0, 1, 2, 4, 8)]
    edges = [min(1 - 1e-6, max(1e-6 - 1, edge)) for edge in edges]

    def integral(function, above):
        whole = [*(edge for edge in edges if edge < above), above]
        return sum(
            scipy.integrate.quad(function, *part, epsabs=1e-6, limit=100)[0]
            for part in itertools.pairwise(whole)
            if part[0] < part[1]
        )

    for u in (mu - sigma, mu + 0.5 * sigma, mu + 2 * sigma):
        if abs(math.tanh(u)) < 1 - 1e-6:
            np.testing.assert_allclose(integral(density, math.tanh(u)), scipy.stats.norm.cdf(u, mu, sigma), atol=2e-3)
    np.testing.assert_allclose(integral(density, edges[-1]), 1.0, atol=2e-3)
    raw = family.sample(jax.random.key(0), jnp.broadcast_to(outputs, (100_000, 2)))
    sampled = -family.log_prob(jnp.broadcast_to(outputs, (100_000, 2)), raw)
    entropy = integral(lambda a: -density(a) * math.log(density(a) + 1e-300), edges[-1])
    np.testing.assert_allclose(sampled.mean(), entropy, atol=6 * float(sampled.std()) / 100_000**0.5 + 2e-3)


# The temperature -----------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("start", [0.01, 3.0])
def test_the_entropy_target_is_met_where_the_temperature_rests(kind, start):
    """There is one state, whose values are fixed, and the temperature starts on either side of where it comes to rest.
    With discrete actions the policy becomes softmax(Q / alpha)."""
    rates = {"policy_learning_rate": 3e-3, "alpha_learning_rate": 1e-2, "critic_learning_rate": 1e-3}
    agent = make(kind, alpha=start, num_critics=1, discrete_entropy=0.6, continuous_entropy=-0.5, **rates)
    state = agent.init(jax.random.key(0))
    state = state._replace(
        params=randomized(state).params._replace(log_alpha=jnp.log(jnp.float32(start)), policy=state.params.policy),
        hypers=state.hypers._replace(critic_learning_rate=jnp.float32(0)),
    )
    sample = sample_of(kind, 0)
    observation = np.broadcast_to(np.array([0.5, -0.3, 0.8]), (64, 3))
    steps = jax.tree.map(lambda x: np.resize(x, (64, *x.shape[1:])), sample.steps)
    sample = Sample(steps._replace(observation=observation), (), ())

    state, metrics = learn(agent, state, sample, jax.random.split(jax.random.key(0), 3_000))
    wanted = 0.6 * math.log(NUM_ACTIONS) if kind == "discrete" else -1.0
    np.testing.assert_allclose(metrics["entropy"][-500:].mean(), wanted, atol=0.05)
    moved = np.abs(np.diff(np.log(metrics["alpha"][-1_000:].reshape(2, 500).mean(axis=1))))
    assert moved < 0.15, "the temperature rests"
    if kind == "discrete":
        Q = np_mlp(critic_of(state.params.critic, 0), observation[:1])[0]
        logits = Q / math.exp(float(state.params.log_alpha))
        pi = np.exp(np_mlp(float64(state.params.policy), observation[:1])[0])
        np.testing.assert_allclose(pi / pi.sum(), np.exp(logits) / np.exp(logits).sum(), atol=0.03)


@BOTH
def test_a_temperature_whose_rate_is_0_stays(kind):
    agent = make(kind, alpha=0.2, alpha_learning_rate=0.0)
    state, update = agent.init(jax.random.key(0)), jax.jit(agent.update)
    for number in range(3):
        state, feedback = update(state, jax.random.key(number), sample_of(kind, number))
        np.testing.assert_allclose(feedback.metrics["alpha"], 0.2, rtol=1e-6)


# Steps and targets ---------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("period", [1, 2, 3])
def test_policy_and_temperature_step_once_in_a_period_and_critics_and_targets_always(kind, period):
    agent = make(kind, policy_period=period, tau=0.77)
    state, update = randomized(agent.init(jax.random.key(0))), jax.jit(agent.update)
    state = state._replace(hypers=state.hypers._replace(tau=jnp.float32(0.3)))  # a population may tune tau
    for number in range(1, 7):
        old = state
        state, feedback = update(state, jax.random.key(number), sample_of(kind, number))
        moved = jax.tree.map(
            lambda x, y: bool((x != y).any()), (state.params, state.opt_state), (old.params, old.opt_state)
        )
        assert all(jax.tree.leaves(moved[0].critic))
        for part in ("policy", "log_alpha"):
            for tree in moved:
                assert any(jax.tree.leaves(getattr(tree, part))) == (number % period == 0)
        assert np.isfinite(list(feedback.metrics.values())).all()
        expected = jax.tree.map(
            lambda target, new: 0.7 * target + 0.3 * new, float64(old.target_critic), float64(state.params.critic)
        )
        assert_trees_close(state.target_critic, expected, rtol=1e-6, atol=1e-6)


@BOTH
@pytest.mark.parametrize("part", ["policy", "critic", "alpha"])
def test_learning_rates_are_the_states(kind, part):
    """Adam's first step has the learning rate's size, and each part that is learnt has a learning rate of its own."""
    agent = make(kind)
    state = randomized(agent.init(jax.random.key(0)))
    rates = {name: jnp.float32(0.25 if name == f"{part}_learning_rate" else 0) for name in state.hypers._fields[:3]}
    new, _ = jax.jit(agent.update)(
        state._replace(hypers=state.hypers._replace(**rates)), jax.random.key(0), sample_of(kind, 0)
    )
    moved = jax.tree.map(lambda a, b: np.abs(np.asarray(a - b)).max(), new.params, state.params)._asdict()
    name = "log_alpha" if part == "alpha" else part
    np.testing.assert_allclose(max(jax.tree.leaves(moved.pop(name))), 0.25, rtol=1e-2)
    assert max(jax.tree.leaves(moved)) == 0.0


@BOTH
def test_targets_start_as_copies_and_critics_unlike_each_other(kind):
    state = make(kind).init(jax.random.key(3))
    jax.tree.map(np.testing.assert_array_equal, state.target_critic, state.params.critic)
    pointers = [{x.unsafe_buffer_pointer() for x in jax.tree.leaves(t)} for t in (state.params, state.target_critic)]
    assert not pointers[0] & pointers[1], "shared buffers could not be donated"
    kernels = [x for x in jax.tree.leaves(state.params.critic) if x.ndim == 3]
    assert len(kernels) == 3 and all(np.abs(x[0] - x[1]).max() > 1e-4 for x in kernels)


@BOTH
def test_several_devices_gradient_is_the_mean_of_each_ones(kind):
    """Each device draws its own actions. All devices report the same metrics and hold the same state."""
    agent = make(kind, replay="prioritized", critic_learning_rate=0.1)
    state = randomized(agent.init(jax.random.key(0)))
    state = state._replace(hypers=state.hypers._replace(critic_learning_rate=jnp.float32(0)))  # so the critics stay
    sample, keys = sample_of(kind, 5), jax.random.split(jax.random.key(1), 2)
    sample = sample._replace(
        likelihood=np.resize(sample.likelihood[:4], 8)
    )  # both halves have the same: weights are divided by the largest of all devices
    halves = jax.tree.map(lambda x: x.reshape(2, -1, *x.shape[1:]), sample)
    update = jax.jit(jax.vmap(agent.update, in_axes=(None, 0, 0), axis_name=AXIS))
    shards, feedback = update(state, keys, halves)
    alone = [jax.jit(agent.update)(state, keys[i], jax.tree.map(lambda x: x[i], halves)) for i in range(2)]  # noqa: B023
    mean = jax.tree.map(lambda x, y: (x + y) / 2, *(gradient_of_all(each.opt_state) for each, _ in alone))
    for i in range(2):
        got = gradient_of_all(jax.tree.map(lambda x: x[i], shards.opt_state))  # noqa: B023
        assert_trees_close(got, mean, rtol=1e-3, atol=1e-4)
    for name in ("critic_loss", "policy_loss", "entropy", "td_error"):
        expected = np.mean([each.metrics[name] for _, each in alone])
        np.testing.assert_allclose(feedback.metrics[name], [expected] * 2, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(feedback.priorities, np.stack([each.priorities for _, each in alone]), rtol=1e-4)
    moved = jax.tree.map(lambda x: np.abs(np.asarray(x[0] - x[1])).max(), shards)
    assert max(jax.tree.leaves(moved)) == 0.0, "devices must not drift apart"


def gradient_of_all(opt_state):
    return sac.Learnt(*map(gradient_of, opt_state))


def test_two_shards_of_discrete_actions_are_one_batch():
    agent = make("discrete", replay="prioritized", normalize_observations=True)
    state, sample = randomized(agent.init(jax.random.key(0))), sample_of("discrete", 5)
    whole, feedback = jax.jit(agent.update)(state, jax.random.key(1), sample)
    halves = jax.tree.map(lambda x: x.reshape(2, -1, *x.shape[1:]), sample)
    shards, of_shards = jax.jit(jax.vmap(agent.update, in_axes=(None, None, 0), axis_name=AXIS))(
        state, jax.random.key(1), halves
    )
    for i in range(2):
        shard, metrics = jax.tree.map(lambda x: x[i], (shards, of_shards.metrics))  # noqa: B023
        assert_trees_close(gradient_of_all(shard.opt_state), gradient_of_all(whole.opt_state), rtol=1e-3, atol=1e-4)
        assert_trees_close((shard.normalizer, metrics), (whole.normalizer, feedback.metrics), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(of_shards.priorities.reshape(-1), feedback.priorities, rtol=1e-3, atol=1e-5)


@BOTH
def test_members_of_a_population_update_as_each_alone(kind):
    """The members are stacked by vmap, and each has its own step count, which decides when its policy steps."""
    agent = make(kind, policy_period=2, replay="prioritized")
    states = [randomized(agent.init(jax.random.key(m)), m)._replace(step=jnp.int32(m)) for m in range(3)]
    samples, keys = [sample_of(kind, m) for m in range(3)], jax.random.split(jax.random.key(0), 3)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *states)
    after, feedback = jax.jit(jax.vmap(agent.update))(stacked, keys, jax.tree.map(lambda *x: np.stack(x), *samples))
    for m in range(3):
        expected, alone = jax.jit(agent.update)(states[m], keys[m], samples[m])
        assert_trees_close(jax.tree.map(lambda x, m=m: x[m], after), expected, rtol=1e-3, atol=1e-3)
        assert_trees_close(jax.tree.map(lambda x, m=m: x[m], feedback), alone, rtol=1e-3, atol=1e-4)


# Actions and observations --------------------------------------------------------------------------------------------


def test_continuous_actions_are_the_squashed_samples_and_greedily_the_tanh_of_the_mean():
    agent = make("continuous")
    state = randomized(agent.init(jax.random.key(0)))
    observation = np.random.default_rng(0).normal(size=(6, 3))
    x = np_mlp(float64(state.params.policy), observation)
    key = jax.random.key(5)
    raw = x[:, :2] + np.exp(x[:, 2:]) * np.asarray(jax.random.normal(key, (6, 2)))
    for act, action in ((agent.act, np.tanh(raw)), (agent.act_greedily, np.tanh(x[:, :2]))):
        got, extras, memory = act(agent.policy(state), key, timestep(observation), agent.memory(6, None))
        assert (extras, memory) == ({}, ())
        np.testing.assert_allclose(scaled(np.asarray(got)), action, rtol=1e-4, atol=1e-4)
        assert (np.asarray(got) >= LOW).all() and (np.asarray(got) <= HIGH).all()


def test_discrete_actions_are_sampled_from_the_softmax_and_greedily_its_largest():
    agent = make("discrete")
    state = randomized(agent.init(jax.random.key(0)))
    observation = np.broadcast_to(np.array([[0.3, -1.0, 0.5]]), (20_000, 3))
    p = np.exp(np_mlp(float64(state.params.policy), observation[:1])[0])
    step = timestep(observation)
    action, extras, _ = agent.act(agent.policy(state), jax.random.key(0), step, ())
    assert action.dtype == np.int32 and extras == {}
    np.testing.assert_allclose(np.bincount(action, minlength=NUM_ACTIONS) / 20_000, p / p.sum(), atol=0.02)
    greedy, _, _ = agent.act_greedily(agent.policy(state), jax.random.key(0), step, ())
    np.testing.assert_array_equal(greedy, np.full(20_000, p.argmax()))


@BOTH
def test_first_actions_are_spread_over_all_there_are(kind):
    agent = make(kind)
    step = timestep(np.random.default_rng(0).normal(size=(20_000, 3)))
    action, _, _ = agent.act(agent.policy(agent.init(jax.random.key(0))), jax.random.key(1), step, ())
    if kind == "discrete":
        shares = np.bincount(action, minlength=NUM_ACTIONS) / 20_000
    else:
        shares = np.histogram(scaled(np.asarray(action))[:, 1], 4, (-1, 1))[0] / 20_000
    assert (shares > 0.15).all() and (shares < 0.35).all()


@BOTH
def test_actors_and_updates_normalise_observations(kind):
    """An update on raw observations equals the plain agent's on the same observations with mean 0 and variance 1. So
    does acting."""
    plain, agent = make(kind), make(kind, normalize_observations=True)
    state, sample = randomized(agent.init(jax.random.key(0))), sample_of(kind, 0)
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


@BOTH
def test_boards_are_flattened(kind):
    """Catch's observations are boards, of two dimensions."""
    spec = EnvironmentSpec((4, 5), np.dtype(np.float32), SPECS[kind].actions)
    agent = sac.make(sac.Config(hidden_sizes=(6,)), spec)
    boards = np.random.default_rng(0).normal(size=(8, 4, 5)).astype(np.float32)
    sample = sample_of(kind, 0)
    sample = sample._replace(steps=sample.steps._replace(observation=boards, next_observation=boards))
    state, feedback = jax.jit(agent.update)(agent.init(jax.random.key(0)), jax.random.key(0), sample)
    assert np.isfinite(list(feedback.metrics.values())).all()
    assert len(agent.act(agent.policy(state), jax.random.key(0), timestep(boards), ())[0]) == 8


# Settings ------------------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("replay", ["uniform", "prioritized"])
def test_table_and_new_items_priorities(kind, replay):
    agent = make(kind, replay=replay, n_step=3, discount=0.9, batch_size=16, replay_size=500, min_replay_size=20)
    assert agent.table.items == Transitions(3, 0.9) and agent.table.kind == replay and agent.batch_size == 16
    assert (agent.table.max_size, agent.table.min_size) == (500, 20)
    if replay == "uniform":
        assert agent.priority is None
        return
    state, sample = randomized(agent.init(jax.random.key(0))), sample_of(kind, 0)
    sample = sample._replace(steps=sample.steps._replace(reward=30 * sample.steps.reward))
    state, feedback = jax.jit(agent.update)(state, jax.random.key(0), sample)
    priorities = agent.priority(agent.policy(state), sample.steps)
    np.testing.assert_allclose(priorities, np.full(8, feedback.priorities.max()), rtol=1e-6)


def test_frames_and_unbounded_actions_are_refused():
    frames = EnvironmentSpec((8, 8), np.dtype(np.uint8), DiscreteActions(3))
    with pytest.raises(ValueError, match=r"^sac has no convolutions"):
        sac.make(sac.Config(), frames)
    unbounded = EnvironmentSpec((3,), np.dtype(np.float32), BoundedActions(np.array([-np.inf]), np.array([1.0])))
    with pytest.raises(ValueError, match=r"^sac needs actions with finite bounds"):
        sac.make(sac.Config(), unbounded)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_critics", 0),
        ("target_critics", 3),
        ("target_critics", -1),
        ("policy_period", 0),
        ("alpha", 0.0),
        ("alpha_learning_rate", -1.0),
        ("discrete_entropy", 1.1),
        ("tau", 1.5),
        ("critic_learning_rate", 0.0),
        ("min_replay_size", 10_000_000),
    ],
)
def test_settings_out_of_range_are_refused(field, value):
    with pytest.raises(ValueError, match=f"config.{field}"):
        sac.Config(**{field: value})
