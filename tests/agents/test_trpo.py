"""TRPO against Schulman et al. 2015, restated with explicit Fisher matrices, solved systems and finite differences."""

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from agents import trpo
from agents.agent import AXIS, Blocks, BoundedActions, DiscreteActions, EnvironmentSpec, Sample, Step, TimeStep
from agents.parts import policies
from agents.parts.advantages import gae

D, A = 3, 4
DISCRETE = EnvironmentSpec((D,), np.dtype(np.float32), DiscreteActions(A))
LOW, HIGH = np.array([-2.0, 0.0], np.float32), np.array([2.0, 1.0], np.float32)
CONTINUOUS = EnvironmentSpec((D,), np.dtype(np.float32), BoundedActions(LOW, HIGH))
SPECS = pytest.mark.parametrize("spec", [DISCRETE, CONTINUOUS], ids=["discrete", "continuous"])
FAMILIES = {
    "softmax": policies.make_policy("test", DISCRETE),
    "gaussian": policies.make_policy("test", CONTINUOUS, sigma_initial=0.5),
    "state": policies.make_policy("test", CONTINUOUS, sigma="state", sigma_initial=0.5),
    "squashed": policies.make_policy("test", CONTINUOUS, sigma_initial=0.5, squash=True),
}
ALL = pytest.mark.parametrize("family", FAMILIES)
POLICY_PART = {"MLPTorso_0", "policy", "free"}

flat = lambda tree: np.asarray(jax.flatten_util.ravel_pytree(tree)[0], np.float64)


def config(**fields) -> trpo.Config:
    """Returns a Config with a network without hidden layers, whose value takes one step on the whole batch."""
    small = {"hidden_sizes": (), "unroll_length": 6, "batch_size": 4, "value_epochs": 1, "value_minibatches": 1}
    return trpo.Config(**(small | fields))


def randomised(state: trpo.State, seed: int = 0, scale: float = 0.5) -> trpo.State:
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape) * scale, jnp.float32), state.params)
    return state._replace(params=params)


def played(agent, state: trpo.State, seed: int, T: int = 6, B: int = 4, spec=DISCRETE, first=None) -> Sample:
    """Returns rows [T+1, B] in which `state` acted. A row before a `first` row closes its episode, half of them by
    termination."""
    rng = np.random.default_rng(seed)
    shape = (T + 1, B)
    first = rng.random(shape) < 0.25 if first is None else first
    closing = np.concatenate([first[1:], np.zeros((1, B), bool)])
    terminal = closing & (rng.random(shape) < 0.5)
    discount = np.concatenate([np.where(terminal[1:], 0.0, 1.0), np.ones((1, B))]).astype(np.float32)
    observation = rng.normal(size=(*shape, *spec.observation_shape)).astype(np.float32)
    before = memory = agent.memory(B, None)
    act, rows = jax.jit(agent.act), []
    for t in range(T + 1):
        now = TimeStep(observation[t], np.zeros(B, np.float32), np.ones(B, np.float32), first[t], closing[t])
        action, extras, memory = act(agent.policy(state), jax.random.key(100 * seed + t), now, memory)
        rows.append((action, extras))
    action, extras = jax.tree.map(lambda *x: np.stack(x), *rows)
    reward = rng.normal(size=shape).astype(np.float32)
    return Sample(Step(observation, action, reward, discount, first, extras), before)


def older(state: trpo.State) -> trpo.State:
    """Returns the state with parameters near its own, for an older policy that acted."""
    rng = np.random.default_rng(9)
    return state._replace(params=jax.tree.map(lambda p: p + 0.1 * rng.normal(size=p.shape), state.params))


# The Fisher matrix ---------------------------------------------------------------------------------------------------


def explicit_fisher(family: str, outputs: np.ndarray) -> np.ndarray:
    """Returns the mean of grad log pi grad log pi^T in the outputs of one distribution, [P, P], in closed form."""
    if family == "softmax":
        p = np.exp(outputs) / np.exp(outputs).sum()
        gradients = np.eye(A) - p  # row a is the gradient of log pi(a)
        return sum(p[a] * np.outer(gradients[a], gradients[a]) for a in range(A))
    sigma = 0.5 * np.exp(outputs[2:])
    return np.diag([*(1 / sigma**2), 2.0, 2.0])  # for the means, then for the logarithms of the sigmas


