"""Tests of what the agents that learn action values share (agents/parts/action_values.py): devices, acting, frames and
settings. DQN's own tests are in test_dqn.py, and those of each agent's losses in its own file."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents import dqn, iqn, munchausen_dqn, qr_dqn, rainbow
from agents.agent import AXIS, BoundedActions, Stacks, Transitions
from agents.parts.action_values import Hypers
from tests.agents.transitions import (
    FRAMES,
    SMALL,
    SPEC,
    A,
    assert_trees_close,
    gradient_of,
    make,
    random_sample,
    random_transition,
    randomized,
    stacked_sample,
    timestep,
)

MODULES = [dqn, rainbow, qr_dqn, iqn, munchausen_dqn]
EACH = pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__.split(".")[-1])
FEW = {"num_atoms": 5, "num_quantiles": 4, "num_fractions": 4, "num_target_fractions": 3, "num_cosines": 6}


def few(module) -> dict:
    """Returns small sizes for those fields of FEW that the module's Config has."""
    names = {field.name for field in dataclasses.fields(module.Config)}
    return {name: size for name, size in FEW.items() if name in names}


def devices(agent, state, sample, count: int):
    """Returns the states and the feedback of `count` devices that share the sample's items, and their shares."""
    shares = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), sample)
    update = jax.jit(jax.vmap(agent.update, in_axes=(None, None, 0), axis_name=AXIS))
    return update(state, jax.random.key(1), shares), shares


@EACH
@pytest.mark.parametrize("replay", ["uniform", "prioritized"])
def test_several_devices_have_the_parameters_of_one(module, replay):
    """The gradient is the mean of the devices' gradients. It is that of the whole batch too, unless the update draws
    random numbers for each item, as IQN's does."""
    agent = make(module, replay=replay, double=True, dueling=True, **few(module))
    state, sample = randomized(agent.init(jax.random.key(0))), random_sample(5)
    (states, feedback), shares = devices(agent, state, sample, 2)
    whole, whole_feedback = jax.jit(agent.update)(state, jax.random.key(1), sample)
    first, second = (jax.tree.map(lambda x, i=i: x[i], states) for i in range(2))
    jax.tree.map(np.testing.assert_array_equal, first.params, second.params)
    jax.tree.map(np.testing.assert_array_equal, first.max_priority, second.max_priority)
    if module is not iqn:
        assert_trees_close(gradient_of(first.opt_state), gradient_of(whole.opt_state), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(first.max_priority, whole.max_priority, rtol=1e-5)
        metrics = {name: x[0] for name, x in feedback.metrics.items()}
        assert_trees_close(metrics, whole_feedback.metrics, rtol=1e-4, atol=1e-6)
    elif replay == "uniform":  # with priorities, importance weights are divided by the largest of all devices
        own = [
            jax.jit(agent.update)(state, jax.random.key(1), jax.tree.map(lambda x, i=i: x[i], shares))[0]
            for i in range(2)
        ]
        mean = jax.tree.map(lambda a, b: (a + b) / 2, *(gradient_of(each.opt_state) for each in own))
        assert_trees_close(gradient_of(first.opt_state), mean, rtol=1e-4, atol=1e-5)


@EACH
def test_targets_are_copied_every_period_and_an_update_is_traced_once(module):
    agent = make(module, target_period=3, learning_rate=0.1, **few(module))
    state, update = agent.init(jax.random.key(3)), jax.jit(agent.update)
    jax.tree.map(np.testing.assert_array_equal, state.target_params, state.params)
    state = randomized(state)
    targets = state.target_params
    for step in range(1, 8):
        before = state.params
        state, feedback = update(state, jax.random.key(step), random_sample(step))
        assert any((a != b).any() for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(state.params), strict=True))
        assert all(np.isfinite(x) for x in feedback.metrics.values())
        targets = state.params if step % 3 == 0 else targets
        jax.tree.map(np.testing.assert_array_equal, state.target_params, targets)
    assert update._cache_size() == 1


@EACH
def test_hypers_are_the_states(module):
    agent = make(module, epsilon_steps=100, **few(module))
    state = randomized(agent.init(jax.random.key(0)))
    hypers = Hypers(jnp.float32(0.25), jnp.float32(0.9), jnp.float32(0.5))
    state = state._replace(hypers=hypers, step=jnp.int32(50))
    new, feedback = jax.jit(agent.update)(state, jax.random.key(0), random_sample(0))
    moved = jax.tree.map(lambda a, b: np.abs(np.asarray(a - b)).max(), new.params, state.params)
    np.testing.assert_allclose(max(jax.tree.leaves(moved)), 0.25, rtol=1e-2)  # Adam's first step
    np.testing.assert_allclose(feedback.metrics["epsilon"], 0.7, rtol=1e-5)


