"""R2D2 against its paper (https://openreview.net/forum?id=r1lyTjAqYX), restated as plainly as can be."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rlax

from agents import r2d2
from agents.agent import AXIS, BoundedActions, DiscreteActions, EnvironmentSpec, Sample, Sequences, Step, TimeStep
from agents.parts.networks import LSTMState, QNetwork

D, A, SIZE = 3, 4, 5  # the observation's length, actions, the LSTM's units
ADAM_B1 = 0.9
SPEC = EnvironmentSpec((D,), np.dtype(np.float32), DiscreteActions(A))
SMALL = {
    "torso": "mlp", "frame_stack": 1, "hidden_sizes": (6,), "activation": "tanh", "lstm_size": SIZE, "head_size": 0,
    "batch_size": 4,
    "burn_in": 3, "sequence_length": 7, "overlap": 2, "n_step": 3, "discount": 0.9, "max_gradient_norm": 1e9,
}  # fmt: skip


def config(**fields) -> r2d2.Config:
    return r2d2.Config(**(SMALL | fields))


def loud(state: r2d2.State, seed: int = 0, apart: bool = True, scale: float = 0.5) -> r2d2.State:
    """Returns the state with random parameters far from 0. The target's are others if `apart`, and equal if not."""
    rng = np.random.default_rng(seed)

    def noisy(params):
        return jax.tree.map(lambda x: jnp.asarray(x + scale * rng.normal(size=x.shape), jnp.float32), params)

    params = noisy(state.params)
    return state._replace(params=params, target_params=noisy(params) if apart else jax.tree.map(jnp.copy, params))


# Sequences of 10 rows (3 of burn-in, 7 that learn), each as (rows of padding before, rows of the episode).
LAYOUTS = [
    (0, 10),  # from the middle of an episode
    (3, 7),  # the first sequence of an episode
    (0, 6),  # the end of an episode, then padding
    (3, 3),  # a whole short episode
    (1, 8),
    (0, 10),  # a last observation in the last row
    (3, 2),  # a single transition
    (0, 5),
]


def random_steps(seed: int, layouts=LAYOUTS, rows: int = 10) -> Step:
    """Returns random steps [rows, B]. Every second short episode ends by truncation, the others by termination."""
    rng = np.random.default_rng(seed)
    B = len(layouts)
    steps = Step(
        observation=rng.normal(size=(rows, B, D)).astype(np.float32),
        action=rng.integers(A, size=(rows, B)).astype(np.int32),
        reward=rng.normal(size=(rows, B)).astype(np.float32),
        discount=np.ones((rows, B), np.float32),
        first=np.zeros((rows, B), bool),
        extras={
            "previous_action": rng.integers(A, size=(rows, B)).astype(np.int32),
            "previous_reward": rng.normal(size=(rows, B)).astype(np.float32),
            "q": rng.normal(size=(rows, B, A)).astype(np.float32),
        },
    )
    for b, (before, length) in enumerate(layouts):
        end = before + length  # the first row of the padding after
        padding = np.r_[0:before, end:rows]
        jax.tree.map(lambda x, p=padding, b=b: x.__setitem__((p, b), 0), steps)
        steps.first[padding, b] = True
        if before:
            steps.first[before, b] = True
        if ((end < rows or b == 5) and b % 2 == 0) or b == 5:
            steps.discount[end - 2, b] = 0.0
    return steps


def random_sample(seed: int, layouts=LAYOUTS) -> Sample:
    rng = np.random.default_rng(seed + 100)
    B = len(layouts)
    lstm = LSTMState(*rng.normal(size=(2, B, SIZE)).astype(np.float32))
    memory = r2d2.Memory(np.zeros(B, np.float32), np.zeros(B, np.int32), None, lstm)
    return Sample(random_steps(seed, layouts), memory, np.exp(rng.normal(size=B)).astype(np.float32))


# Targets -------------------------------------------------------------------------------------------------------------


def h(x, eps):
    return np.sign(x) * (np.sqrt(np.abs(x) + 1) - 1) + eps * x


