"""Distributions of returns (atoms, mixtures of Gaussians, quantiles), and the losses that bring them to their targets.

Atoms: Bellemare et al. 2017, https://arxiv.org/abs/1707.06887. Atoms and Gaussians as D4PG's critics have them:
Barth-Maron et al. 2018, https://arxiv.org/abs/1804.08617, appendix A. Quantiles: Dabney et al. 2018,
https://arxiv.org/abs/1710.10044.
"""

import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp


class Distance(NamedTuple):
    """The distance of each learnt distribution from its target."""

    losses: chex.Array  # [B] d(T Z', Z)
    errors: chex.Array  # [B] for priorities: smallest where nothing is left to learn, and 0 there except for quantiles
    metrics: dict[str, Any]  # scalars


def project(returns: chex.Array, probabilities: chex.Array, atoms: chex.Array) -> chex.Array:
    """Splits each return's probability between the two atoms around it; the nearer one gets more (appendix A.1, Phi).

    Args:
      returns: [B, K]; a return beyond the first or the last atom counts as that atom.
      probabilities: the probability of each return, [B, K].
      atoms: [L], rising in even steps.

    Returns:
      Probabilities of the atoms, [B, L]. The sum is kept, and so is the mean if no return was beyond the ends.
    """
    # An accelerator is faster at the L K products of the dense way than at scattered additions. A CPU is faster at the
    # scattered additions: they take a third of the time, with JAX 0.12 a tenth (batches of 256, 51 atoms).
    place = (jnp.clip(returns, atoms[0], atoms[-1]) - atoms[0]) * (len(atoms) - 1) / (atoms[-1] - atoms[0])
    dense, scattered = (functools.partial(f, len(atoms)) for f in (project_densely, project_by_scatter))
    return jax.lax.platform_dependent(place, probabilities, cpu=scattered, default=dense)


def project_densely(size: int, place: chex.Array, probabilities: chex.Array) -> chex.Array:
    """Computes `project` by dense products: [B, K] -> [B, size]. `place` is a return's place among the atoms, 0 for the
    first."""
    shares = jnp.maximum(0.0, 1.0 - jnp.abs(place[:, None, :] - jnp.arange(size)[:, None]))  # [B, L, K]
    return jnp.sum(shares * probabilities[:, None, :], axis=-1)


def project_by_scatter(size: int, place: chex.Array, probabilities: chex.Array) -> chex.Array:
    """Computes the same as `project_densely`, by scattered additions."""
    row, below = jnp.arange(len(place))[:, None], jnp.clip(place.astype(jnp.int32), 0, size - 2)
    above = (place - below) * probabilities
    return jnp.zeros((len(place), size)).at[row, below].add(probabilities - above).at[row, below + 1].add(above)


def categorical_distance(outputs, target_outputs, reward, discount, atoms) -> Distance:
    """Returns the cross-entropy to the projected target; outputs are logits [B, L], reward and discount [B], atoms [L].

    The error is the KL divergence: the cross-entropy less the target's entropy.
    """
    returns = reward[:, None] + discount[:, None] * atoms  # [B, L]
    probabilities = jax.nn.softmax(target_outputs)
    target = jax.lax.stop_gradient(project(returns, probabilities, atoms))
    losses = -jnp.sum(target * jax.nn.log_softmax(outputs), axis=-1)
    entropy = -jnp.sum(jax.scipy.special.xlogy(target, target), axis=-1)
    outside = (returns < atoms[0]) | (returns > atoms[-1])
    clipped = jnp.sum(probabilities * outside, axis=-1).mean()  # large where the support is too narrow
    return Distance(losses, jnp.maximum(0.0, losses - entropy), {"clipped_fraction": clipped})


def quantile_distance(quantiles, fractions, targets, kappa: float) -> Distance:
    """Returns the quantile Huber loss: sum over i of E_j[|tau_i - 1{u_ij < 0}| L_kappa(u_ij) / kappa], where u_ij =
    target_j - quantile_i. With a kappa of 0, |u_ij| takes the place of L_kappa(u_ij) / kappa. The error is the mean
    over i instead of the sum.

    Args:
      quantiles: the learnt quantiles at the fractions, [B, N].
      fractions: tau_i in (0, 1), [N] or [B, N].
      targets: equally likely samples of the return, [B, N'].
      kappa: the size of error from which the loss is linear.
    """
    import rlax  # here, not above: where TensorFlow is installed it takes seconds

    def of_one(quantiles, fractions, targets):
        return rlax.quantile_regression_loss(quantiles, fractions, targets, huber_param=kappa)

    fractions, targets = jnp.broadcast_to(fractions, quantiles.shape), jax.lax.stop_gradient(targets)
    losses = jax.vmap(of_one)(quantiles, fractions, targets) / (kappa or 1.0)
    return Distance(losses, losses / quantiles.shape[-1], {})


class Gaussians(NamedTuple):
    """A mixture of K Gaussians; each field is [B, K]."""

    logits: chex.Array
    means: chex.Array
    scales: chex.Array


def gaussians(outputs: chex.Array, v_min: float, v_max: float) -> Gaussians:
    """Returns the mixture that a network's outputs [B, 3 K] stand for.

    Outputs of 0 are a mixture that covers [v_min, v_max] evenly; other outputs may leave that range.
    """
    logits, means, scales = jnp.split(outputs, 3, axis=-1)
    half, count = 0.5 * (v_max - v_min), logits.shape[-1]
    centres = v_min + (jnp.arange(count) + 0.5) * (v_max - v_min) / count
    # The 1e-4 keeps the density finite where the return is certain, as at an episode's end.
    return Gaussians(logits, centres + half * means, half * (jax.nn.softplus(scales) / count + 1e-4))


def gaussians_distance(key, z: Gaussians, target: Gaussians, reward, discount, num_samples: int) -> Distance:
    """Returns the cross-entropy to r + gamma^N Z', estimated from `num_samples` samples of it (appendix A.2).

    Reward and discount are [B]. The error is the absolute difference of the means.
    """
    component_key, normal_key = jax.random.split(key)
    shape = (num_samples, reward.shape[0])
    component = jax.random.categorical(component_key, target.logits, shape=shape)[..., None]  # [samples, B, 1]
    mean, scale = (jnp.take_along_axis(x[None], component, axis=-1)[..., 0] for x in (target.means, target.scales))
    returns = reward + discount * (mean + scale * jax.random.normal(normal_key, shape))
    returns = jax.lax.stop_gradient(returns)[..., None]  # [samples, B, 1]
    log_densities = jax.scipy.stats.norm.logpdf(returns, z.means, z.scales)  # [samples, B, K]
    log_density = jax.nn.logsumexp(jax.nn.log_softmax(z.logits) + log_densities, axis=-1)
    errors = reward + discount * gaussians_mean(target) - gaussians_mean(z)
    return Distance(-log_density.mean(axis=0), jnp.abs(errors), {})


def gaussians_mean(z: Gaussians) -> chex.Array:
    """Returns each mixture's mean: [B, K] -> [B]."""
    return jnp.sum(jax.nn.softmax(z.logits) * z.means, axis=-1)
