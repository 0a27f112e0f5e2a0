"""DPG: the deterministic policy gradient, with a critic that is compatible with a policy linear in fixed features.

Silver et al. 2014, http://proceedings.mlr.press/v32/silver14.html; section numbers below are that paper's. `form`
chooses COPDAC-Q, which learns off-policy by Q-learning (section 4.3), or the on-policy actor-critic, which learns by
Sarsa (section 4.1). With alpha_u above 0, COPDAC-Q becomes COPDAC-GQ, whose critic learns by gradient Q-learning with
second weights u.

Deviations: a step is the mean of a batch's steps. COPDAC-Q's batches come from a uniform replay, not from the newest
step, so that more is learnt from each transition. Sarsa learns from a block's rows one after the other, and the
parameters before the block acted in all of them. Exploration noise may be correlated in time. Actions are scaled so
that their bounds are -1 and 1. The policy, which is linear in the features, is squashed into the bounds by tanh or
clipped to them. Actions with their noise are clipped to the bounds before they are executed and learnt from.
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
    Blocks,
    BoundedActions,
    EnvironmentSpec,
    Feedback,
    Sample,
    Step,
    TableSpec,
    TimeStep,
    Transition,
    Transitions,
    check_ranges,
    pmean,
    queue_table,
)
from agents.parts import features
from agents.parts.exploration import unsuitable
from agents.parts.optimization import initial_hypers


@dataclasses.dataclass(frozen=True)
class Config:
    """The default step sizes learn Pendulum-v1; the paper swept its step sizes and printed none."""

    form: Literal["off_policy", "sarsa"] = "off_policy"

    observation_low: tuple[float, ...] = ()  # bounds of each number of an observation, which is clipped to them
    observation_high: tuple[float, ...] = ()
    features: Literal["fourier", "tiles"] = "fourier"
    order: int = 3  # order of the Fourier basis
    tilings: int = 8
    tiles: int = 8  # tiles of one tiling along each number of an observation
    squash: bool = True  # mu = tanh(theta^T phi), else theta^T phi clipped to [-1, 1]

    alpha_theta: float = 0.01
    alpha_w: float = 0.2
    alpha_v: float = 0.2
    alpha_u: float = 0.0  # step size of u, for off_policy; 0: COPDAC-Q, which has no u; above 0: COPDAC-GQ
    natural_gradient: bool = False  # True: the step of theta is along w itself (section 4.3)
    discount: float = 0.99  # gamma
    reward_scale: float = 1.0  # multiplies rewards
    sigma: float = 0.6  # the noise's standard deviation, on the scale where an action's bounds are -1 and 1
    noise_correlation: float = 0.0  # between the noise of successive steps; 0: the paper's independent Gaussian noise

    batch_size: int = 64  # transitions in one update; for Sarsa, sequences
    replay_size: int = 1_000_000  # transitions; this and the next two are for the off-policy form
    min_replay_size: int = 1_000
    samples_per_insert: float = 32.0
    unroll_length: int = 16  # T, steps in each of Sarsa's blocks
    queue_batches: int = 1  # Sarsa's batches that may wait in the queue; with more, experience is older

    def __post_init__(self):
        check_ranges(
            self,
            counts=("order", "tilings", "tiles", "batch_size", "replay_size", "min_replay_size")
            + ("unroll_length", "queue_batches"),
            positive=("alpha_theta", "alpha_w", "alpha_v", "reward_scale", "sigma", "samples_per_insert"),
            not_negative=("alpha_u",),
            fractions=("discount", "noise_correlation"),
            not_above={"min_replay_size": "replay_size"},
        )
        if self.alpha_u and self.form == "sarsa":
            raise ValueError("config.alpha_u is for config.form=off_policy: config.form=sarsa has no second weights")
        features.check_bounds(self)


class Memory(NamedTuple):
    noise: chex.Array  # float32 [B, A], the noise that was added to the last action


class Policy(NamedTuple):
    """The parameters that actors pull."""

    theta: chex.Array  # float32 [n, A]
    sigma: chex.Array  # float32 scalar


class Hypers(NamedTuple):
    """The hyperparameters that a population may tune while the learner runs; float32 scalars."""

    alpha_theta: Any
    alpha_w: Any
    alpha_v: Any
    alpha_u: Any
    sigma: Any


class Weights(NamedTuple):
    """The weights of the policy and the critic, for n features and actions of A numbers."""

    theta: chex.Array  # [n, A], of the policy
    w: chex.Array  # [n, A], of the advantage
    v: chex.Array  # [n], of the value
    u: chex.Array  # [n, A], the second weights of gradient Q-learning; 0 while alpha_u is 0


class State(NamedTuple):
    weights: Weights
    hypers: Hypers
    step: chex.Array  # updates so far, int32


def mu(theta: chex.Array, phi: chex.Array, squash: bool) -> tuple[chex.Array, chex.Array]:
    """Returns the policy's action mu_theta(s) at phi(s) [B, n], and d mu / d (theta^T phi); both are [B, A]."""
    linear = phi @ theta
    if squash:
        return jnp.tanh(linear), 1.0 - jnp.tanh(linear) ** 2
    return jnp.clip(linear, -1.0, 1.0), (jnp.abs(linear) < 1.0).astype(jnp.float32)