@ALL
@pytest.mark.parametrize("seed", range(3))
def test_fisher_vector_products_are_the_matrixs(family, seed):
    rng = np.random.default_rng(seed)
    policy, x = FAMILIES[family], rng.normal(size=(7, D)).astype(np.float32)
    params = {
        "in": jnp.asarray(rng.normal(size=(D, 4)), jnp.float32),
        "out": jnp.asarray(rng.normal(size=(4, policy.num_outputs)) * 0.5, jnp.float32),
        "not used": jnp.ones(2),
    }
    weights = rng.uniform(size=7).astype(np.float32) * (rng.random(7) < 0.8)

    def outputs(params):
        return jnp.tanh(x @ params["in"]) @ params["out"]

    vector, unravel = jax.flatten_util.ravel_pytree(params)
    J = np.asarray(jax.jacfwd(lambda vector: outputs(unravel(vector)))(vector), np.float64)
    F = sum(w * j.T @ explicit_fisher(family, o) @ j for w, j, o in zip(weights, J, np.float64(outputs(params))))
    product = jax.jit(lambda v: trpo.fisher(policy, outputs, params, weights)(v))
    for _ in range(4):
        v = rng.normal(size=vector.size).astype(np.float32)
        np.testing.assert_allclose(flat(product(unravel(v))), F @ v, rtol=1e-3, atol=1e-3 * np.abs(F @ v).max())


@pytest.mark.parametrize("seed", range(5))
def test_the_natural_step_solves_the_system_and_uses_up_the_bound(seed):
    rng = np.random.default_rng(seed)
    n, delta, damping = 8, 0.03, 0.2
    half = rng.normal(size=(n, 5)).astype(np.float32)
    F, g = half @ half.T, rng.normal(size=n).astype(np.float32)  # F is singular without the damping
    step = np.asarray(trpo.natural_step(lambda v: F @ v, g, delta, damping, 2 * n), np.float64)
    damped = F + damping * np.eye(n)
    s = np.linalg.solve(damped.astype(np.float64), g)
    np.testing.assert_allclose(
        step, np.sqrt(2 * delta / (s @ damped @ s)) * s, rtol=1e-2, atol=1e-3 * np.abs(step).max()
    )
    np.testing.assert_allclose(0.5 * step @ damped @ step, delta, rtol=1e-4)
    assert np.all(np.asarray(trpo.natural_step(lambda v: F @ v, 0 * g, delta, damping, n)) == 0.0), "no slope, no step"


@pytest.mark.parametrize("iterations", [1, 2, 3])
def test_conjugate_gradients_end_where_they_are_told_to(iterations):
    """After k iterations the answer is the best in the Krylov space of g, F g .. F^(k-1) g, measured in F's norm."""
    rng = np.random.default_rng(0)
    half = rng.normal(size=(6, 6)).astype(np.float32)
    F, g = half @ half.T + 0.5 * np.eye(6, dtype=np.float32), rng.normal(size=6).astype(np.float32)
    K = np.stack([np.linalg.matrix_power(F.astype(np.float64), k) @ g for k in range(iterations)], axis=1)
    best = K @ np.linalg.solve(K.T @ F @ K, K.T @ g)
    step = np.asarray(trpo.natural_step(lambda v: F @ v, g, 0.1, 0.0, iterations))
    np.testing.assert_allclose(step, np.sqrt(0.2 / (best @ F @ best)) * best, rtol=1e-3, atol=1e-4)


# The surrogate -------------------------------------------------------------------------------------------------------


def log_prob(family: str, outputs: np.ndarray, raw: np.ndarray) -> np.ndarray:
    """Returns the log-probabilities [N] of raw actions [N, ...] under outputs [N, P], in float64."""
    if family == "softmax":
        return np.log(np.exp(outputs) / np.exp(outputs).sum(-1, keepdims=True))[np.arange(len(raw)), raw]
    mu, sigma = outputs[:, :2], 0.5 * np.exp(outputs[:, 2:])
    log_density = -0.5 * ((raw - mu) / sigma) ** 2 - np.log(sigma * np.sqrt(2 * np.pi))
    if family == "squashed":
        log_density -= np.log(1 - np.tanh(raw) ** 2)
    return log_density.sum(-1)


