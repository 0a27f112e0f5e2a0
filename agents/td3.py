"""TD3: twin delayed deep deterministic policy gradients, a DDPG that counters the overestimation of action values.

Fujimoto et al. 2018, https://arxiv.org/abs/1802.09477; the names in the code are those of its algorithm 1.

Deviations: layer sizes, batch size, learning rates and the random start are not the paper's but those of the authors'
later code, which CleanRL has too; hidden layers start orthogonal, and last layers near 0; noise is in units of half the
actions' range. Beyond the paper: n-step returns, prioritised replay (an item's priority is the largest of its critics'
errors, as in Fujimoto et al. 2020, https://arxiv.org/abs/2007.06049), normalised observations or layers, and any number
of critics. With one critic, `target_noise` 0 and `policy_period` 1, this is DDPG.
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from agents.agent import (
    Agent,
    EnvironmentSpec,
    Feedback,
    Sample,
    TimeStep,
    Transition,
    Transitions,
    check_ranges,
    pmean,
    replay_table,
)
from agents.parts import normalizer, prioritized
from agents.parts.exploration import bounded_actions, from_bounds, per_environment, random_at_first, to_bounds
from agents.parts.features import refuse_frames
from agents.parts.networks import ActionCritic, DeterministicPolicy, Ensemble, PolicyAndCritic
from agents.parts.optimization import due_every, initial_hypers, make_optimizer, minimize


@dataclasses.dataclass(frozen=True)
class Config:
    hidden_sizes: tuple[int, ...] = (256, 256)  # of the policy and of each critic; the paper's are (400, 300)
    layer_norm: bool = False  # whether first layers have layer normalisation and tanh, as in Acme's networks
    normalize_observations: bool = False  # by running statistics
    num_critics: int = 2  # their least value is the target's

    n_step: int = 1  # steps of a target
    discount: float = 0.99  # gamma
    batch_size: int = 256  # N, transitions in one update; the paper's is 100
    policy_learning_rate: float = 3e-4  # the paper's two learning rates are 1e-3
    critic_learning_rate: float = 3e-4
    policy_period: int = 2  # d, critic updates for each update of the policy and of the targets
    tau: float = 0.005  # fraction by which the targets move towards the parameters
    target_noise: float = 0.2  # sigma~ of noise on the target's actions, in units of half their range
    target_noise_clip: float = 0.5  # c, at which that noise is clipped, in the same unit

    noise_scale: float = 0.1  # sigma of noise on the actions that are played, in the same unit

    replay: Literal["uniform", "prioritized"] = "uniform"
    replay_size: int = 1_000_000
    min_replay_size: int = 25_000  # items in the replay before the first update
    random_start: bool = True  # actions are uniformly random before the first update
    samples_per_insert: float = 256.0  # times each item is sampled, on average; batch_size: one update per step
    priority: Literal["proportional", "rank"] = "proportional"  # proportional to |error|, or to 1 / its rank
    priority_exponent: float = 0.6  # alpha: sampling is proportional to priority^alpha
    uniform_fraction: float = 0.0  # the share of samples that is drawn uniformly from all items
    importance_exponent: float = 0.4  # initial beta, the exponent of importance weights
    importance_steps: int = 100_000  # updates until beta has risen to 1; 0: beta is constant

    def __post_init__(self):
        check_ranges(
            self,
            counts=("num_critics", "n_step", "batch_size", "policy_period", "replay_size", "min_replay_size"),
            positive=("policy_learning_rate", "critic_learning_rate"),
            not_negative=(
                *("target_noise", "target_noise_clip", "noise_scale", "samples_per_insert"),
                *("priority_exponent", "importance_steps"),
            ),
            fractions=("discount", "tau", "uniform_fraction", "importance_exponent"),
            not_above={"min_replay_size": "replay_size"},
        )


class Hypers(NamedTuple):
    """The hyperparameters that a population may tune while the learner runs; float32 scalars."""

    policy_learning_rate: Any
    critic_learning_rate: Any
    tau: Any
    target_noise: Any
    noise_scale: Any


class State(NamedTuple):
    params: PolicyAndCritic  # phi; theta_i, stacked: [num_critics, ...]
    target_params: PolicyAndCritic  # phi', theta_i'
    opt_state: PolicyAndCritic
    normalizer: Any  # Normalizer, or () where observations are not normalised
    max_priority: chex.Array  # float32, the largest priority so far
    hypers: Hypers
    step: chex.Array  # updates so far, int32


class Policy(NamedTuple):
    """The values that actors pull from the learner."""

    params: Any  # phi
    normalizer: Any  # as in State
    noise_scale: chex.Array  # float32, a scalar or [B]
    max_priority: chex.Array  # float32, the priority of new items
    step: chex.Array  # updates so far, int32


def make(config: Config, spec: EnvironmentSpec) -> Agent:
    """Makes the agent for environments of `spec`.

    Raises:
      ValueError: actions are not continuous or have no bounds, or observations are frames.
    """
    refuse_frames("td3", spec)
    bounds = bounded_actions("td3", spec)
    policy: Any = DeterministicPolicy(bounds.shape, config.hidden_sizes, config.layer_norm)
    critics = Ensemble(ActionCritic(1, config.hidden_sizes, layer_norm=config.layer_norm), config.num_critics)
    optimizer = make_optimizer("adam")

    def pi(params, observation) -> chex.Array:
        """Computes actions in [-1, 1], [B, *shape], for observations [B, ...]."""
        return policy.apply(params, observation)

    def Q(params, observation, action) -> chex.Array:
        """Computes the values, [num_critics, B], by each critic in `params`; actions are in [-1, 1]."""
        return critics.apply(params, observation, action)[..., 0]

    def init(key: jax.Array) -> State:
        policy_key, critic_key = jax.random.split(key)
        observation = jnp.zeros((1, *spec.observation_shape))
        params = PolicyAndCritic(
            policy=policy.init(policy_key, observation),
            critic=critics.init(critic_key, observation, jnp.zeros((1, *bounds.shape))),
        )
        return State(
            params=params,
            target_params=jax.tree.map(jnp.copy, params),  # copies, for an update may overwrite its input's buffers
            opt_state=PolicyAndCritic(optimizer.init(params.policy), optimizer.init(params.critic)),
            normalizer=normalizer.init(spec.observation_shape) if config.normalize_observations else (),
            max_priority=jnp.float32(1),
            hypers=initial_hypers(Hypers, config),
            step=jnp.int32(0),
        )

    def act(params: Policy, key: jax.Array, timestep: TimeStep, memory: Any):
        action = pi(params.params, normalizer.apply(params.normalizer, timestep.observation))
        action += per_environment(params.noise_scale, bounds.shape) * jax.random.normal(key, action.shape)
        if config.random_start:
            action = random_at_first(params.step, key, action)
        return to_bounds(bounds, action), {}, memory

    def act_greedily(params: Policy, key: jax.Array, timestep: TimeStep, memory: Any):
        action = pi(params.params, normalizer.apply(params.normalizer, timestep.observation))
        return to_bounds(bounds, action), {}, memory

    def target(targets: PolicyAndCritic, sigma, key: jax.Array, transition: Transition) -> chex.Array:
        """Computes y = r + gamma min_i Q_i'(s', a~), [B]."""
        _, _, r, discount, s_next = transition
        a = pi(targets.policy, s_next)
        c = config.target_noise_clip
        a += jnp.clip(sigma * jax.random.normal(key, a.shape), -c, c)
        return r + discount * Q(targets.critic, s_next, jnp.clip(a, -1.0, 1.0)).min(axis=0)

    def critic_loss(theta, y, transition: Transition, weights):
        errors = y - Q(theta, transition.observation, transition.action)  # [num_critics, B]
        return jnp.mean(weights * jnp.square(errors).sum(axis=0)), errors

    def policy_loss(phi, theta, observation):
        """Computes minus the mean of Q_1(s, pi(s)), whose gradient is the paper's with a minus."""
        first = jax.tree.map(lambda x: x[:1], theta)
        return -jnp.mean(Q(first, observation, pi(phi, observation))), ()

    def update(state: State, key: jax.Array, sample: Sample) -> tuple[State, Feedback]:
        params, targets, hypers, step = state.params, state.target_params, state.hypers, state.step + 1
        statistics = normalizer.update(state.normalizer, sample.steps.observation)
        transition = normalizer.transition(statistics, sample.steps)
        transition = transition._replace(action=from_bounds(bounds, transition.action))
        weights = prioritized.weights(config, sample, state.step)

        y = target(targets, hypers.target_noise, key, transition)
        rate_phi, rate_theta = hypers.policy_learning_rate, hypers.critic_learning_rate
        critic = minimize(
            critic_loss, (y, transition, weights), optimizer, params.critic, state.opt_state.critic, rate_theta
        )
        errors = critic.aux

        def climb(phi, opt_phi, targets):
            """Steps the policy up the updated critic, then moves the targets."""
            climbed = minimize(policy_loss, (critic.params, transition.observation), optimizer, phi, opt_phi, rate_phi)
            params = PolicyAndCritic(climbed.params, critic.params)
            targets = optax.incremental_update(params, targets, hypers.tau)
            return climbed.params, climbed.opt_state, targets, climbed.loss, climbed.gradient_norm

        def rest(phi, opt_phi, targets):
            # The loss that is logged then uses the replayed actions, whose values are known already.
            return phi, opt_phi, targets, -jnp.mean(y - errors[0]), jnp.float32(0)

        before = params.policy, state.opt_state.policy, targets
        phi, opt_phi, targets, loss_phi, norm_phi = due_every(config.policy_period, step, climb, rest, *before)
        priorities, max_priority = prioritized.feedback(config, jnp.abs(errors).max(axis=0), state.max_priority)
        metrics = pmean(
            {
                "critic_loss": critic.loss,
                "policy_loss": loss_phi,
                "value": -loss_phi,
                "td_error": jnp.abs(errors).mean(),
                "importance_weight": weights.mean(),
            }
        )
        metrics |= {"critic_gradient_norm": critic.gradient_norm, "policy_gradient_norm": norm_phi}
        state = State(
            params=PolicyAndCritic(phi, critic.params),
            target_params=targets,
            opt_state=PolicyAndCritic(opt_phi, critic.opt_state),
            normalizer=statistics,
            max_priority=max_priority,
            hypers=hypers,
            step=step,
        )
        return state, Feedback(metrics, priorities)

    return Agent(
        init=init,
        policy=lambda s: Policy(s.params.policy, s.normalizer, s.hypers.noise_scale, s.max_priority, s.step),
        memory=lambda *_: (),
        act=act,
        act_greedily=act_greedily,
        update=update,
        table=replay_table(config, Transitions(config.n_step, config.discount), config.replay),
        batch_size=config.batch_size,
        priority=prioritized.largest_priority if config.replay == "prioritized" else None,
    )
