"""DDPG against its paper (https://arxiv.org/abs/1509.02971), and what D4PG, Ape-X DPG and TD3 share with it."""

import dataclasses
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents import apex_dpg, d4pg, ddpg, td3
from agents.agent import (
    AXIS,
    BoundedActions,
    DiscreteActions,
    EnvironmentSpec,
    Sample,
    TimeStep,
    Transition,
    Transitions,
)
from agents.parts import normalizer, prioritized
from agents.parts.exploration import Noise, from_bounds, to_bounds
from tests.agents.transitions import finite_differences, float64

LOW, HIGH = np.array([-1.0, 0.0], np.float32), np.array([3.0, 0.5], np.float32)  # asymmetrical
SPEC = EnvironmentSpec((3,), np.dtype(np.float64), BoundedActions(LOW, HIGH))
SIZES = (7, 5)


def of(*modules: ModuleType):
    return pytest.mark.parametrize("module", modules, ids=lambda m: m.__name__.split(".")[-1])


AGENTS = of(ddpg, d4pg, apex_dpg, td3)
LEARNERS = of(ddpg, d4pg, td3)
OPTIONS = of(ddpg, d4pg)  # these have action_layer, critic_weight_decay and max_gradient_norm
SETTINGS = of(ddpg, d4pg, apex_dpg)
ADAM_B1 = 0.9


# Settings with which TD3 acts and steps as the others do.
PLAIN = {"random_start": False, "policy_period": 1, "target_noise": 0.0}


def make(module: ModuleType, **fields):
    fields = {"hidden_sizes": SIZES, "v_min": -5.0, "v_max": 5.0, "num_atoms": 11, **PLAIN, **fields}
    known = {field.name for field in dataclasses.fields(module.Config)}
    return module.make(module.Config(**{k: v for k, v in fields.items() if k in known}), SPEC)


def random_transitions(seed: int, B: int = 8) -> Transition:
    rng = np.random.default_rng(seed)
    return Transition(
        observation=rng.normal(size=(B, 3)),
        action=rng.uniform(LOW, HIGH, (B, 2)).astype(np.float32),
        reward=rng.normal(size=B).astype(np.float32),
        discount=np.where(rng.random(B) < 0.3, 0.0, 0.9).astype(np.float32),
        next_observation=rng.normal(size=(B, 3)),
    )


def random_sample(seed: int, B: int = 8) -> Sample:
    rng = np.random.default_rng(1000 + seed)
    return Sample(random_transitions(seed, B), (), np.exp(rng.normal(size=B)).astype(np.float32))


def timestep(observation: np.ndarray, first: Any = False) -> TimeStep:
    B = observation.shape[0]
    zeros = np.zeros(B, np.float32)
    return TimeStep(observation, zeros, zeros + 1, np.broadcast_to(np.asarray(first), (B,)), zeros > 0)


def randomized(state, seed: int = 0):
    """Returns the state with random networks and targets that differ, far from the small outputs of new networks."""
    rng = np.random.default_rng(seed)

    def noisy(x):
        return jnp.asarray(x + 0.4 * rng.normal(size=x.shape), jnp.float32)

    return state._replace(
        params=jax.tree.map(noisy, state.params), target_params=jax.tree.map(noisy, state.target_params)
    )


def gradient_of(opt_state):
    """Returns the gradient of the first step, which Adam's first moment holds times 1 - beta_1."""
    return jax.tree.map(lambda m: np.asarray(m) / (1 - ADAM_B1), opt_state[1].mu)


def assert_trees_close(got, expected, rtol=1e-5, atol=1e-6):
    jax.tree.map(lambda g, e: np.testing.assert_allclose(g, e, rtol=rtol, atol=atol), got, expected)


# The paper in NumPy, in float64 --------------------------------------------------------------------------------------


def dense(layer, x):
    return x @ layer["kernel"] + layer["bias"]


def np_layers(torso, x):
    """Computes the hidden layers of one MLPTorso. The first is normalised if the torso has parameters for that."""
    for i in range(sum(name.startswith("Dense") for name in torso)):
        x = dense(torso[f"Dense_{i}"], x)
        if i == 0 and "LayerNorm_0" in torso:
            x = (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-6)
            x = np.tanh(x * torso["LayerNorm_0"]["scale"] + torso["LayerNorm_0"]["bias"])
        else:
            x = np.maximum(0.0, x)
    return x


