"""Off-PAC against algorithm 1 of Degris et al. 2012, restated as plainly as can be. Its critic is also tested where
semi-gradient temporal differences diverge."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents import off_pac
from agents.agent import (
    AXIS,
    Blocks,
    BoundedActions,
    DiscreteActions,
    EnvironmentSpec,
    Sample,
    Step,
    TimeStep,
)
from agents.off_pac import Config, Memory, Row, Traces, Weights
from agents.parts import features, policies
from scripts import textbook
from tests.agents import policy_slopes

A = 3
SPEC = EnvironmentSpec((2,), np.dtype(np.float32), DiscreteActions(A))
TILES = {"observation_low": (-1.0, 0.0), "observation_high": (1.0, 4.0), "tilings": 2, "tiles": 3}
ALPHAS = {"alpha_v": 0.3, "alpha_w": 0.2, "alpha_u": 0.4, "discount": 0.9}
BASIS = features.tiles(2, 2, 3)
LAMBDAS = pytest.mark.parametrize("lambda_", [0.0, 0.6, 1.0])


def make(spec=SPEC, **fields):
    return off_pac.make(Config(**{**TILES, **ALPHAS, **fields}), spec)


def random_steps(seed: int, T: int, B: int) -> Step:
    """Returns random rows [T+1, B] that begin with an episode's first row. A row before a `first` row closes its
    episode, half of them by termination, and its action is thrown away."""
    rng = np.random.default_rng(seed)
    shape = (T + 1, B)
    first = rng.random(shape) < 0.2
    first[0] = True
    closing = np.concatenate([first[1:], np.zeros((1, B), bool)])
    terminal = closing & (rng.random(shape) < 0.5)
    discount = np.concatenate([np.where(terminal[1:], 0.0, 1.0), np.ones((1, B))]).astype(np.float32)
    observation = rng.uniform((-1, 0), (1, 4), (*shape, 2)).astype(np.float32)
    action, reward = rng.integers(A, size=shape).astype(np.int32), rng.normal(size=shape).astype(np.float32)
    b = rng.uniform(0.2, 0.9, shape).astype(np.float32)
    return Step(observation, action, reward, discount, first, {"b": b})


def rows(steps: Step, start: int, stop: int) -> Sample:
    return Sample(jax.tree.map(lambda x: x[start:stop], steps))


def x_of(observation: np.ndarray) -> np.ndarray:
    """Returns the features [n] of an observation, which is scaled to its bounds by hand."""
    return np.asarray(BASIS.phi(np.array([(observation[0] + 1) / 2, observation[1] / 4], np.float32)), float)


def softmax(outputs: np.ndarray, steps: Step, t: int, i: int) -> tuple[float, np.ndarray]:
    """Returns ln pi of the action of row t of environment i, and its gradient with respect to the outputs."""
    pi, a = np.exp(outputs) / np.exp(outputs).sum(), steps.action[t, i]
    return np.log(pi[a]), np.eye(len(pi))[a] - pi


def algorithm_1(weights: Weights, steps: Step, lambda_: float, target=softmax) -> list[Weights]:
    """Returns v, w and u after each row. With several environments, a step is the mean of theirs."""
    alpha_v, alpha_w, alpha_u, gamma = ALPHAS.values()
    v, w, u = (np.asarray(x, float) for x in weights)
    T, B = steps.reward[:-1].shape
    e_v, e_u = np.zeros((B, *v.shape)), np.zeros((B, *u.shape))
    told = []
    for t in range(T):
        moves = []
        for i in range(B):
            if steps.first[t, i]:
                e_v[i], e_u[i] = 0, 0
            if steps.first[t + 1, i]:
                continue  # row t closes an episode
            x, next_x = x_of(steps.observation[t, i]), x_of(steps.observation[t + 1, i])
            next_gamma = gamma * steps.discount[t, i]
            delta = steps.reward[t, i] + next_gamma * v @ next_x - v @ x
            ln_pi, slope = target(x @ u, steps, t, i)
            rho = np.exp(ln_pi) / steps.extras["b"][t, i]
            e_v[i] = rho * (x + gamma * lambda_ * e_v[i])
            e_u[i] = rho * (np.outer(x, slope) + gamma * lambda_ * e_u[i])
            moves.append(
                (
                    delta * e_v[i] - next_gamma * (1 - lambda_) * (w @ e_v[i]) * next_x,
                    delta * e_v[i] - (w @ x) * x,
                    delta * e_u[i],
                )
            )
        if moves:
            of_v, of_w, of_u = (np.mean(m, axis=0) for m in zip(*moves, strict=True))
            v, w, u = v + alpha_v / 2 * of_v, w + alpha_w / 2 * of_w, u + alpha_u / 2 * of_u  # 2 tilings: alpha / 2
        told.append(Weights(v, w, u))
    return told


def random_weights(n: int, num_outputs: int = A) -> Weights:
    rng = np.random.default_rng(7)
    return Weights(*(jnp.asarray(0.3 * rng.normal(size=s), jnp.float32) for s in [n, n, (n, num_outputs)]))


@LAMBDAS
@pytest.mark.parametrize(("T", "B"), [(1, 1), (4, 3)])
def test_updates_are_algorithm_1s(lambda_, T, B):
    """Traces carry over from one update to the next, and are reset at the end of an episode."""
    agent = make(unroll_length=T, batch_size=B, lambda_=lambda_)
    state, update = agent.init(jax.random.key(0)), jax.jit(agent.update)
    assert not any(x.any() for x in state.weights)
    state = state._replace(weights=random_weights(BASIS.size))
    steps = random_steps(0, 40, B)
    told = algorithm_1(state.weights, steps, lambda_)
    for t in range(0, 40, T):
        state, feedback = update(state, jax.random.key(t), rows(steps, t, t + T + 1))
        for got, expected in zip(state.weights, told[t + T - 1], strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)
    assert int(state.step) == 40 // T
    np.testing.assert_allclose(feedback.metrics["v_norm"], np.linalg.norm(told[-1].v), rtol=1e-3)


@LAMBDAS
@pytest.mark.parametrize("family", ["squashed", "factored"])
def test_other_policies_follow_algorithm_1(lambda_, family):
    T, B = 20, 3
    spec = policy_slopes.spec(family, 2)
    agent = make(spec, unroll_length=T, batch_size=B, lambda_=lambda_, sigma_initial=policy_slopes.SIGMA_INITIAL)
    state, steps = agent.init(jax.random.key(0)), policy_slopes.with_actions(family, random_steps(0, T, B))
    assert not any(x.any() for x in state.weights)
    state = state._replace(weights=random_weights(BASIS.size, policy_slopes.NUM_OUTPUTS[family]))
    expected = algorithm_1(state.weights, steps, lambda_, functools.partial(policy_slopes.ln_pi_and_slope, family))[-1]
    state, feedback = jax.jit(agent.update)(state, jax.random.key(0), Sample(steps))
    for got, want in zip(state.weights, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)
    assert np.isfinite(list(feedback.metrics.values())).all()


def test_rows_that_close_an_episode_teach_nothing():
    """It does not matter what such a row's action, reward and discount hold."""
    steps = random_steps(3, 30, 2)
    closing = np.concatenate([steps.first[1:], np.zeros((1, 2), bool)])
    assert closing.sum() > 4
    rubbish = steps._replace(
        reward=np.where(closing, 1e3, steps.reward).astype(np.float32),
        discount=np.where(closing, 7.0, steps.discount).astype(np.float32),
        action=np.where(closing, 0, steps.action).astype(np.int32),
        extras={"b": np.where(closing, 1e-3, steps.extras["b"]).astype(np.float32)},
    )
    agent = make(unroll_length=3, batch_size=2, lambda_=0.7)
    update, states = jax.jit(agent.update), [agent.init(jax.random.key(0))] * 2
    for t in range(0, 30, 3):
        states = [
            update(s, jax.random.key(0), rows(x, t, t + 4))[0] for s, x in zip(states, (steps, rubbish), strict=True)
        ]
    for got, expected in zip(states[0].weights, states[1].weights, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_a_batch_without_transitions_is_harmless():
    agent = make(batch_size=2)
    state = agent.init(jax.random.key(0))._replace(weights=random_weights(BASIS.size))
    steps = random_steps(0, 1, 2)._replace(first=np.array([[False, False], [True, True]]))
    new, feedback = jax.jit(agent.update)(state, jax.random.key(0), Sample(steps))
    jax.tree.map(np.testing.assert_array_equal, new.weights, state.weights)
    assert {name: x for name, x in feedback.metrics.items() if not np.isfinite(x)} == {}


def test_two_shards_are_one_batch():
    """This holds over several updates too: each device keeps the traces of its own environments."""
    agent = make(unroll_length=3, batch_size=8, lambda_=0.7)
    steps = random_steps(5, 30, 8)
    state = agent.init(jax.random.key(0))
    update, sharded = jax.jit(agent.update), jax.jit(jax.vmap(agent.update, in_axes=(0, None, 0), axis_name=AXIS))
    shards = jax.tree.map(lambda x: np.stack([x, x]), state)
    halves = jax.tree.map(lambda x: np.stack([x[:, :4], x[:, 4:]]), steps)
    for t in range(0, 30, 3):
        state, feedback = update(state, jax.random.key(0), rows(steps, t, t + 4))
        part = Sample(jax.tree.map(lambda x, t=t: x[:, t : t + 4], halves))
        shards, shard_feedback = sharded(shards, jax.random.key(0), part)
        for i in range(2):
            mine = jax.tree.map(lambda x, i=i: x[i], shards.weights)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), mine, state.weights)
            for name, x in feedback.metrics.items():
                np.testing.assert_allclose(shard_feedback.metrics[name][i], x, rtol=1e-3, atol=1e-5, err_msg=name)


