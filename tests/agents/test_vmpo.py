"""V-MPO against its paper (https://arxiv.org/abs/1909.12238), restated as plainly as can be."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special

from agents import vmpo
from agents.agent import AXIS, BoundedActions, DiscreteActions, EnvironmentSpec, FactoredActions, Sample, Step, TimeStep
from agents.parts.multipliers import parameter_of
from tests.agents.test_ddpg import ADAM_B1, assert_trees_close
from tests.agents.transitions import finite_differences, float64, learn

T, B, D = 5, 4, 3
ACTIONS = {
    "discrete": DiscreteActions(3),
    "factored": FactoredActions((2, 3)),
    "continuous": BoundedActions(np.float32([-2.0, 0.0]), np.float32([2.0, 6.0])),
}
KINDS = pytest.mark.parametrize("kind", ACTIONS)
SMALL = {"torso": "mlp", "hidden_sizes": (), "frame_stack": 1, "unroll_length": T, "batch_size": B}


def make(kind: str, **fields):
    spec = EnvironmentSpec((D,), np.dtype(np.float32), ACTIONS[kind])
    return vmpo.make(vmpo.Config(**SMALL | fields), spec)


def gradient_of(opt_state):
    """Returns the gradient of the first step, which Adam's first moment holds times 1 - beta_1."""
    return jax.tree.map(lambda m: np.asarray(m) / (1 - ADAM_B1), opt_state[1].mu)


def randomized(state, seed: int = 0):
    """Returns the state with a random network and target that differ, and with different multipliers."""
    rng = np.random.default_rng(seed)

    def noisy(tree):
        return jax.tree.map(lambda x: jnp.asarray(x + 0.4 * rng.normal(size=x.shape), jnp.float32), tree)

    alphas = jnp.stack([parameter_of(x) for x in (0.7, 2.0)][: len(state.params.alphas)])
    params = vmpo.Learnt(noisy(state.params.network), parameter_of(0.8), alphas)
    return state._replace(params=params, target=noisy(state.target))


def played(agent, state, seed: int = 0, B: int = B) -> Sample:
    """Returns a batch of blocks in which the target network acts. Episodes end at random, and a row's discount is 0 at
    random."""
    rng = np.random.default_rng(seed)
    memory, rows, first = agent.memory(B, None), [], rng.random(B) < 0.5
    before = memory
    for t in range(T + 1):
        last = ~first & (rng.random(B) < 0.3)
        observation, zeros = rng.normal(size=(B, D)).astype(np.float32), np.zeros(B, np.float32)
        timestep = TimeStep(observation, zeros, zeros + 1, first, last)
        action, extras, memory = agent.act(agent.policy(state), jax.random.key(100 * seed + t), timestep, memory)
        reward, discount = rng.normal(size=B), np.where(rng.random(B) < 0.2, 0.0, 1.0)
        rows.append(
            Step(observation, np.asarray(action), np.float32(reward), np.float32(discount), first, dict(extras))
        )
        first = last
    return Sample(jax.tree.map(lambda *x: np.stack(x), *rows), before)


# The E-step ----------------------------------------------------------------------------------------------------------


def naive_e_step(eta, advantages, live, fraction):
    """Returns the weight of each transition (t, b) of the better part, and the mean of exp(A / eta) over this part."""
    rows = [(t, b) for t in range(advantages.shape[0]) for b in range(advantages.shape[1]) if live[t, b]]
    rows.sort(key=lambda row: -advantages[row])
    least = advantages[rows[math.ceil(fraction * len(rows)) - 1]]
    better = [row for row in rows if advantages[row] >= least]
    total = sum(math.exp(advantages[row] / eta) for row in better)
    return {row: math.exp(advantages[row] / eta) / total for row in better}, total / len(better)


