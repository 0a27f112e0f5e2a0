"""Mix & Match against its formulas, restated as plainly as can be, and at alpha 0 and 1 against IMPALA."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents import impala, mix_match
from agents.agent import (
    Agent,
    Blocks,
    BoundedActions,
    DiscreteActions,
    EnvironmentSpec,
    FactoredActions,
    Sample,
    Step,
    TimeStep,
)
from agents.parts import mixtures
from agents.parts.policies import factored, gaussian, softmax
from tests.precision import double_precision

D, T, B = 4, 6, 6
SIZES, SMALL = (3, 2, 2), ((1, 0, 0), (0, 1, 1), (2, 1, 0))
LARGE = np.array(list(itertools.product(*map(range, SIZES))), np.int32)  # [12, 3]
FACTORED = EnvironmentSpec((D,), np.dtype(np.float32), FactoredActions(SIZES, SMALL))
DISCRETE = EnvironmentSpec((D,), np.dtype(np.float32), DiscreteActions(3))
CONTINUOUS = EnvironmentSpec((D,), np.dtype(np.float32), BoundedActions(np.full(2, -1.0), np.full(2, 1.0)))
TASKS = dataclasses.replace(DISCRETE, num_tasks=3)
# For every kind of mixture: its curriculum, environment and options.
CASES = {
    "actions": ("actions", FACTORED, {}),
    "actions, LSTM": ("actions", FACTORED, {"lstm_size": 3}),
    "masked_kl": ("actions", FACTORED, {"transfer": "masked_kl"}),
    "architectures": ("architectures", DISCRETE, {"lstm_size": 3}),
    "architectures, factored": ("architectures", FACTORED, {"lstm_size": 3}),
    "architectures, continuous": ("architectures", CONTINUOUS, {"lstm_size": 3}),
    "tasks": ("tasks", TASKS, {}),
    "tasks, LSTM": ("tasks", TASKS, {"lstm_size": 3}),
    "shared_head": ("actions", FACTORED, {"transfer": "shared_head"}),
}
# EACH has cases for agents with bodies of their own, each of which alone is an IMPALA. ALL has these and other cases
# with bodies of their own, and cases with a shared body.
EACH = pytest.mark.parametrize("case", ["actions", "architectures", "architectures, continuous", "tasks, LSTM"])
ALL = pytest.mark.parametrize(
    ("case", "shared_body"),
    [(case, False) for case in ("actions, LSTM", "masked_kl", "architectures, continuous", "tasks, LSTM")]
    + [(case, True) for case in ("actions, LSTM", "architectures, factored", "tasks", "shared_head")],
)


@functools.cache
def make(case: str, shared_body: bool = False, **options):
    """Returns the agent, with its functions compiled, and a state with random parameters."""
    curriculum, spec, more = CASES[case]
    fields = {"torso": "mlp", "hidden_sizes": (5,), "frame_stack": 1, "unroll_length": T, "batch_size": B}
    fields |= {"curriculum": curriculum, "shared_body": shared_body, "max_gradient_norm": 1e9}
    config, rng = mix_match.Config(**(fields | more | options)), np.random.default_rng(0)
    agent = compiled(mix_match.make(config, spec))
    state = fresh(agent, config)
    params = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape) * 0.7, jnp.float32), state.params)
    return agent, state._replace(params=params)


def fresh(agent: Agent, config):
    """Returns what `init` returns, but with parameters of 0, because compiling `init` takes longer than most tests
    here."""
    state = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(agent.init, jax.random.key(0)))
    return with_hypers(state, **{name: getattr(config, name) for name in state.hypers._fields})


def compiled(agent: Agent) -> Agent:
    act, act_greedily, update = jax.jit(agent.act), jax.jit(agent.act_greedily), jax.jit(agent.update)
    return agent._replace(act=act, act_greedily=act_greedily, update=update)


def with_hypers(state, **hypers: float):
    return state._replace(hypers=state.hypers._replace(**{name: jnp.float32(x) for name, x in hypers.items()}))


def timestep_of(observation, first=False) -> TimeStep:
    none = np.zeros(len(observation), np.float32)
    return TimeStep(observation, none, none, none > 1 if not first else none < 1, none > 1)


def play(agent, params, spec: EnvironmentSpec, seed: int = 0, warmup: int = 2) -> Sample:
    """Returns rows [T+1, B] made by acting. A row before a `first` row closes its episode, half of them by
    termination."""
    rng, memory, steps, none = np.random.default_rng(seed), agent.memory(B, None), [], np.zeros(B, np.float32)
    opening, first = memory, rng.random((warmup + T + 1, B)) < 0.25
    terminal = np.concatenate([first[2:], np.zeros((2, B), bool)]) & (rng.random(first.shape) < 0.5)
    for t, row in enumerate(first):
        opening = memory if t == warmup else opening
        observation = rng.normal(size=(B, *spec.observation_shape))
        if spec.observation_dtype == np.uint8:
            observation = rng.integers(0, 256, observation.shape)
        timestep = TimeStep(observation.astype(spec.observation_dtype), none, none + 1, row, row)
        action, extras, memory = agent.act(params, jax.random.key(100 * seed + t), timestep, memory)
        reward, discount = rng.normal(size=B).astype(np.float32), np.where(terminal[t], 0, 1).astype(np.float32)
        steps.append(Step(timestep.observation, action, reward, discount, row, extras))
    return Sample(jax.tree.map(lambda *x: np.stack(x), *steps[warmup:]), opening)


def gradient_of(agent, state: mix_match.State, sample: Sample):
    """Returns the first update's gradient, which Adam's first moment holds times 1 - beta_1, and the metrics."""
    after, feedback = agent.update(state, jax.random.key(0), sample)
    return jax.tree.map(lambda m: np.asarray(m) / 0.1, after.opt_state[1].mu), feedback.metrics


def largest(tree) -> float:
    return max(float(np.abs(x).max()) for x in jax.tree.leaves(tree))


def np_log_softmax(x: np.ndarray) -> np.ndarray:
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def np_factored_log_probs(outputs: np.ndarray, actions: np.ndarray = LARGE) -> np.ndarray:
    """Returns the log-probability of each of `actions` [N, F] under the outputs [P], [N]."""
    parts = [np_log_softmax(part) for part in np.split(outputs, np.cumsum(SIZES)[:-1])]
    return np.array([sum(part[a] for part, a in zip(parts, action)) for action in actions])


# Weights and the mixture's probabilities --------------------------------------------------------------------------


def test_weights_are_exact_at_the_corners_and_sum_to_one():
    for K in (2, 3, 5):
        for i in range(K):
            np.testing.assert_array_equal(mixtures.weights(jnp.float32(i / (K - 1)), K), np.eye(K)[i])
        for alpha in np.linspace(0, 1, 23, dtype=np.float32):
            w = np.asarray(mixtures.weights(alpha, K))
            np.testing.assert_allclose(w.sum(), 1.0, rtol=1e-6)
            assert (w >= 0).all() and (w > 0).sum() <= 2
            np.testing.assert_allclose(w @ np.arange(K) / (K - 1), alpha, atol=1e-6)
    np.testing.assert_allclose(mixtures.weights(jnp.float32(0.3), 2), [0.7, 0.3], rtol=1e-6)
    np.testing.assert_array_equal(mixtures.weights(jnp.float32(1.2), 2), [0, 1])


def test_mixture_log_prob_is_that_of_the_sum_of_probabilities():
    rng = np.random.default_rng(0)
    for w in ([0.3, 0.7], [1.0, 0.0], [0.0, 1.0], [0.2, 0.5, 0.3], [0.0, 0.4, 0.6]):
        log_probs = np.log(rng.uniform(size=(len(w), 50)))
        log_probs[0, ::3] = -np.inf
        with np.errstate(divide="ignore"):
            expected = np.log(np.einsum("i,in->n", w, np.exp(log_probs)))
        got = mixtures.mixture_log_prob(jnp.asarray(w), jnp.asarray(log_probs))
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_mixture_log_prob_at_a_corner_is_the_agents_to_the_bit():
    log_probs = jnp.asarray(np.random.default_rng(0).normal(size=(2, 100)) * 10, jnp.float32)
    for i in range(2):
        got = mixtures.mixture_log_prob(mixtures.weights(jnp.float32(i), 2), log_probs)
        np.testing.assert_array_equal(got, log_probs[i])


def test_far_tails_do_not_vanish():
    got = mixtures.mixture_log_prob(jnp.array([0.5, 0.5]), jnp.array([[-300.0], [-301.0]]))
    np.testing.assert_allclose(got, -300 + np.log(0.5 * (1 + np.exp(-1))), rtol=1e-6)


def check_gradient(f, x: np.ndarray, expect_zero=()) -> np.ndarray:
    """Checks f's gradient against central differences, for f: [n] -> [m], and returns it, [m, n]."""
    steps = 1e-6 * np.eye(len(x))
    values = jax.jit(jax.vmap(f))(np.concatenate([x + steps, x - steps]))
    expected = (values[: len(x)] - values[len(x) :]).T / 2e-6
    got = np.asarray(jax.jit(jax.jacrev(f))(x))
    np.testing.assert_allclose(got, np.where(np.isnan(expected), 0.0, expected), rtol=1e-5, atol=1e-7)
    return got


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_gradients_are_finite_differences(alpha):
    """The gradients are those of the mixture's log-probability of each large action, and of both KLs. None is NaN where
    a weight is 0."""
    large, x = factored(SIZES), np.random.default_rng(0).normal(size=len(SMALL) + sum(SIZES))
    few, of_small = mixtures.few_actions(SMALL, large), np.array([tuple(a) in SMALL for a in LARGE])

    def split(x):
        return x[: len(SMALL)], x[len(SMALL) :]

    def log_probs(x):
        w = mixtures.weights(jnp.float64(alpha), 2)
        each = [p.log_prob(jnp.tile(o, (len(LARGE), 1)), LARGE) for p, o in zip((few, large), split(x))]
        return mixtures.mixture_log_prob(w, jnp.stack(each))

    def kls(x):
        return jnp.stack([mixtures.kl_from_few(SMALL, large, *split(x), masked) for masked in (False, True)])

    with double_precision():
        one, two = np.split(check_gradient(log_probs, x), [len(SMALL)], axis=1)
        impossible = np.asarray(log_probs(x)) == -np.inf
        check_gradient(kls, x)
    assert (impossible == (~of_small if alpha == 0 else False)).all()
    assert (np.abs(one[of_small]).max(axis=1) > 0.01).all() == (alpha < 1) and (one[~of_small] == 0).all()
    assert (np.abs(two) > 1e-3).any() == (alpha > 0)
    assert alpha > 0 or (two == 0).all()
    assert alpha < 1 or (one == 0).all()