def h_inverse(x, eps):
    """Returns the inverse of h by the formula in the paper's appendix, in float64."""
    return np.sign(x) * (((np.sqrt(1 + 4 * eps * (np.abs(x) + 1 + eps)) - 1) / (2 * eps)) ** 2 - 1)


@pytest.mark.parametrize("eps", [1e-3, 1e-2, 0.5])
def test_rescaling_and_its_inverse(eps):
    x = np.concatenate([-np.logspace(-3, 4, 50), [0.0], np.logspace(-3, 4, 50)])
    np.testing.assert_allclose(r2d2.rescale(x.astype(np.float32), eps), h(x, eps), rtol=1e-4, atol=1e-6)
    y = h(x, eps)
    np.testing.assert_allclose(r2d2.unscale(y.astype(np.float32), eps), x, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(r2d2.unscale(x.astype(np.float32), eps), h_inverse(x, eps), rtol=1e-5, atol=1e-6)


def test_rescaling_without_a_linear_part():
    x = np.linspace(-5, 5, 41).astype(np.float32)
    np.testing.assert_allclose(r2d2.unscale(r2d2.rescale(x, 0.0), 0.0), x, rtol=1e-5, atol=1e-6)


td_errors = jax.jit(r2d2.td_errors, static_argnames=("n", "eps"))


def naive_errors(q, q_target, steps: Step, gamma: float, n: int, eps: float):
    """Returns the errors and which rows are live, [T-1, B] each. Each row's target comes from a walk along its episode
    of at most n steps, to the episode's last observation or the last row."""
    q, q_target, r, discount = (np.asarray(x, np.float64) for x in (q, q_target, steps.reward, steps.discount))
    T, B = r.shape
    errors, live = np.zeros((T - 1, B)), np.zeros((T - 1, B))
    for b in range(B):
        for t in range(T - 1):
            if steps.first[t + 1, b]:
                continue
            live[t, b] = 1
            k, total, factor = t, 0.0, 1.0
            while k < t + n and k < T - 1 and not steps.first[k + 1, b]:
                total += factor * r[k, b]
                factor *= gamma * discount[k, b]
                k += 1
            best = np.argmax(q[k, b])
            y = h(total + factor * h_inverse(q_target[k, b, best], eps), eps)
            errors[t, b] = y - q[t, b, steps.action[t, b]]
    return errors, live


@pytest.mark.parametrize("n", [1, 3, 9])
@pytest.mark.parametrize("seed", range(4))
def test_errors_are_those_of_a_walk_along_each_episode(seed, n):
    steps = random_steps(seed)
    rng = np.random.default_rng(seed)
    q, q_target = rng.normal(size=(2, *steps.reward.shape, A)).astype(np.float32)
    errors, live = td_errors(q, q_target, steps, 0.9, n, 1e-2)
    expected, expected_live = naive_errors(q, q_target, steps, 0.9, n, 1e-2)
    np.testing.assert_array_equal(live, expected_live)
    np.testing.assert_allclose(errors, expected, rtol=1e-4, atol=1e-5)


def test_layouts_hold_every_case():
    """Otherwise the test above would check less than it seems to."""
    steps = random_steps(0)
    closing = np.concatenate([steps.first[1:], np.zeros((1, len(LAYOUTS)), bool)]) & ~steps.first
    assert closing.any(axis=0).sum() >= 5, "episodes that end before the sequence does"
    before_closing = steps.discount[:-1][closing[1:]]
    assert (before_closing == 0).any() and (before_closing == 1).any(), "both terminations and truncations"
    assert (steps.discount[-2] == 0).any(), "a terminal observation in the last row"
    assert steps.first[0].any() and steps.first[-1].any() and not steps.first[:, 0].any(), "padding, and none"


@pytest.mark.parametrize("n", [1, 3, 5])
def test_errors_without_an_episodes_end_are_rlaxs(n):
    """Terminations have discount 0, and any values may follow them. The end of the sequence shortens n."""
    rng = np.random.default_rng(n)
    T, B, eps = 12, 5, 0.1  # rlax's inverse is exact enough at a large eps
    steps = random_steps(0, [(0, T)] * B, T)
    steps = steps._replace(discount=np.where(rng.random((T, B)) < 0.2, 0.0, 1.0).astype(np.float32))
    q, q_target = rng.normal(size=(2, T, B, A)).astype(np.float32)
    pair = rlax.TxPair(
        functools.partial(rlax.signed_hyperbolic, eps=eps), functools.partial(rlax.signed_parabolic, eps=eps)
    )
    theirs = functools.partial(rlax.transformed_n_step_q_learning, n=n, tx_pair=pair)
    expected = jax.jit(jax.vmap(theirs, in_axes=1, out_axes=1))(
        q[:-1], steps.action[:-1], q_target[1:], q.argmax(-1)[1:], steps.reward[:-1], 0.9 * steps.discount[:-1]
    )
    errors, live = td_errors(q, q_target, steps, 0.9, n, eps)
    np.testing.assert_allclose(errors, expected, rtol=1e-4, atol=1e-4)
    assert (live == 1).all()


def naive_priorities(errors, live, eta):
    return [eta * max(e) + (1 - eta) * sum(e) / len(e) for e in (np.abs(x[m > 0]) for x, m in zip(errors.T, live.T))]


@pytest.mark.parametrize("eta", [0.0, 0.9, 1.0])
def test_a_sequences_priority(eta):
    steps = random_steps(5)
    q, q_target = np.random.default_rng(5).normal(size=(2, *steps.reward.shape, A)).astype(np.float32)
    errors, live = naive_errors(q, q_target, steps, 0.9, 3, 1e-3)
    got = r2d2.sequence_priorities(jnp.asarray(errors, jnp.float32), jnp.asarray(live, jnp.float32), eta)
    np.testing.assert_allclose(got, naive_priorities(errors, live, eta), rtol=1e-4)


# The update ----------------------------------------------------------------------------------------------------------


@functools.cache
def compiled(network: QNetwork):
    return jax.jit(network.apply)


def naive_unroll(network, params, steps: Step, lstm: LSTMState):
    """Returns Q for every row, and the LSTM's state before each row, computed row by row."""
    apply, values, states = compiled(network), [], []
    for t in range(len(steps.reward)):
        first = steps.first[t]
        states.append(lstm)
        last = np.concatenate(
            [np.eye(A)[steps.extras["previous_action"][t]], steps.extras["previous_reward"][t][:, None]], 1
        )
        last[first] = 0.0
        q, lstm = apply(params, steps.observation[t][None], first[None], lstm, last[None])
        values.append(q[0])
    return jnp.stack(values), states


@pytest.mark.parametrize(("burn_in", "stored", "dueling"), [(3, True, True), (0, True, False), (3, False, True)])
def test_gradient_is_the_papers(burn_in, stored, dueling):
    """The loss is the mean over sequences of w_i sum_t 1/2 delta_t^2. Each network starts from its own LSTM state after
    the burn-in."""
    options = {"burn_in": burn_in, "sequence_length": 10 - burn_in, "stored_state": stored, "dueling": dueling}
    agent = r2d2.make(config(**options), SPEC)
    state = loud(jax.jit(agent.init)(jax.random.key(0)))
    # The update must use the state's hyperparameters, not the config's.
    hypers = r2d2.Hypers(jnp.float32(0.5), jnp.float32(0.8), jnp.float32(0.1))
    state = state._replace(hypers=hypers)
    sample = random_sample(1)
    new, feedback = jax.jit(agent.update)(state, jax.random.key(1), sample)

    network = QNetwork("mlp", A, (6,), "tanh", SIZE, dueling)
    lstm = sample.memory.lstm if stored else jax.tree.map(np.zeros_like, sample.memory.lstm)
    steps = jax.tree.map(lambda x: x[burn_in:], sample.steps)
    q, states = naive_unroll(network, state.params, sample.steps, lstm)
    q_target, _ = naive_unroll(network, state.target_params, sample.steps, lstm)
    errors, live = naive_errors(q[burn_in:], q_target[burn_in:], steps, 0.8, 3, 1e-3)
    q_taken = np.take_along_axis(np.asarray(q[burn_in:])[:-1], steps.action[:-1, :, None], -1)[..., 0]
    y = errors + q_taken
    w = sample.likelihood.astype(np.float64) ** -0.6
    w /= w.max()

    def loss(params):
        q, _ = naive_unroll(network, params, steps, states[burn_in])
        q = jnp.take_along_axis(q[:-1], steps.action[:-1, :, None], -1)[..., 0]
        return jnp.mean(w * jnp.sum(live * 0.5 * (y - q) ** 2, axis=0))

    expected_loss, expected = jax.jit(jax.value_and_grad(loss))(state.params)
    assert max(np.abs(g).max() for g in jax.tree.leaves(expected)) > 0.03
    got = jax.tree.map(lambda m: m / (1 - ADAM_B1), new.opt_state[1].mu)
    jax.tree.map(lambda g, e: np.testing.assert_allclose(g, e, rtol=2e-3, atol=2e-5), got, expected)
    np.testing.assert_allclose(feedback.priorities, naive_priorities(errors, live, 0.9), rtol=1e-3)
    norm = np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(expected)))
    best = h_inverse(np.asarray(q[burn_in:])[:-1].max(-1).astype(np.float64), 1e-3)
    metrics = {
        "loss": expected_loss,
        "td_error": np.abs(errors).sum() / live.sum(),
        "value": best[live > 0].mean(),
        "live_fraction": live.mean(),
        "importance_weight": w.mean(),
        "gradient_norm": norm,
    }
    assert metrics.keys() == feedback.metrics.keys()
    for name, value in metrics.items():
        np.testing.assert_allclose(feedback.metrics[name], value, rtol=2e-3, err_msg=name)


