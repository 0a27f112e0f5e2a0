"""Networks: torsos with an optional LSTM and heads on top, and deterministic policies with their critics.

Sizes in the shapes below: T rows of time, B environments, N = T * B, S stacked frames, A actions. Parameters are
always float32; `dtype` is the type of the arithmetic.
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
    """An LSTM's state; both fields are float32 [B, size]."""

    hidden: chex.Array
    cell: chex.Array


class LSTM(nn.Module):
    """An LSTM whose state is reset where an episode begins (Hochreiter & Schmidhuber 1997, 10.1162/neco.1997.9.8.1735).

    The forget gate's bias starts at 1 (Jozefowicz et al. 2015, proceedings.mlr.press/v37/jozefowicz15.html).
    """

    size: int
    dtype: Any = jnp.float32

    def initial_state(self, batch: int) -> LSTMState:
        """Returns a state of zeros, [batch, size]."""
        return LSTMState(jnp.zeros((batch, self.size)), jnp.zeros((batch, self.size)))

    @nn.compact
    def __call__(self, state: LSTMState, x: chex.Array, first: chex.Array) -> tuple[LSTMState, chex.Array]:
        """Unrolls x [T, B, F] and returns the last state and the outputs [T, B, size].

        The state is set to zero before each row where `first` [T, B] is true.
        """

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
    """Returns the last action and reward as features for an LSTM, float32 [T, B, F]; zeros where an episode begins.

    Args:
      actions: the environment's action spec. Discrete choices become one-hot; continuous actions are scaled so that
        their bounds are -1 and 1.
      first: bool [T, B], whether the row is an episode's first.
      action: the action before each row, [T, B, *shape].
      reward: the reward that came with each row's observation, [T, B].
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
    """Appends the same `free` numbers [F] to all outputs [..., P]: -> [..., P + F]."""
    return jnp.concatenate([outputs, jnp.broadcast_to(free, (*outputs.shape[:-1], free.size))], axis=-1)


class ActorCritic(nn.Module):
    """Policy and value heads on a shared torso ('mlp', 'shallow', 'nature' or 'residual') and an optional LSTM."""

    torso: str
    num_outputs: int  # P, the policy's outputs
    hidden_sizes: Sequence[int] = (64, 64)
    lstm_size: int = 0  # 0: no LSTM
    activation: str = "tanh"
    dtype: Any = jnp.float32
    num_free: int = 0  # the last `num_free` of the P outputs are free parameters, which start at 0
    separate_value: bool = False  # the value has a torso of its own, without an LSTM
    num_values: int = 1

    def initial_state(self, batch: int) -> LSTMState | tuple[()]:
        """The LSTM's state before an episode; empty without an LSTM."""
        return LSTM(self.lstm_size, parent=None).initial_state(batch) if self.lstm_size else ()

    @nn.compact
    def __call__(
        self, observation: chex.Array, first: chex.Array, lstm_state: Any, inputs: Any = ()
    ) -> tuple[chex.Array, chex.Array, Any]:
        """Returns the policy's outputs, float32 [T, B, P], the value, and the new LSTM state.

        The value is float32 [T, B], or with several values [T, B, num_values].

        Args:
          observation: [T, B, ...].
          first: bool [T, B], whether the row is an episode's first.
          lstm_state: the LSTM's state before row 0; () without an LSTM.
          inputs: more features [T, B, F] beside the torso's (the last action and reward); () for none.
        """
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
    streams part at the output of the torso or LSTM. Each has a hidden dense layer of `head_size` before its last layer;
    0 means no such layer. Without an LSTM, that layer replaces a convolutional torso's own dense layer. So the streams
    part right after the convolutions, as in figure 1 of the paper, and a plain network has as many layers with
    `head_size` as without.
    """

    torso: str
    num_actions: int
    hidden_sizes: Sequence[int] = (64, 64)
    activation: str = "relu"
    lstm_size: int = 0
    dueling: bool = False
    head_size: int = 0
    num_atoms: int = 0  # outputs for each action; 0: one output, its value, without an axis of its own
    noisy: float = 0.0  # sigma_0 of the heads' noisy layers; 0: plain layers
    normalized: bool = False  # layer normalisation in every layer of the torso
    dtype: Any = jnp.float32

    def initial_state(self, batch: int) -> LSTMState | tuple[()]:
        """The LSTM's state before an episode; empty without an LSTM."""
        return LSTM(self.lstm_size, parent=None).initial_state(batch) if self.lstm_size else ()

    @nn.compact
    def __call__(
        self, observation: chex.Array, first: chex.Array, state: Any, inputs: Any = ()
    ) -> tuple[chex.Array, Any]:
        """Returns the values of all actions, and the new LSTM state.

        Args:
          observation: [T, B, ...].
          first: bool [T, B]; the LSTM's state is reset before such a row. Not used without an LSTM.
          state: the LSTM's state before row 0, [B, size] each; () without an LSTM.
          inputs: more features [T, B, F] beside the torso's, for the LSTM (the last action and reward); () for none.

        Returns:
          The values, float32 [T, B, A], or with atoms [T, B, A, num_atoms]; and the new state.
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
    """Draws parameters uniformly from [-0.003, 0.003]: actions and values start near 0 (Lillicrap et al. 2016,
    arxiv.org/abs/1509.02971)."""
    return jax.random.uniform(key, shape, dtype, -3e-3, 3e-3)


def check_action_layer(config: Any) -> None:
    """Raises ValueError unless `config.action_layer` is one of the critic's hidden layers, counted from 1."""
    layers = max(1, len(config.hidden_sizes))
    if not 1 <= config.action_layer <= layers:
        raise ValueError(
            f"config.action_layer={config.action_layer} must be one of the critic's hidden layers, 1 to {layers} with "
            f"config.hidden_sizes={config.hidden_sizes}"
        )


