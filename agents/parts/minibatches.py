"""Several passes over one batch: epochs of shuffled minibatches."""

from collections.abc import Callable
from typing import Any

import jax

# (carry, (indices of the minibatch's entries in the batch, int32 [n], and a key)) -> the next carry, metrics
Learn = Callable[[Any, tuple[jax.Array, jax.Array]], tuple[Any, dict[str, Any]]]


def check_minibatches(config: Any, size: int, what: str) -> None:
    """Raises ValueError unless `config.minibatches` divides a batch of `size` entries; `what` names the entries."""
    if size % config.minibatches:
        raise ValueError(f"config.minibatches={config.minibatches} does not divide a batch of {size} {what}")


def learn_in_minibatches(config: Any, key: jax.Array, size: int, learn: Learn, carry: Any) -> tuple[Any, Any]:
    """Shuffles the batch, cuts it into `config.minibatches` parts and learns from one after another, `config.epochs`
    times.

    Args:
      config: has the fields epochs, minibatches, and torso, the network's.
      key: the shuffling and the keys for `learn` are drawn from it.
      size: the number of entries in the batch, on this device.
      learn: learns from one minibatch.
      carry: the carry for the first `learn`.

    Returns:
      The last carry, and the metrics of all calls, each [epochs * minibatches].
    """
    keys = jax.random.split(key, config.epochs)
    order = jax.vmap(lambda key: jax.random.permutation(key, size))(keys)
    order = order.reshape(config.epochs * config.minibatches, -1)
    keys = jax.random.split(jax.random.fold_in(key, config.epochs), len(order))
    # In a loop, XLA's CPU backend takes 40 times as long for the gradient of a convolution. Where that does not matter
    # the loop stays rolled, so that its body is compiled only once.
    unroll = config.torso != "mlp" and jax.default_backend() == "cpu"
    return jax.lax.scan(learn, carry, (order, keys), unroll=unroll)
