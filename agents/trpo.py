"""TRPO: the largest step along the natural gradient that a bound on the KL divergence between policies allows.

Schulman et al. 2015, https://arxiv.org/abs/1502.05477, "single path"; advantages by GAE(lambda) (Schulman et al. 2016,
https://arxiv.org/abs/1506.02438). Section and equation numbers below refer to the first paper.

theta_old are the policy's parameters before the update; the surrogate's improvement and the divergence are measured
from them. The policy that acted, which may be a few updates older, is the importance ratio's denominator (eq. 14's q).

Deviations: these two policies may differ; the Fisher matrix is damped, and uses the whole batch unless the config asks
for a part; advantages are normalised to mean 0 and variance 1; the value is fitted by Adam (in GAE's paper within a
trust region, too). A row that closes an episode, whose action the environment threw away, is not a transition, and the
agent does not learn from it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from agents.agent import Agent, Blocks, EnvironmentSpec, Feedback, Sample, TimeStep, check_ranges, pmean, queue_table
from agents.parts import normalizer, reward_scale
from agents.parts.advantages import gae
from agents.parts.optimization import descend, initial_hypers
from agents.parts.policies import Policy
from agents.parts.policy_network import Memory, functions


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings. delta and gamma are the paper's (section 8.1, appendix E); what it leaves open is our choice."""

    torso: Literal["mlp", "shallow", "nature", "residual"] = "mlp"
    frame_stack: int = 1  # newest frames of the episode that the network sees
    hidden_sizes: tuple[int, ...] = (64, 64)  # layer sizes of the mlp torso
    activation: Literal["tanh", "relu"] = "tanh"  # the mlp torso's
    sigma: Literal["free", "state"] = "free"  # continuous actions: sigma is a parameter (free) or a network output
    sigma_initial: float = 1.0  # the first sigma, on the scale where an action's bounds are -1 and 1
    squash: bool = False  # tanh brings continuous actions into their bounds; False: they are clipped
    normalize_observations: bool = False  # to mean 0 and variance 1, by running statistics
    normalize_rewards: bool = False  # divide by the running deviation of discounted returns, before reward_scale

    unroll_length: int = 128  # T, steps of each environment in one update
    batch_size: int = 16  # environments in one update
    discount: float = 0.99  # gamma
    reward_scale: float = 1.0  # multiplies rewards; values far from 1 are slow to learn
    lambda_: float = 0.97  # GAE's lambda

    delta: float = 0.01  # bound on the mean KL divergence between old and new policy in one update, in nats
    damping: float = 0.1  # added to the Fisher matrix's diagonal
    fisher_fraction: float = 1.0  # fraction of the batch's rows that the Fisher matrix averages over
    cg_iterations: int = 10  # most iterations of conjugate gradients
    backtracks: int = 10  # most shorter steps that the line search tries after the full one
    backtrack: float = 0.5  # each of these is the previous one times this

    value_learning_rate: float = 1e-3
    value_epochs: int = 5  # passes over a batch in one update
    value_minibatches: int = 16  # parts of the batch's rows in each pass

    queue_batches: int = 1  # batches that may wait in the queue; with more, experience is older

    # Constants, which the network's constructor reads but a user cannot set. The line search compares small differences
    # and needs float32. There is no LSTM, for the value has its own torso, so that neither part's step moves the other.
    lstm_size = 0
    lstm_previous = False
    dtype = "float32"

    def __post_init__(self):
        check_ranges(
            self,
            counts=(
                *("frame_stack", "unroll_length", "batch_size", "cg_iterations"),
                *("value_epochs", "value_minibatches", "queue_batches"),
            ),
            positive=("reward_scale", "sigma_initial", "delta", "fisher_fraction", "value_learning_rate"),
            not_negative=("damping", "backtracks"),
            fractions=("fisher_fraction", "discount", "lambda_", "backtrack"),
        )
        rows = self.batch_size * self.unroll_length
        if rows % self.value_minibatches:
            raise ValueError(
                f"config.value_minibatches={self.value_minibatches} does not divide a batch of {rows} rows"
            )


