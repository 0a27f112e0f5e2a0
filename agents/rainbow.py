"""Rainbow: DQN with six improvements, each of which can be switched off; and C51, which has only `categorical` on.

Hessel et al. 2018, https://arxiv.org/abs/1710.02298. `categorical`: Bellemare et al. 2017,
https://arxiv.org/abs/1707.06887; the names x, a and p in the code are those of its algorithm 1. `noisy`: Fortunato et
al. 2018, https://arxiv.org/abs/1706.10295. `double`, `dueling` and `replay="prioritized"` are as in agents/dqn.py, and
the sixth is `n_step` above 1. With all six off, this is DQN.

Deviations: actors play many environments at once, with parameters that may be a few updates old; an actor's
environments share each step's noise, and evaluations have no noise. Only the layers after the torso are noisy.
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
    """The settings; by default Rainbow's for Atari (its table 1)."""

    torso: Literal["mlp", "shallow", "nature", "residual"] = "nature"
    frame_stack: int = 4  # newest frames of the episode that the network sees at once; 1 if observations are not frames
    hidden_sizes: tuple[int, ...] = (128, 128)  # layer sizes of the mlp torso
    activation: Literal["tanh", "relu"] = "relu"  # the mlp torso's
    dtype: Literal["float32", "bfloat16"] = "float32"  # type of the network's arithmetic; parameters stay float32
    dueling: bool = True  # separate streams for the value and the advantages
    head_size: int = 512  # hidden units of each stream, in place of a convolutional torso's dense layer; 0: none
    noisy: bool = True  # whether layers after the torso have noise in their weights, which explores
    noisy_sigma: float = 0.5  # sigma_0, which sets the initial size of the noise

    categorical: bool = True  # whether to learn the distribution of returns over fixed atoms; else values
    v_min: float = -10.0  # return that the first atom stands for
    v_max: float = 10.0  # return that the last atom stands for
    num_atoms: int = 51  # N, evenly spaced from v_min to v_max

    double: bool = True  # the online network chooses the target's action
    loss: Literal["huber", "squared"] = "huber"  # without categorical; huber clips a value's error to [-1, 1]
    n_step: int = 3  # steps of a target
    discount: float = 0.99  # gamma
    batch_size: int = 32
    target_period: int = 2_000  # updates between copies to the target network: 32,000 frames

    optimizer: Literal["rmsprop", "adam"] = "adam"  # rmsprop is the centred variant
    learning_rate: float = 6.25e-5
    optimizer_epsilon: float = 1.5e-4  # outside Adam's square root, inside RMSProp's
    rmsprop_decay: float = 0.95  # of the running averages of the gradient and of its square
    max_gradient_norm: float = 0.0  # the gradient is clipped to this norm; 0: it is not clipped

    epsilon_initial: float = 0.0
    epsilon_final: float = 0.0
    epsilon_steps: int = 0  # updates from epsilon_initial to epsilon_final; 0: always epsilon_final

    replay: Literal["uniform", "prioritized"] = "prioritized"
    replay_size: int = 1_000_000
    min_replay_size: int = 20_000  # transitions before the first update, played with epsilon_initial
    samples_per_insert: float = 8.0  # samples per transition; batch_size / 4 makes an update for every four actions
    priority: Literal["proportional", "rank"] = "proportional"  # proportional to |error|, or to 1 / its rank
    priority_exponent: float = 0.5  # omega: sampling is proportional to priority^omega
    uniform_fraction: float = 0.0  # the share of samples that is drawn uniformly from all items
    importance_exponent: float = 0.4  # initial beta, the exponent of importance weights
    importance_steps: int = 12_500_000  # updates in which beta rises to 1: 200 million frames; 0: beta is constant
    normalize_weights: bool = True  # divides importance weights by the batch's largest

    def __post_init__(self):
        action_values.check(self, positive=("noisy_sigma",))
        if not self.v_min < self.v_max:
            raise ValueError(f"config.v_min={self.v_min} must be below config.v_max={self.v_max}")
        if self.num_atoms < 2:
            raise ValueError(f"config.num_atoms must be at least 2, not {self.num_atoms}")


def functions(config: Config, spec: EnvironmentSpec) -> Functions:
    """Builds the functions that acting and learning consist of.

    Raises:
      ValueError: the actions are not discrete, or the network does not fit the observation.
    """
    network = action_values.make_network(
        config,
        discrete_actions("rainbow", spec),
        num_atoms=config.num_atoms if config.categorical else 0,
        noisy=config.noisy_sigma if config.noisy else 0.0,
    )
    z = np.linspace(config.v_min, config.v_max, config.num_atoms, dtype=np.float32)

    def mean(outputs: chex.Array) -> chex.Array:
        """Converts network outputs to Q; where they are logits of the atoms, Q is the sum over i of z_i p_i."""
        return jax.nn.softmax(outputs) @ z if config.categorical else outputs

    def values(params, key, observation) -> chex.Array:
        return mean(network.outputs(params, key, observation))

    def losses(params, target_params, key, transition: Transition) -> Losses:
        """Computes the cross-entropy to the projected target, or without `categorical` DQN's losses."""
        x, a, reward, discount, x_next = transition
        online_key, target_key, selector_key = jax.random.split(key, 3)  # each network draws its own noise
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
    """Makes the agent for environments of `spec`.

    Raises:
      ValueError: the actions are not discrete, or the network does not fit the observation.
    """
    return action_values.make_agent(config, functions(config, spec))
