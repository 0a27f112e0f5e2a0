"""PPO: several epochs of minibatches on each batch of experience, with clipping to stay near the policy that made it.

Schulman et al. 2017, https://arxiv.org/abs/1707.06347; advantages by GAE(lambda) (Schulman et al. 2016,
https://arxiv.org/abs/1506.02438). Section numbers below refer to the first paper.

Deviations, all common, and each a field of the config: advantages are normalised in each minibatch; the gradient's norm
is clipped; the learning rate falls, as the paper's does on Atari; observations and rewards may be normalised; value
errors may be clipped; an update may stop when its policy is too far from the one that acted. Actors may be one batch
behind, so the ratio's denominator is the policy that acted. A row that closes an episode, whose action the environment
threw away, is not a transition, and the agent does not learn from it.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from agents.agent import Agent, Blocks, EnvironmentSpec, Feedback, Sample, TimeStep, check_ranges, pmean, queue_table
from agents.parts import normalizer, reward_scale
from agents.parts.advantages import explained_variance, gae, normalize
from agents.parts.minibatches import check_minibatches, learn_in_minibatches
from agents.parts.normalizer import Normalizer
from agents.parts.optimization import check_decay, descend, initial_hypers, learning_rate_of, make_optimizer, remaining
from agents.parts.policies import Policy
from agents.parts.policy_network import Functions, Memory, functions


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings; by default the paper's for Atari (table 5)."""

    torso: Literal["mlp", "shallow", "nature", "residual"] = "nature"
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

    unroll_length: int = 128  # T, steps of each environment in one update
    batch_size: int = 8  # N, environments in one update
    epochs: int = 3  # K, passes over a batch in one update
    minibatches: int = 4  # parts of each pass; the batch's rows are split, or with an LSTM its environments
    clip_epsilon: float = 0.1  # the probability ratio is clipped to [1 - this, 1 + this]
    decay_clip: bool = True  # whether clip_epsilon decays with the learning rate; it has no warm-up
    discount: float = 0.99  # gamma
    lambda_: float = 0.95  # GAE's lambda
    baseline_cost: float = 1.0  # c_1, weight of the value's loss
    entropy_cost: float = 0.01  # c_2, weight of the entropy bonus
    clip_values: bool = False  # whether the value's loss, too, is clipped at changes of clip_epsilon
    max_kl: float = 0.0  # a minibatch with a larger mean KL is skipped, as are all later ones of the update; 0: never
    normalize_advantages: bool = True  # in each minibatch
    normalize_observations: bool = False  # by running statistics
    normalize_rewards: bool = False  # divide rewards by the running standard deviation of discounted returns

    learning_rate: float = 2.5e-4
    adam_epsilon: float = 1e-5
    max_gradient_norm: float = 0.5  # the gradient is clipped to this norm; 0: it is not clipped
    warmup_env_steps: int = 0  # environment steps in which the learning rate first rises linearly from 0; 0: none
    decay_env_steps: int = 0  # environment steps after which the learning rate has fallen to 0; 0: it stays constant
    decay: Literal["linear", "cosine"] = "linear"  # the shape of that fall

    queue_batches: int = 1  # batches that may wait in the queue; with more, experience is older

    def __post_init__(self):
        check(self)


def check(config: Any) -> None:
    """Raises ValueError, naming the field, if a field that PPO's Config has is out of range; PPO-RND calls it, too."""
    check_ranges(
        config,
        counts=("frame_stack", "unroll_length", "batch_size", "epochs", "minibatches", "queue_batches"),
        positive=("clip_epsilon", "learning_rate", "adam_epsilon", "sigma_initial"),
        not_negative=(
            *("lstm_size", "baseline_cost", "entropy_cost", "max_kl"),
            *("max_gradient_norm", "decay_env_steps", "warmup_env_steps"),
        ),
        fractions=("discount", "lambda_"),
    )
    check_decay(config)
    if config.lstm_size:
        check_minibatches(config, config.batch_size, "environments (with an LSTM)")
    else:
        check_minibatches(config, config.batch_size * config.unroll_length, "rows")


class Hypers(NamedTuple):
    """The hyperparameters that a population may tune while the learner runs; float32 scalars."""

    learning_rate: Any
    discount: Any
    lambda_: Any
    clip_epsilon: Any
    baseline_cost: Any
    entropy_cost: Any


class State(NamedTuple):
    params: Any  # theta
    opt_state: optax.OptState
    observations: Any  # Normalizer of observations, or () where they are not normalised
    returns: Any  # statistics of discounted returns, or () where rewards are not normalised
    hypers: Hypers
    step: chex.Array  # updates so far, int32
    env_steps: chex.Array  # float32, the run's environment steps so far; the learner sets it before each update


class Params(NamedTuple):
    """The values that actors pull from the learner."""

    params: Any
    observations: Any  # State.observations


