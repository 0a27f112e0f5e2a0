"""Families of stochastic policies: a softmax over discrete actions, one for each factor of factored actions, and a
diagonal Gaussian over continuous actions.

A network computes a policy's outputs; a `Policy` says what distribution they stand for. The Gaussian is Williams's
(1992, https://doi.org/10.1007/BF00992696, section 6). Its actions are scaled so that their bounds are -1 and 1. Its
samples are not clipped: the environment gets the clipped action, and the update gets the raw one, whose density is
exact. If the Gaussian is squashed, the action is tanh of its sample, and the density includes the change of variables
(Haarnoja et al. 2018, https://arxiv.org/abs/1801.01290, appendix C).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from agents.agent import DiscreteActions, EnvironmentSpec, Extras, FactoredActions, Step
from agents.parts.exploration import bounded_actions, greedy, to_bounds

SIGMA_MIN, SIGMA_MAX = 1e-3, 10.0  # in actions scaled to [-1, 1]; sigma has no gradient beyond these
# Gauss-Hermite quadrature, for the entropy of squashed Gaussians: E[f(x)] is about sum_i weight_i f(mu + sigma node_i).
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(32)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


class Policy(NamedTuple):
    """A family of distributions over actions. A network's outputs, float32 [..., num_outputs], give one distribution
    each.

    Raw actions are what is sampled and what has a probability. For a softmax they are the action itself, int32 [...],
    and for factors too, int32 [..., F]. For Gaussians they are float32 [..., n] with n the numbers of one action.
    """

    num_outputs: int
    num_free: int  # the last `num_free` outputs are free parameters, the same for every observation
    sample: Callable[[jax.Array, Any], chex.Array]  # (key, outputs) -> raw
    mode: Callable[[Any], chex.Array]  # outputs -> raw: the likeliest action; a Gaussian's mean
    to_environment: Callable[[Any], chex.Array]  # raw -> the environment's actions, [..., *shape]
    log_prob: Callable[[Any, Any], chex.Array]  # (outputs, raw) -> [...]; log-densities where actions are continuous
    entropy: Callable[[Any], chex.Array]  # outputs -> [...] in nats; a density's may be negative
    kl: Callable[[Any, Any], chex.Array]  # (p's outputs, q's outputs) -> KL(p || q), [...] in nats
    # (new outputs, old outputs) -> several outputs, in each of which one kind of parameter is new and the rest is old:
    # for Gaussians (mu new, sigma old) and (mu old, sigma new), for a softmax only the new outputs.
    decoupled: Callable[[Any, Any], tuple[chex.Array, ...]]
    keep: Callable[[Any], Extras]  # raw -> the extras that a Step must hold for `kept`
    kept: Callable[[Step], Any]  # a Step with these extras -> raw


def softmax(num_actions: int) -> Policy:
    """Makes the softmax policy, which takes action a of 0 .. num_actions - 1 with probability exp(outputs_a) / sum_b
    exp(outputs_b)."""

    def sample(key: jax.Array, outputs: Any) -> chex.Array:
        return jax.random.categorical(key, outputs).astype(jnp.int32)

    def log_prob(outputs: Any, raw: Any) -> chex.Array:
        return jnp.take_along_axis(jax.nn.log_softmax(outputs), raw[..., None], axis=-1)[..., 0]

    def entropy(outputs: Any) -> chex.Array:
        return -jnp.sum(jax.nn.softmax(outputs) * jax.nn.log_softmax(outputs), axis=-1)

    def kl(p: Any, q: Any) -> chex.Array:
        return jnp.sum(jax.nn.softmax(p) * (jax.nn.log_softmax(p) - jax.nn.log_softmax(q)), axis=-1)

    return Policy(
        num_outputs=num_actions,
        num_free=0,
        sample=sample,
        mode=greedy,
        to_environment=lambda raw: raw,
        log_prob=log_prob,
        entropy=entropy,
        kl=kl,
        decoupled=lambda new, old: (new,),
        keep=lambda raw: {},  # a Step holds the action anyway
        kept=lambda step: step.action,
    )


def factored(sizes: Sequence[int]) -> Policy:
    """Makes a policy of independent softmaxes, one for each factor.

    The probability of an action, int32 [..., F], is the product of its factors' probabilities. Outputs are the logits
    of one factor after another, [..., sum(sizes)].
    """
    factors = [softmax(size) for size in sizes]

    def split(outputs: Any) -> list[chex.Array]:
        return jnp.split(jnp.asarray(outputs), np.cumsum(sizes)[:-1], axis=-1)

    def sample(key: jax.Array, outputs: Any) -> chex.Array:
        keys = jax.random.split(key, len(factors))
        choices = [f.sample(k, part) for f, k, part in zip(factors, keys, split(outputs), strict=True)]
        return jnp.stack(choices, axis=-1)

    def mode(outputs: Any) -> chex.Array:
        return jnp.stack([f.mode(part) for f, part in zip(factors, split(outputs), strict=True)], axis=-1)

    def log_prob(outputs: Any, raw: Any) -> chex.Array:
        choices = jnp.moveaxis(jnp.asarray(raw), -1, 0)
        return sum_of([f.log_prob(*x) for f, *x in zip(factors, split(outputs), choices, strict=True)])

    def entropy(outputs: Any) -> chex.Array:
        return sum_of([f.entropy(part) for f, part in zip(factors, split(outputs), strict=True)])

    def kl(p: Any, q: Any) -> chex.Array:
        return sum_of([f.kl(*parts) for f, *parts in zip(factors, split(p), split(q), strict=True)])

    def sum_of(terms: list[chex.Array]) -> chex.Array:
        return jnp.sum(jnp.stack(terms), axis=0)

    return factors[0]._replace(
        num_outputs=sum(sizes), sample=sample, mode=mode, log_prob=log_prob, entropy=entropy, kl=kl
    )


def mean_and_log_sigma(outputs: Any, sigma_initial: float) -> tuple[chex.Array, chex.Array]:
    """Splits a Gaussian's outputs into mu and log sigma, [..., n] each. Outputs of 0 stand for `sigma_initial`."""
    mu, log_sigma = jnp.split(outputs, 2, axis=-1)
    return mu, jnp.clip(log_sigma + math.log(sigma_initial), math.log(SIGMA_MIN), math.log(SIGMA_MAX))


