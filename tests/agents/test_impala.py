"""IMPALA against its paper (https://arxiv.org/abs/1802.01561), restated as plainly as can be."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rlax

from agents import impala
from agents.agent import BoundedActions, DiscreteActions, EnvironmentSpec, Sample, Step, TimeStep

# V-trace -------------------------------------------------------------------------------------------------------------

vtrace = jax.jit(impala.vtrace)


def random_rows(seed: int, T: int = 12, B: int = 5, dead: bool = True) -> dict[str, np.ndarray]:
    """Returns random inputs of V-trace as EnvPool's rows give them: an episode ends with o_{s+1}, and then row s+1 is
    dead.

    A termination has gamma_s = 0; a truncation keeps its gamma. Dead rows hold rubbish.
    """
    rng = np.random.default_rng(seed)
    discounts, live = rng.uniform(0.8, 1.0, (T, B)), np.ones((T, B))
    for b in range(B):
        s = 0
        if dead and rng.random() < 0.2:  # the block begins with the row that closed an episode
            live[0, b] = 0.0
            s = 1
        while s < T:
            ends = rng.random() < 0.25
            if ends and rng.random() < 0.5:
                discounts[s, b] = 0.0
            if ends and dead and s + 1 < T:
                live[s + 1, b] = 0.0
                s += 1
            s += 1
    return {
        "values": rng.normal(size=(T + 1, B)),
        "rewards": rng.normal(size=(T, B)) * np.where(live, 1.0, 100.0),
        "discounts": discounts,
        "log_ratios": rng.normal(size=(T, B)) * np.where(live, 0.7, 3.0),
        "live": live,
    }


def naive_vtrace(values, rewards, discounts, log_ratios, live, rho_bar, c_bar, lambda_, policy_rho_bar=1.0):
    """Returns v_s by a double loop over equation 1 for each sequence, and the advantages of section 4.2.

    Here gamma^{t-s} is the product of the rows' discounts. The sum stops at a dead row, where the episode ends.
    """
    V, r, gamma = values, rewards, discounts
    T, B = r.shape
    rho = np.minimum(rho_bar, np.exp(log_ratios))
    policy_rho = np.minimum(policy_rho_bar, np.exp(log_ratios))
    c = lambda_ * np.minimum(c_bar, np.exp(log_ratios))
    v, advantages = V.copy(), np.zeros((T, B))
    for b in range(B):
        for s in range(T):
            for t in range(s, T):
                if not live[t, b]:
                    break
                delta_V = rho[t, b] * (r[t, b] + gamma[t, b] * V[t + 1, b] - V[t, b])
                v[s, b] += np.prod(gamma[s:t, b]) * np.prod(c[s:t, b]) * delta_V
        for s in range(T):
            if live[s, b]:
                advantages[s, b] = policy_rho[s, b] * (r[s, b] + gamma[s, b] * v[s + 1, b] - V[s, b])
    return v[:-1], advantages


@pytest.mark.parametrize("seed", range(40))
def test_vtrace_is_the_papers_double_sum(seed):
    rows = random_rows(seed)
    rng = np.random.default_rng(1000 + seed)
    rho_bar, c_bar, policy_rho_bar = rng.choice([0.5, 1.0, 1.5, 3.0, 1e9], 3)
    lambda_ = rng.choice([0.0, 0.5, 0.9, 1.0])
    levels = {"rho_bar": rho_bar, "c_bar": c_bar, "lambda_": lambda_, "policy_rho_bar": policy_rho_bar}
    got = vtrace(**rows, **levels)
    targets, advantages = naive_vtrace(**rows, **levels)
    scale = np.abs(targets).max()
    np.testing.assert_allclose(got.targets, targets, rtol=1e-4, atol=1e-5 * scale)
    np.testing.assert_allclose(got.advantages, advantages, rtol=1e-4, atol=1e-5 * scale)
    np.testing.assert_allclose(got.rhos, rows["live"] * np.minimum(rho_bar, np.exp(rows["log_ratios"])), rtol=1e-5)


def test_random_rows_hold_every_case():
    """Without every case the test above would check less than it seems to."""
    rows = [random_rows(seed) for seed in range(40)]
    before_dead = np.concatenate([r["discounts"][:-1][r["live"][1:] == 0] for r in rows])
    assert (before_dead == 0).any() and (before_dead > 0).any(), "both terminations and truncations"
    assert any((r["live"][0] == 0).any() for r in rows), "blocks that open on a dead row"
    assert any((r["live"][-1] == 0).any() for r in rows), "and that close on one"


@pytest.mark.parametrize("seed", range(10))
def test_vtrace_without_dead_rows_is_rlaxs(seed):
    rows = random_rows(seed, dead=False)
    lambda_ = [0.3, 1.0][seed % 2]
    got = vtrace(**rows, rho_bar=1.2, lambda_=lambda_, policy_rho_bar=1.3)
    values, discounts, rhos = rows["values"], rows["discounts"], np.exp(rows["log_ratios"])
    theirs = functools.partial(
        rlax.vtrace_td_error_and_advantage, lambda_=lambda_, clip_rho_threshold=1.2, clip_pg_rho_threshold=1.3
    )
    expected = jax.vmap(theirs, in_axes=1, out_axes=1)(values[:-1], values[1:], rows["rewards"], discounts, rhos)
    np.testing.assert_allclose(got.targets, values[:-1] + expected.errors, rtol=1e-4, atol=1e-5)
    if lambda_ == 1.0:  # for others rlax mixes values into the advantage's bootstrap, unlike the paper
        np.testing.assert_allclose(got.advantages, expected.pg_advantage, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seed", range(10))
def test_vtrace_on_policy_is_the_return_of_each_episode(seed):
    """Remark 1: if rho-bar and c-bar are at least 1 and pi = mu, v_s is the n-step return to the end of the episode or
    of the block."""
    rows = random_rows(seed)
    rows["log_ratios"] = np.zeros_like(rows["log_ratios"])
    V, r, gamma, live = rows["values"], rows["rewards"], rows["discounts"], rows["live"]
    T, B = r.shape
    returns = V.copy()  # dead rows, and the row after the block, have the value alone
    for b in range(B):
        for s in reversed(range(T)):
            if live[s, b]:
                # Where row s+1 is dead, returns[s+1] is the value of the final observation: the bootstrap of a
                # truncation, which gamma_s = 0 removes on a termination.
                returns[s, b] = r[s, b] + gamma[s, b] * returns[s + 1, b]
    got = vtrace(**rows)
    np.testing.assert_allclose(got.targets, returns[:-1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got.advantages, live * (returns - V)[:-1], rtol=1e-4, atol=1e-5)


def test_no_gradient_passes_through_vtrace():
    rows = {name: jnp.asarray(x, jnp.float32) for name, x in random_rows(0).items()}
    gradient = jax.grad(lambda rows: sum(x.sum() for x in impala.vtrace(**rows)))(rows)
    for name, g in gradient.items():
        np.testing.assert_array_equal(g, np.zeros_like(rows[name]), name)


# The agent -----------------------------------------------------------------------------------------------------------

# With these settings RMSProp's mean square stays 0, so it divides by sqrt(0 + 1) and is gradient descent. The step is
# large so that the gradient can be read from the parameters' change in spite of rounding.
STEP = 2.0**20
DESCENT = {
    "optimizer": "rmsprop",
    "rmsprop_decay": 1.0,
    "epsilon": 1.0,
    "learning_rate": STEP,
    "max_gradient_norm": 1e9,
}


def vector_spec(size: int, num_actions: int) -> EnvironmentSpec:
    return EnvironmentSpec((size,), np.dtype(np.float32), DiscreteActions(num_actions))


def linear_config(**options) -> impala.Config:
    """Returns a Config whose network has no hidden layers. Its policy is nearly uniform at first."""
    return impala.Config(**({"torso": "mlp", "hidden_sizes": (), "frame_stack": 1} | DESCENT | options))


def gradient_of(update, state: impala.State, sample: Sample):
    """Returns the gradient: what gradient descent subtracted, divided by its step."""
    after = update(state, jax.random.key(0), sample)[0]
    return jax.tree.map(
        lambda before, after: (np.asarray(before) - np.asarray(after)) / STEP, state.params, after.params
    )


def random_steps(rng, observation, first, num_actions: int) -> Step:
    """Returns rows [T+1, B] with this `observation` and `first`, and all else random. A row before a `first` row closes
    its episode, half of them by termination."""
    shape = first.shape
    closing = np.concatenate([first[1:], np.zeros((1, shape[1]), bool)])  # where o_t is an episode's last
    terminal = closing & (rng.random(shape) < 0.5)
    discount = np.concatenate([np.where(terminal[1:], 0.0, 1.0), np.ones((1, shape[1]))]).astype(np.float32)
    return Step(
        observation=observation,
        action=rng.integers(num_actions, size=shape).astype(np.int32),
        reward=rng.normal(size=shape).astype(np.float32),
        discount=discount,
        first=first,
        extras={"outputs": rng.normal(size=(*shape, num_actions)).astype(np.float32)},
    )


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


@pytest.mark.parametrize(
    ("rho_bar", "policy_rho_bar", "c_bar", "lambda_", "reward_scale"),
    [(1.0, 1.0, 1.0, 1.0, 1.0), (1.3, 0.8, 0.7, 0.9, 0.25)],
)
def test_gradient_is_that_of_the_papers_three_terms(rho_bar, policy_rho_bar, c_bar, lambda_, reward_scale):
    """The gradient of section 4.2 has a policy gradient, a baseline and an entropy term, each summed over time and
    batch. The targets are constants in it."""
    T, B, D, A = 6, 3, 4, 3
    options = {"rho_bar": rho_bar, "c_bar": c_bar, "lambda_": lambda_, "reward_scale": reward_scale}
    options["policy_rho_bar"] = policy_rho_bar
    agent = impala.make(linear_config(unroll_length=T, batch_size=B, **options), vector_spec(D, A))
    rng = np.random.default_rng(0)
    first = np.zeros((T + 1, B), bool)
    first[[0, 4, 2, 6], [0, 0, 1, 1]] = True
    steps = random_steps(rng, rng.normal(size=(T + 1, B, D)).astype(np.float32), first, A)
    sample = Sample(steps, agent.memory(B, None))
    # The update must use the state's hyperparameters, not the config's.
    hypers = impala.Hypers(jnp.float32(STEP), jnp.float32(0.9), jnp.float32(0.3), jnp.float32(0.2))
    state = agent.init(jax.random.key(1))
    params = jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32), state.params)
    state = state._replace(params=params, hypers=hypers)

    x, a, live = sample.steps.observation, sample.steps.action, 1.0 - first[1:]
    r = reward_scale * sample.steps.reward
    mu = softmax(sample.steps.extras["outputs"])
    heads = params["params"]
    V = (x @ heads["value"]["kernel"] + heads["value"]["bias"])[..., 0]
    pi = softmax(x @ heads["policy"]["kernel"] + heads["policy"]["bias"])
    ratio = np.take_along_axis(pi / mu, a[..., None], -1)[..., 0]
    gamma = 0.9 * sample.steps.discount[:-1]
    v, advantage = naive_vtrace(V, r[:-1], gamma, np.log(ratio[:-1]), live, rho_bar, c_bar, lambda_, policy_rho_bar)

    def terms(params):
        """Returns the policy, baseline and entropy terms, summed over the live rows."""
        policy = baseline = entropy = 0.0
        for s in range(T):
            for b in range(B):
                if live[s, b]:
                    log_pi = jax.nn.log_softmax(
                        x[s, b] @ params["params"]["policy"]["kernel"] + params["params"]["policy"]["bias"]
                    )
                    V = (x[s, b] @ params["params"]["value"]["kernel"] + params["params"]["value"]["bias"])[0]
                    policy -= advantage[s, b] * log_pi[a[s, b]]
                    baseline += 0.5 * (v[s, b] - V) ** 2
                    entropy -= jnp.sum(jnp.exp(log_pi) * log_pi)
        return policy, baseline, entropy

    def loss(params):
        policy, baseline, entropy = terms(params)
        return policy + 0.3 * baseline - 0.2 * entropy

    expected = jax.grad(loss)(params)
    update = jax.jit(agent.update)
    got = gradient_of(update, state, sample)
    for name in ("policy", "value"):
        for part in ("kernel", "bias"):
            g = expected["params"][name][part]
            assert np.abs(g).max() > 0.01
            np.testing.assert_allclose(got["params"][name][part], g, rtol=1e-3, atol=1e-5, err_msg=f"{name} {part}")

    metrics = update(state, jax.random.key(0), sample)[1].metrics
    policy, baseline, entropy = terms(params)
    np.testing.assert_allclose(metrics["policy_loss"], policy / (T * B), rtol=1e-4)
    np.testing.assert_allclose(metrics["baseline_loss"], baseline / (T * B), rtol=1e-4)
    np.testing.assert_allclose(metrics["entropy"], entropy / live.sum(), rtol=1e-4)
    np.testing.assert_allclose(metrics["rho"], np.mean(np.minimum(rho_bar, ratio[:-1])[live > 0]), rtol=1e-4)
    np.testing.assert_allclose(metrics["loss"], loss(params) / (T * B), rtol=1e-4)
    norm = np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(expected)))
    np.testing.assert_allclose(metrics["gradient_norm"], norm, rtol=1e-3)


def test_a_batch_of_dead_rows_alone_teaches_nothing():
    """With T = 1, one batch of Catch in ten may have dead rows alone. Its metrics must not be NaN, at which the learner
    stops."""
    agent = impala.make(linear_config(unroll_length=1, batch_size=2), vector_spec(3, 2))
    state, sample = agent.init(jax.random.key(0)), small_sample(agent, 1, 2, 3, 2)
    first = np.array([[False, False], [True, True]])
    after, feedback = jax.jit(agent.update)(
        state, jax.random.key(0), sample._replace(steps=sample.steps._replace(first=first))
    )
    jax.tree.map(np.testing.assert_array_equal, after.params, state.params)
    assert {name: value for name, value in feedback.metrics.items() if not np.isfinite(value)} == {}


def small_sample(agent: impala.Agent, T: int, B: int, D: int, A: int, seed: int = 0) -> Sample:
    rng = np.random.default_rng(seed)
    first = rng.random((T + 1, B)) < 0.2
    return Sample(random_steps(rng, rng.normal(size=(T + 1, B, D)).astype(np.float32), first, A), agent.memory(B, None))


def test_gradients_norm_is_clipped():
    config = linear_config(unroll_length=4, batch_size=2, max_gradient_norm=0.125)
    agent = impala.make(config, vector_spec(3, 2))
    sample = small_sample(agent, 4, 2, 3, 2)
    gradient = gradient_of(jax.jit(agent.update), agent.init(jax.random.key(0)), sample)
    np.testing.assert_allclose(np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(gradient))), 0.125, rtol=1e-4)


def test_learning_rate_falls_linearly_to_zero():
    T, B = 4, 2
    agent = impala.make(linear_config(unroll_length=T, batch_size=B, decay_env_steps=4 * T * B), vector_spec(3, 2))
    update, state = jax.jit(agent.update), agent.init(jax.random.key(0))
    rates = []
    for i in range(6):
        before = state = state._replace(env_steps=jnp.float32(i * T * B))
        state, feedback = update(state, jax.random.key(0), small_sample(agent, T, B, 3, 2))
        rates.append(float(feedback.metrics["learning_rate"]) / STEP)
        moved = any((a != b).any() for a, b in zip(jax.tree.leaves(before.params), jax.tree.leaves(state.params)))
        assert moved == (rates[-1] > 0)
    np.testing.assert_allclose(rates, [1.0, 0.75, 0.5, 0.25, 0.0, 0.0], atol=1e-6)
    assert int(state.step) == 6


def test_rmsprop_has_its_epsilon_inside_the_root():
    config = dataclasses.replace(
        linear_config(), rmsprop_decay=0.5, epsilon=0.01, learning_rate=1.0, optimizer="rmsprop"
    )
    descent, rmsprop = (
        impala.make(dataclasses.replace(c, unroll_length=4, batch_size=2), vector_spec(3, 2))
        for c in (linear_config(), config)
    )
    state, sample = descent.init(jax.random.key(0)), small_sample(descent, 4, 2, 3, 2)
    g = gradient_of(jax.jit(descent.update), state, sample)
    after = jax.jit(rmsprop.update)(rmsprop.init(jax.random.key(0)), jax.random.key(0), sample)[0]
    expected = jax.tree.map(lambda p, g: p - g / np.sqrt(0.5 * g**2 + 0.01), state.params, g)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), after.params, expected)


# Episodes ------------------------------------------------------------------------------------------------------------

EPISODES = [range(0, 3), range(3, 7), range(7, 10)]  # column 0's rows; the last row of each but the last is dead
T, B, A = 9, 2, 3
ROWS = T + 1


@functools.cache
def pixel_agent(lstm_size: int, stack: int):
    """Returns an agent that sees "frames" with one pixel for each row of the sample. The gradient of the first layer in
    a pixel's weights is then the gradient in what that row alone feeds into the network."""
    config = linear_config(unroll_length=T, batch_size=B, lstm_size=lstm_size, frame_stack=stack)
    spec = EnvironmentSpec((1, ROWS * B), np.dtype(np.uint8), DiscreteActions(A))
    if stack == 1:
        spec = dataclasses.replace(spec, observation_dtype=np.dtype(np.float32))
    agent = impala.make(config, spec)
    state = jax.jit(agent.init)(jax.random.key(2))
    rng = np.random.default_rng(1)
    state = state._replace(params=jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32) / 3, state.params))
    return agent, state, jax.jit(agent.update)