class Rows(NamedTuple):
    """The rows of a batch or of a minibatch, [T, B, ...]."""

    seen: Any  # Seen, the network's inputs
    first: chex.Array
    action: Any
    log_prob: chex.Array  # log pi_old(a_t | s_t), of the policy that acted
    value: chex.Array  # V_old
    advantage: chex.Array
    target: chex.Array  # R_t, what the value is to predict
    live: chex.Array  # 1 for transitions, 0 for rows whose action was thrown away


def clipped_surrogate(log_ratios: chex.Array, advantages: chex.Array, epsilon: Any) -> chex.Array:
    """Computes min(r A, clip(r, 1 - epsilon, 1 + epsilon) A) elementwise, with r = pi / pi_old (section 3, eq. 7)."""
    ratios = jnp.exp(log_ratios)
    return jnp.minimum(ratios * advantages, jnp.clip(ratios, 1.0 - epsilon, 1.0 + epsilon) * advantages)


def scaled(observations: Any, x: Any) -> Any:
    """Normalises `x` by the statistics `observations` for the network; returns `x` itself if they are ()."""
    return normalizer.apply(observations, x) if isinstance(observations, Normalizer) else x


def objective(
    config: Any, policy: Policy, hypers: Any, rows: Rows, outputs: chex.Array, values: chex.Array
) -> tuple[chex.Array, dict[str, Any]]:
    """Computes the negative of eq. 9, which is to be minimised, and metrics; means are over a minibatch's transitions.

    `outputs` [T, B, P] of the policy and `values` V [T, B] of these rows come from the parameters that learn.
    """
    weights, advantages = rows.live / jnp.maximum(pmean(rows.live.mean()), 1e-6), rows.advantage
    if config.normalize_advantages:
        advantages = normalize(advantages, rows.live)

    log_ratios = policy.log_prob(outputs, rows.action) - rows.log_prob
    policy_loss = -jnp.mean(weights * clipped_surrogate(log_ratios, advantages, hypers.clip_epsilon))
    errors = jnp.square(rows.target - values)
    if config.clip_values:
        near = rows.value + jnp.clip(values - rows.value, -hypers.clip_epsilon, hypers.clip_epsilon)
        errors = jnp.maximum(errors, jnp.square(rows.target - near))
    baseline_loss = 0.5 * jnp.mean(weights * errors)
    entropy = jnp.mean(weights * policy.entropy(outputs))
    total = policy_loss + hypers.baseline_cost * baseline_loss - hypers.entropy_cost * entropy
    metrics = {
        "loss": total,
        "policy_loss": policy_loss,
        "baseline_loss": baseline_loss,
        "entropy": entropy,
        # KL(policy that acted || this one): k3 of http://joschu.net/blog/kl-approx.html, which is never negative.
        "kl": jnp.mean(weights * (jnp.expm1(log_ratios) - log_ratios)),
        "clipped": jnp.mean(weights * (jnp.abs(jnp.expm1(log_ratios)) > hypers.clip_epsilon)),
    }
    return total, metrics


def learn(
    config: Any,
    optimizer: optax.GradientTransformation,
    loss: Callable[..., Any],
    state: Any,
    key: jax.Array,
    rows,
    lstm,
) -> tuple[Any, dict[str, Any]]:
    """Runs an update's epochs of minibatches; returns the state after them and their metrics.

    Args:
      config: the agent's.
      optimizer: the agent's.
      loss: (params, hypers, a minibatch of rows, the LSTM's states before it, key) -> the loss, and metrics, of which
        "kl" may stop the update.
      state: the agent's State before the update.
      key: for the shuffling and for `loss`.
      rows: the batch, arrays [T, B, ...].
      lstm: the LSTM's state before the batch, [B, ...]; () without one.
    """
    if not config.lstm_size:  # all rows become one axis, to be shuffled one by one
        rows = jax.tree.map(lambda x: x.reshape(1, -1, *x.shape[2:]), rows)
    size = jax.tree.leaves(rows)[0].shape[1]
    eta = learning_rate_of(config, state)

    hypers = state.hypers
    if config.decay_clip:
        hypers = hypers._replace(clip_epsilon=hypers.clip_epsilon * remaining(config, state))

    def step(carry, drawn):
        """Takes one step, on the minibatch of the entries `index` of the batch axis."""
        (params, opt_state, stopped), (index, key) = carry, drawn
        minibatch = jax.tree.map(lambda x: x[:, index], rows)
        states = jax.tree.map(lambda x: x[index], lstm)
        gradient, metrics = pmean(jax.grad(loss, has_aux=True)(params, hypers, minibatch, states, key))
        after = descend(optimizer, gradient, opt_state, params, eta)
        if config.max_kl:
            stopped |= metrics["kl"] > config.max_kl
            after = jax.tree.map(lambda new, old: jnp.where(stopped, old, new), after, (params, opt_state))
        metrics |= {"gradient_norm": optax.tree.norm(gradient), "minibatches": 1.0 - stopped}
        return (*after, stopped), metrics

    carry = state.params, state.opt_state, jnp.asarray(False)
    (params, opt_state, _), metrics = learn_in_minibatches(config, key, size, step, carry)
    done, kl = metrics.pop("minibatches").sum(), metrics["kl"][-1]
    metrics = jax.tree.map(jnp.mean, metrics) | {"kl": kl, "minibatches": done, "learning_rate": eta}
    return state._replace(params=params, opt_state=opt_state, step=state.step + 1), metrics


