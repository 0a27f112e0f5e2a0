"""Q-learning and Sarsa against Sutton and Barto 2018 (chapter 6), restated as plainly as can be."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents import q_learning
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
from tests.agents.numbered_states import numbered

STATES, A = 5, 3
TABLE = EnvironmentSpec((STATES,), np.dtype(np.float32), DiscreteActions(A))
VECTOR = EnvironmentSpec((4,), np.dtype(np.float32), DiscreteActions(A))
FORMS = pytest.mark.parametrize("form", ["q_learning", "sarsa", "expected_sarsa"])


def tabular(**fields):
    return numbered(q_learning.make(q_learning.Config(**fields), TABLE), STATES)


def random_steps(seed: int, T: int, B: int, observation_shape: tuple[int, ...] = (), states: int = STATES) -> Step:
    """Returns random rows [T+1, B]. A row before a `first` row closes its episode, half of them by termination, and its
    action is thrown away."""
    rng = np.random.default_rng(seed)
    shape = (T + 1, B)
    first = rng.random(shape) < 0.25
    closing = np.concatenate([first[1:], np.zeros((1, B), bool)])
    terminal = closing & (rng.random(shape) < 0.5)
    discount = np.concatenate([np.where(terminal[1:], 0.0, 1.0), np.ones((1, B))]).astype(np.float32)
    if observation_shape:
        observation = rng.normal(size=(*shape, *observation_shape)).astype(np.float32)
    else:
        observation = rng.integers(states, size=shape).astype(np.float32)
    action, reward = rng.integers(A, size=shape).astype(np.int32), rng.normal(size=shape).astype(np.float32)
    return Step(observation, action, reward, discount, first, {})


def naive_value(form: str, Q: np.ndarray, next_action: int, epsilon: float) -> float:
    """Returns the value of the next state, whose action values are Q."""
    if form == "q_learning":
        return Q.max()
    if form == "sarsa":
        return Q[next_action]
    pi = np.full(A, epsilon / A)
    pi[np.argmax(Q)] += 1 - epsilon
    return pi @ Q


@FORMS
def test_errors_are_the_loops(form):
    rng = np.random.default_rng(0)
    T, B, epsilon = 4, 3, 0.3
    q = rng.normal(size=(T + 1, B, A)).astype(np.float32)
    actions = rng.integers(A, size=(T + 1, B)).astype(np.int32)
    rewards, discounts = rng.normal(size=(2, T, B)).astype(np.float32)
    got = q_learning.td_errors(form, q, actions, rewards, discounts, jnp.float32(epsilon), q)
    for t in range(T):
        for b in range(B):
            value = naive_value(form, q[t + 1, b], actions[t + 1, b], epsilon)
            expected = rewards[t, b] + discounts[t, b] * value - q[t, b, actions[t, b]]
            np.testing.assert_allclose(got[t, b], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_n_step_errors_are_algorithm_3s(seed):
    """As in Mnih et al. 2016, R is computed backwards from the end of the block or of the episode. It starts from the
    target network's value there, which counts unless the episode terminated."""
    T, B, gamma = 7, 4, 0.9
    rng, steps = np.random.default_rng(seed), random_steps(seed, T, B)
    q, q_target = rng.normal(size=(2, T + 1, B, A)).astype(np.float32)
    live = 1.0 - steps.first[1:]
    discounts = gamma * steps.discount[:-1]
    got = live * q_learning.n_step_errors(q, steps.action, steps.reward[:-1], discounts, live, q_target)
    kinds = set()
    for b in range(B):
        R = q_target[T, b].max()
        for t in reversed(range(T)):
            if steps.first[t + 1, b]:  # an episode's last observation, from which truncations bootstrap
                R = q_target[t, b].max()
                assert got[t, b] == 0
                continue
            kinds.add((float(steps.discount[t, b]), bool(t + 2 <= T and steps.first[t + 2, b])))
            R = steps.reward[t, b] + gamma * steps.discount[t, b] * R
            np.testing.assert_allclose(got[t, b], R - q[t, b, steps.action[t, b]], atol=1e-5)
    assert (1.0, False) in kinds and len(kinds) >= 2