@ALL
def test_the_surrogates_gradient_is_the_differences(family):
    rng, N = np.random.default_rng(0), 9
    policy = FAMILIES[family]
    outputs = rng.normal(size=(N, policy.num_outputs)) * 0.5
    raw = rng.integers(A, size=N) if family == "softmax" else rng.normal(size=(N, 2))
    log_mu = log_prob(family, outputs + 0.2 * rng.normal(size=outputs.shape), raw)
    advantages, weights = rng.normal(size=N), rng.uniform(size=N) * (rng.random(N) < 0.8)

    def L(outputs) -> float:
        return np.sum(weights * np.exp(log_prob(family, outputs, raw) - log_mu) * advantages)

    arguments = (np.float32(x) if x.dtype == np.float64 else x for x in (raw, log_mu, advantages, weights))
    raw32, log_mu32, advantages32, weights32 = arguments
    value, gradient = jax.value_and_grad(
        lambda outputs: trpo.surrogate(policy, outputs, raw32, log_mu32, advantages32, weights32)
    )(jnp.asarray(outputs, jnp.float32))
    np.testing.assert_allclose(value, L(outputs), rtol=1e-3)
    expected = np.zeros_like(outputs)
    for index in np.ndindex(outputs.shape):
        h = np.zeros_like(outputs)
        h[index] = 1e-5
        expected[index] = (L(outputs + h) - L(outputs - h)) / 2e-5
    assert np.abs(expected).max() > 0.05
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-4)


# The line search -----------------------------------------------------------------------------------------------------


def search(improvements, kls, delta: float = 0.1, backtracks: int = 3) -> trpo.Search:
    """Searches along p = 1 - size, where steps of size 1, 1/2, 1/4 ... have the given improvements and KLs."""
    improvements, kls = jnp.asarray(improvements, jnp.float32), jnp.asarray(kls, jnp.float32)

    def evaluate(params):
        j = jnp.round(-jnp.log2(1.0 - params["p"])).astype(int)
        return improvements[j], kls[j]

    start, step = {"p": jnp.float32(1.0)}, {"p": jnp.float32(-1.0)}
    return jax.jit(lambda: trpo.line_search(evaluate, start, step, delta, backtracks, 0.5))()


@pytest.mark.parametrize(
    ("improvements", "kls", "j"),
    [
        ([1, 1, 1, 1], [0.1, 0.05, 0, 0], 0),  # a KL that equals the bound is within it
        ([1, 1, 1, 1], [0.4, 0.2, 0.05, 0], 2),
        ([-1, -1, -1, 1], [0, 0, 0, 0], 3),
        ([9, -1, 1, 2], [0.2, 0, 0.05, 0], 2),
        ([np.nan, np.inf, 1, 1], [0, 0, 0, 0], 2),
        ([1, 1, 2, 1], [np.nan, np.inf, 0.05, 0], 2),
    ],
)
def test_the_longest_step_that_improves_within_the_bound_is_taken(improvements, kls, j):
    found = search(improvements, kls)
    assert float(found.size) == 0.5**j and float(found.params["p"]) == 1.0 - 0.5**j
    assert float(found.improvement) == improvements[j] and found.kl == np.float32(kls[j])


@pytest.mark.parametrize(
    ("improvements", "kls"),
    [([0, 0, 0, 0], [0] * 4), ([1] * 4, [0.2] * 4), ([np.nan] * 4, [0] * 4), ([1, -1, -1, -1], [0.2, 0, 0, 0])],
)
def test_where_no_step_will_do_none_is_taken(improvements, kls):
    found = search(improvements, kls)
    assert float(found.params["p"]) == 1.0 and (found.size, found.improvement, found.kl) == (0.0, 0.0, 0.0)


def test_no_more_steps_are_tried_than_told():
    assert float(search([-1, -1, 1, 1], [0] * 4, backtracks=2).size) == 0.25
    assert float(search([-1, -1, 1, 1], [0] * 4, backtracks=1).size) == 0.0
    assert float(search([1, 1, 1, 1], [0] * 4, backtracks=0).size) == 1.0


# The update ----------------------------------------------------------------------------------------------------------


