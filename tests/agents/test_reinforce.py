"""REINFORCE and all-actions against the boxes of Sutton and Barto 2018 (sections 13.2 to 13.4) and against the true
policy gradient of an environment of two states, by enumeration."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents import reinforce
from agents.agent import (
    AXIS,
    BoundedActions,
    DiscreteActions,
    EnvironmentSpec,
    Sample,
    Step,
    TimeStep,
    WholeEpisodes,
)
from agents.reinforce import Config, Params
from tests.agents import policy_slopes
from tests.agents.numbered_states import numbered

STATES, A, LONGEST = 5, 3, 8
TABLE = EnvironmentSpec((STATES,), np.dtype(np.float32), DiscreteActions(A), max_episode_steps=LONGEST)
VECTOR = EnvironmentSpec((4,), np.dtype(np.float32), DiscreteActions(A), max_episode_steps=LONGEST)
ALPHAS = {"alpha_theta": 0.3, "alpha_w": 0.2, "discount": 0.9}
FORMS = [{}, {"baseline": True}, {"form": "all_actions"}]
ALL_FORMS = pytest.mark.parametrize("form", FORMS, ids=["reinforce", "baseline", "all_actions"])
WEIGHTING = pytest.mark.parametrize("weighting", [True, False])


def tabular(**fields):
    return numbered(reinforce.make(Config(**(ALPHAS | fields)), TABLE), STATES)


def random_episodes(seed: int, B: int, observation_shape: tuple[int, ...] = ()) -> Step:
    """Returns steps [LONGEST+1, B]. Each column is an episode of 1 to LONGEST actions, its last observation, and
    padding."""
    rng = np.random.default_rng(seed)
    shape, lengths = (LONGEST + 1, B), rng.integers(1, LONGEST + 1, size=B)
    lengths[0] = LONGEST
    row = np.arange(LONGEST + 1)[:, None]
    padding = row > lengths
    if observation_shape:
        observation = rng.normal(size=(*shape, *observation_shape)).astype(np.float32)
    else:
        observation = rng.integers(STATES, size=shape).astype(np.float32)
    terminal = (row == lengths - 1) & (rng.random(B) < 0.5)
    steps = Step(
        observation,
        rng.integers(A, size=shape).astype(np.int32),
        rng.normal(size=shape).astype(np.float32),  # the row that closes the episode has one too, which must not count
        np.where(terminal, 0.0, 1.0).astype(np.float32),
        (row == 0) | padding,
        {},
    )
    blank = jax.tree.map(lambda x: np.where(padding.reshape(*shape, *[1] * (x.ndim - 2)), 0, x).astype(x.dtype), steps)
    return blank._replace(first=steps.first)


def actions_of(steps: Step, b: int) -> int:
    """Returns T, the number of actions, of episode b."""
    after = np.flatnonzero(steps.first[1:, b])
    return int(after[0]) if len(after) else LONGEST


def as_params(theta: np.ndarray, w: np.ndarray | None) -> Params:
    theta, w = (
        x if x is None else {"params": {"Dense_0": {"kernel": jnp.asarray(x, jnp.float32)}}} for x in (theta, w)
    )
    return Params(theta, () if w is None else w)


def tables(params: Params) -> list[np.ndarray]:
    return [np.asarray(p["params"]["Dense_0"]["kernel"]) for p in params if p]


def pi(theta: np.ndarray, s: int) -> np.ndarray:
    exp = np.exp(theta[s] - theta[s].max())
    return exp / exp.sum()


def grad_ln_pi(theta: np.ndarray, s: int, a: int) -> np.ndarray:
    gradient = np.zeros_like(theta)
    gradient[s] = -pi(theta, s)
    gradient[s, a] += 1.0
    return gradient


def grad_pi(theta: np.ndarray, s: int, a: int) -> np.ndarray:
    return pi(theta, s)[a] * grad_ln_pi(theta, s, a)


def box(form: dict, theta, w, steps: Step, weighting: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns what the boxes' loops add to theta and w, apart from the step size alpha: the mean over episodes, all of
    which use the same theta and w."""
    gamma, B = ALPHAS["discount"], steps.first.shape[1]
    of_theta, of_w = np.zeros_like(theta), np.zeros_like(w)
    for b in range(B):
        T = actions_of(steps, b)
        for t in range(T):
            G = sum(gamma ** (k - t) * steps.reward[k, b] for k in range(t, T))
            S, a = int(steps.observation[t, b]), steps.action[t, b]
            weight = gamma**t if weighting else 1.0
            if form.get("form") == "all_actions":  # eq. 13.7
                of_theta += weight * sum(w[S, i] * grad_pi(theta, S, i) for i in range(A))
                of_w[S, a] += G - w[S, a]
            elif form.get("baseline"):
                of_theta += weight * (G - w[S, 0]) * grad_ln_pi(theta, S, a)
                of_w[S, 0] += G - w[S, 0]
            else:
                of_theta += weight * G * grad_ln_pi(theta, S, a)
    return of_theta / B, of_w / B