def test_hypers_are_the_states():
    """An update uses the state's hyperparameters, which a population may tune, not the config's."""
    agent, other = make(), make(alpha_v=0.7, alpha_w=0.6, alpha_u=0.1, discount=0.5, lambda_=0.9)
    steps = random_steps(1, 12, 1)
    state, expected = agent.init(jax.random.key(0)), other.init(jax.random.key(0))
    state = state._replace(hypers=expected.hypers)
    update, other_update = jax.jit(agent.update), jax.jit(other.update)
    for t in range(12):
        state, _ = update(state, jax.random.key(0), rows(steps, t, t + 2))
        expected, _ = other_update(expected, jax.random.key(0), rows(steps, t, t + 2))
    jax.tree.map(np.testing.assert_array_equal, state, expected)


# The critic on two states whose values are v and 2 v (Sutton and Barto 2018, section 11.2) --------------------------

# The behaviour goes to either state with the same probability. The target policy goes to the second state with
# probability sigmoid(preference x), where x is the present state's feature. All rewards are 1.
GAMMA, X, ALWAYS = 0.9, np.array([1.0, 2.0]), 100.0


def fixed_point(lambda_: float, preference: float) -> float:
    """Returns the v at which the expected update of off-policy TD(lambda) is 0: X^T D (I - gamma lambda P)^-1 (r +
    (gamma P - I) X v) = 0, where D is how often the behaviour visits the states and P the target policy's
    transitions."""
    second = 1 / (1 + np.exp(-preference * X))
    D, P = np.diag([0.5, 0.5]), np.stack([1 - second, second], axis=1)
    left = X @ D @ np.linalg.inv(np.eye(2) - GAMMA * lambda_ * P)
    return -(left @ np.ones(2)) / (left @ (GAMMA * P - np.eye(2)) @ X)