def test_targets_are_copied_every_so_many_updates_and_value_what_comes_next():
    agent = tabular(target_period=3, batch_size=2, unroll_length=4)
    state, update = agent.init(jax.random.key(0)), jax.jit(agent.update)
    history = [state]
    for seed in range(7):
        state, _ = update(state, jax.random.key(0), Sample(random_steps(seed, 4, 2)))
        history.append(state)
    for step, state in enumerate(history):
        np.testing.assert_array_equal(state.target_params, history[step - step % 3].params)
    assert (history[3].params != 0).any()
    # With target parameters of 0 the error is R - Q(S, A).
    steps = random_steps(9, 1, 1)._replace(first=np.zeros((2, 1), bool))
    start = history[-1]._replace(target_params=jnp.zeros((STATES, A)))
    after, _ = jax.jit(tabular(target_period=100).update)(start, jax.random.key(0), Sample(steps))
    s, a = int(steps.observation[0, 0]), int(steps.action[0, 0])
    expected = np.array(start.params)
    expected[s, a] += 0.1 * (steps.reward[0, 0] - expected[s, a])
    np.testing.assert_allclose(after.params, expected, rtol=1e-5)


def test_alpha_falls_linearly_to_zero():
    steps = random_steps(0, 2, 3)
    agents = [tabular(batch_size=3, unroll_length=2, decay_env_steps=decay) for decay in (0, 24)]
    start = agents[0].init(jax.random.key(0))
    full, _ = jax.jit(agents[0].update)(start, jax.random.key(0), Sample(steps))
    for env_steps, share in [(0, 1.0), (6, 0.75), (18, 0.25), (24, 0.0), (54, 0.0)]:
        now = start._replace(env_steps=jnp.float32(env_steps))
        after, _ = jax.jit(agents[1].update)(now, jax.random.key(0), Sample(steps))
        np.testing.assert_allclose(after.params, share * np.asarray(full.params), rtol=1e-5, atol=1e-8)
    assert (np.asarray(full.params) != 0).any()


def test_environments_end_at_epsilons_of_their_own():
    agent = tabular(epsilon_initial=1.0, epsilon_finals=(0.0, 0.5, 0.25), epsilon_steps=10)
    state = agent.init(jax.random.key(0))._replace(params=jnp.eye(STATES, A))
    for step, told in [(0, [1, 1, 1]), (5, [0.5, 0.75, 0.625]), (10, [0, 0.5, 0.25])]:
        np.testing.assert_allclose(agent.policy(state._replace(step=jnp.int32(step))).epsilon, told)
    policy = agent.policy(state._replace(step=jnp.int32(10)))
    ranks = np.repeat(np.float32([0, 0.3, 0.4, 0.6, 0.7, 1.0]), 4000)
    memory = agent.memory(len(ranks), ranks)
    actions, _, after = jax.jit(agent.act)(policy, jax.random.key(0), timestep(np.full(len(ranks), 2.0)), memory)
    explored = (np.asarray(actions) != 2).reshape(6, 4000).mean(axis=1)
    np.testing.assert_allclose(explored, np.array([0, 0, 0.5, 0.5, 0.25, 0.25]) * (A - 1) / A, atol=0.03)
    np.testing.assert_array_equal(after.rank, ranks)


@FORMS
def test_one_environment_and_one_hot_states_are_the_books_table(form):
    """Section 6.4's and 6.5's loops: Q(S, A) <- Q(S, A) + alpha [R + gamma (...) - Q(S, A)], one step at a time."""
    alpha, gamma, epsilon = 0.3, 0.9, 0.25
    options = {"learning_rate": alpha, "discount": gamma, "epsilon_initial": epsilon, "epsilon_final": epsilon}
    agent = tabular(form=form, **options)
    state, update = agent.init(jax.random.key(0)), jax.jit(agent.update)
    np.testing.assert_array_equal(state.params, np.zeros((STATES, A)))
    steps, Q, learnt = random_steps(0, 80, 1), np.zeros((STATES, A)), 0
    for t in range(80):
        state, _ = update(state, jax.random.key(t), Sample(jax.tree.map(lambda x, t=t: x[t : t + 2], steps)))
        if steps.first[t + 1, 0]:
            continue  # row t closes an episode
        S, S_next = int(steps.observation[t, 0]), int(steps.observation[t + 1, 0])
        value = naive_value(form, Q[S_next], steps.action[t + 1, 0], epsilon)
        target = steps.reward[t, 0] + gamma * steps.discount[t, 0] * value
        Q[S, steps.action[t, 0]] += alpha * (target - Q[S, steps.action[t, 0]])
        learnt += 1
        np.testing.assert_allclose(state.params, Q, rtol=1e-4, atol=1e-5)
    assert 40 < learnt < 80 and int(state.step) == 80


