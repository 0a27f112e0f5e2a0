"""DPG against its paper (http://proceedings.mlr.press/v32/silver14.html), restated as plainly as can be."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents import dpg
from agents.agent import (
    AXIS,
    Blocks,
    BoundedActions,
    DiscreteActions,
    EnvironmentSpec,
    Sample,
    Step,
    TimeStep,
    Transition,
    Transitions,
)
from agents.parts import features

# Features ------------------------------------------------------------------------------------------------------------


def test_fourier_features_are_the_papers_by_a_loop():
    basis = features.fourier(3, order=2)
    x = np.random.default_rng(0).random((2, 5, 3)).astype(np.float32)
    phi = np.asarray(basis.phi(x))
    assert phi.shape == (2, 5, basis.size) and basis.size == 27
    for b in np.ndindex(2, 5):
        for i, c in enumerate(itertools.product((0, 1, 2), (0, 1, 2), (0, 1, 2))):
            inner = sum(c_j * float(x_j) for c_j, x_j in zip(c, x[b]))
            assert phi[b][i] == pytest.approx(np.cos(np.pi * inner), abs=1e-5)
            norm = sum(c_j**2 for c_j in c) ** 0.5
            assert basis.step_sizes[i] == pytest.approx(1.0 / norm if norm else 1.0)


@pytest.mark.parametrize(("size", "tilings", "width"), [(1, 1, 4), (2, 8, 3), (3, 4, 2)])
def test_tiles_are_those_of_a_loop(size, tilings, width):
    basis = features.tiles(size, tilings, width)
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.random((60, size)), np.zeros((1, size)), np.ones((1, size))]).astype(np.float32)
    phi = np.asarray(basis.phi(x)).reshape(len(x), tilings, -1)
    assert basis.size == tilings * (width + 1) ** size
    np.testing.assert_allclose(basis.step_sizes, 1.0 / tilings)
    np.testing.assert_array_equal(phi.sum(-1), 1.0)  # one tile of each tiling
    for k in range(tilings):
        cells = {}
        for b in range(len(x)):
            moved = [width * float(x[b, i]) + (k * (2 * i + 1) / tilings) % 1.0 for i in range(size)]
            assert all(0 <= m < width + 1 for m in moved)
            cells.setdefault(tuple(int(m) for m in moved), set()).add(int(phi[b, k].argmax()))
        numbers = [number for cell in cells.values() for number in cell]
        assert all(len(cell) == 1 for cell in cells.values()), "one cell has one number"
        assert len(set(numbers)) == len(cells), "and no other cell has it"


def test_tilings_are_moved_against_each_other():
    """Of 8 tilings with tiles 1/4 wide, some separate two points that are 1/16 apart."""
    basis = features.tiles(2, 8, 4)
    phi = np.asarray(basis.phi(np.array([[0.30, 0.3], [0.3625, 0.3], [0.30, 0.3625]], np.float32)))
    assert phi[0] @ phi[1] == 6 and phi[0] @ phi[2] == 6


def test_observations_are_scaled_and_clipped():
    low, high = np.array([-1.0, 10.0], np.float32), np.array([3.0, 20.0], np.float32)
    x = features.scale(np.array([[-1, 10], [3, 20], [0, 12], [-9, 99]], np.float32), low, high)
    np.testing.assert_allclose(x, [[0, 0], [1, 1], [0.25, 0.2], [0, 1]], atol=1e-6)


@pytest.mark.parametrize("make", [lambda: features.fourier(17, 3), lambda: features.tiles(8, 8, 8)])
def test_too_many_features_are_refused(make):
    with pytest.raises(ValueError, match=r"^[^\n]*observations would be \d+ features, and 20000 is the most$"):
        make()


# The critic ----------------------------------------------------------------------------------------------------------

LOW, HIGH = (-1.0, 0.0), (2.0, 4.0)
ACTION_LOW, ACTION_HIGH = np.array([-2.0, 0.0, -1.0], np.float32), np.array([2.0, 1.0, 5.0], np.float32)
SPEC = EnvironmentSpec((2,), np.dtype(np.float32), BoundedActions(ACTION_LOW, ACTION_HIGH))
D, A = 2, 3


def config(**options) -> dpg.Config:
    return dpg.Config(**({"observation_low": LOW, "observation_high": HIGH, "order": 2} | options))


def random_weights(rng, n: int, size: float = 0.5) -> dpg.Weights:
    shapes = dpg.Weights((n, A), (n, A), (n,), (n, A))
    return dpg.Weights(*(size * rng.normal(size=shape).astype(np.float32) for shape in shapes))


@pytest.mark.parametrize("squash", [False, True])
def test_critic_is_compatible_with_the_policy(squash):
    """Theorem 3's condition 1 holds: grad_a Q^w at a = mu_theta(s) is grad_theta mu_theta(s)^T w. The value of Q^w
    there is V^v."""
    rng = np.random.default_rng(0)
    weights, phi = random_weights(rng, 9), rng.normal(size=9).astype(np.float32)

    def mean(theta):
        return dpg.mu(theta, phi[None], squash)[0][0]

    def Q(a):
        return dpg.critic(weights, phi[None], a[None], squash)[0]

    at_mu = mean(weights.theta)
    grad_mu = jax.jacobian(mean)(weights.theta)  # [A, n, A]
    expected = np.einsum("anb,nb->a", grad_mu, weights.w)
    np.testing.assert_allclose(jax.grad(Q)(at_mu), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(Q(at_mu), phi @ weights.v, rtol=1e-5)
    # The slope is the same at every action: the critic is linear in a.
    np.testing.assert_allclose(jax.grad(Q)(at_mu + 0.7), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(Q(at_mu + 0.7), phi @ weights.v + 0.7 * expected.sum(), rtol=1e-4)


@pytest.mark.parametrize("squash", [False, True])
def test_directions_are_the_gradients_by_autodiff(squash):
    """The critic's direction is delta grad_w Q^w. The policy's is grad_theta Q^w(s, mu_theta(s)), through the
    action."""
    rng = np.random.default_rng(1)
    B, n = 4, 9
    weights, phi = random_weights(rng, n), rng.normal(size=(B, n)).astype(np.float32)
    action, targets = rng.normal(size=(B, A)).astype(np.float32), rng.normal(size=B).astype(np.float32)
    got, delta = dpg.directions(weights._replace(u=jnp.zeros((n, A))), phi, action, targets, phi, jnp.ones(B), squash)

    def policy_value(theta):
        return dpg.critic(weights, phi, dpg.mu(theta, phi, squash)[0], squash).sum()

    def critic_loss(w, v):
        return 0.5 * jnp.square(targets - dpg.critic(weights._replace(w=w, v=v), phi, action, squash)).sum()

    np.testing.assert_allclose(got.theta, jax.grad(policy_value)(weights.theta), rtol=1e-3, atol=1e-4)
    w, v = jax.grad(critic_loss, (0, 1))(weights.w, weights.v)
    np.testing.assert_allclose(got.w, -w, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(got.v, -v, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(delta, targets - dpg.critic(weights, phi, action, squash), rtol=1e-4, atol=1e-5)


# The update ----------------------------------------------------------------------------------------------------------

HYPERS = dpg.Hypers(*(jnp.float32(x) for x in (0.3, 0.2, 0.1, 0.4, 0.5)))  # the state's, unlike the config's


def naive_phi(o: np.ndarray) -> np.ndarray:
    x = np.clip((o - np.array(LOW)) / (np.array(HIGH) - np.array(LOW)), 0, 1)
    return np.array([np.cos(np.pi * (i * x[0] + j * x[1])) for i in range(3) for j in range(3)])


def naive_step(theta, w, v, u, rows, squash: bool, natural: bool):
    """Returns theta, w, v and u after the mean of the paper's updates on `rows`, computed by loops. With u at 0 the
    updates of theta, w and v are COPDAC-Q's.

    A row is (o, a, r, gamma, next o, next a), where next a is None if it is to be mu(next o). Actions are the
    environment's own and are scaled here.
    """
    norms = [1.0 if i == j == 0 else np.hypot(i, j) for i in range(3) for j in range(3)]
    new = [np.zeros_like(x, dtype=float) for x in (theta, w, v, u)]

    def mu(s):
        return np.tanh(naive_phi(s) @ theta) if squash else np.clip(naive_phi(s) @ theta, -1, 1)

    def grad_mu(s):
        """Returns d mu / d (phi theta), [A]. Times phi, it is the gradient of each action in its own column of
        theta."""
        return 1 - mu(s) ** 2 if squash else np.where(abs(mu(s)) < 1, 1.0, 0.0)

    def Q(s, a):
        return sum((a[j] - mu(s)[j]) * grad_mu(s)[j] * (naive_phi(s) @ w[:, j]) for j in range(A)) + naive_phi(s) @ v

    def phi_sa(s, a):
        """Returns phi(s, a) = grad_theta mu_theta(s) (a - mu_theta(s)), in theta's shape."""
        return np.array([[naive_phi(s)[i] * grad_mu(s)[j] * (a[j] - mu(s)[j]) for j in range(A)] for i in range(9)])

    def scaled(a):
        return 2 * (a - ACTION_LOW) / (ACTION_HIGH - ACTION_LOW) - 1

    for o, a, r, gamma, next_o, next_a in rows:
        a = scaled(a)
        delta = r + gamma * Q(next_o, mu(next_o) if next_a is None else scaled(next_a)) - Q(o, a)
        phi, next_phi = naive_phi(o), naive_phi(next_o)
        expected = np.sum(phi_sa(o, a) * u)
        for i in range(9):
            for j in range(A):
                slope = grad_mu(o)[j] * (phi @ w[:, j])  # grad_a Q
                step = w[i, j] if natural else phi[i] * grad_mu(o)[j] * slope / norms[i]
                new[0][i, j] += float(HYPERS.alpha_theta) * step / len(rows)
                of_w = delta * phi_sa(o, a)[i, j] - gamma * phi_sa(next_o, mu(next_o))[i, j] * expected
                new[1][i, j] += float(HYPERS.alpha_w) * of_w / norms[i] / len(rows)
                of_u = (delta - expected) * phi_sa(o, a)[i, j]
                new[3][i, j] += float(HYPERS.alpha_u) * of_u / norms[i] / len(rows)
            of_v = delta * phi[i] - gamma * next_phi[i] * expected
            new[2][i] += float(HYPERS.alpha_v) * of_v / norms[i] / len(rows)
    return [old + change for old, change in zip((theta, w, v, u), new)]


