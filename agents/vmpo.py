"""V-MPO: on-policy maximum a posteriori policy optimisation, which fits the policy to the better half of its actions.

Song et al. 2020, https://arxiv.org/abs/1909.12238, whose notation this file uses.

Deviations: advantages may be GAE's (Schulman et al. 2016, https://arxiv.org/abs/1506.02438); a lambda of 1 gives the
paper's n-step returns. Rewards may be normalised, where the paper uses PopArt. A batch may come from the target network
before the last one, so divergences are measured from the policy that acted. The multipliers are softplus of the numbers
that Adam steps. A row that closes an episode, whose action the environment threw away, is not a transition: the agent
does not learn from it, and it does not count when the better half is chosen.
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from agents.agent import (
    Agent,
    Blocks,
    BoundedActions,
    EnvironmentSpec,
    Feedback,
    Sample,
    TimeStep,
    all_rows,
    check_ranges,
    pmean,
    queue_table,
)
from agents.parts import normalizer, reward_scale
from agents.parts.advantages import explained_variance, gae
from agents.parts.multipliers import multiplier, parameter_of
from agents.parts.optimization import check_decay, initial_hypers, learning_rate_of, make_optimizer, minimize, new_every
from agents.parts.policy_network import Memory, functions


@dataclasses.dataclass(frozen=True)
class Config:
    torso: Literal["mlp", "shallow", "nature", "residual"] = "nature"
    frame_stack: int = 4  # newest frames of the episode that the network sees at once; 1 if observations are not frames
    hidden_sizes: tuple[int, ...] = (64, 64)  # layer sizes of the mlp torso
    activation: Literal["tanh", "relu"] = "tanh"  # the mlp torso's
    lstm_size: int = 0  # units of the LSTM; 0: there is none
    lstm_previous: bool = False  # the LSTM also sees the last action and reward
    separate_value: bool = False  # the value has a torso of its own
    dtype: Literal["float32", "bfloat16"] = "float32"  # type of the network's arithmetic; parameters stay float32
    sigma: Literal["free", "state"] = "state"  # continuous actions: sigma is a parameter (free) or a network output
    sigma_initial: float = 1.0  # the first sigma, on the scale where an action's bounds are -1 and 1
    squash: bool = False  # tanh brings continuous actions into their bounds; False: they are clipped

    unroll_length: int = 20  # n, steps of each environment in one update
    batch_size: int = 32  # sequences in one update
    discount: float = 0.99  # gamma
    lambda_: float = 1.0  # GAE's lambda
    reward_scale: float = 1.0  # multiplies rewards; values far from 1 are slow to learn
    normalize_rewards: bool = False  # divide by the running deviation of discounted returns, before reward_scale
    baseline_cost: float = 1.0  # weight of the value's loss

    top_fraction: float = 0.5  # fraction of transitions, by largest advantage, that the policy is fitted to
    epsilon_eta: float = 1e-2  # bound on the KL of their weights from uniform weights, in nats
    epsilon_alpha: float = 1e-2  # bound on the mean KL from the policy that acted, in nats; softmax policies only
    epsilon_mu: float = 1e-2  # Gaussian policies: the same bound for a change of the mean alone
    epsilon_sigma: float = 1e-4  # Gaussian policies: the bound for a change of the standard deviations alone
    eta: float = 1.0  # the initial temperature of the weights
    alpha: float = 5.0  # the initial multiplier of the KL from the policy that acted
    target_period: int = 10  # T_target, updates between copies of the network to the target network, which acts

    learning_rate: float = 1e-4
    dual_learning_rate: float = 1e-2  # for the multipliers eta and alpha
    adam_epsilon: float = 1e-8
    max_gradient_norm: float = 0.0  # the gradient is clipped to this norm; 0: it is not clipped
    warmup_env_steps: int = 0  # environment steps in which the learning rate first rises linearly from 0; 0: none
    decay_env_steps: int = 0  # environment steps after which the learning rate has fallen to 0; 0: it stays constant
    decay: Literal["linear", "cosine"] = "linear"  # the shape of that fall

    queue_batches: int = 1  # batches that may wait in the queue; with more, experience is older

    def __post_init__(self):
        check_ranges(
            self,
            counts=("frame_stack", "unroll_length", "batch_size", "target_period", "queue_batches"),
            positive=(
                *("sigma_initial", "reward_scale", "top_fraction", "eta", "alpha", "learning_rate", "adam_epsilon"),
                *("epsilon_eta", "epsilon_alpha", "epsilon_mu", "epsilon_sigma"),
            ),
            not_negative=(
                *("lstm_size", "baseline_cost", "dual_learning_rate", "max_gradient_norm"),
                *("decay_env_steps", "warmup_env_steps"),
            ),
            fractions=("discount", "lambda_", "top_fraction"),
        )
        check_decay(self)


class Hypers(NamedTuple):
    """The hyperparameters that a population may tune while the learner runs; float32 scalars."""

    learning_rate: Any
    dual_learning_rate: Any
    discount: Any
    lambda_: Any
    baseline_cost: Any
    epsilon_eta: Any
    epsilon_alpha: Any
    epsilon_mu: Any
    epsilon_sigma: Any


class Learnt(NamedTuple):
    """Parameters, or the learning rates of these parameters."""

    network: Any  # theta of the policy and phi of the value
    eta: Any  # float32 scalar; `multiplier` turns it into eta
    alphas: Any  # float32 [1], or for Gaussians [2] (mean, deviations); `multiplier` makes it alpha


class State(NamedTuple):
    params: Learnt
    target: Any  # theta_old, the network that acts
    opt_state: optax.OptState
    returns: Any  # statistics of discounted returns, or () where rewards are not normalised
    hypers: Hypers
    step: chex.Array  # updates so far, int32
    env_steps: chex.Array  # float32, the run's environment steps so far; the learner sets it before each update


class EStep(NamedTuple):
    loss: chex.Array  # the loss of eta, float32 scalar
    psi: chex.Array  # weights [T, B]; their sum, averaged over devices, is 1. No gradient passes through them
    kl: chex.Array  # KL of the weights from uniform weights over the better part, in nats


def e_step(eta: Any, advantages: Any, live: Any, fraction: float, epsilon: Any) -> EStep:
    """Computes weights psi of the better part of a batch's transitions, and the loss of their temperature (section 4).

    Args:
      eta: the temperature, scalar.
      advantages: A, float32 [T, B].
      live: 1 where a row is a transition, else 0, [T, B].
      fraction: share of the transitions in the better part, which also includes all ties with its least advantage.
      epsilon: epsilon_eta, the bound of eta's constraint, scalar.
    """
    A, alive = all_rows((advantages.reshape(-1), live.reshape(-1)))
    ranked = jnp.sort(jnp.where(alive > 0, -A, jnp.inf))  # the largest advantage first
    number = jnp.ceil(fraction * alive.sum()).astype(jnp.int32)
    least = -ranked[jnp.maximum(number, 1) - 1]
    better = jnp.where(alive.sum() > 0, alive * (least <= A), 1.0)  # no division by 0 if a batch has no transition
    log_mean = jax.nn.logsumexp(A / eta, b=better) - jnp.log(better.sum())

    def weights(advantages: Any, better: Any, number: Any) -> chex.Array:
        return jax.lax.stop_gradient(jnp.where(better > 0, jnp.exp(advantages / eta - log_mean) / number, 0.0))

    psi = weights(A, better, better.sum())
    kl = jnp.sum(jax.scipy.special.xlogy(psi, psi * better.sum()))
    number_here = better.sum() * advantages.size / A.size  # so that the mean over devices equals the sum over all
    return EStep(eta * (epsilon + log_mean), weights(advantages, live * (least <= advantages), number_here), kl)


def make(config: Config, spec: EnvironmentSpec) -> Agent:
    """Makes the agent for environments of `spec`.

    Raises:
      ValueError: the network does not fit the observation, or an action has no bounds.
    """
    f = functions("vmpo", config, spec, config.separate_value)
    policy, gaussian = f.policy, isinstance(spec.actions, BoundedActions)
    optimizer = make_optimizer("adam", config.adam_epsilon, max_gradient_norm=config.max_gradient_norm)

    def init(key: jax.Array) -> State:
        network = f.init(key)
        alphas = jnp.full(1 + gaussian, parameter_of(config.alpha))
        params = Learnt(network, parameter_of(config.eta), alphas)
        target = jax.tree.map(jnp.copy, network)  # copies, for an update may overwrite its input's buffers
        returns, hypers = reward_scale.init(config), initial_hypers(Hypers, config)
        return State(params, target, optimizer.init(params), returns, hypers, jnp.int32(0), jnp.float32(0))

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

    def loss(params: Learnt, state: State, sample: Sample):
        steps, hypers, live = sample.steps, state.hypers, sample.steps.live
        outputs, values = f.unroll(params.network, steps, sample.memory)
        pi, old, actions = outputs[:-1], steps.extras["outputs"][:-1], policy.kept(steps)[:-1]
        mean = live / jnp.maximum(pmean(live.mean()), 1e-6) / live.size  # so that sums are means over transitions

        V = jax.lax.stop_gradient(values)
        rewards = config.reward_scale * reward_scale.scaled(state.returns, steps.reward[:-1])
        advantages = gae(V, rewards, hypers.discount * steps.discount[:-1], live, hypers.lambda_)
        baseline_loss = 0.5 * jnp.sum(mean * jnp.square(advantages + V[:-1] - values[:-1]))

        found = e_step(multiplier(params.eta), advantages, live, config.top_fraction, hypers.epsilon_eta)
        policy_loss = -jnp.sum(found.psi * policy.log_prob(pi, actions))

        kls = jnp.stack([jnp.sum(mean * policy.kl(old, part)) for part in policy.decoupled(pi, old)])
        epsilons = (hypers.epsilon_mu, hypers.epsilon_sigma) if gaussian else (hypers.epsilon_alpha,)
        alphas, held = multiplier(params.alphas), jax.lax.stop_gradient
        alpha_loss = jnp.sum(alphas * (jnp.stack(epsilons) - held(kls)))
        total = policy_loss + found.loss + alpha_loss + jnp.sum(held(alphas) * kls)
        metrics = {
            "loss": total,
            "policy_loss": policy_loss,
            "baseline_loss": baseline_loss,
            "entropy": jnp.sum(mean * policy.entropy(pi)),
            "better_kl": found.kl,
            "value": values.mean(),
            "explained_variance": explained_variance(advantages, advantages + V[:-1]),
        }
        metrics |= dict(zip(("kl_mu", "kl_sigma") if gaussian else ("kl",), kls, strict=True))
        return total + hypers.baseline_cost * baseline_loss, metrics

    def update(state: State, key: jax.Array, sample: Sample) -> tuple[State, Feedback]:
        del key
        hypers, step, learning_rate = state.hypers, state.step + 1, learning_rate_of(config, state)
        rates = Learnt(learning_rate, hypers.dual_learning_rate, hypers.dual_learning_rate)
        learnt = minimize(loss, (state, sample), optimizer, state.params, state.opt_state, rates)
        metrics = pmean(learnt.aux) | {"gradient_norm": learnt.gradient_norm, "learning_rate": learning_rate}
        metrics |= {"eta": multiplier(state.params.eta), "alpha": multiplier(state.params.alphas[0])}
        state = state._replace(
            params=learnt.params,
            target=new_every(config.target_period, step, learnt.params.network, state.target),
            opt_state=learnt.opt_state,
            returns=normalizer.join(state.returns, reward_scale.seen(config, sample.steps)),
            step=step,
        )
        return state, Feedback(metrics)

    return Agent(
        init=init,
        policy=lambda state: state.target,
        memory=f.memory,
        acted=f.acted,
        act=act,
        act_greedily=act_greedily,
        update=update,
        table=queue_table(config, Blocks(config.unroll_length)),
        batch_size=config.batch_size,
    )
