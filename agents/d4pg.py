"""D4PG: distributed distributional deterministic policy gradients.

Barth-Maron et al. 2018, https://arxiv.org/abs/1804.08617; the names are those of its algorithm 1 and appendix A.

Deviations: the action enters the critic at its first layer unless `action_layer` says otherwise; sizes, exploration and
soft targets are settings. A categorical critic minimises the cross-entropy, whose gradient is that of the
Kullback-Leibler divergence; priorities are the divergence itself, because it is 0 where the critic is right. The
cross-entropy of a mixture of Gaussians is not 0 there, so its priorities are the errors of the mixture's mean.
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
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
from agents.parts.distributions import (
    Distance,
    Gaussians,
    categorical_distance,
    gaussians,
    gaussians_distance,
    gaussians_mean,
)
from agents.parts.exploration import (
    Noise,
    bounded_actions,
    from_bounds,
    per_environment,
    random_at_first,
    to_bounds,
)
from agents.parts.features import refuse_frames
from agents.parts.networks import ActionCritic, DeterministicPolicy, PolicyAndCritic, check_action_layer
from agents.parts.optimization import descend, due_every, initial_hypers, make_optimizer, new_every


@dataclasses.dataclass(frozen=True)
class Config:
    hidden_sizes: tuple[int, ...] = (256, 256)  # layer sizes of the policy and of the critic
    layer_norm: bool = False  # layer norm and tanh after the first layer of either network, as in Acme's
    action_layer: int = 1  # the critic's hidden layer, counted from 1, that the action enters; 2 in DDPG's paper
    normalize_observations: bool = False

    critic: Literal["categorical", "gaussians"] = "categorical"
    v_min: float = -150.0  # v_min, v_max: returns of the first and last atom; the Gaussians' means start between
    v_max: float = 150.0
    num_atoms: int = 51  # l
    num_components: int = 5  # Gaussians in the mixture
    num_samples: int = 32  # returns drawn from the target, from which the mixture's loss is estimated

    n_step: int = 5  # N
    discount: float = 0.99  # gamma
    batch_size: int = 256  # M
    policy_learning_rate: float = 1e-4  # alpha_0
    critic_learning_rate: float = 1e-4  # beta_0
    policy_period: int = 1  # updates for each step of the policy; others' code has 2, which saves a third of the work
    target_period: int = 100  # t_target: updates from one move of the target networks to the next
    tau: float = 1.0  # how far a move takes the targets, 1: all the way; for a small tau, use target_period=1
    critic_weight_decay: float = 0.0  # c in the critic's loss term c / 2 |W|^2; DDPG's is 1e-2
    max_gradient_norm: float = 0.0  # each network's gradient is clipped to this norm; 0: it is not clipped

    noise: Literal["gaussian", "ou"] = "gaussian"  # ou: Ornstein-Uhlenbeck
    noise_scale: float = 0.3  # epsilon; 1 is half of an action's range
    ou_theta: float = 0.15
    ou_dt: float = 1.0

    replay: Literal["uniform", "prioritized"] = "uniform"
    replay_size: int = 1_000_000  # R
    min_replay_size: int = 1_000  # transitions before the first update
    random_start: bool = False  # actions are uniformly random before the first update
    samples_per_insert: float = 256.0  # samples per transition; batch_size makes an update for each step
    priority: Literal["proportional", "rank"] = "proportional"  # proportional to |error|, or to 1 / its rank
    priority_exponent: float = 0.6  # alpha: sampling is proportional to priority^alpha
    uniform_fraction: float = 0.0  # the share of samples that is drawn uniformly from all items
    importance_exponent: float = 1.0  # beta at first; importance weights are (R p_i)^-beta
    importance_steps: int = 0  # updates until beta has risen to 1; 0: beta is constant
    normalize_weights: bool = False  # divides importance weights by the batch's largest, which algorithm 1 does not do

    def __post_init__(self):
        check_ranges(
            self,
            counts=(
                *("n_step", "batch_size", "replay_size", "min_replay_size", "target_period", "policy_period"),
                *("num_components", "num_samples", "action_layer"),
            ),
            positive=("policy_learning_rate", "critic_learning_rate", "ou_dt"),
            not_negative=(
                *("critic_weight_decay", "max_gradient_norm", "noise_scale", "ou_theta", "samples_per_insert"),
                *("priority_exponent", "importance_steps"),
            ),
            fractions=("discount", "tau", "uniform_fraction", "importance_exponent"),
            not_above={"min_replay_size": "replay_size"},
        )
        if not self.v_min < self.v_max:
            raise ValueError(f"config.v_min={self.v_min} must be below config.v_max={self.v_max}")
        if self.num_atoms < 2:
            raise ValueError(f"config.num_atoms must be at least 2, not {self.num_atoms}")
        check_action_layer(self)


class Memory(NamedTuple):
    """The memory that acting carries from one step to the next."""

    noise: Any  # float32 [B, *action_shape], the state of Ornstein-Uhlenbeck noise; () for Gaussian noise


class Hypers(NamedTuple):
    """The hyperparameters that a population may tune while the learner runs; float32 scalars."""

    policy_learning_rate: Any
    critic_learning_rate: Any
    tau: Any
    noise_scale: Any


class State(NamedTuple):
    params: PolicyAndCritic  # theta, w
    target_params: PolicyAndCritic  # theta', w'
    opt_state: PolicyAndCritic
    normalizer: Any  # Normalizer, or () where observations are not normalised
    max_priority: chex.Array  # float32, the largest so far
    hypers: Hypers
    step: chex.Array  # updates so far, int32


class Policy(NamedTuple):
    """The parameters that actors pull."""

    params: Any  # theta
    normalizer: Any
    noise_scale: chex.Array  # float32, a scalar or [B]
    max_priority: chex.Array
    step: chex.Array  # updates so far, int32


class Functions(NamedTuple):
    """The functions of the networks; observations are normalised and actions in [-1, 1], as `prepare` returns them."""

    init: Any  # key -> PolicyAndCritic
    prepare: Any  # (normalizer, Transition) -> Transition
    pi: Any  # (theta, observation) -> actions [B, *shape]
    value: Any  # (w, observation, action) -> E[Z], [B]
    distance: Any  # (w, PolicyAndCritic of targets, key, Transition) -> Distance


def functions(config: Config, spec: EnvironmentSpec) -> Functions:
    """Makes the functions that learning and priorities use.

    Raises:
      ValueError: if actions are not continuous and bounded.
    """
    bounds = bounded_actions("d4pg", spec)
    categorical = config.critic == "categorical"
    policy = DeterministicPolicy(bounds.shape, config.hidden_sizes, config.layer_norm)
    num_outputs = config.num_atoms if categorical else 3 * config.num_components
    critic = ActionCritic(num_outputs, config.hidden_sizes, config.action_layer, config.layer_norm)
    atoms = np.linspace(config.v_min, config.v_max, config.num_atoms, dtype=np.float32)

    def mixture(outputs) -> Gaussians:
        return gaussians(outputs, config.v_min, config.v_max)

    def init(key: jax.Array) -> PolicyAndCritic:
        policy_key, critic_key = jax.random.split(key)
        observation = jnp.zeros((1, *spec.observation_shape))
        action = jnp.zeros((1, *bounds.shape))
        return PolicyAndCritic(policy.init(policy_key, observation), critic.init(critic_key, observation, action))

    def prepare(statistics, transition: Transition) -> Transition:
        action = from_bounds(bounds, transition.action)
        return normalizer.transition(statistics, transition)._replace(action=action)

    def value(params, observation, action) -> chex.Array:
        outputs: Any = critic.apply(params, observation, action)
        return jax.nn.softmax(outputs) @ atoms if categorical else gaussians_mean(mixture(outputs))

    def distance(params, targets: PolicyAndCritic, key: jax.Array, transition: Transition) -> Distance:
        x, a, reward, discount, x_next = transition
        outputs: Any = critic.apply(params, x, a)
        next_outputs: Any = critic.apply(targets.critic, x_next, policy.apply(targets.policy, x_next))
        if categorical:
            return categorical_distance(outputs, next_outputs, reward, discount, atoms)
        return gaussians_distance(key, mixture(outputs), mixture(next_outputs), reward, discount, config.num_samples)

    return Functions(init, prepare, policy.apply, value, distance)


def make(config: Config, spec: EnvironmentSpec) -> Agent:
    """Returns the agent for environments of `spec`.

    Raises:
      ValueError: if actions are not continuous and bounded, or if observations are frames.
    """
    refuse_frames("d4pg", spec)
    bounds = bounded_actions("d4pg", spec)
    f = functions(config, spec)
    noise = Noise(config.noise, bounds.shape, config.ou_theta, config.ou_dt)
    optimizers = PolicyAndCritic(
        make_optimizer("adam", max_gradient_norm=config.max_gradient_norm),
        make_optimizer("adam", max_gradient_norm=config.max_gradient_norm, weight_decay=config.critic_weight_decay),
    )

    def init(key: jax.Array) -> State:
        params = f.init(key)
        return State(
            params=params,
            target_params=jax.tree.map(jnp.copy, params),  # copies, because updates may overwrite their inputs
            opt_state=PolicyAndCritic(optimizers.policy.init(params.policy), optimizers.critic.init(params.critic)),
            normalizer=normalizer.init(spec.observation_shape) if config.normalize_observations else (),
            max_priority=jnp.float32(1),
            hypers=initial_hypers(Hypers, config),
            step=jnp.int32(0),
        )

    def memory(num_envs: int, ranks: Any = None) -> Memory:
        del ranks
        return Memory(noise.memory(num_envs))

    def act(params: Policy, key: jax.Array, timestep: TimeStep, memory: Memory):
        sample, carried = noise.sample(key, memory.noise, timestep.first)
        action = f.pi(params.params, normalizer.apply(params.normalizer, timestep.observation))
        action += per_environment(params.noise_scale, bounds.shape) * sample
        if config.random_start:
            action = random_at_first(params.step, key, action)
        return to_bounds(bounds, action), {}, Memory(carried)

    def act_greedily(params: Policy, key: jax.Array, timestep: TimeStep, memory: Memory):
        action = f.pi(params.params, normalizer.apply(params.normalizer, timestep.observation))
        return to_bounds(bounds, action), {}, memory

    def critic_loss(params, targets: PolicyAndCritic, key: jax.Array, transition: Transition, weights):
        distance = f.distance(params, targets, key, transition)
        return jnp.mean(weights * distance.losses), distance

    def policy_loss(params, critic_params, observation):
        """Returns a loss whose gradient is minus the paper's, the mean of dpi/dtheta E[dZ/da]."""
        return -jnp.mean(f.value(critic_params, observation, f.pi(params, observation)))

    def update(state: State, key: jax.Array, sample: Sample) -> tuple[State, Feedback]:
        params, targets, hypers = state.params, state.target_params, state.hypers
        statistics = normalizer.update(state.normalizer, sample.steps.observation)
        transition = f.prepare(statistics, sample.steps)
        weights = prioritized.weights(config, sample, state.step, config.normalize_weights)

        # As in algorithm 1, both gradients are taken at the old parameters.
        (loss_w, distance), gradient_w = jax.value_and_grad(critic_loss, has_aux=True)(
            params.critic, targets, key, transition, weights
        )
        gradient_w = pmean(gradient_w)
        rate_theta, rate_w = hypers.policy_learning_rate, hypers.critic_learning_rate

        def climb(theta, opt_theta):
            loss, gradient = jax.value_and_grad(policy_loss)(theta, params.critic, transition.observation)
            gradient = pmean(gradient)
            after = descend(optimizers.policy, gradient, opt_theta, theta, rate_theta)
            return *after, loss, optax.tree.norm(gradient)

        def rest(theta, opt_theta):
            return theta, opt_theta, policy_loss(theta, params.critic, transition.observation), jnp.float32(0)

        step = state.step + 1
        theta, opt_theta, loss_theta, norm_theta = due_every(
            config.policy_period, step, climb, rest, params.policy, state.opt_state.policy
        )
        w, opt_w = descend(optimizers.critic, gradient_w, state.opt_state.critic, params.critic, rate_w)
        params, opt_state = PolicyAndCritic(theta, w), PolicyAndCritic(opt_theta, opt_w)

        moved = optax.incremental_update(params, targets, hypers.tau)
        targets = new_every(config.target_period, step, moved, targets)

        priorities, max_priority = prioritized.feedback(config, distance.errors, state.max_priority)
        metrics = pmean(
            {
                "critic_loss": loss_w,
                "policy_loss": loss_theta,
                "value": -loss_theta,
                "td_error": distance.errors.mean(),
                "importance_weight": weights.mean(),
                **distance.metrics,
            }
        )
        metrics |= {
            "critic_gradient_norm": optax.tree.norm(gradient_w),
            "policy_gradient_norm": norm_theta,
        }
        state = State(params, targets, opt_state, statistics, max_priority, hypers, step)
        return state, Feedback(metrics, priorities)

    return Agent(
        init=init,
        policy=lambda s: Policy(s.params.policy, s.normalizer, s.hypers.noise_scale, s.max_priority, s.step),
        memory=memory,
        act=act,
        act_greedily=act_greedily,
        update=update,
        table=replay_table(config, Transitions(config.n_step, config.discount), config.replay),
        batch_size=config.batch_size,
        priority=prioritized.largest_priority if config.replay == "prioritized" else None,
    )