@functools.cache
def learner(**fields):
    agent = r2d2.make(config(**fields), SPEC)
    return agent, loud(jax.jit(agent.init)(jax.random.key(0))), jax.jit(agent.update)


def gradient_by_row(seed: int = 2):
    """Returns whether the loss has a gradient with respect to each row's observation, and `first`, [10, B] each."""
    agent, state, _ = learner()
    sample = random_sample(seed)

    def loss(observation):
        steps = sample.steps._replace(observation=observation)
        return agent.update(state, jax.random.key(0), sample._replace(steps=steps))[1].metrics["loss"]

    return np.asarray((jax.jit(jax.grad(loss))(sample.steps.observation) != 0).any(axis=-1)), sample.steps.first


def test_the_burn_in_passes_no_gradient():
    moved, _ = gradient_by_row()
    assert not moved[:3].any()
    assert moved[3:6, 0].all(), "rows after it do"


def test_padding_and_dead_rows_have_no_gradient():
    """An episode's last observation and the sequence's last row serve to bootstrap only."""
    moved, first = gradient_by_row()
    for b, (before, length) in enumerate(LAYOUTS):
        transitions = range(max(3, before), before + length - 1)
        assert np.flatnonzero(moved[:, b]).tolist() == list(transitions), b


@pytest.mark.parametrize("stored", [True, False])
def test_the_burn_in_and_the_stored_state_matter(stored):
    """They matter to the sequences that have them, but not to those that begin with their episode."""
    agent, state, update = learner(stored_state=stored)
    sample = random_sample(3)
    begins = np.array([before > 0 for before, _ in LAYOUTS])

    def changed(steps, memory):
        after = update(state, jax.random.key(0), Sample(steps, memory, sample.likelihood))[1].priorities
        return np.asarray(after != update(state, jax.random.key(0), sample)[1].priorities)

    observation = sample.steps.observation.copy()
    observation[:3] += 1.0
    by_burn_in = changed(sample.steps._replace(observation=observation), sample.memory)
    # The episode of layout (1, 8) begins within the burn-in, so two of the burn-in's rows matter to it.
    np.testing.assert_array_equal(by_burn_in, [before < 3 for before, _ in LAYOUTS])
    other = sample.memory._replace(lstm=jax.tree.map(lambda x: x + 1.0, sample.memory.lstm))
    np.testing.assert_array_equal(changed(sample.steps, other), ~begins if stored else np.zeros(len(LAYOUTS), bool))


