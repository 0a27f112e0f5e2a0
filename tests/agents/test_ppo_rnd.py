"""PPO with random network distillation against Burda et al. 2019, restated with NumPy, and against PPO."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents import ppo, ppo_rnd
from agents.agent import AXIS, DiscreteActions, EnvironmentSpec, Sample
from tests.agents.test_a2c import naive_gae
from tests.agents.test_ppo import CONTINUOUS, DISCRETE, NETWORK, A, D, played

T, B = 6, 4
PLAIN = NETWORK | {"unroll_length": T, "batch_size": B, "minibatches": 1, "epochs": 1}
OWN = {"features": 5, "predictor_layers": 1}


def make(spec=DISCRETE, **fields):
    return ppo_rnd.make(ppo_rnd.Config(**PLAIN | OWN | fields), spec)


def np_features(params, x, layers: int) -> np.ndarray:
    """Returns the features f of one normalised observation, with a ReLU after each dense layer but the last."""
    dense = [params["params"]["MLPTorso_0"]["Dense_0"], *(params["params"][f"Dense_{i}"] for i in range(layers + 1))]
    for i, layer in enumerate(dense):
        x = x @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])
        x = np.maximum(x, 0) if i < len(dense) - 1 else x
    return x


def rows_of(agent, state, sample, monkeypatch):
    """Returns the rows that the update passes to `ppo.learn`, the state after the update, and the metrics."""
    seen = {}

    def learn(config, optimizer, loss, state, key, rows, lstm):
        seen["rows"] = rows
        return state, {}

    with monkeypatch.context() as patch:
        patch.setattr(ppo, "learn", learn)
        after, feedback = agent.update(state, jax.random.key(0), sample)
    return seen["rows"], after, feedback.metrics


@pytest.mark.parametrize("older", [False, True])
def test_rewards_and_both_streams_of_advantages_are_the_papers(older, monkeypatch):
    gamma_E, gamma_I, lambda_, c_E, c_I = 0.9, 0.8, 0.7, 2.0, 0.5
    agent = make(
        **{"discount": gamma_E, "intrinsic_discount": gamma_I, "lambda_": lambda_},
        **{"extrinsic_coefficient": c_E, "intrinsic_coefficient": c_I},
    )
    state = agent.init(jax.random.key(0))
    before, G_before = [], []  # from earlier updates: observations, and G's mean and variance
    if older:
        early = played(agent, state, 3)
        state, _ = jax.jit(agent.update)(state, jax.random.key(1), early)
        before = np.asarray(early.steps.observation[1:]).reshape(-1, D)
        G_before = float(state.intrinsic_returns.mean), float(state.intrinsic_returns.variance)
    sample = played(agent, state, 0)
    rows, after, metrics = rows_of(agent, state, sample, monkeypatch)
    steps, live = jax.tree.map(np.asarray, sample.steps), np.asarray(sample.steps.live)
    assert 0 < live.mean() < 1

    everything = np.concatenate([*([before] if older else []), steps.observation[1:].reshape(-1, D)])
    mean, deviation = everything.mean(axis=0), everything.std(axis=0)
    novelty = np.zeros((T, B))
    for t in range(T):
        for b in range(B):
            x = np.clip((steps.observation[t + 1, b] - mean) / deviation, -5, 5)
            error = np_features(state.target, x, 0) - np_features(state.params.predictor, x, 1)
            novelty[t, b] = np.mean(error**2)
    G, all_G = np.full(B, G_before[0] if older else 0.0), []
    for t in range(T):
        G = gamma_I * G + novelty[t]
        all_G.append(G)
    flat = np.concatenate(all_G)
    variance = flat.var()
    if older:  # twice as many returns, half of them known only by their mean and variance
        middle = (G_before[0] + flat.mean()) / 2
        variance = (G_before[1] + (G_before[0] - middle) ** 2 + variance + (flat.mean() - middle) ** 2) / 2
    assert after.intrinsic_returns.variance == pytest.approx(variance, rel=1e-3)
    rewards = novelty / np.sqrt(variance)
    assert metrics["intrinsic_reward"] == pytest.approx(rewards.mean(), rel=1e-3)

    f = ppo_rnd.functions("ppo_rnd", ppo_rnd.Config(**PLAIN | OWN), DISCRETE, num_values=2)
    values = np.asarray(f.unroll(state.params.policy, sample.steps, sample.memory)[1])
    A_E = naive_gae(values[..., 0], steps.reward[:-1], gamma_E * steps.discount[:-1], live, lambda_)
    # Intrinsic returns are non-episodic: they go on from the row that closes an episode to the next one's first.
    A_I, following = np.zeros((T, B)), np.zeros(B)
    for t in reversed(range(T)):
        delta = rewards[t] + gamma_I * values[t + 1, :, 1] - values[t, :, 1]
        A_I[t] = following = delta + gamma_I * lambda_ * following
    np.testing.assert_allclose(rows.ppo.advantage, live * (c_E * A_E + c_I * A_I), rtol=2e-3, atol=2e-4)
    np.testing.assert_allclose((rows.ppo.target - values[:-1, :, 0]) * live, A_E * live, atol=1e-4)
    np.testing.assert_allclose(rows.intrinsic_target, A_I + values[:-1, :, 1], rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("fields", [{"epochs": 3, "minibatches": 2}, {"lstm_size": 4, "epochs": 2}])
def test_without_an_intrinsic_coefficient_the_policy_learns_as_ppos(fields):
    """The policies agree to 1e-6 if the values, which share the policy's torso, have no weight in the loss."""
    common = PLAIN | fields | {"baseline_cost": 0.0, "entropy_cost": 0.02, "learning_rate": 0.01, "decay_clip": False}
    common |= {"normalize_advantages": True, "discount": 0.9, "adam_epsilon": 1e-5, "clip_epsilon": 0.1}
    theirs = ppo.make(ppo.Config(**common, max_gradient_norm=0.0), DISCRETE)
    ours = ppo_rnd.make(ppo_rnd.Config(**common | OWN, intrinsic_coefficient=0.0, extrinsic_coefficient=1.0), DISCRETE)
    mine, state = ours.init(jax.random.key(0)), theirs.init(jax.random.key(0))
    state = state._replace(params=with_one_value(mine.params.policy))
    state = state._replace(opt_state=jax.tree.map(jnp.zeros_like, state.opt_state))
    sample = played(theirs, state, 0)
    mine, _ = jax.jit(ours.update)(mine, jax.random.key(3), sample)
    state, _ = jax.jit(theirs.update)(state, jax.random.key(3), sample)
    got = with_one_value(mine.params.policy)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), got, state.params)