def log_tanh_derivative(x: Any) -> chex.Array:
    """Returns log(1 - tanh(x)^2), accurately even where 1 - tanh(x)^2 rounds to 0."""
    return 2.0 * (math.log(2.0) - x - jax.nn.softplus(-2.0 * x))


def gaussian(num_free: int, spec: EnvironmentSpec, sigma_initial: float, squash: bool, agent: str) -> Policy:
    """Makes the Gaussian policy, independent for each number of an action; outputs are the means, then the log sigmas.

    If `squash` is true, `log_prob` and `entropy` are those of tanh(raw). The entropy is by quadrature, to within about
    1e-3 nats for each number while sigma is 1 or less. `kl` is that of the Gaussians, which squashing does not change.

    Args:
      num_free: 1 if log sigmas are free parameters, 0 if they are outputs of the network.
      spec: the environment's.
      sigma_initial: sigma where its outputs are 0, in actions scaled to [-1, 1].
      squash: whether tanh takes samples into the bounds.
      agent: the agent's name, for error messages.

    Raises:
      ValueError: an action's bound is infinite, or low is not below high.
    """
    bounds = bounded_actions(agent, spec)
    size = math.prod(bounds.shape)

    def sample(key: jax.Array, outputs: Any) -> chex.Array:
        mu, log_sigma = mean_and_log_sigma(outputs, sigma_initial)
        return mu + jnp.exp(log_sigma) * jax.random.normal(key, mu.shape)

    def to_environment(raw: Any) -> chex.Array:
        raw = raw.reshape(*raw.shape[:-1], *bounds.shape)
        return to_bounds(bounds, jnp.tanh(raw) if squash else raw)

    def log_prob(outputs: Any, raw: Any) -> chex.Array:
        mu, log_sigma = mean_and_log_sigma(outputs, sigma_initial)
        log_density = -0.5 * jnp.square((raw - mu) * jnp.exp(-log_sigma)) - log_sigma - 0.5 * math.log(2 * math.pi)
        return jnp.sum(log_density - log_tanh_derivative(raw) if squash else log_density, axis=-1)

    def entropy(outputs: Any) -> chex.Array:
        mu, log_sigma = mean_and_log_sigma(outputs, sigma_initial)
        entropies = log_sigma + 0.5 * math.log(2 * math.pi * math.e)
        if squash:
            x = mu[..., None] + jnp.exp(log_sigma)[..., None] * NODES
            entropies += jnp.sum(WEIGHTS * log_tanh_derivative(x), axis=-1)
        return jnp.sum(entropies, axis=-1)

    def kl(p: Any, q: Any) -> chex.Array:
        (mu_p, log_p), (mu_q, log_q) = (mean_and_log_sigma(outputs, sigma_initial) for outputs in (p, q))
        squares = jnp.exp(2.0 * (log_p - log_q)) + jnp.square((mu_p - mu_q) * jnp.exp(-log_q))
        return jnp.sum(log_q - log_p + 0.5 * (squares - 1.0), axis=-1)

    def decoupled(new: Any, old: Any) -> tuple[chex.Array, chex.Array]:
        (mu, log_sigma), (old_mu, old_log_sigma) = (jnp.split(outputs, 2, axis=-1) for outputs in (new, old))
        return jnp.concatenate([mu, old_log_sigma], axis=-1), jnp.concatenate([old_mu, log_sigma], axis=-1)

    return Policy(
        num_outputs=2 * size,
        num_free=num_free * size,
        sample=sample,
        mode=lambda outputs: mean_and_log_sigma(outputs, sigma_initial)[0],
        to_environment=to_environment,
        log_prob=log_prob,
        entropy=entropy,
        kl=kl,
        decoupled=decoupled,
        keep=lambda raw: {"raw": raw},
        kept=lambda step: step.extras["raw"],
    )


def make_policy(
    agent: str,
    spec: EnvironmentSpec,
    sigma: Literal["free", "state"] = "free",
    sigma_initial: float = 1.0,
    squash: bool = False,
) -> Policy:
    """Makes the policy for a spec's actions: softmaxes for discrete and factored ones, a Gaussian for continuous ones.

    Args:
      agent: the agent's name, for error messages.
      spec: the environment's.
      sigma: 'free' if the Gaussian's log standard deviations are free parameters, 'state' if they are outputs of the
        network, as the means are.
      sigma_initial: the standard deviation where its outputs are 0, in actions scaled to [-1, 1].
      squash: whether tanh takes the Gaussian's samples into the bounds. Otherwise samples are clipped to the bounds.

    Raises:
      ValueError: an action's bound is infinite, or low is not below high.
    """
    if isinstance(spec.actions, DiscreteActions):
        return softmax(spec.actions.num_actions)
    if isinstance(spec.actions, FactoredActions):
        return factored(spec.actions.sizes)
    return gaussian(int(sigma == "free"), spec, sigma_initial, squash, agent)