def test_few_actions_are_a_softmax_over_them():
    few, outputs = mixtures.few_actions(SMALL, factored(SIZES)), np.array([0.5, -1.0, 2.0], np.float32)
    log_p = np_log_softmax(outputs)
    expected = [log_p[SMALL.index(tuple(a))] if tuple(a) in SMALL else -np.inf for a in LARGE]
    got = few.log_prob(np.tile(outputs, (len(LARGE), 1)), LARGE)
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    np.testing.assert_allclose(few.entropy(outputs), -(np.exp(log_p) * log_p).sum(), rtol=1e-5)
    assert few.mode(outputs).tolist() == list(SMALL[2]) and few.mode(outputs).dtype == jnp.int32
    samples = np.asarray(few.sample(jax.random.key(0), np.tile(outputs, (4000, 1))))
    counts = [(samples == a).all(-1).mean() for a in SMALL]
    np.testing.assert_allclose(counts, np.exp(log_p), atol=0.03)


def test_kls_from_few_are_naive_sums():
    rng, large = np.random.default_rng(0), factored(SIZES)
    p, q = rng.normal(size=(7, len(SMALL))), rng.normal(size=(7, sum(SIZES)))
    plain, masked = (mixtures.kl_from_few(SMALL, large, p, q, m) for m in (False, True))
    for n in range(7):
        pi_1, pi_2 = np.exp(np_log_softmax(p[n])), np.exp(np_factored_log_probs(q[n], SMALL))
        np.testing.assert_allclose(plain[n], np.sum(pi_1 * np.log(pi_1 / pi_2)), rtol=1e-5)
        np.testing.assert_allclose(masked[n], np.sum(pi_1 * np.log(pi_1 / (pi_2 / pi_2.sum()))), rtol=1e-4)


