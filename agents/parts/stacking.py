"""Prepares frames for a torso: stacks them and puts channels last.

Sizes in the shapes below: T rows of time, B environments, S stacked frames.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp


def no_frames(num_envs: int, frame_stack: int, shape: tuple[int, ...], dtype: Any) -> chex.Array | None:
    """Returns the first `previous` for `see`, [num_envs, frame_stack - 1, *shape]; None where nothing is stacked."""
    return jnp.zeros((num_envs, frame_stack - 1, *shape), dtype) if frame_stack > 1 else None


def see(torso: str, observation: Any, first: Any, previous: Any) -> tuple[chex.Array, chex.Array | None]:
    """Returns observations [T, B, ...] as the torso takes them, and the `previous` for the next call.

    Frames get a last axis of channels, and are stacked unless `previous` is None.

    Args:
        first: bool [T, B], whether the row is an episode's first.
        previous: the frames before row 0, as `no_frames` or this function returned them.
    """
    if previous is not None:
        return stack_frames(previous, observation, first)
    return (observation if torso == "mlp" else channels_last(observation, 2)), None


def channels_last(frames: chex.Array, batch_axes: int) -> chex.Array:
    """Gives frames [..., H, W] an axis of one channel; frames that have channels, [..., H, W, C], stay as they are."""
    return frames[..., None] if frames.ndim == batch_axes + 2 else frames


def stack_channels(frames: chex.Array, axis: int) -> chex.Array:
    """Turns the axis S, whose index is `axis`, into channels.

    Frames [..., S, H, W] become [..., H, W, S], and frames [..., S, H, W, C] become [..., H, W, C * S].
    """
    stacked = jnp.moveaxis(frames, axis, -1)
    return stacked.reshape(*stacked.shape[: axis + 2], -1)


def stack_frames(previous: chex.Array, frames: chex.Array, first: chex.Array) -> tuple[chex.Array, chex.Array]:
    """Stacks the S newest frames of each row's own episode, as EnvPool does (Mnih et al. 2015, 10.1038/nature14236).

    At an episode's first row the whole stack is that row's frame; no frame of an earlier episode is ever seen.

    Args:
        previous: uint8 [B, S-1, H, W], the frames before row 0, oldest first, as this function returned them. Its
            content does not matter where `first[0]` is true.
        frames: uint8 [T, B, H, W]; or with channels [T, B, H, W, C], and then `previous` has them too.
        first: bool [T, B], whether the row is an episode's first.

    Returns:
        The stacks, uint8 [T, B, H, W, S], oldest first, or [T, B, H, W, C * S]; and the `previous` for the next call.
    """
    rows, size = frames.shape[0], previous.shape[1] + 1
    # The stack's place for k rows ago holds that row's frame, or the episode's first frame if that is later. `previous`
    # was filled in the same way when its episode began, so that beginnings before row 0 need not be known.
    row = jnp.arange(rows)[:, None]
    opening = jax.lax.cummax(jnp.where(first, row, -size))
    index = jnp.maximum(row[..., None] - jnp.arange(size)[::-1], opening[..., None]) + size - 1
    history = jnp.concatenate([jnp.moveaxis(previous, 1, 0), frames])
    stacked = history[index, jnp.arange(frames.shape[1])[:, None]]
    return stack_channels(stacked, 2), stacked[-1, :, 1:]