@EACH
def test_epsilon_greedy_plays_the_greedy_action_or_any(module):
    agent = make(module, epsilon_initial=0.5, epsilon_final=0.5, **few(module))
    state = randomized(agent.init(jax.random.key(0)))
    B = 20_000
    now = timestep(np.broadcast_to(random_transition(0, B=1).observation, (B, 4)))
    policy = agent.policy(state)
    greedy, _, _ = jax.jit(agent.act_greedily)(policy, jax.random.key(0), now, agent.memory(B))
    assert len(np.unique(greedy)) == 1, "nothing random enters an evaluation"
    if module in (rainbow, iqn):  # their actors draw more random numbers than the action
        return
    action, extras, _ = jax.jit(agent.act)(policy, jax.random.key(0), now, agent.memory(B))
    assert extras == {} and action.dtype == jnp.int32
    np.testing.assert_allclose(np.mean(np.asarray(action) == greedy[0]), 0.5 + 0.5 / A, atol=0.02)


@EACH
@pytest.mark.parametrize("stack", [1, 3])
def test_learning_and_acting_see_the_same_stacks_of_frames(module, stack):
    fields = {"torso": "shallow", "frame_stack": stack, "head_size": 5, "replay": "prioritized"} | few(module)
    agent = module.make(module.Config(**SMALL | fields), FRAMES)
    assert agent.table.items == (
        Transitions(agent.table.items.n, 0.99) if stack == 1 else Stacks(agent.table.items.n, 0.99, stack)
    )
    state = agent.init(jax.random.key(0))
    _, feedback = jax.jit(agent.update)(state, jax.random.key(0), stacked_sample(stack))
    assert feedback.priorities.shape == (4,) and np.isfinite(feedback.priorities).all()
    assert (np.asarray(feedback.priorities) > 0).all()
    rng, B = np.random.default_rng(0), 4
    memory, act = agent.memory(B), jax.jit(agent.act_greedily)
    for t in range(4):
        frames = rng.integers(0, 256, (B, *FRAMES.observation_shape), dtype=np.uint8)
        now = timestep(frames, first=t == 0)
        _, _, memory = act(agent.policy(state), jax.random.key(t), now, memory)
    if stack > 1:
        np.testing.assert_array_equal(memory.frames[:, -1], frames)
    else:
        assert memory.frames is None


@EACH
def test_a_table_and_what_does_not_fit_is_refused(module):
    name, one = module.__name__.split(".")[-1], np.ones(1, np.float32)
    table = make(module, n_step=3, discount=0.9, replay_size=500, samples_per_insert=2.0).table
    assert table.items == Transitions(3, 0.9) and (table.max_size, table.min_size) == (500, 10)
    with pytest.raises(ValueError, match=f"^{name} needs discrete actions; this environment's are continuous; use "):
        module.make(module.Config(), dataclasses.replace(SPEC, actions=BoundedActions(-one, one)))
    with pytest.raises(ValueError, match=r"torso=nature needs frames .* use torso=mlp"):
        module.make(module.Config(frame_stack=1), SPEC)


@pytest.mark.parametrize(
    ("module", "field", "value"),
    [
        *((module, "discount", 1.1) for module in MODULES),
        *((module, "min_replay_size", 10_000_000) for module in MODULES),
        *((module, "epsilon_final", -0.1) for module in MODULES),
        (rainbow, "noisy_sigma", 0.0),
        (rainbow, "num_atoms", 1),
        (rainbow, "v_min", 10.0),
        (qr_dqn, "num_quantiles", 0),
        (qr_dqn, "kappa", -1.0),
        (iqn, "num_fractions", 0),
        (iqn, "num_target_fractions", 0),
        (iqn, "num_acting_fractions", 0),
        (iqn, "num_cosines", 0),
        (munchausen_dqn, "tau", 0.0),
        (munchausen_dqn, "alpha", 1.5),
        (munchausen_dqn, "l_0", 0.5),
    ],
)
def test_settings_out_of_range_are_refused(module, field, value):
    with pytest.raises(ValueError, match=f"config.{field}"):
        module.Config(**{field: value})