def random_state(agent, form: dict, seed: int = 7):
    rng = np.random.default_rng(seed)
    theta = rng.normal(size=(STATES, A))
    w = rng.normal(size=(STATES, A if "form" in form else 1))
    state = agent.init(jax.random.key(0))
    assert not any(x.any() for x in tables(state.params)), "a linear function begins at 0"
    params = as_params(theta, w if form else None)
    assert jax.tree.structure(params) == jax.tree.structure(state.params)
    return theta, w, state._replace(params=params)


@ALL_FORMS
@WEIGHTING
@pytest.mark.parametrize("B", [1, 4])
def test_an_update_is_the_boxs(form, weighting, B):
    agent = tabular(discount_weighting=weighting, batch_size=B, **form)
    theta, w, state = random_state(agent, form)
    steps = random_episodes(1, B)
    new, feedback = jax.jit(agent.update)(state, jax.random.key(0), Sample(steps))
    of_theta, of_w = box(form, theta, w, steps, weighting)
    expected = [theta + 0.3 * of_theta, w + 0.2 * of_w][: len(tables(new.params))]
    for got, want in zip(tables(new.params), expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    assert int(new.step) == 1
    lengths = [actions_of(steps, b) for b in range(B)]
    np.testing.assert_allclose(feedback.metrics["episode_length"], np.mean(lengths))
    np.testing.assert_allclose(feedback.metrics["gradient_norm"], np.linalg.norm(of_theta), rtol=1e-4)


def test_initial_preferences_are_where_a_table_starts():
    """All rows of the table start there. What is then learnt is the same as from a table that was set to them."""
    preferences = (0.5, -1.0, 2.0)
    agent, plain = tabular(initial_preferences=preferences, batch_size=4), tabular(batch_size=4)
    theta, _, state = random_state(agent, {})
    there = state._replace(params=as_params(theta + preferences, None))
    update = [jax.jit(each.update) for each in (agent, plain)]
    (new, _), (expected, _) = (
        u(s, jax.random.key(0), Sample(random_episodes(1, 4))) for u, s in zip(update, (state, there))
    )
    np.testing.assert_allclose(tables(new.params)[0] + preferences, tables(expected.params)[0], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"config\.initial_preferences=\(1\.0,\) needs 3 numbers, one for each output"):
        tabular(initial_preferences=(1.0,))


@WEIGHTING
@pytest.mark.parametrize("baseline", [False, True])
@pytest.mark.parametrize(("family", "sigma"), [("gaussian", "state"), ("gaussian", "free"), ("factored", "state")])
def test_an_update_of_other_policies_is_the_boxs(family, sigma, baseline, weighting):
    """The policies are a Gaussian whose mu and log sigma are linear in the observation, a Gaussian whose sigma does not
    depend on the observation, and one of several factors."""
    gamma, B, P = ALPHAS["discount"], 4, policy_slopes.NUM_OUTPUTS[family]
    fields = {"batch_size": B, "sigma": sigma, "sigma_initial": policy_slopes.SIGMA_INITIAL, "baseline": baseline}
    config = Config(**ALPHAS, **fields, discount_weighting=weighting)
    agent = reinforce.make(config, policy_slopes.spec(family, 4, LONGEST))
    steps = policy_slopes.with_actions(family, random_episodes(1, B, (4,)))
    state, rng, free = agent.init(jax.random.key(0)), np.random.default_rng(0), 2 if sigma == "free" else 0
    theta, w, start = rng.normal(size=(4, P - free)) / 3, rng.normal(size=(4, 1)), rng.normal(size=free) / 3
    params = as_params(theta, w if baseline else None)
    if free:
        params.theta["params"]["free"] = jnp.asarray(start, jnp.float32)
    assert jax.tree.structure(params) == jax.tree.structure(state.params)

    of_outputs, of_theta, of_w = np.zeros(P), np.zeros((4, P)), np.zeros((4, 1))
    for b in range(B):
        T = actions_of(steps, b)
        for t in range(T):
            x = steps.observation[t, b].astype(float)
            G = sum(gamma ** (k - t) * steps.reward[k, b] for k in range(t, T))
            delta = G - (x @ w[:, 0] if baseline else 0.0)
            _, slope = policy_slopes.ln_pi_and_slope(family, np.concatenate([x @ theta, start]), steps, t, b)
            moved = (gamma**t if weighting else 1.0) * delta * slope / B
            of_outputs, of_theta = of_outputs + moved, of_theta + np.outer(x, moved)
            of_w[:, 0] += delta * x / B
    new, feedback = jax.jit(agent.update)(state._replace(params=params), jax.random.key(0), Sample(steps))
    got = new.params.theta["params"]
    np.testing.assert_allclose(got["Dense_0"]["kernel"], theta + 0.3 * of_theta[:, : P - free], rtol=1e-3, atol=1e-4)
    if free:
        np.testing.assert_allclose(got["free"], start + 0.3 * of_outputs[P - free :], rtol=1e-3, atol=1e-4)
    if baseline:
        np.testing.assert_allclose(tables(new.params)[1], w + 0.2 * of_w, rtol=1e-3, atol=1e-4)
    assert np.isfinite(list(feedback.metrics.values())).all()


@ALL_FORMS
def test_padding_and_the_row_that_closes_an_episode_teach_nothing(form):
    agent = tabular(batch_size=6, **form)
    _, _, state = random_state(agent, form)
    steps = random_episodes(2, 6)
    dead = np.concatenate([steps.first[1:], np.ones((1, 6), bool)])
    assert dead[:-1].sum() > 4
    rubbish = steps._replace(
        reward=np.where(dead, 1e3, steps.reward).astype(np.float32),
        discount=np.where(dead, 7.0, steps.discount).astype(np.float32),
        action=np.where(dead, 2, steps.action).astype(np.int32),
        observation=np.where(dead, 4.0, steps.observation).astype(np.float32),
    )
    (a, _), (b, _) = (jax.jit(agent.update)(state, jax.random.key(0), Sample(s)) for s in (steps, rubbish))
    for x, y in zip(tables(a.params), tables(b.params), strict=True):
        np.testing.assert_array_equal(x, y)


# The true gradient ---------------------------------------------------------------------------------------------------

# In state 0 action 1 goes to state 1, and action 0 stays or, with probability 1/2, ends the episode. In state 1 action
# 0 goes back and action 1 ends the episode. An episode ends after 3 actions at the latest.
GAMMA, HORIZON = 0.8, 3
TWO = EnvironmentSpec((2,), np.dtype(np.float32), DiscreteActions(2), max_episode_steps=HORIZON)
OVER = 9  # stands for the end, which is no state
MOVES = {  # (state, action) -> [(probability, reward, next state)]
    (0, 0): [(0.5, 1.0, 0), (0.5, -1.0, OVER)],
    (0, 1): [(1.0, 0.5, 1)],
    (1, 0): [(1.0, 2.0, 0)],
    (1, 1): [(1.0, 3.0, OVER)],
}


def all_episodes(theta: np.ndarray):
    """Returns (probability, states, actions, rewards) for every episode that starts in state 0."""
    pending, told = [(1.0, [0], [], [])], []
    while pending:
        p, states, actions, rewards = pending.pop()
        if states[-1] == OVER or len(actions) == HORIZON:
            told.append((p, states, actions, rewards))
            continue
        for a in range(2):
            for q, r, s in MOVES[states[-1], a]:
                pending.append((p * pi(theta, states[-1])[a] * q, [*states, s], [*actions, a], [*rewards, r]))
    return told


def expected_return(theta: np.ndarray) -> float:
    return sum(p * sum(GAMMA**k * r for k, r in enumerate(rewards)) for p, _, _, rewards in all_episodes(theta))


def true_gradient(theta: np.ndarray) -> np.ndarray:
    """Returns the gradient of the expected return from state 0, by differences."""
    gradient = np.zeros_like(theta)
    for place in itertools.product(range(2), range(2)):
        step = np.zeros_like(theta)
        step[place] = 1e-5
        gradient[place] = (expected_return(theta + step) - expected_return(theta - step)) / 2e-5
    return gradient


def as_sample(episodes) -> Sample:
    """Returns the episodes' rows, padded, as a sample [HORIZON+1, B]."""
    B = len(episodes)
    zeros = np.zeros((HORIZON + 1, B), np.float32)
    steps = Step(zeros.copy(), zeros.astype(np.int32), zeros.copy(), zeros + 1, zeros == 0, {})
    for b, (_, states, actions, rewards) in enumerate(episodes):
        T = len(actions)
        steps.observation[: T + 1, b] = [s % OVER for s in states]
        steps.action[:T, b], steps.reward[:T, b] = actions, rewards
        steps.first[1 : T + 1, b] = False
    return Sample(steps)


def directions(config: Config, params: Params, episodes) -> np.ndarray:
    """Returns what the agent adds to theta after each episode alone, [episodes, S, A]."""
    agent = numbered(reinforce.make(config, TWO), 2)
    state = agent.init(jax.random.key(0))._replace(params=params)
    steps = as_sample(episodes).steps

    def of_one(steps):
        one = jax.tree.map(lambda x: x[:, None], steps)
        new, _ = agent.update(state, jax.random.key(0), Sample(one))
        return new.params.theta["params"]["Dense_0"]["kernel"] - params.theta["params"]["Dense_0"]["kernel"]

    return np.asarray(jax.jit(jax.vmap(of_one, in_axes=1))(steps), np.float64)


THETA = np.array([[0.3, -0.2], [-0.5, 0.4]])
PLAIN = {"discount": GAMMA, "alpha_theta": 1.0}


def moments(sampled: np.ndarray, episodes) -> tuple[np.ndarray, float]:
    """Returns the mean and the total variance over episodes, weighted by their probabilities."""
    p = np.array([each[0] for each in episodes])
    mean = np.einsum("e,eij->ij", p, sampled)
    return mean, float(np.einsum("e,eij->", p, (sampled - mean) ** 2))


def test_the_expectation_of_reinforce_is_the_policy_gradient():
    """This holds with the weight gamma^t, which Sutton and Barto have. Without it, the direction is another."""
    episodes = all_episodes(THETA)
    np.testing.assert_allclose(sum(each[0] for each in episodes), 1.0)
    assert len(episodes) > 8 and len({len(each[2]) for each in episodes}) == HORIZON
    mean, _ = moments(directions(Config(**PLAIN), as_params(THETA, None), episodes), episodes)
    np.testing.assert_allclose(mean, true_gradient(THETA), atol=1e-5)
    unweighted = Config(**PLAIN, discount_weighting=False)
    mean, _ = moments(directions(unweighted, as_params(THETA, None), episodes), episodes)
    assert np.abs(mean - true_gradient(THETA)).max() > 0.01


def test_a_baseline_leaves_the_expectation_and_lowers_the_variance():
    """The states' values, as a baseline, lower the variance. Any baseline leaves the expectation as it is."""
    episodes = all_episodes(THETA)
    mean, variance = moments(directions(Config(**PLAIN), as_params(THETA, None), episodes), episodes)
    sums, visits = np.zeros(2), np.zeros(2)
    for p, states, actions, rewards in episodes:
        for t in range(len(actions)):
            sums[states[t]] += p * sum(GAMMA ** (k - t) * rewards[k] for k in range(t, len(actions)))
            visits[states[t]] += p
    for baseline, lower in [(sums / visits, True), (np.array([-7.0, 11.0]), False)]:
        params = as_params(THETA, baseline[:, None])
        with_it = directions(Config(**PLAIN, baseline=True), params, episodes)
        same_mean, other_variance = moments(with_it, episodes)
        np.testing.assert_allclose(same_mean, mean, atol=1e-5)
        assert (other_variance < 0.8 * variance) if lower else (other_variance > variance)


def test_the_expectation_of_all_actions_is_the_policy_gradient():
    """This holds with the true action values. In episodes with a limit they depend on the time too, so states here are
    (state, time)."""
    spec = EnvironmentSpec((2 * HORIZON,), np.dtype(np.float32), DiscreteActions(2), max_episode_steps=HORIZON)
    number = {(s, t): s + 2 * t for s in range(2) for t in range(HORIZON)}
    q = np.zeros((2 * HORIZON, 2))
    for t in reversed(range(HORIZON)):
        for (s, a), moves in MOVES.items():
            after = {s: pi(THETA, s) @ q[number[s, t + 1]] if s != OVER and t + 1 < HORIZON else 0.0 for *_, s in moves}
            q[number[s, t], a] = sum(p * (r + GAMMA * after[s]) for p, r, s in moves)
    theta = np.tile(THETA, (HORIZON, 1))
    config = Config(form="all_actions", discount=GAMMA, alpha_theta=1.0)
    agent = numbered(reinforce.make(config, spec), 2 * HORIZON)
    state = agent.init(jax.random.key(0))._replace(params=as_params(theta, q))
    episodes = all_episodes(THETA)
    steps = as_sample(episodes).steps
    steps = steps._replace(observation=steps.observation + 2 * np.arange(HORIZON + 1, dtype=np.float32)[:, None])

    def of_one(steps):
        new, _ = agent.update(state, jax.random.key(0), Sample(jax.tree.map(lambda x: x[:, None], steps)))
        return new.params.theta["params"]["Dense_0"]["kernel"] - state.params.theta["params"]["Dense_0"]["kernel"]

    moved = np.asarray(jax.jit(jax.vmap(of_one, in_axes=1))(steps), np.float64)
    of_theta = moved.reshape(len(episodes), HORIZON, 2, 2).sum(axis=1)  # theta is the same at all times
    mean, variance = moments(of_theta, episodes)
    np.testing.assert_allclose(mean, true_gradient(THETA), atol=1e-5)
    _, of_reinforce = moments(directions(Config(**PLAIN), as_params(THETA, None), episodes), episodes)
    assert variance < 0.5 * of_reinforce, "the action's own noise is gone"


# Devices, networks and hypers ----------------------------------------------------------------------------------------


@ALL_FORMS
def test_two_shards_are_one_batch(form):
    agent = tabular(batch_size=8, **form)
    _, _, state = random_state(agent, form)
    steps = random_episodes(5, 8)
    whole, feedback = jax.jit(agent.update)(state, jax.random.key(0), Sample(steps))
    halves = jax.tree.map(lambda x: np.stack([x[:, :4], x[:, 4:]]), steps)
    update = jax.jit(jax.vmap(agent.update, in_axes=(None, None, 0), axis_name=AXIS))
    shards, shard_feedback = update(state, jax.random.key(0), Sample(halves))
    for i in range(2):
        mine = jax.tree.map(lambda x, i=i: x[i], shards.params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), mine, whole.params)
        for name in ("policy_loss", "episode_return", "episode_length", "gradient_norm"):
            np.testing.assert_allclose(shard_feedback.metrics[name][i], feedback.metrics[name], rtol=1e-4)