def random_advantages(seed: int, ties: bool = False):
    rng = np.random.default_rng(seed)
    advantages = rng.normal(size=(T, B)).astype(np.float32)
    advantages = np.round(advantages) if ties else advantages
    live = (rng.random((T, B)) < 0.8).astype(np.float32)
    return advantages * live + 50.0 * (1 - live) * (seed % 2), live  # dead rows hold rubbish


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("fraction", [0.5, 0.25, 1.0])
@pytest.mark.parametrize("eta", [0.05, 1.0, 20.0])
def test_weights_are_of_the_better_part_alone_and_the_papers(seed, fraction, eta):
    advantages, live = random_advantages(seed, ties=seed >= 4)
    found = jax.jit(vmpo.e_step, static_argnums=3)(jnp.float32(eta), advantages, live, fraction, 0.1)
    weights, mean = naive_e_step(eta, advantages.astype(np.float64), live, fraction)
    expected = np.zeros((T, B))
    for row, weight in weights.items():
        expected[row] = weight
    np.testing.assert_allclose(found.psi, expected, rtol=1e-3, atol=1e-6)
    if seed < 4:  # no two advantages are equal
        assert (np.asarray(found.psi) > 0).sum() <= math.ceil(fraction * live.sum())
    np.testing.assert_allclose(found.loss, eta * 0.1 + eta * math.log(mean), rtol=1e-3, atol=1e-4)
    kl = sum(w * math.log(w * len(weights)) for w in weights.values() if w > 0)
    np.testing.assert_allclose(found.kl, kl, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("start", "epsilon"), [(0.05, 0.1), (2.0, 0.1), (0.3, 0.5)])
def test_the_temperature_goes_to_the_minimum_of_its_dual_where_the_constraint_holds(start, epsilon):
    advantages, live = random_advantages(0)
    slope = jax.grad(lambda x: vmpo.e_step(jnp.exp(x), advantages, live, 0.5, epsilon).loss)
    log_eta = jax.lax.fori_loop(0, 5_000, lambda _, x: x - 0.1 * slope(x), jnp.log(jnp.float32(start)))

    def dual(x):
        return math.exp(x) * (epsilon + math.log(naive_e_step(math.exp(x), advantages.astype(float), live, 0.5)[1]))

    best = scipy.optimize.minimize_scalar(dual, bounds=(-5, 4), method="bounded")
    np.testing.assert_allclose(log_eta, best.x, atol=2e-2)
    np.testing.assert_allclose(vmpo.e_step(jnp.exp(log_eta), advantages, live, 0.5, epsilon).kl, epsilon, rtol=5e-2)


def test_a_batch_without_transitions_changes_nothing():
    zeros = np.zeros((T, B), np.float32)
    loss, slope = jax.value_and_grad(lambda x: vmpo.e_step(x, zeros, zeros, 0.5, 0.1).loss)(jnp.float32(1))
    found = vmpo.e_step(jnp.float32(1), zeros, zeros, 0.5, 0.1)
    assert np.isfinite([loss, slope]).all() and not np.asarray(found.psi).any()


