"""Rewards divided by the running standard deviation of discounted returns, in every agent that has
`normalize_rewards`."""

import importlib
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import agents
from agents.agent import DiscreteActions, EnvironmentSpec, Sample, Step, TimeStep

T, B, GAMMA = 6, 4, 0.9
SPEC = EnvironmentSpec((3,), np.dtype(np.float32), DiscreteActions(3))
NETWORK = {"torso": "mlp", "frame_stack": 1, "hidden_sizes": (5,), "unroll_length": T, "batch_size": B}
OWN = {
    "ppo": {"epochs": 1, "minibatches": 1},
    "ppo_rnd": {"epochs": 1, "minibatches": 1, "features": 4},
    "trpo": {"value_epochs": 1, "value_minibatches": 1},
    "mix_match": {"curriculum": "architectures", "lstm_size": 4, "alpha": 0.5},
}
MODULES = {each.name: importlib.import_module(f"agents.{each.name}") for each in pkgutil.iter_modules(agents.__path__)}
SCALING = sorted(
    name for name, module in MODULES.items() if "normalize_rewards" in getattr(module, "Config", object).__dict__
)


def make(name: str, **options):
    config = MODULES[name].Config(**NETWORK | OWN.get(name, {}), discount=GAMMA, **options)
    return MODULES[name].make(config, SPEC)


def played(agent, state, seed: int = 0) -> tuple[Sample, np.ndarray]:
    """Returns a block as an actor makes it, and by hand each row's G, the discounted sum of the episode's rewards so
    far."""
    rng, memory = np.random.default_rng(seed), agent.memory(B, None)
    first, before, rows, G, all_G = np.ones(B, bool), memory, [], np.zeros(B), []
    reward = np.zeros(B, np.float32)
    for t in range(T + 1):
        observation, discount = rng.normal(size=(B, 3)).astype(np.float32), np.ones(B, np.float32)
        timestep = TimeStep(observation, np.where(first, 0, reward).astype(np.float32), discount, first, first)
        action, extras, memory = agent.act(agent.policy(state), jax.random.key(t), timestep, memory)
        G = np.where(first, 0.0, GAMMA * G + reward)
        all_G.append(G)
        reward = rng.normal(3.0, 2.0, B).astype(np.float32)
        rows.append(Step(observation, np.asarray(action), reward, discount, first, jax.tree.map(np.asarray, extras)))
        first = rng.random(B) < 0.3
    return Sample(Step(*jax.tree.map(lambda *x: np.stack(x), *rows)), before), np.stack(all_G)


def test_those_that_can_are_the_actor_critics():
    assert SCALING == ["a2c", "impala", "mix_match", "ppo", "ppo_rnd", "trpo", "vmpo"]


@pytest.mark.parametrize("name", SCALING)
def test_returns_are_summed_as_they_come_and_scale_rewards_from_the_next_update_on(name):
    agent, plain = make(name, normalize_rewards=True), make(name)
    update, state = jax.jit(agent.update), agent.init(jax.random.key(0))
    sample, G = played(agent, state)
    np.testing.assert_allclose(sample.steps.extras["discounted_return"], G, rtol=1e-4, atol=1e-6)

    def by_hand(state, factor: float, clipped: float = np.inf):
        reward = np.clip(sample.steps.reward / factor, -clipped, clipped)
        return jax.jit(plain.update)(
            state._replace(returns=()),
            jax.random.key(1),
            sample._replace(
                steps=sample.steps._replace(reward=reward),
                memory=sample.memory._replace(discounted_return=()),
            ),
        )[0]

    def check(got, expected):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), got.params, expected.params)

    after, _ = update(state, jax.random.key(1), sample)
    check(after, by_hand(state, 1.0))
    np.testing.assert_allclose(after.returns.variance, G[:-1].var(), rtol=1e-4)
    again, _ = update(after, jax.random.key(1), sample)
    check(again, by_hand(after, G[:-1].std()))
    # Rewards are clipped at ten deviations.
    narrow = after._replace(returns=after.returns._replace(variance=jnp.float32(0.04)))
    assert np.abs(sample.steps.reward).max() > 10 * 0.2
    check(update(narrow, jax.random.key(1), sample)[0], by_hand(narrow, 0.2, 10.0))


@pytest.mark.parametrize("name", SCALING)
def test_without_it_nothing_travels(name):
    agent = make(name)
    state = agent.init(jax.random.key(0))
    sample, _ = played(agent, state)
    assert "discounted_return" not in sample.steps.extras and sample.memory.discounted_return == ()
    assert state.returns == ()


def test_the_halves_of_an_update_carry_the_statistics():
    """The statistics travel with the gradient."""
    agent = make("a2c", normalize_rewards=True)
    state = agent.init(jax.random.key(0))
    sample, _ = played(agent, state)
    whole, _ = jax.jit(agent.update)(state, jax.random.key(1), sample)
    gradient, _ = jax.jit(agent.gradient)(state._replace(opt_state=()), jax.random.key(1), sample)
    halves = jax.jit(agent.apply)(state, gradient)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), whole, halves)
