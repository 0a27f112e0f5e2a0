"""The networks against the plainest code that computes the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents import dqn
from agents.agent import DiscreteActions, EnvironmentSpec, TimeStep, Transition
from agents.parts import networks, stacking, torsos


def plain_conv(params, x, stride):
    dims = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(x, params["kernel"], (stride, stride), "VALID", dimension_numbers=dims)
    return y + params["bias"]


@pytest.mark.parametrize(
    ("shape", "size", "stride"),
    [((2, 20, 20, 4), 8, 4), ((2, 23, 21, 1), 8, 4), ((2, 11, 8, 8), 4, 2), ((2, 9, 9, 16), 3, 1)],
)
def test_conv_equals_lax(shape, size, stride):
    keys = jax.random.split(jax.random.key(0), 4)
    x = jax.random.normal(keys[0], shape)
    conv = torsos.Conv(16, size, stride)
    params = conv.init(keys[1], x)["params"]
    assert params["kernel"].shape == (size, size, shape[-1], 16)
    params["bias"] = jax.random.normal(keys[2], params["bias"].shape)
    y, back = jax.vjp(lambda p, x: conv.apply({"params": p}, x), params, x)
    expected, expected_back = jax.vjp(lambda p, x: plain_conv(p, x, stride), params, x)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
    grad = jax.random.normal(keys[3], y.shape)
    for got, want in zip(jax.tree.leaves(back(grad)), jax.tree.leaves(expected_back(grad)), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-3)


def naive_stacks(frames, first, stack):
    """Turns frames [T, B, H, W], of which row 0 opens an episode, into stacks [T, B, H, W, S], by a queue for each
    environment."""
    rows, batch = first.shape
    out = np.zeros((*frames.shape, stack), np.uint8)
    for b in range(batch):
        queue = []
        for t in range(rows):
            queue = [frames[t, b]] * stack if first[t, b] else [*queue[1:], frames[t, b]]
            out[t, b] = np.stack(queue, axis=-1)
    return out


@pytest.mark.parametrize("stack", [1, 4])
@pytest.mark.parametrize("chance", [0.0, 0.15, 0.6])
@pytest.mark.parametrize("split", [1, 2, 9, 23])
def test_stack_frames(stack, chance, split):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (24, 5, 3, 2), dtype=np.uint8)
    first = rng.random((24, 5)) < chance
    first[0] = True
    previous = rng.integers(0, 256, (5, stack - 1, 3, 2), dtype=np.uint8)  # from other episodes: must not be seen
    expected = naive_stacks(frames, first, stack)
    stack_frames = jax.jit(stacking.stack_frames)
    whole, newest = stack_frames(previous, frames, first)
    assert whole.dtype == newest.dtype == jnp.uint8
    np.testing.assert_array_equal(whole, expected)
    head, middle = stack_frames(previous, frames[:split], first[:split])
    tail, last = stack_frames(middle, frames[split:], first[split:])
    np.testing.assert_array_equal(np.concatenate([head, tail]), expected)
    np.testing.assert_array_equal(last, newest)
    np.testing.assert_array_equal(np.moveaxis(newest, 1, -1), expected[-1][..., 1:])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("torso", ["shallow", "nature", "residual"])
def test_the_same_objects_before_any_background_are_the_same(torso, dtype):
    """A background that is brighter by any amount leaves a torso's output as it is; other objects do not."""
    network = torsos.make_torso(torso, (), "relu", jnp.dtype(dtype))
    rng = np.random.default_rng(0)
    objects = np.where(rng.random((3, 36, 36, 2)) < 0.1, 100, 0).astype(np.uint8)
    params = jax.jit(network.init)(jax.random.key(0), objects)
    seen = jax.jit(lambda x: network.apply(params, x).astype(jnp.float32))
    before, atol = seen(objects), {"float32": 1e-5, "bfloat16": 0.02}[dtype]
    assert np.abs(before).max() > 0.05 and np.abs(before[0] - before[1]).max() > 0.05
    for background in (1, 87, 155):
        np.testing.assert_allclose(seen(objects + np.uint8(background)), before, rtol=2e-2, atol=atol)