def numbers(spec, state: trpo.State, observation) -> tuple[np.ndarray, np.ndarray]:
    """Returns the outputs and values of a network without hidden layers, in float64."""
    heads = jax.tree.map(lambda p: np.asarray(p, np.float64), state.params["params"])
    outputs = observation @ heads["policy"]["kernel"] + heads["policy"]["bias"]
    if spec is CONTINUOUS:
        outputs = np.concatenate([outputs, np.broadcast_to(heads["free"], outputs.shape)], axis=-1)
    return outputs, (observation @ heads["value"]["kernel"] + heads["value"]["bias"])[..., 0]


def kl(spec, p: np.ndarray, q: np.ndarray) -> np.ndarray:
    if spec is DISCRETE:
        p, q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (p, q))
        return (np.exp(p) * (p - q)).sum(-1)
    sigma_p, sigma_q = 0.5 * np.exp(p[..., 2:]), 0.5 * np.exp(q[..., 2:])
    squares = sigma_p**2 + (p[..., :2] - q[..., :2]) ** 2
    return (np.log(sigma_q / sigma_p) + squares / (2 * sigma_q**2) - 0.5).sum(-1)


@pytest.mark.parametrize("T, B", [(6, 4), (5, 7), (1, 9), (128, 3)])
@pytest.mark.parametrize("fraction", [1e-6, 0.1, 0.3, 0.5, 0.9, 1.0])
def test_a_part_of_the_rows_is_spread_evenly(T, B, fraction):
    times, environments = trpo.spread_rows(T, B, fraction)
    rows = environments * T + times  # environments end to end
    assert len(rows) == max(1, round(fraction * T * B)) and rows[0] == 0
    assert set(times) <= set(range(T)) and set(environments) <= set(range(B))
    gaps = np.diff([*rows, T * B])
    assert gaps.min() >= 1 and gaps.max() - gaps.min() <= 1


@SPECS
@pytest.mark.parametrize("fraction", [1.0, 0.5])
@pytest.mark.parametrize("seed", range(2))
def test_the_policys_step_is_the_papers(spec, seed, fraction):
    """The new parameters are theta + size sqrt(2 delta / s F s) s with F s = g, where NumPy computes F and g
    explicitly. With a fraction of 1/2, F is of every other row of each environment; all else is always of all rows."""
    family = "softmax" if spec is DISCRETE else "gaussian"
    delta, damping = 0.02, 0.05
    fields = {"delta": 0.5, "damping": damping, "cg_iterations": 200, "sigma_initial": 0.5, "reward_scale": 0.5}
    agent = trpo.make(config(**fields, discount=0.5, lambda_=0.8, fisher_fraction=fraction), spec)
    state = randomised(agent.init(jax.random.key(0)), seed)
    hypers = state.hypers._replace(delta=jnp.float32(delta), discount=jnp.float32(0.9))  # unlike the config's
    state = state._replace(hypers=hypers)
    sample = played(agent, older(state), seed, spec=spec)
    after, feedback = jax.jit(agent.update)(state, jax.random.key(0), sample)
    steps, metrics = sample.steps, feedback.metrics

    x, live = steps.observation.astype(np.float64), (1.0 - steps.first[1:])
    outputs, V = numbers(spec, state, x)
    raw = (steps.action if spec is DISCRETE else steps.extras["raw"])[:-1]
    arguments = V, 0.5 * steps.reward[:-1], 0.9 * steps.discount[:-1], live
    advantages = np.asarray(gae(*(np.float32(x) for x in arguments), 0.8), np.float64)  # test_a2c.py checks it
    rows = live.reshape(-1) > 0
    select = lambda x: np.asarray(x).reshape(-1, *x.shape[2:])[rows]
    x, outputs, raw, log_mu, Adv = (
        select(y) for y in (x[:-1], outputs[:-1], raw, steps.extras["log_prob"][:-1], advantages)
    )
    standard = (Adv - Adv.mean()) / Adv.std()
    ratios = np.exp(log_prob(family, outputs, raw) - log_mu)
    assert np.abs(ratios - 1).mean() > 0.01, "another policy acted"

    # The policy's parameters are kernel, bias and free, in this order. d outputs / d parameters differs between samples
    # by x alone.
    heads = state.params["params"]
    k = heads["policy"]["kernel"].shape[1]
    J = np.zeros((len(x), outputs.shape[1], (D + 1) * k + outputs.shape[1] - k))
    for i in range(len(x)):
        for o in range(k):
            J[i, o, o : D * k : k], J[i, o, D * k + o] = x[i], 1.0
        for o in range(k, outputs.shape[1]):
            J[i, o, (D + 1) * k + o - k] = 1.0
    of_F = np.zeros_like(live)
    of_F[:: round(1 / fraction)] = 1.0
    of_F = select(of_F) > 0
    assert (len(of_F) - of_F.sum() > 3) == (fraction < 1)
    F = np.mean([j.T @ explicit_fisher(family, o) @ j for j, o in zip(J[of_F], outputs[of_F])], axis=0)
    F += damping * np.eye(J.shape[2])
    slopes = np.zeros_like(outputs)  # d log pi / d outputs
    for index in range(outputs.shape[1]):
        h = np.zeros(outputs.shape[1])
        h[index] = 1e-5
        slopes[:, index] = (log_prob(family, outputs + h, raw) - log_prob(family, outputs - h, raw)) / 2e-5
    g = np.mean([r * a * s @ j for r, a, s, j in zip(ratios, standard, slopes, J)], axis=0)
    s = np.linalg.solve(F, g)
    step = np.sqrt(2 * delta / (s @ F @ s)) * s

    parts = lambda state: np.concatenate(
        [
            np.asarray(p, np.float64).reshape(-1)
            for p in (
                state.params["params"]["policy"]["kernel"],
                state.params["params"]["policy"]["bias"],
                state.params["params"].get("free", np.zeros(0)),
            )
        ]
    )
    size = float(metrics["step_size"])
    assert size > 0
    np.testing.assert_allclose(parts(after) - parts(state), size * step, rtol=2e-2, atol=2e-3 * np.abs(step).max())
    new, _ = numbers(spec, after, x)
    divergence = kl(spec, outputs, new).mean()
    assert 0 < divergence <= delta * 1.001
    improvement = ((np.exp(log_prob(family, new, raw) - log_mu) - ratios) * standard).mean()
    np.testing.assert_allclose(metrics["kl"], divergence, rtol=1e-2)
    np.testing.assert_allclose(metrics["surrogate_improvement"], improvement, rtol=1e-2)
    np.testing.assert_allclose(metrics["gradient_norm"], np.linalg.norm(g), rtol=1e-3)
    np.testing.assert_allclose(metrics["ratio_deviation"], np.abs(ratios - 1).mean(), rtol=1e-3)
    np.testing.assert_allclose(metrics["value_loss"], 0.5 * (Adv**2).mean(), rtol=1e-3)
    R = select(V[:-1]) + Adv
    np.testing.assert_allclose(metrics["explained_variance"], 1 - Adv.var() / R.var(), rtol=1e-3, atol=1e-4)


