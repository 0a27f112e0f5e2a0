"""MPO: maximum a posteriori policy optimisation, which fits its policy to actions that its critic has reweighted.

Abdolmaleki et al. 2018, https://arxiv.org/abs/1806.06920, with the separate constraints on mean and covariance of
Abdolmaleki et al. 2018, https://arxiv.org/abs/1812.02256, whose names are used here. With `distributional` the critic
is D4PG's categorical critic (Barth-Maron et al. 2018, https://arxiv.org/abs/1804.08617); this is known as DMPO.

Deviations: the critic learns from n-step returns of replayed transitions, without a correction for the policy's change,
where the first paper has Retrace. The policy improves at the last observation of each transition, as in Acme, so that
the actions sampled there serve both the critic's target and the E-step. The covariance is diagonal. Environment and
critic see actions clipped to their bounds, or their tanh with `squash`. A multiplier is softplus of a learnt number.
"""

import dataclasses
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from agents.agent import (
    Agent,
    EnvironmentSpec,
    Feedback,
    Sample,
    TableSpec,
    TimeStep,
    Transition,
    Transitions,
    check_ranges,
    pmean,
)
from agents.parts import normalizer
from agents.parts.distributions import Distance, categorical_distance
from agents.parts.exploration import bounded_actions, from_bounds
from agents.parts.features import vector
from agents.parts.multipliers import multiplier, parameter_of
from agents.parts.networks import MLP, ActionCritic, PolicyAndCritic
from agents.parts.optimization import initial_hypers, make_optimizer, minimize, new_every
from agents.parts.policies import make_policy, mean_and_log_sigma


@dataclasses.dataclass(frozen=True)
class Config:
    hidden_sizes: tuple[int, ...] = (256, 256)  # layer sizes of the policy and of the critic
    layer_norm: bool = True  # layer norm and tanh after the first layer of either network, as in Acme's
    normalize_observations: bool = False
    sigma_initial: float = 0.5  # the first sigma, on the scale where an action's bounds are -1 and 1
    squash: bool = False  # tanh brings continuous actions into their bounds; False: they are clipped

    distributional: bool = False  # True: the critic has a distribution of returns over atoms; False: their mean
    v_min: float = -150.0  # v_min, v_max: returns of the first and the last atom
    v_max: float = 150.0
    num_atoms: int = 51

    num_samples: int = 20  # N, actions sampled in each state
    epsilon: float = 0.1  # bound on the mean KL, in nats, of the reweighted actions to the target policy
    epsilon_mu: float = 1e-2  # bound on the KL of the target policy to the policy, by the mean alone
    epsilon_sigma: float = 1e-4  # likewise, by the standard deviations alone
    eta: float = 1.0  # the temperature at first
    alpha_mu: float = 1.0  # the multiplier of the mean's KL at first
    alpha_sigma: float = 100.0  # the multiplier of the standard deviations' KL at first

    n_step: int = 5
    discount: float = 0.99  # gamma
    batch_size: int = 256
    policy_learning_rate: float = 3e-4
    critic_learning_rate: float = 3e-4
    dual_learning_rate: float = 1e-2  # for the multipliers eta, alpha_mu and alpha_sigma
    target_period: int = 100  # K, updates from one copy of the target networks to the next

    replay_size: int = 1_000_000
    min_replay_size: int = 1_000  # transitions before the first update
    samples_per_insert: float = 256.0  # samples per transition; batch_size makes an update for each step

    def __post_init__(self):
        check_ranges(
            self,
            counts=("num_samples", "n_step", "batch_size", "target_period", "replay_size", "min_replay_size"),
            positive=(
                *("sigma_initial", "epsilon", "epsilon_mu", "epsilon_sigma", "eta", "alpha_mu", "alpha_sigma"),
                *("policy_learning_rate", "critic_learning_rate"),
            ),
            not_negative=("dual_learning_rate", "samples_per_insert"),
            fractions=("discount",),
            not_above={"min_replay_size": "replay_size"},
        )
        if not self.v_min < self.v_max:
            raise ValueError(f"config.v_min={self.v_min} must be below config.v_max={self.v_max}")
        if self.num_atoms < 2:
            raise ValueError(f"config.num_atoms must be at least 2, not {self.num_atoms}")


