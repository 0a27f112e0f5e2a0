"""IMPALA: an actor-critic that learns off-policy from many actors by V-trace.

Espeholt et al. 2018, https://arxiv.org/abs/1802.01561; section numbers below are that paper's.

Deviations: the LSTM sees the last action and reward only with `lstm_previous` (the paper's LSTM sees them on DMLab);
lambda is that of Remark 2, and is 1 in the paper's experiments; there are continuous actions, with a Gaussian policy. A
row that closes an episode, whose action the environment throws away, is not a transition: nothing is learnt from it,
and no return or trace crosses it.
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from agents.agent import Agent, Blocks, EnvironmentSpec, Feedback, Sample, TimeStep, check_ranges, pmean, queue_table
from agents.parts import normalizer, reward_scale
from agents.parts.advantages import explained_variance
from agents.parts.optimization import check_decay, descend, initial_hypers, learning_rate_of, make_optimizer
from agents.parts.policy_network import Memory, functions


@dataclasses.dataclass(frozen=True)
class Config:
    """The defaults are the paper's Atari settings (table G.1)."""

    torso: Literal["mlp", "shallow", "nature", "residual"] = "nature"
    frame_stack: int = 4  # newest frames of the episode that the network sees at once; 1 if observations are not frames
    hidden_sizes: tuple[int, ...] = (64, 64)  # layer sizes of the mlp torso
    activation: Literal["tanh", "relu"] = "tanh"  # the mlp torso's
    lstm_size: int = 0  # units of the LSTM; 0: there is none
    lstm_previous: bool = False  # the LSTM also sees the last action and reward
    dtype: Literal["float32", "bfloat16"] = "float32"  # type of the network's arithmetic; parameters stay float32
    sigma: Literal["free", "state"] = "free"  # continuous actions: sigma is a parameter (free) or a network output
    sigma_initial: float = 1.0  # the first sigma, on the scale where an action's bounds are -1 and 1
    squash: bool = False  # tanh brings continuous actions into their bounds; False: they are clipped

    unroll_length: int = 20  # T
    batch_size: int = 32  # B, sequences in one update
    discount: float = 0.99  # gamma
    reward_scale: float = 1.0  # a factor of all rewards; values far from 1 are slow to learn
    normalize_rewards: bool = False  # divides rewards by the running std of discounted returns, before reward_scale
    rho_bar: float = 1.0  # truncation level of V-trace's rho
    policy_rho_bar: float = 1.0  # truncation level of rho in the policy gradient
    c_bar: float = 1.0  # truncation level of V-trace's c, at most rho_bar
    lambda_: float = 1.0
    baseline_cost: float = 0.5
    entropy_cost: float = 0.01

    optimizer: Literal["rmsprop", "adam"] = "rmsprop"
    learning_rate: float = 6e-4
    epsilon: float = 0.01  # inside RMSProp's square root, outside Adam's
    rmsprop_decay: float = 0.99
    rmsprop_momentum: float = 0.0
    rmsprop_initial: float = 0.0  # RMSProp's first averages of squares; 1 in TensorFlow, which the paper's code uses
    max_gradient_norm: float = 40.0  # the gradient, summed over time and batch, is clipped to this norm
    warmup_env_steps: int = 0  # environment steps in which the learning rate first rises linearly from 0; 0: none
    decay_env_steps: int = 0  # environment steps after which the learning rate has fallen to 0; 0: it stays constant
    decay: Literal["linear", "cosine"] = "linear"  # the shape of that fall

    queue_batches: int = 1  # batches that may wait in the queue; with more, experience is older

    def __post_init__(self):
        check_ranges(
            self,
            counts=("frame_stack", "unroll_length", "batch_size", "queue_batches"),
            positive=(
                *("learning_rate", "epsilon", "rho_bar", "policy_rho_bar", "c_bar", "max_gradient_norm"),
                *("reward_scale", "sigma_initial"),
            ),
            not_negative=(
                *("lstm_size", "baseline_cost", "entropy_cost", "rmsprop_initial"),
                *("decay_env_steps", "warmup_env_steps"),
            ),
            fractions=("discount", "lambda_", "rmsprop_decay", "rmsprop_momentum"),
            not_above={"c_bar": "rho_bar"},  # section 4.1
        )
        check_decay(self)


class Hypers(NamedTuple):
    """The hyperparameters that a population may tune while the learner runs; float32 scalars."""

    learning_rate: Any
    discount: Any
    baseline_cost: Any
    entropy_cost: Any


class State(NamedTuple):
    params: Any
    opt_state: optax.OptState
    returns: Any  # statistics of discounted returns, or () where rewards are not normalised
    hypers: Hypers
    step: chex.Array  # updates so far, int32
    env_steps: chex.Array  # float32, the run's environment steps so far; the learner sets it before each update


class VTrace(NamedTuple):
    targets: chex.Array  # v_s, [T, B]
    advantages: chex.Array  # rho_s (r_s + gamma_s v_{s+1} - V(x_s)), [T, B]
    rhos: chex.Array  # min(rho-bar, pi / mu), [T, B]