@ALL_FORMS
def test_an_mlp_and_adam(form):
    agent = reinforce.make(Config(hidden_sizes=(6,), optimizer="adam", **form, **ALPHAS), VECTOR)
    state = agent.init(jax.random.key(0))
    new, feedback = jax.jit(agent.update)(state, jax.random.key(0), Sample(random_episodes(0, 1, (4,))))
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), new.params, state.params)
    theta, w = jax.tree.leaves(moved.theta), jax.tree.leaves(moved.w)
    np.testing.assert_allclose(theta, 0.3, rtol=0.01)
    np.testing.assert_allclose(w, 0.2, rtol=0.01)
    assert bool(w) == bool(form) and np.isfinite(list(feedback.metrics.values())).all()


def test_hypers_are_the_states():
    """An update uses the state's hyperparameters, which a population may tune, not the config's."""
    agent, other = tabular(baseline=True), tabular(baseline=True, alpha_theta=0.7, alpha_w=0.6, discount=0.5)
    state = agent.init(jax.random.key(0))._replace(hypers=other.init(jax.random.key(0)).hypers)
    (a, _), (b, _) = (
        jax.jit(x.update)(state, jax.random.key(0), Sample(random_episodes(0, 1))) for x in (agent, other)
    )
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_acting_samples_the_policy_and_evaluations_take_its_mode():
    agent = tabular()
    theta, B = np.zeros((STATES, A)), 6000
    theta[2] = [0.0, 1.0, -1.0]
    params = as_params(theta, None).theta
    observation, zeros = np.full(B, 2.0, np.float32), np.zeros(B, np.float32)
    timestep = TimeStep(observation, zeros, zeros + 1, zeros > 0, zeros > 0)
    action, extras, memory = jax.jit(agent.act)(params, jax.random.key(0), timestep, ())
    assert action.dtype == jnp.int32 and extras == {} and memory == ()
    np.testing.assert_allclose(np.bincount(action, minlength=A) / B, pi(theta, 2), atol=0.03)
    action, _, _ = agent.act_greedily(params, jax.random.key(0), timestep, ())
    assert (np.asarray(action) == 1).all()