@FORMS
def test_a_batch_is_the_mean_of_its_live_rows(form):
    T, B, alpha, gamma, epsilon = 3, 4, 0.5, 0.9, 0.2
    agent = q_learning.make(
        q_learning.Config(form=form, unroll_length=T, batch_size=B, learning_rate=alpha, discount=gamma), VECTOR
    )
    state = agent.init(jax.random.key(0))
    rng = np.random.default_rng(1)
    w = rng.normal(size=(4, A)).astype(np.float32)
    epsilons = {"epsilon_initial": jnp.float32(epsilon), "epsilon_final": jnp.float32(epsilon)}
    state = state._replace(params=jnp.asarray(w), hypers=state.hypers._replace(**epsilons))
    steps = random_steps(2, T, B, (4,))
    new, feedback = jax.jit(agent.update)(state, jax.random.key(0), Sample(steps))
    direction, errors = np.zeros((4, A)), []
    for t in range(T):
        for b in range(B):
            if steps.first[t + 1, b]:
                continue
            x, x_next, a = steps.observation[t, b], steps.observation[t + 1, b], steps.action[t, b]
            value = naive_value(form, x_next @ w, steps.action[t + 1, b], epsilon)
            errors.append(steps.reward[t, b] + gamma * steps.discount[t, b] * value - (x @ w)[a])
            direction[:, a] += errors[-1] * x  # the gradient of Q(S, A) alone
    assert 0 < len(errors) < T * B
    np.testing.assert_allclose(new.params, w + alpha * direction / len(errors), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(feedback.metrics["td_error"], np.mean(np.abs(errors)), rtol=1e-4)
    np.testing.assert_allclose(feedback.metrics["loss"], 0.5 * np.mean(np.square(errors)), rtol=1e-4)
    norm = np.linalg.norm(direction / len(errors))
    np.testing.assert_allclose(feedback.metrics["gradient_norm"], norm, rtol=1e-4)


@FORMS
def test_rows_that_close_an_episode_teach_nothing(form):
    """It does not matter what the reward and discount of such a row hold."""
    agent = tabular(form=form, unroll_length=4, batch_size=2)
    state = agent.init(jax.random.key(0))._replace(
        params=jnp.asarray(np.random.default_rng(0).normal(size=(STATES, A)), jnp.float32)
    )
    steps = random_steps(0, 4, 2)
    first = np.zeros((5, 2), bool)
    first[2, 0] = True  # row 1 of environment 0 closes an episode
    steps = steps._replace(first=first, discount=np.ones((5, 2), np.float32))
    rubbish = jax.tree.map(np.array, steps)
    rubbish.reward[1, 0], rubbish.discount[1, 0] = 1e3, 7.0
    update = jax.jit(agent.update)
    (a, _), (b, _) = (update(state, jax.random.key(0), Sample(s)) for s in (steps, rubbish))
    np.testing.assert_array_equal(a.params, b.params)
    live = jax.tree.map(np.array, steps)
    live.reward[0, 0] += 1.0
    c, _ = update(state, jax.random.key(0), Sample(live))
    assert (np.asarray(c.params) != np.asarray(a.params)).any()


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_batch_without_transitions_is_harmless(optimizer):
    agent = tabular(batch_size=2, optimizer=optimizer)
    state = agent.init(jax.random.key(0))
    steps = random_steps(0, 1, 2)._replace(first=np.array([[False, False], [True, True]]))
    new, feedback = jax.jit(agent.update)(state, jax.random.key(0), Sample(steps))
    np.testing.assert_array_equal(new.params, state.params)
    assert {name: x for name, x in feedback.metrics.items() if not np.isfinite(x)} == {}


def test_two_shards_are_one_batch():
    """This holds also where the shards have different numbers of transitions."""
    agent = tabular(unroll_length=3, batch_size=8)
    state = agent.init(jax.random.key(0))._replace(
        params=jnp.asarray(np.random.default_rng(0).normal(size=(STATES, A)), jnp.float32)
    )
    steps = random_steps(5, 3, 8)
    lives = (~steps.first[1:]).reshape(3, 2, 4).sum(axis=(0, 2))
    assert lives[0] != lives[1]
    whole, feedback = jax.jit(agent.update)(state, jax.random.key(0), Sample(steps))
    halves = jax.tree.map(lambda x: np.stack([x[:, :4], x[:, 4:]]), steps)
    update = jax.jit(jax.vmap(agent.update, in_axes=(None, None, 0), axis_name=AXIS))
    shards, shard_feedback = update(state, jax.random.key(0), Sample(halves))
    for i in range(2):
        np.testing.assert_allclose(shards.params[i], whole.params, rtol=1e-5, atol=1e-6)
        for name, x in feedback.metrics.items():
            np.testing.assert_allclose(shard_feedback.metrics[name][i], x, rtol=1e-4, err_msg=name)


def test_an_mlp_follows_the_semi_gradient():
    T, B = 2, 3
    config = q_learning.Config(unroll_length=T, batch_size=B, hidden_sizes=(6,), learning_rate=0.5, discount=0.9)
    agent = q_learning.make(config, VECTOR)
    state = agent.init(jax.random.key(0))
    rng = np.random.default_rng(0)
    state = state._replace(params=jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), state.params))
    steps = random_steps(3, T, B, (4,))

    def Q(params, x):
        layers = params["params"]
        hidden, head = layers["MLPTorso_0"]["Dense_0"], layers["advantage"]
        return jnp.maximum(x @ hidden["kernel"] + hidden["bias"], 0) @ head["kernel"] + head["bias"]

    def loss(params):
        total, number = 0.0, 0
        for t in range(T):
            for b in range(B):
                if not steps.first[t + 1, b]:
                    target = steps.reward[t, b] + 0.9 * steps.discount[t, b] * np.max(
                        Q(state.params, steps.observation[t + 1, b])
                    )
                    total += 0.5 * (target - Q(params, steps.observation[t, b])[steps.action[t, b]]) ** 2
                    number += 1
        return total / number

    expected = jax.tree.map(lambda p, g: p - 0.5 * g, state.params, jax.grad(loss)(state.params))
    new, _ = jax.jit(agent.update)(state, jax.random.key(0), Sample(steps))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), new.params, expected)