@SPECS
def test_no_accepted_step_leaves_the_bound_and_a_refused_one_leaves_the_policy(spec):
    """This is tried on many problems and bounds, from those where the quadratic model is exact to those where it is
    useless."""
    # With more backtracks than one, some step would always be accepted.
    agent = trpo.make(config(hidden_sizes=(5,), backtracks=1, damping=1e-3, sigma_initial=0.5), spec)
    update, network = (
        jax.jit(agent.update),
        trpo.functions("trpo", config(hidden_sizes=(5,), sigma_initial=0.5), spec, True),
    )
    unroll = jax.jit(network.unroll)
    refused = accepted = 0
    for seed in range(60):
        state = randomised(agent.init(jax.random.key(0)), seed, [0.3, 1.0, 3.0][seed % 3])
        delta = [1e-3, 1e-2, 0.3, 5.0][seed % 4]
        state = state._replace(hypers=state.hypers._replace(delta=jnp.float32(delta)))
        sample = played(agent, older(state) if seed % 2 else state, seed, spec=spec)
        after, feedback = update(state, jax.random.key(seed), sample)
        steps, metrics = sample.steps, feedback.metrics
        assert all(np.isfinite(value) for value in metrics.values())
        before, now = state.params["params"], after.params["params"]
        if metrics["step_size"] == 0:
            refused += 1
            assert metrics["kl"] == metrics["surrogate_improvement"] == 0
            for name in POLICY_PART & set(before):
                jax.tree.map(np.testing.assert_array_equal, now[name], before[name])
            assert (now["value"]["kernel"] != before["value"]["kernel"]).any(), "the value learns all the same"
        else:
            accepted += 1
            p, q = (np.asarray(unroll(s.params, steps, sample.memory)[0], np.float64)[:-1] for s in (state, after))
            divergence = kl(spec, p, q)[~steps.first[1:]].mean()
            assert divergence <= delta * (1 + 1e-3) + 1e-6
            assert metrics["kl"] <= np.float32(delta) and metrics["surrogate_improvement"] > 0
    assert refused >= 5 and accepted >= 20, (refused, accepted)


