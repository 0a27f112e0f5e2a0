"""Learning several times from one batch: epochs of shuffled minibatches."""

from collections.abc import Callable
from typing import Any

import jax

# (what is carried on, (entries of the batch, int32 [n], and a key)) -> what is carried on, metrics
Learn = Callable[[Any, tuple[jax.Array, jax.Array]], tuple[Any, dict[str, Any]]]


def check_minibatches(config: Any, size: int, what: str) -> None:
    """Raises ValueError unless `config.minibatches` divides a batch of `size` entries, which are `what`."""
    if size % config.minibatches:
        raise ValueError(f"config.minibatches={config.minibatches} does not divide a batch of {size} {what}")


def learn_in_minibatches(config: Any, key: jax.Array, size: int, learn: Learn, carry: Any) -> tuple[Any, Any]:
    """`config.epochs` times shuffles the batch, cuts it into `config.minibatches`, and learns from one after another.

    Args:
      config: has epochs, minibatches, and the network's torso.
      key: of the shuffling, and of those that `learn` is given.
      size: entries of the batch, on this device.
      learn: learns from one minibatch.
      carry: what the first `learn` is given.

    Returns:
      What the last `learn` carried on, and the metrics of all, each [epochs * minibatches].
    """
    keys = jax.random.split(key, config.epochs)
    order = jax.vmap(lambda key: jax.random.permutation(key, size))(keys)
    order = order.reshape(config.epochs * config.minibatches, -1)
    keys = jax.random.split(jax.random.fold_in(key, config.epochs), len(order))
    # Convolutions' gradient inside a loop takes XLA's CPU backend 40 times as long. Others compile it once.
    unroll = config.torso != "mlp" and jax.default_backend() == "cpu"
    return jax.lax.scan(learn, carry, (order, keys), unroll=unroll)