class Hypers(NamedTuple):
    """The hyperparameters that a population may tune while the learner runs; float32 scalars."""

    delta: Any
    damping: Any
    discount: Any
    lambda_: Any
    value_learning_rate: Any


class State(NamedTuple):
    params: Any  # theta, and the value's parameters
    opt_state: optax.OptState  # state of Adam, which fits the value
    normalizer: Any  # Normalizer, or () where observations are not normalised
    returns: Any  # statistics of discounted returns, or () where rewards are not normalised
    hypers: Hypers
    step: chex.Array  # updates so far, int32


class Params(NamedTuple):
    """The values that actors pull from the learner."""

    params: Any
    normalizer: Any  # as in State


class Search(NamedTuple):
    """The result of a line search."""

    params: Any
    size: chex.Array  # fraction of the full step; 0: no step was accepted, and params are the old ones
    improvement: chex.Array  # of the surrogate; 0 if no step was accepted
    kl: chex.Array  # mean KL(old || new), in nats; 0 if no step was accepted


def surrogate(policy: Policy, outputs: Any, actions: Any, log_mu: Any, advantages: Any, weights: Any) -> chex.Array:
    """Computes the weighted sum of pi / mu A (eq. 14), a scalar.

    Args:
      policy: the family of distributions.
      outputs: outputs of pi, [..., P].
      actions: raw actions, [...] or [..., n].
      log_mu: log-probabilities of the actions under the policy that acted, [...].
      advantages: A, [...].
      weights: weights of the sum, [...].
    """
    return jnp.sum(weights * jnp.exp(policy.log_prob(outputs, actions) - log_mu) * advantages)


def fisher(policy: Policy, outputs: Callable[[Any], Any], params: Any, weights: Any) -> Callable[[Any], Any]:
    """Returns v -> F v, for pytrees v like `params`, with F the Hessian of the mean KL(pi_params || pi) at pi_params.

    F = J^T M J (appendix C.1): J is the Jacobian of the policy's outputs, M the Hessian of the KL in these outputs. The
    Hessian has no other term, because the KL's gradient is 0 at pi_params.

    Args:
      policy: the family of distributions.
      outputs: params -> the policy's outputs on the batch, [..., P].
      params: theta_old.
      weights: weights of the mean, [...].
    """
    old, J = jax.linearize(outputs, params)
    J_transposed = jax.linear_transpose(J, params)
    slope = jax.grad(lambda new: jnp.sum(weights * policy.kl(old, new)))

    def product(v: Any) -> Any:
        _, MJv = jax.jvp(slope, (old,), (J(v),))
        (Fv,) = J_transposed(MJv)
        return pmean(Fv)

    return product