# Acting --------------------------------------------------------------------------------------------------------------


def outputs_of(case: str, params, observation: np.ndarray, task=None) -> list[np.ndarray]:
    """Returns each agent's outputs [N, P], in NumPy, for feed-forward agents with bodies of their own."""
    network, outputs = jax.tree.map(np.asarray, params["params"]), []
    for i, torso in ((1, "MLPTorso_0"), (2, "MLPTorso_1")):
        layer = network[torso]["Dense_0"]
        x = np.tanh(observation @ layer["kernel"] + layer["bias"])
        if f"agent_{i}" in network:
            head = network[f"agent_{i}"]["policy"]
            outputs.append(x @ head["kernel"] + head["bias"])
        else:
            heads = [network[f"agent_{i}_task_{n}"]["policy"] for n in task]
            outputs.append(np.stack([x[b] @ h["kernel"] + h["bias"] for b, h in enumerate(heads)]))
    return outputs


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("case", ["actions", "shared_head", "tasks"])
def test_log_mu_and_actions_are_those_of_the_mixture_enumerated(case, alpha):
    """The probabilities sum to one over all actions, log_mu is that of the action taken, and actions are taken that
    often."""
    agent, state = make(case)
    params, num_envs = agent.policy(with_hypers(state, alpha=alpha)), 6000
    observation = np.tile(np.random.default_rng(2).normal(size=(1, D)).astype(np.float32), (num_envs, 1))
    memory = agent.memory(num_envs, None)
    action, extras, _ = agent.act(params, jax.random.key(0), timestep_of(observation, True), memory)
    tasks = np.arange(num_envs) % 3
    one, two = outputs_of(case, state.params, observation[:3], tasks[:3])
    for n in range(3 if case == "tasks" else 1):
        if case == "tasks":
            support, mine = np.arange(3), np.asarray(action)[tasks == n]
            pi_1, pi_2 = np.exp(np_log_softmax(one[n])), np.exp(np_log_softmax(two[n]))
            taken = mine
        else:
            support, mine = LARGE, np.asarray(action)
            log_pi_2 = np_factored_log_probs(two[0])
            if case == "shared_head":
                of_small = np.array([tuple(a) in SMALL for a in LARGE])
                pi_1 = np.where(of_small, np.exp(log_pi_2), 0) / np.exp(log_pi_2[of_small]).sum()
            else:
                choice = np.exp(np_log_softmax(one[0]))
                pi_1 = np.array([choice[SMALL.index(tuple(a))] if tuple(a) in SMALL else 0.0 for a in LARGE])
            pi_2 = np.exp(log_pi_2)
            taken = np.array([np.flatnonzero((support == a).all(-1))[0] for a in mine])
        pi_mm = (1 - alpha) * pi_1 + alpha * pi_2
        np.testing.assert_allclose(pi_mm.sum(), 1.0, rtol=1e-5)
        log_mu = np.asarray(extras["log_mu"])[tasks == n] if case == "tasks" else np.asarray(extras["log_mu"])
        np.testing.assert_allclose(log_mu, np.log(pi_mm[taken]), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(np.bincount(taken, minlength=len(support)) / len(taken), pi_mm, atol=0.035)
    assert extras["log_mu"].dtype == jnp.float32 and action.dtype == jnp.int32


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("case", ["actions", "architectures, factored", "architectures, continuous", "tasks"])
def test_mixtures_sum_to_one_over_all_actions(case, alpha):
    """The mixtures are of the families that the agents have. A density is summed on a grid."""
    curriculum, spec, _ = CASES[case]
    rng, w = np.random.default_rng(1), mixtures.weights(jnp.float32(alpha), 2)
    if isinstance(spec.actions, BoundedActions):
        family = gaussian(0, spec, 1.0, False, "")
        step = 0.1
        axis = np.arange(-8, 8, step)
        support, cell = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2).astype(np.float32), step**2
    else:
        family = factored(SIZES) if spec is FACTORED else softmax(3)
        support, cell = (LARGE if spec is FACTORED else np.arange(3)), 1.0
    policies = [mixtures.few_actions(SMALL, family) if curriculum == "actions" else family, family]
    outputs = [np.tile(rng.normal(size=p.num_outputs) * 0.5, (len(support), 1)) for p in policies]
    log_probs = jnp.stack([p.log_prob(o, support) for p, o in zip(policies, outputs)])
    total = np.exp(mixtures.mixture_log_prob(w, log_probs)).sum() * cell
    np.testing.assert_allclose(total, 1.0, rtol=1e-4)