def test_a_batch_without_transitions_teaches_nothing():
    agent, state, update = learner()
    sample = random_sample(0)
    steps = sample.steps._replace(first=np.ones_like(sample.steps.first))
    after, feedback = update(state, jax.random.key(0), sample._replace(steps=steps))
    jax.tree.map(np.testing.assert_array_equal, after.params, state.params)
    assert {name: value for name, value in feedback.metrics.items() if not np.isfinite(value)} == {}
    assert (feedback.priorities > 0).all()
    assert (agent.priority(agent.policy(state), sample._replace(steps=steps)) > 0).all()


def test_several_devices_make_the_same_update_as_one():
    agent, state, update = learner()
    sample = random_sample(4)
    one, one_feedback = update(state, jax.random.key(0), sample)
    # The batch axis is 1 in steps and 0 in all else.
    halves = Sample(
        jax.tree.map(lambda x: np.stack(np.split(x, 2, axis=1)), sample.steps),
        *jax.tree.map(lambda x: np.stack(np.split(x, 2)), (sample.memory, sample.likelihood)),
    )
    two, feedback = jax.jit(jax.vmap(agent.update, in_axes=(None, None, 0), axis_name=AXIS))(
        state, jax.random.key(0), halves
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b[0], rtol=1e-4, atol=1e-6), one.opt_state, two.opt_state)
    np.testing.assert_allclose(one_feedback.priorities, np.concatenate(feedback.priorities), rtol=1e-4)
    np.testing.assert_allclose(one_feedback.metrics["loss"], feedback.metrics["loss"][0], rtol=1e-4)


