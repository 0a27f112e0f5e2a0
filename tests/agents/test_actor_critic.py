"""Actor-critic against the boxes of Sutton and Barto 2018 (section 13.5), restated as plainly as can be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents import actor_critic
from agents.actor_critic import Config, Params, Traces
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
from tests.agents import policy_slopes
from tests.agents.numbered_states import numbered

STATES, A = 5, 3
TABLE = EnvironmentSpec((STATES,), np.dtype(np.float32), DiscreteActions(A))
VECTOR = EnvironmentSpec((4,), np.dtype(np.float32), DiscreteActions(A))
LAMBDAS = pytest.mark.parametrize("lambdas", [(0.0, 0.0), (0.8, 0.5), (1.0, 1.0)])
WEIGHTING = pytest.mark.parametrize("weighting", [True, False])
ALPHAS = {"alpha_theta": 0.3, "alpha_w": 0.2, "discount": 0.9}


def tabular(**fields):
    return numbered(actor_critic.make(Config(**(ALPHAS | fields)), TABLE), STATES)


def random_steps(seed: int, T: int, B: int, observation_shape: tuple[int, ...] = ()) -> Step:
    """Returns random rows [T+1, B] that begin with an episode's first row. A row before a `first` row closes its
    episode, half of them by termination, and its action is thrown away."""
    rng = np.random.default_rng(seed)
    shape = (T + 1, B)
    first = rng.random(shape) < 0.2
    first[0] = True
    closing = np.concatenate([first[1:], np.zeros((1, B), bool)])
    terminal = closing & (rng.random(shape) < 0.5)
    discount = np.concatenate([np.where(terminal[1:], 0.0, 1.0), np.ones((1, B))]).astype(np.float32)
    if observation_shape:
        observation = rng.normal(size=(*shape, *observation_shape)).astype(np.float32)
    else:
        observation = rng.integers(STATES, size=shape).astype(np.float32)
    action, reward = rng.integers(A, size=shape).astype(np.int32), rng.normal(size=shape).astype(np.float32)
    return Step(observation, action, reward, discount, first, {})


def rows(steps: Step, start: int, stop: int) -> Sample:
    return Sample(jax.tree.map(lambda x: x[start:stop], steps))


def tables(params: Params) -> tuple[np.ndarray, np.ndarray]:
    """Returns the preferences h(s, a), [S, A], and the values v(s), [S]."""
    theta, w = (np.asarray(p["params"]["Dense_0"]["kernel"]) for p in params)
    return theta, w[:, 0]


def as_params(theta: np.ndarray, w: np.ndarray) -> Params:
    theta, w = (jnp.asarray(x, jnp.float32) for x in (theta, w[:, None]))
    return Params(*({"params": {"Dense_0": {"kernel": x}}} for x in (theta, w)))


def pi(theta: np.ndarray, s: int) -> np.ndarray:
    exp = np.exp(theta[s] - theta[s].max())
    return exp / exp.sum()


def grad_ln_pi(theta: np.ndarray, s: int, a: int) -> np.ndarray:
    """Returns the gradient of ln pi(a | s) in a table of preferences: 1 - pi(a | s) at the action, -pi(b | s) at the
    other actions of the state."""
    gradient = np.zeros_like(theta)
    gradient[s] = -pi(theta, s)
    gradient[s, a] += 1.0
    return gradient


def learn(agent, steps: Step, T: int):
    """Returns random theta and w to start from, and the state after each update of T rows."""
    rng = np.random.default_rng(7)
    state, update = agent.init(jax.random.key(0)), jax.jit(agent.update)
    theta, w = tables(state.params)
    assert not theta.any() and not w.any(), "a linear function begins at 0"
    theta, w = rng.normal(size=theta.shape), rng.normal(size=w.shape)
    state = state._replace(params=as_params(theta, w))
    states = []
    for t in range(0, len(steps.first) - 1, T):
        state, _ = update(state, jax.random.key(t), rows(steps, t, t + T + 1))
        states.append(state)
    return theta, w, states


def test_without_lambda_it_is_the_box_of_one_step_actor_critic():
    """With both lambdas 0 the agent is One-step Actor-Critic (episodic), which has no traces at all."""
    alpha_theta, alpha_w, gamma = ALPHAS.values()
    steps = random_steps(0, 80, 1)
    theta, w, states = learn(tabular(), steps, 1)
    learnt = 0
    for t in range(80):
        if steps.first[t, 0]:
            I = 1.0
        if not steps.first[t + 1, 0]:  # otherwise row t closes an episode
            S, next_S = (int(s) for s in steps.observation[t : t + 2, 0])
            v_next = w[next_S] if steps.discount[t, 0] else 0.0
            delta = steps.reward[t, 0] + gamma * v_next - w[S]
            gradient = grad_ln_pi(theta, S, steps.action[t, 0])
            w[S] += alpha_w * delta
            theta += alpha_theta * I * delta * gradient
            I *= gamma
            learnt += 1
        for got, expected in zip(tables(states[t].params), (theta, w), strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    assert 40 < learnt < 80 and int(states[-1].step) == 80


def box(theta, w, steps: Step, lambda_theta: float, lambda_w: float, weighting: bool):
    """Returns theta and w after each row, by Actor-Critic with Eligibility Traces (episodic). With several
    environments, a step is the mean of theirs."""
    alpha_theta, alpha_w, gamma = ALPHAS.values()
    T, B = steps.reward[:-1].shape
    z_theta, z_w, I = np.zeros((B, *theta.shape)), np.zeros((B, *w.shape)), np.ones(B)
    told = []
    for t in range(T):
        moves = []
        for b in range(B):
            if steps.first[t, b]:
                z_theta[b], z_w[b], I[b] = 0, 0, 1
            if steps.first[t + 1, b]:
                continue
            S, next_S = (int(s) for s in steps.observation[t : t + 2, b])
            v_next = w[next_S] if steps.discount[t, b] else 0.0
            delta = steps.reward[t, b] + gamma * v_next - w[S]
            z_w[b] *= gamma * lambda_w
            z_w[b, S] += 1.0
            z_theta[b] = gamma * lambda_theta * z_theta[b] + I[b] * grad_ln_pi(theta, S, steps.action[t, b])
            moves.append((delta * z_theta[b], delta * z_w[b]))
            I[b] *= gamma if weighting else 1.0
        if moves:
            theta = theta + alpha_theta * np.mean([m[0] for m in moves], axis=0)
            w = w + alpha_w * np.mean([m[1] for m in moves], axis=0)
        told.append((theta, w))
    return told


@LAMBDAS
@WEIGHTING
@pytest.mark.parametrize(("T", "B"), [(1, 1), (4, 3)])
def test_it_is_the_box_of_actor_critic_with_traces(lambdas, weighting, T, B):
    """Traces carry over from one update to the next, and are reset at the end of an episode."""
    options = {"lambda_theta": lambdas[0], "lambda_w": lambdas[1], "discount_weighting": weighting}
    steps = random_steps(1, 40, B)
    theta, w, states = learn(tabular(unroll_length=T, batch_size=B, **options), steps, T)
    told = box(theta, w, steps, *lambdas, weighting)
    for index, state in enumerate(states):
        for got, expected in zip(tables(state.params), told[(index + 1) * T - 1], strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)


@LAMBDAS
@pytest.mark.parametrize(("family", "sigma"), [("gaussian", "state"), ("gaussian", "free"), ("factored", "state")])
def test_other_policies_follow_the_same_box(lambdas, family, sigma):
    """The policies are a Gaussian whose mu and log sigma are linear in the observation, a Gaussian whose sigma does not
    depend on the observation, and one of several factors."""
    alpha_theta, alpha_w, gamma = 0.003, 0.02, 0.9
    T, B, P, free = 20, 3, policy_slopes.NUM_OUTPUTS[family], 2 if sigma == "free" else 0
    fields = {"lambda_theta": lambdas[0], "lambda_w": lambdas[1], "sigma_initial": policy_slopes.SIGMA_INITIAL}
    fields |= {"alpha_theta": alpha_theta, "alpha_w": alpha_w, "discount": gamma, "sigma": sigma}
    agent = actor_critic.make(Config(**fields, unroll_length=T, batch_size=B), policy_slopes.spec(family, 4))
    steps = policy_slopes.with_actions(family, random_steps(1, T, B, (4,)))
    rng = np.random.default_rng(0)
    theta, start, w = rng.normal(size=(4, P - free)) / 3, rng.normal(size=free) / 3, rng.normal(size=4)
    state, params = agent.init(jax.random.key(0)), as_params(theta, w)
    if free:
        params.theta["params"]["free"] = jnp.asarray(start, jnp.float32)
    assert jax.tree.structure(params) == jax.tree.structure(state.params)
    state, feedback = jax.jit(agent.update)(state._replace(params=params), jax.random.key(0), Sample(steps))

    z_theta, z_start, z_w, I = np.zeros((B, *theta.shape)), np.zeros((B, free)), np.zeros((B, 4)), np.ones(B)
    for t in range(T):
        moves = []
        for b in range(B):
            if steps.first[t, b]:
                z_theta[b], z_start[b], z_w[b], I[b] = 0, 0, 0, 1
            if steps.first[t + 1, b]:
                continue
            x, next_x = steps.observation[t : t + 2, b].astype(float)
            delta = steps.reward[t, b] + gamma * steps.discount[t, b] * (w @ next_x) - w @ x
            _, slope = policy_slopes.ln_pi_and_slope(family, np.concatenate([x @ theta, start]), steps, t, b)
            z_w[b] = gamma * lambdas[1] * z_w[b] + x
            z_theta[b] = gamma * lambdas[0] * z_theta[b] + I[b] * np.outer(x, slope[: P - free])
            z_start[b] = gamma * lambdas[0] * z_start[b] + I[b] * slope[P - free :]
            moves.append((delta * z_theta[b], delta * z_start[b], delta * z_w[b]))
            I[b] *= gamma
        if moves:
            of_theta, of_start, of_w = (np.mean(m, axis=0) for m in zip(*moves, strict=True))
            theta, start, w = theta + alpha_theta * of_theta, start + alpha_theta * of_start, w + alpha_w * of_w
    got, got_w = state.params.theta["params"], state.params.w["params"]["Dense_0"]["kernel"][:, 0]
    np.testing.assert_allclose(got["Dense_0"]["kernel"], theta, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(got_w, w, rtol=1e-3, atol=1e-4)
    if free:
        np.testing.assert_allclose(got["free"], start, rtol=1e-3, atol=1e-4)
    assert np.isfinite(list(feedback.metrics.values())).all()


@LAMBDAS
@WEIGHTING
@pytest.mark.parametrize("terminal", [True, False])
def test_with_frozen_parameters_traces_are_the_forward_view(lambdas, weighting, terminal):
    """Over an episode, delta_t z_t sums to the same as I_t (G_t^lambda - v(S_t)) grad (section 12.1's lambda-return,
    section 12.2's equivalence). Where the episode was truncated, the last value stands for the rest."""
    gamma, T, n = 0.9, 7, 4
    rng = np.random.default_rng(0)
    reward, values = rng.normal(size=T), rng.normal(size=T + 1)
    values[T] = 0.0 if terminal else values[T]
    gradients = Params(*rng.normal(size=(2, T, 1, n)).astype(np.float32))
    hypers = tabular(lambda_theta=lambdas[0], lambda_w=lambdas[1]).init(jax.random.key(0)).hypers
    dirty = Params(np.full((1, n), 9.0, np.float32), np.full((1, n), -9.0, np.float32))
    traces, backward = Traces(dirty, np.full(1, 5.0, np.float32)), [0.0, 0.0]
    for t in range(T):
        now = jax.tree.map(lambda x, t=t: x[t], gradients)
        traces = actor_critic.decay_and_add(traces, now, np.array([t == 0]), hypers, weighting)
        delta = reward[t] + gamma * values[t + 1] - values[t]
        backward = [total + delta * np.asarray(z[0]) for total, z in zip(backward, traces.z, strict=True)]

    def n_step_return(t: int, end: int) -> float:
        return sum(gamma ** (k - t) * reward[k] for k in range(t, end)) + gamma ** (end - t) * values[end]

    def lambda_return(t: int, lambda_: float) -> float:
        total = sum((1 - lambda_) * lambda_ ** (end - t - 1) * n_step_return(t, end) for end in range(t + 1, T))
        return total + lambda_ ** (T - t - 1) * n_step_return(t, T)

    for got, gradient, lambda_, weighted in zip(backward, gradients, lambdas, (weighting, False), strict=True):
        expected = sum(
            (gamma**t if weighted else 1.0) * (lambda_return(t, lambda_) - values[t]) * gradient[t, 0] for t in range(T)
        )
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)


