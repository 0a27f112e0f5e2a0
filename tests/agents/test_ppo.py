"""PPO against Schulman et al. 2017, restated as plainly as can be, and against A2C."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from agents import a2c, ppo
from agents.agent import AXIS, Blocks, BoundedActions, DiscreteActions, EnvironmentSpec, Sample, Step, TimeStep
from tests.agents.test_a2c import naive_gae

D, A = 3, 4
DISCRETE = EnvironmentSpec((D,), np.dtype(np.float32), DiscreteActions(A))
CONTINUOUS = EnvironmentSpec(
    (D,), np.dtype(np.float32), BoundedActions(-np.ones(2, np.float32), np.ones(2, np.float32))
)
SPECS = pytest.mark.parametrize("spec", [DISCRETE, CONTINUOUS], ids=["discrete", "continuous"])
NETWORK = {"torso": "mlp", "frame_stack": 1, "hidden_sizes": (8,)}
PLAIN = NETWORK | {"normalize_advantages": False, "max_gradient_norm": 1e9, "unroll_length": 6, "batch_size": 4}


def played(agent, state, seed: int, T: int = 6, B: int = 4, dead: bool = True) -> Sample:
    """Returns rows [T+1, B] made by the agent's own policy. A row before a `first` row closes its episode, half of them
    by termination."""
    rng, memory = np.random.default_rng(seed), agent.memory(B, None)
    first = rng.random((T + 1, B)) < (0.25 if dead else 0.0)
    closing = np.concatenate([first[1:], np.zeros((1, B), bool)])
    terminal = closing & (rng.random(closing.shape) < 0.5)
    discount = np.concatenate([np.where(terminal[1:], 0.0, 1.0), np.ones((1, B))]).astype(np.float32)
    reward = rng.normal(size=(T + 1, B)).astype(np.float32)
    rows, before = [], memory
    act, params = jax.jit(agent.act), agent.policy(state)
    for t in range(T + 1):
        observation = rng.normal(size=(B, D)).astype(np.float32)
        timestep = TimeStep(observation, np.zeros(B, np.float32) if t == 0 else reward[t - 1], discount[t], first[t], 0)
        action, extras, memory = act(params, jax.random.key(100 * seed + t), timestep, memory)
        rows.append(Step(observation, np.asarray(action), reward[t], discount[t], first[t], extras))
    return Sample(jax.tree.map(lambda *x: jnp.stack(x), *rows), before)


def first_gradient(state: ppo.State):
    """Returns the gradient of the first step, which Adam's first moment holds times 1 - beta_1."""
    return jax.tree.map(lambda mu: mu / 0.1, state.opt_state[1].mu)


def test_the_clipped_surrogate():
    rng = np.random.default_rng(0)
    log_ratios, advantages = rng.normal(size=(2, 50)).astype(np.float32)
    got = ppo.clipped_surrogate(log_ratios, advantages, 0.2)
    for x, advantage, value in zip(log_ratios, advantages, got, strict=True):
        ratio = np.exp(x)
        inside = min(max(ratio, 0.8), 1.2)
        assert value == pytest.approx(min(ratio * advantage, inside * advantage), rel=1e-5)
    slope = jax.vmap(jax.grad(lambda x, advantage: ppo.clipped_surrogate(x, advantage, 0.2)))(log_ratios, advantages)
    beyond = ((advantages > 0) & (np.exp(log_ratios) > 1.2)) | ((advantages < 0) & (np.exp(log_ratios) < 0.8))
    assert beyond.any() and not beyond.all()
    np.testing.assert_array_equal(slope[beyond], 0.0)
    np.testing.assert_allclose(slope[~beyond], (np.exp(log_ratios) * advantages)[~beyond], rtol=1e-5)


@SPECS
@pytest.mark.parametrize("lstm_size", [0, 5])
def test_the_first_minibatchs_gradient_is_a2cs(spec, lstm_size):
    """While nothing has moved, the ratio is 1 and the surrogate's gradient is the policy gradient."""
    costs = {"baseline_cost": 0.7, "entropy_cost": 0.03, "discount": 0.9, "lambda_": 0.8, "lstm_size": lstm_size}
    agent = ppo.make(ppo.Config(**PLAIN, **costs, epochs=1, minibatches=1), spec)
    other = a2c.make(a2c.Config(**NETWORK, **costs, unroll_length=6, batch_size=4), spec)
    state = agent.init(jax.random.key(0))
    for seed in range(3):
        sample = played(agent, state, seed)
        after, feedback = jax.jit(agent.update)(state, jax.random.key(1), sample)
        extras = {name: x for name, x in sample.steps.extras.items() if name == "raw"}
        same = Sample(sample.steps._replace(extras=extras), sample.memory)
        theirs = other.init(jax.random.key(0))
        jax.tree.map(np.testing.assert_array_equal, theirs.params, state.params)
        gradient, _ = jax.jit(other.gradient)(theirs._replace(opt_state=()), jax.random.key(2), same)
        # A2C sums over time and averages over environments; PPO averages over transitions.
        transitions = (1 - sample.steps.first[1:]).mean() * 6
        scaled = jax.tree.map(lambda g, n=transitions: g / n, gradient)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5), first_gradient(after), scaled.params)
        assert feedback.metrics["kl"] == pytest.approx(0, abs=1e-6) and feedback.metrics["clipped"] == 0


