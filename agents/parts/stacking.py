"""Frames on their way to a torso: stacked as an agent sees them, with channels last.

Sizes in the shapes below: T rows of time, B environments, S stacked frames.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp


def no_frames(num_envs: int, frame_stack: int, shape: tuple[int, ...], dtype: Any) -> chex.Array | None:
    """What `see` takes before the first row, [num_envs, frame_stack - 1, *shape]; None where nothing is stacked."""
    return jnp.zeros((num_envs, frame_stack - 1, *shape), dtype) if frame_stack > 1 else None


def see(torso: str, observation: Any, first: Any, previous: Any) -> tuple[chex.Array, chex.Array | None]:
    """Observations [T, B, ...] as the torso takes them, frames with channels, and the `previous` of the next call.

    Args:
        first: bool [T, B], the row opens an episode.
        previous: the frames before row 0, as `no_frames` or this function gave them.
    """
    if previous is not None:
        return stack_frames(previous, observation, first)
    return (observation if torso == "mlp" else channels_last(observation, 2)), None


def channels_last(frames: chex.Array, batch_axes: int) -> chex.Array:
    """Frames [..., H, W] with one channel; those that have channels, [..., H, W, C], as they are."""
    return frames[..., None] if frames.ndim == batch_axes + 2 else frames


def stack_channels(frames: chex.Array, axis: int) -> chex.Array:
    """Frames [..., S, H, W] or [..., S, H, W, C], S being `axis`, as one with S, or S * C, channels."""
    stacked = jnp.moveaxis(frames, axis, -1)
    return stacked.reshape(*stacked.shape[: axis + 2], -1)


def stack_frames(previous: chex.Array, frames: chex.Array, first: chex.Array) -> tuple[chex.Array, chex.Array]:
    """Stacks the S newest frames of each row's own episode, as EnvPool does (Mnih et al. 2015, 10.1038/nature14236).

    At an episode's first row the whole stack is that row's frame; no frame of an earlier episode is ever seen.

    Args:
        previous: uint8 [B, S-1, H, W], the frames before row 0, oldest first, as this function returned them. Its
            content is free where `first[0]` is true.
        frames: uint8 [T, B, H, W], or with channels [T, B, H, W, C], as `previous` then.
        first: bool [T, B], the row opens an episode.

    Returns:
        uint8 [T, B, H, W, S], oldest first, or [T, B, H, W, C * S], and the `previous` of the next call.
    """
    rows, size = frames.shape[0], previous.shape[1] + 1
    # The frame `lag` rows ago, or the episode's first if that is later. `previous` was filled in this way when its
    # episode opened, so that openings before row 0 need not be known.
    row = jnp.arange(rows)[:, None]
    opening = jax.lax.cummax(jnp.where(first, row, -size))
    index = jnp.maximum(row[..., None] - jnp.arange(size)[::-1], opening[..., None]) + size - 1
    history = jnp.concatenate([jnp.moveaxis(previous, 1, 0), frames])
    stacked = history[index, jnp.arange(frames.shape[1])[:, None]]
    return stack_channels(stacked, 2), stacked[-1, :, 1:]
