"""Random transitions, and what the tests of agents that learn action values from transitions share."""

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from agents.agent import Agent, DiscreteActions, EnvironmentSpec, Sample, TimeStep, Transition

A = 3
SPEC = EnvironmentSpec((4,), np.dtype(np.float32), DiscreteActions(A))
FRAMES = EnvironmentSpec((20, 24), np.dtype(np.uint8), DiscreteActions(A))
SMALL: dict[str, Any] = {
    "torso": "mlp",
    "frame_stack": 1,
    "hidden_sizes": (7,),
    "head_size": 0,
    "min_replay_size": 10,
}
ADAM_B1 = 0.9


def make(module: ModuleType, **fields: Any) -> Agent:
    return module.make(module.Config(**{**SMALL, "optimizer": "adam", "optimizer_epsilon": 1e-8, **fields}), SPEC)


def random_transition(seed: int, B: int = 8) -> Transition:
    rng = np.random.default_rng(seed)
    return Transition(
        observation=rng.normal(size=(B, 4)).astype(np.float32),
        action=rng.integers(A, size=B).astype(np.int32),
        reward=(2 * rng.normal(size=B)).astype(np.float32),
        discount=np.where(rng.random(B) < 0.3, 0.0, 0.9).astype(np.float32),
        next_observation=rng.normal(size=(B, 4)).astype(np.float32),
    )


def random_sample(seed: int, B: int = 8) -> Sample:
    likelihood = np.exp(np.random.default_rng(1000 + seed).normal(size=B)).astype(np.float32)
    return Sample(random_transition(seed, B), (), likelihood)


def randomized(state, seed: int = 0):
    """Returns the state with random parameters and targets, which differ."""
    rng = np.random.default_rng(seed)

    def noisy(x):
        return jnp.asarray(x + 0.6 * rng.normal(size=x.shape), jnp.float32)

    return state._replace(
        params=jax.tree.map(noisy, state.params), target_params=jax.tree.map(noisy, state.target_params)
    )


def timestep(observation: np.ndarray, first: bool = False) -> TimeStep:
    zeros = np.zeros(len(observation), np.float32)
    return TimeStep(observation, zeros, zeros + 1, np.full(len(observation), first), zeros > 0)


def float64(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def finite_differences(function, params, epsilon=1e-6):
    leaves, structure = jax.tree.flatten(float64(params))
    gradients = []
    for leaf in leaves:
        gradient = np.zeros_like(leaf)
        for index in np.ndindex(*leaf.shape):
            kept = leaf[index]
            leaf[index] = kept + epsilon
            above = function(jax.tree.unflatten(structure, leaves))
            leaf[index] = kept - epsilon
            below = function(jax.tree.unflatten(structure, leaves))
            leaf[index] = kept
            gradient[index] = (above - below) / (2 * epsilon)
        gradients.append(gradient)
    return jax.tree.unflatten(structure, gradients)


def learn(agent: Agent, state: Any, sample: Sample, keys: jax.Array) -> tuple[Any, dict[str, Any]]:
    """Returns the state after one update on the same sample for each of the keys, and the metrics of all updates,
    [keys] each."""

    def body(state, key):
        state, feedback = agent.update(state, key, sample)
        return state, feedback.metrics

    return jax.jit(lambda state: jax.lax.scan(body, state, keys))(state)


def gradient_of(opt_state):
    """Returns the gradient of the first step, which Adam's first moment holds times 1 - beta_1."""
    return jax.tree.map(lambda m: np.asarray(m) / (1 - ADAM_B1), opt_state[1].mu)


def assert_trees_close(got, expected, rtol=1e-5, atol=1e-6):
    jax.tree.map(lambda g, e: np.testing.assert_allclose(g, e, rtol=rtol, atol=atol), got, expected)


def softmax(x: np.ndarray) -> np.ndarray:
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def dense(layer: Any, x: np.ndarray) -> np.ndarray:
    return x @ layer["kernel"] + layer["bias"]


def np_outputs(theta: Any, x: np.ndarray, num_atoms: int) -> np.ndarray:
    """Returns the outputs [A, num_atoms] for one observation, by an mlp of one layer and plain or dueling heads."""
    layers = theta["params"]
    features = np.maximum(0.0, dense(layers["MLPTorso_0"]["Dense_0"], x.astype(np.float64)))
    advantages = dense(layers["advantage"], features).reshape(A, num_atoms)
    if "value" not in layers:
        return advantages
    return dense(layers["value"], features) + advantages - advantages.mean(axis=0)


def np_huber(error: float, kappa: float = 1.0) -> float:
    return 0.5 * error**2 if abs(error) <= kappa else kappa * (abs(error) - 0.5 * kappa)


def np_rho(tau: float, u: float, kappa: float) -> float:
    """Returns the quantile Huber loss of the difference u. With a kappa of 0 it is quantile regression's loss."""
    weight = abs(tau - (u < 0))
    return weight * (np_huber(u, kappa) / kappa if kappa else abs(u))


def stacked_sample(stack: int, B: int = 4) -> Sample:
    rng = np.random.default_rng(0)
    shape = (B, stack, *FRAMES.observation_shape) if stack > 1 else (B, *FRAMES.observation_shape)
    frames = rng.integers(0, 256, (2, *shape), dtype=np.uint8)
    t = random_transition(1, B)
    return Sample(t._replace(observation=frames[0], next_observation=frames[1]), (), np.ones(B, np.float32))