@SPECS
def test_the_value_descends_by_adam_to_the_old_values_returns(spec):
    """The value takes one step on the whole batch. Adam's first step is the learning rate times g / (|g| + epsilon)."""
    agent = trpo.make(config(value_learning_rate=0.01, discount=0.9, lambda_=0.8), spec)
    state = randomised(agent.init(jax.random.key(0)))
    sample = played(agent, state, 3, spec=spec)
    after, _ = jax.jit(agent.update)(state, jax.random.key(0), sample)
    steps = sample.steps
    live, (_, V) = 1.0 - steps.first[1:], numbers(spec, state, steps.observation.astype(np.float64))
    arguments = (np.float32(x) for x in (V, steps.reward[:-1], 0.9 * steps.discount[:-1], live))
    errors = -np.asarray(gae(*arguments, 0.8), np.float64)  # V - R
    for name, slope in {"kernel": steps.observation[:-1], "bias": np.ones((*live.shape, 1))}.items():
        g = np.mean(errors[..., None] * slope, axis=(0, 1))
        got = np.asarray(after.params["params"]["value"][name] - state.params["params"]["value"][name]).reshape(-1)
        np.testing.assert_allclose(got, -0.01 * g / (np.abs(g) + 1e-5), rtol=1e-2, atol=1e-5)


def test_the_value_takes_a_step_for_each_minibatch_of_each_epoch():
    agent = trpo.make(config(value_epochs=3, value_minibatches=4), DISCRETE)
    state = agent.init(jax.random.key(0))
    after, _ = jax.jit(agent.update)(state, jax.random.key(0), played(agent, state, 0))
    assert int(after.opt_state.count) == 12 and int(after.step) == 1


def test_each_row_is_in_one_minibatch_of_an_epoch():
    """If nothing moves, Adam's second moment is about 0.001 times the sum over rows of the squared gradient, each row
    once."""
    agent = trpo.make(config(value_minibatches=24, value_learning_rate=1e-12), DISCRETE)
    state = randomised(agent.init(jax.random.key(0)))
    sample = played(agent, state, 0)
    after, _ = jax.jit(agent.update)(state, jax.random.key(0), sample)
    steps = sample.steps
    _, V = numbers(DISCRETE, state, steps.observation.astype(np.float64))
    arguments = (np.float32(x) for x in (V, steps.reward[:-1], 0.99 * steps.discount[:-1], 1.0 - steps.first[1:]))
    errors = np.asarray(gae(*arguments, 0.97))[..., None]
    for name, slope in {"kernel": steps.observation[:-1], "bias": np.ones_like(errors)}.items():
        got = np.asarray(after.opt_state.nu["params"]["value"][name]).reshape(-1)
        np.testing.assert_allclose(got, 0.001 * np.square(errors * slope).sum((0, 1)), rtol=0.03)


def test_rows_whose_action_was_thrown_away_teach_nothing():
    first = np.zeros((7, 4), bool)
    first[3] = True  # row 2 is the last of its episode
    agent = trpo.make(config(), DISCRETE)
    state = randomised(agent.init(jax.random.key(0)))
    sample = played(agent, state, 0, first=first)
    update = jax.jit(agent.update)

    def of(**changes):
        steps = jax.tree.map(np.array, sample.steps)
        steps.discount[1] = 0.0
        for name, value in changes.items():
            getattr(steps, name)[2] = value
        steps.extras["log_prob"][2] += 3.0 * bool(changes)
        return flat(update(state, jax.random.key(0), Sample(steps, sample.memory))[0].params)

    np.testing.assert_array_equal(of(), of(reward=99.0, action=1, discount=0.3))
    np.testing.assert_array_equal(of(), of(observation=7.0))  # it terminated: not even its value counts