def pixels_of(rows, b: int) -> list[int]:
    return [t * B + b for t in rows]


def pixel_sample(agent: impala.Agent, truncated: bool) -> Sample:
    """Returns a sample in which each row lights its own pixel. The episodes of column 1 are not those of column 0."""
    rng = np.random.default_rng(3)
    first = np.zeros((ROWS, B), bool)
    first[[3, 7, 5], [0, 0, 1]] = True
    frames = agent.memory(1, None).frames
    observation = np.zeros((ROWS, B, 1, ROWS * B), np.float32 if frames is None else frames.dtype)
    for t in range(ROWS):
        for b in range(B):
            observation[t, b, 0, t * B + b] = 1
    steps = random_steps(rng, observation, first, A)
    discount = np.ones((ROWS, B), np.float32)
    if not truncated:  # o_{t+1} is terminal where row t+1 is dead
        discount[[1, 5, 3], [0, 0, 1]] = 0.0
    memory = jax.tree.map(np.array, agent.memory(B, None))
    if memory.frames is not None:  # frames of the episode that has already begun when the block begins
        memory.frames[:, :, 0, pixels_of(EPISODES[0], 0)] = 2
    memory = memory._replace(lstm=jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), memory.lstm))
    return Sample(steps._replace(discount=discount), memory)