def test_hypers_are_the_states():
    """An update uses the state's hyperparameters, which a population may tune, not the config's."""
    agent, other = tabular(), tabular(learning_rate=0.7, discount=0.5, epsilon_initial=1.0, epsilon_final=0.6)
    state = agent.init(jax.random.key(0))
    state = state._replace(params=jnp.ones((STATES, A)), hypers=other.init(jax.random.key(0)).hypers)
    steps = random_steps(1, 1, 1)._replace(first=np.zeros((2, 1), bool), discount=np.ones((2, 1), np.float32))
    a, _ = jax.jit(agent.update)(state, jax.random.key(0), Sample(steps))
    b, _ = jax.jit(other.update)(state, jax.random.key(0), Sample(steps))
    np.testing.assert_array_equal(a.params, b.params)
    np.testing.assert_allclose(agent.policy(state).epsilon, 0.6, rtol=1e-6)
    S, move = int(steps.observation[0, 0]), steps.action[0, 0]
    np.testing.assert_allclose(a.params[S, move], 1 + 0.7 * (steps.reward[0, 0] + 0.5 - 1), rtol=1e-4)


def test_adam_takes_steps_of_the_learning_rate():
    agent = tabular(optimizer="adam", learning_rate=0.125)
    state = agent.init(jax.random.key(0))
    steps = random_steps(1, 1, 1)._replace(first=np.zeros((2, 1), bool))
    new, _ = jax.jit(agent.update)(state, jax.random.key(0), Sample(steps))
    np.testing.assert_allclose(np.abs(new.params).max(), 0.125, rtol=1e-3)


# Acting --------------------------------------------------------------------------------------------------------------


def timestep(observation: np.ndarray) -> TimeStep:
    zeros = np.zeros(len(observation), np.float32)
    return TimeStep(observation, zeros, zeros + 1, zeros > 0, zeros > 0)