def test_gradients_norm_is_clipped():
    agent, state, update = learner(max_gradient_norm=0.125)
    after, feedback = update(state, jax.random.key(0), random_sample(0))
    assert feedback.metrics["gradient_norm"] > 0.5
    clipped = jax.tree.leaves(jax.tree.map(lambda m: m / (1 - ADAM_B1), after.opt_state[1].mu))
    np.testing.assert_allclose(np.sqrt(sum(np.sum(np.square(g)) for g in clipped)), 0.125, rtol=1e-4)


def test_adams_step():
    """Adam's first step is learning_rate g / (|g| + epsilon)."""
    agent, state, update = learner(learning_rate=0.25, adam_epsilon=0.1)
    after, _ = update(state, jax.random.key(0), random_sample(0))
    g = jax.tree.map(lambda m: np.asarray(m) / (1 - ADAM_B1), after.opt_state[1].mu)
    expected = jax.tree.map(lambda p, g: p - 0.25 * g / (np.abs(g) + 0.1), state.params, g)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), after.params, expected)


def test_targets_are_copied_every_period():
    agent, state, update = learner(target_period=3, learning_rate=0.1)
    targets = state.target_params
    for step in range(1, 8):
        state, _ = update(state, jax.random.key(0), random_sample(step))
        if step % 3 == 0:
            targets = state.params
        jax.tree.map(np.testing.assert_array_equal, state.target_params, targets)
    fresh = jax.jit(agent.init)(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, fresh.target_params, fresh.params)


# Acting --------------------------------------------------------------------------------------------------------------


def play(agent: r2d2.Agent, policy, observation, first, ranks=None):
    """Returns the steps of acting one row at a time, [rows, B, ...], and the memory before each row."""
    rows, B = first.shape
    rng = np.random.default_rng(7)
    act, memory, steps, memories = jax.jit(agent.act), agent.memory(B, ranks), [], []
    reward = np.zeros(B, np.float32)
    for t in range(rows):
        memories.append(memory)
        reward = np.where(first[t], np.float32(0), reward)
        timestep = TimeStep(observation[t], reward, np.ones(B, np.float32), first[t], np.zeros(B, bool))
        action, extras, memory = act(policy, jax.random.key(t), timestep, memory)
        assert action.dtype == jnp.int32 and action.shape == (B,)
        np.testing.assert_array_equal(extras["previous_reward"], reward)
        reward = rng.normal(size=B).astype(np.float32)
        steps.append(Step(observation[t], action, reward, np.ones(B, np.float32), first[t], extras))
    return jax.tree.map(lambda *x: np.stack(x), *steps), memories


