"""QR-DQN: Q-learning that learns quantiles of the distribution of returns.

Dabney et al. 2018, https://arxiv.org/abs/1710.10044; the names in the code are those of its algorithm 1.

Deviations: actors play many environments at once, with parameters that may be a few updates old; epsilon falls with
updates, not with frames. Double Q-learning, dueling heads, n-step targets and prioritised replay are as in
agents/dqn.py, and off by default.
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
    """The settings; by default the paper's for Atari (QR-DQN-1), and DQN's where it has none. Those of prioritised
    replay are its own paper's."""

    torso: Literal["mlp", "shallow", "nature", "residual"] = "nature"
    frame_stack: int = 4  # newest frames of the episode that the network sees at once; 1 if observations are not frames
    hidden_sizes: tuple[int, ...] = (128, 128)  # layer sizes of the mlp torso
    activation: Literal["tanh", "relu"] = "relu"  # the mlp torso's
    dtype: Literal["float32", "bfloat16"] = "float32"  # type of the network's arithmetic; parameters stay float32
    dueling: bool = False  # separate streams for the value and the advantages
    head_size: int = 0  # hidden units of each stream, in place of a convolutional torso's dense layer; 0: none

    num_quantiles: int = 200  # N, quantiles of each action's return
    kappa: float = 1.0  # the quantile Huber loss is linear in larger errors; 0: in all, the paper's QR-DQN-0

    double: bool = False  # the online network chooses the target's action
    n_step: int = 1  # steps of a target
    discount: float = 0.99  # gamma
    batch_size: int = 32
    target_period: int = 2_500  # updates between copies to the target network: 10,000 actions

    optimizer: Literal["rmsprop", "adam"] = "adam"  # rmsprop is the centred variant
    learning_rate: float = 5e-5
    optimizer_epsilon: float = 0.01 / 32  # outside Adam's square root, inside RMSProp's
    rmsprop_decay: float = 0.95  # of the running averages of the gradient and of its square
    max_gradient_norm: float = 0.0  # the gradient is clipped to this norm; 0: it is not clipped

    epsilon_initial: float = 1.0
    epsilon_final: float = 0.01
    epsilon_steps: int = 250_000  # updates from epsilon_initial to epsilon_final: a million actions at 4 per update

    replay: Literal["uniform", "prioritized"] = "uniform"
    replay_size: int = 1_000_000
    min_replay_size: int = 50_000  # transitions before the first update, played with epsilon_initial
    samples_per_insert: float = 8.0  # samples per transition; batch_size / 4 makes an update for every four actions
    priority: Literal["proportional", "rank"] = "proportional"  # proportional to |error|, or to 1 / its rank
    priority_exponent: float = 0.6  # alpha: sampling is proportional to priority^alpha
    uniform_fraction: float = 0.0  # the share of samples that is drawn uniformly from all items
    importance_exponent: float = 0.4  # initial beta, the exponent of importance weights
    importance_steps: int = 12_500_000  # updates in which beta rises to 1: 200 million frames; 0: beta is constant
    normalize_weights: bool = True  # divides importance weights by the batch's largest

    def __post_init__(self):
        action_values.check(self, counts=("num_quantiles",), not_negative=("kappa",))


def functions(config: Config, spec: EnvironmentSpec) -> Functions:
    """Builds the functions that acting and learning consist of.

    Raises:
      ValueError: the actions are not discrete, or the network does not fit the observation.
    """
    network = action_values.make_network(config, discrete_actions("qr_dqn", spec), config.num_quantiles)
    N = config.num_quantiles
    tau_hat = np.asarray((np.arange(N) + 0.5) / N, np.float32)  # the midpoints of tau_{i-1} and tau_i

    def values(params, key, observation):
        """Returns Q, the mean of the quantiles theta_i: [B, A]."""
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
    """Makes the agent for environments of `spec`.

    Raises:
      ValueError: the actions are not discrete, or the network does not fit the observation.
    """
    return action_values.make_agent(config, functions(config, spec))