def random_observations(rng, *shape: int) -> np.ndarray:
    """Returns random observations, some of them outside the bounds."""
    return rng.uniform([-2, -1], [3, 5], (*shape, D)).astype(np.float32)


def random_actions(rng, *shape: int) -> np.ndarray:
    return rng.uniform(ACTION_LOW, ACTION_HIGH, (*shape, A)).astype(np.float32)


def random_state(agent, seed: int = 0, gradient_q: bool = False) -> dpg.State:
    """Returns a state with random weights. Without `gradient_q`, u is 0 and does not move."""
    state = agent.init(jax.random.key(0))
    state = state._replace(weights=random_weights(np.random.default_rng(seed), 9), hypers=HYPERS)
    if gradient_q:
        return state
    weights, hypers = state.weights._replace(u=np.zeros((9, A))), HYPERS._replace(alpha_u=jnp.float32(0))
    return state._replace(weights=weights, hypers=hypers)


def random_transitions(rng, B: int) -> Transition:
    return Transition(
        observation=random_observations(rng, B),
        action=random_actions(rng, B),
        reward=rng.normal(size=B).astype(np.float32),
        discount=np.where(rng.random(B) < 0.3, 0.0, 0.9).astype(np.float32),
        next_observation=random_observations(rng, B),
    )