@pytest.mark.parametrize("shape", [(84, 84, 4), (36, 50, 1), (5, 6, 2), (2, 2, 1)])
def test_pixels_have_a_range_of_1_around_their_background(shape):
    """Objects cover a third of each frame, and are brighter and darker than its background."""
    rng = np.random.default_rng(0)
    background = rng.integers(20, 230, (6, 1, 1, 1))
    objects = np.where(rng.random((6, *shape)) < (0.3 if shape[0] > 2 else 0), rng.integers(-20, 25, (6, *shape)), 0)
    shown = torsos.centre_pixels((background + objects).astype(np.uint8), jnp.float32)
    np.testing.assert_allclose(shown, objects / 255, atol=1e-6)
    board = np.array([[[[0.5], [2.0]]]], np.float32)
    np.testing.assert_array_equal(torsos.centre_pixels(board, jnp.float32), board)


@pytest.mark.parametrize("size", [1, 2, 3, 196])
@pytest.mark.parametrize("values", [2, 5, 256])
def test_median_of_bytes_is_the_middle_of_the_sorted(size, values):
    rng = np.random.default_rng(size)
    x = rng.choice(rng.choice(256, values, replace=False), (500, size)).astype(np.uint8)
    x[:3] = np.array([[0], [127], [255]])
    np.testing.assert_array_equal(jax.jit(torsos.median_of_bytes)(x), np.sort(x, axis=1)[:, size // 2])


def lstm_example(rows=7, batch=3, size=5, features=4):
    keys = jax.random.split(jax.random.key(1), 4)
    lstm = networks.LSTM(size)
    x = jax.random.normal(keys[0], (rows, batch, features))
    first = jnp.zeros((rows, batch), bool).at[3, 0].set(True).at[0, 1].set(True).at[5, 1].set(True)
    state = networks.LSTMState(*jax.random.normal(keys[1], (2, batch, size)))
    return lstm, lstm.init(keys[2], state, x, first), state, x, first


def test_lstm_unroll_equals_steps():
    lstm, params, state, x, first = lstm_example()
    last, ys = jax.jit(lstm.apply)(params, state, x, first)
    step = jax.jit(lstm.apply)
    for t in range(x.shape[0]):
        state = jax.tree.map(lambda s, t=t: jnp.where(first[t][:, None], 0.0, s), state)  # the reset, by hand
        state, y = step(params, state, x[t : t + 1], jnp.zeros_like(first[:1]))
        np.testing.assert_allclose(y[0], ys[t], atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state, last)


def test_lstm_starts_from_zeros_at_a_reset():
    lstm, params, _, x, first = lstm_example()
    state = lstm.initial_state(3)
    assert all((s == 0).all() and s.shape == (3, 5) for s in state)
    _, ys = lstm.apply(params, state, x[3:], jnp.zeros_like(first[3:]))
    _, all_ys = lstm.apply(params, state, x, first)
    np.testing.assert_allclose(ys[:, 0], all_ys[3:, 0], atol=1e-6)


def test_gradient_stops_at_a_reset():
    lstm, params, state, x, first = lstm_example()

    def last_row(state, x):
        return lstm.apply(params, state, x, first)[1][-1].sum()

    state_grad, x_grad = jax.grad(last_row, (0, 1))(state, x)
    assert (x_grad[:3, 0] == 0).all() and (x_grad[:5, 1] == 0).all()
    assert (x_grad[3:, 0] != 0).all() and (x_grad[5:, 1] != 0).all() and (x_grad[:, 2] != 0).all()
    for grad in state_grad:
        assert (grad[:2] == 0).all() and (grad[2] != 0).all()


@pytest.mark.parametrize("torso", ["mlp", "nature", "residual"])
@pytest.mark.parametrize("lstm_size", [0, 6])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_actor_critic(torso, lstm_size, dtype):
    shape, kind = ((2, 3, 5), jnp.float32) if torso == "mlp" else ((2, 3, 84, 84, 4), jnp.uint8)
    observation = jnp.ones(shape, kind)
    first = jnp.zeros((2, 3), bool)
    network = networks.ActorCritic(torso, 7, hidden_sizes=(16,), lstm_size=lstm_size, dtype=dtype)
    state = network.initial_state(3)
    params = jax.eval_shape(network.init, jax.random.key(0), observation, first, state)
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(params))
    logits, value, after = jax.eval_shape(network.apply, params, observation, first, state)
    assert (logits.shape, logits.dtype) == ((2, 3, 7), jnp.float32)
    assert (value.shape, value.dtype) == ((2, 3), jnp.float32)
    spec = jax.tree.map(lambda s: (s.shape, s.dtype), (state, after))
    assert spec[0] == spec[1]


@pytest.mark.parametrize("torso", ["mlp", "shallow"])
@pytest.mark.parametrize("lstm_size", [0, 6])
@pytest.mark.parametrize("dueling", [False, True])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_q_network(torso, lstm_size, dueling, dtype):
    shape, kind = ((2, 3, 5), jnp.float32) if torso == "mlp" else ((2, 3, 36, 36, 4), jnp.uint8)
    observation, first = jnp.ones(shape, kind), jnp.zeros((2, 3), bool)
    inputs = jnp.ones((2, 3, 8)) if lstm_size else ()
    network = networks.QNetwork(torso, 7, (16,), lstm_size=lstm_size, dueling=dueling, dtype=dtype)
    state = network.initial_state(3)
    params = jax.eval_shape(network.init, jax.random.key(0), observation, first, state, inputs)
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(params))
    assert ("value" in params["params"]) == dueling
    values, after = jax.eval_shape(network.apply, params, observation, first, state, inputs)
    assert (values.shape, values.dtype) == ((2, 3, 7), jnp.float32)
    spec = jax.tree.map(lambda s: (s.shape, s.dtype), (state, after))
    assert spec[0] == spec[1]