@pytest.mark.parametrize("devices", [2, 4])
def test_the_better_part_is_of_all_devices_rows(devices):
    """The better part is taken from the rows of all devices together, however unevenly it is spread over them."""
    advantages, live = random_advantages(3)
    advantages = advantages + 3.0 * np.arange(B)  # the last environments have nearly all of it
    whole = vmpo.e_step(jnp.float32(0.1), advantages, live, 0.5, 0.1)
    shares = [np.stack(np.split(x, devices, axis=1)) for x in (advantages, live)]
    e_step = jax.vmap(lambda A, l: vmpo.e_step(jnp.float32(0.1), A, l, 0.5, 0.1), axis_name=AXIS)
    found = e_step(*shares)
    np.testing.assert_allclose(np.concatenate(found.psi, axis=1) / devices, whole.psi, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(found.loss, np.full(devices, whole.loss), rtol=1e-4)


# The losses, in NumPy and float64 -------------------------------------------------------------------------------------


def np_heads(kind, network, s):
    """Returns the policy's outputs and the value for one observation, by linear layers."""
    params = network["params"]
    outputs = s @ params["policy"]["kernel"] + params["policy"]["bias"]
    return outputs, (s @ params["value"]["kernel"] + params["value"]["bias"])[0]


def np_parts(kind, outputs):
    """Returns the probabilities of each factor's choices, or mu and sigma."""
    if kind == "continuous":
        return outputs[:2], np.clip(np.exp(outputs[2:]), 1e-3, 10.0)
    sizes = (3,) if kind == "discrete" else (2, 3)
    return [np.exp(x - scipy.special.logsumexp(x)) for x in np.split(outputs, np.cumsum(sizes)[:-1])]


def np_log_prob(kind, outputs, raw):
    if kind == "continuous":
        mu, sigma = np_parts(kind, outputs)
        return sum(-0.5 * ((raw - mu) / sigma) ** 2 - np.log(sigma * math.sqrt(2 * math.pi)))
    return sum(math.log(p[a]) for p, a in zip(np_parts(kind, outputs), np.atleast_1d(raw), strict=True))


def np_kls(kind, old, new):
    if kind == "continuous":
        (old_mu, old_sigma), (mu, sigma) = np_parts(kind, old), np_parts(kind, new)
        ratio = old_sigma / sigma
        return [0.5 * np.sum(((mu - old_mu) / old_sigma) ** 2), np.sum(0.5 * (ratio**2 - 1) - np.log(ratio))]
    return [sum(np.sum(p * np.log(p / q)) for p, q in zip(np_parts(kind, old), np_parts(kind, new), strict=True))]


def naive_losses(kind, config, learnt, fixed, sample):
    """Returns V-MPO's loss of the network `learnt`, with the values and multipliers of `fixed`, the loss of the
    temperature of `fixed`, and the KLs that the multipliers bound."""
    steps, live = sample.steps, 1 - sample.steps.first[1:].astype(float)
    raw = steps.extras["raw"] if kind == "continuous" else steps.action
    V = np.array([[np_heads(kind, fixed.network, steps.observation[t, b])[1] for b in range(B)] for t in range(T + 1)])
    advantages = np.zeros((T, B))
    for b in range(B):
        trace = 0.0
        for t in reversed(range(T)):
            gamma = config.discount * steps.discount[t, b]
            delta = steps.reward[t, b] + gamma * V[t + 1, b] - V[t, b]
            trace = (delta + gamma * config.lambda_ * trace) if live[t, b] else 0.0
            advantages[t, b] = trace
    eta, alphas = np.log1p(np.exp(fixed.eta)), np.log1p(np.exp(fixed.alphas))  # softplus
    weights, mean = naive_e_step(eta, advantages, live, config.top_fraction)
    policy_loss = baseline_loss = 0.0
    kls = np.zeros(len(alphas))
    for t in range(T):
        for b in range(B):
            outputs, value = np_heads(kind, learnt, steps.observation[t, b])
            policy_loss -= weights.get((t, b), 0.0) * np_log_prob(kind, outputs, raw[t, b])
            if live[t, b]:
                old = steps.extras["outputs"][t, b].astype(float)
                kls += np.array(np_kls(kind, old, outputs)) / live.sum()
                baseline_loss += 0.5 * (advantages[t, b] + V[t, b] - value) ** 2 / live.sum()
    network = policy_loss + config.baseline_cost * baseline_loss + np.sum(alphas * kls)
    return network, eta * (config.epsilon_eta + math.log(mean)), kls


@KINDS
@pytest.mark.parametrize("seed", range(2))
def test_gradients_are_those_of_finite_differences_of_the_papers_losses(kind, seed):
    config = {"lambda_": [1.0, 0.7][seed], "baseline_cost": 0.6, "epsilon_eta": 0.05, "discount": 0.9}
    agent = make(kind, **config)
    state = randomized(agent.init(jax.random.key(0)))
    sample = played(agent, state, seed)
    live = 1 - sample.steps.first[1:]
    assert live.mean() < 1, "else nothing would be masked"
    new, feedback = jax.jit(agent.update)(state, jax.random.key(0), sample)
    fixed, gradient = float64(state.params), gradient_of(new.opt_state)
    settings = vmpo.Config(**SMALL | config)

    expected = finite_differences(lambda x: naive_losses(kind, settings, x, fixed, sample)[0], state.params.network)
    scale = max(np.abs(g).max() for g in jax.tree.leaves(expected))
    assert scale > 0.05
    assert_trees_close(gradient.network, expected, rtol=2e-3, atol=1e-4 * scale)

    def dual(x):
        return naive_losses(kind, settings, fixed.network, fixed._replace(eta=x[0]), sample)[1]

    slope = scipy.optimize.approx_fprime(np.array([fixed.eta]), dual, 1e-6)
    np.testing.assert_allclose(gradient.eta, slope[0], rtol=2e-3, atol=1e-5)
    _, _, kls = naive_losses(kind, settings, fixed.network, fixed, sample)
    epsilons = [1e-2, 1e-4] if kind == "continuous" else [1e-2]
    slopes = 1 / (1 + np.exp(-fixed.alphas))  # the softplus's slopes
    np.testing.assert_allclose(gradient.alphas, slopes * (epsilons - kls), rtol=2e-3)
    names = ("kl_mu", "kl_sigma") if kind == "continuous" else ("kl",)
    np.testing.assert_allclose([feedback.metrics[name] for name in names], kls, rtol=1e-3)


@KINDS
def test_the_first_update_has_no_divergence(kind):
    """The network that acted starts as a copy of the one that learns."""
    agent = make(kind, hidden_sizes=(6,))
    state = agent.init(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, state.target, state.params.network)
    pointers = [{x.unsafe_buffer_pointer() for x in jax.tree.leaves(t)} for t in (state.params, state.target)]
    assert not pointers[0] & pointers[1], "shared buffers could not be donated"
    _, feedback = jax.jit(agent.update)(state, jax.random.key(0), played(agent, state))
    found = [value for name, value in feedback.metrics.items() if name.startswith("kl")]
    assert len(found) == (2 if kind == "continuous" else 1)
    np.testing.assert_allclose(found, 0.0, atol=1e-6)


@KINDS
def test_the_policy_stays_as_near_to_the_one_that_acted_as_it_is_told(kind):
    epsilons = {"epsilon_alpha": 2e-3, "epsilon_mu": 2e-3, "epsilon_sigma": 1e-4, "eta": 0.1}
    agent = make(kind, target_period=10**6, learning_rate=1e-3, dual_learning_rate=0.1, alpha=1.0, **epsilons)
    state = agent.init(jax.random.key(0))
    sample = played(agent, state)

    _, metrics = learn(agent, state, sample, jnp.broadcast_to(jax.random.key(0), (4_000,)))
    for name in ("kl_mu", "kl_sigma") if kind == "continuous" else ("kl",):
        epsilon = epsilons["epsilon_alpha" if name == "kl" else name.replace("kl", "epsilon")]
        np.testing.assert_allclose(metrics[name][-1_000:].mean(), epsilon, rtol=0.3, err_msg=name)


# Steps and targets ---------------------------------------------------------------------------------------------------


@KINDS
@pytest.mark.parametrize("period", [1, 3])
def test_the_network_that_acts_is_copied_once_in_a_period(kind, period):
    agent = make(kind, target_period=period)
    state, update = randomized(agent.init(jax.random.key(0))), jax.jit(agent.update)
    for number in range(1, 7):
        old = state
        state, _ = update(state, jax.random.key(0), played(agent, state, number))
        source = state.params.network if number % period == 0 else old.target
        jax.tree.map(np.testing.assert_array_equal, state.target, source)
        assert agent.policy(state) is state.target


@pytest.mark.parametrize("part", vmpo.Learnt._fields)
def test_learning_rates_are_the_states(part):
    agent = make("continuous")
    state = randomized(agent.init(jax.random.key(0)))
    rates = {"learning_rate": jnp.float32(0.25 * (part == "network"))}
    rates["dual_learning_rate"] = jnp.float32(0.25 * (part != "network"))
    new, _ = jax.jit(agent.update)(
        state._replace(hypers=state.hypers._replace(**rates)), jax.random.key(0), played(agent, state)
    )
    moved = jax.tree.map(lambda a, b: np.abs(np.asarray(a - b)).max(), new.params, state.params)
    np.testing.assert_allclose(max(jax.tree.leaves(getattr(moved, part))), 0.25, rtol=1e-2)
    others = moved._replace(**{part: 0.0})
    still = others if part == "network" else others.network
    assert max(jax.tree.leaves(still)) == 0.0


@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_all_hypers_are_the_states(kind):
    agent = make(kind)
    state = randomized(agent.init(jax.random.key(0)))
    sample, update = played(agent, state), jax.jit(agent.update)
    before, _ = update(state, jax.random.key(0), sample)
    others = ("epsilon_mu", "epsilon_sigma") if kind == "discrete" else ("epsilon_alpha",)  # for other kinds of actions
    for name in set(vmpo.Hypers._fields) - set(others):
        tuned = state._replace(hypers=state.hypers._replace(**{name: jnp.float32(0.4)}))
        after, _ = update(tuned, jax.random.key(0), sample)
        # Adam's first step has the same size for any gradient, so the gradients are compared too.
        both = [(x.params, gradient_of(x.opt_state)) for x in (before, after)]
        moved = jax.tree.map(lambda x, y: bool(np.abs(x - y).max() > 1e-6), *both)
        assert any(jax.tree.leaves(moved)), name


@KINDS
def test_two_shards_are_one_batch(kind):
    agent = make(kind, normalize_rewards=True)
    state = randomized(agent.init(jax.random.key(0)))
    sample = played(agent, state, 7)
    whole, feedback = jax.jit(agent.update)(state, jax.random.key(0), sample)
    shares = Sample(
        jax.tree.map(lambda x: np.stack(np.split(x, 2, axis=1)), sample.steps),
        jax.tree.map(lambda x: np.stack(np.split(np.asarray(x), 2)), sample.memory),
    )
    update = jax.jit(jax.vmap(agent.update, in_axes=(None, None, 0), axis_name=AXIS))
    shards, of_shards = update(state, jax.random.key(0), shares)
    for i in range(2):
        shard, metrics = jax.tree.map(lambda x: x[i], (shards, of_shards.metrics))  # noqa: B023
        assert_trees_close(gradient_of(shard.opt_state), gradient_of(whole.opt_state), rtol=1e-3, atol=1e-5)
        assert_trees_close((shard.returns, metrics), (whole.returns, feedback.metrics), rtol=1e-3, atol=1e-4)
    moved = jax.tree.map(lambda x: np.abs(np.asarray(x[0] - x[1])).max(), shards)
    assert max(jax.tree.leaves(moved)) == 0.0, "devices must not drift apart"


def test_an_lstm_learns_from_where_it_acted():
    """The learner's LSTM starts from the state with which acting began, so the first update finds no divergence
    either."""
    agent = make("discrete", hidden_sizes=(6,), lstm_size=4, lstm_previous=True)
    state = agent.init(jax.random.key(0))
    _, feedback = jax.jit(agent.update)(state, jax.random.key(0), played(agent, state))
    np.testing.assert_allclose(feedback.metrics["kl"], 0.0, atol=1e-6)
    assert feedback.metrics["gradient_norm"] > 1e-3


# Settings ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("target_period", 0),
        ("top_fraction", 0.0),
        ("top_fraction", 1.1),
        ("epsilon_eta", 0.0),
        ("epsilon_alpha", 0.0),
        ("epsilon_mu", 0.0),
        ("epsilon_sigma", 0.0),
        ("eta", 0.0),
        ("alpha", 0.0),
        ("dual_learning_rate", -1.0),
        ("lambda_", 1.5),
    ],
)
def test_settings_out_of_range_are_refused(field, value):
    with pytest.raises(ValueError, match=f"config.{field}"):
        vmpo.Config(**{field: value})


def test_an_action_without_bounds_is_refused():
    spec = EnvironmentSpec((D,), np.dtype(np.float32), BoundedActions(np.array([-np.inf]), np.array([1.0])))
    with pytest.raises(ValueError, match=r"^vmpo needs actions with finite bounds"):
        vmpo.make(vmpo.Config(**SMALL), spec)