@functools.cache
def make_impala(config: impala.Config, case: str, small: bool):
    spec = CASES[case][1]
    spec = dataclasses.replace(spec, actions=DiscreteActions(len(SMALL))) if small else spec
    agent = impala.make(config, spec)
    return compiled(agent), fresh(agent, config)


def of_impala(case: str, state: mix_match.State, i: int, task: int = 0):
    """Returns IMPALA with agent i's body and head, and its state, for agents with bodies of their own."""
    curriculum, _, options = CASES[case]
    lstm_size = 0 if curriculum == "architectures" and i == 1 else options.get("lstm_size", 0)
    config = impala.Config(
        torso="mlp", hidden_sizes=(5,), frame_stack=1, unroll_length=T, batch_size=B, lstm_size=lstm_size,
        optimizer="adam", epsilon=1e-5, max_gradient_norm=1e9,
    )  # fmt: skip
    agent, their_state = make_impala(config, case, curriculum == "actions" and i == 1)
    params = {"params": agents_own(state.params, case, i, task)}
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.shape, b.shape), params, their_state.params)
    return agent, their_state._replace(params=params)


def agents_own(params, case: str, i: int, task: int = 0):
    """Returns agent i's body and head, named as in IMPALA's network."""
    network, curriculum = params["params"], CASES[case][0]
    head = f"agent_1_task_{task}" if curriculum == "tasks" and i == 1 else f"agent_{i}"
    own = {"MLPTorso_0": network[f"MLPTorso_{i - 1}"]} | dict(network[head])
    if f"LSTM_{i - 1}" in network:
        own["LSTM_0"] = network[f"LSTM_{i - 1}"]
    return own


def own_sample(case: str, sample: Sample, i: int, columns=slice(None)) -> Sample:
    """Returns the sample as agent i's IMPALA would have it, except for its extras."""
    curriculum, _, options = CASES[case]
    steps, lstm = sample.steps, sample.memory.lstm
    if curriculum == "actions" and i == 1:
        number = {action: n for n, action in enumerate(SMALL)}
        steps = steps._replace(action=np.vectorize(lambda *a: number[a])(*np.moveaxis(steps.action, -1, 0)))
    if curriculum == "architectures":
        lstm = (lstm[0],) if i == 2 else ()
    elif options.get("lstm_size"):
        lstm = (lstm[i - 1],)
    memory = impala.Memory(None, lstm[0] if lstm else ())
    steps = jax.tree.map(lambda x: x[:, columns], steps)
    return Sample(steps, jax.tree.map(lambda x: x[columns], memory))


@pytest.mark.parametrize("i", [1, 2])
@EACH
def test_at_a_corner_actions_are_the_agents_own(case, i):
    """With the same key they are equal, discrete ones to the bit. Each expert acts in the environments of its own
    task."""
    agent, state = make(case)
    sample = play(agent, agent.policy(with_hypers(state, alpha=0.4)), CASES[case][1])
    params, memory = agent.policy(with_hypers(state, alpha=i - 1.0)), sample.memory
    tasks = range(3) if CASES[case][0] == "tasks" and i == 1 else [None]
    theirs = [of_impala(case, state, i, task or 0) for task in tasks]
    memories = [their.memory(B, None) for their, _ in theirs]
    for t in range(3):
        timestep = timestep_of(sample.steps.observation[t], t == 0)
        action, extras, memory = agent.act(params, jax.random.key(t), timestep, memory)
        greedy, _, _ = agent.act_greedily(params, jax.random.key(t), timestep, memory)
        for n, (task, (their, their_state)) in enumerate(zip(tasks, theirs)):
            mine = np.arange(B) % 3 == task if task is not None else np.ones(B, bool)
            key = jax.random.split(jax.random.key(t))[1]
            before = memories[n]
            expected, outputs, memories[n] = their.act(their.policy(their_state), key, timestep, before)
            theirs_greedy, _, _ = their.act_greedily(their.policy(their_state), key, timestep, memories[n])
            if CASES[case][0] == "actions" and i == 1:
                expected, theirs_greedy = np.array(SMALL)[expected], np.array(SMALL)[theirs_greedy]
            if "continuous" in case:
                np.testing.assert_allclose(action[mine], expected[mine], rtol=1e-6)
            else:
                np.testing.assert_array_equal(action[mine], expected[mine])
            np.testing.assert_allclose(greedy[mine], theirs_greedy[mine], rtol=1e-6)
            assert np.isfinite(extras["log_mu"]).all()


@ALL
def test_acting_is_the_learners_unroll(case, shared_body):
    """Step by step, with resets, memory and task, all ratios are 1 on experience from the same parameters."""
    agent, state = make(case, shared_body)
    state = with_hypers(state, alpha=0.35)
    sample = play(agent, agent.policy(state), CASES[case][1])
    np.testing.assert_allclose(gradient_of(agent, state, sample)[1]["rho"], 1.0, atol=1e-5)
    # The control: another mixture has other ratios.
    assert gradient_of(agent, with_hypers(state, alpha=0.9), sample)[1]["rho"] < 0.999


