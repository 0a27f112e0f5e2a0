"""Off-PAC: an actor-critic that learns a target policy from experience that another policy makes.

Degris, White and Sutton 2012, https://arxiv.org/abs/1205.4839, whose notation this file uses: the critic is GTD(lambda)
with weights v and w, the actor's weights are u, the traces are e_v and e_u, and rho is an action's importance ratio.
The behaviour policy is uniformly random, as in the paper's experiments. Evaluations sample from the target policy, as
the paper's do.

The target policy is a softmax; for continuous actions it is a Gaussian whose mean and log sigma are linear in the
features. tanh maps its samples into the action bounds, because the behaviour never leaves them, and no importance ratio
can correct for actions that the behaviour never plays.

Deviations: a step averages the steps of several environments at the same time, each with its own traces. The behaviour
may repeat its last action, for tasks where independent random actions lead nowhere; rho accounts for this. When an
episode is truncated, the update bootstraps from the value of its last observation.
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
    check_ranges,
    pmean,
    queue_table,
)
from agents.parts import features
from agents.parts.exploration import per_environment
from agents.parts.optimization import initial_hypers
from agents.parts.policies import Policy, make_policy

EDGE = 1.0 - 1e-6  # the behaviour's actions lie in [-EDGE, EDGE], where tanh has a finite inverse


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings. The paper swept step sizes and lambda; the defaults here learn MountainCar-v0."""

    behaviour: Literal["uniform"] = "uniform"  # b(a | s): all actions are equally likely
    repeat: float = 0.0  # probability that the behaviour repeats its last action within an episode

    observation_low: tuple[float, ...] = ()  # lower bound of each number of an observation; values outside are clipped
    observation_high: tuple[float, ...] = ()  # upper bounds, likewise
    features: Literal["fourier", "tiles"] = "tiles"
    order: int = 3  # of the Fourier basis
    tilings: int = 10
    tiles: int = 10  # tiles of one tiling along each dimension of an observation
    sigma_initial: float = 1.0  # initial sigma of the Gaussian for continuous actions, before tanh

    discount: float = 0.99  # gamma
    lambda_: float = 0.4
    alpha_v: float = 0.5  # step size; each of the three is multiplied by a feature's own factor, for tiles 1 / tilings
    alpha_w: float = 0.01
    alpha_u: float = 0.5
    unroll_length: int = 1  # T, steps of each environment in one sample; the update takes them one by one
    batch_size: int = 1  # B, environments

    queue_batches: int = 1  # batches that may wait in the queue; with more, experience is older

    def __post_init__(self):
        check_ranges(
            self,
            counts=("order", "tilings", "tiles", "unroll_length", "batch_size", "queue_batches"),
            positive=("alpha_v", "alpha_u", "sigma_initial"),
            not_negative=("alpha_w",),
            fractions=("discount", "lambda_", "repeat"),
        )
        if self.repeat == 1.0:
            raise ValueError("config.repeat=1.0 would play one action for all of an episode: it must be below 1")
        features.check_bounds(self)


class Hypers(NamedTuple):
    """The hyperparameters that a population may tune while the learner runs; float32 scalars."""

    alpha_v: Any
    alpha_w: Any
    alpha_u: Any
    discount: Any
    lambda_: Any


class Weights(NamedTuple):
    """The learnt weights, for n features and P policy outputs (with discrete actions, one output per action)."""

    v: chex.Array  # [n], weights of the value v^T x
    w: chex.Array  # [n], GTD's second weights
    u: chex.Array  # [n, P], weights of the target policy, whose outputs are u^T x


class Traces(NamedTuple):
    """The eligibility traces of each environment's current episode."""

    e_v: chex.Array  # [B, n]
    e_u: chex.Array  # [B, n, P]


class State(NamedTuple):
    weights: Weights
    # Shaped for all B environments. Each of several devices uses only the first rows, for its share of environments.
    traces: Traces
    hypers: Hypers
    step: chex.Array  # updates so far, int32


class Memory(NamedTuple):
    action: chex.Array  # [B, ...] the last raw action, as `Policy` in agents/parts/policies.py defines it


class Row(NamedTuple):
    """One time step of B environments."""

    x: chex.Array  # x(s_t), [B, n]
    action: chex.Array  # a_t, raw, [B, ...]
    b: chex.Array  # b(a_t | s_t), [B]; a density if actions are continuous
    reward: chex.Array  # r_{t+1}, [B]
    discount: chex.Array  # gamma, or 0 where s_{t+1} is terminal, [B]
    next_x: chex.Array  # x(s_{t+1}), [B, n]
    first: chex.Array  # bool [B], the row opens an episode, so the traces start at 0


def directions(
    policy: Policy, weights: Weights, traces: Traces, row: Row, hypers: Hypers
) -> tuple[Weights, Traces, chex.Array]:
    """Computes one time step of the paper's algorithm 1, without the step sizes.

    Returns:
      The directions in which each environment moves v, w and u, [B, ...]; the new traces; delta, [B].
    """
    x, next_x, gamma_lambda = row.x, row.next_x, hypers.discount * hypers.lambda_
    delta = row.reward + row.discount * (next_x @ weights.v) - x @ weights.v
    log_pi, slope = jax.vmap(jax.value_and_grad(policy.log_prob))(x @ weights.u, row.action)
    rho = jnp.exp(log_pi) / row.b

    e_v = jnp.where(row.first[:, None], 0.0, traces.e_v)
    e_v = rho[:, None] * (x + gamma_lambda * e_v)
    correction = row.discount * (1.0 - hypers.lambda_) * (e_v @ weights.w)
    v = delta[:, None] * e_v - correction[:, None] * next_x
    w = delta[:, None] * e_v - (x @ weights.w)[:, None] * x

    e_u = jnp.where(row.first[:, None, None], 0.0, traces.e_u)
    e_u = rho[:, None, None] * (x[:, :, None] * slope[:, None] + gamma_lambda * e_u)  # slope is grad pi_u / pi_u
    u = delta[:, None, None] * e_u
    return Weights(v, w, u), Traces(e_v, e_u), delta