def sequence(steps: Step, memories, start: int, rows: int, b: int) -> Sample:
    """Returns rows start, start + 1, ... of environment b as a batch of one. Rows before row 0 are padding."""
    before = max(0, -start)
    taken = jax.tree.map(lambda x: x[max(start, 0) : start + rows, b : b + 1], steps)
    padded = jax.tree.map(lambda x: np.concatenate([np.zeros((before, *x.shape[1:]), x.dtype), x]), taken)
    padded.first[:before] = True
    memory = jax.tree.map(lambda x: np.asarray(x)[b : b + 1], memories[max(start, 0)])
    return Sample(padded, memory, np.ones(1, np.float32))


CASES = [
    ({}, (D,), np.float32),
    ({"dueling": False, "burn_in": 0}, (D,), np.float32),
    ({"frame_stack": 3}, (3, 4), np.uint8),
    ({"torso": "shallow", "frame_stack": 1}, (24, 24), np.uint8),
]


@pytest.mark.parametrize(("fields", "shape", "dtype"), CASES)
def test_acting_step_by_step_is_the_unrolled_network(fields, shape, dtype):
    """A learner that unrolls from the stored state finds the values that acting noted. So it finds the actor's
    priority, if both its networks are the actor's. For an episode's first sequence it does so without the stored state
    too, but for no other sequence."""
    agent_config, spec = config(**fields), EnvironmentSpec(shape, np.dtype(dtype), DiscreteActions(A))
    agent = r2d2.make(agent_config, spec)
    zero = r2d2.make(dataclasses.replace(agent_config, stored_state=False), spec)
    # A convolutional torso has many features, so small parameters suffice; large ones would shut the LSTM's gates, and
    # nothing would be remembered.
    scale = 0.5 if agent_config.torso == "mlp" else 0.05
    state = loud(jax.jit(agent.init)(jax.random.key(1)), apart=False, scale=scale)
    rows, B, burn_in = 24, 2, fields.get("burn_in", 3)
    rng = np.random.default_rng(0)
    observation = (
        (256 * rng.random((rows, B, *shape))).astype(dtype)
        if dtype == np.uint8
        else rng.normal(size=(rows, B, *shape)).astype(dtype)
    )
    first = np.zeros((rows, B), bool)
    first[0] = True
    steps, memories = play(agent, agent.policy(state), observation, first, np.array([0.0, 0.3]))
    np.testing.assert_array_equal(steps.extras["previous_action"][1:], steps.action[:-1])

    update, update_zero, priority = jax.jit(agent.update), jax.jit(zero.update), jax.jit(agent.priority)
    for start in (-burn_in, 4, 11):
        for b in range(B):
            sample = sequence(steps, memories, start, burn_in + 7, b)
            noted = priority(agent.policy(state), sample)
            assert noted > 0.01
            found = update(state, jax.random.key(0), sample)[1].priorities
            np.testing.assert_allclose(found, noted, rtol=1e-3, err_msg=f"{start}")
            from_zero = update_zero(state, jax.random.key(0), sample)[1].priorities
            if start <= 0:
                np.testing.assert_allclose(from_zero, noted, rtol=1e-3)
            else:
                assert (np.abs(from_zero - noted) > 1e-5).all(), "the control"


def test_the_state_is_that_of_an_unroll_from_the_episodes_first_row():
    """While the parameters stay, the stored and the recomputed states agree (section 3)."""
    agent, state, _ = learner()
    rng = np.random.default_rng(0)
    first = np.zeros((12, 2), bool)
    first[0], first[5, 1] = True, True
    steps, memories = play(agent, agent.policy(state), rng.normal(size=(12, 2, D)).astype(np.float32), first)
    zeros = LSTMState(*np.zeros((2, 2, SIZE), np.float32))
    q, states = naive_unroll(QNetwork("mlp", A, (6,), "tanh", SIZE, True), state.params, steps, zeros)
    np.testing.assert_allclose(steps.extras["q"], q, rtol=1e-4, atol=1e-5)
    for memory, expected in zip(memories, states, strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), memory.lstm, expected)