@pytest.mark.parametrize(
    ("clip_values", "normalize", "older"),
    [(False, False, False), (True, False, True), (False, True, True), (True, True, False)],
)
def test_epochs_of_minibatches_are_the_papers_loop(clip_values, normalize, older):
    """Algorithm 1 has K epochs over shuffled rows, each minibatch a step of Adam on eq. 9, written with plain means.

    With `older` the batch comes from a policy older than the learner's, as it may from a queue. The ratio is to the
    policy that acted.
    """
    epsilon, costs = 0.1, {"baseline_cost": 0.7, "entropy_cost": 0.03, "discount": 0.9, "lambda_": 0.8}
    options = PLAIN | {"clip_values": clip_values, "normalize_advantages": normalize, "max_gradient_norm": 0.5}
    config = ppo.Config(**options, **costs, epochs=3, minibatches=4, clip_epsilon=epsilon, learning_rate=0.03)
    agent = ppo.make(config, DISCRETE)
    state, key = agent.init(jax.random.key(0)), jax.random.key(7)
    acted = state._replace(params=jax.tree.map(lambda p: 0.5 * p + 0.1, state.params)) if older else state
    sample = played(agent, acted, 0)
    after, feedback = jax.jit(agent.update)(state, key, sample)

    network = ppo.functions("ppo", config, DISCRETE)
    steps = sample.steps
    outputs = lambda params: network.unroll(params, steps, sample.memory)
    values = np.asarray(outputs(state.params)[1])
    live = 1.0 - steps.first[1:]
    advantages = naive_gae(values, steps.reward[:-1], 0.9 * steps.discount[:-1], live, 0.8)
    targets = advantages + values[:-1]

    def objective(params, rows):
        """Returns minus eq. 9 on the given rows, which are numbers of rows of the flattened [T B] batch."""
        logits, V = outputs(params)
        logp = jax.nn.log_softmax(logits[:-1]).reshape(-1, A)[rows]
        chosen = logp[jnp.arange(len(rows)), steps.action[:-1].reshape(-1)[rows]]
        V, V_old, R, Adv = (jnp.asarray(x).reshape(-1)[rows] for x in (V[:-1], values[:-1], targets, advantages))
        keep = jnp.asarray(live).reshape(-1)[rows]
        count = jnp.maximum(keep.sum(), 1e-6)
        mean = lambda x: (keep * x).sum() / count
        if normalize:
            Adv = (Adv - mean(Adv)) / (jnp.sqrt(mean((Adv - mean(Adv)) ** 2)) + 1e-8)
        ratio = jnp.exp(chosen - steps.extras["log_prob"][:-1].reshape(-1)[rows])
        surrogate = jnp.minimum(ratio * Adv, jnp.clip(ratio, 1 - epsilon, 1 + epsilon) * Adv)
        errors = (V - R) ** 2
        if clip_values:
            errors = jnp.maximum(errors, (V_old + jnp.clip(V - V_old, -epsilon, epsilon) - R) ** 2)
        entropy = -(jnp.exp(logp) * logp).sum(-1)
        return -mean(surrogate) + 0.7 * 0.5 * mean(errors) - 0.03 * mean(entropy)

    adam = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(0.03, eps=1e-5))
    slope = jax.jit(jax.grad(objective))
    params, opt_state, seen = state.params, adam.init(state.params), []
    for epoch_key in jax.random.split(key, 3):
        order = np.asarray(jax.random.permutation(epoch_key, 24))
        seen.append(sorted(order.tolist()))
        for rows in order.reshape(4, 6):
            updates, opt_state = adam.update(slope(params, rows), opt_state)
            params = optax.apply_updates(params, updates)
    assert seen == [list(range(24))] * 3, "each row once an epoch"
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-4), after.params, params)
    assert feedback.metrics["minibatches"] == 12
    assert feedback.metrics["clipped"] > 0, "the ratio left the interval: clipping was at work"


