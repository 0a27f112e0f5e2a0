"""Torsos: the first layers of a network, which take observations, and the smallest frames that each can take.

Sizes in the shapes below: T rows of time, B environments, N = T * B, S stacked frames. Parameters are always float32;
`dtype` is the type of the arithmetic.
"""

from collections.abc import Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

ACTIVATIONS = {"tanh": nn.tanh, "relu": nn.relu}
ORTHOGONAL = nn.initializers.orthogonal(2**0.5)

SHALLOW = ((16, 8, 4), (32, 4, 2))  # (features, size, stride) of each convolution
NATURE = ((32, 8, 4), (64, 4, 2), (64, 3, 1))


def least_side(convolutions: Sequence[tuple[int, int, int]]) -> int:
    """Returns the side, in pixels, of the smallest frame of which unpadded `convolutions` leave anything."""
    side = 1
    for _, size, stride in reversed(convolutions):
        side = (side - 1) * stride + size
    return side


# Residual: a single pixel is its own background, and so is not seen.
LEAST_SIDES = {"shallow": least_side(SHALLOW), "nature": least_side(NATURE), "residual": 2}
GRID = 14  # pixels along each side of the grid whose median is taken for the background


def check_frames(torso: str, frame_stack: int, shape: tuple[int, ...]) -> None:
    """Raises ValueError if observations of this `shape` do not fit.

    A convolutional torso, and a stack of frames, need observations that are frames. A convolutional torso needs frames
    that are large enough for it.
    """
    frames = len(shape) in (2, 3)
    wanted = "frames [height, width] or [height, width, channels]"
    if torso != "mlp" and not frames:
        raise ValueError(f"torso={torso} needs {wanted}, not observations {shape}; use torso=mlp")
    if frame_stack > 1 and not frames:
        raise ValueError(f"frame_stack={frame_stack} needs {wanted}, not observations {shape}; use frame_stack=1")
    if torso != "mlp" and min(shape[:2]) < (least := LEAST_SIDES[torso]):
        fit = [name for name, side in LEAST_SIDES.items() if side <= min(shape[:2])]
        raise ValueError(
            f"torso={torso} needs frames of at least {least}x{least}, not {shape[0]}x{shape[1]}; "
            f"use torso={' or '.join([*fit, 'mlp'])}"
        )


