"""DQN and its improvements against their papers (agents/dqn.py names them), and what Ape-X DQN shares with it."""

import dataclasses
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents import apex_dqn, dqn
from agents.agent import (
    AXIS,
    BoundedActions,
    DiscreteActions,
    EnvironmentSpec,
    Sample,
    Stacks,
    Transition,
    Transitions,
)
from agents.parts.action_values import Hypers
from agents.parts.exploration import epsilon_greedy, epsilon_greedy_probabilities, linear_epsilon
from agents.parts.networks import QNetwork
from tests.agents.transitions import (
    FRAMES,
    SMALL,
    SPEC,
    A,
    assert_trees_close,
    finite_differences,
    float64,
    gradient_of,
    np_huber,
    random_sample,
    random_transition,
    randomized,
    stacked_sample,
    timestep,
)
from tests.agents.transitions import make as make_small

AGENTS = pytest.mark.parametrize("module", [dqn, apex_dqn], ids=lambda m: m.__name__.split(".")[-1])


def make(module: ModuleType = dqn, **fields):
    return make_small(module, **fields)


# The papers in NumPy, in float64 -------------------------------------------------------------------------------------


def np_Q(theta, phi):
    """Returns Q(phi, .; theta), [A], for one observation."""
    layers = theta["params"]

    def dense(layer, x):
        return x @ layer["kernel"] + layer["bias"]

    x = np.maximum(0.0, dense(layers["MLPTorso_0"]["Dense_0"], phi.astype(np.float64)))
    advantages = dense(layers["advantage"], x)
    if "value" not in layers:
        return advantages
    return dense(layers["value"], x) + advantages - advantages.mean()  # Wang et al. 2016, eq. 9


def np_target(theta, target_theta, j: int, transition: Transition, double: bool) -> float:
    """Returns y_j. The transition's discount is gamma^n, or 0 where phi_{j+1} is terminal."""
    _, _, reward, discount, next_observation = transition
    target_Q = np_Q(target_theta, next_observation[j])
    best = np.argmax(np_Q(theta, next_observation[j])) if double else np.argmax(target_Q)
    return reward[j] + discount[j] * target_Q[best]


