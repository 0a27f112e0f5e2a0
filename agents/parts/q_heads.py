"""A Q-network's last layers: plain or dueling, with one output or several atoms for each action, noisy or not.

Dueling: Wang et al. 2016, https://arxiv.org/abs/1511.06581. Noisy networks: Fortunato et al. 2018,
https://arxiv.org/abs/1706.10295. All of them together: Hessel et al. 2018, https://arxiv.org/abs/1710.02298.
"""

import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from agents.parts.torsos import ORTHOGONAL


def scaled(noise: chex.Array) -> chex.Array:
    """Returns f(x) = sgn(x) sqrt(|x|) of each number; factorised noise is made of such numbers."""
    return jnp.sign(noise) * jnp.sqrt(jnp.abs(noise))


class NoisyDense(nn.Module):
    """A noisy dense layer: y = (mu^w + sigma^w * eps^w) x + mu^b + sigma^b * eps^b, [..., p] -> [..., q].

    sigma, the size of the noise, is learnt. The noise is factorised (section 3, b) and the same for all rows of x. Flax
    draws it from the random stream `noise`; if that stream is not given, there is no noise.
    """

    features: int  # q
    sigma_0: float = 0.5  # sigma starts at sigma_0 / sqrt(p)
    dtype: Any = None  # the type of the arithmetic; None: that of x and the parameters

    @nn.compact
    def __call__(self, x: chex.Array) -> chex.Array:
        p, q = x.shape[-1], self.features
        bound = 1.0 / math.sqrt(p)

        def init_mu(key, shape):
            return jax.random.uniform(key, shape, minval=-bound, maxval=bound)

        init_sigma = nn.initializers.constant(self.sigma_0 * bound)
        kernel, bias = self.param("kernel", init_mu, (p, q)), self.param("bias", init_mu, (q,))
        sigma_kernel = self.param("sigma_kernel", init_sigma, (p, q))
        sigma_bias = self.param("sigma_bias", init_sigma, (q,))
        if self.has_rng("noise"):
            of_p, of_q = jnp.split(scaled(jax.random.normal(self.make_rng("noise"), (p + q,))), [p])
            kernel += sigma_kernel * of_p[:, None] * of_q
            bias += sigma_bias * of_q
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        return x @ kernel + bias


def q_heads(
    x: chex.Array,
    num_actions: int,
    *,
    num_atoms: int = 0,
    dueling: bool = False,
    head_size: int = 0,
    noisy: float = 0.0,
    dtype: Any = jnp.float32,
) -> chex.Array:
    """Adds a Q-network's last layers to the module that calls it: features [..., F] -> float32 [..., A], or with atoms
    [..., A, num_atoms].

    The other arguments are as the fields of QNetwork.
    """

    def dense(size: int, name: str, layer_dtype: Any, kernel_init: Any) -> Any:
        if noisy:
            return NoisyDense(size, noisy, layer_dtype, name=name)
        return nn.Dense(size, dtype=layer_dtype, kernel_init=kernel_init, name=name)

    def stream(size: int, name: str) -> chex.Array:
        y = x.astype(dtype)
        if head_size:
            y = nn.relu(dense(head_size, f"{name}_hidden", dtype, ORTHOGONAL)(y))
        # The small weights let values start near 0.
        return dense(size, name, None, nn.initializers.orthogonal(0.01))(y.astype(jnp.float32))

    shape = (num_actions, num_atoms) if num_atoms else (num_actions,)
    advantages = stream(math.prod(shape), "advantage").reshape(*x.shape[:-1], *shape)
    if not dueling:
        return advantages
    axis = x.ndim - 1  # the axis of actions
    value = jnp.expand_dims(stream(num_atoms, "value"), axis) if num_atoms else stream(1, "value")
    return value + advantages - advantages.mean(axis=axis, keepdims=True)
