"""QR-DQN: Q-learning of the distribution of returns by its quantiles.

Dabney et al. 2018, https://arxiv.org/abs/1710.10044, whose algorithm 1 the names are of.

Deviations: many environments are played at once, by parameters that may be some updates old; epsilon falls with
updates, not with frames. Double, dueling, n-step targets and prioritised replay are as in agents/dqn.py, and off.
"""

import dataclasses
from typing import Literal

import numpy as np

from agents.agent import Agent, EnvironmentSpec, Transition
from agents.parts import action_values
from agents.parts.action_values import Functions, Losses, Values, at
from agents.parts.distributions import quantile_distance
from agents.parts.exploration import discrete_actions, greedy


@dataclasses.dataclass(frozen=True)
class Config:
    """The paper's Atari settings (QR-DQN-1's) by default, and where it has none DQN's; the prioritised paper's for its
    replay."""

    torso: Literal["mlp", "shallow", "nature", "residual"] = "nature"
    frame_stack: int = 4  # frames of its episode that the network sees at once; 1 where observations are no frames
    hidden_sizes: tuple[int, ...] = (128, 128)  # the mlp's
    activation: Literal["tanh", "relu"] = "relu"  # the mlp's
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the network's arithmetic; parameters stay float32
    dueling: bool = False  # values and advantages apart
    head_size: int = 0  # a layer of each stream's own, in the place of a convolutional torso's dense one; 0: none

    num_quantiles: int = 200  # N
    kappa: float = 1.0  # from where on the quantile Huber loss is linear; 0: everywhere, the paper's QR-DQN-0

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
        action_values.check(self, counts=("num_quantiles",), not_negative=("kappa",))


def functions(config: Config, spec: EnvironmentSpec) -> Functions:
    """What acting and learning are made of.

    Raises:
      ValueError: continuous actions, or a network that does not fit the observation.
    """
    network = action_values.make_network(config, discrete_actions("qr_dqn", spec), config.num_quantiles)
    N = config.num_quantiles
    tau_hat = np.asarray((np.arange(N) + 0.5) / N, np.float32)  # the middle between tau_{i-1} and tau_i

    def values(params, key, observation):
        """Q, the mean of the quantiles theta_i."""
        return network.outputs(params, key, observation).mean(axis=-1)

    def losses(params, target_params, key, transition: Transition) -> Losses:
        x, a, reward, discount, x_next = transition
        theta, next_theta = network.outputs(params, key, x), network.outputs(target_params, key, x_next)
        selector = network.outputs(params, key, x_next) if config.double else next_theta
        a_star = greedy(selector.mean(axis=-1))
        T_theta = reward[:, None] + discount[:, None] * at(next_theta, a_star)
        chosen = at(theta, a)
        distance = quantile_distance(chosen, tau_hat, T_theta, config.kappa)
        return Losses(distance.losses, distance.errors, chosen.mean(axis=-1), distance.metrics)

    return action_values.functions(config, spec, Values(network.init, values, losses))


def make(config: Config, spec: EnvironmentSpec) -> Agent:
    """The agent for environments of `spec`.

    Raises:
      ValueError: continuous actions, or a network that does not fit the observation.
    """
    return action_values.make_agent(config, functions(config, spec))