@pytest.mark.parametrize("squash", [False, True])
@pytest.mark.parametrize("natural", [False, True])
@pytest.mark.parametrize("gradient_q", [False, True])
def test_off_policy_update_is_the_papers(squash, natural, gradient_q):
    """The update is COPDAC-Q's or, with u, COPDAC-GQ's."""
    agent = dpg.make(config(squash=squash, natural_gradient=natural, reward_scale=0.5, batch_size=8), SPEC)
    state, steps = random_state(agent, 0, gradient_q), random_transitions(np.random.default_rng(1), 8)
    assert (steps.discount == 0).any() and (steps.discount > 0).any()
    rows = [(o, a, 0.5 * r, gamma, next_o, None) for o, a, r, gamma, next_o in zip(*steps)]
    expected = naive_step(*state.weights, rows, squash, natural)
    after, feedback = jax.jit(agent.update)(state, jax.random.key(0), Sample(steps))
    if not gradient_q:
        assert not np.asarray(after.weights.u).any()
    for name, got, want in list(zip(dpg.Weights._fields, after.weights, expected))[: 4 if gradient_q else 3]:
        assert np.abs(want - getattr(state.weights, name)).max() > 0.01
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4, err_msg=name)
    assert int(after.step) == 1
    assert all(np.isfinite(x) for x in feedback.metrics.values())