def learn_values(lambda_: float, preference: float, alpha_v: float, alpha_w: float, updates: int) -> np.ndarray:
    """Returns v after each update."""
    B = 128
    hypers = make(lambda_=lambda_, discount=GAMMA).init(jax.random.key(0)).hypers
    u = jnp.array([[0.0, preference]])

    def move(carry, key):
        v, w, traces, x = carry
        action = jax.random.randint(key, (B,), 0, 2)
        next_x = jnp.asarray(X, jnp.float32)[action][:, None]
        ones = jnp.ones(B)
        row = Row(x, action, 0.5 * ones, ones, GAMMA * ones, next_x, jnp.zeros(B, bool))
        each, traces, _ = off_pac.directions(policies.softmax(2), Weights(v, w, u), traces, row, hypers)
        return (v + alpha_v * each.v.mean(axis=0), w + alpha_w * each.w.mean(axis=0), traces, next_x), v[0]

    traces = Traces(jnp.zeros((B, 1)), jnp.zeros((B, 1, 2)))
    start = (jnp.ones(1), jnp.zeros(1), traces, jnp.ones((B, 1)))
    keys = jax.random.split(jax.random.key(0), updates)
    return np.asarray(jax.jit(lambda start, keys: jax.lax.scan(move, start, keys))(start, keys)[1])


