"""SAC: soft actor-critic, an off-policy agent that maximises both the return and the entropy of its policy.

Haarnoja et al. 2018, https://arxiv.org/abs/1812.05905, whose notation this file uses, with its tuned temperature; the
first paper is https://arxiv.org/abs/1801.01290. Discrete actions: Christodoulou 2019, https://arxiv.org/abs/1910.07207.

Deviations: hidden layers start orthogonal and the policy's outputs near 0, so that its first actions cover the whole
range; there is no phase of uniformly random actions. sigma is kept within [1e-3, 10]. The temperature's step uses the
entropy that the policy's loss found. With discrete actions, targets move softly too, and there are no convolutions.
Beyond the papers: n-step returns (without the entropies in between), prioritised replay, normalised observations, a
policy that may step less often, and any number of critics, also as in REDQ (Chen et al. 2021, arXiv 2101.05982).
"""

import dataclasses
import math
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from agents.agent import (
    Agent,
    DiscreteActions,
    EnvironmentSpec,
    FactoredActions,
    Feedback,
    Sample,
    TimeStep,
    Transitions,
    check_ranges,
    pmean,
    replay_table,
)
from agents.parts import normalizer, prioritized
from agents.parts.exploration import from_bounds, unsuitable
from agents.parts.features import vector
from agents.parts.networks import MLP, ActionCritic, Ensemble
from agents.parts.optimization import due_every, initial_hypers, make_optimizer, minimize
from agents.parts.policies import make_policy


@dataclasses.dataclass(frozen=True)
class Config:
    hidden_sizes: tuple[int, ...] = (256, 256)  # of the policy and of each critic
    normalize_observations: bool = False  # by running statistics
    num_critics: int = 2  # their least value is used in targets and in the policy's loss
    target_critics: int = 0  # M > 0: targets use the least of M random ones, the policy's loss the mean of all (REDQ)

    n_step: int = 1  # steps of a target
    discount: float = 0.99  # gamma
    batch_size: int = 256  # transitions in one update
    policy_learning_rate: float = 3e-4
    critic_learning_rate: float = 3e-4
    alpha_learning_rate: float = 3e-4  # of log alpha; 0: the temperature is constant
    alpha: float = 1.0  # the initial temperature
    continuous_entropy: float = -1.0  # target entropy H with continuous actions, in nats per dimension of an action
    discrete_entropy: float = 0.98  # target entropy H with discrete actions, as a fraction of log |A|
    policy_period: int = 1  # critic updates for each update of the policy and of the temperature
    tau: float = 0.005  # fraction by which the target critics move towards the critics at each update

    replay: Literal["uniform", "prioritized"] = "uniform"
    replay_size: int = 1_000_000
    min_replay_size: int = 10_000  # items in the replay before the first update
    samples_per_insert: float = 256.0  # times each item is sampled, on average; batch_size: one update per step
    priority: Literal["proportional", "rank"] = "proportional"  # proportional to |error|, or to 1 / its rank
    priority_exponent: float = 0.6  # sampling is proportional to priority^priority_exponent
    uniform_fraction: float = 0.0  # the share of samples that is drawn uniformly from all items
    importance_exponent: float = 0.4  # initial beta, the exponent of importance weights
    importance_steps: int = 100_000  # updates until beta has risen to 1; 0: beta is constant

    def __post_init__(self):
        check_ranges(
            self,
            counts=("num_critics", "n_step", "batch_size", "policy_period", "replay_size", "min_replay_size"),
            positive=("policy_learning_rate", "critic_learning_rate", "alpha"),
            not_negative=(
                *("target_critics", "alpha_learning_rate"),
                *("samples_per_insert", "priority_exponent", "importance_steps"),
            ),
            fractions=("discount", "tau", "discrete_entropy", "uniform_fraction", "importance_exponent"),
            not_above={"target_critics": "num_critics", "min_replay_size": "replay_size"},
        )


class Hypers(NamedTuple):
    """The hyperparameters that a population may tune while the learner runs; float32 scalars."""

    policy_learning_rate: Any
    critic_learning_rate: Any
    alpha_learning_rate: Any
    tau: Any