T, B = 6, 2


def random_block(rng, first: np.ndarray) -> Step:
    """Returns random rows [T+1, B]. A row before a `first` row closes its episode, and its action, reward and discount
    are rubbish."""
    shape = first.shape
    dead = np.concatenate([first[1:], np.zeros((1, shape[1]), bool)])
    return Step(
        observation=random_observations(rng, *shape),
        action=random_actions(rng, *shape),
        reward=np.where(dead, 1e3, rng.normal(size=shape)).astype(np.float32),
        discount=np.ones(shape, np.float32),
        first=first,
        extras={},
    )


def sarsa_agent(**options):
    return dpg.make(config(form="sarsa", unroll_length=T, batch_size=B, discount=0.9, **options), SPEC)


def block_of_episodes() -> Step:
    """Returns a block in whose column 0 row 2 closes a terminated episode and row 5 a truncated one. Column 1 begins
    with a dead row."""
    first = np.zeros((T + 1, B), bool)
    first[[3, 6, 1], [0, 0, 1]] = True
    block = random_block(np.random.default_rng(2), first)
    block.discount[1, 0] = 0.0
    return block


@pytest.mark.parametrize(("squash", "natural"), [(False, False), (True, False), (True, True)])
def test_sarsa_update_is_the_papers_row_after_row(squash, natural):
    """After a termination nothing is bootstrapped; a truncation bootstraps from the closing row's action. Dead rows do
    not count."""
    agent, block = sarsa_agent(squash=squash, natural_gradient=natural, reward_scale=0.5), block_of_episodes()
    state = random_state(agent)
    expected = list(state.weights)
    for t in range(T):
        rows = [
            (
                block.observation[t, b],
                block.action[t, b],
                0.5 * block.reward[t, b],
                0.0 if (t, b) == (1, 0) else 0.9,
                block.observation[t + 1, b],
                block.action[t + 1, b],
            )
            for b in range(B)
            if (t, b) not in {(2, 0), (5, 0), (0, 1)}
        ]
        expected = [*naive_step(*expected, rows, squash, natural)[:3], np.zeros((9, A))]
    after, _ = jax.jit(agent.update)(state, jax.random.key(0), Sample(block))
    for name, got, want in list(zip(dpg.Weights._fields, after.weights, expected))[:3]:
        assert np.abs(want - getattr(state.weights, name)).max() > 0.01
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4, err_msg=name)


def test_sarsa_bootstraps_at_truncation_only_and_learns_nothing_from_dead_rows():
    agent, block = sarsa_agent(), block_of_episodes()
    state, update = random_state(agent), jax.jit(agent.update)

    def moved(change) -> bool:
        """Returns whether the update differs if `change` is made to the block."""
        changed = jax.tree.map(np.array, block)
        change(changed)
        before, after = (update(state, jax.random.key(0), Sample(steps))[0].weights for steps in (block, changed))
        return any(bool((x != y).any()) for x, y in zip(before, after))

    assert not moved(lambda steps: steps.reward.__setitem__((2, 0), 5.0)), "row 2 is dead"
    assert not moved(lambda steps: steps.discount.__setitem__((2, 0), 0.0))
    assert not moved(lambda steps: steps.action.__setitem__((2, 0), 0.5)), "and after a termination: no bootstrap"
    assert not moved(lambda steps: steps.observation.__setitem__((2, 0), 0.5))
    assert not moved(lambda steps: steps.reward.__setitem__((5, 0), 5.0)), "row 5 is dead too"
    assert moved(lambda steps: steps.action.__setitem__((5, 0), 0.5)), "but row 4 was truncated"
    assert moved(lambda steps: steps.observation.__setitem__((5, 0), 0.5))
    assert not moved(lambda steps: steps.action.__setitem__((6, 0), 0.5)), "a dead row does not look ahead"
    assert moved(lambda steps: steps.action.__setitem__((6, 1), 0.5)), "the block's last row is a bootstrap"
    assert not moved(lambda steps: steps.reward.__setitem__((6, 1), 5.0))