def test_semi_gradient_td_diverges_where_gtd_finds_the_fixed_point():
    """Semi-gradient TD is the same update with w at 0."""
    assert fixed_point(0.0, ALWAYS) == pytest.approx(3 / (5 - 6 * GAMMA))
    td = learn_values(0.0, ALWAYS, alpha_v=0.05, alpha_w=0.0, updates=2500)
    assert abs(td[-1] - fixed_point(0.0, ALWAYS)) > 1e6
    gtd = learn_values(0.0, ALWAYS, alpha_v=0.05, alpha_w=0.2, updates=12_000)
    np.testing.assert_allclose(gtd[-3000:].mean(), fixed_point(0.0, ALWAYS), rtol=0.05)


@pytest.mark.parametrize("lambda_", [0.0, 0.4, 0.8])
def test_gtd_finds_the_fixed_point_of_its_lambda(lambda_):
    others = {fixed_point(other, 0.7) for other in (0.0, 0.4, 0.8)} - {fixed_point(lambda_, 0.7)}
    gtd = learn_values(lambda_, 0.7, alpha_v=0.1, alpha_w=0.1, updates=12_000)[-2000:].mean()
    assert min(abs(gtd - other) for other in others) > 3 * abs(gtd - fixed_point(lambda_, 0.7))
    np.testing.assert_allclose(gtd, fixed_point(lambda_, 0.7), rtol=0.05)


@pytest.mark.parametrize("lambda_", [0.0, 0.2])
def test_on_bairds_counterexample_td_diverges_and_gtd_does_not(lambda_):
    """As in Sutton and Barto 2018, figures 11.2 and 11.5, the weights grow without bound without w. With w the
    projected Bellman error goes to 0, though v stays far from the true values, which are 0."""
    td = textbook.counterexample(alpha_v=0.01, alpha_w=0.0, lambda_=lambda_, steps=2000, seeds=5)
    gtd = textbook.counterexample(alpha_v=0.005, alpha_w=0.05, lambda_=lambda_, steps=4000, seeds=5)
    assert td.shape == (5, 2001, 8)
    np.testing.assert_array_equal(td[:, 0], np.tile(textbook.BAIRD_START, (5, 1)))
    norms = np.linalg.norm(td, axis=2)
    assert (norms[:, 2000] > 2 * norms[:, 1000]).all() and (norms[:, 1000] > 2 * norms[:, 0]).all()
    error = textbook.projected_bellman_error(gtd)
    assert np.abs(gtd).max() < 20 and (error[:, -1] < 0.1 * error[:, 0]).all()


def test_bairds_projected_bellman_error_is_that_of_the_definition():
    """By definition it is the part of the Bellman errors that lies in the span of the features, here by least
    squares."""
    from environments.textbook import BAIRD_FEATURES as X

    v = np.random.default_rng(0).normal(size=8)
    errors = 0.99 * (X @ v)[6] - X @ v
    inside = X @ np.linalg.lstsq(X, errors, rcond=None)[0]
    np.testing.assert_allclose(textbook.projected_bellman_error(v), np.sqrt(np.mean(inside**2)), rtol=1e-6)


def test_it_learns_a_policy_that_it_does_not_play():
    """Episodes have one step. From the left half action 2 pays, from the right half action 0."""
    B, updates = 16, 400
    agent = make(batch_size=B, lambda_=0.4)

    def move(state, key):
        place_key, act_key = jax.random.split(key)
        place = jax.random.uniform(place_key, (B, 2), minval=jnp.array([-1.0, 0.0]), maxval=jnp.array([1.0, 4.0]))
        start = jnp.ones(B, bool)
        now = TimeStep(place, jnp.zeros(B), jnp.ones(B), start, ~start)
        action, extras, _ = agent.act(agent.policy(state), act_key, now, agent.memory(B, None))
        reward = jnp.where(action == jnp.where(place[:, 0] < 0, 2, 0), 1.0, 0.0)
        steps = [jnp.stack([x, x]) for x in (place, action, reward, jnp.zeros(B))]
        sample = Sample(Step(*steps, jnp.stack([start, ~start]), jax.tree.map(lambda b: jnp.stack([b, b]), extras)))
        return agent.update(state, key, sample)[0], None

    keys = jax.random.split(jax.random.key(1), updates)
    state, _ = jax.jit(lambda s, keys: jax.lax.scan(move, s, keys))(agent.init(jax.random.key(0)), keys)
    for side, best in [(-0.6, 2), (0.6, 0)]:
        pi = jax.nn.softmax(x_of(np.array([side, 2.0])) @ state.weights.u)
        assert pi[best] > 0.8


