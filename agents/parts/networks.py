"""Networks: a recurrent core and heads on a torso, deterministic policies and their critics.

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

from agents.agent import DiscreteActions, FactoredActions
from agents.parts.q_heads import q_heads
from agents.parts.torsos import MLPTorso, make_torso


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


def last_inputs(actions: Any, first: Any, action: Any, reward: Any) -> chex.Array:
    """What an LSTM takes of the last action and reward, float32 [T, B, F]; zeros where an episode opens.

    Args:
      actions: the environment's; choices become one-hot, and bounds are at -1 and 1.
      first: bool [T, B], the row opens an episode.
      action: the last one before each row, [T, B, *shape].
      reward: that came with each row, [T, B].
    """
    if isinstance(actions, DiscreteActions):
        features = [jax.nn.one_hot(action, actions.num_actions)]
    elif isinstance(actions, FactoredActions):
        features = [jax.nn.one_hot(action[..., i], n) for i, n in enumerate(actions.sizes)]
    else:
        scaled = 2.0 * (action - actions.low) / (actions.high - actions.low) - 1.0
        features = [scaled.reshape(*first.shape, -1)]
    return jnp.where(first[..., None], 0.0, jnp.concatenate([*features, reward[..., None]], axis=-1))


def append(outputs: chex.Array, free: chex.Array) -> chex.Array:
    """[..., P] and [F] -> [..., P + F], of which the last are the same everywhere."""
    return jnp.concatenate([outputs, jnp.broadcast_to(free, (*outputs.shape[:-1], free.size))], axis=-1)


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
    num_values: int = 1

    def initial_state(self, batch: int) -> LSTMState | tuple[()]:
        """The LSTM's state before an episode; empty without an LSTM."""
        return LSTM(self.lstm_size, parent=None).initial_state(batch) if self.lstm_size else ()

    @nn.compact
    def __call__(
        self, observation: chex.Array, first: chex.Array, lstm_state: Any, inputs: Any = ()
    ) -> tuple[chex.Array, chex.Array, Any]:
        """[T, B, ...], bool [T, B], state, more features [T, B, F] for the LSTM or () -> float32 outputs [T, B, P] and
        value [T, B], or of several values [T, B, num_values], the new state."""
        # Time is folded into the batch: XLA's CPU backend differentiates a convolution inside a scan 40 times slower.
        rows, batch = observation.shape[:2]

        def seen() -> chex.Array:
            torso: Any = make_torso(self.torso, self.hidden_sizes, self.activation, self.dtype)
            return torso(observation.reshape(rows * batch, *observation.shape[2:])).reshape(rows, batch, -1)

        x = seen()
        if not isinstance(inputs, tuple):
            x = jnp.concatenate([x, inputs.astype(x.dtype)], axis=-1)
        if self.lstm_size:
            lstm_state, x = LSTM(self.lstm_size, self.dtype)(lstm_state, x, first)
        x = x.astype(jnp.float32)
        size = self.num_outputs - self.num_free
        outputs = nn.Dense(size, kernel_init=nn.initializers.orthogonal(0.01), name="policy")(x)
        if self.num_free:
            outputs = append(outputs, self.param("free", nn.initializers.zeros, (self.num_free,)))
        x = seen().astype(jnp.float32) if self.separate_value else x
        value = nn.Dense(self.num_values, kernel_init=nn.initializers.orthogonal(1.0), name="value")(x)
        return outputs, value[..., 0] if self.num_values == 1 else value, lstm_state