@pytest.mark.parametrize("natural", [False, True])
def test_a_block_of_dead_rows_alone_teaches_nothing(natural):
    agent = dpg.make(config(form="sarsa", unroll_length=1, batch_size=2, natural_gradient=natural), SPEC)
    state = random_state(agent)
    block = random_block(np.random.default_rng(0), np.array([[False, False], [True, True]]))
    after, feedback = jax.jit(agent.update)(state, jax.random.key(0), Sample(block))
    jax.tree.map(np.testing.assert_array_equal, after.weights, state.weights)
    assert all(np.isfinite(x) for x in feedback.metrics.values())


def test_u_moves_v_once_it_has_learnt():
    """u begins at 0, so COPDAC-GQ's first update differs from COPDAC-Q's in u alone, its second in u and v."""
    gq, q = (dpg.make(config(alpha_u=alpha_u, batch_size=8), SPEC) for alpha_u in (0.5, 0.0))
    states = [agent.init(jax.random.key(0)) for agent in (gq, q)]
    for i, differ in enumerate([{"u"}, {"u", "v"}]):
        steps = Sample(random_transitions(np.random.default_rng(i), 8))
        states = [a.update(s, jax.random.key(0), steps)[0] for a, s in zip((gq, q), states)]
        one, other = (state.weights._asdict() for state in states)
        assert {name for name in one if (one[name] != other[name]).any()} == differ


@pytest.mark.parametrize("natural", [False, True])
@pytest.mark.parametrize("form", ["off_policy", "sarsa"])
def test_two_shards_make_the_update_of_one(form, natural):
    """This holds also where one shard has more dead rows than the other."""
    agent = dpg.make(config(form=form, batch_size=4, natural_gradient=natural), SPEC)
    state, rng = random_state(agent, 0, form == "off_policy"), np.random.default_rng(3)
    if form == "sarsa":
        first = np.zeros((T + 1, 4), bool)
        first[[1, 3, 1], [0, 0, 1]] = True
        steps = random_block(rng, first)
        shards = jax.tree.map(lambda x: np.stack([x[:, :2], x[:, 2:]]), steps)
    else:
        steps = random_transitions(rng, 4)
        shards = jax.tree.map(lambda x: np.stack([x[:2], x[2:]]), steps)
    key = jax.random.key(0)
    one, one_feedback = jax.jit(agent.update)(state, key, Sample(steps))
    two, feedback = jax.jit(jax.vmap(lambda steps: agent.update(state, key, Sample(steps)), axis_name=AXIS))(shards)
    for got, want in zip(jax.tree.leaves(two.weights), jax.tree.leaves(one.weights)):
        np.testing.assert_array_equal(got[0], got[1])
        np.testing.assert_allclose(got[0], want, rtol=1e-4, atol=1e-5)
    for name, want in one_feedback.metrics.items():
        np.testing.assert_allclose(feedback.metrics[name], [want, want], rtol=1e-4, err_msg=name)


# Acting --------------------------------------------------------------------------------------------------------------


def timestep(rng, num_envs: int, first: bool = False) -> TimeStep:
    zeros = np.zeros(num_envs, np.float32)
    return TimeStep(random_observations(rng, num_envs), zeros, zeros + 1, np.full(num_envs, first), zeros > 0)


def params_of(agent, sigma: float, size: float = 0.3) -> dpg.Policy:
    theta = random_weights(np.random.default_rng(0), 9, size).theta
    return agent.policy(random_state(agent))._replace(theta=theta, sigma=jnp.float32(sigma))