def spread_rows(T: int, B: int, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Chooses a fraction of the rows of a batch [T, B], rounded but at least one; returns their times and environments.

    The rows are spread evenly over the batch's environments laid end to end, because adjacent rows are nearly alike.
    """
    number = max(1, round(fraction * T * B))
    environments, times = np.divmod(np.arange(number) * (T * B) // number, T)
    return times, environments


def natural_step(product: Callable[[Any], Any], g: Any, delta: Any, damping: Any, iterations: int) -> Any:
    """Returns beta s, where s = F^-1 g by conjugate gradients, and beta makes the KL's quadratic model equal to delta.

    beta = sqrt(2 delta / s^T F s) (appendix C), with the damped F; `product` is v -> F v without damping.
    """

    def damped(v: Any) -> Any:
        return jax.tree.map(lambda Fv, v: Fv + damping * v, product(v), v)

    s, _ = jax.scipy.sparse.linalg.cg(damped, g, maxiter=iterations)
    curvature = optax.tree_utils.tree_vdot(s, damped(s))
    beta = jnp.where(curvature > 0.0, jnp.sqrt(2.0 * delta / jnp.where(curvature > 0.0, curvature, 1.0)), 0.0)
    return jax.tree.map(lambda s: beta * s, s)


def line_search(
    evaluate: Callable[[Any], tuple[Any, Any]], params: Any, step: Any, delta: Any, backtracks: int, backtrack: Any
) -> Search:
    """Finds params + backtrack^j step, for the least j up to `backtracks` where the surrogate improves and KL <= delta.

    Args:
      evaluate: params -> the surrogate's improvement over the old parameters, and the mean KL from them; scalars.
      params: the old parameters, which are returned if no step is accepted.
    """

    def attempt(found: tuple[Any, Search]) -> tuple[Any, Search]:
        j, _ = found
        size = jnp.asarray(backtrack, jnp.float32) ** j
        new = jax.tree.map(lambda p, s: p + size * s, params, step)
        improvement, kl = evaluate(new)
        accepted = jnp.isfinite(improvement) & (improvement > 0.0) & (kl <= delta)
        tried = Search(new, size, improvement, kl)
        return j + 1, jax.tree.map(lambda new, old: jnp.where(accepted, new, old), tried, none)

    none = Search(params, jnp.float32(0), jnp.float32(0), jnp.float32(0))
    _, found = jax.lax.while_loop(
        lambda found: (found[0] <= backtracks) & (found[1].size == 0.0), attempt, (jnp.int32(0), none)
    )
    return found


def make(config: Config, spec: EnvironmentSpec) -> Agent:
    """Makes the agent for environments of `spec`.

    Raises:
      ValueError: the network does not fit the observation, an action has no bounds, or frames are to be normalised.
    """
    f = functions("trpo", config, spec, separate_value=True)
    policy = f.policy
    if config.normalize_observations and config.torso != "mlp":
        raise ValueError("config.normalize_observations=True is for vectors: frames are scaled already, so give False")
    optimizer = optax.scale_by_adam(eps=1e-5)

    def init(key: jax.Array) -> State:
        params = f.init(key)
        return State(
            params=params,
            opt_state=optimizer.init(params),
            normalizer=normalizer.init(spec.observation_shape) if config.normalize_observations else (),
            returns=reward_scale.init(config),
            hypers=initial_hypers(Hypers, config),
            step=jnp.int32(0),
        )

    def scaled(statistics: Any, observation: Any) -> Any:
        return normalizer.apply(statistics, observation) if config.normalize_observations else observation

    def outputs_of(params: Params, timestep: TimeStep, memory: Memory):
        observation = scaled(params.normalizer, timestep.observation)
        return f.outputs(params.params, timestep._replace(observation=observation), memory)

    def act(params: Params, key: jax.Array, timestep: TimeStep, memory: Memory):
        outputs, memory = outputs_of(params, timestep, memory)
        raw = policy.sample(key, outputs)
        action, extras, memory = f.play(raw, timestep, memory)
        return action, extras | {"log_prob": policy.log_prob(outputs, raw)}, memory

    def act_greedily(params: Params, key: jax.Array, timestep: TimeStep, memory: Memory):
        del key
        outputs, memory = outputs_of(params, timestep, memory)
        action, _, memory = f.play(policy.mode(outputs), timestep, memory)
        return action, {}, memory

    def update(state: State, key: jax.Array, sample: Sample) -> tuple[State, Feedback]:
        # Conjugate gradients amplify rounding errors, so an accelerator's default lower precision does not do.
        with jax.default_matmul_precision("float32"):
            return precise_update(state, key, sample)

    def precise_update(state: State, key: jax.Array, sample: Sample) -> tuple[State, Feedback]:
        steps, hypers = sample.steps, state.hypers
        observation = scaled(state.normalizer, steps.observation)
        all_seen = f.see(steps._replace(observation=observation), sample.memory)
        old_outputs, values = f.heads(state.params, all_seen, steps.first, ())
        seen = jax.tree.map(lambda x: x[:-1], all_seen)
        first, old_outputs, V = steps.first[:-1], old_outputs[:-1], values[:-1]
        actions, log_mu, live = policy.kept(steps)[:-1], steps.extras["log_prob"][:-1], steps.live
        weights = live / jnp.maximum(pmean(live.sum()), 1.0)  # so that sums are means over transitions

        def mean(x: Any) -> chex.Array:
            return pmean(jnp.sum(weights * x))

        rewards = config.reward_scale * reward_scale.scaled(state.returns, steps.reward[:-1])
        discounts = hypers.discount * steps.discount[:-1]
        advantages = gae(values, rewards, discounts, live, hypers.lambda_)
        R = V + advantages
        centred = advantages - mean(advantages)
        A = centred / jnp.sqrt(mean(jnp.square(centred)) + 1e-8)

        # Step the policy: the surrogate's gradient, a natural step along it, and the line search.

        def outputs(params: Any) -> chex.Array:
            return f.heads(params, seen, first, ())[0]

        def L(params: Any) -> chex.Array:
            return surrogate(policy, outputs(params), actions, log_mu, A, weights)

        def evaluate(params: Any) -> tuple[chex.Array, chex.Array]:
            return pmean(L(params) - L_old), mean(policy.kl(old_outputs, outputs(params)))

        L_old, g = jax.value_and_grad(L)(state.params)
        g = pmean(g)
        product = fisher(policy, outputs, state.params, weights)
        if config.fisher_fraction < 1.0:  # a part of the rows is enough for the metric (appendix C)
            T, B = live.shape
            part = spread_rows(T, B, config.fisher_fraction)
            some, some_first, some_live = jax.tree.map(lambda x: x[part][None], (seen, first, live))
            some_weights = some_live / jnp.maximum(pmean(some_live.sum()), 1.0)
            product = fisher(
                policy, lambda params: f.heads(params, some, some_first, ())[0], state.params, some_weights
            )
        step = natural_step(product, g, hypers.delta, hypers.damping, config.cg_iterations)
        taken = line_search(evaluate, state.params, step, hypers.delta, config.backtracks, config.backtrack)

        # Fit the value to the returns R of the old value. The gradient and Adam's step are 0 for the policy's part.
        rows = jax.tree.map(lambda x: x.reshape(1, -1, *x.shape[2:]), (seen, first, R, live))
        size = max(1, live.size // config.value_minibatches)  # each of several devices has only its part of the batch

        def value_loss(params: Any, rows: Any) -> chex.Array:
            seen, first, R, live = rows
            _, V = f.heads(params, seen, first, ())
            return 0.5 * jnp.mean(live * jnp.square(R - V))

        def learn(carry: Any, index: Any) -> tuple[Any, Any]:
            params, opt_state = carry
            gradient = pmean(jax.grad(value_loss)(params, jax.tree.map(lambda x: x[:, index], rows)))
            return descend(optimizer, gradient, opt_state, params, hypers.value_learning_rate), None

        keys = jax.random.split(key, config.value_epochs)
        order = jax.vmap(lambda key: jax.random.permutation(key, live.size))(keys)
        order = order[:, : size * config.value_minibatches].reshape(-1, size)
        (params, opt_state), _ = jax.lax.scan(learn, (taken.params, state.opt_state), order)

        metrics = {
            "surrogate_improvement": taken.improvement,
            "kl": taken.kl,
            "step_size": taken.size,
            "gradient_norm": optax.tree.norm(g),
            "ratio_deviation": mean(jnp.abs(jnp.expm1(policy.log_prob(old_outputs, actions) - log_mu))),
            "entropy": mean(policy.entropy(old_outputs)),
            "value_loss": 0.5 * mean(jnp.square(advantages)),
            "value": mean(V),
            "explained_variance": 1.0 - mean(jnp.square(centred)) / (mean(jnp.square(R - mean(R))) + 1e-8),
        }
        # The new statistics hold from the next update on: within an update, theta_old and theta see the same inputs.
        observations = steps.observation[:-1].reshape(-1, *spec.observation_shape)
        statistics = normalizer.update(state.normalizer, observations)
        returns = normalizer.join(state.returns, reward_scale.seen(config, steps))
        return State(params, opt_state, statistics, returns, hypers, state.step + 1), Feedback(metrics)

    return Agent(
        init=init,
        policy=lambda state: Params(state.params, state.normalizer),
        memory=f.memory,
        act=act,
        act_greedily=act_greedily,
        update=update,
        table=queue_table(config, Blocks(config.unroll_length)),
        batch_size=config.batch_size,
    )
