"""Hyperparameters, learning rates, optimisers and steps, against what they are said to be."""

import types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from agents.agent import AXIS, MOST_ENV_STEPS, Blocks, Sequences, Step, TableSpec, queue_table, replay_table
from agents.parts import normalizer
from agents.parts.optimization import (
    descend,
    due_every,
    initial_hypers,
    learning_rate_of,
    make_optimizer,
    minimize,
    new_every,
)


class Hypers(NamedTuple):
    learning_rate: Any
    discount: Any


class Params(NamedTuple):
    theta: Any
    w: Any


def test_hypers_are_the_configs_fields_of_their_names():
    config = types.SimpleNamespace(discount=0.1, batch_size=4, learning_rate=1)
    hypers = initial_hypers(Hypers, config)
    assert isinstance(hypers, Hypers) and hypers.learning_rate == 1 and hypers.discount == np.float32(0.1)
    assert all(isinstance(x, jax.Array) and x.dtype == jnp.float32 and x.shape == () for x in hypers)


def rate(env_steps, **fields) -> float:
    """Returns the learning rate at this step, where the peak is 0.5."""
    config = types.SimpleNamespace(**{"warmup_env_steps": 0, "decay_env_steps": 0, "decay": "linear"} | fields)
    state = types.SimpleNamespace(hypers=Hypers(jnp.float32(0.5), None), env_steps=jnp.float32(env_steps))
    return float(learning_rate_of(config, state))


@pytest.mark.parametrize(("env_steps", "left"), [(0, 1.0), (6e9, 0.7), (2e10, 0.0), (3e10, 0.0)])
def test_the_learning_rate_falls_to_0_over_the_environment_steps(env_steps, left):
    np.testing.assert_allclose(rate(env_steps, decay_env_steps=2 * 10**10), 0.5 * left, atol=1e-7)
    assert rate(env_steps) == 0.5


@pytest.mark.parametrize("decay_env_steps", [7, 300_000, 50_000_000, MOST_ENV_STEPS])
def test_a_linear_decay_is_the_share_that_is_left_to_the_bit(decay_env_steps):
    """The linear decay gives, to the bit, the learning rate that it gave before there were other kinds of decay."""
    for env_steps in np.random.default_rng(0).uniform(0, 1.2 * decay_env_steps, 50).astype(np.float32):
        left = max(np.float32(0), np.float32(1) - env_steps / np.float32(decay_env_steps))
        assert rate(env_steps, decay_env_steps=decay_env_steps) == np.float32(0.5) * left