class QNetwork(nn.Module):
    """Action values on a torso (as `make_torso` names it) and an optional LSTM; plain or dueling.

    Dueling: Q = V + A - mean of A over actions (Wang et al. 2016, https://arxiv.org/abs/1511.06581, eq. 9). The two
    streams part at the torso's or LSTM's output, each with a dense layer of `head_size` before its last (0: without).
    That layer takes the place of a convolutional torso's own, unless an LSTM is between: so the streams part at the
    convolutions, as in figure 1 there, and a plain network with `head_size` is one of the same size.
    """

    torso: str
    num_actions: int
    hidden_sizes: Sequence[int] = (64, 64)
    activation: str = "relu"
    lstm_size: int = 0
    dueling: bool = False
    head_size: int = 0
    num_atoms: int = 0  # outputs for each action; 0: one, its value
    noisy: float = 0.0  # sigma_0 of the heads' layers; 0: they are plain
    normalized: bool = False  # layer normalisation in every layer of the torso
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
          float32 [T, B, A], or with atoms [T, B, A, num_atoms], the new state.
        """
        rows, batch = observation.shape[:2]
        convolutions_only = bool(self.head_size) and not self.lstm_size
        torso: Any = make_torso(
            self.torso,
            self.hidden_sizes,
            self.activation,
            self.dtype,
            convolutions_only=convolutions_only,
            normalized=self.normalized,
        )
        x = torso(observation.reshape(rows * batch, *observation.shape[2:])).reshape(rows, batch, -1)
        if not isinstance(inputs, tuple):
            x = jnp.concatenate([x, inputs.astype(x.dtype)], axis=-1)
        if self.lstm_size:
            state, x = LSTM(self.lstm_size, self.dtype)(state, x, first)

        outputs = q_heads(
            x,
            self.num_actions,
            num_atoms=self.num_atoms,
            dueling=self.dueling,
            head_size=self.head_size,
            noisy=self.noisy,
            dtype=self.dtype,
        )
        return outputs, state


def init_small(key: jax.Array, shape: Any, dtype: Any = jnp.float32) -> chex.Array:
    """Uniform in [-0.003, 0.003]: first actions and values near 0 (Lillicrap et al. 2016, arxiv.org/abs/1509.02971)."""
    return jax.random.uniform(key, shape, dtype, -3e-3, 3e-3)


def check_action_layer(config: Any) -> None:
    """Raises ValueError unless the critic of `config.hidden_sizes` has a hidden layer `config.action_layer`, which are
    counted from 1."""
    layers = max(1, len(config.hidden_sizes))
    if not 1 <= config.action_layer <= layers:
        raise ValueError(
            f"config.action_layer={config.action_layer} must be one of the critic's hidden layers, 1 to {layers} with "
            f"config.hidden_sizes={config.hidden_sizes}"
        )


class DeterministicPolicy(nn.Module):
    """Dense layers, ReLU, and tanh: [B, ...] -> float32 [B, *action_shape] in [-1, 1]."""

    action_shape: Sequence[int]
    hidden_sizes: Sequence[int] = (256, 256)
    layer_norm: bool = False  # of the first layer, as MLPTorso has it

    @nn.compact
    def __call__(self, observation: chex.Array) -> chex.Array:
        x = MLPTorso(self.hidden_sizes, "relu", layer_norm=self.layer_norm)(observation)
        x = nn.Dense(math.prod(self.action_shape), kernel_init=init_small, bias_init=init_small, name="action")(x)
        return nn.tanh(x).reshape(x.shape[0], *self.action_shape)


class ActionCritic(nn.Module):
    """Dense layers, ReLU: observation [B, ...], action [B, *shape] in [-1, 1] -> float32 [B, num_outputs]."""

    num_outputs: int = 1
    hidden_sizes: Sequence[int] = (256, 256)
    action_layer: int = 1  # the hidden layer that the action enters, beside what it has from the one before
    layer_norm: bool = False  # of the first layer, as MLPTorso has it

    @nn.compact
    def __call__(self, observation: chex.Array, action: chex.Array) -> chex.Array:
        x, action = (each.reshape(each.shape[0], -1) for each in (observation, action))
        seen, rest = self.hidden_sizes[: self.action_layer - 1], self.hidden_sizes[self.action_layer - 1 :]
        if seen:
            x = MLPTorso(seen, "relu", layer_norm=self.layer_norm)(x)
        x = jnp.concatenate([x, action], axis=-1)
        x = MLPTorso(rest, "relu", layer_norm=self.layer_norm and not seen)(x)
        return nn.Dense(self.num_outputs, kernel_init=init_small, bias_init=init_small, name="value")(x)


class Ensemble(NamedTuple):
    """`size` networks that are alike but for their parameters, as one: parameters and outputs have an axis for them in
    front. Their matrix products are computed as one batch."""

    network: nn.Module
    size: int

    def init(self, key: jax.Array, *inputs: Any) -> Any:
        """Each network starts from its own key."""
        return jax.vmap(lambda key: self.network.init(key, *inputs))(jax.random.split(key, self.size))

    def apply(self, params: Any, *inputs: Any) -> chex.Array:
        """The outputs of all for the same inputs: [size, B, ...]."""
        outputs: Any = jax.vmap(lambda params: self.network.apply(params, *inputs))(params)
        return outputs


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
    num_free: int = 0  # the last of the outputs are parameters of their own, which start at 0
    layer_norm: bool = False  # of the first layer, as MLPTorso has it

    @nn.compact
    def __call__(self, x: chex.Array) -> chex.Array:
        shape, size = x.shape[:-1], self.num_outputs - self.num_free
        if self.hidden_sizes:
            x = MLPTorso(self.hidden_sizes, self.activation, layer_norm=self.layer_norm)(x.reshape(-1, x.shape[-1]))
            x = nn.Dense(size, kernel_init=nn.initializers.orthogonal(0.01))(x).reshape(*shape, size)
        else:
            x = nn.Dense(size, use_bias=False, kernel_init=nn.initializers.zeros)(x)
        return append(x, self.param("free", nn.initializers.zeros, (self.num_free,))) if self.num_free else x