def np_mu(params, s):
    params = params["params"]
    return np.tanh(dense(params["action"], np_layers(params["MLPTorso_0"], s)))


def np_Q(params, s, a):
    """Returns Q, [B, 1]. The action enters beside the observation or, if the critic has two torsos, between them."""
    params = params["params"]
    x, torsos = s, [params[name] for name in ("MLPTorso_0", "MLPTorso_1") if name in params]
    for torso in torsos[:-1]:
        x = np_layers(torso, x)
    return dense(params["value"], np_layers(torsos[-1], np.concatenate([x, a], axis=-1)))


def scaled(action):
    """Scales an action of the environment to [-1, 1]."""
    return (action.astype(np.float64) - (LOW + HIGH) / 2) / ((HIGH - LOW) / 2)


NETWORKS = pytest.mark.parametrize(
    "network", [{}, {"layer_norm": True}, {"action_layer": 2}, {"layer_norm": True, "action_layer": 2}]
)


@NETWORKS
def test_policy_gradient_is_that_of_finite_differences(network):
    agent = make(ddpg, **network)
    state = randomized(agent.init(jax.random.key(0)))
    state = state._replace(hypers=state.hypers._replace(critic_learning_rate=jnp.float32(0)))
    sample = random_sample(0)
    new, feedback = jax.jit(agent.update)(state, jax.random.key(1), sample)
    theta_Q = float64(state.params.critic)

    def loss(theta_mu):
        s = sample.steps.observation
        return -np_Q(theta_Q, s, np_mu(theta_mu, s)).mean()

    expected = finite_differences(loss, state.params.policy)
    assert max(np.abs(g).max() for g in jax.tree.leaves(expected)) > 0.05
    assert_trees_close(gradient_of(new.opt_state.policy), expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(feedback.metrics["policy_loss"], loss(float64(state.params.policy)), rtol=1e-4)


def test_policy_climbs_the_critic_of_after_its_step():
    agent = make(ddpg, critic_learning_rate=0.1)
    state = randomized(agent.init(jax.random.key(0)))
    sample = random_sample(0)
    new, _ = jax.jit(agent.update)(state, jax.random.key(1), sample)

    def loss(theta_mu):
        s = sample.steps.observation
        return -np_Q(float64(new.params.critic), s, np_mu(theta_mu, s)).mean()

    expected = finite_differences(loss, state.params.policy)
    assert_trees_close(gradient_of(new.opt_state.policy), expected, rtol=1e-3, atol=1e-5)


def np_weights(likelihood, beta, by_max=True):
    w = (1.0 / likelihood.astype(np.float64)) ** beta
    return w / w.max() if by_max else w


@NETWORKS
@pytest.mark.parametrize("replay", ["uniform", "prioritized"])
def test_critic_gradient_and_priorities_are_the_papers(replay, network):
    agent = make(ddpg, replay=replay, importance_exponent=0.4, importance_steps=100, **network)
    state = randomized(agent.init(jax.random.key(0)))._replace(step=jnp.int32(50))  # beta is 0.7 there
    sample = random_sample(1)
    new, feedback = jax.jit(agent.update)(state, jax.random.key(1), sample)
    s, a, r, discount, s_next = sample.steps
    targets = float64(state.target_params)
    y = r + discount * np_Q(targets.critic, s_next, np_mu(targets.policy, s_next))[:, 0]
    w = np_weights(sample.likelihood, 0.7) if replay == "prioritized" else np.ones_like(r)

    def loss(theta_Q):
        return np.mean(w * (y - np_Q(theta_Q, s, scaled(a))[:, 0]) ** 2)

    expected = finite_differences(loss, state.params.critic)
    assert_trees_close(gradient_of(new.opt_state.critic), expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(feedback.metrics["critic_loss"], loss(float64(state.params.critic)), rtol=1e-4)
    if replay == "prioritized":
        errors = np.abs(y - np_Q(float64(state.params.critic), s, scaled(a))[:, 0])
        np.testing.assert_allclose(feedback.priorities, errors, rtol=1e-4, atol=1e-5)
    else:
        assert feedback.priorities == ()


@OPTIONS
@pytest.mark.parametrize(("action_layer", "layer_norm"), [(1, False), (2, False), (1, True), (2, True)])
def test_the_action_enters_the_critic_at_its_layer_and_the_first_layer_is_normalised(module, action_layer, layer_norm):
    state = make(module, action_layer=action_layer, layer_norm=layer_norm).init(jax.random.key(0))
    critic, policy = state.params.critic["params"], state.params.policy["params"]
    torsos = [critic[name] for name in ("MLPTorso_0", "MLPTorso_1") if name in critic]
    inputs = [torso[name]["kernel"].shape[0] for torso in torsos for name in sorted(torso) if name.startswith("Dense")]
    assert inputs == ([3 + 2, SIZES[0]] if action_layer == 1 else [3, SIZES[0] + 2])
    normalised = ["LayerNorm_0" in torso for torso in (*torsos, policy["MLPTorso_0"])]
    assert normalised == ([layer_norm] * 2 if action_layer == 1 else [layer_norm, False, layer_norm])


@OPTIONS
def test_a_critics_weights_decay_and_no_bias_does(module):
    """The critic's gradient gains that of c / 2 |W|^2, with W its weights; the policy's gradient does not change."""
    agent, plain = make(module, critic_weight_decay=0.7), make(module)
    state = randomized(agent.init(jax.random.key(0)))
    new, _ = jax.jit(agent.update)(state, jax.random.key(1), random_sample(0))
    without, _ = jax.jit(plain.update)(
        state._replace(opt_state=plain.init(jax.random.key(0)).opt_state), jax.random.key(1), random_sample(0)
    )
    decayed = jax.tree.map(lambda w: 0.7 * np.asarray(w) * (w.ndim == 2), state.params.critic)
    expected = jax.tree.map(np.add, gradient_of(without.opt_state.critic), decayed)
    assert_trees_close(gradient_of(new.opt_state.critic), expected, rtol=1e-4, atol=1e-5)
    if module is d4pg:  # its policy climbs the critic from before the critic's step
        assert_trees_close(gradient_of(new.opt_state.policy), gradient_of(without.opt_state.policy))


# Prioritised replay --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_max", [True, False])
@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_importance_weights_are_the_formula(beta, by_max):
    likelihood = np.array([0.01, 0.5, 1.0, 7.0, 300.0], np.float32)
    got = prioritized.importance_weights(likelihood, jnp.float32(beta), by_max)
    np.testing.assert_allclose(got, np_weights(likelihood, beta, by_max), rtol=1e-5)


def test_importance_weights_do_not_overflow():
    got = prioritized.importance_weights(np.array([1e-30, 1e30], np.float32), jnp.float32(1.0))
    np.testing.assert_array_equal(got, [1.0, 0.0])


def test_importance_weights_undo_the_sampling():
    """At beta = 1, and without the division by the largest weight, E_P[w f] is the mean of f."""
    rng = np.random.default_rng(0)
    P = rng.dirichlet(np.ones(6))
    f = rng.normal(size=6)
    w = prioritized.importance_weights((6 * P).astype(np.float32), jnp.float32(1.0), normalize=False)
    np.testing.assert_allclose(np.sum(P * w * f), f.mean(), rtol=1e-5)


@pytest.mark.parametrize(("step", "beta"), [(0, 0.4), (50, 0.7), (100, 1.0), (1000, 1.0)])
def test_importance_exponent_rises_to_1(step, beta):
    np.testing.assert_allclose(prioritized.exponent(0.4, 100, jnp.int32(step)), beta, rtol=1e-6)
    np.testing.assert_allclose(prioritized.exponent(0.4, 0, jnp.int32(step)), 0.4, rtol=1e-6)


@LEARNERS
def test_new_items_get_the_largest_priority_so_far(module):
    agent = make(module, replay="prioritized")
    state = randomized(agent.init(jax.random.key(0)))
    update = jax.jit(agent.update)
    largest = 1.0
    np.testing.assert_array_equal(agent.priority(agent.policy(state), random_transitions(0)), np.full(8, 1.0))
    for seed, scale in enumerate([0.1, 30.0, 0.1]):
        sample = random_sample(seed)
        sample = sample._replace(steps=sample.steps._replace(reward=scale * sample.steps.reward))
        state, feedback = update(state, jax.random.key(seed), sample)
        assert feedback.priorities.shape == (8,) and (feedback.priorities > 0).all()
        largest = max(largest, float(feedback.priorities.max()))
        priorities = agent.priority(agent.policy(state), random_transitions(0, B=5))
        np.testing.assert_allclose(priorities, np.full(5, largest), rtol=1e-6)
    assert largest > 1.0


@LEARNERS
def test_uniform_replay_has_no_priorities(module):
    agent = make(module)
    assert agent.priority is None
    _, feedback = jax.jit(agent.update)(agent.init(jax.random.key(0)), jax.random.key(0), random_sample(0))
    assert feedback.priorities == ()


# Targets and steps ---------------------------------------------------------------------------------------------------


@AGENTS
def test_targets_start_as_copies(module):
    state = make(module).init(jax.random.key(3))
    jax.tree.map(np.testing.assert_array_equal, state.target_params, state.params)
    pointers = [{x.unsafe_buffer_pointer() for x in jax.tree.leaves(t)} for t in (state.params, state.target_params)]
    assert not pointers[0] & pointers[1], "shared buffers could not be donated"


@LEARNERS
@pytest.mark.parametrize("tau", [0.005, 0.3])
def test_soft_targets(module, tau):
    """Targets move by the state's tau, which a population may tune, not by the config's."""
    agent = make(module, tau=0.77, target_period=1)
    state = randomized(agent.init(jax.random.key(0)))
    state = state._replace(hypers=state.hypers._replace(tau=jnp.float32(tau)))
    update = jax.jit(agent.update)
    for seed in range(3):
        old = state
        state, _ = update(state, jax.random.key(seed), random_sample(seed))
        expected = jax.tree.map(
            lambda target, new: (1 - tau) * target + tau * new, float64(old.target_params), float64(state.params)
        )
        assert_trees_close(state.target_params, expected, rtol=1e-6, atol=1e-6)


@LEARNERS
@pytest.mark.parametrize("network", ["policy", "critic"])
def test_learning_rates_are_the_states(module, network):
    """Adam's first step has the learning rate's size, and each network has a learning rate of its own."""
    agent = make(module)
    state = randomized(agent.init(jax.random.key(0)))
    rates = {"policy_learning_rate": 0.0, "critic_learning_rate": 0.0, f"{network}_learning_rate": 0.25}
    state = state._replace(hypers=state.hypers._replace(**{k: jnp.float32(v) for k, v in rates.items()}))
    new, _ = jax.jit(agent.update)(state, jax.random.key(0), random_sample(0))
    moved = jax.tree.map(lambda a, b: np.abs(np.asarray(a - b)).max(), new.params, state.params)
    other = "critic" if network == "policy" else "policy"
    np.testing.assert_allclose(max(jax.tree.leaves(getattr(moved, network))), 0.25, rtol=1e-2)
    assert max(jax.tree.leaves(getattr(moved, other))) == 0.0


@OPTIONS
def test_gradient_norms_are_clipped(module):
    free, clipped = make(module), make(module, max_gradient_norm=1e-3)
    state = randomized(free.init(jax.random.key(0)))
    rates = {"policy_learning_rate": jnp.float32(0), "critic_learning_rate": jnp.float32(0)}
    state = state._replace(hypers=state.hypers._replace(**rates))
    a, _ = jax.jit(free.update)(state, jax.random.key(0), random_sample(0))
    b, _ = jax.jit(clipped.update)(state, jax.random.key(0), random_sample(0))
    for network in ("policy", "critic"):
        whole, cut = (gradient_of(getattr(s.opt_state, network)) for s in (a, b))
        norm = np.sqrt(sum(np.sum(g**2) for g in jax.tree.leaves(whole)))
        assert norm > 1e-2
        expected = jax.tree.map(lambda g, norm=norm: g * 1e-3 / norm, whole)
        assert_trees_close(cut, expected, rtol=1e-3, atol=1e-8)


@LEARNERS
def test_two_shards_are_one_batch(module):
    agent = make(module, replay="prioritized", normalize_observations=True, normalize_weights=True)
    state = randomized(agent.init(jax.random.key(0)))
    sample = random_sample(5)
    key = jax.random.key(1)
    whole, feedback = jax.jit(agent.update)(state, key, sample)
    halves = jax.tree.map(lambda x: x.reshape(2, -1, *x.shape[1:]), sample)
    update = jax.jit(jax.vmap(agent.update, in_axes=(None, None, 0), axis_name=AXIS))
    shards, shard_feedback = update(state, key, halves)
    for i in range(2):
        shard = jax.tree.map(lambda x: x[i], shards)  # noqa: B023
        # Adam turns even a rounding error in a gradient into a whole step, so gradients are compared.
        for network in ("policy", "critic"):
            assert_trees_close(
                gradient_of(getattr(shard.opt_state, network)),
                gradient_of(getattr(whole.opt_state, network)),
                rtol=1e-3,
                atol=1e-4,
            )
        assert_trees_close(shard.normalizer, whole.normalizer)
        assert_trees_close(shard.max_priority, whole.max_priority, rtol=1e-4)
        assert_trees_close(jax.tree.map(lambda x: x[i], shard_feedback.metrics), feedback.metrics, rtol=1e-3, atol=1e-4)  # noqa: B023
    np.testing.assert_allclose(shard_feedback.priorities.reshape(-1), feedback.priorities, rtol=1e-3, atol=1e-5)
    moved = jax.tree.map(lambda x: np.abs(np.asarray(x[0] - x[1])).max(), shards.params)
    assert max(jax.tree.leaves(moved)) == 0.0, "devices must not drift apart"


# Actions and noise ---------------------------------------------------------------------------------------------------


@AGENTS
@pytest.mark.parametrize("noise", ["gaussian", "ou"])
def test_actions_lie_within_the_bounds(module, noise):
    agent = make(module, noise=noise, noise_scale=1.0)
    params = agent.policy(agent.init(jax.random.key(0)))
    rng = np.random.default_rng(0)
    action, extras, _ = jax.jit(agent.act)(
        params, jax.random.key(0), timestep(rng.normal(size=(500, 3)), True), agent.memory(500)
    )
    assert action.shape == (500, 2) and action.dtype == jnp.float32 and extras == {}
    np.testing.assert_array_equal(action.min(axis=0), LOW)  # noise as large as half the range reaches both ends
    np.testing.assert_array_equal(action.max(axis=0), HIGH)


@AGENTS
def test_noise_is_in_halves_of_the_range(module):
    agent = make(module, noise_scale=0.2)
    params = agent.policy(agent.init(jax.random.key(0)))
    step = timestep(np.zeros((20_000, 3)), True)
    noisy, _, _ = jax.jit(agent.act)(params, jax.random.key(0), step, agent.memory(20_000))
    greedy, _, _ = jax.jit(agent.act_greedily)(params, jax.random.key(0), step, agent.memory(20_000))
    np.testing.assert_allclose(np.std(noisy - greedy, axis=0), 0.2 * (HIGH - LOW) / 2, rtol=0.03)
    np.testing.assert_allclose(greedy, np.broadcast_to((LOW + HIGH) / 2, greedy.shape), atol=0.02)


@AGENTS
def test_actions_are_uniform_until_the_first_update(module):
    agent, plain = make(module, random_start=True, noise_scale=0.0), make(module, noise_scale=0.0)
    state = agent.init(jax.random.key(0))
    step, key = timestep(np.zeros((20_000, 3)), True), jax.random.key(0)
    action, _, _ = jax.jit(agent.act)(agent.policy(state), key, step, agent.memory(20_000))
    cells = np.histogram2d(*scaled(np.asarray(action)).T, bins=4, range=[(-1, 1), (-1, 1)])[0]
    np.testing.assert_allclose(cells, 20_000 / 16, rtol=0.15)
    after, _ = jax.jit(agent.update)(state, key, random_sample(0))
    for act in ("act", "act_greedily"):
        played, _, _ = getattr(agent, act)(agent.policy(after), key, step, agent.memory(20_000))
        expected, _, _ = getattr(plain, act)(plain.policy(after), key, step, plain.memory(20_000))
        np.testing.assert_array_equal(played, expected)


@AGENTS
def test_greedy_actions_are_the_networks(module):
    agent = make(module)
    state = randomized(agent.init(jax.random.key(0)))
    observation = np.random.default_rng(0).normal(size=(6, 3))
    action, _, _ = agent.act_greedily(agent.policy(state), jax.random.key(0), timestep(observation), agent.memory(6))
    expected = (LOW + HIGH) / 2 + (HIGH - LOW) / 2 * np_mu(float64(state.params.policy), observation)
    np.testing.assert_allclose(action, expected, rtol=1e-4, atol=1e-4)


def test_noise_scale_is_the_states():
    agent = make(ddpg, noise_scale=0.5)
    state = agent.init(jax.random.key(0))
    quiet = agent.policy(state._replace(hypers=state.hypers._replace(noise_scale=jnp.float32(0))))
    step = timestep(np.ones((4, 3)))
    noiseless, _, _ = agent.act(quiet, jax.random.key(0), step, agent.memory(4))
    greedy, _, _ = agent.act_greedily(agent.policy(state), jax.random.key(0), step, agent.memory(4))
    np.testing.assert_array_equal(noiseless, greedy)


def test_bounds_and_back():
    bounds = BoundedActions(LOW, HIGH)
    x = np.random.default_rng(0).uniform(-1, 1, (50, 2))
    np.testing.assert_allclose(from_bounds(bounds, to_bounds(bounds, x)), x, atol=1e-6)
    np.testing.assert_array_equal(to_bounds(bounds, np.array([[-1.0, -1.0], [1.0, 1.0]])), [LOW, HIGH])
    np.testing.assert_array_equal(to_bounds(bounds, np.array([[-9.0, 9.0]])), [[LOW[0], HIGH[1]]])


@pytest.mark.parametrize(("theta", "dt"), [(0.15, 1.0), (0.5, 0.1)])
def test_ornstein_uhlenbeck_statistics(theta, dt):
    B, steps = 4000, 200
    noise = Noise("ou", (2,), theta, dt)

    def step(memory, key):
        x, memory = noise.sample(key, memory, jnp.zeros(B, bool))
        return memory, x

    _, x = jax.lax.scan(step, noise.memory(B), jax.random.split(jax.random.key(0), steps))
    kept = 1 - theta * dt
    variance = [dt * sum(kept ** (2 * j) for j in range(k + 1)) for k in range(steps)]  # Var x_{k+1}, from x_0 = 0
    for k in (0, 1, 10, steps - 1):
        np.testing.assert_allclose(np.var(x[k], axis=0), variance[k], rtol=0.1)
        np.testing.assert_allclose(np.mean(x[k], axis=0), 0.0, atol=5 * np.sqrt(variance[k] / B))
    covariance = np.mean(np.asarray(x[-1] * x[-6]), axis=0)
    np.testing.assert_allclose(covariance, kept**5 * variance[-6], rtol=0.1, atol=0.05 * variance[-6])


def test_ornstein_uhlenbeck_resets_where_an_episode_opens():
    agent = make(ddpg, noise="ou", noise_scale=0.1)
    params = agent.policy(agent.init(jax.random.key(0)))
    observation = np.zeros((2, 3))
    carried = agent.memory(2)._replace(noise=jnp.full((2, 2), 100.0))
    fresh, key = agent.memory(2), jax.random.key(7)
    after_reset, _, memory = agent.act(params, key, timestep(observation, np.array([True, False])), carried)
    from_zero, _, zero_memory = agent.act(params, key, timestep(observation), fresh)
    np.testing.assert_array_equal(after_reset[0], from_zero[0])
    np.testing.assert_array_equal(memory.noise[0], zero_memory.noise[0])
    np.testing.assert_array_equal(after_reset[1], HIGH)  # the second environment's noise goes on from 100
    np.testing.assert_allclose(memory.noise[1], 85.0, atol=5.0)


# Normalised observations ---------------------------------------------------------------------------------------------


def test_normalizer_holds_all_datas_mean_and_variance():
    rng = np.random.default_rng(0)
    batches = [rng.normal([1000.0, 0.0, -3.0], [0.1, 1.0, 50.0], (size, 3)) for size in (5, 1, 64, 200)]
    statistics = normalizer.init((3,))
    for k, batch in enumerate(batches):
        statistics = jax.jit(normalizer.update)(statistics, batch)
        seen = np.concatenate(batches[: k + 1])
        np.testing.assert_allclose(statistics.mean, seen.mean(axis=0), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(statistics.variance, seen.var(axis=0), rtol=2e-2, atol=1e-6)
    assert statistics.count == 270
    x = normalizer.apply(statistics, batches[-1])
    np.testing.assert_allclose(x.mean(axis=0), 0.0, atol=0.3)
    np.testing.assert_allclose(x.std(axis=0), 1.0, rtol=0.2)


@pytest.mark.parametrize("devices", [(1,), (2,), (8,), (1, 8), (8, 1), (2, 8, 1)])
def test_normalizer_over_shards_is_that_of_all_data(devices):
    """This holds also where a run goes on with another number of devices."""
    rng = np.random.default_rng(0)
    data = rng.normal(2.0, 3.0, (6, 32, 3)) + np.arange(6)[:, None, None]  # later batches have other means
    statistics = normalizer.init((3,))
    for number, batch in enumerate(data):
        n = devices[number * len(devices) // len(data)]
        replicas = jax.tree.map(lambda x, n=n: jnp.stack([x] * n), statistics)
        shards = jax.vmap(normalizer.update, axis_name=AXIS)(replicas, batch.reshape(n, -1, 3))
        jax.tree.map(lambda x: np.testing.assert_array_equal(x, x[:1].repeat(len(x), 0)), shards)
        statistics = jax.tree.map(lambda x: x[0], shards)
    assert statistics.count == 6 * 32
    np.testing.assert_allclose(statistics.mean, data.reshape(-1, 3).mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(statistics.variance, data.reshape(-1, 3).var(axis=0), rtol=1e-5)


def test_normalizer_limits_and_constants():
    statistics = normalizer.update(normalizer.init((2,)), np.array([[1.0, 7.0], [3.0, 7.0]]))
    x = normalizer.apply(statistics, np.array([[2.0, 7.0], [1e9, 8.0], [-1e9, 6.0]]))
    np.testing.assert_allclose(x, [[0.0, 0.0], [10.0, 10.0], [-10.0, -10.0]], atol=1e-4)
    unseen = normalizer.apply(normalizer.init((2,)), np.array([[2.0, -7.0]]))
    np.testing.assert_allclose(unseen, [[2.0, -7.0]], rtol=1e-6)


@AGENTS
def test_actors_normalise_as_the_learner(module):
    plain, agent = make(module), make(module, normalize_observations=True)
    state = randomized(agent.init(jax.random.key(0)))
    sample = random_sample(0)
    steps = sample.steps._replace(observation=5.0 + 3.0 * sample.steps.observation)
    state, _ = jax.jit(agent.update)(state, jax.random.key(0), sample._replace(steps=steps))
    mean, std = steps.observation.mean(axis=0), steps.observation.std(axis=0)
    np.testing.assert_allclose(state.normalizer.mean, mean, rtol=1e-4)
    observation = steps.next_observation
    got, _, _ = agent.act_greedily(agent.policy(state), jax.random.key(0), timestep(observation), agent.memory(8))
    expected, _, _ = plain.act_greedily(
        plain.policy(state._replace(normalizer=())),
        jax.random.key(0),
        timestep((observation - mean) / std),
        plain.memory(8),
    )
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


@LEARNERS
def test_updates_normalise_every_observation(module):
    """An update on raw observations equals the plain agent's on the same observations with mean 0 and variance 1."""
    plain, agent = make(module), make(module, normalize_observations=True)
    state = randomized(agent.init(jax.random.key(0)))
    sample = random_sample(0)
    raw = sample.steps._replace(
        observation=5 + 3 * sample.steps.observation, next_observation=5 + 3 * sample.steps.next_observation
    )
    mean, std = raw.observation.mean(axis=0), raw.observation.std(axis=0)
    ready = raw._replace(
        observation=(raw.observation - mean) / std, next_observation=(raw.next_observation - mean) / std
    )
    _, got = jax.jit(agent.update)(state, jax.random.key(0), sample._replace(steps=raw))
    _, expected = jax.jit(plain.update)(state._replace(normalizer=()), jax.random.key(0), sample._replace(steps=ready))
    assert_trees_close(got.metrics, expected.metrics, rtol=1e-3, atol=1e-4)


# Settings ------------------------------------------------------------------------------------------------------------


@AGENTS
def test_discrete_actions_are_refused(module):
    spec = EnvironmentSpec((3,), np.dtype(np.float32), DiscreteActions(4))
    name = module.__name__.split(".")[-1]
    with pytest.raises(ValueError, match=f"^{name} needs continuous actions; this environment's are discrete; use "):
        module.make(module.Config(), spec)


@AGENTS
def test_unbounded_actions_are_refused(module):
    spec = EnvironmentSpec((3,), np.dtype(np.float32), BoundedActions(np.array([-np.inf]), np.array([1.0])))
    with pytest.raises(ValueError, match="finite bounds"):
        module.make(module.Config(), spec)


@SETTINGS
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tau", 1.5),
        ("discount", -0.1),
        ("n_step", 0),
        ("critic_learning_rate", 0.0),
        ("noise_scale", -0.1),
        ("importance_exponent", 1.1),
        ("max_gradient_norm", -1.0),
        ("critic_weight_decay", -1.0),
        ("action_layer", 0),
        ("action_layer", 3),
        ("min_replay_size", 10_000_000),
    ],
)
def test_settings_out_of_range_are_refused(module, field, value):
    with pytest.raises(ValueError, match=f"config.{field}"):
        module.Config(**{field: value})


@LEARNERS
@pytest.mark.parametrize("replay", ["uniform", "prioritized"])
def test_table(module, replay):
    settings = {"replay_size": 500, "min_replay_size": 20, "samples_per_insert": 8.0, "priority_exponent": 0.7}
    agent = make(module, replay=replay, n_step=3, discount=0.9, batch_size=16, **settings)
    table = agent.table
    assert table.items == Transitions(3, 0.9) and table.kind == replay and agent.batch_size == 16
    assert (table.max_size, table.min_size) == (500, 20)
    assert (table.samples_per_insert, table.priority_exponent) == (8.0, 0.7)


# Learning ------------------------------------------------------------------------------------------------------------


@AGENTS
def test_learns_a_bandit(module):
    """Episodes have one step. The reward is -|a - a*|^2 in units of half the range, where a* is linear in the
    observation."""
    agent = make(
        module, hidden_sizes=(64,), policy_learning_rate=2e-3, critic_learning_rate=5e-3, tau=0.05, target_period=1
    )
    rng = np.random.default_rng(0)
    M = rng.uniform(-0.5, 0.5, (3, 2))
    updates, B = 600, 64
    s = rng.uniform(-1, 1, (updates, B, 3)).astype(np.float32)
    a = rng.uniform(-1, 1, (updates, B, 2)).astype(np.float32)
    reward = -np.sum((a - s @ M) ** 2, axis=-1).astype(np.float32)
    ones = np.ones((updates, B), np.float32)
    transitions = Transition(s, to_bounds(SPEC.actions, a), reward, 0 * ones, s)

    def learn(state, row):
        transition, likelihood, key = row
        state, feedback = agent.update(state, key, Sample(transition, (), likelihood))
        return state, feedback.metrics["critic_loss"]

    keys = jax.random.split(jax.random.key(1), updates)
    state = agent.init(jax.random.key(0))

    def regret(state):
        action, _, _ = agent.act_greedily(agent.policy(state), keys[0], timestep(s[0]), agent.memory(B))
        return np.mean((scaled(np.asarray(action)) - s[0] @ M) ** 2)

    before = regret(state)
    state, losses = jax.jit(lambda s, r: jax.lax.scan(learn, s, r))(state, (transitions, ones, keys))
    assert np.mean(losses[-20:]) < np.mean(losses[:20])
    assert regret(state) < 0.15 * before, (before, regret(state))