def test_continuous_actions_are_clipped_and_their_raw_ones_kept():
    start, B = (0.5, -0.5, 0.2, 0.0), 6000
    agent = reinforce.make(Config(initial_preferences=start), policy_slopes.spec("gaussian", 4, LONGEST))
    theta, zeros = agent.policy(agent.init(jax.random.key(0))), np.zeros(B, np.float32)
    timestep = TimeStep(np.ones((B, 4), np.float32), zeros, zeros + 1, zeros > 0, zeros > 0)
    action, extras, _ = jax.jit(agent.act)(theta, jax.random.key(0), timestep, ())
    raw, low, high = np.asarray(extras["raw"]), policy_slopes.LOW, policy_slopes.HIGH
    np.testing.assert_allclose(raw.mean(axis=0), start[:2], atol=0.05)
    np.testing.assert_allclose(raw.std(axis=0), np.exp(start[2:]), rtol=0.05)
    assert (np.abs(raw) > 1).any()
    np.testing.assert_allclose(action, low + (np.clip(raw, -1, 1) + 1) / 2 * (high - low), rtol=1e-4, atol=1e-5)
    action, extras, _ = agent.act_greedily(theta, jax.random.key(0), timestep, ())
    np.testing.assert_allclose(action, np.tile([1.0, 0.25], (B, 1)), rtol=1e-5)
    assert extras == {}