def test_an_update_stops_where_policies_are_too_far_apart():
    options = PLAIN | {"epochs": 4, "minibatches": 1, "learning_rate": 0.05}
    agents = [ppo.make(ppo.Config(**options, max_kl=bound), DISCRETE) for bound in (0.0, 1e-3)]
    state = agents[0].init(jax.random.key(0))
    sample = played(agents[0], state, 0)
    (free, _), (stopped, feedback) = (jax.jit(agent.update)(state, jax.random.key(0), sample) for agent in agents)
    done = int(feedback.metrics["minibatches"])
    assert 1 <= done < 4
    shorter = ppo.make(ppo.Config(**options | {"epochs": done}), DISCRETE)
    expected, _ = jax.jit(shorter.update)(state, jax.random.key(0), sample)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), stopped.params, expected.params)
    assert any((x != y).any() for x, y in zip(jax.tree.leaves(free), jax.tree.leaves(stopped), strict=True))


@pytest.mark.parametrize("odd", [0, 7, 16])
def test_an_update_that_has_stopped_does_not_go_on(odd):
    """The policies are far apart in one row alone. The update stops before this row's minibatch, whatever comes after
    it."""
    options = PLAIN | {"epochs": 2, "minibatches": 4, "learning_rate": 1e-7, "max_kl": 0.01}
    agent = ppo.make(ppo.Config(**options), DISCRETE)
    state, key = agent.init(jax.random.key(0)), jax.random.key(11)
    sample = played(agent, state, 0, dead=False)
    log_prob = np.array(sample.steps.extras["log_prob"])
    log_prob[:-1].reshape(-1)[odd] += 1.0  # a view, with rows in the order that is shuffled
    steps = sample.steps._replace(extras=sample.steps.extras | {"log_prob": log_prob})
    _, feedback = jax.jit(agent.update)(state, key, sample._replace(steps=steps))
    order = np.asarray(jax.random.permutation(jax.random.split(key, 2)[0], 24))
    assert feedback.metrics["minibatches"] == np.flatnonzero(order == odd)[0] // 6


def test_minibatches_of_an_lstm_are_whole_environments():
    """A batch of two environments has two minibatches. The gradient of each is that of an update on its environment
    alone."""
    options = PLAIN | {"lstm_size": 5, "epochs": 1, "learning_rate": 1e-9}  # nothing moves: both are at theta
    both = ppo.make(ppo.Config(**options | {"batch_size": 2, "minibatches": 2}), DISCRETE)
    one = ppo.make(ppo.Config(**options | {"batch_size": 1, "minibatches": 1}), DISCRETE)
    state, key = both.init(jax.random.key(0)), jax.random.key(3)
    sample = played(both, state, 0, B=2)
    after, _ = jax.jit(both.update)(state, key, sample)
    gradients = []
    for index in np.asarray(jax.random.permutation(jax.random.split(key, 1)[0], 2)):
        steps = jax.tree.map(lambda x, i=index: x[:, np.array([i])], sample.steps)
        part = Sample(steps, jax.tree.map(lambda x, i=index: x[np.array([i])], sample.memory))
        gradients.append(first_gradient(jax.jit(one.update)(state, key, part)[0]))
    # Adam's first moment after two steps is 0.1 (0.9 g_1 + g_2).
    moment = jax.tree.map(lambda x, y: 0.1 * (0.9 * x + y), *gradients)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), after.opt_state[1].mu, moment)


@SPECS
def test_two_shards_are_one_batch(spec):
    options = PLAIN | {"epochs": 2, "minibatches": 1, "normalize_advantages": True, "normalize_observations": True}
    agent = ppo.make(ppo.Config(**options | {"normalize_rewards": True}, learning_rate=0.01), spec)
    state = agent.init(jax.random.key(0))
    sample = played(agent, state, 0)
    whole, _ = jax.jit(agent.update)(state, jax.random.key(1), sample)
    halves = Sample(
        jax.tree.map(lambda x: np.stack(np.split(x, 2, axis=1)), sample.steps),
        jax.tree.map(lambda x: np.stack(np.split(np.asarray(x), 2)), sample.memory),
    )
    states = jax.tree.map(lambda x: jnp.stack([x, x]), state)
    keys = jnp.stack([jax.random.key(1)] * 2)
    sharded, _ = jax.vmap(agent.update, axis_name=AXIS)(states, keys, halves)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[0], x[1]), sharded.params, sharded.params)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y[0], atol=1e-4), whole.params, sharded.params)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y[0], atol=1e-4), whole.returns, sharded.returns)


