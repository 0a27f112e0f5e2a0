"""A2C against Mnih et al. 2016 (algorithm S3) and Schulman et al. 2016, restated as plainly as can be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents import a2c
from agents.agent import AXIS, Blocks, BoundedActions, DiscreteActions, EnvironmentSpec, Sample, Step, TimeStep
from agents.parts.advantages import gae, normalize

D, A = 3, 4
DISCRETE = EnvironmentSpec((D,), np.dtype(np.float32), DiscreteActions(A))
LOW, HIGH = np.array([-2.0, 0.0], np.float32), np.array([2.0, 1.0], np.float32)
CONTINUOUS = EnvironmentSpec((D,), np.dtype(np.float32), BoundedActions(LOW, HIGH))
SPECS = pytest.mark.parametrize("spec", [DISCRETE, CONTINUOUS], ids=["discrete", "continuous"])

# Advantages ----------------------------------------------------------------------------------------------------------


def random_rows(seed: int, T: int = 12, B: int = 5) -> dict[str, np.ndarray]:
    """Returns random inputs of GAE. Where an episode ends with s_{t+1}, by termination or by truncation, row t+1 is
    dead."""
    rng = np.random.default_rng(seed)
    live = np.ones((T, B))
    live[0] = rng.random(B) < 0.8
    discounts = rng.uniform(0.8, 1.0, (T, B))
    for t in range(T):
        ends = (rng.random(B) < 0.25) & (live[t] > 0)
        discounts[t, ends & (rng.random(B) < 0.5)] = 0.0
        if t + 1 < T:
            live[t + 1, ends] = 0.0
    rubbish = np.where(live, 1.0, 100.0)
    values, rewards = rng.normal(size=(T + 1, B)), rng.normal(size=(T, B)) * rubbish
    rows = {"values": values, "rewards": rewards, "discounts": discounts, "live": live}
    return {name: x.astype(np.float32) for name, x in rows.items()}


def naive_gae(values, rewards, discounts, live, lambda_) -> np.ndarray:
    """The sum over l of (gamma lambda)^l delta_{t+l}, for each t, to the end of its episode or of the block."""
    T, B = rewards.shape
    advantages = np.zeros((T, B))
    for b in range(B):
        for t in range(T):
            weight = 1.0
            for s in range(t, T):
                if not live[s, b]:
                    break
                delta = rewards[s, b] + discounts[s, b] * values[s + 1, b] - values[s, b]
                advantages[t, b] += weight * delta
                weight *= discounts[s, b] * lambda_
    return advantages


@pytest.mark.parametrize("lambda_", [0.0, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("seed", range(8))
def test_gae_is_the_double_sum(seed, lambda_):
    rows = random_rows(seed)
    np.testing.assert_allclose(jax.jit(gae)(**rows, lambda_=lambda_), naive_gae(**rows, lambda_=lambda_), atol=1e-4)


def test_random_rows_hold_every_case():
    rows = [random_rows(seed) for seed in range(8)]
    before_dead = np.concatenate([r["discounts"][:-1][r["live"][1:] == 0] for r in rows])
    assert (before_dead == 0).any() and (before_dead > 0).any(), "both terminations and truncations"
    assert any((r["live"][0] == 0).any() for r in rows) and any((r["live"][-1] == 0).any() for r in rows)


@pytest.mark.parametrize("seed", range(4))
def test_a_lambda_of_1_gives_n_step_returns(seed):
    """The returns are algorithm S3's R: they sum backwards from the value of the block's end or of an episode's final
    observation, and from 0 where the episode terminated."""
    rows = random_rows(seed)
    V, T = rows["values"], len(rows["rewards"])
    R = V.copy()
    for t in reversed(range(T)):
        R[t] = np.where(rows["live"][t], rows["rewards"][t] + rows["discounts"][t] * R[t + 1], V[t])
    np.testing.assert_allclose(gae(**rows, lambda_=1.0) + V[:-1], R[:-1], atol=1e-4)


def test_normalised_advantages_have_mean_0_and_variance_1_over_live_rows():
    rows = random_rows(0)
    advantages, live = 3 + 5 * gae(**rows, lambda_=0.9), rows["live"] > 0
    got = np.asarray(jax.jit(normalize)(advantages * live, rows["live"]))
    expected = (advantages[live] - advantages[live].mean()) / advantages[live].std()
    np.testing.assert_allclose(got[live], expected, rtol=1e-3, atol=1e-4)
    assert (got[~live] == 0).all()
    halves = [np.stack([x[:, :2], x[:, 2:4]]) for x in (advantages * live, rows["live"])]
    shards = jax.vmap(normalize, axis_name=AXIS)(*halves)  # with different numbers of live rows
    whole = normalize((advantages * live)[:, :4], rows["live"][:, :4])
    np.testing.assert_allclose(np.concatenate(shards, axis=1), whole, rtol=1e-3, atol=1e-4)


def test_normalised_advantages_change_the_policys_gradient_alone():
    config = {"unroll_length": 4, "batch_size": 3, "entropy_cost": 0.0}
    plain, normalised = (a2c.make(linear_config(**config, normalize_advantages=n), DISCRETE) for n in (False, True))
    state, sample = randomised(plain.init(jax.random.key(0))), random_sample(0, 4, 3, DISCRETE, plain.memory(3, None))
    g, h = (agent.gradient(state, jax.random.key(0), sample)[0].params["params"] for agent in (plain, normalised))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), g["value"], h["value"])
    assert np.abs(g["policy"]["kernel"] - h["policy"]["kernel"]).max() > 0.01


# The gradient --------------------------------------------------------------------------------------------------------


def linear_config(**fields) -> a2c.Config:
    """Returns a Config whose network has no hidden layers."""
    return a2c.Config(**({"torso": "mlp", "hidden_sizes": (), "frame_stack": 1} | fields))


def random_sample(seed: int, T: int, B: int, spec: EnvironmentSpec, memory=(), first=None) -> Sample:
    """Returns random rows [T+1, B]. A row before a `first` row closes its episode, half of them by termination, and its
    action is thrown away."""
    rng = np.random.default_rng(seed)
    shape = (T + 1, B)
    first = rng.random(shape) < 0.25 if first is None else first
    closing = np.concatenate([first[1:], np.zeros((1, B), bool)])
    terminal = closing & (rng.random(shape) < 0.5)
    discount = np.concatenate([np.where(terminal[1:], 0.0, 1.0), np.ones((1, B))]).astype(np.float32)
    observation, reward = rng.normal(size=(*shape, D)).astype(np.float32), rng.normal(size=shape).astype(np.float32)
    if isinstance(spec.actions, DiscreteActions):
        action, extras = rng.integers(A, size=shape).astype(np.int32), {}
    else:
        raw = rng.normal(size=(*shape, 2)).astype(np.float32)
        action, extras = LOW + (np.clip(raw, -1, 1) + 1) / 2 * (HIGH - LOW), {"raw": raw}
    return Sample(Step(observation, action, reward, discount, first, extras), memory)


def randomised(state: a2c.State, seed: int = 0) -> a2c.State:
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape) * 0.5, jnp.float32), state.params)
    return state._replace(params=params)


def terms(params, sample: Sample, hypers: dict[str, float], targets=None):
    """Returns the policy, baseline and entropy terms, each summed over the live rows in float64, and the targets, which
    are computed unless they are given."""
    heads = jax.tree.map(lambda p: np.asarray(p, np.float64), params["params"])
    steps = sample.steps
    V = (steps.observation @ heads["value"]["kernel"] + heads["value"]["bias"])[..., 0]
    outputs = steps.observation @ heads["policy"]["kernel"] + heads["policy"]["bias"]
    live = 1.0 - steps.first[1:]
    rewards, discounts = hypers["reward_scale"] * steps.reward[:-1], hypers["discount"] * steps.discount[:-1]
    if targets is None:
        advantages = naive_gae(V, rewards, discounts, live, hypers["lambda_"])
        targets = advantages, advantages + V[:-1]
    advantages, R = targets
    policy = baseline = entropy = 0.0
    for t in range(len(live)):
        for b in range(live.shape[1]):
            if not live[t, b]:
                continue
            if "free" in heads:
                mu, sigma = outputs[t, b], np.exp(heads["free"])
                z = (steps.extras["raw"][t, b] - mu) / sigma
                log_pi = np.sum(-0.5 * z**2 - np.log(sigma) - 0.5 * np.log(2 * np.pi))
                entropy += np.sum(0.5 * np.log(2 * np.pi * np.e * sigma**2))
            else:
                log_p = outputs[t, b] - np.log(np.exp(outputs[t, b]).sum())
                log_pi = log_p[steps.action[t, b]]
                entropy -= np.sum(np.exp(log_p) * log_p)
            policy -= log_pi * advantages[t, b]
            baseline += 0.5 * (R[t, b] - V[t, b]) ** 2
    return (policy, baseline, entropy), targets


HYPERS = {"discount": 0.9, "lambda_": 0.8, "baseline_cost": 0.3, "entropy_cost": 0.2, "reward_scale": 0.5}


@SPECS
def test_gradient_is_the_papers_by_finite_differences(spec):
    """The gradient sums over time and averages over environments. Returns and advantages are constants in it."""
    T, B = 4, 3
    agent = a2c.make(linear_config(unroll_length=T, batch_size=B, reward_scale=0.5), spec)
    state = randomised(agent.init(jax.random.key(0)))
    hypers = {name: jnp.float32(HYPERS[name]) for name in a2c.Hypers._fields if name in HYPERS}
    state = state._replace(hypers=state.hypers._replace(**hypers))  # the update must use these, not the config's
    sample = random_sample(1, T, B, spec, agent.memory(B, None))
    assert 0 < sample.steps.first[1:].sum() < T * B
    gradient, feedback = jax.jit(agent.gradient)(state, jax.random.key(0), sample)

    leaves, tree = jax.tree.flatten(jax.tree.map(lambda p: np.asarray(p, np.float64), state.params))
    (policy, baseline, entropy), targets = terms(state.params, sample, HYPERS)

    def loss(leaves) -> float:
        policy, baseline, entropy = terms(jax.tree.unflatten(tree, leaves), sample, HYPERS, targets)[0]
        return (policy + 0.3 * baseline - 0.2 * entropy) / B

    for i, (leaf, got) in enumerate(zip(leaves, jax.tree.leaves(gradient), strict=True)):
        expected = np.zeros_like(leaf)
        for index in np.ndindex(leaf.shape):
            step = np.zeros_like(leaf)
            step[index] = 1e-5
            high, low = ([*leaves[:i], leaf + sign * step, *leaves[i + 1 :]] for sign in (1, -1))
            expected[index] = (loss(high) - loss(low)) / 2e-5
        assert np.abs(expected).max() > 0.01
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)

    metrics, live = feedback.metrics, 1.0 - sample.steps.first[1:]
    np.testing.assert_allclose(metrics["policy_loss"], policy / (T * B), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(metrics["baseline_loss"], baseline / (T * B), rtol=1e-3)
    np.testing.assert_allclose(metrics["entropy"], entropy / live.sum(), rtol=1e-3)
    np.testing.assert_allclose(metrics["loss"], loss(leaves) / T, rtol=1e-3, atol=1e-5)
    norm = np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(gradient)))
    np.testing.assert_allclose(metrics["gradient_norm"], norm, rtol=1e-4)


@pytest.mark.parametrize("optimizer", ["rmsprop", "adam"])
def test_update_is_its_two_halves_and_the_gradient_knows_no_optimiser(optimizer):
    agent = a2c.make(linear_config(unroll_length=4, batch_size=3, optimizer=optimizer), DISCRETE)
    state, sample = randomised(agent.init(jax.random.key(0))), random_sample(0, 4, 3, DISCRETE, agent.memory(3, None))
    updated, feedback = jax.jit(agent.update)(state, jax.random.key(0), sample)
    gradient, halves = jax.jit(agent.gradient)(state._replace(opt_state=()), jax.random.key(0), sample)
    applied = jax.jit(agent.apply)(state, gradient)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    jax.tree.map(close, updated, applied)
    jax.tree.map(close, feedback.metrics, halves.metrics)
    assert int(applied.step) == 1


def test_two_shards_are_one_batch():
    agent = a2c.make(linear_config(unroll_length=4, batch_size=6), CONTINUOUS)
    state, sample = randomised(agent.init(jax.random.key(0))), random_sample(0, 4, 6, CONTINUOUS)
    sample = sample._replace(memory=agent.memory(6, None))
    whole, feedback = jax.jit(agent.update)(state, jax.random.key(0), sample)
    halves = sample._replace(steps=jax.tree.map(lambda x: np.stack([x[:, :3], x[:, 3:]]), sample.steps))
    update = jax.jit(jax.vmap(agent.update, in_axes=(None, None, 0), axis_name=AXIS))
    shards, shard_feedback = update(state, jax.random.key(0), halves)
    for i in range(2):
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-5), shards.params, whole.params
        )
        for name in set(feedback.metrics) - {"entropy"}:  # entropy is a mean over each shard's transitions
            got = shard_feedback.metrics[name][i]
            np.testing.assert_allclose(got, feedback.metrics[name], rtol=1e-3, atol=1e-5, err_msg=name)


def test_a_batch_of_dead_rows_alone_teaches_nothing():
    agent = a2c.make(linear_config(unroll_length=1, batch_size=2), DISCRETE)
    state = agent.init(jax.random.key(0))
    first = np.array([[False, False], [True, True]])
    sample = random_sample(0, 1, 2, DISCRETE, agent.memory(2, None), first)
    after, feedback = jax.jit(agent.update)(state, jax.random.key(0), sample)
    jax.tree.map(np.testing.assert_array_equal, after.params, state.params)
    assert {name: value for name, value in feedback.metrics.items() if not np.isfinite(value)} == {}


# Episodes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lstm_size", [0, 5])
@pytest.mark.parametrize("terminal", [False, True])
def test_a_blocks_gradient_is_the_sum_of_its_episodes(lstm_size, terminal):
    """The second episode teaches what it would teach alone, with nothing before it. The LSTM starts anew there."""
    T, B, opening = 7, 2, 3
    config = linear_config(unroll_length=T, batch_size=B, lstm_size=lstm_size)
    agent = a2c.make(config, DISCRETE)
    state, rng = randomised(agent.init(jax.random.key(0))), np.random.default_rng(5)
    memory = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), agent.memory(B, None))
    first = np.zeros((T + 1, B), bool)
    first[opening] = True
    whole = random_sample(2, T, B, DISCRETE, memory, first)
    discount = np.ones((T + 1, B), np.float32)
    discount[opening - 2] = 0.0 if terminal else 1.0  # row opening - 1 is the episode's last observation
    whole = whole._replace(steps=whole.steps._replace(discount=discount))
    gradient = jax.jit(agent.gradient)

    def of(sample):
        return gradient(state, jax.random.key(0), sample)[0]

    first_alone, second_alone = first.copy(), first.copy()
    first_alone[opening:], second_alone[:opening] = True, True
    rubbish = jax.tree.map(np.array, whole.steps)
    rubbish.observation[:opening] += 1.0
    rubbish.reward[:opening] += 10.0
    first_part = of(whole._replace(steps=whole.steps._replace(first=first_alone)))
    second_part = of(Sample(rubbish._replace(first=second_alone), agent.memory(B, None)))
    total = jax.tree.map(np.add, first_part, second_part)
    got = of(whole)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), got, total)
    # The control: the gradient differs if row `opening` does not begin an episode.
    joined = of(whole._replace(steps=whole.steps._replace(first=np.zeros((T + 1, B), bool))))
    difference = jax.tree.map(lambda a, b: np.abs(a - b).max(), joined, total)
    assert max(jax.tree.leaves(difference)) > 0.01


def test_what_closes_an_episode_teaches_nothing_but_its_value():
    """The action and the outcome of the row that closes an episode are thrown away. V of its observation is the
    bootstrap value of a truncation."""
    T, B = 4, 1
    agent = a2c.make(linear_config(unroll_length=T, batch_size=B), DISCRETE)
    state = randomised(agent.init(jax.random.key(0)))
    first = np.zeros((T + 1, B), bool)
    first[3] = True  # row 2 is the last of its episode
    sample = random_sample(0, T, B, DISCRETE, agent.memory(B, None), first)
    gradient = jax.jit(agent.gradient)

    def of(gamma: float, **changes):
        steps = jax.tree.map(np.array, sample.steps)
        steps.discount[:] = 1.0
        steps.discount[1] = gamma
        for name, value in changes.items():
            getattr(steps, name)[2] = value
        return np.concatenate(
            [x.ravel() for x in jax.tree.leaves(gradient(state, None, Sample(steps, sample.memory))[0])]
        )

    for gamma in (0.0, 1.0):
        np.testing.assert_array_equal(of(gamma), of(gamma, reward=99.0, action=1, discount=0.3))
    np.testing.assert_array_equal(of(0.0), of(0.0, observation=7.0))
    assert (of(1.0) != of(1.0, observation=7.0)).any()


# The step ------------------------------------------------------------------------------------------------------------


def test_rmsprop_is_not_centred_and_has_its_epsilon_inside_the_root():
    """g = alpha g + (1 - alpha) dtheta^2, theta = theta - eta dtheta / sqrt(g + epsilon)."""
    fields = {"rmsprop_decay": 0.5, "epsilon": 0.01, "learning_rate": 0.1, "max_gradient_norm": 1e9}
    agent = a2c.make(linear_config(unroll_length=4, batch_size=2, **fields), DISCRETE)
    state = randomised(agent.init(jax.random.key(0)))
    params, squares = state.params, jax.tree.map(jnp.zeros_like, state.params)
    for i in range(3):
        gradient = jax.tree.map(lambda p, i=i: jnp.full_like(p, 0.3 * (-1) ** i), params)
        squares = jax.tree.map(lambda s, d: 0.5 * s + 0.5 * d**2, squares, gradient)
        params = jax.tree.map(lambda p, s, d: p - 0.1 * d / np.sqrt(s + 0.01), params, squares, gradient)
        state = agent.apply(state, a2c.Gradient(gradient, ()))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), state.params, params)


def test_gradients_norm_is_clipped():
    fields = {"rmsprop_decay": 1.0, "epsilon": 1.0, "learning_rate": 1.0, "max_gradient_norm": 0.125}  # plain descent
    agent = a2c.make(linear_config(**fields), DISCRETE)
    state = agent.init(jax.random.key(0))
    after = agent.apply(state, a2c.Gradient(jax.tree.map(jnp.ones_like, state.params), ()))
    moved = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), state.params, after.params)
    np.testing.assert_allclose(np.sqrt(sum(np.sum(x**2) for x in jax.tree.leaves(moved))), 0.125, rtol=1e-4)


def test_learning_rate_falls_linearly_to_zero():
    T, B = 4, 2
    agent = a2c.make(
        linear_config(unroll_length=T, batch_size=B, decay_env_steps=4 * T * B, learning_rate=0.5), DISCRETE
    )
    update, state, rates = jax.jit(agent.update), agent.init(jax.random.key(0)), []
    for i in range(6):
        before = state = state._replace(env_steps=jnp.float32(i * T * B))
        state, feedback = update(state, jax.random.key(0), random_sample(i, T, B, DISCRETE, agent.memory(B, None)))
        rates.append(float(feedback.metrics["learning_rate"]))
        moved = any((a != b).any() for a, b in zip(jax.tree.leaves(before.params), jax.tree.leaves(state.params)))
        assert moved == (rates[-1] > 0)
    np.testing.assert_allclose(rates, [0.5, 0.375, 0.25, 0.125, 0.0, 0.0], atol=1e-6)
    assert int(state.step) == 6 and update._cache_size() == 1


# Acting --------------------------------------------------------------------------------------------------------------


def timestep(observation: np.ndarray) -> TimeStep:
    zeros = np.zeros(len(observation), np.float32)
    return TimeStep(observation, zeros, zeros + 1, zeros > 0, zeros > 0)


def test_discrete_actions_follow_the_policy():
    agent, B = a2c.make(linear_config(), DISCRETE), 4000
    state = randomised(agent.init(jax.random.key(0)))
    head = state.params["params"]["policy"]
    logits = np.ones(D) @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
    now = timestep(np.ones((B, D), np.float32))
    action, extras, _ = jax.jit(agent.act)(agent.policy(state), jax.random.key(1), now, agent.memory(B, None))
    assert action.dtype == jnp.int32 and extras == {}
    np.testing.assert_allclose(np.bincount(action, minlength=A) / B, np.exp(logits) / np.exp(logits).sum(), atol=0.03)
    greedy, extras, _ = agent.act_greedily(agent.policy(state), jax.random.key(1), now, agent.memory(B, None))
    assert (greedy == logits.argmax()).all() and extras == {}


@pytest.mark.parametrize("squash", [False, True])
def test_continuous_actions_are_bounded_and_their_raw_ones_kept(squash):
    agent, B = a2c.make(linear_config(sigma_initial=0.7, squash=squash), CONTINUOUS), 4000
    state = agent.init(jax.random.key(0))
    now = timestep(np.ones((B, D), np.float32))
    action, extras, _ = jax.jit(agent.act)(agent.policy(state), jax.random.key(1), now, agent.memory(B, None))
    raw = np.asarray(extras["raw"])
    unit = np.tanh(raw) if squash else np.clip(raw, -1, 1)
    np.testing.assert_allclose(action, LOW + (unit + 1) / 2 * (HIGH - LOW), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(raw.std(axis=0), 0.7, rtol=0.05)
    assert (np.abs(raw) > 1).any(), "what is kept is not clipped"
    greedy, _, _ = agent.act_greedily(agent.policy(state), jax.random.key(1), now, agent.memory(B, None))
    np.testing.assert_allclose(greedy, np.tile((LOW + HIGH) / 2, (B, 1)), atol=0.1)


# Settings ------------------------------------------------------------------------------------------------------------


def test_table():
    agent = a2c.make(linear_config(unroll_length=5, batch_size=16, queue_batches=3), DISCRETE)
    table = agent.table
    assert table.items == Blocks(5) and table.kind == "queue" and table.max_size == 48
    assert agent.batch_size == 16 and agent.priority is None and not agent.in_order


@pytest.mark.parametrize(
    ("options", "spec", "message"),
    [
        ({}, EnvironmentSpec((D,), np.dtype(np.float32), BoundedActions(LOW, HIGH + np.inf)), "a2c needs actions with"),
        ({"torso": "shallow"}, DISCRETE, "torso=mlp"),
        ({"frame_stack": 4}, DISCRETE, "frame_stack=1"),
        ({"separate_value": True, "lstm_size": 4}, DISCRETE, "lstm_size=0"),
    ],
)
def test_what_does_not_fit_is_refused(options, spec, message):
    with pytest.raises(ValueError, match=message) as error:
        a2c.make(linear_config(**options), spec)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("field", "value"), [("unroll_length", 0), ("lambda_", 1.5), ("sigma_initial", 0.0), ("learning_rate", 0.0)]
)
def test_settings_out_of_range_are_refused(field, value):
    with pytest.raises(ValueError, match=f"config.{field} must be .*, not {value}"):
        a2c.Config(**{field: value})