def test_the_actors_priority_is_the_formula_on_what_it_noted():
    agent, state, _ = learner()
    sample = random_sample(6)
    policy = agent.policy(state)._replace(discount=jnp.float32(0.7))  # the state's, not the config's
    steps = jax.tree.map(lambda x: x[3:], sample.steps)
    errors, live = naive_errors(steps.extras["q"], steps.extras["q"], steps, 0.7, 3, 1e-3)
    got = jax.jit(agent.priority)(policy, sample)
    np.testing.assert_allclose(got, naive_priorities(errors, live, 0.9), rtol=1e-3)


def test_nothing_crosses_into_an_episode_as_it_opens():
    agent, state, _ = learner()
    observation = np.ones((4, D), np.float32)
    first = np.array([True, True, False, False])
    timestep = TimeStep(observation, np.array([0, 0, 2, 2], np.float32), np.ones(4, np.float32), first, ~first)
    memory, act = agent.memory(4), jax.jit(agent.act)
    other = memory._replace(previous_action=memory.previous_action + 2, lstm=jax.tree.map(lambda x: x + 1, memory.lstm))

    def values(timestep, memory):
        return np.asarray(act(agent.policy(state), jax.random.key(0), timestep, memory)[1]["q"])

    q, q_other = values(timestep, memory), values(timestep, other)
    np.testing.assert_array_equal(q[:2], q_other[:2])
    assert (q[2:] != q_other[2:]).all()
    by_action = memory._replace(previous_action=memory.previous_action + 2)
    assert (values(timestep, by_action)[2:] != q[2:]).all()
    assert (values(timestep._replace(reward=timestep.reward + 1), memory)[2:] != q[2:]).all()


def test_epsilons_ladder():
    """As in section 2.3, environment i of N acts at random with probability epsilon^(1 + alpha i / (N - 1))."""
    agent = r2d2.make(config(epsilon=0.5, epsilon_spread=3.0), SPEC)
    state = loud(jax.jit(agent.init)(jax.random.key(0)))
    policy, each = agent.policy(state), 4000
    ranks = np.repeat([0.0, 0.5, 1.0], each)
    none = np.zeros(3 * each, np.float32)
    timestep = TimeStep(np.tile(np.float32([1, -1, 2]), (3 * each, 1)), none, none + 1, none > 0, none > 0)
    memory = agent.memory(3 * each, ranks)
    action, extras, _ = jax.jit(agent.act)(policy, jax.random.key(0), timestep, memory)
    best = int(np.argmax(extras["q"][0]))
    explored = (np.asarray(action) != best).reshape(3, each).mean(axis=1) * A / (A - 1)
    np.testing.assert_allclose(explored, [0.5, 0.5**2.5, 0.5**4], atol=0.03)
    others = np.bincount(np.asarray(action)[:each], minlength=A) / each
    np.testing.assert_allclose(np.delete(others, best), 0.5 / A, atol=0.03)

    greedy, extras, _ = jax.jit(agent.act_greedily)(policy, jax.random.key(0), timestep, memory)
    assert (greedy == best).all() and greedy.dtype == jnp.int32 and extras == {}
    changed = policy._replace(epsilon=jnp.float32(0))  # a hyper, as is all that a population may tune
    assert (jax.jit(agent.act)(changed, jax.random.key(0), timestep, memory)[0] == best).all()


def test_memory_remembers_the_action_that_was_taken():
    agent, state, _ = learner()
    none = np.zeros(64, np.float32)
    timestep = TimeStep(np.ones((64, D), np.float32), none, none + 1, none > 0, none > 0)
    for act in (agent.act, agent.act_greedily):
        action, _, memory = jax.jit(act)(agent.policy(state), jax.random.key(0), timestep, agent.memory(64))
        np.testing.assert_array_equal(memory.previous_action, action)