@LAMBDAS
def test_rows_that_close_an_episode_teach_nothing(lambdas):
    """It does not matter what such a row's action, reward and discount hold."""
    options = {"lambda_theta": lambdas[0], "lambda_w": lambdas[1]}
    steps = random_steps(3, 30, 2)
    closing = np.concatenate([steps.first[1:], np.zeros((1, 2), bool)])
    assert closing.sum() > 4
    rubbish = steps._replace(
        reward=np.where(closing, 1e3, steps.reward).astype(np.float32),
        discount=np.where(closing, 7.0, steps.discount).astype(np.float32),
        action=np.where(closing, 0, steps.action).astype(np.int32),
    )
    agents = tabular(unroll_length=3, batch_size=2, **options)
    (*_, a), (*_, b) = (learn(agents, s, 3) for s in (steps, rubbish))
    for got, expected in zip(tables(a[-1].params), tables(b[-1].params), strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_batch_without_transitions_is_harmless(optimizer):
    agent = tabular(batch_size=2, optimizer=optimizer)
    state = agent.init(jax.random.key(0))
    steps = random_steps(0, 1, 2)._replace(first=np.array([[False, False], [True, True]]))
    new, feedback = jax.jit(agent.update)(state, jax.random.key(0), Sample(steps))
    jax.tree.map(np.testing.assert_array_equal, new.params, state.params)
    assert {name: x for name, x in feedback.metrics.items() if not np.isfinite(x)} == {}


def test_two_shards_are_one_batch():
    """This holds over several updates too: each device keeps the traces of its own environments."""
    agent = tabular(unroll_length=3, batch_size=8, lambda_theta=0.7, lambda_w=0.9)
    steps = random_steps(5, 30, 8)
    lives = (~steps.first[1:]).reshape(30, 2, 4).sum(axis=(0, 2))
    assert lives[0] != lives[1]
    state = agent.init(jax.random.key(0))
    update, sharded = jax.jit(agent.update), jax.jit(jax.vmap(agent.update, in_axes=(0, None, 0), axis_name=AXIS))
    shards = jax.tree.map(lambda x: np.stack([x, x]), state)
    halves = jax.tree.map(lambda x: np.stack([x[:, :4], x[:, 4:]]), steps)
    for t in range(0, 30, 3):
        state, feedback = update(state, jax.random.key(0), rows(steps, t, t + 4))
        part = Sample(jax.tree.map(lambda x, t=t: x[:, t : t + 4], halves))
        shards, shard_feedback = sharded(shards, jax.random.key(0), part)
        for i in range(2):
            mine = jax.tree.map(lambda x, i=i: x[i], shards.params)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), mine, state.params)
            for name in set(feedback.metrics) - {"trace_norm"}:
                got, expected = shard_feedback.metrics[name][i], feedback.metrics[name]
                np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-5, err_msg=name)