def test_it_learns_actions_of_numbers_that_it_plays_at_random():
    """Actions are scaled here, so that the bounds are -1 and 1. From the left half the actions 0.5 and -0.5 pay most,
    from the right half -0.5 and 0.5."""
    B, updates = 16, 2000
    agent = make(policy_slopes.spec("squashed", 2), batch_size=B, lambda_=0.0, alpha_u=0.1)
    low, high = policy_slopes.LOW, policy_slopes.HIGH

    def seen(key):
        place = jax.random.uniform(key, (B, 2), minval=jnp.array([-1.0, 0.0]), maxval=jnp.array([1.0, 4.0]))
        return TimeStep(place, jnp.zeros(B), jnp.ones(B), jnp.ones(B, bool), jnp.zeros(B, bool))

    def off(now, action):
        best = jnp.where(now.observation[:, :1] < 0, 0.5, -0.5) * jnp.array([1.0, -1.0])
        return 2 * (action - low) / (high - low) - 1 - best

    def move(state, key):
        place_key, act_key = jax.random.split(key)
        now = seen(place_key)
        action, extras, _ = agent.act(agent.policy(state), act_key, now, agent.memory(B, None))
        reward = -jnp.sum(off(now, action) ** 2, axis=-1)
        steps = [jnp.stack([x, x]) for x in (now.observation, action, reward, jnp.zeros(B))]
        rest = jnp.stack([now.first, ~now.first]), jax.tree.map(lambda x: jnp.stack([x, x]), extras)
        return agent.update(state, key, Sample(Step(*steps, *rest)))[0], None

    def mean_square(state, keys):
        def one(key):
            now = seen(key)
            return off(now, agent.act_greedily(agent.policy(state), key, now, agent.memory(B, None))[0]) ** 2

        return jax.vmap(one)(keys).mean()

    start, keys = agent.init(jax.random.key(0)), jax.random.split(jax.random.key(1), updates)
    state, _ = jax.jit(lambda s, keys: jax.lax.scan(move, s, keys))(start, keys)
    before, after = (float(mean_square(s, keys[:200])) for s in (start, state))
    assert before > 0.4 and after < 0.1


# Acting --------------------------------------------------------------------------------------------------------------


def timestep(B: int, first: bool) -> TimeStep:
    zeros = np.zeros(B, np.float32)
    return TimeStep(np.zeros((B, 2), np.float32), zeros, zeros + 1, np.full(B, first), zeros > 0)


@pytest.mark.parametrize(("repeat", "first"), [(0.0, False), (0.7, True), (0.7, False)])
def test_the_behaviour_is_uniform_and_says_how_likely_its_action_was(repeat, first):
    B = 9000
    agent = make(repeat=repeat)
    last = jnp.full(B, 1, jnp.int32)
    act = jax.jit(agent.act)
    action, extras, memory = act(random_weights(BASIS.size).u, jax.random.key(0), timestep(B, first), Memory(last))
    assert action.dtype == jnp.int32 and set(extras) == {"b"}
    np.testing.assert_array_equal(memory.action, action)
    b = np.full(A, 1 / A)
    if repeat and not first:
        b = (1 - repeat) / A + repeat * np.eye(A)[1]
    np.testing.assert_allclose(np.bincount(action, minlength=A) / B, b, atol=0.02)
    np.testing.assert_allclose(extras["b"], b[np.asarray(action)], rtol=1e-5)
    np.testing.assert_array_equal(agent.memory(4, None).action, np.zeros(4))


