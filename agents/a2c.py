"""A2C: the advantage actor-critic, A3C's update from many environments at once.

Mnih et al. 2016, https://arxiv.org/abs/1602.01783, section 4 and algorithm S3; advantages by GAE(lambda) (Schulman et
al. 2016, https://arxiv.org/abs/1506.02438), of which a lambda of 1 is the paper's n-step return.

Deviations: the paper's workers apply their gradients one by one, here those of `batch_size` environments are averaged;
the gradient's norm is clipped; advantages may be normalised; experience may be a few updates old, and nothing corrects
for it. A continuous policy's sigma is a parameter of its own by default (the paper: the state's). Rows whose action the
environment threw away (they close an episode) are no transitions and teach nothing.
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
    """The paper's Atari settings (section 8, of its supplement) by default."""

    torso: Literal["mlp", "shallow", "nature", "residual"] = "shallow"
    frame_stack: int = 4  # frames of its episode that the network sees at once; 1 where observations are no frames
    hidden_sizes: tuple[int, ...] = (64, 64)  # the mlp's
    activation: Literal["tanh", "relu"] = "tanh"  # the mlp's
    lstm_size: int = 0  # 0: feed-forward
    lstm_previous: bool = False  # the LSTM sees the last action and reward, too
    separate_value: bool = False  # the value has a torso of its own
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the network's arithmetic; parameters stay float32
    sigma: Literal["free", "state"] = "free"  # of continuous actions' Gaussian: a parameter, or the network's output
    sigma_initial: float = 1.0  # where an action's bounds are -1 and 1
    squash: bool = False  # tanh takes it into the bounds, which else clip it

    unroll_length: int = 5  # t_max
    batch_size: int = 16  # environments in one update
    discount: float = 0.99  # gamma
    reward_scale: float = 1.0  # multiplies rewards: values far from 1 are slow to learn
    normalize_rewards: bool = False  # divided by the running deviation of discounted returns, before reward_scale
    lambda_: float = 1.0  # of GAE; 1: n-step returns
    normalize_advantages: bool = False  # to mean 0 and variance 1 over the batch
    baseline_cost: float = 0.5
    entropy_cost: float = 0.01  # beta

    optimizer: Literal["rmsprop", "adam"] = "rmsprop"
    learning_rate: float = 7e-4  # eta
    epsilon: float = 0.1  # inside RMSProp's root, outside Adam's
    rmsprop_decay: float = 0.99  # alpha
    max_gradient_norm: float = 40.0  # of the gradient summed over time
    warmup_env_steps: int = 0  # the learning rate first rises linearly from 0 over so many environment steps
    decay_env_steps: int = 0  # it has fallen to 0 after so many environment steps; 0: constant
    decay: Literal["linear", "cosine"] = "linear"  # how it falls

    queue_batches: int = 1  # batches that may wait in the queue: more of them, more lag

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
    """What a population may tune in a running learner; float32 scalars."""

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
    env_steps: chex.Array  # float32, made so far, as the learner counts them: it says so before each update


class Gradient(NamedTuple):
    """What `apply` takes of a sample."""

    params: Any
    returns: Any  # the sample's statistics, or ()


def make(config: Config, spec: EnvironmentSpec) -> Agent:
    """The agent for environments of `spec`.

    Raises:
      ValueError: a network that does not fit the observation, or an action without bounds.
    """
    f = functions("a2c", config, spec, config.separate_value)
    policy = f.policy
    # "Shared RMSProp" (section 4): one average of squares, the learner's, without a mean.
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
            "entropy": entropy / jnp.maximum(live.mean(), 1e-6),  # over transitions alone
            "value": values.mean(),
            "explained_variance": explained_variance(R - V, R),
        }
        # The paper's worker sums over time; workers, here environments, are averaged.
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