def test_acting_is_epsilon_greedy_by_what_was_pulled():
    agent = tabular(epsilon_initial=1.0, epsilon_final=0.2, epsilon_steps=4)
    state = agent.init(jax.random.key(0))._replace(params=jnp.eye(STATES, A))  # in state s < A, action s is greedy
    B = 6000
    observation = np.full(B, 2.0, np.float32)
    for step, epsilon in [(0, 1.0), (3, 0.4), (4, 0.2), (100, 0.2)]:
        policy = agent.policy(state._replace(step=jnp.int32(step)))
        np.testing.assert_allclose(policy.epsilon, epsilon, rtol=1e-6)
        action, extras, memory = jax.jit(agent.act)(policy, jax.random.key(step), timestep(observation), ())
        assert action.dtype == jnp.int32 and extras == {} and memory == ()
        frequencies = np.bincount(action, minlength=A) / B
        np.testing.assert_allclose(frequencies, [epsilon / A, epsilon / A, 1 - epsilon + epsilon / A], atol=0.03)
    action, _, _ = agent.act_greedily(policy, jax.random.key(0), timestep(np.array([0.0, 1.0, 2.0])), ())
    np.testing.assert_array_equal(action, [0, 1, 2])


# Learning ------------------------------------------------------------------------------------------------------------

# In either state, action 0 stays and action 1 goes to the other state. Staying in state 1 pays 1. gamma is 0.8.
GAMMA = 0.8
OPTIMAL = np.array([[GAMMA * 4, 4.0], [5.0, 3.2]])  # 5 = 1 / (1 - gamma); each row: stay, go over
OPTIMAL[0] = [GAMMA * GAMMA * 5.0, GAMMA * 5.0]
OPTIMAL[1] = [5.0, GAMMA * GAMMA * 5.0]


def sarsa_values(epsilon: float) -> np.ndarray:
    """Returns, by iteration, the action values of the epsilon-greedy policy that goes over in state 0 and stays in
    state 1."""
    pi = np.array([[epsilon / 2, 1 - epsilon / 2], [1 - epsilon / 2, epsilon / 2]])
    Q = np.zeros((2, 2))
    for _ in range(500):
        V = np.sum(pi * Q, axis=1)
        Q = np.array([[GAMMA * V[0], GAMMA * V[1]], [1 + GAMMA * V[1], GAMMA * V[0]]])
    return Q


@FORMS
def test_learns_the_values_of_two_states(form):
    """Q-learning learns the values of the optimal policy although it explores, Sarsa those of the policy that
    explores."""
    B, updates, epsilon = 64, 1500, 0.4
    spec = EnvironmentSpec((2,), np.dtype(np.float32), DiscreteActions(2))
    options = {"epsilon_initial": epsilon, "epsilon_final": epsilon, "discount": GAMMA, "learning_rate": 0.4}
    agent = numbered(q_learning.make(q_learning.Config(form=form, batch_size=B, **options), spec), 2)

    def move(carry, key):
        state, observation, action = carry
        next_observation = jnp.where(action == 0, observation, 1.0 - observation)
        reward = jnp.where((observation == 1) & (action == 0), 1.0, 0.0)
        act_key, update_key = jax.random.split(key)
        next_action, _, _ = agent.act(agent.policy(state), act_key, timestep_of(next_observation), ())
        pair = [jnp.stack(x) for x in ((observation, next_observation), (action, next_action), (reward, reward))]
        steps = Step(*pair, jnp.ones((2, B)), jnp.zeros((2, B), bool), {})
        state, _ = agent.update(state, update_key, Sample(steps))
        return (state, next_observation, next_action), state.params

    def timestep_of(observation):
        zeros = jnp.zeros(B)
        return TimeStep(observation, zeros, zeros + 1, zeros > 0, zeros > 0)

    start = (agent.init(jax.random.key(0)), jnp.zeros(B), jnp.zeros(B, jnp.int32))
    keys = jax.random.split(jax.random.key(1), updates)
    _, tables = jax.jit(lambda start, keys: jax.lax.scan(move, start, keys))(start, keys)
    expected = OPTIMAL if form == "q_learning" else sarsa_values(epsilon)
    assert np.abs(OPTIMAL - sarsa_values(epsilon)).min() > 0.5
    np.testing.assert_allclose(tables[-300:].mean(axis=0), expected, atol=0.1)


# Settings ------------------------------------------------------------------------------------------------------------


def test_table():
    agent = tabular(unroll_length=5, batch_size=16, queue_batches=3)
    table = agent.table
    assert table.items == Blocks(5) and table.kind == "queue" and table.max_size == 48
    assert agent.batch_size == 16 and agent.priority is None


