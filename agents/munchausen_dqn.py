"""Munchausen DQN: the logarithm of the policy is added to the reward, and the next state's value is a soft one.

Vieillard et al. 2020, https://arxiv.org/abs/2007.14430, whose names these are: M-DQN is its equation 2.

Deviations: many environments are played at once, by parameters that may be some updates old; epsilon falls with
updates, not with frames. Of n steps the first alone has the logarithm of its policy added. With `double` the policy at
the target's state is the online network's. Dueling and prioritised replay are as in agents/dqn.py. All of these are
off by default.
"""

import dataclasses
from typing import Literal

import chex
import jax
import jax.numpy as jnp

from agents.agent import Agent, EnvironmentSpec, Transition
from agents.parts import action_values
from agents.parts.action_values import Functions, Losses, Values, at
from agents.parts.exploration import discrete_actions


@dataclasses.dataclass(frozen=True)
class Config:
    """The paper's Atari settings by default, and where it has none DQN's; the prioritised paper's for its replay."""

    torso: Literal["mlp", "shallow", "nature", "residual"] = "nature"
    frame_stack: int = 4  # frames of its episode that the network sees at once; 1 where observations are no frames
    hidden_sizes: tuple[int, ...] = (128, 128)  # the mlp's
    activation: Literal["tanh", "relu"] = "relu"  # the mlp's
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the network's arithmetic; parameters stay float32
    dueling: bool = False  # values and advantages apart
    head_size: int = 0  # a layer of each stream's own, in the place of a convolutional torso's dense one; 0: none

    alpha: float = 0.9  # how much of tau log pi is added to the reward
    tau: float = 0.03  # the policy's temperature
    l_0: float = -1.0  # the least that tau log pi counts as

    double: bool = False  # the target's policy is the online network's
    loss: Literal["huber", "squared"] = "huber"  # huber: the error is clipped to [-1, 1]
    n_step: int = 1
    discount: float = 0.99  # gamma
    batch_size: int = 32
    target_period: int = 2_000  # updates from one copy of the parameters to the next: 8,000 actions

    optimizer: Literal["rmsprop", "adam"] = "adam"  # rmsprop: centred
    learning_rate: float = 5e-5
    optimizer_epsilon: float = 0.01 / 32  # outside Adam's root, inside RMSProp's
    rmsprop_decay: float = 0.95  # of the gradient's and of its square's average
    max_gradient_norm: float = 0.0  # 0: not clipped

    epsilon_initial: float = 1.0
    epsilon_final: float = 0.01
    epsilon_steps: int = 62_500  # updates from one to the other: 250,000 actions, an update for each four

    replay: Literal["uniform", "prioritized"] = "uniform"
    replay_size: int = 1_000_000
    min_replay_size: int = 20_000  # before the first update; played with epsilon_initial
    samples_per_insert: float = 8.0  # a quarter of batch_size: an update for each four actions
    priority: Literal["proportional", "rank"] = "proportional"  # to the error, or to 1 / its rank among all
    priority_exponent: float = 0.6  # alpha of that paper
    uniform_fraction: float = 0.0  # of samples, drawn from all items alike
    importance_exponent: float = 0.4  # beta, at first
    importance_steps: int = 12_500_000  # updates until beta has risen to 1: 200 million frames; 0: it stays
    normalize_weights: bool = True  # divides them by the batch's largest

    def __post_init__(self):
        action_values.check(self, positive=("tau",), fractions=("alpha",))
        if self.l_0 > 0:
            raise ValueError(f"config.l_0 must be 0 or less, not {self.l_0}")


def scaled_log_policy(q: chex.Array, tau: float) -> chex.Array:
    """tau log pi(a|s), pi = softmax(q / tau), of all actions, [B, A]; also where pi(a|s) is next to 0."""
    return tau * jax.nn.log_softmax(q / tau)


def target(config: Config, q: chex.Array, a: chex.Array, reward, discount, q_next: chex.Array, selector) -> chex.Array:
    """r + alpha [tau log pi(a|s)]_{l_0}^0 + gamma sum_a' pi(a'|s') (q(s', a') - tau log pi(a'|s')), [B].

    Args:
      config: the agent's.
      q: the target network's q(s, .), [B, A].
      a: int32 [B].
      reward: of n steps, [B].
      discount: gamma^n, or 0 where s' is terminal, [B].
      q_next: the target network's q(s', .), [B, A].
      selector: of which pi at s' is the softmax, [B, A]; the same unless `double`.
    """
    bonus = jnp.clip(at(scaled_log_policy(q, config.tau), a), config.l_0, 0.0)
    tau_log_pi = scaled_log_policy(selector, config.tau)
    soft_value = jnp.sum(jax.nn.softmax(selector / config.tau) * (q_next - tau_log_pi), axis=-1)
    return reward + config.alpha * bonus + discount * soft_value


def functions(config: Config, spec: EnvironmentSpec) -> Functions:
    """What acting and learning are made of.

    Raises:
      ValueError: continuous actions, or a network that does not fit the observation.
    """
    network = action_values.make_network(config, discrete_actions("munchausen_dqn", spec))

    def losses(params, target_params, key, transition: Transition) -> Losses:
        import rlax  # here, not above: where TensorFlow is installed it takes seconds

        s, a, reward, discount, s_next = transition
        q_next = network.outputs(target_params, key, s_next)
        selector = network.outputs(params, key, s_next) if config.double else q_next
        y = target(config, network.outputs(target_params, key, s), a, reward, discount, q_next, selector)
        chosen = at(network.outputs(params, key, s), a)
        errors = jax.lax.stop_gradient(y) - chosen
        return Losses(rlax.huber_loss(errors) if config.loss == "huber" else rlax.l2_loss(errors), errors, chosen, {})

    return action_values.functions(config, spec, Values(network.init, network.outputs, losses))


def make(config: Config, spec: EnvironmentSpec) -> Agent:
    """The agent for environments of `spec`.

    Raises:
      ValueError: continuous actions, or a network that does not fit the observation.
    """
    return action_values.make_agent(config, functions(config, spec))