# Settings ------------------------------------------------------------------------------------------------------------


def test_table():
    agent = tabular(batch_size=16, queue_batches=3)
    table = agent.table
    assert table.items == WholeEpisodes(LONGEST) and table.kind == "queue" and table.max_size == 48
    assert agent.batch_size == 16 and not agent.in_order


def test_the_longest_episode_is_the_environments_or_told():
    unknown = EnvironmentSpec((4,), np.dtype(np.float32), DiscreteActions(A))
    assert reinforce.longest_episode(Config(), VECTOR) == LONGEST
    assert reinforce.longest_episode(Config(max_episode_steps=20), VECTOR) == LONGEST
    assert reinforce.longest_episode(Config(max_episode_steps=20), unknown) == 20
    with pytest.raises(ValueError, match=r"^this environment does not say .*: give config\.max_episode_steps$"):
        reinforce.make(Config(), unknown)
    with pytest.raises(
        ValueError,
        match=r"^config\.max_episode_steps=7 must be 8 or more, the most steps of this environment's episodes",
    ):
        reinforce.make(Config(max_episode_steps=7), VECTOR)


def test_what_does_not_fit_is_refused():
    continuous = policy_slopes.spec("gaussian", 4, LONGEST)
    with pytest.raises(ValueError, match=r"^all_actions needs discrete actions; this environment's are continuous; "):
        reinforce.make(Config(form="all_actions"), continuous)
    infinite = BoundedActions(policy_slopes.LOW, policy_slopes.HIGH + np.inf)
    with pytest.raises(ValueError, match=r"^reinforce needs actions with finite bounds"):
        reinforce.make(Config(), dataclasses.replace(continuous, actions=infinite))
    with pytest.raises(ValueError, match=r"reinforce has no convolutions .* frames; use impala$"):
        reinforce.make(Config(), EnvironmentSpec((84, 84), np.dtype(np.uint8), DiscreteActions(A)))
    with pytest.raises(ValueError, match=r"config\.baseline is for config\.form=reinforce"):
        Config(form="all_actions", baseline=True)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("batch_size", 0),
        ("queue_batches", 0),
        ("alpha_theta", 0.0),
        ("alpha_w", float("inf")),
        ("optimizer_epsilon", 0.0),
        ("sigma_initial", 0.0),
        ("max_episode_steps", -1),
        ("discount", 1.5),
    ],
)
def test_a_value_out_of_range_is_refused(field, value):
    with pytest.raises(ValueError, match=f"config.{field} must be"):
        Config(**{field: value})