def test_an_mlp_follows_its_gradients():
    config = Config(hidden_sizes=(6,), batch_size=3, **ALPHAS)
    agent = actor_critic.make(config, VECTOR)
    rng = np.random.default_rng(0)
    state = agent.init(jax.random.key(0))
    state = state._replace(params=jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), state.params))
    steps = random_steps(3, 1, 3, (4,))._replace(first=np.array([[True, True, False], [False, True, False]]))

    def outputs(params, x):
        hidden, head = params["params"]["MLPTorso_0"]["Dense_0"], params["params"]["Dense_0"]
        return jnp.tanh(x @ hidden["kernel"] + hidden["bias"]) @ head["kernel"] + head["bias"]

    theta, w = state.params

    def delta(b):
        value, next_value = (outputs(w, steps.observation[t, b])[0] for t in range(2))
        return steps.reward[0, b] + 0.9 * steps.discount[0, b] * next_value - value

    def log_pi(theta):
        return sum(
            delta(b) * jax.nn.log_softmax(outputs(theta, steps.observation[0, b]))[steps.action[0, b]] for b in (0, 2)
        )

    def value(w):
        return sum(float(delta(b)) * outputs(w, steps.observation[0, b])[0] for b in (0, 2))

    expected = Params(
        jax.tree.map(lambda p, g: p + 0.3 * g / 2, theta, jax.grad(log_pi)(theta)),
        jax.tree.map(lambda p, g: p + 0.2 * g / 2, w, jax.grad(value)(w)),
    )
    new, _ = jax.jit(agent.update)(state, jax.random.key(0), Sample(steps))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), new.params, expected)