def with_one_value(params):
    """Returns PPO's parameters, which lack the intrinsic value's."""
    value = jax.tree.map(lambda x: x[..., :1], params["params"]["value"])
    return {"params": params["params"] | {"value": value}}


def test_the_predictor_learns_what_it_sees_and_the_target_stays():
    agent = make(learning_rate=3e-3, predictor_fraction=0.5, epochs=4)
    state, update, novelties = agent.init(jax.random.key(0)), jax.jit(agent.update), []
    sample = played(agent, state, 0)
    first = state
    for i in range(60):
        state, feedback = update(state, jax.random.key(i), sample)
        novelties.append(float(feedback.metrics["novelty"]))
    jax.tree.map(np.testing.assert_array_equal, state.target, first.target)
    assert novelties[-1] < 0.1 * novelties[0]
    assert float(feedback.metrics["intrinsic_reward"]) > 0
    strange = sample._replace(steps=sample.steps._replace(observation=sample.steps.observation + 9.0))
    _, feedback = update(state, jax.random.key(0), strange)
    assert feedback.metrics["novelty"] > 5 * novelties[-1]


def test_the_fraction_is_that_of_rows_that_the_predictor_learns_from():
    still = make(predictor_fraction=0.0)
    state = still.init(jax.random.key(0))
    after, feedback = jax.jit(still.update)(state, jax.random.key(0), played(still, state, 0))
    jax.tree.map(np.testing.assert_array_equal, after.params.predictor, state.params.predictor)
    assert feedback.metrics["predictor_loss"] == 0
    whole = make(predictor_fraction=1.0)
    _, feedback = jax.jit(whole.update)(state, jax.random.key(0), played(whole, state, 0))
    assert feedback.metrics["predictor_loss"] == pytest.approx(float(feedback.metrics["novelty"]), rel=1e-5)


