"""IQN: a network that gives any quantile of the return, of the fractions that it is asked for.

Dabney et al. 2018, https://arxiv.org/abs/1806.06923, whose names these are.

Deviations: many environments are played at once, by parameters that may be some updates old; epsilon falls with
updates, not with frames. Evaluations take the K fractions in even steps where the paper draws them. Double, dueling,
n-step targets and prioritised replay are as in agents/dqn.py, and off; the measure of risk is the neutral one.
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
    """The paper's Atari settings by default, and where it has none DQN's; the prioritised paper's for its replay.

    A `head_size` of 512 is the paper's network: the fractions enter it after the convolutions.
    """

    torso: Literal["mlp", "shallow", "nature", "residual"] = "nature"
    frame_stack: int = 4  # frames of its episode that the network sees at once; 1 where observations are no frames
    hidden_sizes: tuple[int, ...] = (128, 128)  # the mlp's
    activation: Literal["tanh", "relu"] = "relu"  # the mlp's
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the network's arithmetic; parameters stay float32
    dueling: bool = False  # values and advantages apart
    head_size: int = 512  # a layer of each stream's own, in the place of a convolutional torso's dense one; 0: none

    num_fractions: int = 64  # N, drawn for the network that learns
    num_target_fractions: int = 64  # N', drawn for its target
    num_acting_fractions: int = 32  # K, of whose quantiles the mean is an action's value
    num_cosines: int = 64  # n, features of a fraction
    kappa: float = 1.0  # from where on the quantile Huber loss is linear; 0: everywhere

    double: bool = False  # the target's action is the online network's
    n_step: int = 1
    discount: float = 0.99  # gamma
    batch_size: int = 32
    target_period: int = 2_500  # updates from one copy of the parameters to the next: 10,000 actions

    optimizer: Literal["rmsprop", "adam"] = "adam"  # rmsprop: centred
    learning_rate: float = 5e-5
    optimizer_epsilon: float = 0.01 / 32  # outside Adam's root, inside RMSProp's
    rmsprop_decay: float = 0.95  # of the gradient's and of its square's average
    max_gradient_norm: float = 0.0  # 0: not clipped

    epsilon_initial: float = 1.0
    epsilon_final: float = 0.01
    epsilon_steps: int = 250_000  # updates from one to the other: a million actions, an update for each four

    replay: Literal["uniform", "prioritized"] = "uniform"
    replay_size: int = 1_000_000
    min_replay_size: int = 50_000  # before the first update; played with epsilon_initial
    samples_per_insert: float = 8.0  # a quarter of batch_size: an update for each four actions
    priority: Literal["proportional", "rank"] = "proportional"  # to the error, or to 1 / its rank among all
    priority_exponent: float = 0.6  # alpha
    uniform_fraction: float = 0.0  # of samples, drawn from all items alike
    importance_exponent: float = 0.4  # beta, at first
    importance_steps: int = 12_500_000  # updates until beta has risen to 1: 200 million frames; 0: it stays
    normalize_weights: bool = True  # divides them by the batch's largest

    def __post_init__(self):
        sizes = ("num_fractions", "num_target_fractions", "num_acting_fractions", "num_cosines")
        action_values.check(self, counts=sizes, not_negative=("kappa",))


class QuantileNetwork(nn.Module):
    """Z_tau(x, a) = f(psi(x) * phi(tau))_a (section 3.1): psi is the torso, f the heads, and * is of each feature."""

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
        """Observations [B, ...] and fractions [B, N] -> quantiles of all actions, float32 [B, N, A]."""
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
    """What acting and learning are made of.

    Raises:
      ValueError: continuous actions, or a network that does not fit the observation.
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
        """Q, the mean of the quantiles of K fractions; drawn from U([0, 1]), or with a key of None in even steps."""
        shape = (len(observation), K)
        even = jnp.broadcast_to((jnp.arange(K) + 0.5) / K, shape)
        tau = even if key is None else jax.random.uniform(key, shape)
        return quantiles(params, observation, tau).mean(axis=1)

    def losses(params, target_params, key, transition: Transition) -> Losses:
        """The mean over j of N' and the sum over i of N of rho_{tau_i}(delta_ij), delta_ij of eq. 2."""
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
    """The agent for environments of `spec`.

    Raises:
      ValueError: continuous actions, or a network that does not fit the observation.
    """
    return action_values.make_agent(config, functions(config, spec))