class Learnt(NamedTuple):
    """Parameters, or the states of their optimisers."""

    policy: Any  # phi
    critic: Any  # theta_i, stacked: [num_critics, ...]
    log_alpha: Any  # float32, a scalar


class State(NamedTuple):
    params: Learnt
    target_critic: Any  # theta-bar_i
    opt_state: Learnt
    normalizer: Any  # Normalizer, or () where observations are not normalised
    max_priority: chex.Array  # float32, the largest priority so far
    hypers: Hypers
    step: chex.Array  # updates so far, int32


class Policy(NamedTuple):
    """The values that actors pull from the learner."""

    params: Any  # phi
    normalizer: Any  # as in State
    max_priority: chex.Array  # float32, the priority of new items


def make(config: Config, spec: EnvironmentSpec) -> Agent:
    """Makes the agent for environments of `spec`.

    Raises:
      ValueError: actions are factored or unbounded, or observations are frames.
    """
    if isinstance(spec.actions, FactoredActions):
        raise unsuitable("sac", "discrete or continuous", spec)
    bounds: Any = spec.actions
    discrete = isinstance(bounds, DiscreteActions)
    flat, family = vector("sac", spec).phi, make_policy("sac", spec, sigma="state", squash=True)
    size = family.num_outputs if discrete else family.num_outputs // 2  # number of actions, or of dimensions of one
    policy: Any = MLP(family.num_outputs, config.hidden_sizes, "relu")
    critic: Any = MLP(size, config.hidden_sizes, "relu") if discrete else ActionCritic(1, config.hidden_sizes)
    critics, M, optimizer = Ensemble(critic, config.num_critics), config.target_critics, make_optimizer("adam")
    target_entropy = config.discrete_entropy * math.log(size) if discrete else config.continuous_entropy * size

    def outputs(phi, observation) -> chex.Array:
        """Computes the outputs that define the distribution of actions: [B, ...] -> [B, num_outputs]."""
        return policy.apply(phi, flat(observation))

    def Q(theta, observation, action) -> chex.Array:
        """Computes each critic's values, [num_critics, B], of actions: int32 [B], or [B, ...] in [-1, 1]."""
        if discrete:
            return jnp.take_along_axis(critics.apply(theta, flat(observation)), action[None, :, None], axis=-1)[..., 0]
        return critics.apply(theta, flat(observation), action)[..., 0]

    def soft_value(phi, theta, alpha, key: jax.Array, observation, over_i=jnp.min) -> tuple[chex.Array, chex.Array]:
        """Computes E[min_i Q_i(s, a) - alpha log pi(a|s)] and the entropy E[-log pi(a|s)], [B] each: as sums over
        all actions, or from one sample of continuous ones, through which gradients pass. `over_i` stands for min_i."""
        x = outputs(phi, observation)
        if discrete:
            entropy = family.entropy(x)
            value = jnp.sum(jax.nn.softmax(x) * over_i(critics.apply(theta, flat(observation)), axis=0), axis=-1)
        else:
            raw = family.sample(key, x)
            entropy = -family.log_prob(x, raw)
            value = over_i(Q(theta, observation, jnp.tanh(raw)), axis=0)
        return value + alpha * entropy, entropy

    def critic_loss(theta, y, transition, weights):
        errors = y - Q(theta, transition.observation, transition.action)  # [num_critics, B]
        return jnp.mean(weights * jnp.square(errors).sum(axis=0)), errors

    def policy_loss(phi, theta, alpha, key: jax.Array, observation):
        value, entropy = soft_value(phi, theta, alpha, key, observation, jnp.mean if M else jnp.min)
        return -jnp.mean(value), jnp.mean(entropy)

    def temperature_loss(log_alpha, entropy):
        """Computes J(alpha) = E[-alpha log pi - alpha H]: alpha falls while the entropy is above its target H."""
        return jnp.exp(log_alpha) * (entropy - target_entropy), ()

    def init(key: jax.Array) -> State:
        policy_key, critic_key = jax.random.split(key)
        s = flat(jnp.zeros((1, *spec.observation_shape)))
        inputs = (s,) if discrete else (s, jnp.zeros((1, size)))
        log_alpha = jnp.float32(math.log(config.alpha))
        params = Learnt(policy.init(policy_key, s), critics.init(critic_key, *inputs), log_alpha)
        targets = jax.tree.map(jnp.copy, params.critic)  # copies, for an update may overwrite its input's buffers
        opt_state = Learnt(*map(optimizer.init, params))
        statistics = normalizer.init(spec.observation_shape) if config.normalize_observations else ()
        hypers = initial_hypers(Hypers, config)
        return State(params, targets, opt_state, statistics, jnp.float32(1), hypers, jnp.int32(0))

    def act(params: Policy, key: jax.Array, timestep: TimeStep, memory: Any):
        x = outputs(params.params, normalizer.apply(params.normalizer, timestep.observation))
        return family.to_environment(family.sample(key, x)), {}, memory

    def act_greedily(params: Policy, key: jax.Array, timestep: TimeStep, memory: Any):
        x = outputs(params.params, normalizer.apply(params.normalizer, timestep.observation))
        return family.to_environment(family.mode(x)), {}, memory

    def update(state: State, key: jax.Array, sample: Sample) -> tuple[State, Feedback]:
        params, opt_state, step = state.params, state.opt_state, state.step + 1
        rate_phi, rate_theta, rate_alpha, tau = state.hypers
        statistics = normalizer.update(state.normalizer, sample.steps.observation)
        transition = normalizer.transition(statistics, sample.steps)
        if not discrete:
            transition = transition._replace(action=from_bounds(bounds, transition.action))
        s, _, r, discount, s_next = transition
        weights = prioritized.weights(config, sample, state.step)
        alpha, (target_key, policy_key, drawn_key) = jnp.exp(params.log_alpha), jax.random.split(key, 3)

        theta_bar = critics.draw(drawn_key, state.target_critic, M) if M else state.target_critic
        v, entropy_next = soft_value(params.policy, theta_bar, alpha, target_key, s_next)
        y = r + discount * v
        critic = minimize(critic_loss, (y, transition, weights), optimizer, params.critic, opt_state.critic, rate_theta)

        def climb(phi, log_alpha, opt_phi, opt_alpha):
            """Steps policy, up the updated critics, and temperature; also returns loss, entropy and gradient's norm."""
            policy = minimize(policy_loss, (critic.params, alpha, policy_key, s), optimizer, phi, opt_phi, rate_phi)
            tuned = minimize(temperature_loss, (policy.aux,), optimizer, log_alpha, opt_alpha, rate_alpha)
            return policy.params, tuned.params, policy.opt_state, tuned.opt_state, *policy[2:]

        def rest(*args):
            # Metrics then are of the next observations, whose values the targets needed anyway.
            return *args, -jnp.mean(v), jnp.mean(entropy_next), jnp.float32(0)

        before = params.policy, params.log_alpha, opt_state.policy, opt_state.log_alpha
        after = due_every(config.policy_period, step, climb, rest, *before)
        phi, log_alpha, opt_phi, opt_alpha, loss_phi, entropy, norm_phi = after

        priorities, max_priority = prioritized.feedback(config, jnp.abs(critic.aux).max(axis=0), state.max_priority)
        metrics = {
            "critic_loss": critic.loss,
            "policy_loss": loss_phi,
            "value": -loss_phi,
            "entropy": entropy,
            "alpha": alpha,
            "td_error": jnp.abs(critic.aux).mean(),
            "importance_weight": weights.mean(),
            "critic_gradient_norm": critic.gradient_norm,
            "policy_gradient_norm": norm_phi,
        }
        params, opt_state = Learnt(phi, critic.params, log_alpha), Learnt(opt_phi, critic.opt_state, opt_alpha)
        targets = optax.incremental_update(critic.params, state.target_critic, tau)
        state = State(params, targets, opt_state, statistics, max_priority, state.hypers, step)
        return state, Feedback(pmean(metrics), priorities)

    return Agent(
        init=init,
        policy=lambda s: Policy(s.params.policy, s.normalizer, s.max_priority),
        memory=lambda *_: (),
        act=act,
        act_greedily=act_greedily,
        update=update,
        table=replay_table(config, Transitions(config.n_step, config.discount), config.replay),
        batch_size=config.batch_size,
        priority=prioritized.largest_priority if config.replay == "prioritized" else None,
    )