def test_a_fraction_leaves_the_size_of_the_predictors_loss():
    """The mean is over the drawn rows alone, so over many draws it is that of all rows."""
    agent = make(predictor_fraction=0.5)
    state = agent.init(jax.random.key(0))
    sample, update = played(agent, state, 0), jax.jit(agent.update)
    metrics = [update(state, jax.random.key(i), sample)[1].metrics for i in range(40)]
    losses = np.array([each["predictor_loss"] for each in metrics])
    assert losses.std() > 0, "each draws other rows"
    assert losses.mean() == pytest.approx(float(metrics[0]["novelty"]), rel=0.1)


@pytest.mark.parametrize("baseline_cost", [0.0, 0.5])
def test_the_intrinsic_value_learns_its_own_target(baseline_cost, monkeypatch):
    agent = make(baseline_cost=baseline_cost, extrinsic_coefficient=0.0, intrinsic_coefficient=0.0, entropy_cost=0.0)
    state = agent.init(jax.random.key(0))
    sample = played(agent, state, 0)
    rows, _, _ = rows_of(agent, state, sample, monkeypatch)
    f = ppo_rnd.functions("ppo_rnd", ppo_rnd.Config(**PLAIN | OWN), DISCRETE, num_values=2)
    V_I = np.asarray(f.unroll(state.params.policy, sample.steps, sample.memory)[1])[:-1, :, 1]
    after, feedback = jax.jit(agent.update)(state, jax.random.key(0), sample)
    expected = 0.5 * np.mean((np.asarray(rows.intrinsic_target) - V_I) ** 2)
    assert feedback.metrics["intrinsic_loss"] == pytest.approx(expected, rel=1e-3)
    kernels = (x.params.policy["params"]["value"]["kernel"] for x in (state, after))
    moved = np.abs(np.subtract(*map(np.asarray, kernels))).max(axis=0)
    assert ((moved > 1e-6) == (baseline_cost > 0)).all(), "both values' columns, by their losses alone"


@pytest.mark.parametrize("spec", [DISCRETE, CONTINUOUS], ids=["discrete", "continuous"])
def test_two_shards_are_one_batch(spec):
    agent = make(spec, epochs=2, predictor_fraction=1.0, normalize_advantages=True, learning_rate=0.01)
    state = agent.init(jax.random.key(0))
    sample = played(agent, state, 0)
    whole, _ = jax.jit(agent.update)(state, jax.random.key(1), sample)
    halves = Sample(
        jax.tree.map(lambda x: np.stack(np.split(x, 2, axis=1)), sample.steps),
        jax.tree.map(lambda x: np.stack(np.split(np.asarray(x), 2)), sample.memory),
    )
    states = jax.tree.map(lambda x: jnp.stack([x, x]), state)
    sharded, _ = jax.vmap(agent.update, axis_name=AXIS)(states, jnp.stack([jax.random.key(1)] * 2), halves)
    jax.tree.map(lambda x: np.testing.assert_array_equal(x[0], x[1]), sharded.params)
    for name in ("params", "observations", "intrinsic_returns"):
        pair = getattr(whole, name), getattr(sharded, name)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y[0], atol=2e-4), *pair)


@pytest.mark.parametrize(("torso", "shape", "stack"), [("shallow", (20, 20), 2), ("mlp", (4, 5), 2), ("mlp", (7,), 1)])
def test_any_observation_is_seen_and_of_frames_one(torso, shape, stack):
    spec = EnvironmentSpec(shape, np.dtype(np.uint8), DiscreteActions(A))
    agent = make(spec, torso=torso, frame_stack=stack)
    state = agent.init(jax.random.key(0))
    rng = np.random.default_rng(0)
    sample = played(make(), make().init(jax.random.key(0)), 0)
    observation = rng.integers(0, 255, (T + 1, B, *shape)).astype(np.uint8)
    sample = Sample(sample.steps._replace(observation=observation), agent.memory(B, None))
    after, feedback = jax.jit(agent.update)(state, jax.random.key(0), sample)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((after.params, feedback.metrics)))
    rows = observation[1:].reshape(-1, *shape).astype(np.float64)
    np.testing.assert_allclose(after.observations.mean, rows.mean(axis=0), rtol=1e-4)
    assert feedback.metrics["novelty"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"minibatches": 5}, "minibatches=5 does not divide a batch of 24 rows"),
        ({"predictor_fraction": 1.5}, "predictor_fraction"),
        ({"features": 0}, "features"),
        ({"clip_epsilon": 0.0}, "clip_epsilon"),
    ],
)
def test_settings_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ppo_rnd.Config(**PLAIN | options)
