"""DQN: Q-learning with a deep network, a replay and target parameters; and its three best known improvements.

Mnih et al. 2013, https://arxiv.org/abs/1312.5602, and 2015, https://doi.org/10.1038/nature14236, whose names are used.
`double`: van Hasselt et al. 2016, https://arxiv.org/abs/1509.06461. `dueling`: Wang et al. 2016,
https://arxiv.org/abs/1511.06581. `replay="prioritized"`: Schaul et al. 2016, https://arxiv.org/abs/1511.05952.

Deviations: many environments are played at once, by parameters that may be some updates old; epsilon falls with
updates, not with frames; n-step targets may take the place of one-step ones.
"""

import dataclasses
from typing import Literal

import chex
import jax

from agents.agent import Agent, EnvironmentSpec
from agents.parts import action_values
from agents.parts.action_values import Functions, Losses, Values, at
from agents.parts.exploration import discrete_actions


@dataclasses.dataclass(frozen=True)
class Config:
    """The defaults are the 2015 paper's Atari settings (extended data table 1), and the prioritised paper's for its
    replay.

    The paper's code sums the gradient over the minibatch; here it is averaged. RMSProp takes the same step with the
    average if its epsilon is that of the sum divided by batch_size squared. Clipping errors needs no such change.
    """

    torso: Literal["mlp", "shallow", "nature", "residual"] = "nature"
    frame_stack: int = 4  # newest frames of the episode that the network sees at once; 1 if observations are not frames
    hidden_sizes: tuple[int, ...] = (128, 128)  # layer sizes of the mlp torso
    activation: Literal["tanh", "relu"] = "relu"  # the mlp torso's
    dtype: Literal["float32", "bfloat16"] = "float32"  # type of the network's arithmetic; parameters stay float32
    dueling: bool = False  # separate streams for the value and the advantages
    head_size: int = 0  # hidden units of each stream, in place of a convolutional torso's dense layer; 0: none

    double: bool = False  # the online network chooses the target's action
    loss: Literal["huber", "squared"] = "huber"  # huber: its gradient is the error clipped to [-1, 1]
    n_step: int = 1
    discount: float = 0.99  # gamma
    batch_size: int = 32
    target_period: int = 2_500  # C, updates from one target copy to the next: 10,000 actions in the paper's code

    optimizer: Literal["rmsprop", "adam"] = "rmsprop"  # rmsprop is the centred variant
    learning_rate: float = 2.5e-4
    optimizer_epsilon: float = 0.01 / 32**2  # outside Adam's square root, inside RMSProp's
    rmsprop_decay: float = 0.95  # of the running averages of the gradient and of its square
    max_gradient_norm: float = 0.0  # the gradient is clipped to this norm; 0: it is not clipped

    epsilon_initial: float = 1.0
    epsilon_final: float = 0.1
    epsilon_steps: int = 250_000  # updates from initial to final: the paper's million actions, four for each update

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
        action_values.check(self)


def td_losses(
    loss: Literal["huber", "squared"],
    values: chex.Array,
    action: chex.Array,
    reward: chex.Array,
    discount: chex.Array,
    next_values: chex.Array,
    selector: chex.Array,
) -> Losses:
    """Returns the losses of the errors y_t - Q(s_t, a_t), where no gradient passes through the target y_t.

    Args:
      loss: the function of the error, Huber's or half of its square.
      values: Q(s_t, .; theta), [B, A].
      action: a_t, int32 [B].
      reward: the discounted sum of n rewards, [B].
      discount: gamma^n, or 0 where s_{t+n} is terminal, [B].
      next_values: Q(s_{t+n}, .; theta^-), [B, A].
      selector: the values whose largest chooses the target's action, [B, A]: `next_values`, or for double Q-learning
        Q(s_{t+n}, .; theta).
    """
    import rlax  # here, not above: where TensorFlow is installed it takes seconds

    errors = jax.vmap(rlax.double_q_learning)(values, action, reward, discount, next_values, selector)
    losses = rlax.huber_loss(errors) if loss == "huber" else rlax.l2_loss(errors)
    return Losses(losses, errors, at(values, action), {})


def functions(agent: str, config: Config, spec: EnvironmentSpec) -> Functions:
    """Makes the functions that acting and learning use, for the `agent` that an error names.

    Raises:
      ValueError: if actions are not discrete, or if the network does not fit the observation.
    """
    network = action_values.make_network(config, discrete_actions(agent, spec))

    def losses(params, target_params, key, transition) -> Losses:
        s, a, reward, discount, s_next = transition
        values, next_values = network.outputs(params, key, s), network.outputs(target_params, key, s_next)
        selector = network.outputs(params, key, s_next) if config.double else next_values
        return td_losses(config.loss, values, a, reward, discount, next_values, selector)

    return action_values.functions(config, spec, Values(network.init, network.outputs, losses))


def make(config: Config, spec: EnvironmentSpec) -> Agent:
    """Returns the agent for environments of `spec`.

    Raises:
      ValueError: if actions are not discrete, or if the network does not fit the observation.
    """
    return action_values.make_agent(config, functions("dqn", config, spec))