def products(jaxpr) -> list:
    """Returns the precision of each product in a jaxpr and in the jaxprs within it."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            found.append(equation.params["precision"])
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
        ):
            if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                found += products(getattr(inner, "jaxpr", inner))
    return found


@pytest.mark.parametrize("torso", ["mlp", "shallow"])
def test_all_products_of_an_update_are_of_float32(torso):
    """An accelerator's default precision is lower, and not enough for conjugate gradients."""
    shape, dtype, stack = ((D,), np.float32, 1) if torso == "mlp" else ((20, 20), np.uint8, 2)
    spec = EnvironmentSpec(shape, np.dtype(dtype), DiscreteActions(A))
    agent = trpo.make(config(torso=torso, frame_stack=stack, hidden_sizes=(5,)), spec)
    state = jax.eval_shape(agent.init, jax.random.key(0))
    rows = lambda *of: jax.ShapeDtypeStruct((7, 4, *of), np.float32)
    step = Step(
        jax.ShapeDtypeStruct((7, 4, *shape), dtype),
        jax.ShapeDtypeStruct((7, 4), np.int32),
        rows(),
        rows(),
        jax.ShapeDtypeStruct((7, 4), bool),
        {"log_prob": rows()},
    )
    sample = Sample(step, jax.eval_shape(lambda: agent.memory(4, None)))
    found = products(jax.make_jaxpr(agent.update)(state, jax.random.key(0), sample).jaxpr)
    highest = jax.lax.Precision.HIGHEST
    assert len(found) > 10 and set(found) == {(highest, highest)}


def test_a_batch_of_dead_rows_alone_teaches_nothing():
    agent = trpo.make(config(unroll_length=1, batch_size=2), DISCRETE)
    state = agent.init(jax.random.key(0))
    sample = played(agent, state, 0, 1, 2, first=np.array([[False, False], [True, True]]))
    after, feedback = jax.jit(agent.update)(state, jax.random.key(0), sample)
    jax.tree.map(np.testing.assert_array_equal, after.params, state.params)
    assert {name: value for name, value in feedback.metrics.items() if not np.isfinite(value)} == {}


@SPECS
@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_two_shards_are_one_batch(spec, fraction):
    fields = {"hidden_sizes": (4,), "normalize_observations": True, "fisher_fraction": fraction}
    agent = trpo.make(config(batch_size=6, **fields), spec)
    state = agent.init(jax.random.key(0))
    sample = played(agent, state, 1, 6, 6, spec)
    assert sample.steps.first[1:, :3].sum() != sample.steps.first[1:, 3:].sum(), "shards of unlike transitions"
    whole, feedback = jax.jit(agent.update)(state, jax.random.key(0), sample)
    halves = sample._replace(steps=jax.tree.map(lambda x: np.stack([x[:, :3], x[:, 3:]]), sample.steps))
    update = jax.jit(jax.vmap(agent.update, in_axes=(None, None, 0), axis_name=AXIS))
    shards, shard_feedback = update(state, jax.random.key(0), halves)
    for i in range(2):
        for got, expected in zip(jax.tree.leaves(shards.params), jax.tree.leaves(whole.params), strict=True):
            np.testing.assert_allclose(got[i], expected, rtol=1e-3, atol=1e-4)
        jax.tree.map(lambda x: np.testing.assert_array_equal(x[0], x[1]), shards)
        for name, value in feedback.metrics.items():
            np.testing.assert_allclose(shard_feedback.metrics[name][i], value, rtol=1e-2, atol=1e-4, err_msg=name)


# Acting and what is seen ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"normalize_observations": True}, {"squash": True}, {"sigma": "state"}])
def test_ratios_to_ones_own_actions_are_1(options):
    """Acting and learning normalise observations alike, by the statistics that the state held when it acted."""
    agent = trpo.make(config(**options, hidden_sizes=(4,)), CONTINUOUS)
    state = agent.init(jax.random.key(0))
    for seed in range(3):
        sample = played(agent, state, seed, spec=CONTINUOUS)
        state, feedback = jax.jit(agent.update)(state, jax.random.key(0), sample)
        assert feedback.metrics["ratio_deviation"] < 1e-4


def test_frames_are_stacked():
    spec = EnvironmentSpec((4, 5), np.dtype(np.float32), DiscreteActions(A))
    agent = trpo.make(config(frame_stack=3, hidden_sizes=(4,)), spec)
    state = agent.init(jax.random.key(0))
    assert state.params["params"]["MLPTorso_0"]["Dense_0"]["kernel"].shape == (60, 4)
    after, feedback = jax.jit(agent.update)(state, jax.random.key(0), played(agent, state, 0, spec=spec))
    assert feedback.metrics["ratio_deviation"] < 1e-4 and feedback.metrics["step_size"] > 0