def critic(weights: Weights, phi: chex.Array, action: chex.Array, squash: bool) -> chex.Array:
    """Returns Q^w(s, a) = (a - mu_theta(s))^T grad_theta mu_theta(s)^T w + V^v(s), [B]; phi(s) is [B, n], a [B, A]."""
    mean, slope = mu(weights.theta, phi, squash)
    return jnp.sum((action - mean) * slope * (phi @ weights.w), axis=-1) + phi @ weights.v


def directions(
    weights: Weights,
    phi: chex.Array,
    action: chex.Array,
    targets: chex.Array,
    next_phi: chex.Array,
    live: chex.Array,
    squash: bool,
) -> tuple[Weights, chex.Array]:
    """Returns the directions in which the weights step, without step sizes, summed over rows (sections 4.1 and 4.3).

    Args:
      weights: the weights before the step.
      phi: phi(s_t), [B, n].
      action: a_t, [B, A].
      targets: r_t + gamma Q^w(s_{t+1}, a_{t+1}), where a_{t+1} is mu_theta(s_{t+1}) for Q-learning, [B].
      next_phi: gamma phi(s_{t+1}), [B, n].
      live: 1 where the row is a transition, 0 where its action was thrown away, [B].
      squash: as `mu` takes it.

    Returns:
      The directions and delta, [B]. With phi(s_t, a_t) = grad_theta mu (a_t - mu), the directions are
      for theta: grad_theta mu (grad_theta mu^T w);
      for w: delta phi(s_t, a_t);
      for v: delta phi(s_t) - gamma phi(s_{t+1}) (phi(s_t, a_t)^T u);
      for u: (delta - phi(s_t, a_t)^T u) phi(s_t, a_t).
    """
    mean, slope = mu(weights.theta, phi, squash)
    delta = live * (targets - critic(weights, phi, action, squash))
    theta = phi.T @ (live[:, None] * slope**2 * (phi @ weights.w))  # grad_a Q^w at mu is slope * w^T phi
    of_action = slope * (action - mean)  # phi(s_t, a_t) is phi(s_t) times this
    expected = live * jnp.sum(of_action * (phi @ weights.u), axis=-1)  # phi(s_t, a_t)^T u, which learns delta
    # Gradient Q-learning also corrects w, along phi(s_{t+1}, mu). Here that is 0, because its factor a - mu is mu - mu.
    w, u = (phi.T @ (x[:, None] * of_action) for x in (delta, delta - expected))
    return Weights(theta, w, phi.T @ delta - next_phi.T @ expected, u), delta