def perturb(sample: Sample, episode: int) -> Sample:
    """Returns the sample with one episode of column 0 changed: observations (in their own pixels), actions, rewards,
    logits and memory."""
    rng = np.random.default_rng(4)
    steps, memory, _ = jax.tree.map(np.array, sample)
    rows = list(EPISODES[episode])
    pixels = pixels_of(rows, 0)
    steps.observation[np.ix_(rows, [0], [0], pixels)] = rng.integers(0, 4, (len(rows), 1, 1, len(pixels)))
    steps.action[rows, 0] = (steps.action[rows, 0] + rng.integers(1, A, len(rows))) % A
    steps.reward[rows, 0] += rng.normal(size=len(rows)) * 10
    steps.extras["outputs"][rows, 0] += rng.normal(size=(len(rows), A))
    if episode == 0:
        jax.tree.map(lambda x: x.__setitem__(0, x[0] + 0.5), memory.lstm)
        if memory.frames is not None:
            memory.frames[0][..., pixels] = rng.integers(0, 4, len(pixels))
    return Sample(steps, memory)


@pytest.mark.parametrize("truncated", [False, True])
@pytest.mark.parametrize("lstm_size", [0, 4])
@pytest.mark.parametrize("stack", [1, 3])
def test_nothing_leaks_from_one_episode_into_another(stack, lstm_size, truncated):
    """However the rows of one episode change, the gradients of other episodes' rows stay the same to the bit."""
    agent, state, update = pixel_agent(lstm_size, stack)

    def gradients(sample) -> np.ndarray:
        """Returns, for each pixel, the gradient in what it feeds into the network, [pixel, ...]."""
        g = gradient_of(update, state, sample)["params"]
        first_layers = [g["LSTM_0"]["input"]] if lstm_size else [g["policy"], g["value"]]
        return np.concatenate([layer["kernel"].reshape(ROWS * B, -1) for layer in first_layers], axis=1)

    sample = pixel_sample(agent, truncated)
    before = gradients(sample)
    for perturbed in range(3):
        after = gradients(perturb(sample, perturbed))
        for episode, rows in enumerate(EPISODES):
            # A dead row learns nothing. Of the block's last row only the value counts, and it is a constant.
            pixels = pixels_of(list(rows)[:-1], 0)
            if episode == perturbed:
                assert (after[pixels] != before[pixels]).any(axis=1).all(), "the change is to be seen where it was made"
            else:
                np.testing.assert_array_equal(after[pixels], before[pixels], f"{perturbed} leaks into {episode}")
        other_column = pixels_of(range(ROWS), 1)
        np.testing.assert_array_equal(after[other_column], before[other_column], f"{perturbed} leaks into column 1")
        assert (before[other_column] != 0).any()


