"""IQN: a network that computes the return's quantiles at any fractions that it is given.

Dabney et al. 2018, https://arxiv.org/abs/1806.06923, whose names are used here.

Deviations: many environments are played at once, by parameters that may be some updates old; epsilon falls with
updates, not with frames. Evaluations space the K fractions evenly, where the paper draws them. Double, dueling, n-step
targets and prioritised replay are as in agents/dqn.py, and off by default; the only measure of risk is the neutral one.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from agents.agent import Agent, EnvironmentSpec, Transition
from agents.parts import action_values
from agents.parts.action_values import Functions, Losses, Values, at
from agents.parts.distributions import quantile_distance
from agents.parts.exploration import discrete_actions, greedy
from agents.parts.q_heads import q_heads
from agents.parts.torsos import ORTHOGONAL, make_torso


@dataclasses.dataclass(frozen=True)
class Config:
    """The defaults are the paper's Atari settings, DQN's where it has none, and for prioritised replay that paper's.

    A `head_size` of 512 makes the paper's network, which the fractions enter after the convolutions.
    """

    torso: Literal["mlp", "shallow", "nature", "residual"] = "nature"
    frame_stack: int = 4  # newest frames of the episode that the network sees at once; 1 if observations are not frames
    hidden_sizes: tuple[int, ...] = (128, 128)  # layer sizes of the mlp torso
    activation: Literal["tanh", "relu"] = "relu"  # the mlp torso's
    dtype: Literal["float32", "bfloat16"] = "float32"  # type of the network's arithmetic; parameters stay float32
    dueling: bool = False  # separate streams for the value and the advantages
    head_size: int = 512  # hidden units of each stream, in place of a convolutional torso's dense layer; 0: none

    num_fractions: int = 64  # N, fractions drawn for the online network
    num_target_fractions: int = 64  # N', fractions drawn for the target
    num_acting_fractions: int = 32  # K, fractions; the mean of their quantiles is an action's value
    num_cosines: int = 64  # n, the cosine features of a fraction
    kappa: float = 1.0  # the error beyond which the quantile Huber loss is linear; 0: everywhere

    double: bool = False  # the online network chooses the target's action
    n_step: int = 1
    discount: float = 0.99  # gamma
    batch_size: int = 32
    target_period: int = 2_500  # updates from one copy of the target parameters to the next: 10,000 actions

    optimizer: Literal["rmsprop", "adam"] = "adam"  # rmsprop is the centred variant
    learning_rate: float = 5e-5
    optimizer_epsilon: float = 0.01 / 32  # outside Adam's square root, inside RMSProp's
    rmsprop_decay: float = 0.95  # of the running averages of the gradient and of its square
    max_gradient_norm: float = 0.0  # the gradient is clipped to this norm; 0: it is not clipped

    epsilon_initial: float = 1.0
    epsilon_final: float = 0.01
    epsilon_steps: int = 250_000  # updates from initial to final: a million actions, four for each update

    replay: Literal["uniform", "prioritized"] = "uniform"
    replay_size: int = 1_000_000
    min_replay_size: int = 50_000  # transitions before the first update, played with epsilon_initial
    samples_per_insert: float = 8.0  # samples per transition; batch_size / 4 makes an update for every four actions
    priority: Literal["proportional", "rank"] = "proportional"  # proportional to |error|, or to 1 / its rank
    priority_exponent: float = 0.6  # alpha: sampling is proportional to priority^alpha
    uniform_fraction: float = 0.0  # the share of samples that is drawn uniformly from all items
    importance_exponent: float = 0.4  # initial beta, the exponent of importance weights
    importance_steps: int = 12_500_000  # updates until beta has risen to 1 (200 million frames); 0: beta is constant
    normalize_weights: bool = True  # divides importance weights by the batch's largest

    def __post_init__(self):
        sizes = ("num_fractions", "num_target_fractions", "num_acting_fractions", "num_cosines")
        action_values.check(self, counts=sizes, not_negative=("kappa",))


class QuantileNetwork(nn.Module):
    """The network Z_tau(x, a) = f(psi(x) * phi(tau))_a (section 3.1).

    psi is the torso, f are the heads, and * multiplies feature by feature.
    """

    torso: str
    num_actions: int
    hidden_sizes: Sequence[int]
    activation: str
    dueling: bool
    head_size: int
    num_cosines: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: chex.Array, tau: chex.Array) -> chex.Array:
        """Maps observations [B, ...] and fractions [B, N] to quantiles of all actions, float32 [B, N, A]."""
        torso: Any = make_torso(
            self.torso, self.hidden_sizes, self.activation, self.dtype, convolutions_only=bool(self.head_size)
        )
        psi = torso(x)
        cosines = jnp.cos(jnp.pi * jnp.arange(self.num_cosines) * tau[..., None])  # eq. 4, from i = 0
        phi = nn.relu(nn.Dense(psi.shape[-1], self.dtype, kernel_init=ORTHOGONAL, name="phi")(cosines))
        return q_heads(
            psi[:, None] * phi,
            self.num_actions,
            dueling=self.dueling,
            head_size=self.head_size,
            dtype=self.dtype,
        )


def functions(config: Config, spec: EnvironmentSpec) -> Functions:
    """Makes the functions that acting and learning use.

    Raises:
      ValueError: if actions are not discrete, or if the network does not fit the observation.
    """
    network = QuantileNetwork(
        torso=config.torso,
        num_actions=discrete_actions("iqn", spec),
        hidden_sizes=config.hidden_sizes,
        activation=config.activation,
        dueling=config.dueling,
        head_size=config.head_size,
        num_cosines=config.num_cosines,
        dtype=jnp.dtype(config.dtype),
    )
    N, N_target, K = config.num_fractions, config.num_target_fractions, config.num_acting_fractions

    def init(key, observation):
        return network.init(key, observation, jnp.zeros((1, 1)))

    def quantiles(params, observation, tau) -> chex.Array:
        outputs: Any = network.apply(params, observation, tau)
        return outputs

    def values(params, key, observation) -> chex.Array:
        """Returns Q, the mean quantile of K fractions, drawn from U([0, 1]) or, if `key` is None, spaced evenly."""
        shape = (len(observation), K)
        even = jnp.broadcast_to((jnp.arange(K) + 0.5) / K, shape)
        tau = even if key is None else jax.random.uniform(key, shape)
        return quantiles(params, observation, tau).mean(axis=1)

    def losses(params, target_params, key, transition: Transition) -> Losses:
        """Returns the losses: the mean over N' j of the sum over N i of rho_{tau_i}(delta_ij), delta_ij as in eq. 2."""
        x, a, reward, discount, x_next = transition
        tau_key, target_key, acting_key = jax.random.split(key, 3)
        tau = jax.random.uniform(tau_key, (len(a), N))
        target_tau = jax.random.uniform(target_key, (len(a), N_target))
        a_star = greedy(values(params if config.double else target_params, acting_key, x_next))
        z = at(quantiles(params, x, tau).swapaxes(1, 2), a)
        z_next = at(quantiles(target_params, x_next, target_tau).swapaxes(1, 2), a_star)
        targets = reward[:, None] + discount[:, None] * z_next
        distance = quantile_distance(z, tau, targets, config.kappa)
        return Losses(distance.losses, distance.errors, z.mean(axis=-1), distance.metrics)

    return action_values.functions(config, spec, Values(init, values, losses))


def make(config: Config, spec: EnvironmentSpec) -> Agent:
    """Returns the agent for environments of `spec`.

    Raises:
      ValueError: if actions are not discrete, or if the network does not fit the observation.
    """
    return action_values.make_agent(config, functions(config, spec))
