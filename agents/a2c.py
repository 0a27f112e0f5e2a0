"""A2C: the advantage actor-critic, which makes A3C's update from many environments at once.

Mnih et al. 2016, https://arxiv.org/abs/1602.01783, section 4 and algorithm S3. Advantages are GAE(lambda)'s
(Schulman et al. 2016, https://arxiv.org/abs/1506.02438); with a lambda of 1 they come from the paper's n-step return.

Deviations: the paper's workers apply their gradients one by one, while here the gradients of `batch_size` environments
are averaged; the gradient's norm is clipped; advantages may be normalised; experience may be a few updates old, and
nothing corrects for that. A continuous policy's sigma is a parameter of its own by default, while in the paper it
depends on the state. A row that closes an episode, whose action the environment throws away, is not a transition, and
nothing is learnt from it.
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from agents.agent import Agent, Blocks, EnvironmentSpec, Feedback, Sample, TimeStep, check_ranges, pmean, queue_table
from agents.parts import normalizer, reward_scale
from agents.parts.advantages import explained_variance, gae, normalize
from agents.parts.optimization import check_decay, descend, initial_hypers, learning_rate_of, make_optimizer
from agents.parts.policy_network import Memory, functions


@dataclasses.dataclass(frozen=True)
class Config:
    """The defaults are the paper's Atari settings (section 8 of its supplement)."""

    torso: Literal["mlp", "shallow", "nature", "residual"] = "shallow"
    frame_stack: int = 4  # newest frames of the episode that the network sees at once; 1 if observations are not frames
    hidden_sizes: tuple[int, ...] = (64, 64)  # layer sizes of the mlp torso
    activation: Literal["tanh", "relu"] = "tanh"  # the mlp torso's
    lstm_size: int = 0  # units of the LSTM; 0: there is none
    lstm_previous: bool = False  # the LSTM also sees the last action and reward
    separate_value: bool = False  # the value has a torso of its own
    dtype: Literal["float32", "bfloat16"] = "float32"  # type of the network's arithmetic; parameters stay float32
    sigma: Literal["free", "state"] = "free"  # continuous actions: sigma is a parameter (free) or a network output
    sigma_initial: float = 1.0  # the first sigma, on the scale where an action's bounds are -1 and 1
    squash: bool = False  # tanh brings continuous actions into their bounds; False: they are clipped

    unroll_length: int = 5  # t_max
    batch_size: int = 16  # environments in one update
    discount: float = 0.99  # gamma
    reward_scale: float = 1.0  # a factor of all rewards; values far from 1 are slow to learn
    normalize_rewards: bool = False  # divides rewards by the running std of discounted returns, before reward_scale
    lambda_: float = 1.0  # GAE's lambda; 1: n-step returns
    normalize_advantages: bool = False  # brings advantages to mean 0 and variance 1 over the batch
    baseline_cost: float = 0.5
    entropy_cost: float = 0.01  # beta

    optimizer: Literal["rmsprop", "adam"] = "rmsprop"
    learning_rate: float = 7e-4  # eta
    epsilon: float = 0.1  # inside RMSProp's square root, outside Adam's
    rmsprop_decay: float = 0.99  # alpha
    max_gradient_norm: float = 40.0  # the gradient, summed over time, is clipped to this norm
    warmup_env_steps: int = 0  # environment steps in which the learning rate first rises linearly from 0; 0: none
    decay_env_steps: int = 0  # environment steps after which the learning rate has fallen to 0; 0: it stays constant
    decay: Literal["linear", "cosine"] = "linear"  # the shape of that fall

    queue_batches: int = 1  # batches that may wait in the queue; with more, experience is older

    def __post_init__(self):
        check_ranges(
            self,
            counts=("frame_stack", "unroll_length", "batch_size", "queue_batches"),
            positive=("learning_rate", "epsilon", "max_gradient_norm", "reward_scale", "sigma_initial"),
            not_negative=("lstm_size", "baseline_cost", "entropy_cost", "decay_env_steps", "warmup_env_steps"),
            fractions=("discount", "lambda_", "rmsprop_decay"),
        )
        check_decay(self)


class Hypers(NamedTuple):
    """The hyperparameters that a population may tune while the learner runs; float32 scalars."""

    learning_rate: Any
    discount: Any
    lambda_: Any
    baseline_cost: Any
    entropy_cost: Any