@pytest.mark.parametrize(
    ("double", "dueling", "loss", "replay"),
    [
        (False, False, "squared", "uniform"),  # 2013
        (False, False, "huber", "uniform"),  # 2015
        (True, False, "huber", "uniform"),
        (False, True, "squared", "uniform"),
        (True, False, "huber", "prioritized"),
        (True, True, "squared", "prioritized"),
    ],
)
def test_update_is_the_papers_loop(double, dueling, loss, replay):
    beta = {"importance_exponent": 0.4, "importance_steps": 100}
    agent = make(double=double, dueling=dueling, loss=loss, replay=replay, **beta)
    state = randomized(agent.init(jax.random.key(0)))._replace(step=jnp.int32(50))  # beta is 0.7 there
    sample = random_sample(1)
    new, feedback = jax.jit(agent.update)(state, jax.random.key(1), sample)
    theta, target_theta, transition = float64(state.params), float64(state.target_params), sample.steps
    B = len(transition.reward)
    y = [np_target(theta, target_theta, j, transition, double) for j in range(B)]
    weights = np.ones(B)
    if replay == "prioritized":
        weights = (1 / sample.likelihood.astype(np.float64)) ** 0.7
        weights /= weights.max()

    def errors(theta):
        return [y[j] - np_Q(theta, transition.observation[j])[transition.action[j]] for j in range(B)]

    def total(theta):
        losses = [np_huber(e) if loss == "huber" else 0.5 * e**2 for e in errors(theta)]
        return sum(w * x for w, x in zip(weights, losses)) / B

    assert min(np.abs(errors(theta))) < 1 < max(np.abs(errors(theta)))  # both branches of Huber's loss occur
    expected = finite_differences(total, state.params)
    assert max(np.abs(g).max() for g in jax.tree.leaves(expected)) > 0.1
    assert_trees_close(gradient_of(new.opt_state), expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(feedback.metrics["loss"], total(theta), rtol=1e-4)
    np.testing.assert_allclose(feedback.metrics["td_error"], np.mean(np.abs(errors(theta))), rtol=1e-4)
    np.testing.assert_allclose(feedback.metrics["importance_weight"], weights.mean(), rtol=1e-4)
    norm = np.sqrt(sum(np.sum(g**2) for g in jax.tree.leaves(expected)))
    np.testing.assert_allclose(feedback.metrics["gradient_norm"], norm, rtol=1e-3)
    chosen = [np_Q(theta, transition.observation[j])[transition.action[j]] for j in range(B)]
    np.testing.assert_allclose(feedback.metrics["value"], np.mean(chosen), rtol=1e-4)
    if replay == "prioritized":
        np.testing.assert_allclose(feedback.priorities, np.abs(errors(theta)) + 1e-6, rtol=1e-4)
    else:
        assert feedback.priorities == ()


def test_double_matters_and_equals_plain_where_both_parameters_agree():
    plain, double = make(), make(double=True)
    state, sample = randomized(plain.init(jax.random.key(0))), random_sample(0)
    update = [jax.jit(agent.update) for agent in (plain, double)]
    apart = [u(state, jax.random.key(0), sample)[1].metrics["loss"] for u in update]
    assert apart[0] != apart[1]
    state = state._replace(target_params=state.params)
    (a, _), (b, _) = (u(state, jax.random.key(0), sample) for u in update)
    assert_trees_close(a.params, b.params)


def test_hubers_gradient_is_the_error_clipped_at_1():
    """As in the Methods of Mnih et al. 2015, this is the gradient of each transition's loss with respect to Q(s, a)."""
    agent = make(hidden_sizes=())
    state = agent.init(jax.random.key(0))
    state = state._replace(params=jax.tree.map(jnp.zeros_like, state.params))
    for reward in (-30.0, -1.5, -0.5, 0.0, 0.3, 1.0, 1e4):
        transition = random_transition(0, B=1)._replace(
            reward=np.float32([reward]), discount=np.zeros(1, np.float32), action=np.int32([1])
        )
        new, _ = jax.jit(agent.update)(state, jax.random.key(0), Sample(transition))
        bias = gradient_of(new.opt_state)["params"]["advantage"]["bias"]
        np.testing.assert_allclose(bias, [0, -np.clip(reward, -1, 1), 0], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("normalize", [True, False])
def test_without_a_beta_all_weights_are_1(normalize):
    options = {"importance_exponent": 0.0, "importance_steps": 0, "normalize_weights": normalize}
    weighted, plain = make(replay="prioritized", **options), make()
    state, sample = randomized(plain.init(jax.random.key(0))), random_sample(0)
    (a, feedback), (b, _) = (jax.jit(g.update)(state, jax.random.key(0), sample) for g in (weighted, plain))
    assert_trees_close(a.params, b.params)
    assert feedback.metrics["importance_weight"] == 1.0


def test_new_items_get_the_largest_priority_so_far():
    agent = make(replay="prioritized")
    state = randomized(agent.init(jax.random.key(0)))
    update, largest = jax.jit(agent.update), 1.0
    np.testing.assert_array_equal(agent.priority(agent.policy(state), random_transition(0)), np.ones(8))
    for seed, scale in enumerate([0.1, 30.0, 0.1]):
        sample = random_sample(seed)
        sample = sample._replace(steps=sample.steps._replace(reward=scale * sample.steps.reward))
        state, feedback = update(state, jax.random.key(seed), sample)
        largest = max(largest, float(feedback.priorities.max()))
        priorities = agent.priority(agent.policy(state), random_transition(0, B=5))
        np.testing.assert_allclose(priorities, np.full(5, largest), rtol=1e-6)
    assert largest > 10.0


def test_uniform_replay_has_no_priorities():
    assert make().priority is None


# Optimiser, targets, hypers ------------------------------------------------------------------------------------------


def test_rmsprop_is_centred_and_has_its_epsilon_inside_the_root():
    """This is RMSProp as the 2015 paper used it: Graves 2013 (arxiv.org/abs/1308.0850), eqs. 38 to 41, without
    momentum."""
    decay, epsilon, rate = 0.8, 0.05, 0.5
    options = {"optimizer": "rmsprop", "rmsprop_decay": decay, "optimizer_epsilon": epsilon, "learning_rate": rate}
    agent, adam = make(**options), make()
    state = randomized(agent.init(jax.random.key(0)))
    n = g = jax.tree.map(np.zeros_like, float64(state.params))
    for seed in range(3):
        probe = adam.init(jax.random.key(0))._replace(params=state.params, target_params=state.target_params)
        gradient = gradient_of(jax.jit(adam.update)(probe, jax.random.key(0), random_sample(seed))[0].opt_state)
        n = jax.tree.map(lambda n, x: decay * n + (1 - decay) * x**2, n, gradient)
        g = jax.tree.map(lambda g, x: decay * g + (1 - decay) * x, g, gradient)
        expected = jax.tree.map(
            lambda p, x, n, g: p - rate * x / np.sqrt(n - g**2 + epsilon), float64(state.params), gradient, n, g
        )
        state, _ = jax.jit(agent.update)(state, jax.random.key(0), random_sample(seed))
        assert_trees_close(state.params, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("papers_epsilon", [0.01, 0.01 / 4**2])
def test_a_step_is_that_of_the_published_code_which_sums_over_the_minibatch(papers_epsilon):
    """The published code's epsilon of 0.01 is for gradients summed over a minibatch of 32; the default is for their
    mean, so it is 0.01 / 32^2. On minibatches of 8 the default makes the published code's steps with 0.01 / 4^2."""
    assert dqn.Config().optimizer_epsilon == 0.01 / dqn.Config().batch_size ** 2
    batch = random_sample(0).steps.reward.shape[0]
    decay, rate = 0.95, 2.5e-4
    options = {"optimizer": "rmsprop", "rmsprop_decay": decay, "learning_rate": rate}
    agent, adam = make(**options, optimizer_epsilon=papers_epsilon / batch**2), make()
    state = randomized(agent.init(jax.random.key(0)))
    n = g = jax.tree.map(np.zeros_like, float64(state.params))
    for seed in range(3):
        probe = adam.init(jax.random.key(0))._replace(params=state.params, target_params=state.target_params)
        mean = gradient_of(jax.jit(adam.update)(probe, jax.random.key(0), random_sample(seed))[0].opt_state)
        total = jax.tree.map(lambda x: batch * x, mean)
        n = jax.tree.map(lambda n, x: decay * n + (1 - decay) * x**2, n, total)
        g = jax.tree.map(lambda g, x: decay * g + (1 - decay) * x, g, total)
        step = jax.tree.map(lambda x, n, g: rate * x / np.sqrt(n - g**2 + papers_epsilon), total, n, g)
        before = float64(state.params)
        state, _ = jax.jit(agent.update)(state, jax.random.key(0), random_sample(seed))
        assert_trees_close(jax.tree.map(np.subtract, before, float64(state.params)), step, rtol=1e-2, atol=1e-6)


def test_gradients_norm_is_clipped():
    free, clipped = make(), make(max_gradient_norm=1e-3)
    state = randomized(free.init(jax.random.key(0)))
    whole, cut = (
        gradient_of(jax.jit(agent.update)(state, jax.random.key(0), random_sample(0))[0].opt_state)
        for agent in (free, clipped)
    )
    norm = np.sqrt(sum(np.sum(g**2) for g in jax.tree.leaves(whole)))
    assert norm > 1e-2
    assert_trees_close(cut, jax.tree.map(lambda g: g * 1e-3 / norm, whole), rtol=1e-3, atol=1e-8)


@AGENTS
def test_targets_are_copied_every_period_and_start_as_copies(module):
    agent = make(module, target_period=3, learning_rate=0.1)
    state = agent.init(jax.random.key(3))
    jax.tree.map(np.testing.assert_array_equal, state.target_params, state.params)
    pointers = [{x.unsafe_buffer_pointer() for x in jax.tree.leaves(t)} for t in (state.params, state.target_params)]
    assert not pointers[0] & pointers[1], "shared buffers could not be donated"
    state = randomized(state)
    targets, update = state.target_params, jax.jit(agent.update)
    for step in range(1, 8):
        before = state.params
        state, _ = update(state, jax.random.key(step), random_sample(step))
        assert any((a != b).any() for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(state.params)))
        if step % 3 == 0:
            targets = state.params
        jax.tree.map(np.testing.assert_array_equal, state.target_params, targets)
    assert int(state.step) == 7


def test_hypers_are_the_states():
    agent = make()
    state = randomized(agent.init(jax.random.key(0)))
    hypers = Hypers(jnp.float32(0.25), jnp.float32(0.9), jnp.float32(0.5))
    state = state._replace(hypers=hypers, step=jnp.int32(125_000))
    new, feedback = jax.jit(agent.update)(state, jax.random.key(0), random_sample(0))
    moved = jax.tree.map(lambda a, b: np.abs(np.asarray(a - b)).max(), new.params, state.params)
    np.testing.assert_allclose(max(jax.tree.leaves(moved)), 0.25, rtol=1e-2)  # Adam's first step
    np.testing.assert_allclose(feedback.metrics["epsilon"], 0.7, rtol=1e-5)
    np.testing.assert_allclose(agent.policy(state).epsilon, 0.7, rtol=1e-5)


def test_two_shards_are_one_batch():
    agent = make(replay="prioritized", double=True, dueling=True)
    state, sample = randomized(agent.init(jax.random.key(0))), random_sample(5)
    whole, feedback = jax.jit(agent.update)(state, jax.random.key(1), sample)
    halves = jax.tree.map(lambda x: x.reshape(2, -1, *x.shape[1:]), sample)
    update = jax.jit(jax.vmap(agent.update, in_axes=(None, None, 0), axis_name=AXIS))
    shards, shard_feedback = update(state, jax.random.key(1), halves)
    for i in range(2):
        shard = jax.tree.map(lambda x, i=i: x[i], shards)
        assert_trees_close(gradient_of(shard.opt_state), gradient_of(whole.opt_state), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(shard.max_priority, whole.max_priority, rtol=1e-6)
        metrics = {name: x[i] for name, x in shard_feedback.metrics.items()}
        assert_trees_close(metrics, feedback.metrics, rtol=1e-4)
    np.testing.assert_allclose(shard_feedback.priorities.reshape(-1), feedback.priorities, rtol=1e-5)


@AGENTS
def test_an_update_is_traced_once(module):
    agent = make(module)
    update, state = jax.jit(agent.update), agent.init(jax.random.key(0))
    for i in range(3):
        state, _ = update(state, jax.random.key(i), random_sample(i))
    assert update._cache_size() == 1


# Frames --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stack", [1, 3])
def test_stacked_observations_equal_channels_moved_by_hand(stack):
    """An item's frames are [B, S, H, W]; the network has channels last."""
    fields = {"torso": "shallow", "frame_stack": stack, "min_replay_size": 10, "loss": "squared", "double": True}
    agent = dqn.make(dqn.Config(**fields), FRAMES)
    state, sample = agent.init(jax.random.key(0)), stacked_sample(stack)
    state = state._replace(target_params=jax.tree.map(lambda x: x * 0.7 + 0.01, state.params))
    _, feedback = jax.jit(agent.update)(state, jax.random.key(0), sample)
    network = QNetwork("shallow", A)

    def Q(params, frames):
        moved = np.stack([frames[:, s] for s in range(stack)], axis=-1) if stack > 1 else frames[..., None]
        return np.asarray(network.apply(params, moved[None], np.zeros((1, len(frames)), bool), ())[0][0])

    t, rows = sample.steps, np.arange(4)
    best = Q(state.params, t.next_observation).argmax(axis=-1)
    y = t.reward + t.discount * Q(state.target_params, t.next_observation)[rows, best]
    values = Q(state.params, t.observation)[rows, t.action]
    np.testing.assert_allclose(feedback.metrics["value"], values.mean(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(feedback.metrics["loss"], 0.5 * np.mean((y - values) ** 2), rtol=1e-4)
    assert agent.table.items == (Transitions(1, 0.99) if stack == 1 else Stacks(1, 0.99, stack))


@pytest.mark.parametrize("stack", [1, 3])
def test_acting_stacks_the_episodes_newest_frames(stack):
    agent = dqn.make(dqn.Config(torso="shallow", frame_stack=stack, epsilon_final=0.0, epsilon_steps=0), FRAMES)
    state = agent.init(jax.random.key(0))
    params, network, rng, B = agent.policy(state), QNetwork("shallow", A), np.random.default_rng(0), 16
    memory, act = agent.memory(B), jax.jit(agent.act)
    history: list[list[np.ndarray]] = [[] for _ in range(B)]
    for t in range(6):
        frames = rng.integers(0, 256, (B, *FRAMES.observation_shape), dtype=np.uint8)
        first = np.ones(B, bool) if t == 0 else rng.random(B) < 0.3
        history = [[frames[b]] * stack if first[b] else [*history[b], frames[b]][-stack:] for b in range(B)]
        seen = np.stack([np.stack(h, axis=-1) for h in history])
        values = network.apply(state.params, seen[None], first[None], ())[0][0]
        action, extras, memory = act(params, jax.random.key(t), timestep(frames)._replace(first=first), memory)
        np.testing.assert_array_equal(action, np.argmax(values, axis=-1))
        assert extras == {}
    assert len(np.unique(action)) > 1
    assert (memory.frames is None) == (stack == 1)


# Epsilon-greedy ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "expected"), [(0, 1.0), (1, 0.91), (5, 0.55), (9, 0.19), (10, 0.1), (11, 0.1), (10**6, 0.1)]
)
def test_epsilon_falls_linearly(step, expected):
    np.testing.assert_allclose(linear_epsilon(1.0, 0.1, 10, jnp.int32(step)), expected, rtol=1e-5)
    np.testing.assert_allclose(linear_epsilon(1.0, 0.1, 0, jnp.int32(step)), 0.1, rtol=1e-6)


def test_actors_get_the_epsilon_of_the_update():
    agent = make(epsilon_initial=0.8, epsilon_final=0.2, epsilon_steps=3, learning_rate=1e-3)
    state, update = agent.init(jax.random.key(0)), jax.jit(agent.update)
    for expected in (0.8, 0.6, 0.4, 0.2, 0.2):
        policy = agent.policy(state)
        np.testing.assert_allclose(policy.epsilon, expected, rtol=1e-5)
        jax.tree.map(np.testing.assert_array_equal, policy.params, state.params)
        state, feedback = update(state, jax.random.key(0), random_sample(0))
        np.testing.assert_allclose(feedback.metrics["epsilon"], expected, rtol=1e-5)


def test_epsilon_greedy_actions_have_the_probabilities():
    """By Pearson's chi-square test each action has the probability epsilon / A, and the greedy one 1 - epsilon more.
    Each row has its own epsilon."""
    copies, q = 20_000, np.array([0.1, 2.0, -1.0, 1.9], np.float32)
    for epsilon in (0.05, 0.5, 1.0):
        values = np.tile(q, (2 * copies, 1))
        epsilons = np.repeat(np.float32([epsilon, 0.0]), copies)
        actions = np.asarray(jax.jit(epsilon_greedy)(jax.random.key(0), values, epsilons))
        probabilities = np.full(4, epsilon / 4)
        probabilities[1] += 1 - epsilon
        counts = np.bincount(actions[:copies], minlength=4)
        assert np.sum((counts - copies * probabilities) ** 2 / (copies * probabilities)) < 16.3  # p = 0.001, 3 degrees
        assert (actions[copies:] == 1).all()
        got = epsilon_greedy_probabilities(values[[0, -1]], epsilons[[0, -1]])
        np.testing.assert_allclose(got, [probabilities, [0, 1, 0, 0]], rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(epsilon_greedy_probabilities(values[:1], jnp.float32(epsilon)), [probabilities])


@AGENTS
def test_evaluation_is_greedy(module):
    agent = make(module)
    state = randomized(agent.init(jax.random.key(0)))
    observation = random_transition(0, B=64).observation
    actions, _, _ = agent.act_greedily(agent.policy(state), jax.random.key(0), timestep(observation), agent.memory(64))
    expected = [np.argmax(np_Q(float64(state.params), x)) for x in observation]
    np.testing.assert_array_equal(actions, expected)
    assert actions.dtype == jnp.int32 and len(set(expected)) > 1


# Settings ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("replay", ["uniform", "prioritized"])
def test_table(replay):
    settings = {"replay_size": 500, "min_replay_size": 20, "samples_per_insert": 8.0, "priority_exponent": 0.7}
    agent = make(replay=replay, n_step=3, discount=0.9, batch_size=16, **settings)
    table = agent.table
    assert table.items == Transitions(3, 0.9) and table.kind == replay and agent.batch_size == 16
    assert (table.max_size, table.min_size) == (500, 20)
    assert (table.samples_per_insert, table.priority_exponent) == (8.0, 0.7)


@AGENTS
def test_what_does_not_fit_is_refused(module):
    name, one = module.__name__.split(".")[-1], np.ones(1, np.float32)
    with pytest.raises(ValueError, match=f"^{name} needs discrete actions; this environment's are continuous; use "):
        module.make(module.Config(), dataclasses.replace(SPEC, actions=BoundedActions(-one, one)))
    with pytest.raises(ValueError, match=r"torso=nature needs frames .* use torso=mlp"):
        module.make(module.Config(frame_stack=1), SPEC)
    with pytest.raises(ValueError, match=r"frame_stack=4 needs frames .* use frame_stack=1"):
        module.make(module.Config(torso="mlp"), SPEC)


@AGENTS
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("discount", -0.1),
        ("n_step", 0),
        ("target_period", 0),
        ("learning_rate", 0.0),
        ("importance_exponent", 1.1),
        ("max_gradient_norm", -1.0),
        ("priority_exponent", -0.5),
        ("min_replay_size", 10_000_000),
    ],
)
def test_settings_out_of_range_are_refused(module, field, value):
    with pytest.raises(ValueError, match=f"config.{field}"):
        module.Config(**{field: value})


@pytest.mark.parametrize(("field", "value"), [("epsilon_initial", 1.5), ("epsilon_final", -0.1), ("epsilon_steps", -1)])
def test_epsilons_out_of_range_are_refused(field, value):
    with pytest.raises(ValueError, match=f"config.{field}"):
        dqn.Config(**{field: value})


# Learning ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("double", [False, True])
def test_learns_the_values_of_a_chain(double):
    """The states 0 .. 3 are in a row. Action 1 goes to the next, action 0 stays; the step beyond state 3 pays 1 and
    ends the episode. gamma is 0.8."""
    spec = EnvironmentSpec((4,), np.dtype(np.float32), DiscreteActions(2))
    fields = {**SMALL, "hidden_sizes": (32,), "optimizer": "adam", "optimizer_epsilon": 1e-8, "learning_rate": 5e-3}
    agent = dqn.make(dqn.Config(**fields, double=double, target_period=20), spec)
    S, B, updates = np.eye(4, dtype=np.float32), 32, 600
    rng = np.random.default_rng(0)
    s, a = rng.integers(4, size=(updates, B)), rng.integers(2, size=(updates, B)).astype(np.int32)
    ends = (s == 3) & (a == 1)
    transitions = Transition(
        S[s], a, ends.astype(np.float32), np.where(ends, 0, 0.8).astype(np.float32), S[np.minimum(s + a, 3)]
    )

    def learn(state, transition):
        return agent.update(state, jax.random.key(0), Sample(transition))[0], None

    state, _ = jax.jit(lambda s, t: jax.lax.scan(learn, s, t))(agent.init(jax.random.key(0)), transitions)
    got = np.array([np_Q(float64(state.params), x) for x in S])
    go = 0.8 ** np.arange(3, -1, -1)
    np.testing.assert_allclose(got, np.stack([0.8 * go, go], axis=1), atol=0.05)