@pytest.mark.parametrize("alpha", [0.0, 0.2, 0.5, 0.8, 1.0])
def test_greedy_actions(alpha):
    """With evaluate='target' it is pi_2's mode, whatever alpha is. With 'control' it is the mixture's mode if actions
    are discrete, and otherwise the mode of the agent with the larger weight."""
    observation = np.random.default_rng(1).normal(size=(300, D)).astype(np.float32)
    for case in ("tasks", "actions"):
        agents = {evaluate: make(case, evaluate=evaluate)[0] for evaluate in ("control", "target")}
        state = with_hypers(make(case)[1], alpha=alpha)
        one, two = outputs_of(case, state.params, observation, np.arange(300) % 3)
        if case == "tasks":
            mixture = (1 - alpha) * np.exp(np_log_softmax(one)) + alpha * np.exp(np_log_softmax(two))
            expected = {"control": mixture.argmax(-1), "target": two.argmax(-1)}
        else:
            simple = np.array(SMALL)[one.argmax(-1)]
            target = np.stack([part.argmax(-1) for part in np.split(two, np.cumsum(SIZES)[:-1], axis=-1)], -1)
            expected = {"control": simple if alpha <= 0.5 else target, "target": target}
        for evaluate, agent in agents.items():
            memory = agent.memory(300, None)
            got = agent.act_greedily(agent.policy(state), jax.random.key(0), timestep_of(observation, True), memory)[0]
            np.testing.assert_array_equal(got, expected[evaluate])
            assert got.dtype == jnp.int32


# The update ----------------------------------------------------------------------------------------------------------


def outside(params, case: str, i: int):
    """Returns the parts of the network that are not agent i's, by name, for agents with bodies of their own."""
    other = 3 - i
    return {
        name: part
        for name, part in params["params"].items()
        if name.startswith(f"agent_{other}") or name in (f"MLPTorso_{other - 1}", f"LSTM_{other - 1}")
    }


@pytest.mark.parametrize("i", [1, 2])
@EACH
def test_at_a_corner_the_gradient_is_impalas_of_that_agent_alone(case, i):
    """At alpha 1 this holds with any cost of the KL, because the KL's weight is 0 there; at alpha 0 without such a
    cost. The other agent gets no gradient."""
    agent, state = make(case)
    state = with_hypers(state, alpha=i - 1.0, kl_cost=0.0 if i == 1 else 3.0, entropy_cost=0.07, discount=0.9)
    behaviour = jax.tree.map(lambda p: p + 0.1, state.params)
    sample = play(agent, agent.policy(state._replace(params=behaviour)), CASES[case][1])
    got, metrics = gradient_of(agent, state, sample)
    assert np.isfinite(largest(got))
    assert all((np.asarray(x) == 0).all() for x in jax.tree.leaves(outside(got, case, i)))
    expected, bodies = 0.0, 0.0
    tasks = range(3) if CASES[case][0] == "tasks" and i == 1 else [0]
    for task in tasks:
        their, their_state = of_impala(case, state, i, task)
        old = of_impala(case, state._replace(params=behaviour), i, task)[1]
        columns = np.flatnonzero(np.arange(B) % 3 == task) if len(tasks) > 1 else np.arange(B)
        mine = own_sample(case, sample, i, columns)
        mine = mine._replace(steps=mine.steps._replace(extras=impala_extras(their, old, mine)))
        their_state = with_hypers(their_state, entropy_cost=0.07, discount=0.9)
        theirs, their_metrics = gradient_of(their, their_state, mine)
        share = len(columns) / B  # IMPALA averages over its own columns, this agent over all B
        theirs = jax.tree.map(lambda g, share=share: g * share, theirs["params"])
        own = agents_own(got, case, i, task)
        heads = {name for name in theirs if name not in ("MLPTorso_0", "LSTM_0")}
        if CASES[case][0] == "architectures":
            heads |= {"LSTM_0"} & set(theirs)
        for name in heads:
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), own[name], theirs[name])
            assert largest(theirs[name]) > 0.01
        body = {name: theirs[name] for name in theirs if name not in heads}
        bodies = body if task == 0 else jax.tree.map(np.add, bodies, body)
        expected += float(their_metrics["loss"]) * share
    own_bodies = {name: agents_own(got, case, i)[name] for name in bodies}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=3e-4), own_bodies, bodies)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-3, atol=1e-4)


def impala_extras(their, state, sample: Sample):
    """Returns IMPALA's outputs on the sample's rows, as acting reports them, and the raw action if there is one."""
    memory, outputs = sample.memory, []
    for t in range(T + 1):
        steps, none = sample.steps, np.zeros(sample.steps.first.shape[1], np.float32)
        timestep = TimeStep(steps.observation[t], none, none, steps.first[t], steps.first[t])
        _, extras, memory = their.act(their.policy(state), jax.random.key(0), timestep, memory)
        outputs.append(extras["outputs"])
    raw = {"raw": sample.steps.extras["raw"]} if "raw" in sample.steps.extras else {}
    return {"outputs": np.stack(outputs)} | raw