class DeterministicPolicy(nn.Module):
    """A deterministic policy of dense layers with ReLU and a last tanh: [B, ...] -> float32 [B, *action_shape] in
    [-1, 1]."""

    action_shape: Sequence[int]
    hidden_sizes: Sequence[int] = (256, 256)
    layer_norm: bool = False  # layer normalisation in the first layer (MLPTorso)

    @nn.compact
    def __call__(self, observation: chex.Array) -> chex.Array:
        x = MLPTorso(self.hidden_sizes, "relu", layer_norm=self.layer_norm)(observation)
        x = nn.Dense(math.prod(self.action_shape), kernel_init=init_small, bias_init=init_small, name="action")(x)
        return nn.tanh(x).reshape(x.shape[0], *self.action_shape)


class ActionCritic(nn.Module):
    """A critic of dense layers with ReLU: observation [B, ...], action [B, *shape] in [-1, 1] -> float32
    [B, num_outputs]."""

    num_outputs: int = 1
    hidden_sizes: Sequence[int] = (256, 256)
    action_layer: int = 1  # the hidden layer, counted from 1, that gets the action beside its other inputs
    layer_norm: bool = False  # layer normalisation in the first layer (MLPTorso)

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
    """`size` networks of one architecture as a single one: parameters and outputs get a leading axis [size, ...].

    The networks' matrix products are computed as one batch.
    """

    network: nn.Module
    size: int

    def init(self, key: jax.Array, *inputs: Any) -> Any:
        """Initialises each network from its own key."""
        return jax.vmap(lambda key: self.network.init(key, *inputs))(jax.random.split(key, self.size))

    def apply(self, params: Any, *inputs: Any) -> chex.Array:
        """Returns the outputs of all networks for the same inputs, [size, B, ...]."""
        outputs: Any = jax.vmap(lambda params: self.network.apply(params, *inputs))(params)
        return outputs

    def draw(self, key: jax.Array, params: Any, number: int) -> Any:
        """Returns the parameters of `number` different networks, drawn at random: `apply` takes them too."""
        chosen = jax.random.choice(key, self.size, (number,), replace=False)
        return jax.tree.map(lambda x: x[chosen], params)


class PolicyAndCritic(NamedTuple):
    """A pair for policy and critic: of parameters, of gradients, or of optimiser states."""

    policy: Any
    critic: Any


class MLP(nn.Module):
    """Hidden dense layers and a linear one: [..., d] -> float32 [..., num_outputs]. Outputs start near 0.

    Without hidden layers it is a linear function without a bias, which all states would share, and it starts at 0. With
    one-hot inputs it is then a table.
    """

    num_outputs: int
    hidden_sizes: Sequence[int] = ()
    activation: str = "tanh"
    num_free: int = 0  # the last `num_free` outputs are free parameters, which start at 0
    layer_norm: bool = False  # layer normalisation in the first layer (MLPTorso)

    @nn.compact
    def __call__(self, x: chex.Array) -> chex.Array:
        shape, size = x.shape[:-1], self.num_outputs - self.num_free
        if self.hidden_sizes:
            x = MLPTorso(self.hidden_sizes, self.activation, layer_norm=self.layer_norm)(x.reshape(-1, x.shape[-1]))
            x = nn.Dense(size, kernel_init=nn.initializers.orthogonal(0.01))(x).reshape(*shape, size)
        else:
            x = nn.Dense(size, use_bias=False, kernel_init=nn.initializers.zeros)(x)
        return append(x, self.param("free", nn.initializers.zeros, (self.num_free,))) if self.num_free else x
