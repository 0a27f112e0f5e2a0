"""TD3: twin delayed deep deterministic policy gradients, a DDPG whose critics do not value actions too highly.

Fujimoto et al. 2018, https://arxiv.org/abs/1802.09477; the names are those of its algorithm 1.

Deviations: sizes, batch, rates and the random start are those of the authors' later code, which CleanRL has too, not
the paper's; hidden layers start orthogonal, last ones near 0; noise is in halves of the actions' range. Beyond the
paper: n-step returns, prioritised replay (an item's priority is the larger of its two errors, as in Fujimoto et al.
2020, https://arxiv.org/abs/2007.06049), normalised observations or layers, and any number of critics: with one,
`target_noise` 0 and `policy_period` 1 it is DDPG.
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
    check_replay_sizes,
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
    layer_norm: bool = False  # the first layer of each normalised, and tanh, as in Acme's networks
    normalize_observations: bool = False
    num_critics: int = 2  # whose least value is the target's

    n_step: int = 1
    discount: float = 0.99  # gamma
    batch_size: int = 256  # N; the paper's is 100
    policy_learning_rate: float = 3e-4  # the paper's are 1e-3
    critic_learning_rate: float = 3e-4
    policy_period: int = 2  # d, updates of the critics from one of the policy, and of the targets, to the next
    tau: float = 0.005  # how far the targets move
    target_noise: float = 0.2  # sigma~ of the target's actions, in halves of the actions' range
    target_noise_clip: float = 0.5  # c, likewise

    noise_scale: float = 0.1  # sigma of the actions that are played, likewise

    replay: Literal["uniform", "prioritized"] = "uniform"
    replay_size: int = 1_000_000
    min_replay_size: int = 25_000  # before the first update
    random_start: bool = True  # actions are uniformly random before the first update
    samples_per_insert: float = 256.0  # batch_size: an update for each step
    priority: Literal["proportional", "rank"] = "proportional"  # to the error, or to 1 / its rank among all
    priority_exponent: float = 0.6  # alpha
    uniform_fraction: float = 0.0  # of samples, drawn from all items alike
    importance_exponent: float = 0.4  # beta, at first
    importance_steps: int = 100_000  # updates until beta has risen to 1; 0: it stays

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
        )
        check_replay_sizes(self)


class Hypers(NamedTuple):
    """What a population may tune in a running learner; float32 scalars."""

    policy_learning_rate: Any
    critic_learning_rate: Any
    tau: Any
    target_noise: Any
    noise_scale: Any


class State(NamedTuple):
    params: PolicyAndCritic  # phi, and theta_i, stacked: [num_critics, ...]
    target_params: PolicyAndCritic  # phi', theta_i'
    opt_state: PolicyAndCritic
    normalizer: Any  # Normalizer, or () where observations are not normalised
    max_priority: chex.Array  # float32, the largest so far
    hypers: Hypers
    step: chex.Array  # updates so far, int32


class Policy(NamedTuple):
    """What actors pull."""

    params: Any  # phi
    normalizer: Any
    noise_scale: chex.Array  # float32, a scalar or [B]
    max_priority: chex.Array
    step: chex.Array  # updates so far, int32


def make(config: Config, spec: EnvironmentSpec) -> Agent:
    """The agent for environments of `spec`.

    Raises:
      ValueError: discrete or unbounded actions, or frames.
    """
    refuse_frames("td3", spec)
    bounds = bounded_actions("td3", spec)
    policy: Any = DeterministicPolicy(bounds.shape, config.hidden_sizes, config.layer_norm)
    critics = Ensemble(ActionCritic(1, config.hidden_sizes, layer_norm=config.layer_norm), config.num_critics)
    optimizer = make_optimizer("adam")

    def pi(params, observation) -> chex.Array:
        """[B, ...] -> actions in [-1, 1], [B, *shape]."""
        return policy.apply(params, observation)

    def Q(params, observation, action) -> chex.Array:
        """[B, ...], actions in [-1, 1] -> the values of each critic in `params`, [num_critics, B]."""
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
            target_params=jax.tree.map(jnp.copy, params),  # no shared buffers: an update may be given them to overwrite
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
        """y = r + gamma min_i Q_i'(s', a~), [B]."""
        _, _, r, discount, s_next = transition
        a = pi(targets.policy, s_next)
        c = config.target_noise_clip
        a += jnp.clip(sigma * jax.random.normal(key, a.shape), -c, c)
        return r + discount * Q(targets.critic, s_next, jnp.clip(a, -1.0, 1.0)).min(axis=0)

    def critic_loss(theta, y, transition: Transition, weights):
        errors = y - Q(theta, transition.observation, transition.action)  # [num_critics, B]
        return jnp.mean(weights * jnp.square(errors).sum(axis=0)), errors

    def policy_loss(phi, theta, observation):
        """Its gradient is minus the paper's: that of the mean of Q_1(s, pi(s))."""
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
            """The policy climbs the critic of after its step, and the targets follow."""
            climbed = minimize(policy_loss, (critic.params, transition.observation), optimizer, phi, opt_phi, rate_phi)
            params = PolicyAndCritic(climbed.params, critic.params)
            targets = optax.incremental_update(params, targets, hypers.tau)
            return climbed.params, climbed.opt_state, targets, climbed.loss, climbed.gradient_norm

        def rest(phi, opt_phi, targets):
            # What is logged is of the actions that were taken, whose values are there.
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