@ALL
def test_the_loss_is_that_of_the_formulas(case, shared_body):
    """The terms of the loss are put together from those at alpha 0 and at alpha 1."""
    alpha, costs = 0.3, {"baseline_cost": 0.4, "entropy_cost": 0.05, "kl_cost": 0.7, "discount": 0.9}
    agent, state = make(case, shared_body)
    state = with_hypers(state, alpha=alpha, **costs)
    behaviour = state._replace(params=jax.tree.map(lambda p: p * 0.9, state.params))
    sample = play(agent, agent.policy(behaviour), CASES[case][1])
    _, metrics = gradient_of(agent, state, sample)
    corners = [gradient_of(agent, with_hypers(state, alpha=a), sample)[1] for a in (0.0, 1.0)]
    live = 1.0 - sample.steps.first[1:]
    for i, corner in enumerate(corners, start=1):  # entropies do not depend on alpha
        np.testing.assert_allclose(metrics[f"entropy_{i}"], corner[f"entropy_{i}"], rtol=1e-5)
        np.testing.assert_allclose(corner["entropy"], corner[f"entropy_{i}"], rtol=1e-5)
        np.testing.assert_allclose(metrics["kl"], corner["kl"], rtol=1e-5)
    entropy = (1 - alpha) * metrics["entropy_1"] + alpha * metrics["entropy_2"]
    np.testing.assert_allclose(metrics["entropy"], entropy, rtol=1e-5)
    np.testing.assert_allclose(metrics["value"], (1 - alpha) * corners[0]["value"] + alpha * corners[1]["value"], 1e-4)
    np.testing.assert_allclose(metrics["alpha"], alpha, rtol=1e-6)
    total = (
        metrics["policy_loss"]
        + 0.4 * metrics["baseline_loss"]
        + live.mean() * (0.7 * (1 - alpha) * metrics["kl"] - 0.05 * entropy)
    )
    np.testing.assert_allclose(metrics["loss"], total, rtol=1e-4)
    assert (metrics["kl"] == 0) == (case == "shared_head") and metrics["kl"] >= 0
    np.testing.assert_allclose(
        corners[1]["loss"],
        corners[1]["policy_loss"] + 0.4 * corners[1]["baseline_loss"] - 0.05 * live.mean() * corners[1]["entropy_2"],
        rtol=1e-4,
    )


@pytest.mark.parametrize("reward_scale", [1.0, 0.25])
def test_policy_loss_is_v_traces_of_the_mixture_by_naive_numpy(reward_scale):
    alpha = 0.3
    agent, state = make("actions", reward_scale=reward_scale)
    state = with_hypers(state, alpha=alpha, discount=0.9)
    behaviour = state._replace(params=jax.tree.map(lambda p: p * 0.8, state.params))
    sample = play(agent, agent.policy(with_hypers(behaviour, alpha=0.6)), FACTORED)
    steps, live = sample.steps, 1.0 - sample.steps.first[1:]
    network = jax.tree.map(np.asarray, state.params["params"])
    pi_mm, V, kl = np.zeros((T + 1, B)), np.zeros((T + 1, B)), np.zeros((T + 1, B))
    for t, b in np.ndindex(T + 1, B):
        one, two = (o[0] for o in outputs_of("actions", state.params, steps.observation[t, b][None]))
        action = tuple(steps.action[t, b])
        pi_1, large = np.exp(np_log_softmax(one)), np.exp(np_factored_log_probs(two))
        of_small = np.array([large[(action == LARGE).all(-1)][0] for action in SMALL])
        taken = large[(action == LARGE).all(-1)].item()
        pi_mm[t, b] = alpha * taken + (1 - alpha) * (pi_1[SMALL.index(action)] if action in SMALL else 0.0)
        kl[t, b] = np.sum(pi_1 * np.log(pi_1 / of_small))
        for i, w in ((1, 1 - alpha), (2, alpha)):
            layer, head = network[f"MLPTorso_{i - 1}"]["Dense_0"], network[f"agent_{i}"]["value"]
            x = np.tanh(steps.observation[t, b] @ layer["kernel"] + layer["bias"])
            V[t, b] += w * (x @ head["kernel"] + head["bias"]).item()
    v = impala.vtrace(
        V,
        reward_scale * steps.reward[:-1],
        0.9 * steps.discount[:-1],
        (np.log(pi_mm) - steps.extras["log_mu"])[:-1],
        live,
    )
    _, metrics = gradient_of(agent, state, sample)
    np.testing.assert_allclose(metrics["policy_loss"], -np.mean(v.advantages * np.log(pi_mm[:-1])), rtol=1e-3)
    np.testing.assert_allclose(metrics["rho"], v.rhos.sum() / live.sum(), rtol=1e-4)
    np.testing.assert_allclose(metrics["baseline_loss"], 0.5 * np.mean(live * (v.targets - V[:-1]) ** 2), rtol=1e-3)
    np.testing.assert_allclose(metrics["kl"], np.sum(live * kl[:-1]) / live.sum(), rtol=1e-4)
    assert len({tuple(a) in SMALL for a in steps.action.reshape(-1, 3)}) == 2, "small actions and others"


@EACH
def test_kl_moves_the_pupil_and_not_the_teacher(case):
    """The teacher is agent 1 and the pupil agent 2, with bodies of their own. At alpha 1 the KL moves nothing."""
    agent, state = make(case)

    def difference(alpha):
        corner = with_hypers(state, alpha=alpha)
        sample = play(agent, agent.policy(corner), CASES[case][1])
        g, h = (gradient_of(agent, with_hypers(corner, kl_cost=cost), sample)[0] for cost in (0.0, 2.0))
        return jax.tree.map(np.subtract, h, g)

    moved = difference(0.0)
    assert all(largest(moved["params"][name]["policy"]) > 0.01 for name in moved["params"] if name == "agent_2")
    assert largest(outside(moved, case, 2)) < 1e-4
    assert largest(difference(1.0)) == 0