class Conv(nn.Module):
    """A convolution without padding: [N, H, W, C] -> [N, (H - size) // stride + 1, (W - size) // stride + 1, features].

    It has the parameters and the result of `nn.Conv(..., padding='VALID')`, but is computed as space-to-depth and a
    convolution of stride 1: XLA's CPU backend takes 4 to 6 times as long for the input gradient of a strided one. So a
    training step of `NatureTorso` takes 0.8 to 0.9 of the time on two cores; inference takes the same.
    """

    features: int
    size: int
    stride: int = 1  # must divide size
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: chex.Array) -> chex.Array:
        n, h, w, c = x.shape
        s, k = self.stride, self.size // self.stride
        kernel = self.param("kernel", ORTHOGONAL, (self.size, self.size, c, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x, kernel, bias = (a.astype(self.dtype) for a in (x, kernel, bias))
        if s > 1:
            chex.assert_is_divisible(self.size, s)
            h, w = h // s, w // s  # the remainder is smaller than a stride, so no window reaches into it
            x = x[:, : h * s, : w * s].reshape(n, h, s, w, s, c).swapaxes(2, 3).reshape(n, h, w, s * s * c)
            kernel = kernel.reshape(k, s, k, s, c, -1).swapaxes(1, 2).reshape(k, k, s * s * c, -1)
        dimensions = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=dimensions) + bias


def centre_pixels(x: chex.Array, dtype: Any) -> chex.Array:
    """Scales bytes, frames [N, H, W, S], to a range of 1 around each observation's background; inputs that are not
    bytes, such as a board's, keep their values.

    The background is the median of a grid of about GRID x GRID pixels of the newest frame, or of the last channel. So
    it is 0, whatever its brightness: otherwise it would shift all units together, far more than the objects in front of
    it do. In [0, 1] Pong's grey background does so and Breakout's black one does not; in [-1/2, 1/2] it is the other
    way round.
    """
    if x.dtype != jnp.uint8:
        return x.astype(dtype)
    grid = x[:, :: max(1, x.shape[1] // GRID), :: max(1, x.shape[2] // GRID), -1].reshape(x.shape[0], -1)
    background = median_of_bytes(grid)[:, None, None, None]
    return (x.astype(dtype) - background.astype(dtype)) / 255


def median_of_bytes(x: chex.Array) -> chex.Array:
    """Returns each row's element M // 2 in order: uint8 [N, M] -> uint8 [N].

    It is the largest byte that at most M // 2 elements are less than. Its bits are found from the highest on, each by a
    count, which takes a fraction of the time of sorting.
    """
    median = jnp.zeros(x.shape[0], jnp.uint8)
    for bit in (128, 64, 32, 16, 8, 4, 2, 1):
        larger = median + jnp.uint8(bit)
        median = jnp.where(jnp.sum(x < larger[:, None], axis=1) <= x.shape[1] // 2, larger, median)
    return median


class MLPTorso(nn.Module):
    """Dense layers: [N, ...], flattened -> [N, hidden_sizes[-1]].

    With `layer_norm` the first layer has layer normalisation (Ba et al. 2016, https://arxiv.org/abs/1607.06450) and
    then tanh, whatever the activation of the others. With `normalized` every layer has layer normalisation before its
    activation.

    Pixels of frames, [N, H, W, ...] in bytes, are scaled to [0, 1]; otherwise tanh would saturate. A vector's bytes are
    zeros and ones, and stay so.
    """

    hidden_sizes: Sequence[int] = (64, 64)
    activation: str = "tanh"
    dtype: Any = jnp.float32
    layer_norm: bool = False
    normalized: bool = False

    @nn.compact
    def __call__(self, x: chex.Array) -> chex.Array:
        scale = 255 if x.dtype == jnp.uint8 and x.ndim > 2 else 1
        x = x.reshape(x.shape[0], -1).astype(self.dtype) / scale
        for layer, size in enumerate(self.hidden_sizes):
            x = nn.Dense(size, self.dtype, kernel_init=ORTHOGONAL)(x)
            first = self.layer_norm and layer == 0
            if first or self.normalized:
                x = nn.LayerNorm(dtype=self.dtype)(x)
            x = nn.tanh(x) if first else ACTIVATIONS[self.activation](x)
        return x


class ConvTorso(nn.Module):
    """Strided convolutions and a dense layer: uint8 [N, H, W, S] -> [N, hidden_size].

    With `normalized` every layer has layer normalisation before its activation (Ba et al. 2016,
    https://arxiv.org/abs/1607.06450); a convolution's is over its features, separately at each place.
    """

    convolutions: Sequence[tuple[int, int, int]]  # (features, size, stride) of each
    hidden_size: int  # units of the dense layer; 0: without that layer
    dtype: Any = jnp.float32
    normalized: bool = False

    @nn.compact
    def __call__(self, x: chex.Array) -> chex.Array:
        def activation(x: chex.Array) -> chex.Array:
            return nn.relu(nn.LayerNorm(dtype=self.dtype)(x) if self.normalized else x)

        x = centre_pixels(x, self.dtype)
        for features, size, stride in self.convolutions:
            x = activation(Conv(features, size, stride, dtype=self.dtype)(x))
        x = x.reshape(x.shape[0], -1)
        if not self.hidden_size:
            return x
        return activation(nn.Dense(self.hidden_size, dtype=self.dtype, kernel_init=ORTHOGONAL)(x))


def ShallowTorso(dtype: Any = jnp.float32, hidden_size: int = 256, normalized: bool = False) -> ConvTorso:
    """A3C's network and IMPALA's shallow one (Mnih et al. 2016, section 5.1; Espeholt et al. 2018, fig. 3, left)."""
    return ConvTorso(SHALLOW, hidden_size, dtype, normalized)


def NatureTorso(dtype: Any = jnp.float32, hidden_size: int = 512, normalized: bool = False) -> ConvTorso:
    """DQN's network (Mnih et al. 2015, 10.1038/nature14236), three times the shallow one's arithmetic."""
    return ConvTorso(NATURE, hidden_size, dtype, normalized)


class ResidualTorso(nn.Module):
    """IMPALA's deep residual network (Espeholt et al. 2018, fig. 3, arxiv.org/abs/1802.01561), without its LSTM.

    uint8 [N, H, W, S] -> [N, 256]. Weights start with variance 1 / fan-in, as in the paper's code.
    """

    dtype: Any = jnp.float32
    hidden_size: int = 256  # units of the dense layer; 0: without that layer

    @nn.compact
    def __call__(self, x: chex.Array) -> chex.Array:
        def conv(features, x):  # padded; a plain nn.Conv, since nothing that was tried was a tenth faster
            return nn.Conv(features, (3, 3), dtype=self.dtype)(x)

        x = centre_pixels(x, self.dtype)
        for features in (16, 32, 32):
            x = nn.max_pool(conv(features, x), (3, 3), (2, 2), "SAME")
            for _ in range(2):
                x = x + conv(features, nn.relu(conv(features, nn.relu(x))))
        x = nn.relu(x).reshape(x.shape[0], -1)
        if not self.hidden_size:
            return x
        return nn.relu(nn.Dense(self.hidden_size, dtype=self.dtype)(x))


def make_torso(
    name: str,
    hidden_sizes: Sequence[int],
    activation: str,
    dtype: Any,
    *,
    convolutions_only: bool = False,
    normalized: bool = False,
) -> nn.Module:
    """Makes the torso called `name`: 'mlp', 'shallow', 'nature' or 'residual'.

    Args:
      hidden_sizes, activation: for 'mlp' alone; the others have their own.
      convolutions_only: whether the others leave out their dense layer.
      normalized: whether every layer has layer normalisation; 'residual' cannot have it.
    """
    fields: dict[str, Any] = {"normalized": True} if normalized else {}
    if name == "mlp":
        return MLPTorso(hidden_sizes, activation, dtype, **fields)
    torsos: dict[str, Any] = {"shallow": ShallowTorso, "nature": NatureTorso, "residual": ResidualTorso}
    return torsos[name](dtype, **({"hidden_size": 0} if convolutions_only else {}), **fields)