@pytest.mark.parametrize("family", ["squashed", "factored"])
def test_the_behaviour_is_uniform_over_bounds_and_over_factors(family):
    B = 20_000
    agent = make(policy_slopes.spec(family, 2))
    u = random_weights(BASIS.size, policy_slopes.NUM_OUTPUTS[family]).u
    action, extras, memory = jax.jit(agent.act)(u, jax.random.key(0), timestep(B, False), agent.memory(B, None))
    action = np.asarray(action)
    if family == "factored":
        assert action.dtype == np.int32 and set(extras) == {"b"}
        np.testing.assert_allclose(np.bincount(action @ [2, 1], minlength=6) / B, 1 / 6, atol=0.02)
        np.testing.assert_allclose(extras["b"], 1 / 6, rtol=1e-5)
        np.testing.assert_array_equal(memory.action, action)
        return
    unit = 2 * (action - policy_slopes.LOW) / (policy_slopes.HIGH - policy_slopes.LOW) - 1
    np.testing.assert_allclose(unit, np.tanh(extras["raw"]), atol=1e-5)
    for number in unit.T:
        np.testing.assert_allclose(np.histogram(number, 10, (-1, 1))[0] / B, 0.1, atol=0.02)
    np.testing.assert_allclose(extras["b"], 0.25)  # a density over [-1, 1]^2
    assert abs(np.corrcoef(unit.T)[0, 1]) < 0.03 and np.isfinite(extras["raw"]).all()


def test_importance_makes_the_behaviours_mean_the_targets():
    """E_b[rho f(a)] = E_pi[f(a)], because both densities are of the action that the environment is given."""
    B = 200_000
    agent = make(policy_slopes.spec("squashed", 2), sigma_initial=0.5)
    u = random_weights(BASIS.size, 4).u
    now, memory = timestep(B, False), agent.memory(B, None)
    played, extras, _ = jax.jit(agent.act)(u, jax.random.key(0), now, memory)
    target, _, _ = jax.jit(agent.act_greedily)(u, jax.random.key(1), now, memory)
    policy = policies.make_policy("test", policy_slopes.spec("squashed", 2), "state", 0.5, squash=True)
    rho = np.exp(policy.log_prob(x_of(np.zeros(2)) @ u, extras["raw"])) / extras["b"]
    np.testing.assert_allclose(rho.mean(), 1.0, atol=0.02)
    np.testing.assert_allclose((rho[:, None] * played).mean(axis=0), target.mean(axis=0), atol=0.02)


def test_evaluations_play_the_target_policy():
    B = 9000
    agent, u = make(), random_weights(BASIS.size).u
    assert agent.policy(agent.init(jax.random.key(0))).shape == u.shape
    memory = agent.memory(B, None)
    action, _, _ = jax.jit(agent.act_greedily)(u, jax.random.key(0), timestep(B, False), memory)
    exp = np.exp(x_of(np.zeros(2)) @ np.asarray(u))
    assert action.dtype == jnp.int32
    np.testing.assert_allclose(np.bincount(action, minlength=A) / B, exp / exp.sum(), atol=0.02)


# Settings ------------------------------------------------------------------------------------------------------------


def test_table():
    agent = make(unroll_length=5, batch_size=16, queue_batches=3)
    table = agent.table
    assert table.items == Blocks(5) and table.kind == "queue" and table.max_size == 48
    assert agent.batch_size == 16 and agent.in_order


def test_what_does_not_fit_is_refused():
    infinite = BoundedActions(policy_slopes.LOW, policy_slopes.HIGH + np.inf)
    with pytest.raises(ValueError, match=r"^off_pac needs actions with finite bounds"):
        off_pac.make(Config(), EnvironmentSpec((4,), np.dtype(np.float32), infinite))
    with pytest.raises(ValueError, match=r"^config\.repeat=0\.9 is for "):
        make(policy_slopes.spec("squashed", 2), repeat=0.9)
    with pytest.raises(ValueError, match=r"hold 0 bounds each, .* this environment's observations, \(2,\)$"):
        off_pac.make(Config(), SPEC)
    with pytest.raises(ValueError, match=r"would be .* features, and 20000 is the most"):
        make(tiles=200)
    with pytest.raises(ValueError, match="each finite and below its partner"):
        make(observation_low=(-1.0, 4.0))
    with pytest.raises(ValueError, match="must be below 1"):
        make(repeat=1.0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("unroll_length", 0),
        ("batch_size", 0),
        ("queue_batches", 0),
        ("order", 0),
        ("tilings", 0),
        ("tiles", 0),
        ("alpha_v", 0.0),
        ("alpha_w", -1.0),
        ("alpha_u", float("inf")),
        ("sigma_initial", 0.0),
        ("discount", 1.5),
        ("lambda_", -0.1),
        ("repeat", 1.1),
    ],
)
def test_a_value_out_of_range_is_refused(field, value):
    with pytest.raises(ValueError, match=f"config.{field} must be"):
        Config(**{field: value})