def test_an_update_is_traced_once():
    agent = tabular()
    update, state = jax.jit(agent.update), agent.init(jax.random.key(0))
    for i in range(3):
        state, _ = update(state, jax.random.key(i), Sample(random_steps(i, 1, 1)))
    assert update._cache_size() == 1


def test_what_does_not_fit_is_refused():
    bounds = np.ones(1, np.float32)
    with pytest.raises(
        ValueError, match=r"^q_learning needs discrete actions; this environment's are continuous; use "
    ):
        q_learning.make(
            q_learning.Config(), EnvironmentSpec((4,), np.dtype(np.float32), BoundedActions(-bounds, bounds))
        )
    with pytest.raises(ValueError, match=r"torso=shallow needs frames of at least .*, not 12x12; use torso="):
        config = q_learning.Config(torso="shallow")
        q_learning.make(config, EnvironmentSpec((12, 12), np.dtype(np.uint8), DiscreteActions(A)))


def test_frames_are_stacked_alike_by_acting_and_by_learning():
    """An agent that stacks two frames does the same as one without stacking in an environment that has stacked them."""
    T, B, side = 5, 2, 20
    rng = np.random.default_rng(0)
    frames = rng.integers(256, size=(T + 1, B, side, side)).astype(np.uint8)
    steps = random_steps(3, T, B)
    first = steps.first.copy()
    first[0], first[3, 1] = True, True
    before = np.where(first[1:, :, None, None], frames[1:], frames[:-1])
    stacked = np.stack([np.concatenate([frames[:1], before]), frames], axis=-1)
    config = q_learning.Config(torso="shallow", frame_stack=2, form="n_step_q", target_period=3, epsilon_final=0.0)
    dtype, actions = np.dtype(np.uint8), DiscreteActions(A)
    one = q_learning.make(config, EnvironmentSpec((side, side), dtype, actions))
    other = q_learning.make(
        dataclasses.replace(config, frame_stack=1), EnvironmentSpec((side, side, 2), dtype, actions)
    )
    state, memory = one.init(jax.random.key(0)), one.memory(B, None)
    (a, of_one), (b, of_other) = (
        agent.gradient(state, jax.random.key(0), Sample(steps._replace(observation=seen, first=first), memory))
        for agent, seen in ((one, frames), (other, stacked))
    )
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), a, b)
    np.testing.assert_allclose(of_one.metrics["value"], of_other.metrics["value"], rtol=1e-5)
    kept = other.memory(B, None)
    for t in range(T + 1):
        row = TimeStep(frames[t], None, None, first[t], None)
        mine, _, memory = one.act(one.policy(state), jax.random.key(t), row, memory)
        theirs, _, kept = other.act(other.policy(state), jax.random.key(t), row._replace(observation=stacked[t]), kept)
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("unroll_length", 0),
        ("batch_size", 0),
        ("learning_rate", 0.0),
        ("epsilon_initial", 1.1),
        ("epsilon_final", -0.1),
        ("epsilon_steps", -1),
        ("discount", 2.0),
        ("target_period", -1),
        ("epsilon_finals", (0.1, 1.5)),
    ],
)
def test_settings_out_of_range_are_refused(field, value):
    with pytest.raises(ValueError, match=f"config.{field}"):
        q_learning.Config(**{field: value})


def test_a_linear_function_is_of_float32():
    with pytest.raises(
        ValueError, match=r"config\.dtype=bfloat16 .*: give config\.hidden_sizes=64 or config\.dtype=float32"
    ):
        q_learning.Config(dtype="bfloat16")
    q_learning.Config(dtype="bfloat16", hidden_sizes=(8,))
    q_learning.Config(dtype="bfloat16", torso="shallow")


@pytest.mark.parametrize("form", ["q_learning", "sarsa", "expected_sarsa", "n_step_q"])
def test_expected_sarsa_has_a_single_epsilon(form):
    if form != "expected_sarsa":
        q_learning.Config(form=form, epsilon_finals=(0.1, 0.2))
        return
    with pytest.raises(ValueError, match=r"config\.epsilon_finals=\(0\.1, 0\.2\): expected_sarsa .* single policy"):
        q_learning.Config(form=form, epsilon_finals=(0.1, 0.2))
