"""TD3 against its paper (https://arxiv.org/abs/1802.09477). What it shares with DDPG is tested in test_ddpg.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents import ddpg, td3
from agents.agent import BoundedActions, EnvironmentSpec, Transitions
from agents.parts.networks import PolicyAndCritic
from tests.agents import test_ddpg as of_ddpg
from tests.agents.test_ddpg import assert_trees_close, float64, np_mu, np_Q, random_sample, randomized, scaled

SIZES, SPEC = of_ddpg.SIZES, of_ddpg.SPEC
LOW, HIGH = of_ddpg.LOW, of_ddpg.HIGH


def make(**fields):
    return td3.make(td3.Config(**{"hidden_sizes": SIZES, "random_start": False, **fields}), SPEC)


def critic_of(theta, i: int):
    return jax.tree.map(lambda x: np.asarray(x, np.float64)[i], theta)


def np_target(state, key, sample, sigma: float, c: float) -> np.ndarray:
    """Returns y of algorithm 1, computed one transition after another."""
    targets = float64(state.target_params)
    _, a, r, discount, s_next = sample.steps
    epsilon = np.asarray(jax.random.normal(key, a.shape), np.float64)
    y = []
    for k in range(len(r)):
        a_next = np_mu(targets.policy, s_next[k : k + 1])[0]
        for n in range(len(a_next)):
            a_next[n] = min(1.0, max(-1.0, a_next[n] + min(c, max(-c, sigma * epsilon[k, n]))))
        values = [
            np_Q(critic_of(targets.critic, i), s_next[k : k + 1], a_next[None])[0, 0]
            for i in range(len(jax.tree.leaves(targets.critic)[0]))
        ]
        y.append(r[k] + discount[k] * min(values))
    return np.array(y)


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("replay", ["uniform", "prioritized"])
@pytest.mark.parametrize(("num_critics", "sigma", "c"), [(1, 0.0, 0.5), (2, 0.2, 0.5), (2, 3.0, 0.3), (3, 0.5, 9.0)])
def test_critic_loss_gradient_and_priorities_are_the_papers(num_critics, sigma, c, replay, layer_norm):
    agent = make(
        num_critics=num_critics,
        target_noise=sigma,
        target_noise_clip=c,
        replay=replay,
        layer_norm=layer_norm,
        importance_exponent=0.4,
        importance_steps=100,
    )
    state = randomized(agent.init(jax.random.key(0)))._replace(step=jnp.int32(50))  # beta is 0.7 there
    sample, key = random_sample(1), jax.random.key(1)
    new, feedback = jax.jit(agent.update)(state, key, sample)
    y = np_target(state, key, sample, sigma, c)
    s, a = sample.steps.observation, scaled(sample.steps.action)
    w = of_ddpg.np_weights(sample.likelihood, 0.7) if replay == "prioritized" else np.ones_like(y)

    losses, errors = [], []
    for i in range(num_critics):

        def loss(theta):
            return np.mean(w * (y - np_Q(theta, s, a)[:, 0]) ** 2)

        theta = critic_of(state.params.critic, i)
        gradient = critic_of(of_ddpg.gradient_of(new.opt_state.critic), i)
        assert_trees_close(gradient, of_ddpg.finite_differences(loss, theta), rtol=1e-3, atol=1e-4)
        losses.append(loss(theta))
        errors.append(np.abs(y - np_Q(theta, s, a)[:, 0]))
    np.testing.assert_allclose(feedback.metrics["critic_loss"], sum(losses), rtol=1e-4)
    np.testing.assert_allclose(feedback.metrics["td_error"], np.mean(errors), rtol=1e-4)
    if replay == "prioritized":
        np.testing.assert_allclose(feedback.priorities, np.max(errors, axis=0), rtol=1e-4, atol=1e-5)
    else:
        assert feedback.priorities == ()


def test_policy_climbs_the_first_critic_of_after_its_step():
    agent = make(policy_period=1, critic_learning_rate=0.1)
    state = randomized(agent.init(jax.random.key(0)))
    sample = random_sample(0)
    new, feedback = jax.jit(agent.update)(state, jax.random.key(1), sample)
    first = critic_of(new.params.critic, 0)

    def loss(phi):
        s = sample.steps.observation
        return -np_Q(first, s, np_mu(phi, s)).mean()

    expected = of_ddpg.finite_differences(loss, state.params.policy)
    assert max(np.abs(g).max() for g in jax.tree.leaves(expected)) > 0.05
    assert_trees_close(of_ddpg.gradient_of(new.opt_state.policy), expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(feedback.metrics["policy_loss"], loss(float64(state.params.policy)), rtol=1e-4)


@pytest.mark.parametrize("period", [1, 2, 3])
def test_policy_and_targets_move_at_every_dth_update(period):
    agent = make(policy_period=period, tau=0.3)
    state, update = randomized(agent.init(jax.random.key(0))), jax.jit(agent.update)
    for number in range(1, 7):
        old = state
        state, _ = update(state, jax.random.key(number), random_sample(number))
        due = number % period == 0
        moved = jax.tree.map(lambda x, y: bool((x != y).any()), state.params, old.params)
        assert all(jax.tree.leaves(moved.critic)) and any(jax.tree.leaves(moved.policy)) == due
        expected = jax.tree.map(
            lambda target, new, due=due: 0.7 * target + 0.3 * new if due else target,
            float64(old.target_params),
            float64(state.params),
        )
        assert_trees_close(state.target_params, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "settings", [{}, {"layer_norm": True, "n_step": 3}, {"replay": "prioritized", "normalize_observations": True}]
)
def test_with_one_critic_no_noise_and_no_delay_it_is_ddpg(settings):
    rates = {"policy_learning_rate": 1e-2, "critic_learning_rate": 3e-2, "tau": 0.1}
    one = make(num_critics=1, target_noise=0.0, policy_period=1, **rates, **settings)
    other = ddpg.make(ddpg.Config(hidden_sizes=SIZES, **rates, **settings), SPEC)
    theirs = randomized(other.init(jax.random.key(0)))

    def stacked(tree: PolicyAndCritic) -> PolicyAndCritic:
        return tree._replace(critic=jax.tree.map(lambda x: x[None], tree.critic))

    def alone(tree: PolicyAndCritic) -> PolicyAndCritic:
        return tree._replace(critic=jax.tree.map(lambda x: x[0], tree.critic))

    ours = one.init(jax.random.key(0))._replace(
        params=stacked(theirs.params), target_params=stacked(theirs.target_params)
    )
    update, update_theirs = jax.jit(one.update), jax.jit(other.update)
    for number in range(6):
        key, sample = jax.random.key(number), random_sample(number)
        ours, feedback = update(ours, key, sample)
        theirs, expected = update_theirs(theirs, key, sample)
        assert_trees_close(feedback.metrics, expected.metrics, rtol=1e-3, atol=1e-4)
        assert_trees_close(feedback.priorities, expected.priorities, rtol=1e-3, atol=1e-4)
    for got, wanted in ((ours.params, theirs.params), (ours.target_params, theirs.target_params)):
        assert_trees_close(alone(got), wanted, rtol=1e-3, atol=1e-4)


def test_critics_start_unlike_each_other():
    critic = make().init(jax.random.key(0)).params.critic
    kernels = [x for x in jax.tree.leaves(critic) if x.ndim == 3]
    assert len(kernels) == 3 and all(np.abs(x[0] - x[1]).max() > 1e-4 for x in kernels)


def test_members_of_a_population_update_as_each_alone():
    """The members are stacked by vmap, and each has its own step count, which decides when its policy steps."""
    agent = make(policy_period=2, replay="prioritized")
    states = [randomized(agent.init(jax.random.key(m)), m)._replace(step=jnp.int32(m)) for m in range(3)]
    samples, keys = [random_sample(m) for m in range(3)], jax.random.split(jax.random.key(0), 3)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *states)
    after, feedback = jax.jit(jax.vmap(agent.update))(stacked, keys, jax.tree.map(lambda *x: np.stack(x), *samples))
    for m in range(3):
        expected, alone = jax.jit(agent.update)(states[m], keys[m], samples[m])
        assert_trees_close(jax.tree.map(lambda x, m=m: x[m], after), expected, rtol=1e-3, atol=1e-4)
        assert_trees_close(jax.tree.map(lambda x, m=m: x[m], feedback), alone, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_critics", 0),
        ("policy_period", 0),
        ("target_noise", -0.1),
        ("target_noise_clip", -1.0),
        ("tau", 1.5),
        ("critic_learning_rate", 0.0),
        ("min_replay_size", 10_000_000),
    ],
)
def test_settings_out_of_range_are_refused(field, value):
    with pytest.raises(ValueError, match=f"config.{field}"):
        td3.Config(**{field: value})


def test_frames_are_refused():
    spec = EnvironmentSpec((8, 8), np.dtype(np.uint8), BoundedActions(LOW, HIGH))
    with pytest.raises(ValueError, match=r"^td3 has no convolutions"):
        td3.make(td3.Config(), spec)


def test_table_of_the_defaults():
    table = td3.make(td3.Config(), SPEC).table
    assert table.items == Transitions(1, 0.99) and (table.kind, table.min_size) == ("uniform", 25_000)
