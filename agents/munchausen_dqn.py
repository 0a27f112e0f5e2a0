"""Munchausen DQN: the logarithm of the policy is added to the reward, and the next state's value is a soft value.

Vieillard et al. 2020, https://arxiv.org/abs/2007.14430, whose names are used here: M-DQN is its equation 2.

Deviations: many environments are played at once, by parameters that may be some updates old; epsilon falls with
updates, not with frames. With n-step targets, the logarithm of the policy is added to the first of the n rewards alone.
With `double`, the policy at the next state is the online network's. Dueling and prioritised replay are as in
agents/dqn.py. n-step targets, `double`, dueling and prioritised replay are off by default.
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
    """The defaults are the paper's Atari settings, DQN's where it has none, and for prioritised replay that paper's."""

    torso: Literal["mlp", "shallow", "nature", "residual"] = "nature"
    frame_stack: int = 4  # newest frames of the episode that the network sees at once; 1 if observations are not frames
    hidden_sizes: tuple[int, ...] = (128, 128)  # layer sizes of the mlp torso
    activation: Literal["tanh", "relu"] = "relu"  # the mlp torso's
    dtype: Literal["float32", "bfloat16"] = "float32"  # type of the network's arithmetic; parameters stay float32
    dueling: bool = False  # separate streams for the value and the advantages
    head_size: int = 0  # hidden units of each stream, in place of a convolutional torso's dense layer; 0: none

    alpha: float = 0.9  # the factor of tau log pi, which is added to the reward
    tau: float = 0.03  # the policy's temperature
    l_0: float = -1.0  # the lower bound to which tau log pi is clipped

    double: bool = False  # the policy in the target is the online network's
    loss: Literal["huber", "squared"] = "huber"  # huber: its gradient is the error clipped to [-1, 1]
    n_step: int = 1
    discount: float = 0.99  # gamma
    batch_size: int = 32
    target_period: int = 2_000  # updates from one copy of the target parameters to the next: 8,000 actions

    optimizer: Literal["rmsprop", "adam"] = "adam"  # rmsprop is the centred variant
    learning_rate: float = 5e-5
    optimizer_epsilon: float = 0.01 / 32  # outside Adam's square root, inside RMSProp's
    rmsprop_decay: float = 0.95  # of the running averages of the gradient and of its square
    max_gradient_norm: float = 0.0  # the gradient is clipped to this norm; 0: it is not clipped

    epsilon_initial: float = 1.0
    epsilon_final: float = 0.01
    epsilon_steps: int = 62_500  # updates from initial to final: 250,000 actions, four for each update

    replay: Literal["uniform", "prioritized"] = "uniform"
    replay_size: int = 1_000_000
    min_replay_size: int = 20_000  # transitions before the first update, played with epsilon_initial
    samples_per_insert: float = 8.0  # samples per transition; batch_size / 4 makes an update for every four actions
    priority: Literal["proportional", "rank"] = "proportional"  # proportional to |error|, or to 1 / its rank
    priority_exponent: float = 0.6  # alpha: sampling is proportional to priority^alpha
    uniform_fraction: float = 0.0  # the share of samples that is drawn uniformly from all items
    importance_exponent: float = 0.4  # initial beta, the exponent of importance weights
    importance_steps: int = 12_500_000  # updates until beta has risen to 1 (200 million frames); 0: beta is constant
    normalize_weights: bool = True  # divides importance weights by the batch's largest

    def __post_init__(self):
        action_values.check(self, positive=("tau",), fractions=("alpha",))
        if self.l_0 > 0:
            raise ValueError(f"config.l_0 must be 0 or less, not {self.l_0}")


def scaled_log_policy(q: chex.Array, tau: float) -> chex.Array:
    """Returns tau log pi(a|s) of all actions, [B, A], with pi = softmax(q / tau); exact also where pi is nearly 0."""
    return tau * jax.nn.log_softmax(q / tau)


def target(config: Config, q: chex.Array, a: chex.Array, reward, discount, q_next: chex.Array, selector) -> chex.Array:
    """Returns r + alpha [tau log pi(a|s)]_{l_0}^0 + gamma sum_a' pi(a'|s') (q(s', a') - tau log pi(a'|s')), [B].

    Args:
      config: the agent's.
      q: the target network's q(s, .), [B, A].
      a: int32 [B].
      reward: the discounted sum of n rewards, [B].
      discount: gamma^n, or 0 where s' is terminal, [B].
      q_next: the target network's q(s', .), [B, A].
      selector: the values whose softmax is pi(.|s'), [B, A]: `q_next`, or with `double` the online network's values.
    """
    bonus = jnp.clip(at(scaled_log_policy(q, config.tau), a), config.l_0, 0.0)
    tau_log_pi = scaled_log_policy(selector, config.tau)
    soft_value = jnp.sum(jax.nn.softmax(selector / config.tau) * (q_next - tau_log_pi), axis=-1)
    return reward + config.alpha * bonus + discount * soft_value


def functions(config: Config, spec: EnvironmentSpec) -> Functions:
    """Makes the functions that acting and learning use.

    Raises:
      ValueError: if actions are not discrete, or if the network does not fit the observation.
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
    """Returns the agent for environments of `spec`.

    Raises:
      ValueError: if actions are not discrete, or if the network does not fit the observation.
    """
    return action_values.make_agent(config, functions(config, spec))