def test_the_table():
    agent = r2d2.make(
        config(burn_in=4, sequence_length=10, overlap=3, replay_size=500, min_replay_size=20, samples_per_insert=2.0),
        SPEC,
    )
    table = agent.table
    assert table.items == Sequences(burn_in=4, length=10, period=7) and table.kind == "prioritized"
    assert (table.max_size, table.min_size, table.samples_per_insert) == (500, 20, 2.0)
    assert table.priority_exponent == 0.9


# What is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "spec", "message"),
    [
        (
            SMALL,
            EnvironmentSpec((D,), np.dtype(np.float32), BoundedActions(-np.ones(2), np.ones(2))),
            "discrete actions",
        ),
        ({"torso": "nature", "frame_stack": 1}, SPEC, "torso=mlp"),
        ({"torso": "mlp", "frame_stack": 4}, SPEC, "frame_stack=1"),
    ],
)
def test_a_network_that_does_not_fit_is_refused(options, spec, message):
    with pytest.raises(ValueError, match=message) as error:
        r2d2.make(r2d2.Config(**options), spec)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"overlap": 7}, "config.overlap=7 must be below config.sequence_length=7"),
        ({"overlap": 0}, "config.overlap must be at least 1, not 0"),
        ({"n_step": 7}, "config.n_step=7 must be below config.sequence_length=7"),
        ({"burn_in": -1}, "config.burn_in must be 0 or more"),
        ({"lstm_size": 0}, "config.lstm_size must be at least 1"),
        ({"discount": 1.1}, "config.discount must be within"),
        ({"epsilon": -0.1}, "config.epsilon must be within"),
        ({"learning_rate": 0.0}, "config.learning_rate must be above 0"),
        ({"min_replay_size": 200_000}, "config.min_replay_size=200000 must not exceed config.replay_size=100000"),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_name(fields, message):
    with pytest.raises(ValueError, match=message):
        config(**fields)


@pytest.mark.parametrize(("burn_in", "stack"), [(3, 1), (0, 3)])
def test_each_function_is_compiled_once(burn_in, stack):
    shape, dtype = ((2, 3), np.uint8) if stack > 1 else ((D,), np.float32)
    agent = r2d2.make(
        config(burn_in=burn_in, frame_stack=stack), EnvironmentSpec(shape, np.dtype(dtype), DiscreteActions(A))
    )
    functions = [jax.jit(f) for f in (agent.init, agent.update, agent.act, agent.act_greedily, agent.priority)]
    init, update, act, act_greedily, priority = functions
    state = init(jax.random.key(0))
    for seed in range(3):
        sample = random_sample(seed)
        observation = np.zeros((*sample.steps.reward.shape, *shape), dtype)
        memory = sample.memory._replace(frames=agent.memory(len(LAYOUTS)).frames)
        sample = Sample(sample.steps._replace(observation=observation), memory, sample.likelihood)
        priority(agent.policy(state), sample)
        state, _ = update(state, jax.random.key(seed), sample)
    memory, none = agent.memory(2, np.zeros(2, np.float32)), np.zeros(2, np.float32)
    for t in range(3):
        timestep = TimeStep(np.zeros((2, *shape), dtype), none, none, none > 0, none > 0)
        act_greedily(agent.policy(state), jax.random.key(t), timestep, memory)
        _, _, memory = act(agent.policy(state), jax.random.key(t), timestep, memory)
    assert [function._cache_size() for function in functions] == [1, 1, 1, 1, 1]


def test_the_defaults_are_the_papers():
    paper = {
        "sequence_length": 80, "overlap": 40, "burn_in": 40, "discount": 0.997, "n_step": 5, "batch_size": 64,
        "learning_rate": 1e-4, "adam_epsilon": 1e-3, "target_period": 2500, "replay_size": 100_000,
        "priority_exponent": 0.9, "importance_exponent": 0.6, "priority_eta": 0.9, "epsilon": 0.4,
        "epsilon_spread": 7.0, "rescaling_epsilon": 1e-3,
    }  # fmt: skip
    defaults = dataclasses.asdict(r2d2.Config())
    assert {name: defaults[name] for name in paper} == paper