class Hypers(NamedTuple):
    """The hyperparameters that a population may tune while the learner runs; float32 scalars."""

    policy_learning_rate: Any
    critic_learning_rate: Any
    dual_learning_rate: Any
    epsilon: Any
    epsilon_mu: Any
    epsilon_sigma: Any


class Duals(NamedTuple):
    """The numbers from which `multiplier` makes the Lagrange multipliers; float32 scalars."""

    eta: Any  # the temperature
    alpha_mu: Any
    alpha_sigma: Any


class Learnt(NamedTuple):
    """One value for each part that is learnt: its parameters, its learning rate, or what an optimiser keeps for it."""

    policy: Any  # theta
    critic: Any  # phi
    duals: Any


class State(NamedTuple):
    params: Learnt
    target_params: PolicyAndCritic  # theta', phi'
    opt_state: Any
    normalizer: Any  # Normalizer, or () where observations are not normalised
    hypers: Hypers
    step: chex.Array  # updates so far, int32


class Policy(NamedTuple):
    """The parameters that actors pull."""

    params: Any  # theta
    normalizer: Any


def make(config: Config, spec: EnvironmentSpec) -> Agent:
    """Returns the agent for environments of `spec`.

    Raises:
      ValueError: if actions are not continuous and bounded, or if observations are frames.
    """
    bounds, flat = bounded_actions("mpo", spec), vector("mpo", spec).phi
    family = make_policy("mpo", spec, "state", config.sigma_initial, config.squash)
    policy = MLP(family.num_outputs, config.hidden_sizes, "relu", layer_norm=config.layer_norm)
    num_outputs = config.num_atoms if config.distributional else 1
    critic = ActionCritic(num_outputs, config.hidden_sizes, layer_norm=config.layer_norm)
    atoms = np.linspace(config.v_min, config.v_max, config.num_atoms, dtype=np.float32)
    optimizer = make_optimizer("adam")

    def pi(theta, observation) -> chex.Array:
        """Maps observations [B, ...] to the policy's outputs [B, 2 n]: n numbers of mu, then n of log sigma."""
        outputs: Any = policy.apply(theta, flat(observation))
        return outputs

    def Z(phi, observation, action) -> chex.Array:
        """Returns the critic's outputs, [B, num_outputs], for actions in [-1, 1], [B, ...]."""
        outputs: Any = critic.apply(phi, flat(observation), action)
        return outputs

    def Q(outputs) -> chex.Array:
        """Returns the values that the critic's outputs stand for: [..., num_outputs] -> [...]."""
        return jax.nn.softmax(outputs) @ atoms if config.distributional else outputs[..., 0]

    def distance(outputs, next_outputs, reward, discount) -> Distance:
        """Returns how far outputs [B, num_outputs] are from the mean target of next_outputs [N, B, num_outputs]."""
        if config.distributional:
            mixture = jax.nn.logsumexp(jax.nn.log_softmax(next_outputs), axis=0)  # of N equally likely returns
            return categorical_distance(outputs, mixture, reward, discount, atoms)
        errors = reward + discount * Q(next_outputs).mean(axis=0) - Q(outputs)
        return Distance(0.5 * jnp.square(errors), jnp.abs(errors), {})

    def improvement_loss(params: Learnt, hypers: Hypers, observation, old, raw, values):
        """Returns the loss of the E-step's temperature and of the M-step at observations [B, ...], and metrics.

        `old` are the target policy's outputs there, `raw` [N, B, n] its sampled actions, `values` [N, B] their values.
        """
        import rlax  # here, not above: where TensorFlow is installed it takes seconds

        parts = family.decoupled(pi(params.policy, observation), old)  # one has only mu new, one only sigma
        log_probs = sum(family.log_prob(part, raw) for part in parts)
        kls = [family.kl(old, part) for part in parts]
        eta, *alphas = params.duals
        temperature = rlax.LagrangePenalty(eta, hypers.epsilon)
        penalties = map(rlax.LagrangePenalty, alphas, (hypers.epsilon_mu, hypers.epsilon_sigma))
        losses, found = rlax.mpo_loss(log_probs, values, temperature, [*zip(kls, penalties, strict=True)], multiplier)
        weights = found.normalized_weights  # each state's weights sum to 1 over its actions
        kl = jnp.sum(jax.scipy.special.xlogy(weights, weights * config.num_samples), axis=0)
        metrics = {"policy_loss": found.policy_loss, "kl": kl, "kl_mu": kls[0], "kl_sigma": kls[1]}
        return jnp.mean(losses), jax.tree.map(jnp.mean, metrics)

    def loss(params: Learnt, hypers: Hypers, transition: Transition, old, raw, next_outputs):
        s, a, r, discount, s_next = transition
        outputs = Z(params.critic, s, a)
        found = distance(outputs, next_outputs, r, discount)
        critic_loss = jnp.mean(found.losses)
        improvement, metrics = improvement_loss(params, hypers, s_next, old, raw, Q(next_outputs))
        metrics |= {"critic_loss": critic_loss, "value": Q(outputs).mean(), "td_error": found.errors.mean()}
        return critic_loss + improvement, metrics | found.metrics

    def init(key: jax.Array) -> State:
        policy_key, critic_key = jax.random.split(key)
        observation = flat(jnp.zeros((1, *spec.observation_shape)))
        theta, phi = policy.init(policy_key, observation), critic.init(critic_key, observation, bounds.low[None])
        params = Learnt(theta, phi, Duals(*(parameter_of(getattr(config, x)) for x in Duals._fields)))
        targets = jax.tree.map(jnp.copy, PolicyAndCritic(theta, phi))  # copies: updates overwrite buffers
        statistics = normalizer.init(spec.observation_shape) if config.normalize_observations else ()
        return State(params, targets, optimizer.init(params), statistics, initial_hypers(Hypers, config), jnp.int32(0))

    def act(params: Policy, key: jax.Array, timestep: TimeStep, memory: Any):
        outputs = pi(params.params, normalizer.apply(params.normalizer, timestep.observation))
        return family.to_environment(family.sample(key, outputs)), {}, memory

    def act_greedily(params: Policy, key: jax.Array, timestep: TimeStep, memory: Any):
        outputs = pi(params.params, normalizer.apply(params.normalizer, timestep.observation))
        return family.to_environment(family.mode(outputs)), {}, memory

    def update(state: State, key: jax.Array, sample: Sample) -> tuple[State, Feedback]:
        targets, hypers, step = state.target_params, state.hypers, state.step + 1
        statistics = normalizer.update(state.normalizer, sample.steps.observation)
        transition = normalizer.transition(statistics, sample.steps)
        transition = transition._replace(action=from_bounds(bounds, transition.action))

        old = pi(targets.policy, transition.next_observation)
        raw = family.sample(key, jnp.broadcast_to(old, (config.num_samples, *old.shape)))
        inside = jnp.tanh(raw) if config.squash else jnp.clip(raw, -1.0, 1.0)
        next_outputs = jax.vmap(Z, (None, None, 0))(targets.critic, transition.next_observation, inside)

        rates = Learnt(hypers.policy_learning_rate, hypers.critic_learning_rate, hypers.dual_learning_rate)
        args = hypers, transition, old, raw, next_outputs
        learnt = minimize(loss, args, optimizer, state.params, state.opt_state, rates)
        params, duals = learnt.params, learnt.params.duals
        targets = new_every(config.target_period, step, PolicyAndCritic(params.policy, params.critic), targets)
        sigma = jnp.exp(mean_and_log_sigma(old, config.sigma_initial)[1]).mean()
        metrics = pmean(learnt.aux | {"sigma": sigma}) | {"gradient_norm": learnt.gradient_norm}
        metrics |= {name: multiplier(x) for name, x in duals._asdict().items()}
        return State(params, targets, learnt.opt_state, statistics, hypers, step), Feedback(metrics)

    sizes = config.replay_size, config.min_replay_size, config.samples_per_insert
    return Agent(
        init=init,
        policy=lambda s: Policy(s.params.policy, s.normalizer),
        memory=lambda *_: (),
        act=act,
        act_greedily=act_greedily,
        update=update,
        table=TableSpec("replay", Transitions(config.n_step, config.discount), "uniform", *sizes),
        batch_size=config.batch_size,
    )
