"""Distributions of returns, and how far they are from their targets: atoms, mixtures of Gaussians, quantiles.

Atoms: Bellemare et al. 2017, https://arxiv.org/abs/1707.06887; these and Gaussians of D4PG's critics: Barth-Maron et
al. 2018, https://arxiv.org/abs/1804.08617, appendix A. Quantiles: Dabney et al. 2018, https://arxiv.org/abs/1710.10044.
"""

import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp


class Distance(NamedTuple):
    """Between what was learnt and its targets, of each item."""

    losses: chex.Array  # [B] d(T Z', Z)
    errors: chex.Array  # [B] least where nothing is left to learn; 0 but of quantiles
    metrics: dict[str, Any]


def project(returns: chex.Array, probabilities: chex.Array, atoms: chex.Array) -> chex.Array:
    """Moves each return's probability to the two atoms around it, the nearer getting more (appendix A.1, Phi).

    Args:
      returns: [B, K]; beyond the first or the last atom they count as that atom.
      probabilities: of the returns, [B, K].
      atoms: rising in even steps, [L].

    Returns:
      Probabilities of the atoms, [B, L]; the sum stays, and so does the mean where no return was beyond the ends.
    """
    # An accelerator does the few products of L K sooner than it adds to scattered places; a CPU takes a third of the
    # time, with JAX 0.12 a tenth, for the latter (batches of 256, 51 atoms).
    place = (jnp.clip(returns, atoms[0], atoms[-1]) - atoms[0]) * (len(atoms) - 1) / (atoms[-1] - atoms[0])
    dense, scattered = (functools.partial(f, len(atoms)) for f in (project_densely, project_by_scatter))
    return jax.lax.platform_dependent(place, probabilities, cpu=scattered, default=dense)


def project_densely(size: int, place: chex.Array, probabilities: chex.Array) -> chex.Array:
    """[B, K] -> [B, size]: as `project`; places are counted in atoms from the first."""
    shares = jnp.maximum(0.0, 1.0 - jnp.abs(place[:, None, :] - jnp.arange(size)[:, None]))  # [B, L, K]
    return jnp.sum(shares * probabilities[:, None, :], axis=-1)


def project_by_scatter(size: int, place: chex.Array, probabilities: chex.Array) -> chex.Array:
    """The same."""
    row, below = jnp.arange(len(place))[:, None], jnp.clip(place.astype(jnp.int32), 0, size - 2)
    above = (place - below) * probabilities
    return jnp.zeros((len(place), size)).at[row, below].add(probabilities - above).at[row, below + 1].add(above)


def categorical_distance(outputs, target_outputs, reward, discount, atoms) -> Distance:
    """Cross-entropy to the projected target; outputs are logits [B, L], reward and discount [B], atoms [L]."""
    returns = reward[:, None] + discount[:, None] * atoms  # [B, L]
    probabilities = jax.nn.softmax(target_outputs)
    target = jax.lax.stop_gradient(project(returns, probabilities, atoms))
    losses = -jnp.sum(target * jax.nn.log_softmax(outputs), axis=-1)
    entropy = -jnp.sum(jax.scipy.special.xlogy(target, target), axis=-1)
    outside = (returns < atoms[0]) | (returns > atoms[-1])
    clipped = jnp.sum(probabilities * outside, axis=-1).mean()  # that the support is too narrow
    return Distance(losses, jnp.maximum(0.0, losses - entropy), {"clipped_fraction": clipped})


def quantile_distance(quantiles, fractions, targets, kappa: float) -> Distance:
    """The quantile Huber loss: sum over i of E_j[|tau_i - 1{u_ij < 0}| L_kappa(u_ij) / kappa], u_ij = target_j -
    quantile_i; with a kappa of 0 it is |u_ij| that is weighted. The error is the mean over i of the same.

    Args:
      quantiles: of the fractions, [B, N].
      fractions: tau_i in (0, 1), [N] or [B, N].
      targets: samples of the return, all alike likely, [B, N'].
      kappa: from where on the loss is linear.
    """
    import rlax  # here, not above: where TensorFlow is installed it takes seconds

    def of_one(quantiles, fractions, targets):
        return rlax.quantile_regression_loss(quantiles, fractions, targets, huber_param=kappa)

    fractions, targets = jnp.broadcast_to(fractions, quantiles.shape), jax.lax.stop_gradient(targets)
    losses = jax.vmap(of_one)(quantiles, fractions, targets) / (kappa or 1.0)
    return Distance(losses, losses / quantiles.shape[-1], {})


class Gaussians(NamedTuple):
    """A mixture of K; [B, K] each."""

    logits: chex.Array
    means: chex.Array
    scales: chex.Array


def gaussians(outputs: chex.Array, v_min: float, v_max: float) -> Gaussians:
    """[B, 3 K] -> a mixture that covers [v_min, v_max] evenly where the outputs are 0, and is not bound to it."""
    logits, means, scales = jnp.split(outputs, 3, axis=-1)
    half, count = 0.5 * (v_max - v_min), logits.shape[-1]
    centres = v_min + (jnp.arange(count) + 0.5) * (v_max - v_min) / count
    # The floor bounds the density where returns are certain, as at an episode's end.
    return Gaussians(logits, centres + half * means, half * (jax.nn.softplus(scales) / count + 1e-4))


def gaussians_distance(key, z: Gaussians, target: Gaussians, reward, discount, num_samples: int) -> Distance:
    """Cross-entropy to r + gamma^N Z', estimated from samples of it (appendix A.2); reward and discount [B]."""
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
    """[B, K] -> [B]."""
    return jnp.sum(jax.nn.softmax(z.logits) * z.means, axis=-1)
