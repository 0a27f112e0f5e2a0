"""The learner's devices: replicate, shard, update on all of them at once. The only home of pmap.

The same code runs on one device, on the eight of a host and, after `jax.distributed.initialize`, on several hosts:
each process feeds its own devices and the average over AXIS spans them all.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from agents.agent import AXIS, Agent, Feedback, Gradient, Params, Sample, State, Step


def replicate(tree: Any) -> Any:
    """A copy of every array on each local device: [...] -> [devices, ...]."""
    return jax.device_put_replicated(tree, jax.local_devices())


def unreplicate(tree: Any) -> Any:
    """The first local device's copy, on the host: [devices, ...] -> [...]. Waits for it to be computed."""
    return jax.tree.map(lambda x: np.asarray(x.addressable_shards[0].data)[0], tree)


def local(x: jax.Array) -> np.ndarray:
    """This host's devices' parts of a mapped array, on the host: [devices, ...]. Waits for them to be computed."""
    return np.concatenate([np.asarray(shard.data) for shard in x.addressable_shards])


@functools.cache
def _pmap_send() -> Callable[[Any], Any]:
    # On the devices of this process alone, so that hosts need not agree who sends when. Made late: devices are known
    # only after `jax.distributed.initialize`.
    return jax.pmap(lambda sample: sample, devices=jax.local_devices())


def _batch_axis(sample: Sample) -> int:
    """Of its steps; that of all else is 0."""
    return 1 if isinstance(sample.steps, Step) else 0


def shard(sample: Sample | Gradient) -> Any:
    """Splits a host sample's B axis over the local devices and starts the transfer; does not wait for it. Of Gradients
    there is one for each device, [devices, ...].

    By a pmapped identity: handing arrays to a compiled function takes a fifth of the time of `device_put_sharded`.
    """
    if isinstance(sample, Gradient):
        return _pmap_send()(sample)
    devices = jax.local_device_count()

    def split(x: np.ndarray, axis: int) -> np.ndarray:
        if x.shape[axis] % devices:
            raise ValueError(f"a batch of {x.shape[axis]} sequences does not divide over {devices} devices")
        return x[None] if devices == 1 else np.stack(np.split(x, devices, axis))

    steps = jax.tree.map(lambda x: split(x, _batch_axis(sample)), sample.steps)
    memory, likelihood = jax.tree.map(lambda x: split(x, 0), (sample.memory, sample.likelihood))
    return _pmap_send()(Sample(steps, memory, likelihood))


def pmap_update(
    agent: Agent, seed: int, updates_per_dispatch: int = 1
) -> Callable[..., tuple[State, jax.Array, Feedback]]:
    """update(state, step, sample) -> (state, step + updates_per_dispatch, feedback) on every device.

    The state [devices, ...] is donated; `step`, uint32 [devices], is the update's number, which with `seed` and the
    device gives each update's key; the sample is as `shard` gives it. All of them live on the devices: an argument
    that does not, or a typed key, would send every call through pmap's slow path.

    With `updates_per_dispatch` K > 1 the sample is K minibatches, side by side on each device, and the
    updates on them run one after another without Python between; metrics are the last one's, priorities are all.
    """

    def update(state: State, step: jax.Array, sample: Sample) -> tuple[State, jax.Array, Feedback]:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), jax.lax.axis_index(AXIS))
        state, feedback = agent.update(state, key, sample)
        return state, step + 1, feedback

    def updates(state: State, step: jax.Array, sample: Sample) -> tuple[State, jax.Array, Feedback]:
        def body(carry, minibatch):
            state, step, feedback = update(carry[0], carry[1], minibatch)
            return (state, step), feedback

        def split(x, axis=0):
            parts = x.reshape(*x.shape[:axis], updates_per_dispatch, -1, *x.shape[axis + 1 :])
            return jnp.moveaxis(parts, axis, 0)

        steps = jax.tree.map(functools.partial(split, axis=_batch_axis(sample)), sample.steps)
        memory, likelihood = jax.tree.map(split, (sample.memory, sample.likelihood))
        minibatches = Sample(steps, memory, likelihood)
        (state, step), feedback = jax.lax.scan(body, (state, step), minibatches)
        metrics, priorities = jax.tree.map(lambda x: x[-1], feedback.metrics), feedback.priorities
        return state, step, Feedback(metrics, jax.tree.map(lambda x: x.reshape(-1), priorities))

    # The sample is not donated: no output has its shape, so that nothing could reuse its memory.
    return jax.pmap(update if updates_per_dispatch == 1 else updates, axis_name=AXIS, donate_argnums=(0, 1))


def pmap_policy(agent: Agent) -> Callable[[State], Params]:
    """The parameters that actors pull, as buffers of their own that outlive the donation of `state`."""
    return jax.pmap(lambda state: jax.tree.map(jnp.copy, agent.policy(state)))
