"""Networks: torsos, recurrent core and heads, deterministic policies and their critics, and the stacking of frames.

Sizes in the shapes below: T rows of time, B environments, N = T * B, S stacked frames, A actions. Parameters are
always float32; `dtype` is what the arithmetic is done in.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

ACTIVATIONS = {"tanh": nn.tanh, "relu": nn.relu}
ORTHOGONAL = nn.initializers.orthogonal(2**0.5)


SHALLOW = ((16, 8, 4), (32, 4, 2))  # (features, size, stride) of each convolution
NATURE = ((32, 8, 4), (64, 4, 2), (64, 3, 1))


def least_side(convolutions: Sequence[tuple[int, int, int]]) -> int:
    """Pixels of the smallest frame of which anything is left, for nothing is padded."""
    side = 1
    for _, size, stride in reversed(convolutions):
        side = (side - 1) * stride + size
    return side


LEAST_SIDES = {"shallow": least_side(SHALLOW), "nature": least_side(NATURE), "residual": 1}


def check_frames(torso: str, frame_stack: int, shape: tuple[int, ...]) -> None:
    """Raises ValueError if a convolutional torso, or a stack of frames, is asked for of observations that are none, or
    if they are too small for it."""
    frames = len(shape) in (2, 3)
    wanted = "frames [height, width] or [height, width, channels]"
    if torso != "mlp" and not frames:
        raise ValueError(f"torso={torso} needs {wanted}, not observations {shape}; use torso=mlp")
    if frame_stack > 1 and not frames:
        raise ValueError(f"frame_stack={frame_stack} needs {wanted}, not observations {shape}; use frame_stack=1")
    if torso != "mlp" and min(shape[:2]) < (least := LEAST_SIDES[torso]):
        fit = [name for name, side in LEAST_SIDES.items() if side <= min(shape[:2])]
        raise ValueError(
            f"torso={torso} leaves nothing of frames of {shape[0]}x{shape[1]}, for it needs {least}x{least} at least; "
            f"use torso={' or '.join([*fit, 'mlp'])}"
        )


def no_frames(num_envs: int, frame_stack: int, shape: tuple[int, ...], dtype: Any) -> chex.Array | None:
    """What `see` takes before the first row, [num_envs, frame_stack - 1, *shape]; None where nothing is stacked."""
    return jnp.zeros((num_envs, frame_stack - 1, *shape), dtype) if frame_stack > 1 else None


def see(torso: str, observation: Any, first: Any, previous: Any) -> tuple[chex.Array, chex.Array | None]:
    """Observations [T, B, ...] as the torso takes them, frames with channels, and the `previous` of the next call.

    Args:
        first: bool [T, B], the row opens an episode.
        previous: the frames before row 0, as `no_frames` or this function gave them.
    """
    if previous is not None:
        return stack_frames(previous, observation, first)
    return (observation if torso == "mlp" else channels_last(observation, 2)), None


def channels_last(frames: chex.Array, batch_axes: int) -> chex.Array:
    """Frames [..., H, W] with one channel; those that have channels, [..., H, W, C], as they are."""
    return frames[..., None] if frames.ndim == batch_axes + 2 else frames


def stack_channels(frames: chex.Array, axis: int) -> chex.Array:
    """Frames [..., S, H, W] or [..., S, H, W, C], S being `axis`, as one with S, or S * C, channels."""
    stacked = jnp.moveaxis(frames, axis, -1)
    return stacked.reshape(*stacked.shape[: axis + 2], -1)


def stack_frames(previous: chex.Array, frames: chex.Array, first: chex.Array) -> tuple[chex.Array, chex.Array]:
    """Stacks the S newest frames of each row's own episode, as EnvPool does (Mnih et al. 2015, 10.1038/nature14236).

    At an episode's first row the whole stack is that row's frame; no frame of an earlier episode is ever seen.

    Args:
        previous: uint8 [B, S-1, H, W], the frames before row 0, oldest first, as this function returned them. Its
            content is free where `first[0]` is true.
        frames: uint8 [T, B, H, W], or with channels [T, B, H, W, C], as `previous` then.
        first: bool [T, B], the row opens an episode.

    Returns:
        uint8 [T, B, H, W, S], oldest first, or [T, B, H, W, C * S], and the `previous` of the next call.
    """
    rows, size = frames.shape[0], previous.shape[1] + 1
    # The frame `lag` rows ago, or the episode's first if that is later. `previous` was filled in this way when its
    # episode opened, so that openings before row 0 need not be known.
    row = jnp.arange(rows)[:, None]
    opening = jax.lax.cummax(jnp.where(first, row, -size))
    index = jnp.maximum(row[..., None] - jnp.arange(size)[::-1], opening[..., None]) + size - 1
    history = jnp.concatenate([jnp.moveaxis(previous, 1, 0), frames])
    stacked = history[index, jnp.arange(frames.shape[1])[:, None]]
    return stack_channels(stacked, 2), stacked[-1, :, 1:]


class Conv(nn.Module):
    """A convolution without padding: [N, H, W, C] -> [N, (H - size) // stride + 1, (W - size) // stride + 1, features].

    `nn.Conv(..., padding='VALID')` to the letter, its parameters too, but computed as space-to-depth and a convolution
    of stride 1, for XLA's CPU backend takes 4 to 6 times as long over the input gradient of a strided one. With it a
    training step of `NatureTorso` takes 0.8 to 0.9 of the time on two cores; inference takes the same.
    """

    features: int
    size: int
    stride: int = 1  # a divisor of size
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: chex.Array) -> chex.Array:
        n, h, w, c = x.shape
        s, k = self.stride, self.size // self.stride
        kernel = self.param("kernel", ORTHOGONAL, (self.size, self.size, c, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x, kernel, bias = (a.astype(self.dtype) for a in (x, kernel, bias))
        if s > 1:
            chex.assert_is_divisible(self.size, s)
            h, w = h // s, w // s  # a remainder is less than a stride: no window reaches into it
            x = x[:, : h * s, : w * s].reshape(n, h, s, w, s, c).swapaxes(2, 3).reshape(n, h, w, s * s * c)
            kernel = kernel.reshape(k, s, k, s, c, -1).swapaxes(1, 2).reshape(k, k, s * s * c, -1)
        dimensions = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=dimensions) + bias


def centre_pixels(x: chex.Array, dtype: Any) -> chex.Array:
    """Bytes as numbers in [-1/2, 1/2]; numbers that are none, as a board's, stay as they are.

    Not in [0, 1]: a background brighter than 0 would move every unit alike, far more than what moves on it does, and on
    Pong it kills a third of the units within 500 updates.
    """
    return x.astype(dtype) / 255 - 0.5 if x.dtype == jnp.uint8 else x.astype(dtype)


class MLPTorso(nn.Module):
    """Dense layers: [N, ...], flattened -> [N, hidden_sizes[-1]].

    Pixels of frames, [N, H, W, ...] in bytes, are brought to [0, 1], else tanh would see nothing but its ends. A
    vector's bytes are zeros and ones, and stay so.
    """

    hidden_sizes: Sequence[int] = (64, 64)
    activation: str = "tanh"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: chex.Array) -> chex.Array:
        scale = 255 if x.dtype == jnp.uint8 and x.ndim > 2 else 1
        x = x.reshape(x.shape[0], -1).astype(self.dtype) / scale
        for size in self.hidden_sizes:
            x = ACTIVATIONS[self.activation](nn.Dense(size, self.dtype, kernel_init=ORTHOGONAL)(x))
        return x


class ConvTorso(nn.Module):
    """Strided convolutions and a dense layer: uint8 [N, H, W, S] -> [N, hidden_size]."""

    convolutions: Sequence[tuple[int, int, int]]  # (features, size, stride) of each
    hidden_size: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: chex.Array) -> chex.Array:
        x = centre_pixels(x, self.dtype)
        for features, size, stride in self.convolutions:
            x = nn.relu(Conv(features, size, stride, dtype=self.dtype)(x))
        x = x.reshape(x.shape[0], -1)
        return nn.relu(nn.Dense(self.hidden_size, dtype=self.dtype, kernel_init=ORTHOGONAL)(x))


def ShallowTorso(dtype: Any = jnp.float32) -> ConvTorso:
    """A3C's network and IMPALA's shallow one (Mnih et al. 2016, section 5.1; Espeholt et al. 2018, fig. 3, left)."""
    return ConvTorso(SHALLOW, 256, dtype)


def NatureTorso(dtype: Any = jnp.float32) -> ConvTorso:
    """DQN's network (Mnih et al. 2015, 10.1038/nature14236), three times the shallow one's arithmetic."""
    return ConvTorso(NATURE, 512, dtype)


class ResidualTorso(nn.Module):
    """IMPALA's deep residual network (Espeholt et al. 2018, fig. 3, arxiv.org/abs/1802.01561), less its LSTM.

    uint8 [N, H, W, S] -> [N, 256]. Weights start as the paper's code has them, at variance 1 / fan-in.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: chex.Array) -> chex.Array:
        def conv(features, x):  # padded; plain, as nothing tried was faster by a tenth
            return nn.Conv(features, (3, 3), dtype=self.dtype)(x)

        x = centre_pixels(x, self.dtype)
        for features in (16, 32, 32):
            x = nn.max_pool(conv(features, x), (3, 3), (2, 2), "SAME")
            for _ in range(2):
                x = x + conv(features, nn.relu(conv(features, nn.relu(x))))
        x = nn.relu(x).reshape(x.shape[0], -1)
        return nn.relu(nn.Dense(256, dtype=self.dtype)(x))


def make_torso(name: str, hidden_sizes: Sequence[int], activation: str, dtype: Any) -> nn.Module:
    """The torso 'mlp' (whose sizes and activation the others do not ask for), 'shallow', 'nature' or 'residual'."""
    torsos: dict[str, Any] = {"shallow": ShallowTorso, "nature": NatureTorso, "residual": ResidualTorso}
    return MLPTorso(hidden_sizes, activation, dtype) if name == "mlp" else torsos[name](dtype)


class LSTMState(NamedTuple):
    """Both float32 [B, size]."""

    hidden: chex.Array
    cell: chex.Array


class LSTM(nn.Module):
    """Long short-term memory, reset where an episode opens (Hochreiter & Schmidhuber 1997, 10.1162/neco.1997.9.8.1735).

    The forget gate's bias starts at 1 (Jozefowicz et al. 2015, proceedings.mlr.press/v37/jozefowicz15.html).
    """

    size: int
    dtype: Any = jnp.float32

    def initial_state(self, batch: int) -> LSTMState:
        """Zeros, [batch, size]."""
        return LSTMState(jnp.zeros((batch, self.size)), jnp.zeros((batch, self.size)))

    @nn.compact
    def __call__(self, state: LSTMState, x: chex.Array, first: chex.Array) -> tuple[LSTMState, chex.Array]:
        """Unrolls x [T, B, F], zeroing the state before each row that is `first` [T, B]: -> state, [T, B, size]."""

        def init_bias(key, shape, dtype):
            return jnp.zeros(shape, dtype).at[self.size : 2 * self.size].set(1.0)

        def init_recurrent(key, shape):
            orthogonal = nn.initializers.orthogonal()
            return jnp.concatenate([orthogonal(k, (self.size, self.size)) for k in jax.random.split(key, 4)], axis=1)

        kernel = self.param("recurrent", init_recurrent, (self.size, 4 * self.size)).astype(self.dtype)
        # The inputs' share of the gates needs no recurrence: one large product here, not T small ones in the scan.
        gates = nn.Dense(4 * self.size, dtype=self.dtype, bias_init=init_bias, name="input")(x)

        def step(state, row):
            gates, first = row
            state = jax.tree.map(lambda s: jnp.where(first[:, None], 0.0, s), state)
            gates = (gates + state.hidden.astype(self.dtype) @ kernel).astype(jnp.float32)
            i, f, g, o = jnp.split(gates, 4, axis=-1)
            cell = nn.sigmoid(f) * state.cell + nn.sigmoid(i) * nn.tanh(g)
            state = LSTMState(nn.sigmoid(o) * nn.tanh(cell), cell)
            return state, state.hidden

        return jax.lax.scan(step, state, (gates, first))


class ActorCritic(nn.Module):
    """Policy and value heads on a shared torso ('mlp', 'shallow', 'nature' or 'residual') and an optional LSTM."""

    torso: str
    num_outputs: int  # P, of the policy
    hidden_sizes: Sequence[int] = (64, 64)
    lstm_size: int = 0
    activation: str = "tanh"
    dtype: Any = jnp.float32
    num_free: int = 0  # the last of the policy's outputs are parameters of their own, which start at 0
    separate_value: bool = False  # the value has a torso of its own, without an LSTM

    def initial_state(self, batch: int) -> LSTMState | tuple[()]:
        """The LSTM's state before an episode; empty without an LSTM."""
        return LSTM(self.lstm_size, parent=None).initial_state(batch) if self.lstm_size else ()

    @nn.compact
    def __call__(
        self, observation: chex.Array, first: chex.Array, lstm_state: Any
    ) -> tuple[chex.Array, chex.Array, Any]:
        """[T, B, ...], bool [T, B], state -> float32 outputs [T, B, P] and value [T, B], the new state."""
        # Time is folded into the batch: XLA's CPU backend differentiates a convolution inside a scan 40 times slower.
        rows, batch = observation.shape[:2]

        def seen() -> chex.Array:
            torso: Any = make_torso(self.torso, self.hidden_sizes, self.activation, self.dtype)
            return torso(observation.reshape(rows * batch, *observation.shape[2:])).reshape(rows, batch, -1)

        x = seen()
        if self.lstm_size:
            lstm_state, x = LSTM(self.lstm_size, self.dtype)(lstm_state, x, first)
        x = x.astype(jnp.float32)
        size = self.num_outputs - self.num_free
        outputs = nn.Dense(size, kernel_init=nn.initializers.orthogonal(0.01), name="policy")(x)
        if self.num_free:
            free = self.param("free", nn.initializers.zeros, (self.num_free,))
            outputs = jnp.concatenate([outputs, jnp.broadcast_to(free, (rows, batch, self.num_free))], axis=-1)
        x = seen().astype(jnp.float32) if self.separate_value else x
        value = nn.Dense(1, kernel_init=nn.initializers.orthogonal(1.0), name="value")(x)
        return outputs, value[..., 0], lstm_state


class QNetwork(nn.Module):
    """Action values on a torso (as `make_torso` names it) and an optional LSTM; plain or dueling.

    Dueling: Q = V + A - mean of A over actions (Wang et al. 2016, https://arxiv.org/abs/1511.06581, eq. 9). The two
    streams part at the torso's or LSTM's output, each with a dense layer of `head_size` before its last (0: without).
    """

    torso: str
    num_actions: int
    hidden_sizes: Sequence[int] = (64, 64)
    activation: str = "relu"
    lstm_size: int = 0
    dueling: bool = False
    head_size: int = 0
    dtype: Any = jnp.float32

    def initial_state(self, batch: int) -> LSTMState | tuple[()]:
        """The LSTM's state before an episode; empty without an LSTM."""
        return LSTM(self.lstm_size, parent=None).initial_state(batch) if self.lstm_size else ()

    @nn.compact
    def __call__(
        self, observation: chex.Array, first: chex.Array, state: Any, inputs: Any = ()
    ) -> tuple[chex.Array, Any]:
        """Values of all actions.

        Args:
          observation: [T, B, ...].
          first: bool [T, B]; the LSTM forgets what was before such a row. Of no use without one.
          state: the LSTM's before row 0, [B, size] each; () without one.
          inputs: more features [T, B, F] beside the torso's, for the LSTM (the last action and reward); () for none.

        Returns:
          float32 [T, B, A], the new state.
        """
        rows, batch = observation.shape[:2]
        torso: Any = make_torso(self.torso, self.hidden_sizes, self.activation, self.dtype)
        x = torso(observation.reshape(rows * batch, *observation.shape[2:])).reshape(rows, batch, -1)
        if not isinstance(inputs, tuple):
            x = jnp.concatenate([x, inputs.astype(x.dtype)], axis=-1)
        if self.lstm_size:
            state, x = LSTM(self.lstm_size, self.dtype)(state, x, first)

        def stream(size: int, name: str) -> chex.Array:
            y = x.astype(self.dtype)
            if self.head_size:
                y = nn.relu(nn.Dense(self.head_size, self.dtype, kernel_init=ORTHOGONAL, name=f"{name}_hidden")(y))
            # Values start near 0.
            return nn.Dense(size, kernel_init=nn.initializers.orthogonal(0.01), name=name)(y.astype(jnp.float32))

        advantages = stream(self.num_actions, "advantage")
        if not self.dueling:
            return advantages, state
        value = stream(1, "value")
        return value + advantages - advantages.mean(axis=-1, keepdims=True), state


def init_small(key: jax.Array, shape: Any, dtype: Any = jnp.float32) -> chex.Array:
    """Uniform in [-0.003, 0.003]: first actions and values near 0 (Lillicrap et al. 2016, arxiv.org/abs/1509.02971)."""
    return jax.random.uniform(key, shape, dtype, -3e-3, 3e-3)


class DeterministicPolicy(nn.Module):
    """Dense layers, ReLU, and tanh: [B, ...] -> float32 [B, *action_shape] in [-1, 1]."""

    action_shape: Sequence[int]
    hidden_sizes: Sequence[int] = (256, 256)

    @nn.compact
    def __call__(self, observation: chex.Array) -> chex.Array:
        x = MLPTorso(self.hidden_sizes, "relu")(observation)
        x = nn.Dense(math.prod(self.action_shape), kernel_init=init_small, bias_init=init_small, name="action")(x)
        return nn.tanh(x).reshape(x.shape[0], *self.action_shape)


class ActionCritic(nn.Module):
    """Dense layers, ReLU: observation [B, ...], action [B, *shape] in [-1, 1] -> float32 [B, num_outputs]."""

    num_outputs: int = 1
    hidden_sizes: Sequence[int] = (256, 256)

    @nn.compact
    def __call__(self, observation: chex.Array, action: chex.Array) -> chex.Array:
        x = jnp.concatenate([a.reshape(a.shape[0], -1) for a in (observation, action)], axis=-1)
        x = MLPTorso(self.hidden_sizes, "relu")(x)
        return nn.Dense(self.num_outputs, kernel_init=init_small, bias_init=init_small, name="value")(x)


class PolicyAndCritic(NamedTuple):
    """One of each: parameters, gradients, or what an optimiser keeps for them."""

    policy: Any
    critic: Any


class MLP(nn.Module):
    """Dense layers and a linear one: [..., d] -> float32 [..., num_outputs], near 0 at first.

    Without hidden layers it is linear, 0 at first and without a bias, which all states would share: of one-hot inputs a
    table.
    """

    num_outputs: int
    hidden_sizes: Sequence[int] = ()
    activation: str = "tanh"

    @nn.compact
    def __call__(self, x: chex.Array) -> chex.Array:
        if not self.hidden_sizes:
            return nn.Dense(self.num_outputs, use_bias=False, kernel_init=nn.initializers.zeros)(x)
        shape = x.shape[:-1]
        x = MLPTorso(self.hidden_sizes, self.activation)(x.reshape(-1, x.shape[-1]))
        x = nn.Dense(self.num_outputs, kernel_init=nn.initializers.orthogonal(0.01))(x)
        return x.reshape(*shape, self.num_outputs)