def q_example(**fields):
    """Returns a network, parameters that give outputs far from the small ones of a new network, and inputs for it."""
    network = networks.QNetwork("mlp", 4, (6,), **fields)
    keys = jax.random.split(jax.random.key(0), 2)
    observation, first = jax.random.normal(keys[0], (5, 3, 2)), jnp.zeros((5, 3), bool).at[2, 1].set(True)
    inputs = jax.random.normal(keys[1], (5, 3, 2)) if network.lstm_size else ()
    state = network.initial_state(3)
    params = network.init(jax.random.key(1), observation, first, state, inputs)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), params)
    return network, params, observation, first, state, inputs


def dense(layer, x):
    return x @ layer["kernel"] + layer["bias"]


def test_dueling_values_average_to_the_state_value():
    """By Wang et al. 2016, eq. 9, the mean of Q - V over actions is 0, so that V and A can be told apart."""
    network, params, observation, first, state, _ = q_example(dueling=True)
    q, _ = network.apply(params, observation, first, state)
    layers = params["params"]
    x = np.maximum(0.0, dense(layers["MLPTorso_0"]["Dense_0"], observation))
    value, advantages = dense(layers["value"], x), dense(layers["advantage"], x)
    np.testing.assert_allclose(q.mean(axis=-1), value[..., 0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(q, value + advantages - advantages.mean(-1, keepdims=True), rtol=1e-4, atol=1e-4)
    layers["advantage"]["bias"] += 3.0  # a constant added to all advantages changes no Q
    np.testing.assert_allclose(network.apply(params, observation, first, state)[0], q, rtol=1e-4, atol=1e-4)


def test_streams_may_have_a_layer_of_their_own():
    network, params, observation, first, state, _ = q_example(dueling=True, head_size=5)
    layers = params["params"]
    x = np.maximum(0.0, dense(layers["MLPTorso_0"]["Dense_0"], observation))
    value, advantages = (
        dense(layers[name], np.maximum(0.0, dense(layers[f"{name}_hidden"], x))) for name in ("value", "advantage")
    )
    q, _ = network.apply(params, observation, first, state)
    np.testing.assert_allclose(q, value + advantages - advantages.mean(-1, keepdims=True), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dueling", [False, True])
@pytest.mark.parametrize(("torso", "convolved"), [("shallow", 3 * 3 * 32), ("nature", 64), ("residual", 5 * 5 * 32)])
def test_streams_layers_take_the_place_of_the_torsos(torso, convolved, dueling):
    """As in Wang et al. 2016, figure 1, each stream's hidden layer replaces the torso's dense layer. With an LSTM
    between them, the torso keeps its layer."""
    observation, first = jnp.ones((1, 2, 36, 36, 4), jnp.uint8), jnp.zeros((1, 2), bool)
    kernels = {}
    for lstm_size in (0, 3):
        network = networks.QNetwork(torso, 5, head_size=7, dueling=dueling, lstm_size=lstm_size)
        params = jax.eval_shape(network.init, jax.random.key(0), observation, first, network.initial_state(2))
        shapes = jax.tree_util.tree_flatten_with_path(params["params"])[0]
        kernels[lstm_size] = {jax.tree_util.keystr(path): leaf.shape for path, leaf in shapes}
    streams = ["advantage", "value"] if dueling else ["advantage"]
    for name in streams:
        assert kernels[0][f"['{name}_hidden']['kernel']"] == (convolved, 7)
        assert kernels[3][f"['{name}_hidden']['kernel']"] == (3, 7)
        assert kernels[0][f"['{name}']['kernel']"] == (7, 5 if name == "advantage" else 1)
    assert not any("Dense" in path for path in kernels[0]) and any("Dense" in path for path in kernels[3])


def test_plain_values_are_the_heads():
    network, params, observation, first, state, _ = q_example()
    q, after = network.apply(params, observation, first, state)
    hidden, head = params["params"]["MLPTorso_0"]["Dense_0"], params["params"]["advantage"]
    x = np.maximum(0.0, observation @ hidden["kernel"] + hidden["bias"])
    np.testing.assert_allclose(q, x @ head["kernel"] + head["bias"], rtol=1e-4, atol=1e-4)
    assert after == ()


@pytest.mark.parametrize("dueling", [False, True])
def test_recurrent_values_unroll_as_steps_and_forget_at_a_first(dueling):
    network, params, observation, first, state, inputs = q_example(lstm_size=3, dueling=dueling)
    whole, last = network.apply(params, observation, first, state, inputs)
    for t in range(5):
        row = (x[t : t + 1] for x in (observation, first))
        q, state = network.apply(params, *row, state, inputs[t : t + 1])
        np.testing.assert_allclose(q[0], whole[t], rtol=1e-4, atol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), state, last)
    moved, _ = network.apply(params, observation.at[:2].add(1.0), first, network.initial_state(3), inputs)
    assert (moved[2:, 0] != whole[2:, 0]).any()
    np.testing.assert_array_equal(moved[2:, 1], whole[2:, 1])  # environment 1 begins an episode at row 2
    fed, _ = network.apply(params, observation, first, network.initial_state(3), inputs + 1.0)
    assert (fed[0] != whole[0]).any()


def test_bfloat16_is_close():
    observation = jax.random.normal(jax.random.key(0), (4, 2, 9))
    first = jnp.zeros((4, 2), bool)
    exact = networks.ActorCritic("mlp", 3, (16,), lstm_size=8)
    state = exact.initial_state(2)
    params = exact.init(jax.random.key(1), observation, first, state)
    value = exact.apply(params, observation, first, state)[1]
    rough = exact.clone(dtype=jnp.bfloat16).apply(params, observation, first, state)[1]
    assert rough.dtype == jnp.float32
    np.testing.assert_allclose(rough, value, atol=0.05)


# Frames of any size and with channels ---------------------------------------------------------------------------------


@pytest.mark.parametrize("torso", ["shallow", "nature", "residual"])
def test_the_smallest_frame_that_is_let_in_leaves_something_and_one_less_does_not(torso):
    least = torsos.LEAST_SIDES[torso]
    torsos.check_frames(torso, 1, (least, least + 9))
    network = torsos.make_torso(torso, (), "relu", jnp.float32)
    frames = jax.random.randint(jax.random.key(0), (2, least, least, 1), 0, 256).astype(jnp.uint8)
    params = network.init(jax.random.key(1), frames)
    assert all(x.size for x in jax.tree.leaves(params))
    one, other = network.apply(params, frames)
    assert np.any(np.asarray(one) != np.asarray(other)), "it sees"
    with pytest.raises(ValueError, match=rf"torso={torso} needs frames of at least .*, not {least - 1}x99; use torso="):
        torsos.check_frames(torso, 4, (least - 1, 99, 3))


def test_what_is_no_frame_has_no_convolutions_and_no_stack():
    for shape in ((), (4,), (2, 3, 4, 5)):
        torsos.check_frames("mlp", 1, shape)
        with pytest.raises(ValueError, match=r"use torso=mlp$"):
            torsos.check_frames("residual", 1, shape)
        with pytest.raises(ValueError, match=r"use frame_stack=1$"):
            torsos.check_frames("mlp", 2, shape)


@pytest.mark.parametrize("torso", ["mlp", "residual"])
def test_frames_with_channels_are_stacked_as_each_channel_is_alone(torso):
    rng, T, B, S, C = np.random.default_rng(0), 5, 3, 4, 3
    frames = rng.integers(0, 256, (T, B, 6, 7, C)).astype(np.uint8)
    first = rng.random((T, B)) < 0.3
    previous = rng.integers(0, 256, (B, S - 1, 6, 7, C)).astype(np.uint8)
    seen, left = stacking.see(torso, frames, first, previous)
    assert seen.shape == (T, B, 6, 7, C * S) and left.shape == previous.shape
    for channel in range(C):
        alone, alone_left = stacking.see(torso, frames[..., channel], first, previous[..., channel])
        np.testing.assert_array_equal(seen.reshape(T, B, 6, 7, C, S)[..., channel, :], alone)
        np.testing.assert_array_equal(left[..., channel], alone_left)
    unstacked, none = stacking.see("residual", frames, first, None)
    assert none is None
    np.testing.assert_array_equal(unstacked, frames)
    grey, _ = stacking.see("residual", frames[..., 0], first, None)
    np.testing.assert_array_equal(grey, frames[..., :1])


@pytest.mark.parametrize("stack", [1, 3])
def test_dqn_sees_in_a_stored_transition_what_it_saw_as_it_acted(stack):
    spec = EnvironmentSpec((8, 9, 3), np.dtype(np.uint8), DiscreteActions(2))
    f = dqn.functions("dqn", dqn.Config(torso="residual", frame_stack=stack), spec)
    rng = np.random.default_rng(1)
    frames = rng.integers(0, 256, (stack, 1, 8, 9, 3)).astype(np.uint8)
    params, memory = f.init(jax.random.key(0)), f.memory(1)
    for row, frame in enumerate(frames):
        timestep = TimeStep(frame, np.zeros(1), np.ones(1), np.full(1, row == 0), np.zeros(1, bool))
        values, memory = f.values(params, None, timestep, memory)
    stored = np.moveaxis(frames, 0, 1) if stack > 1 else frames[0]
    action, zero = np.zeros(1, np.int32), np.zeros(1, np.float32)
    chosen = f.losses(params, params, None, Transition(stored, action, zero, zero, stored)).values
    np.testing.assert_allclose(chosen[0], np.asarray(values)[0, 0], rtol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_an_ensembles_outputs_and_slopes_are_those_of_each_network_alone(size):
    network = networks.ActionCritic(2, (5, 4))
    ensemble = networks.Ensemble(network, size)
    s, a = np.ones((6, 3), np.float32), np.linspace(-1, 1, 12, dtype=np.float32).reshape(6, 2)
    key = jax.random.key(0)
    params = ensemble.init(key, s, a)

    def total(params, s, a):
        return jnp.sum(jnp.square(ensemble.apply(params, s, a)))

    outputs, slopes = ensemble.apply(params, s, a), jax.grad(total)(params, s, a)
    assert outputs.shape == (size, 6, 2)
    for i, own in enumerate(jax.random.split(key, size)):
        alone = network.init(own, s, a)
        np.testing.assert_allclose(outputs[i], network.apply(alone, s, a), rtol=1e-5, atol=1e-6)
        slope = jax.grad(lambda params: jnp.sum(jnp.square(network.apply(params, s, a))))(alone)
        jax.tree.map(lambda x, y, i=i: np.testing.assert_allclose(x[i], y, rtol=1e-4, atol=1e-6), slopes, slope)


@pytest.mark.parametrize(("size", "number"), [(2, 1), (3, 2), (5, 2), (4, 3), (3, 3)])
def test_an_ensemble_draws_each_of_its_networks_equally_often_and_none_twice(size, number):
    ensemble = networks.Ensemble(networks.MLP(1), size)
    params = {"w": jnp.arange(size), "b": 10.0 * jnp.arange(size)}
    keys = jax.random.split(jax.random.key(0), 2_000)
    drawn = jax.vmap(lambda key: ensemble.draw(key, params, number))(keys)
    np.testing.assert_array_equal(drawn["b"], 10.0 * np.asarray(drawn["w"]))
    assert all(len(set(row)) == number for row in np.asarray(drawn["w"]).tolist())
    share, expected = np.bincount(np.ravel(drawn["w"]), minlength=size) / 2_000, number / size
    np.testing.assert_allclose(share, expected, atol=5 * (expected * (1 - expected) / 2_000) ** 0.5)