@pytest.mark.parametrize("transfer", ["kl", "masked_kl"])
def test_a_pupil_that_never_acts_becomes_like_its_teacher(transfer):
    """With alpha 0, one observation, no rewards and values of 0, only the KL teaches."""
    agent, state = make("actions", transfer=transfer, learning_rate=0.02, entropy_cost=0.0)
    sample = play(agent, agent.policy(state), FACTORED)
    zeros = jax.tree.map(np.zeros_like, sample.steps)
    steps = zeros._replace(observation=zeros.observation + 1, action=sample.steps.action, extras=sample.steps.extras)
    params = jax.tree.map_with_path(
        lambda path, p: p * 0 if any(getattr(key, "key", "") == "value" for key in path) else p, state.params
    )

    def step(state, _):
        state, feedback = agent.update(state, jax.random.key(0), sample._replace(steps=steps))
        return state, feedback.metrics["kl"]

    after, kls = jax.jit(lambda state: jax.lax.scan(step, state, length=300))(state._replace(params=params))
    # Independent factors cannot represent every distribution over three actions.
    assert kls[0] > 0.3 and kls[-1] < 0.6 * kls[0]
    jax.tree.map(np.testing.assert_array_equal, after.params["params"]["agent_1"], params["params"]["agent_1"])


@ALL
def test_what_alpha_has_made_impossible_teaches_nothing_and_is_no_nan(case, shared_body):
    """This happens when a population sets alpha to 0 or 1 while blocks that another alpha played are still under
    way."""
    agent, state = make(case, shared_body)
    sample = play(agent, agent.policy(with_hypers(state, alpha=0.7)), CASES[case][1])
    for alpha in (0.0, 0.5, 1.0):
        gradient, metrics = gradient_of(agent, with_hypers(state, alpha=alpha), sample)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves((gradient, metrics))), alpha
        played = play(agent, agent.policy(with_hypers(state, alpha=alpha)), CASES[case][1])
        assert np.isfinite(played.steps.extras["log_mu"]).all()
        np.testing.assert_allclose(
            gradient_of(agent, with_hypers(state, alpha=alpha), played)[1]["rho"], 1.0, atol=1e-5
        )


def test_hypers_are_the_states():
    """Each hyperparameter of the state changes the update, and none is compiled into it."""
    agent, state = make("actions", shared_body=True)
    update = agent.update
    sample = play(agent, agent.policy(with_hypers(state, alpha=0.5)), FACTORED)

    def after(**hypers):
        new = update(with_hypers(state, **({"alpha": 0.4} | hypers)), jax.random.key(0), sample)[0]
        return np.concatenate([np.ravel(p) for p in jax.tree.leaves(new.params)])

    plain = after()
    for name in mix_match.Hypers._fields:
        assert np.abs(after(**{name: 0.123}) - plain).max() > 1e-6, name
    assert update._cache_size() == 1


def test_the_learning_rate_falls_and_steps_are_counted():
    agent, state = make("actions", decay_env_steps=2 * T * B)
    sample, update = play(agent, agent.policy(state), FACTORED), agent.update
    rates = []
    for i in range(3):
        state = state._replace(env_steps=jnp.float32(i * T * B))
        state, feedback = update(state, jax.random.key(0), sample)
        rates.append(float(feedback.metrics["learning_rate"]))
    np.testing.assert_allclose(rates, [5e-4, 2.5e-4, 0.0], rtol=1e-5)
    assert int(state.step) == 3


@pytest.mark.parametrize("case", ["actions, LSTM", "tasks"])
def test_members_of_a_vmapped_population_are_as_if_alone(case):
    """The members' alphas differ. They also act as if alone."""
    agent, _ = make(case, shared_body=True)
    spec, alphas = CASES[case][1], (0.0, 0.3, 1.0)
    keys = jax.random.split(jax.random.key(1), len(alphas))
    population = jax.vmap(agent.init)(keys)
    population = population._replace(hypers=population.hypers._replace(alpha=jnp.array(alphas)))
    members = [jax.tree.map(lambda x, n=n: x[n], population) for n in range(len(alphas))]
    samples = [play(agent, agent.policy(member), spec, seed=n) for n, member in enumerate(members)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *samples)
    after, feedback = jax.jit(jax.vmap(agent.update))(population, keys, stacked)
    timestep = timestep_of(samples[0].steps.observation[0], True)
    acting = jax.jit(jax.vmap(agent.act, in_axes=(0, 0, None, 0)))
    actions = acting(jax.vmap(agent.policy)(population), keys, timestep, stacked.memory)[0]
    for n, (member, sample) in enumerate(zip(members, samples)):
        alone, alone_feedback = agent.update(member, keys[n], sample)
        got = jax.tree.map(lambda x, n=n: x[n], (after, feedback))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5), got, (alone, alone_feedback))
        action = agent.act(agent.policy(member), keys[n], timestep, sample.memory)[0]
        np.testing.assert_array_equal(actions[n], action)


# Tasks ---------------------------------------------------------------------------------------------------------------


def test_environments_have_tasks_in_turn_and_keep_them():
    agent, state = make("tasks")
    memory = agent.memory(8, None)
    assert memory.task.tolist() == [0, 1, 2, 0, 1, 2, 0, 1] and memory.task.dtype == jnp.int32
    _, _, after = agent.act(
        agent.policy(state), jax.random.key(0), timestep_of(np.ones((8, D), np.float32), True), memory
    )
    np.testing.assert_array_equal(after.task, memory.task)
    assert make("actions")[0].memory(8, None).task is None