def test_dead_rows_and_the_last_row_have_no_gradient():
    agent, state, update = pixel_agent(0, 1)
    g = gradient_of(update, state, pixel_sample(agent, truncated=True))["params"]
    for layer in ("policy", "value"):
        moved = (g[layer]["kernel"] != 0).any(axis=1)
        for b, dead in ((0, {2, 6, 9}), (1, {4, 9})):
            assert {t for t in range(ROWS) if not moved[t * B + b]} == dead


# Acting --------------------------------------------------------------------------------------------------------------


def loud(params):
    """Returns the parameters with a policy that depends clearly on what the network sees; at first it is nearly
    uniform."""
    heads = params["params"]
    return {"params": heads | {"policy": jax.tree.map(lambda p: 100 * p, heads["policy"])}}


@pytest.mark.parametrize(
    ("torso", "shape", "stack", "lstm_size", "rows"),
    [
        ("mlp", (4,), 1, 0, 9),
        ("mlp", (4,), 1, 5, 9),
        ("mlp", (3, 4), 3, 0, 9),
        ("mlp", (3, 4), 3, 5, 9),
        ("nature", (84, 84), 2, 5, 4),
        ("residual", (20, 20), 1, 0, 4),
    ],
)
def test_acting_step_by_step_is_the_learners_unroll(torso, shape, stack, lstm_size, rows):
    """On every live row the ratio of the learner's pi to the mu that acting reported is 1, also after resets and with a
    memory.

    All ratios are 1 if both the mean of min(1, ratio) and the mean of the ratio are 1.
    """
    num_envs, num_actions, warmup = 2, 3, 3
    rng = np.random.default_rng(0)
    frames = torso != "mlp" or stack > 1
    dtype = np.dtype(np.uint8 if frames else np.float32)
    if frames:
        observation = rng.integers(0, 256, (warmup + rows, num_envs, *shape)).astype(dtype)
    else:
        observation = rng.normal(size=(warmup + rows, num_envs, *shape)).astype(dtype)
    first = np.zeros((warmup + rows, num_envs), bool)
    first[[0, 0, warmup + 2, warmup + rows // 2], [0, 1, 0, 1]] = True

    def make(rho_bar):
        config = impala.Config(
            torso=torso, hidden_sizes=(8,), frame_stack=stack, lstm_size=lstm_size, unroll_length=rows - 1,
            batch_size=num_envs, rho_bar=rho_bar,
        )  # fmt: skip
        return impala.make(config, EnvironmentSpec(shape, dtype, DiscreteActions(num_actions)))

    agent = make(1.0)
    state = jax.jit(agent.init)(jax.random.key(1))
    state = state._replace(params=loud(state.params))
    params = state.params

    act, memory, steps = jax.jit(agent.act), agent.memory(num_envs, None), []
    none = np.zeros(num_envs, np.float32)
    for t in range(warmup + rows):
        if t == warmup:
            opening = memory
        timestep = TimeStep(observation[t], none, none, first[t], first[t])
        action, extras, memory = act(params, jax.random.key(t), timestep, memory)
        assert action.dtype == jnp.int32 and action.shape == (num_envs,)
        steps.append(Step(observation[t], action, none, none + 1, first[t], extras))
    steps = jax.tree.map(lambda *x: np.stack(x), *steps[warmup:])

    @jax.jit
    def mean_ratios(sample):
        return [make(rho_bar).update(state, jax.random.key(0), sample)[1].metrics["rho"] for rho_bar in (1.0, 1e9)]

    np.testing.assert_allclose(mean_ratios(Sample(steps, opening)), [1.0, 1.0], atol=2e-5)
    if stack > 1 or lstm_size:  # the control: without its memory, the learner sees something else
        assert mean_ratios(Sample(steps, agent.memory(num_envs, None)))[0] < 0.999


def test_actions_follow_the_policy():
    num_envs = 4000
    agent = impala.make(linear_config(), vector_spec(3, 3))
    params = loud(agent.init(jax.random.key(3)).params)
    observation = np.tile(np.array([[1.0, -0.5, 2.0]], np.float32), (num_envs, 1))
    none = np.zeros(num_envs, np.float32)
    timestep = TimeStep(observation, none, none, none > 0, none > 0)
    act = jax.jit(agent.act)
    action, extras, _ = act(params, jax.random.key(0), timestep, agent.memory(num_envs, None))
    head = params["params"]["policy"]
    logits = observation[0] @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
    np.testing.assert_allclose(extras["outputs"], np.tile(logits, (num_envs, 1)), rtol=1e-4, atol=1e-5)
    probabilities = softmax(logits)
    assert probabilities.max() < 0.95 and np.ptp(probabilities) > 0.2, "neither certain nor uniform"
    np.testing.assert_allclose(np.bincount(action, minlength=3) / num_envs, probabilities, atol=0.03)
    memory = agent.memory(num_envs, None)
    assert (act(params, jax.random.key(1), timestep, memory)[0] != action).any(), "the key decides"

    greedy, extras, _ = jax.jit(agent.act_greedily)(params, jax.random.key(0), timestep, memory)
    assert (greedy == logits.argmax()).all() and greedy.dtype == jnp.int32


def normal_log_density(x, mu, sigma):
    return np.sum(-0.5 * ((x - mu) / sigma) ** 2 - np.log(sigma) - 0.5 * np.log(2 * np.pi), axis=-1)


@pytest.mark.parametrize("sigma", ["free", "state"])
def test_continuous_actions_have_gaussian_ratios(sigma):
    """V-trace's ratios are those of the raw actions' densities, which are not changed by clipping actions to the
    bounds."""
    T, B, D = 6, 3, 4
    spec = EnvironmentSpec((D,), np.dtype(np.float32), BoundedActions(np.full(2, -2.0), np.full(2, 2.0)))
    agent = impala.make(linear_config(unroll_length=T, batch_size=B, sigma=sigma, discount=0.9), spec)
    rng, memory, none = np.random.default_rng(0), agent.memory(B, None), np.zeros(B, np.float32)
    behaviour = agent.init(jax.random.key(0))
    act, rows = jax.jit(agent.act), []
    for t in range(T + 1):
        observation, first = rng.normal(size=(B, D)).astype(np.float32), rng.random(B) < 0.2
        timestep = TimeStep(observation, none, none, first, first)
        action, extras, memory = act(agent.policy(behaviour), jax.random.key(t), timestep, memory)
        assert action.shape == (B, 2) and (np.abs(action) <= 2).all()
        rows.append(Step(observation, action, rng.normal(size=B).astype(np.float32), none + 1, first, extras))
    steps = jax.tree.map(lambda *x: np.stack(x), *rows)
    raw, live = steps.extras["raw"], 1.0 - steps.first[1:]
    assert (np.abs(raw) > 1).any()

    state = behaviour._replace(params=jax.tree.map(lambda p: p + 0.1 * rng.normal(size=p.shape), behaviour.params))
    sample, update = Sample(steps, agent.memory(B, None)), jax.jit(agent.update)
    np.testing.assert_allclose(update(behaviour, jax.random.key(0), sample)[1].metrics["rho"], 1.0, atol=1e-5)

    def means_and_sigmas(params):
        outputs = steps.observation @ params["policy"]["kernel"] + params["policy"]["bias"]
        if "free" in params:
            return outputs, np.exp(params["free"]) + 0 * outputs
        return outputs[..., :2], np.exp(outputs[..., 2:])

    params, old = (jax.tree.map(np.asarray, s.params["params"]) for s in (state, behaviour))
    log_pi, log_mu = (normal_log_density(raw, *means_and_sigmas(p)) for p in (params, old))
    log_ratios = (log_pi - log_mu)[:-1]
    V = (steps.observation @ params["value"]["kernel"] + params["value"]["bias"])[..., 0]
    _, advantages = naive_vtrace(V, steps.reward[:-1], 0.9 * steps.discount[:-1], log_ratios, live, 1.0, 1.0, 1.0)
    metrics = update(state, jax.random.key(0), sample)[1].metrics
    np.testing.assert_allclose(metrics["rho"], np.minimum(1, np.exp(log_ratios))[live > 0].mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["policy_loss"], -np.mean(advantages * log_pi[:-1]), rtol=1e-3, atol=1e-5)
    sigmas = means_and_sigmas(params)[1][:-1]
    entropies = 0.5 * np.log(2 * np.pi * np.e * sigmas**2).sum(-1)
    np.testing.assert_allclose(metrics["entropy"], entropies[live > 0].mean(), rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "spec", "message"),
    [
        (
            {},
            EnvironmentSpec((84, 84), np.dtype(np.uint8), BoundedActions(-np.ones(2), np.full(2, np.inf))),
            "impala needs actions with finite bounds",
        ),
        ({"torso": "nature", "frame_stack": 1}, vector_spec(4, 2), "torso=mlp"),
        ({"torso": "residual", "frame_stack": 1}, vector_spec(4, 2), "torso=mlp"),
        ({"torso": "mlp", "frame_stack": 4}, vector_spec(4, 2), "frame_stack=1"),
    ],
)
def test_a_network_that_does_not_fit_is_refused(options, spec, message):
    with pytest.raises(ValueError, match=message) as error:
        impala.make(impala.Config(**options), spec)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("batch_size", 0),
        ("unroll_length", 0),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("discount", 1.1),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_name(field, value):
    with pytest.raises(ValueError, match=f"config.{field} must be .*, not {value}"):
        impala.Config(**{field: value})


@pytest.mark.parametrize(("optimizer", "lstm_size", "stack"), [("adam", 0, 1), ("rmsprop", 4, 3)])
def test_each_function_is_compiled_once(optimizer, lstm_size, stack):
    shape, dtype = ((2, 3), np.uint8) if stack > 1 else ((4,), np.float32)
    config = impala.Config(
        torso="mlp", hidden_sizes=(4,), frame_stack=stack, lstm_size=lstm_size, unroll_length=3, batch_size=2,
        optimizer=optimizer, decay_env_steps=1000,
    )  # fmt: skip
    agent = impala.make(config, EnvironmentSpec(shape, np.dtype(dtype), DiscreteActions(2)))
    init, update, act = jax.jit(agent.init), jax.jit(agent.update), jax.jit(agent.act)
    rng = np.random.default_rng(0)
    for seed in (0, 1):
        state = init(jax.random.key(seed))
        for _ in range(3):
            observation = rng.integers(0, 9, (4, 2, *shape)).astype(dtype)
            sample = Sample(random_steps(rng, observation, rng.random((4, 2)) < 0.3, 2), agent.memory(2, None))
            state, _ = update(state, jax.random.key(seed), sample)
    memory, none = agent.memory(2, None), np.zeros(2, np.float32)
    for t in range(3):
        timestep = TimeStep(rng.integers(0, 9, (2, *shape)).astype(dtype), none, none, none > 0, none > 0)
        _, _, memory = act(agent.policy(state), jax.random.key(t), timestep, memory)
    assert [function._cache_size() for function in (init, update, act)] == [1, 1, 1]