def test_statistics_travel_with_the_parameters():
    agent = trpo.make(config(normalize_observations=True), DISCRETE)
    state = randomised(agent.init(jax.random.key(0)), scale=2.0)
    sample = played(agent, state, 0)
    after, _ = jax.jit(agent.update)(state, jax.random.key(0), sample)
    seen = sample.steps.observation[:-1].reshape(-1, D)
    np.testing.assert_allclose(after.normalizer.mean, seen.mean(0), atol=1e-5)
    np.testing.assert_allclose(after.normalizer.variance, seen.var(0), rtol=1e-4)
    now = TimeStep(seen, np.zeros(24, np.float32), np.ones(24, np.float32), np.zeros(24, bool), np.zeros(24, bool))
    outputs, _ = numbers(DISCRETE, after, (seen - seen.mean(0)) / seen.std(0))
    action, extras, _ = agent.act_greedily(agent.policy(after), None, now, agent.memory(24, None))
    np.testing.assert_array_equal(action, outputs.argmax(-1))
    action, extras, _ = agent.act(agent.policy(after), jax.random.key(0), now, agent.memory(24, None))
    np.testing.assert_allclose(extras["log_prob"], log_prob("softmax", outputs, np.asarray(action)), atol=1e-3)


def test_continuous_actions_are_bounded_and_their_raw_ones_kept():
    agent, B = trpo.make(config(sigma_initial=0.7), CONTINUOUS), 4000
    state = agent.init(jax.random.key(0))
    zeros = np.zeros(B, np.float32)
    now = TimeStep(np.ones((B, D), np.float32), zeros, zeros + 1, zeros > 0, zeros > 0)
    action, extras, _ = jax.jit(agent.act)(agent.policy(state), jax.random.key(1), now, agent.memory(B, None))
    raw = np.asarray(extras["raw"])
    np.testing.assert_allclose(action, LOW + (np.clip(raw, -1, 1) + 1) / 2 * (HIGH - LOW), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(raw.std(axis=0), 0.7, rtol=0.05)
    assert (np.abs(raw) > 1).any(), "what is kept is not clipped"


# Settings ------------------------------------------------------------------------------------------------------------


def test_table():
    agent = trpo.make(config(queue_batches=3), DISCRETE)
    table = agent.table
    assert table.items == Blocks(6) and table.kind == "queue" and table.max_size == 12
    assert agent.batch_size == 4 and agent.priority is None and agent.gradient is None


@pytest.mark.parametrize(
    ("options", "spec", "message"),
    [
        (
            {},
            EnvironmentSpec((D,), np.dtype(np.float32), BoundedActions(LOW, HIGH + np.inf)),
            "trpo needs actions with",
        ),
        ({"torso": "shallow"}, DISCRETE, "torso=mlp"),
        ({"frame_stack": 4}, DISCRETE, "frame_stack=1"),
        (
            {"torso": "shallow", "normalize_observations": True},
            EnvironmentSpec((36, 36), np.dtype(np.uint8), DiscreteActions(A)),
            "normalize_observations=True is for vectors",
        ),
    ],
)
def test_what_does_not_fit_is_refused(options, spec, message):
    with pytest.raises(ValueError, match=message) as error:
        trpo.make(config(**options), spec)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("unroll_length", 0), ("batch_size", 0), ("cg_iterations", 0), ("value_epochs", 0), ("delta", 0.0)),
        *(
            ("damping", -1.0),
            ("backtracks", -1),
            ("backtrack", 1.5),
            ("lambda_", 1.5),
            ("fisher_fraction", 0.0),
            ("fisher_fraction", 1.1),
            ("sigma_initial", 0.0),
        ),
        *(("delta", float("inf")), ("delta", float("nan")), ("value_learning_rate", 0.0), ("reward_scale", 0.0)),
    ],
)
def test_settings_out_of_range_are_refused(field, value):
    with pytest.raises(ValueError, match=f"config.{field} must be .*, not {value}"):
        trpo.Config(**{field: value})


def test_minibatches_that_do_not_divide_the_batch_are_refused():
    with pytest.raises(ValueError, match=r"config\.value_minibatches=7 does not divide a batch of 24 rows"):
        config(value_minibatches=7)