@pytest.mark.parametrize("lstm_size", [0, 3])
def test_a_tasks_rows_reach_its_expert_alone(lstm_size):
    """This holds also for a batch cut from the blocks of several actors, where column b need not have task b mod N."""
    agent, state = make("tasks", shared_body=True, lstm_size=lstm_size)
    state = with_hypers(state, alpha=0.0, kl_cost=0.0)
    sample = play(agent, agent.policy(state), TASKS)
    columns = np.array([3, 0, 1, 4, 4, 3])  # their tasks are 0 and 1 alone
    cut = Sample(jax.tree.map(lambda x: x[:, columns], sample.steps), jax.tree.map(lambda x: x[columns], sample.memory))
    gradient, metrics = gradient_of(agent, state, cut)
    np.testing.assert_allclose(metrics["rho"], 1.0, atol=1e-5)
    assert largest(gradient["params"]["agent_1_task_2"]) == 0
    assert min(largest(gradient["params"][f"agent_1_task_{n}"]) for n in (0, 1)) > 0.01
    # The control: another task's expert is another policy.
    wrong = cut._replace(memory=cut.memory._replace(task=(cut.memory.task + 1) % 3))
    assert gradient_of(agent, state, wrong)[1]["rho"] < 0.999


@pytest.mark.parametrize("shared_body", [False, True])
def test_the_central_agent_does_not_know_the_task(shared_body):
    agent, state = make("tasks", shared_body, lstm_size=3, evaluate="target")
    state = with_hypers(state, alpha=1.0)
    sample = play(agent, agent.policy(state), TASKS)
    other = sample._replace(memory=sample.memory._replace(task=(sample.memory.task + 1) % 3))
    (g, _), (h, _) = (gradient_of(agent, state, s) for s in (sample, other))
    jax.tree.map(np.testing.assert_array_equal, g, h)


# Networks and errors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "shared_body", "torsos", "lstms"),
    [
        ("actions", True, 1, 0),
        ("actions, LSTM", True, 1, 1),
        ("actions, LSTM", False, 2, 2),
        ("architectures", True, 1, 1),
        ("architectures", False, 2, 1),
        ("tasks, LSTM", True, 1, 1),
        ("tasks", False, 2, 0),
    ],
)
def test_bodies_are_shared_where_asked(case, shared_body, torsos, lstms):
    agent, state = make(case, shared_body)
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state.params)]
    assert len({name.split("'")[3] for name in names if "['MLPTorso" in name}) == torsos
    assert sum("['LSTM" in name and "recurrent" in name for name in names) == lstms
    assert len(agent.memory(2, None).lstm) == lstms
    assert sum("agent_1" in name and "['LSTM" in name for name in names) == 0


def test_frames_are_stacked():
    """The learner sees what acting saw, with frames from before the block too, also in half precision."""
    spec = EnvironmentSpec((2, 3), np.dtype(np.uint8), DiscreteActions(3))
    fields = {"hidden_sizes": (4,), "frame_stack": 3, "dtype": "bfloat16", "unroll_length": T, "batch_size": B}
    config = mix_match.Config(torso="mlp", curriculum="architectures", lstm_size=3, **fields)
    agent = compiled(mix_match.make(config, spec))
    state = fresh(agent, config)
    rng = np.random.default_rng(0)
    state = state._replace(params=jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), state.params))
    sample = play(agent, agent.policy(with_hypers(state, alpha=0.5)), spec)
    assert sample.memory.frames.shape == (B, 2, 2, 3)
    np.testing.assert_allclose(gradient_of(agent, with_hypers(state, alpha=0.5), sample)[1]["rho"], 1.0, atol=0.01)
    forgotten = sample._replace(memory=agent.memory(B, None))
    assert gradient_of(agent, with_hypers(state, alpha=0.5), forgotten)[1]["rho"] < 0.99


@pytest.mark.parametrize(
    ("options", "spec", "message"),
    [
        ({"curriculum": "actions"}, DISCRETE, "needs actions of several factors"),
        ({"curriculum": "actions"}, EnvironmentSpec((D,), np.dtype(np.float32), FactoredActions(SIZES)), "a small set"),
        ({"curriculum": "tasks"}, DISCRETE, "needs several tasks.*--env"),
        ({"curriculum": "architectures"}, DISCRETE, "give config.lstm_size"),
        ({"curriculum": "tasks", "transfer": "masked_kl"}, TASKS, "is for config.curriculum=actions"),
        ({"curriculum": "architectures", "lstm_size": 3, "transfer": "shared_head"}, DISCRETE, "config.transfer=kl"),
        ({"alpha": 1.5}, FACTORED, r"config.alpha must be within \[0, 1\]"),
        ({"kl_cost": -1.0}, FACTORED, "config.kl_cost must be 0 or more"),
        ({"frame_stack": 4}, FACTORED, "frame_stack=1"),
    ],
)
def test_what_does_not_fit_is_refused(options, spec, message):
    with pytest.raises(ValueError, match=message) as error:
        mix_match.make(mix_match.Config(**({"torso": "mlp", "frame_stack": 1} | options)), spec)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("small", "message"),
    [
        (((1, 0, 0), (0, 2, 0)), r"\(0, 2, 0\) is not one with"),
        (((1, 0), (0, 1)), r"\(1, 0\) is not one with"),
        (((1, 0, 0), (-1, 0, 0)), r"\(-1, 0, 0\) is not one with"),
        (((1, 0, 0), (1, 0, 0)), "have one action twice"),
    ],
)
def test_small_actions_must_be_among_the_large(small, message):
    spec = dataclasses.replace(FACTORED, actions=FactoredActions(SIZES, small))
    with pytest.raises(ValueError, match=message):
        mix_match.make(mix_match.Config(torso="mlp", frame_stack=1), spec)


def test_the_table_is_impalas():
    agent, theirs = make("actions", queue_batches=2)[0], impala.make(impala.Config(), EnvironmentSpec(
        (84, 84), np.dtype(np.uint8), DiscreteActions(3)))  # fmt: skip
    table, other = agent.table, theirs.table
    assert (table.name, table.kind, table.max_size) == (other.name, "queue", 2 * B)
    assert table.items == Blocks(T) and agent.batch_size == B