def test_hypers_are_the_states():
    """An update uses the state's hyperparameters, which a population may tune, not the config's."""
    agent = tabular()
    other = tabular(alpha_theta=0.7, alpha_w=0.6, discount=0.5, lambda_theta=0.9, lambda_w=0.4)
    steps = random_steps(1, 12, 1)
    state, expected = agent.init(jax.random.key(0)), other.init(jax.random.key(0))
    state = state._replace(hypers=expected.hypers)
    for t in range(12):
        state, _ = jax.jit(agent.update)(state, jax.random.key(0), rows(steps, t, t + 2))
        expected, _ = jax.jit(other.update)(expected, jax.random.key(0), rows(steps, t, t + 2))
    jax.tree.map(np.testing.assert_array_equal, state, expected)


def test_adam_takes_steps_of_the_step_sizes():
    agent = tabular(optimizer="adam", alpha_theta=0.125, alpha_w=0.5)
    steps = random_steps(1, 1, 1)._replace(first=np.array([[True], [False]]))
    new, _ = jax.jit(agent.update)(agent.init(jax.random.key(0)), jax.random.key(0), Sample(steps))
    for table, alpha in zip(tables(new.params), (0.125, 0.5), strict=True):
        np.testing.assert_allclose(np.abs(table).max(), alpha, rtol=1e-3)