def vtrace(
    values: chex.Array,
    rewards: chex.Array,
    discounts: chex.Array,
    log_ratios: chex.Array,
    live: chex.Array,
    rho_bar: float = 1.0,
    c_bar: float = 1.0,
    lambda_: float = 1.0,
    policy_rho_bar: float = 1.0,
) -> VTrace:
    """Computes V-trace targets (section 4.1, eq. 1 and Remark 1) and policy-gradient advantages (section 4.2).

    Args:
      values: V(x_0) .. V(x_T), float32 [T+1, B].
      rewards: r_s, which arrived with x_{s+1}, [T, B].
      discounts: gamma_s, 0 where x_{s+1} is terminal, [T, B].
      log_ratios: log pi(a_s | x_s) - log mu(a_s | x_s), [T, B].
      live: 1 where row s is a transition, 0 where its action was thrown away, [T, B].
      rho_bar, c_bar, lambda_: truncation levels, and lambda in c_i = lambda min(c_bar, ratio) (Remark 2).
      policy_rho_bar: the truncation level of the advantages' rho alone.

    Returns:
      A VTrace, through which no gradient passes. A row that is not live has its own value as target and advantage 0.
    """
    ratios = jnp.where(live > 0, jnp.exp(log_ratios), 0.0)  # 0 where not live: no error, and no trace across
    rhos = jnp.minimum(rho_bar, ratios)
    cs = lambda_ * jnp.minimum(c_bar, ratios)
    deltas = rhos * (rewards + discounts * values[1:] - values[:-1])

    def backwards(correction, row):
        delta, discount, c = row
        correction = delta + discount * c * correction  # v_s - V(x_s)
        return correction, correction

    _, corrections = jax.lax.scan(backwards, jnp.zeros_like(values[-1]), (deltas, discounts, cs), reverse=True)
    targets = jnp.concatenate([values[:-1] + corrections, values[-1:]])
    advantages = jnp.minimum(policy_rho_bar, ratios) * (rewards + discounts * targets[1:] - values[:-1])
    return jax.lax.stop_gradient(VTrace(targets[:-1], advantages, rhos))


def make(config: Config, spec: EnvironmentSpec) -> Agent:
    """Returns the agent for environments of `spec`.

    Raises:
      ValueError: if the network does not fit the observation or the LSTM's settings, or if an action has no bounds.
    """
    f = functions("impala", config, spec)
    policy = f.policy
    optimizer = make_optimizer(
        config.optimizer,
        config.epsilon,
        config.rmsprop_decay,
        config.max_gradient_norm,
        momentum=config.rmsprop_momentum,
        initial=config.rmsprop_initial,
    )
    steps_per_update = config.unroll_length * config.batch_size

    def init(key: jax.Array) -> State:
        params = f.init(key)
        hypers = initial_hypers(Hypers, config)
        returns = reward_scale.init(config)
        return State(params, optimizer.init(params), returns, hypers, jnp.int32(0), jnp.float32(0))

    def act(params, key: jax.Array, timestep: TimeStep, memory: Memory):
        outputs, memory = f.outputs(params, timestep, memory)
        raw = policy.sample(key, outputs)
        action, extras, memory = f.play(raw, timestep, memory)
        return action, extras | {"outputs": outputs}, memory

    def act_greedily(params, key: jax.Array, timestep: TimeStep, memory: Memory):
        del key
        outputs, memory = f.outputs(params, timestep, memory)
        action, _, memory = f.play(policy.mode(outputs), timestep, memory)
        return action, {}, memory

    def loss(params, state: State, sample: Sample):
        steps, hypers = sample.steps, state.hypers
        outputs, values = f.unroll(params, steps, sample.memory)
        pi, mu, actions = outputs[:-1], steps.extras["outputs"][:-1], policy.kept(steps)[:-1]
        live, log_pi = steps.live, policy.log_prob(pi, actions)

        v = vtrace(
            jax.lax.stop_gradient(values),
            config.reward_scale * reward_scale.scaled(state.returns, steps.reward[:-1]),
            hypers.discount * steps.discount[:-1],
            jax.lax.stop_gradient(log_pi) - policy.log_prob(mu, actions),
            live,
            config.rho_bar,
            config.c_bar,
            config.lambda_,
            config.policy_rho_bar,
        )
        policy_loss = -jnp.mean(v.advantages * log_pi)
        entropy = jnp.mean(live * policy.entropy(pi))
        baseline_loss = 0.5 * jnp.mean(live * jnp.square(v.targets - values[:-1]))
        total = policy_loss + hypers.baseline_cost * baseline_loss - hypers.entropy_cost * entropy
        live_fraction = jnp.maximum(live.mean(), 1e-6)  # metrics are means over transitions alone
        metrics = {
            "loss": total,
            "policy_loss": policy_loss,
            "baseline_loss": baseline_loss,
            "entropy": entropy / live_fraction,
            "value": values.mean(),
            "explained_variance": explained_variance(v.targets - values[:-1], v.targets),
            "rho": v.rhos.mean() / live_fraction,
        }
        # The paper sums over time and batch: a mean times the batch's size, on any number of devices. Learner hosts,
        # if there are several, have a batch each and take the mean of their sums.
        return total * steps_per_update, metrics

    def update(state: State, key: jax.Array, sample: Sample) -> tuple[State, Feedback]:
        del key
        gradient, metrics = pmean(jax.grad(loss, has_aux=True)(state.params, state, sample))
        learning_rate = learning_rate_of(config, state)
        params, opt_state = descend(optimizer, gradient, state.opt_state, state.params, learning_rate)
        metrics |= {"gradient_norm": optax.tree.norm(gradient), "learning_rate": learning_rate}
        returns = normalizer.join(state.returns, reward_scale.seen(config, sample.steps))
        return state._replace(params=params, opt_state=opt_state, returns=returns, step=state.step + 1), Feedback(
            metrics
        )

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
    )