@pytest.mark.parametrize("squash", [False, True])
def test_greedy_action_is_mu_at_the_environments_scale(squash):
    agent = dpg.make(config(squash=squash), SPEC)
    params, now = params_of(agent, 0.5), timestep(np.random.default_rng(0), 50)
    action, extras, memory = agent.act_greedily(params, jax.random.key(0), now, agent.memory(50))
    mean = np.stack([naive_phi(o) @ params.theta for o in now.observation])
    mean = np.tanh(mean) if squash else np.clip(mean, -1, 1)
    expected = ACTION_LOW + (ACTION_HIGH - ACTION_LOW) * (mean + 1) / 2
    np.testing.assert_allclose(action, expected, rtol=1e-4, atol=1e-4)
    assert extras == {} and action.shape == (50, A) and action.dtype == jnp.float32


@pytest.mark.parametrize("squash", [False, True])
def test_actions_stay_within_the_bounds(squash):
    agent = dpg.make(config(squash=squash), SPEC)
    params, now = params_of(agent, 5.0, size=10.0), timestep(np.random.default_rng(0), 200)
    for act in (agent.act, agent.act_greedily):
        action = np.asarray(act(params, jax.random.key(0), now, agent.memory(200))[0])
        assert (action >= ACTION_LOW).all() and (action <= ACTION_HIGH).all()
        # The bounds are reached, but for rounding, which depends on the compiler.
        assert all(np.isclose(action, bound, rtol=1e-6, atol=1e-6).any(0).all() for bound in (ACTION_LOW, ACTION_HIGH))


def test_an_action_of_any_shape_comes_back_and_is_learnt_from():
    spec = EnvironmentSpec((2,), np.dtype(np.float32), BoundedActions(-np.ones((2, 2), np.float32), np.ones((2, 2))))
    agent = dpg.make(config(), spec)
    state, rng = agent.init(jax.random.key(0)), np.random.default_rng(0)
    action, _, _ = agent.act(agent.policy(state), jax.random.key(0), timestep(rng, 5), agent.memory(5))
    assert action.shape == (5, 2, 2)
    after, _ = agent.update(state, jax.random.key(0), Sample(random_transitions(rng, 5)._replace(action=action)))
    assert (np.asarray(after.weights.w) != 0).any(0).all()


@pytest.mark.parametrize("correlation", [0.0, 0.8])
def test_noise_is_gaussian_and_correlated_as_configured(correlation):
    """The noise has the standard deviation sigma from an episode's first action on, and is correlated only within an
    episode."""
    N = 20_000
    low, high = np.full(1, -1e3, np.float32), np.full(1, 1e3, np.float32)
    spec = dataclasses.replace(SPEC, actions=BoundedActions(low, high))
    agent = dpg.make(config(noise_correlation=correlation), spec)
    params, rng = agent.policy(agent.init(jax.random.key(0)))._replace(sigma=jnp.float32(0.1)), np.random.default_rng(0)
    act, memory, noise = jax.jit(agent.act), agent.memory(N), []
    for t in range(5):
        action, _, memory = act(params, jax.random.key(t), timestep(rng, N, first=t in (0, 4)), memory)
        noise.append(np.asarray(action)[:, 0] / 1e3)
    for x in noise:
        assert x.std() == pytest.approx(0.1, rel=0.03) and abs(x.mean()) < 0.004
    lags = [np.corrcoef(noise[0], noise[t])[0, 1] for t in range(5)]
    np.testing.assert_allclose(lags, [1.0, correlation, correlation**2, correlation**3, 0.0], atol=0.03)


def test_sigma_and_step_sizes_are_hypers():
    agent = dpg.make(config(sigma=0.7, alpha_theta=0.1, alpha_w=0.2, alpha_v=0.3, alpha_u=0.4), SPEC)
    state = agent.init(jax.random.key(0))
    np.testing.assert_allclose(state.hypers, (0.1, 0.2, 0.3, 0.4, 0.7))
    assert float(agent.policy(state._replace(hypers=HYPERS)).sigma) == 0.5