def make_agent(config: Any, f: Functions, init: Any, policy: Any, update: Any) -> Agent:
    """Makes an agent that acts as PPO does, with the Params that `policy` computes from a State."""

    def outputs(params: Params, timestep: TimeStep, memory: Memory):
        seen = timestep._replace(observation=scaled(params.observations, timestep.observation))
        return f.outputs(params.params, seen, memory)

    def act(params: Params, key: jax.Array, timestep: TimeStep, memory: Memory):
        found, memory = outputs(params, timestep, memory)
        raw = f.policy.sample(key, found)
        action, extras, memory = f.play(raw, timestep, memory)
        return action, extras | {"log_prob": f.policy.log_prob(found, raw)}, memory

    def act_greedily(params: Params, key: jax.Array, timestep: TimeStep, memory: Memory):
        del key
        found, memory = outputs(params, timestep, memory)
        action, _, memory = f.play(f.policy.mode(found), timestep, memory)
        return action, {}, memory

    # Entries of a batch for each environment. With an LSTM, minibatches consist of whole environments; else of rows.
    rows = 1 if config.lstm_size else config.unroll_length
    return Agent(
        init=init,
        policy=policy,
        memory=f.memory,
        acted=f.acted,
        act=act,
        act_greedily=act_greedily,
        update=update,
        table=queue_table(config, Blocks(config.unroll_length)),
        batch_size=config.batch_size,
        share_multiple=config.minibatches // math.gcd(config.minibatches, rows),
    )


def make(config: Config, spec: EnvironmentSpec) -> Agent:
    """Makes the agent for environments of `spec`.

    Raises:
      ValueError: the network does not fit the observation, an action has no bounds, or frames are to be normalised.
    """
    f = functions("ppo", config, spec, config.separate_value)
    if config.normalize_observations and config.torso != "mlp":
        raise ValueError("config.normalize_observations=True is for vectors: frames are scaled already, so give False")
    optimizer = make_optimizer("adam", config.adam_epsilon, max_gradient_norm=config.max_gradient_norm)

    def init(key: jax.Array) -> State:
        params = f.init(key)
        return State(
            params=params,
            opt_state=optimizer.init(params),
            observations=normalizer.init(spec.observation_shape) if config.normalize_observations else (),
            returns=reward_scale.init(config),
            hypers=initial_hypers(Hypers, config),
            step=jnp.int32(0),
            env_steps=jnp.float32(0),
        )

    def loss(params, hypers: Hypers, rows: Rows, lstm, key: jax.Array):
        del key
        outputs, values = f.heads(params, rows.seen, rows.first, lstm)
        return objective(config, f.policy, hypers, rows, outputs, values)

    def update(state: State, key: jax.Array, sample: Sample) -> tuple[State, Feedback]:
        steps, hypers = sample.steps, state.hypers
        shown = steps._replace(observation=scaled(state.observations, steps.observation))
        seen, lstm = f.see(shown, sample.memory), sample.memory.lstm
        _, values = f.heads(state.params, seen, steps.first, lstm)
        live, rewards = steps.live, reward_scale.scaled(state.returns, steps.reward[:-1])
        advantages = gae(values, rewards, hypers.discount * steps.discount[:-1], live, hypers.lambda_)
        targets = advantages + values[:-1]
        rows = Rows(
            jax.tree.map(lambda x: x[:-1], seen),
            steps.first[:-1],
            f.policy.kept(steps)[:-1],
            steps.extras["log_prob"][:-1],
            values[:-1],
            advantages,
            targets,
            live,
        )
        metrics = {"value": values.mean(), "explained_variance": explained_variance(advantages, targets)}
        state, learning = learn(config, optimizer, loss, state, key, rows, lstm)

        # The new statistics hold from the next update on: the actors' log-probabilities are by the old ones.
        observation = steps.observation[:-1].reshape(-1, *spec.observation_shape)
        observations = normalizer.update(state.observations, observation)
        returns = normalizer.join(state.returns, reward_scale.seen(config, steps))
        return state._replace(observations=observations, returns=returns), Feedback(pmean(metrics) | learning)

    return make_agent(config, f, init, lambda state: Params(state.params, state.observations), update)