def make(config: Config, spec: EnvironmentSpec) -> Agent:
    """Returns the agent for environments of `spec`.

    Raises:
      ValueError: if actions are discrete, factored or unbounded, or if bounds or features do not fit the observation.
    """
    if not isinstance(spec.actions, BoundedActions):
        raise unsuitable("dpg", "continuous", spec)
    action_shape = spec.actions.shape
    action_low, action_high = spec.actions.low.reshape(-1), spec.actions.high.reshape(-1)
    if not np.isfinite(action_high - action_low).all():
        raise ValueError("dpg needs actions with finite bounds; this environment's have none")
    features.refuse_frames("dpg", spec)
    basis = features.of_observations(config, spec)
    squash, num_actions = config.squash, len(action_low)
    centre, half = (action_high + action_low) / 2, (action_high - action_low) / 2

    def to_bounds(action):
        """Maps actions [B, A] from [-1, 1], to which they are clipped, to [B, *shape] in the environment's bounds."""
        action = jnp.clip(centre + half * jnp.clip(action, -1.0, 1.0), action_low, action_high)
        return action.reshape(len(action), *action_shape)

    def from_bounds(action):
        return (action.reshape(len(action), num_actions) - centre) / half

    def init(key: jax.Array) -> State:
        del key
        shape = (basis.size, num_actions)
        weights = Weights(jnp.zeros(shape), jnp.zeros(shape), jnp.zeros(basis.size), jnp.zeros(shape))
        return State(weights, initial_hypers(Hypers, config), jnp.int32(0))

    def memory(num_envs: int, ranks: Any = None) -> Memory:
        del ranks
        return Memory(jnp.zeros((num_envs, num_actions)))

    def act(params: Policy, key: jax.Array, timestep: TimeStep, memory: Memory):
        """Plays mu plus Gaussian noise whose autocorrelation is noise_correlation^lag within an episode."""
        correlation = jnp.where(timestep.first, 0.0, config.noise_correlation)[:, None]
        fresh = params.sigma * jax.random.normal(key, memory.noise.shape)
        noise = correlation * memory.noise + jnp.sqrt(1.0 - correlation**2) * fresh
        mean, _ = mu(params.theta, basis.phi(timestep.observation), squash)
        return to_bounds(mean + noise), {}, Memory(noise)

    def act_greedily(params: Policy, key: jax.Array, timestep: TimeStep, memory: Memory):
        del key
        mean, _ = mu(params.theta, basis.phi(timestep.observation), squash)
        return to_bounds(mean), {}, memory

    def step(weights: Weights, hypers: Hypers, phi, action, targets, next_phi, live):
        """Returns the weights after one step, the mean over the live rows of all devices, and delta, [B]."""
        direction, delta = directions(weights, phi, action, targets, next_phi, live, squash)
        direction, number = pmean((direction, live.sum()))
        theta, w, v, u = jax.tree.map(lambda x: x / jnp.maximum(number, 1e-6), direction)
        each = basis.step_sizes[:, None]
        theta = weights.theta + hypers.alpha_theta * (
            jnp.where(number > 0, weights.w, 0.0) if config.natural_gradient else each * theta
        )
        w = weights.w + hypers.alpha_w * each * w
        v = weights.v + hypers.alpha_v * basis.step_sizes * v
        return Weights(theta, w, v, weights.u + hypers.alpha_u * each * u), delta

    def copdac(weights: Weights, hypers: Hypers, steps: Transition):
        """Takes a step of COPDAC-Q or COPDAC-GQ (section 4.3). In the target, Q^w(s, mu_theta(s)) is V^v(s)."""
        phi, action = basis.phi(steps.observation), from_bounds(steps.action)
        next_phi = steps.discount[:, None] * basis.phi(steps.next_observation)
        targets = config.reward_scale * steps.reward + next_phi @ weights.v
        live = jnp.ones_like(targets)
        weights, delta = step(weights, hypers, phi, action, targets, next_phi, live)
        return weights, delta, live

    def sarsa(weights: Weights, hypers: Hypers, steps: Step):
        """Takes the steps of section 4.1, row after row of a block [T+1, B, ...].

        The row that closes an episode is not a transition, because its action was thrown away. The row before it still
        uses that action: it is the action with which a truncated episode would have gone on.
        """
        features = basis.phi(steps.observation)
        actions, live = jax.vmap(from_bounds)(steps.action), steps.live
        rewards, discounts = config.reward_scale * steps.reward[:-1], config.discount * steps.discount[:-1]

        def row(weights, now):
            phi, action, next_phi, next_action, reward, discount, live = now
            targets = reward + discount * critic(weights, next_phi, next_action, squash)
            return step(weights, hypers, phi, action, targets, discount[:, None] * next_phi, live)

        rows = (features[:-1], actions[:-1], features[1:], actions[1:], rewards, discounts, live)
        weights, delta = jax.lax.scan(row, weights, rows)
        return weights, delta, live

    def update(state: State, key: jax.Array, sample: Sample) -> tuple[State, Feedback]:
        del key
        learn = sarsa if config.form == "sarsa" else copdac
        weights, delta, live = learn(state.weights, state.hypers, sample.steps)
        value = basis.phi(sample.steps.observation) @ weights.v
        squares, number, value = pmean((jnp.square(delta).sum(), live.sum(), value.mean()))
        metrics = {"critic_loss": squares / jnp.maximum(number, 1e-6), "value": value}
        metrics |= {f"{name}_norm": optax.tree.norm(x) for name, x in weights._asdict().items()}
        return State(weights, state.hypers, state.step + 1), Feedback(metrics)

    if config.form == "sarsa":
        table = queue_table(config, Blocks(config.unroll_length, next_action=True))
    else:
        table = TableSpec(
            "transitions",
            Transitions(1, config.discount),
            "uniform",
            max_size=config.replay_size,
            min_size=config.min_replay_size,
            samples_per_insert=config.samples_per_insert,
        )
    return Agent(
        init=init,
        policy=lambda state: Policy(state.weights.theta, state.hypers.sigma),
        memory=memory,
        act=act,
        act_greedily=act_greedily,
        update=update,
        table=table,
        batch_size=config.batch_size,
    )
