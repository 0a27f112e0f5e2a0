"""DDPG: deep deterministic policy gradients, an off-policy actor-critic for continuous actions.

Lillicrap et al. 2016, https://arxiv.org/abs/1509.02971; the names are those of its algorithm 1.

Deviations: by default the action enters the critic at its first layer, not its second, and there is no weight decay.
There is no batch normalisation, but observations can be normalised by running statistics, and there can be layer
normalisation. Hidden layers start orthogonal. Noise is Gaussian by default, with which others found no loss. Sizes and
learning rates are today's. The paper does not have n-step returns, prioritised replay (Schaul et al. 2016,
https://arxiv.org/abs/1511.05952) and a random start.
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
from agents.parts.optimization import descend, due_every, initial_hypers, make_optimizer


@dataclasses.dataclass(frozen=True)
class Config:
    hidden_sizes: tuple[int, ...] = (256, 256)  # of both the policy and the critic; the paper's are (400, 300)
    layer_norm: bool = False  # layer norm and tanh after the first layer of either network, as in Acme's
    action_layer: int = 1  # the critic's hidden layer, counted from 1, that the action enters; 2 in the paper
    normalize_observations: bool = False

    n_step: int = 1
    discount: float = 0.99  # gamma
    batch_size: int = 256  # N
    policy_learning_rate: float = 3e-4
    critic_learning_rate: float = 1e-3
    policy_period: int = 1  # updates for each step of the policy; others' code has 2, which saves a third of the work
    tau: float = 0.005  # how far the targets move at each update
    critic_weight_decay: float = 0.0  # c in the critic's loss term c / 2 |W|^2; the paper's is 1e-2
    max_gradient_norm: float = 0.0  # each network's gradient is clipped to this norm; 0: it is not clipped

    noise: Literal["gaussian", "ou"] = "gaussian"  # ou: Ornstein-Uhlenbeck, the paper's
    noise_scale: float = 0.1  # sigma; 1 is half of an action's range; the paper's is 0.2
    ou_theta: float = 0.15
    ou_dt: float = 1.0  # in steps, as the paper counts time

    replay: Literal["uniform", "prioritized"] = "uniform"
    replay_size: int = 1_000_000
    min_replay_size: int = 1_000  # transitions before the first update
    random_start: bool = False  # actions are uniformly random before the first update; in CleanRL, for 25,000 steps
    samples_per_insert: float = 256.0  # samples per transition; batch_size makes an update for each step
    priority: Literal["proportional", "rank"] = "proportional"  # proportional to |error|, or to 1 / its rank
    priority_exponent: float = 0.6  # alpha: sampling is proportional to priority^alpha
    uniform_fraction: float = 0.0  # the share of samples that is drawn uniformly from all items
    importance_exponent: float = 0.4  # initial beta, the exponent of importance weights
    importance_steps: int = 100_000  # updates until beta has risen to 1; 0: beta is constant

    def __post_init__(self):
        check_ranges(
            self,
            counts=("n_step", "batch_size", "replay_size", "min_replay_size", "policy_period", "action_layer"),
            positive=("policy_learning_rate", "critic_learning_rate", "ou_dt"),
            not_negative=(
                *("critic_weight_decay", "max_gradient_norm", "noise_scale", "ou_theta", "samples_per_insert"),
                *("priority_exponent", "importance_steps"),
            ),
            fractions=("discount", "tau", "uniform_fraction", "importance_exponent"),
            not_above={"min_replay_size": "replay_size"},
        )
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
    params: PolicyAndCritic  # theta^mu, theta^Q
    target_params: PolicyAndCritic  # theta^mu', theta^Q'
    opt_state: PolicyAndCritic
    normalizer: Any  # Normalizer, or () where observations are not normalised
    max_priority: chex.Array  # float32, the largest so far
    hypers: Hypers
    step: chex.Array  # updates so far, int32


class Policy(NamedTuple):
    """The parameters that actors pull."""

    params: Any  # theta^mu
    normalizer: Any
    noise_scale: chex.Array  # float32, a scalar or [B]
    max_priority: chex.Array
    step: chex.Array  # updates so far, int32


def make(config: Config, spec: EnvironmentSpec) -> Agent:
    """Returns the agent for environments of `spec`.

    Raises:
      ValueError: if actions are not continuous and bounded, or if observations are frames.
    """
    refuse_frames("ddpg", spec)
    bounds = bounded_actions("ddpg", spec)
    policy = DeterministicPolicy(bounds.shape, config.hidden_sizes, config.layer_norm)
    critic = ActionCritic(1, config.hidden_sizes, config.action_layer, config.layer_norm)
    noise = Noise(config.noise, bounds.shape, config.ou_theta, config.ou_dt)
    optimizers = PolicyAndCritic(
        make_optimizer("adam", max_gradient_norm=config.max_gradient_norm),
        make_optimizer("adam", max_gradient_norm=config.max_gradient_norm, weight_decay=config.critic_weight_decay),
    )

    def mu(params, observation) -> chex.Array:
        """Maps observations [B, ...] to actions in [-1, 1], [B, *shape]."""
        action: Any = policy.apply(params, observation)
        return action

    def Q(params, observation, action) -> chex.Array:
        """Maps observations [B, ...] and actions in [-1, 1], [B, *shape], to values [B]."""
        values: Any = critic.apply(params, observation, action)
        return values[:, 0]

    def init(key: jax.Array) -> State:
        policy_key, critic_key = jax.random.split(key)
        observation = jnp.zeros((1, *spec.observation_shape))
        params = PolicyAndCritic(
            policy=policy.init(policy_key, observation),
            critic=critic.init(critic_key, observation, jnp.zeros((1, *bounds.shape))),
        )
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
        action = mu(params.params, normalizer.apply(params.normalizer, timestep.observation))
        action += per_environment(params.noise_scale, bounds.shape) * sample
        if config.random_start:
            action = random_at_first(params.step, key, action)
        return to_bounds(bounds, action), {}, Memory(carried)

    def act_greedily(params: Policy, key: jax.Array, timestep: TimeStep, memory: Memory):
        action = mu(params.params, normalizer.apply(params.normalizer, timestep.observation))
        return to_bounds(bounds, action), {}, memory

    def critic_loss(params, targets: PolicyAndCritic, transition: Transition, weights):
        s, a, r, discount, s_next = transition
        y = r + discount * Q(targets.critic, s_next, mu(targets.policy, s_next))
        errors = y - Q(params, s, a)
        return jnp.mean(weights * jnp.square(errors)), (errors, y)

    def policy_loss(params, critic_params, observation):
        """Returns a loss whose gradient is minus the paper's, the mean of dQ/da dmu/dtheta."""
        return -jnp.mean(Q(critic_params, observation, mu(params, observation)))

    def update(state: State, key: jax.Array, sample: Sample) -> tuple[State, Feedback]:
        del key
        params, targets, hypers = state.params, state.target_params, state.hypers
        statistics = normalizer.update(state.normalizer, sample.steps.observation)
        transition = normalizer.transition(statistics, sample.steps)
        transition = transition._replace(action=from_bounds(bounds, transition.action))
        weights = prioritized.weights(config, sample, state.step)

        # As in algorithm 1, the critic steps first, and the policy climbs the new critic.
        (loss_Q, (errors, y)), gradient_Q = jax.value_and_grad(critic_loss, has_aux=True)(
            params.critic, targets, transition, weights
        )
        gradient_Q = pmean(gradient_Q)
        rate_Q, rate_mu = hypers.critic_learning_rate, hypers.policy_learning_rate
        theta_Q, opt_Q = descend(optimizers.critic, gradient_Q, state.opt_state.critic, params.critic, rate_Q)

        def climb(theta_mu, opt_mu):
            loss, gradient = jax.value_and_grad(policy_loss)(theta_mu, theta_Q, transition.observation)
            gradient = pmean(gradient)
            return *descend(optimizers.policy, gradient, opt_mu, theta_mu, rate_mu), loss, optax.tree.norm(gradient)

        def rest(theta_mu, opt_mu):
            # The loss that is logged is that of the replayed actions, because their values are already computed.
            return theta_mu, opt_mu, -jnp.mean(y - errors), jnp.float32(0)

        theta_mu, opt_mu, loss_mu, norm_mu = due_every(
            config.policy_period, state.step + 1, climb, rest, params.policy, state.opt_state.policy
        )
        params = PolicyAndCritic(theta_mu, theta_Q)

        priorities, max_priority = prioritized.feedback(config, errors, state.max_priority)
        metrics = pmean(
            {
                "critic_loss": loss_Q,
                "policy_loss": loss_mu,
                "value": -loss_mu,
                "td_error": jnp.abs(errors).mean(),
                "importance_weight": weights.mean(),
            }
        )
        metrics |= {
            "critic_gradient_norm": optax.tree.norm(gradient_Q),
            "policy_gradient_norm": norm_mu,
        }
        state = State(
            params=params,
            target_params=optax.incremental_update(params, targets, hypers.tau),
            opt_state=PolicyAndCritic(opt_mu, opt_Q),
            normalizer=statistics,
            max_priority=max_priority,
            hypers=hypers,
            step=state.step + 1,
        )
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
