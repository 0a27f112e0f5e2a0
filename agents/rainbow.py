"""Rainbow: DQN with six improvements, each of which is a switch; and C51, which is the distribution of returns alone.

Hessel et al. 2018, https://arxiv.org/abs/1710.02298. `categorical`: Bellemare et al. 2017,
https://arxiv.org/abs/1707.06887, whose algorithm 1 the names x, a and p are of. `noisy`: Fortunato et al. 2018,
https://arxiv.org/abs/1706.10295. `double`, `dueling` and `replay="prioritized"` are as in agents/dqn.py, and `n_step`
above 1 is the sixth. With all of them off this is DQN.

Deviations: many environments are played at once, by parameters that may be some updates old, and share the noise of a
step; evaluations have none. The noisy layers are those after a convolutional torso, or after the mlp.
"""

import dataclasses
from typing import Literal

import chex
import jax
import numpy as np

from agents import dqn
from agents.agent import Agent, EnvironmentSpec, Transition
from agents.parts import action_values
from agents.parts.action_values import Functions, Losses, Values, at
from agents.parts.distributions import categorical_distance
from agents.parts.exploration import discrete_actions, greedy


@dataclasses.dataclass(frozen=True)
class Config:
    """Rainbow's Atari settings (its table 1) by default."""

    torso: Literal["mlp", "shallow", "nature", "residual"] = "nature"
    frame_stack: int = 4  # frames of its episode that the network sees at once; 1 where observations are no frames
    hidden_sizes: tuple[int, ...] = (128, 128)  # the mlp's
    activation: Literal["tanh", "relu"] = "relu"  # the mlp's
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the network's arithmetic; parameters stay float32
    dueling: bool = True  # values and advantages apart
    head_size: int = 512  # a layer of each stream's own, in the place of a convolutional torso's dense one; 0: none
    noisy: bool = True  # layers after the torso have noise, which explores
    noisy_sigma: float = 0.5  # sigma_0, of the noise at first

    categorical: bool = True  # a distribution of returns is learnt, by its probabilities of the atoms
    v_min: float = -10.0  # returns of the first atom and of the last
    v_max: float = 10.0
    num_atoms: int = 51  # N

    double: bool = True  # the target's action is the online network's
    loss: Literal["huber", "squared"] = "huber"  # of single values: huber clips their error to [-1, 1]
    n_step: int = 3
    discount: float = 0.99  # gamma
    batch_size: int = 32
    target_period: int = 2_000  # updates from one copy of the parameters to the next: 32,000 frames

    optimizer: Literal["rmsprop", "adam"] = "adam"  # rmsprop: centred
    learning_rate: float = 6.25e-5
    optimizer_epsilon: float = 1.5e-4  # outside Adam's root, inside RMSProp's
    rmsprop_decay: float = 0.95  # of the gradient's and of its square's average
    max_gradient_norm: float = 0.0  # 0: not clipped

    epsilon_initial: float = 0.0
    epsilon_final: float = 0.0
    epsilon_steps: int = 0  # updates from one to the other

    replay: Literal["uniform", "prioritized"] = "prioritized"
    replay_size: int = 1_000_000
    min_replay_size: int = 20_000  # before the first update; played with epsilon_initial
    samples_per_insert: float = 8.0  # a quarter of batch_size: an update for each four actions
    priority: Literal["proportional", "rank"] = "proportional"  # to the error, or to 1 / its rank among all
    priority_exponent: float = 0.5  # omega
    uniform_fraction: float = 0.0  # of samples, drawn from all items alike
    importance_exponent: float = 0.4  # beta, at first
    importance_steps: int = 12_500_000  # updates until beta has risen to 1: 200 million frames; 0: it stays
    normalize_weights: bool = True  # divides them by the batch's largest

    def __post_init__(self):
        action_values.check(self, positive=("noisy_sigma",))
        if not self.v_min < self.v_max:
            raise ValueError(f"config.v_min={self.v_min} must be below config.v_max={self.v_max}")
        if self.num_atoms < 2:
            raise ValueError(f"config.num_atoms must be at least 2, not {self.num_atoms}")


def functions(config: Config, spec: EnvironmentSpec) -> Functions:
    """What acting and learning are made of.

    Raises:
      ValueError: continuous actions, or a network that does not fit the observation.
    """
    network = action_values.make_network(
        config,
        discrete_actions("rainbow", spec),
        num_atoms=config.num_atoms if config.categorical else 0,
        noisy=config.noisy_sigma if config.noisy else 0.0,
    )
    z = np.linspace(config.v_min, config.v_max, config.num_atoms, dtype=np.float32)

    def mean(outputs: chex.Array) -> chex.Array:
        """Q of what the network gives: sum over i of z_i p_i, where that is logits of the atoms."""
        return jax.nn.softmax(outputs) @ z if config.categorical else outputs

    def values(params, key, observation) -> chex.Array:
        return mean(network.outputs(params, key, observation))

    def losses(params, target_params, key, transition: Transition) -> Losses:
        """The cross-entropy to the projected target, or where single values are learnt, DQN's."""
        x, a, reward, discount, x_next = transition
        online_key, target_key, selector_key = jax.random.split(key, 3)  # noise is drawn for each anew
        outputs, next_outputs = (
            network.outputs(params, online_key, x),
            network.outputs(target_params, target_key, x_next),
        )
        selector = network.outputs(params, selector_key, x_next) if config.double else next_outputs
        if not config.categorical:
            return dqn.td_losses(config.loss, outputs, a, reward, discount, next_outputs, selector)
        a_star = greedy(mean(selector))
        chosen = at(outputs, a)
        distance = categorical_distance(chosen, at(next_outputs, a_star), reward, discount, z)
        return Losses(distance.losses, distance.errors, mean(chosen), distance.metrics)

    return action_values.functions(config, spec, Values(network.init, values, losses))


def make(config: Config, spec: EnvironmentSpec) -> Agent:
    """The agent for environments of `spec`.

    Raises:
      ValueError: continuous actions, or a network that does not fit the observation.
    """
    return action_values.make_agent(config, functions(config, spec))