@pytest.mark.parametrize(
    ("lstm_size", "unroll_length", "minibatches", "multiple"),
    [(0, 6, 3, 1), (0, 6, 4, 2), (0, 5, 4, 4), (0, 6, 1, 1), (5, 6, 4, 4), (5, 6, 1, 1)],
)
def test_the_least_share_of_a_device_is_whole_minibatches(lstm_size, unroll_length, minibatches, multiple):
    """An update takes a share of this size or twice this size; a share smaller by one sequence raises an error."""
    options = NETWORK | {"lstm_size": lstm_size, "unroll_length": unroll_length, "minibatches": minibatches}
    agent = ppo.make(ppo.Config(**options, batch_size=4), DISCRETE)
    assert agent.share_multiple == multiple
    state = agent.init(jax.random.key(0))
    sample = played(agent, state, 0, T=unroll_length)

    def update(share):
        cut = lambda axis: lambda x: jax.ShapeDtypeStruct((*x.shape[:axis], share, *x.shape[axis + 1 :]), x.dtype)
        part = Sample(jax.tree.map(cut(1), sample.steps), jax.tree.map(cut(0), sample.memory))
        return jax.eval_shape(agent.update, state, jax.random.key(0), part)

    update(multiple), update(2 * multiple)
    if multiple > 1:
        with pytest.raises(TypeError, match="reshape"):
            update(multiple - 1)


def test_observations_are_seen_as_actors_saw_them_and_statistics_follow():
    options = PLAIN | {"epochs": 1, "minibatches": 1, "normalize_observations": True}
    agent = ppo.make(ppo.Config(**options), DISCRETE)
    state = agent.init(jax.random.key(0))
    sample = played(agent, state, 0)
    after, feedback = jax.jit(agent.update)(state, jax.random.key(0), sample)
    rows = sample.steps.observation[:-1].reshape(-1, D)
    np.testing.assert_allclose(after.observations.mean, rows.mean(0), atol=1e-5)
    np.testing.assert_allclose(after.observations.variance, rows.var(0), rtol=1e-4)
    assert feedback.metrics["kl"] == pytest.approx(0, abs=1e-6)
    again = played(agent, after, 1)
    _, feedback = jax.jit(agent.update)(after, jax.random.key(0), again)
    assert feedback.metrics["kl"] == pytest.approx(0, abs=1e-6), "the learner sees by the statistics that were pulled"


def test_learning_rate_falls_linearly_to_zero():
    agent = ppo.make(ppo.Config(**PLAIN, decay_env_steps=48, learning_rate=0.5), DISCRETE)
    state, rates = agent.init(jax.random.key(0)), []
    for seed in range(3):
        state = state._replace(env_steps=jnp.float32(24 * seed))
        state, feedback = jax.jit(agent.update)(state, jax.random.key(0), played(agent, state, seed))
        rates.append(float(feedback.metrics["learning_rate"]))
    assert rates == [0.5, 0.25, 0.0]


def test_the_clip_falls_with_the_learning_rate_if_it_is_asked_to():
    def after(env_steps: float = 0, **options):
        agent = ppo.make(ppo.Config(**PLAIN | {"epochs": 8} | options), DISCRETE)
        state = agent.init(jax.random.key(0))._replace(env_steps=jnp.float32(env_steps))
        state, feedback = jax.jit(agent.update)(state, jax.random.key(0), played(agent, state, 0))
        return jax.tree.leaves(state.params), float(feedback.metrics["clipped"])

    half, clipped = after(24, decay_env_steps=48, learning_rate=0.1, clip_epsilon=0.2)
    by_hand, clipped_by_hand = after(learning_rate=0.05, clip_epsilon=0.1)
    other, _ = after(24, decay_env_steps=48, learning_rate=0.1, clip_epsilon=0.2, decay_clip=False)
    for x, y in zip(half, by_hand, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-6)
    assert clipped == pytest.approx(clipped_by_hand) and clipped > 0
    assert max(np.abs(x - y).max() for x, y in zip(half, other, strict=True)) > 1e-4
    rising, clipped = after(12, warmup_env_steps=24, decay_env_steps=48, learning_rate=0.1, clip_epsilon=0.2)
    by_hand, clipped_by_hand = after(learning_rate=0.05, clip_epsilon=0.2)
    for x, y in zip(rising, by_hand, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-6)
    assert clipped == pytest.approx(clipped_by_hand), "it does not rise with it"


def test_table():
    agent = ppo.make(ppo.Config(**PLAIN), DISCRETE)
    table = agent.table
    assert table.items == Blocks(6) and table.kind == "queue" and agent.batch_size == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"minibatches": 5}, "minibatches=5 does not divide a batch of 24 rows"),
        ({"minibatches": 3, "lstm_size": 4}, "minibatches=3 does not divide a batch of 4 environments"),
        ({"clip_epsilon": 0.0}, "clip_epsilon"),
        ({"epochs": 0}, "epochs"),
    ],
)
def test_settings_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ppo.Config(**PLAIN | options)