# Data and configs ----------------------------------------------------------------------------------------------------


def test_tables():
    table = dpg.make(
        config(discount=0.9, replay_size=500, min_replay_size=20, samples_per_insert=4.0, batch_size=16), SPEC
    ).table
    assert (table.items, table.kind) == (Transitions(1, 0.9), "uniform")
    assert (table.max_size, table.min_size, table.samples_per_insert) == (500, 20, 4.0)
    agent = dpg.make(config(form="sarsa", unroll_length=5, batch_size=3, queue_batches=2), SPEC)
    table = agent.table
    assert (table.items, table.kind, table.max_size) == (Blocks(5, next_action=True), "queue", 6)
    assert agent.batch_size == 3


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"order": 0}, "order"),
        ({"alpha_w": 0.0}, "alpha_w"),
        ({"alpha_u": -1.0}, "alpha_u"),
        ({"alpha_u": 0.1, "form": "sarsa"}, "alpha_u"),
        ({"discount": 1.1}, "discount"),
        ({"noise_correlation": -0.1}, "noise_correlation"),
        ({"sigma": float("inf")}, "sigma"),
        ({"replay_size": 10}, "min_replay_size"),
        ({"observation_low": (0.0,)}, "observation_low"),
        ({"observation_low": (2.0, 0.0)}, "observation_low"),
        ({"observation_high": (2.0, float("inf"))}, "observation_high"),
    ],
)
def test_bad_configs_are_refused(options, field):
    with pytest.raises(ValueError, match=rf"^[^\n]*config\.{field}[^\n]*$"):
        config(**options)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            dataclasses.replace(SPEC, actions=DiscreteActions(2)),
            "dpg needs continuous actions; this environment's are discrete; use .*",
        ),
        (
            dataclasses.replace(SPEC, actions=BoundedActions(-np.full(1, np.inf), np.full(1, np.inf))),
            "dpg needs actions with finite bounds; this environment's have none",
        ),
        (
            dataclasses.replace(SPEC, observation_shape=(3,)),
            r"config.observation_low and config.observation_high hold 2 bounds each, and must "
            r"hold one for each number of this environment's observations, \(3,\)",
        ),
        (
            dataclasses.replace(SPEC, observation_shape=()),
            r"config.observation_low .* this environment's observations, \(\)",
        ),
    ],
)
def test_environments_that_do_not_fit_are_refused(spec, message):
    with pytest.raises(ValueError, match=rf"^{message}$"):
        dpg.make(config(), spec)


def test_learns_to_track_a_target():
    """Episodes have one step, and the best action is a function of the observation. Both forms find it."""
    rng = np.random.default_rng(0)
    for form in ("off_policy", "sarsa"):
        agent = dpg.make(config(form=form, unroll_length=1, batch_size=64, sigma=0.5, alpha_theta=0.1), SPEC)
        state, act, update = agent.init(jax.random.key(0)), jax.jit(agent.act), jax.jit(agent.update)

        def best(o):
            return ACTION_LOW + (ACTION_HIGH - ACTION_LOW) * (0.5 + 0.3 * np.sin(2 * o[:, :1]))

        for i in range(600):
            now = timestep(rng, 64, first=True)
            action, _, _ = act(agent.policy(state), jax.random.key(i), now, agent.memory(64))
            reward = -np.square((action - best(now.observation)) / (ACTION_HIGH - ACTION_LOW)).sum(-1)
            steps = Transition(now.observation, action, reward, np.zeros(64, np.float32), now.observation)
            if form == "sarsa":
                dead = np.zeros(64, bool)
                rows = Step(now.observation, action, reward, np.zeros(64, np.float32), dead, {})
                steps = jax.tree.map(lambda x: np.stack([x, x]), rows)
            state, _ = update(state, jax.random.key(i), Sample(steps))
        now = timestep(rng, 500)
        now = now._replace(observation=np.clip(now.observation, LOW, HIGH))
        action, _, _ = agent.act_greedily(agent.policy(state), jax.random.key(0), now, agent.memory(500))
        error = np.abs(action - best(now.observation)) / (ACTION_HIGH - ACTION_LOW)
        assert error.mean() < 0.1, form