# Acting and settings --------------------------------------------------------------------------------------------------


def test_acting_samples_the_policy_and_evaluations_take_its_mode():
    agent = tabular()
    theta, B = np.zeros((STATES, A)), 6000
    theta[2] = [0.0, 1.0, -1.0]
    params = as_params(theta, np.zeros(STATES)).theta
    state = agent.init(jax.random.key(0))
    assert jax.tree.structure(agent.policy(state)) == jax.tree.structure(params)
    observation, zeros = np.full(B, 2.0, np.float32), np.zeros(B, np.float32)
    timestep = TimeStep(observation, zeros, zeros + 1, zeros > 0, zeros > 0)
    action, extras, memory = jax.jit(agent.act)(params, jax.random.key(0), timestep, ())
    assert action.dtype == jnp.int32 and extras == {} and memory == ()
    np.testing.assert_allclose(np.bincount(action, minlength=A) / B, pi(theta, 2), atol=0.03)
    action, _, _ = agent.act_greedily(params, jax.random.key(0), timestep, ())
    assert (np.asarray(action) == 1).all()


def test_continuous_actions_are_clipped_and_their_raw_ones_kept():
    agent, B = actor_critic.make(Config(sigma_initial=0.7), policy_slopes.spec("gaussian", 4)), 6000
    theta, zeros = agent.policy(agent.init(jax.random.key(0))), np.zeros(B, np.float32)
    theta["params"]["Dense_0"]["kernel"] = theta["params"]["Dense_0"]["kernel"].at[0, 0].set(0.5)
    timestep = TimeStep(np.ones((B, 4), np.float32), zeros, zeros + 1, zeros > 0, zeros > 0)
    action, extras, _ = jax.jit(agent.act)(theta, jax.random.key(0), timestep, ())
    raw, low, high = np.asarray(extras["raw"]), policy_slopes.LOW, policy_slopes.HIGH
    np.testing.assert_allclose(raw.mean(axis=0), [0.5, 0.0], atol=0.05)
    np.testing.assert_allclose(raw.std(axis=0), 0.7, rtol=0.05)
    assert (np.abs(raw) > 1).any()
    np.testing.assert_allclose(action, low + (np.clip(raw, -1, 1) + 1) / 2 * (high - low), rtol=1e-4, atol=1e-5)
    action, extras, _ = agent.act_greedily(theta, jax.random.key(0), timestep, ())
    np.testing.assert_allclose(action, np.tile([1.0, 0.5], (B, 1)), rtol=1e-5)
    assert extras == {}


def test_table():
    agent = tabular(unroll_length=5, batch_size=16, queue_batches=3)
    table = agent.table
    assert table.items == Blocks(5) and table.kind == "queue" and table.max_size == 48
    assert agent.batch_size == 16 and agent.in_order


def test_an_update_is_traced_once():
    agent = tabular()
    update, state = jax.jit(agent.update), agent.init(jax.random.key(0))
    for i in range(3):
        state, _ = update(state, jax.random.key(i), Sample(random_steps(i, 1, 1)))
    assert update._cache_size() == 1


def test_what_does_not_fit_is_refused():
    infinite = BoundedActions(policy_slopes.LOW, policy_slopes.HIGH + np.inf)
    with pytest.raises(ValueError, match=r"^actor_critic needs actions with finite bounds"):
        actor_critic.make(Config(), EnvironmentSpec((4,), np.dtype(np.float32), infinite))
    with pytest.raises(ValueError, match=r"actor_critic has no convolutions .* frames; use impala$"):
        actor_critic.make(Config(), EnvironmentSpec((84, 84), np.dtype(np.uint8), DiscreteActions(A)))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("unroll_length", 0),
        ("batch_size", 0),
        ("queue_batches", 0),
        ("alpha_theta", 0.0),
        ("alpha_w", float("inf")),
        ("optimizer_epsilon", 0.0),
        ("sigma_initial", 0.0),
        ("discount", 1.5),
        ("lambda_theta", -0.1),
        ("lambda_w", 1.1),
    ],
)
def test_a_value_out_of_range_is_refused(field, value):
    with pytest.raises(ValueError, match=f"config.{field} must be"):
        Config(**{field: value})