class State(NamedTuple):
    params: Any  # theta and theta_v
    opt_state: optax.OptState
    returns: Any  # statistics of discounted returns, or () where rewards are not normalised
    hypers: Hypers
    step: chex.Array  # updates so far, int32
    env_steps: chex.Array  # float32, the run's environment steps so far; the learner sets it before each update


class Gradient(NamedTuple):
    """The result of `gradient` on a sample, which `apply` takes."""

    params: Any  # the gradient of the loss with respect to the parameters
    returns: Any  # statistics of the sample's discounted returns, or () where rewards are not normalised


def make(config: Config, spec: EnvironmentSpec) -> Agent:
    """Returns the agent for environments of `spec`.

    Raises:
      ValueError: if the network does not fit the observation or the LSTM's settings, or if an action has no bounds.
    """
    f = functions("a2c", config, spec, config.separate_value)
    policy = f.policy
    # "Shared RMSProp" (section 4): the learner alone averages squared gradients, and it does not subtract the mean.
    optimizer = make_optimizer(config.optimizer, config.epsilon, config.rmsprop_decay, config.max_gradient_norm)

    def init(key: jax.Array) -> State:
        params = f.init(key)
        hypers = initial_hypers(Hypers, config)
        returns = reward_scale.init(config)
        return State(params, optimizer.init(params), returns, hypers, jnp.int32(0), jnp.float32(0))

    def act(params, key: jax.Array, timestep: TimeStep, memory: Memory):
        outputs, memory = f.outputs(params, timestep, memory)
        raw = policy.sample(key, outputs)
        return f.play(raw, timestep, memory)

    def act_greedily(params, key: jax.Array, timestep: TimeStep, memory: Memory):
        del key
        outputs, memory = f.outputs(params, timestep, memory)
        action, _, memory = f.play(policy.mode(outputs), timestep, memory)
        return action, {}, memory

    def loss(params, state: State, sample: Sample):
        steps, hypers = sample.steps, state.hypers
        outputs, values = f.unroll(params, steps, sample.memory)
        pi, actions, V, live = outputs[:-1], policy.kept(steps)[:-1], values[:-1], steps.live
        rewards = config.reward_scale * reward_scale.scaled(state.returns, steps.reward[:-1])
        discounts = hypers.discount * steps.discount[:-1]
        advantages = jax.lax.stop_gradient(gae(values, rewards, discounts, live, hypers.lambda_))
        R = advantages + jax.lax.stop_gradient(V)
        if config.normalize_advantages:
            advantages = normalize(advantages, live)

        policy_loss = -jnp.mean(advantages * policy.log_prob(pi, actions))
        baseline_loss = 0.5 * jnp.mean(live * jnp.square(R - V))
        entropy = jnp.mean(live * policy.entropy(pi))
        total = policy_loss + hypers.baseline_cost * baseline_loss - hypers.entropy_cost * entropy

        metrics = {
            "loss": total,
            "policy_loss": policy_loss,
            "baseline_loss": baseline_loss,
            "entropy": entropy / jnp.maximum(live.mean(), 1e-6),  # a mean over transitions alone
            "value": values.mean(),
            "explained_variance": explained_variance(R - V, R),
        }
        # A worker of the paper sums over time. Environments take the workers' place here, and are averaged.
        return total * config.unroll_length, metrics

    def gradient(state: State, key: jax.Array, sample: Sample) -> tuple[Gradient, Feedback]:
        del key
        g, metrics = jax.grad(loss, has_aux=True)(state.params, state, sample)
        metrics |= {"gradient_norm": optax.tree.norm(pmean(g)), "learning_rate": learning_rate_of(config, state)}
        return Gradient(g, reward_scale.seen(config, sample.steps)), Feedback(metrics)

    def apply(state: State, gradient: Gradient) -> State:
        eta = learning_rate_of(config, state)
        params, opt_state = descend(optimizer, gradient.params, state.opt_state, state.params, eta)
        returns = normalizer.join(state.returns, gradient.returns)
        return state._replace(params=params, opt_state=opt_state, returns=returns, step=state.step + 1)

    def update(state: State, key: jax.Array, sample: Sample) -> tuple[State, Feedback]:
        g, feedback = pmean(gradient(state, key, sample))
        return apply(state, g), feedback

    return Agent(
        init=init,
        policy=lambda state: state.params,
        memory=f.memory,
        acted=f.acted,
        act=act,
        act_greedily=act_greedily,
        update=update,
        table=queue_table(config, Blocks(config.unroll_length)),
        batch_size=config.batch_size,
        gradient=gradient,
        apply=apply,
    )