def make(config: Config, spec: EnvironmentSpec) -> Agent:
    """Makes the agent for environments of `spec`.

    Raises:
      ValueError: an action has no bounds, continuous actions are to be repeated, observations are frames or do not fit
        their bounds, or there are too many features.
    """
    policy = make_policy("off_pac", spec, "state", config.sigma_initial, squash=True)
    continuous = isinstance(spec.actions, BoundedActions)
    if continuous and config.repeat:
        why = "a continuous action that is repeated has no density"
        raise ValueError(f"config.repeat={config.repeat} is for discrete actions: {why}; give config.repeat=0")
    features.refuse_frames("off_pac", spec)
    basis = features.of_observations(config, spec)

    def init(key: jax.Array) -> State:
        del key
        n, B = basis.size, config.batch_size
        weights = Weights(jnp.zeros(n), jnp.zeros(n), jnp.zeros((n, policy.num_outputs)))
        traces = Traces(jnp.zeros((B, n)), jnp.zeros((B, n, policy.num_outputs)))
        return State(weights, traces, initial_hypers(Hypers, config), jnp.int32(0))

    def memory(num_envs: int, ranks: Any = None) -> Memory:
        del ranks
        return Memory(policy.mode(jnp.zeros((num_envs, policy.num_outputs))))

    def uniform(key: jax.Array, num_envs: int) -> tuple[chex.Array, chex.Array]:
        """Draws raw actions, uniform within the bounds; returns them and the probability or density of each, [B]."""
        zeros = jnp.zeros((num_envs, policy.num_outputs))
        if not continuous:
            action = policy.sample(key, zeros)
            return action, jnp.exp(policy.log_prob(zeros, action))
        number = policy.num_outputs // 2
        within = jax.random.uniform(key, (num_envs, number), minval=-EDGE, maxval=EDGE)
        return jnp.arctanh(within), jnp.full(num_envs, 0.5**number)

    def act(params, key: jax.Array, timestep: TimeStep, memory: Memory):
        """Plays the behaviour policy, which does not depend on the parameters."""
        del params
        repeat = jnp.where(timestep.first, 0.0, config.repeat)
        repeat_key, action_key = jax.random.split(key)
        fresh, likelihood = uniform(action_key, len(repeat))
        again = per_environment(jax.random.uniform(repeat_key, repeat.shape) < repeat, fresh.shape[1:])
        action = jnp.where(again, memory.action, fresh)
        same = jnp.all((action == memory.action).reshape(len(repeat), -1), axis=-1)
        b = (1.0 - repeat) * likelihood + repeat * same
        return policy.to_environment(action), {"b": b} | policy.keep(action), Memory(action)

    def act_greedily(u, key: jax.Array, timestep: TimeStep, memory: Memory):
        """Samples from the target policy; `u` are its weights."""
        action = policy.sample(key, basis.phi(timestep.observation) @ u)
        return policy.to_environment(action), {}, memory

    def update(state: State, key: jax.Array, sample: Sample) -> tuple[State, Feedback]:
        del key
        steps, hypers = sample.steps, state.hypers
        streams = steps.first.shape[1]
        x, live = basis.phi(steps.observation), steps.live

        def step(carry, now):
            weights, traces = carry
            row, live = now
            each, traces, delta = directions(policy, weights, traces, row, hypers)
            # `pmean` averages sums and counts over devices, so their quotient is the mean over all devices' live rows.
            sums, number = pmean((jax.tree.map(lambda d: jnp.tensordot(live, d, axes=1), each), live.sum()))
            v, w, u = jax.tree.map(lambda s: s / jnp.maximum(number, 1e-6), sums)
            weights = Weights(
                weights.v + hypers.alpha_v * basis.step_sizes * v,
                weights.w + hypers.alpha_w * basis.step_sizes * w,
                weights.u + hypers.alpha_u * basis.step_sizes[:, None] * u,
            )
            return (weights, traces), live * delta

        rows = Row(
            x[:-1],
            policy.kept(steps)[:-1],
            steps.extras["b"][:-1],
            steps.reward[:-1],
            hypers.discount * steps.discount[:-1],
            x[1:],
            steps.first[:-1],
        )
        mine = jax.tree.map(lambda e: e[:streams], state.traces)
        (weights, mine), delta = jax.lax.scan(step, (state.weights, mine), (rows, live))
        traces = jax.tree.map(lambda all, e: all.at[:streams].set(e), state.traces, mine)
        entropy = policy.entropy(x @ weights.u).mean()
        squares, number, value, entropy = pmean((jnp.square(delta).sum(), live.sum(), (x @ weights.v).mean(), entropy))
        metrics = {"critic_loss": squares / jnp.maximum(number, 1e-6), "value": value, "entropy": entropy}
        metrics |= {f"{name}_norm": optax.tree.norm(x) for name, x in weights._asdict().items()}
        return State(weights, traces, hypers, state.step + 1), Feedback(metrics)

    return Agent(
        init=init,
        policy=lambda state: state.weights.u,
        memory=memory,
        act=act,
        act_greedily=act_greedily,
        update=update,
        table=queue_table(config, Blocks(config.unroll_length)),
        batch_size=config.batch_size,
        in_order=True,
    )