@pytest.mark.parametrize("decay", ["linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, 300, 4 * 10**9])
def test_the_learning_rate_rises_from_0_and_falls_to_0(decay, warmup):
    end = warmup + 2_000
    fields = {"warmup_env_steps": warmup, "decay_env_steps": end, "decay": decay}
    for share in (0.25, 0.5, 0.75, 1.0):
        if warmup:
            np.testing.assert_allclose(rate(share * warmup, **fields), 0.5 * share, rtol=1e-6)
            assert rate(share * warmup, warmup_env_steps=warmup) == pytest.approx(0.5 * share)
        if warmup < 10**6:  # above, float32 resolves environment steps to hundreds
            left = 1 - share if decay == "linear" else 0.5 * (1 + np.cos(np.pi * share))
            np.testing.assert_allclose(rate(warmup + share * 2_000, **fields), 0.5 * left, rtol=1e-5, atol=1e-7)
    assert rate(0, **fields) == (0.0 if warmup else 0.5)
    assert rate(2 * end, **fields) == pytest.approx(0.0, abs=1e-7)
    assert rate(2 * end, warmup_env_steps=warmup) == 0.5


def test_a_step_goes_down_the_gradient_at_one_rate_or_at_one_for_each_part():
    params = Params({"a": jnp.array([1.0, 2.0])}, jnp.array(3.0))
    gradient = Params({"a": jnp.array([10.0, -10.0])}, jnp.array(1.0))
    optimizer = make_optimizer("sgd")
    opt_state = optimizer.init(params)
    after, _ = descend(optimizer, gradient, opt_state, params, jnp.float32(0.5))
    np.testing.assert_array_equal(after.theta["a"], [-4.0, 7.0])
    assert after.w == 2.5
    after, _ = descend(optimizer, gradient, opt_state, params, Params(0.1, 2.0))
    np.testing.assert_allclose(after.theta["a"], [0.0, 3.0], atol=1e-6)
    assert after.w == 1.0
    gradient, params = gradient._replace(w=()), params._replace(w=())
    after, _ = descend(optimizer, gradient, opt_state, params, Params(0.1, 2.0))
    np.testing.assert_allclose(after.theta["a"], [0.0, 3.0], atol=1e-6)
    assert after.w == ()


@pytest.mark.parametrize("norm", [0.0, 5.0])
def test_optimizers_clip_and_then_scale(norm):
    gradient = jnp.array([30.0, -40.0])
    clipped = gradient / 10 if norm else gradient
    plain = {
        "adam": optax.scale_by_adam(eps=1e-3),
        "radam": optax.scale_by_radam(eps=1e-3),
        "rmsprop": optax.scale_by_rms(0.9, 1e-3),
        "centred": optax.scale_by_stddev(0.9, 1e-3),
        "sgd": optax.identity(),
    }
    for name, expected in plain.items():
        kind: Any = "rmsprop" if name == "centred" else name
        optimizer = make_optimizer(kind, 1e-3, 0.9, norm, centred=name == "centred")
        got, _ = optimizer.update(gradient, optimizer.init(gradient))
        wanted, _ = expected.update(clipped, expected.init(gradient))
        np.testing.assert_allclose(got, wanted, rtol=1e-6, err_msg=name)


def test_rmsprop_begins_where_it_is_told_and_keeps_its_momentum():
    gradients, decay, epsilon, momentum, initial = [3.0, -1.0, 2.0], 0.9, 0.01, 0.5, 1.0
    optimizer = make_optimizer("rmsprop", epsilon, decay, momentum=momentum, initial=initial)
    state, square, direction = optimizer.init(jnp.float32(0)), initial, 0.0
    for g in gradients:
        got, state = optimizer.update(jnp.float32(g), state)
        square = decay * square + (1 - decay) * g**2
        direction = momentum * direction + g / np.sqrt(square + epsilon)
        np.testing.assert_allclose(got, direction, rtol=1e-5)


def test_targets_are_new_after_every_period():
    new, old = {"a": jnp.ones(2)}, {"a": jnp.zeros(2)}
    kept = [float(new_every(3, jnp.int32(step), new, old)["a"][0]) for step in range(1, 8)]
    assert kept == [0, 0, 1, 0, 0, 1, 0]


def test_a_step_down_a_loss_is_that_of_all_devices():
    """The loss of x is (x - a)^2, where each device has its own a. The gradient is the mean of 2 (x - a)."""
    optimizer, x = make_optimizer("sgd"), jnp.float32(1.0)

    def loss(x, a):
        return jnp.square(x - a), 10 * a

    def step(a):
        return minimize(loss, (a,), optimizer, x, optimizer.init(x), 0.1)

    alone = step(jnp.float32(4.0))
    np.testing.assert_allclose([alone.params, alone.loss, alone.aux, alone.gradient_norm], [1.6, 9.0, 40.0, 6.0])
    devices = jax.vmap(step, axis_name=AXIS)(jnp.array([4.0, 0.0]))
    np.testing.assert_allclose(devices.params, [1.2, 1.2], rtol=1e-6)
    np.testing.assert_allclose(devices.gradient_norm, [2.0, 2.0], rtol=1e-6)
    np.testing.assert_array_equal(devices.loss, [9.0, 1.0])


@pytest.mark.parametrize("period", [1, 3])
def test_what_is_due_is_done_at_every_periodth_update(period):
    done = jax.jit(lambda step: due_every(period, step, lambda x: x + 1, lambda x: x, jnp.int32(7)))
    assert [int(done(step)) for step in range(1, 8)] == [8 if step % period == 0 else 7 for step in range(1, 8)]


def test_a_row_before_a_first_is_not_live():
    first = np.array([[True, True], [False, False], [False, True], [True, False]])
    steps = Step(*(np.zeros((4, 2)) for _ in range(4)), first=jnp.asarray(first), extras={})
    np.testing.assert_array_equal(steps.live, [[1, 1], [1, 0], [0, 1]])
    assert steps.live.dtype == jnp.float32


def test_tables_are_of_the_configs_sizes():
    config = types.SimpleNamespace(
        batch_size=4, queue_batches=3, replay_size=90, min_replay_size=7, samples_per_insert=2.5, priority_exponent=0.6,
        priority="rank", uniform_fraction=0.25,
    )  # fmt: skip
    assert queue_table(config, Blocks(5)) == TableSpec("queue", Blocks(5), "queue", max_size=12)
    items = Sequences(1, 5, 2)
    expected = TableSpec("replay", items, "prioritized", 90, 7, 2.5, 0.6, priority="rank", uniform_fraction=0.25)
    assert replay_table(config, items, "prioritized") == expected


def test_without_a_normaliser_nothing_is_counted():
    assert normalizer.update((), jnp.ones((3, 2))) == ()
