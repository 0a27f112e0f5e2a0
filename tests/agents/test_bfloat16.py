"""Networks that compute in bfloat16 learn nearly as they do in float32. The tests have every agent with the setting
`dtype`, and every torso, with and without an LSTM."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.agent import (
    Agent,
    BoundedActions,
    DiscreteActions,
    EnvironmentSpec,
    FactoredActions,
    Sample,
)
from agents.parts.torsos import LEAST_SIDES
from launchers import configs
from tests.agents.streams import stream

UPDATES, B = 100, 8
TOLERANCE = 0.02

DISCRETE = DiscreteActions(4)
CONTINUOUS = BoundedActions(np.array([-2.0, 0.0], np.float32), np.array([2.0, 1.0], np.float32))
FACTORED = FactoredActions((3, 2), small=((0, 0), (2, 1)))

# Small values of the fields that Configs have; each agent takes those that its Config has.
SMALL = {
    "frame_stack": 1,
    "hidden_sizes": (16,),
    "unroll_length": 5,
    "batch_size": B,
    "minibatches": 2,
    "burn_in": 2,
    "sequence_length": 6,
    "overlap": 3,
    "n_step": 1,
    "min_replay_size": 1,
}
# For each module: the variant's name, the settings that differ from SMALL, and the actions.
VECTORS: dict[str, list[tuple[str, dict[str, Any], Any]]] = {
    "a2c": [
        ("", {}, DISCRETE),
        ("lstm", {"lstm_size": 8, "lstm_previous": True}, DISCRETE),
        ("separate_value", {"separate_value": True}, CONTINUOUS),
    ],
    "apex_dqn": [("", {}, DISCRETE)],
    "dqn": [
        ("", {}, DISCRETE),
        ("dueling", {"double": True, "dueling": True, "head_size": 16, "replay": "prioritized"}, DISCRETE),
    ],
    "iqn": [("", {"num_fractions": 8, "num_target_fractions": 8}, DISCRETE)],
    "munchausen_dqn": [("", {}, DISCRETE)],
    "qr_dqn": [("", {"num_quantiles": 8}, DISCRETE)],
    "rainbow": [("", {}, DISCRETE), ("c51", {"noisy": False, "dueling": False, "replay": "uniform"}, DISCRETE)],
    "impala": [("", {}, DISCRETE), ("lstm", {"lstm_size": 8}, FACTORED)],
    "mix_match": [
        ("actions", {"curriculum": "actions"}, FACTORED),
        ("architectures", {"curriculum": "architectures", "lstm_size": 8}, DISCRETE),
        ("tasks", {"curriculum": "tasks", "lstm_size": 8, "shared_body": False}, DISCRETE),
    ],
    "ppo": [("", {}, DISCRETE), ("lstm", {"lstm_size": 8}, DISCRETE), ("sigma", {"sigma": "state"}, CONTINUOUS)],
    "ppo_rnd": [("", {"features": 16}, DISCRETE)],
    "pqn": [("", {}, DISCRETE), ("plain", {"layer_norm": False}, DISCRETE)],
    "q_learning": [("", {"optimizer": "adam", "target_period": 20}, DISCRETE)],
    "vmpo": [("", {}, DISCRETE), ("lstm", {"lstm_size": 8}, FACTORED), ("sigma", {"sigma": "free"}, CONTINUOUS)],
    "r2d2": [("", {"lstm_size": 8, "head_size": 8}, DISCRETE)],
}
# Every torso is here in one network, and every kind of network with one torso. Learning rates are small enough that the
# loss falls: where it grows, any two roundings drift apart.
FRAMES = [*(("impala", torso, DISCRETE) for torso in LEAST_SIDES), ("dqn", "shallow", DISCRETE)]
FRAMES += [("pqn", "shallow", DISCRETE)]
FRAMES += [("mix_match", "shallow", FACTORED)]


def modules() -> dict[str, Any]:
    """Returns the agents' modules, by name, whose networks may compute in bfloat16."""
    found = {place.removeprefix("agents."): configs.agent_module(agent) for agent, place in configs.AGENTS.items()}
    return {name: module for name, module in found.items() if "dtype" in fields_of(module)}


def fields_of(module: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(module.Config)}


def cases() -> list[Any]:
    found = []
    for name, variants in VECTORS.items():
        for variant, fields, actions in variants:
            spec = EnvironmentSpec((5,), np.dtype(np.float32), actions, num_tasks=2 if variant == "tasks" else 1)
            found.append(
                pytest.param(
                    name, {"torso": "mlp", "learning_rate": 1e-3} | fields, spec, id=f"{name}-mlp-{variant}".strip("-")
                )
            )
    for name, torso, actions in FRAMES:
        spec = EnvironmentSpec((max(8, LEAST_SIDES[torso]),) * 2, np.dtype(np.uint8), actions)
        found.append(pytest.param(name, {"torso": torso, "learning_rate": 1e-4}, spec, id=f"{name}-{torso}"))
    return found


def make(module: Any, fields: dict[str, Any], spec: EnvironmentSpec, dtype: str) -> Agent:
    small = {name: value for name, value in SMALL.items() if name in fields_of(module)}
    return module.make(module.Config(**small | fields, dtype=dtype), spec)


def learn(agent: Agent, state: Any, samples: list[Sample]) -> tuple[Any, np.ndarray]:
    """Returns the state after all updates, and the loss of each update."""
    update, losses = jax.jit(agent.update), []
    for i, sample in enumerate(samples):
        state, feedback = update(state, jax.random.key(i), sample)
        losses.append(feedback.metrics["loss"])
    return state, np.array(losses, np.float64)


def test_each_agent_that_has_it_is_here():
    assert VECTORS.keys() == modules().keys()


@pytest.mark.parametrize(("name", "fields", "spec"), cases())
def test_losses_are_float32s_within_2_percent(name, fields, spec):
    """The error is the root mean square of the losses' difference over all updates, divided by that of the losses."""
    module = modules()[name]
    exact, rough = (make(module, fields, spec, dtype) for dtype in ("float32", "bfloat16"))
    state = exact.init(jax.random.key(0))
    samples = stream(exact, state, spec, UPDATES, B)
    learnt, losses = learn(exact, state, samples)
    roughly_learnt, rough_losses = learn(rough, state, samples)

    error = np.sqrt(np.mean((rough_losses - losses) ** 2) / np.mean(losses**2))
    moved = max(np.abs(x - y).max() for x, y in zip(*map(jax.tree.leaves, (learnt.params, state.params)), strict=True))
    print(
        name, fields, f"error {error:.5f}, moved {moved:.3f}, losses {losses[:10].mean():.4f} {losses[-10:].mean():.4f}"
    )
    assert 0 < error < TOLERANCE
    assert jax.tree.map(jnp.result_type, roughly_learnt) == jax.tree.map(jnp.result_type, learnt)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(roughly_learnt.params))
