"""From a gradient to new parameters: optimisers, learning rates, steps, and the hyperparameters that they read."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from agents.agent import pmean


def initial_hypers(Hypers: Any, config: Any) -> Any:
    """An agent's `Hypers`, which is a NamedTuple, as training begins: each field is the config's of the same name.

    They are float32 arrays, so that a population can change them in a running learner without compiling again.
    """
    return Hypers(*(jnp.asarray(getattr(config, name), jnp.float32) for name in Hypers._fields))


def make_optimizer(
    kind: Literal["sgd", "adam", "radam", "rmsprop"],
    epsilon: float = 1e-8,
    decay: float = 0.99,
    max_gradient_norm: float = 0.0,
    centred: bool = False,
    momentum: float = 0.0,
    initial: float = 0.0,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """What turns a gradient into the direction that `descend` goes in. The learning rate is no part of it.

    Args:
      kind: 'sgd' leaves the gradient as it is; 'rmsprop' divides each of its numbers by the root of a running mean of
        that number's square; 'adam' is Kingma and Ba's (2015, https://arxiv.org/abs/1412.6980); 'radam' is Adam whose
        first steps, while little is known of the squares, are small (Liu et al. 2020,
        https://arxiv.org/abs/1908.03265).
      epsilon: keeps a divisor from 0: inside RMSProp's root, outside Adam's and RAdam's.
      decay: how much of RMSProp's running means is left after an update.
      max_gradient_norm: a gradient longer than this is first brought to this length; 0: none is.
      centred: RMSProp divides by a running standard deviation instead.
      momentum: of RMSProp's directions: how much of their sum so far is left when the next is added.
      initial: of RMSProp's running means of squares.
      weight_decay: c in the loss's c / 2 |W|^2 of all weights, not of biases; its gradient is clipped with the loss's.
    """
    prepare = optax.clip_by_global_norm(max_gradient_norm) if max_gradient_norm else optax.identity()
    if weight_decay:
        prepare = optax.chain(optax.add_decayed_weights(weight_decay, of_weights), prepare)
    rms = optax.scale_by_stddev if centred else optax.scale_by_rms
    rmsprop = rms(decay, epsilon, initial_scale=initial)
    directions = {
        "sgd": optax.identity(),
        "adam": optax.scale_by_adam(eps=epsilon),
        "radam": optax.scale_by_radam(eps=epsilon),
        "rmsprop": optax.chain(rmsprop, optax.trace(momentum)) if momentum else rmsprop,
    }
    return optax.chain(prepare, directions[kind])


def of_weights(params: Any) -> Any:
    """True for each array of `params` that is a layer's weights, False for biases and scales, which have one axis."""
    return jax.tree.map(lambda x: x.ndim > 1, params)


# From 1 to 0 and from 0 to 1, over 1: of shares of a time, which float32 holds however many environment steps it has.
DECAYS = {"linear": optax.linear_schedule(1.0, 0.0, 1), "cosine": optax.cosine_decay_schedule(1.0, 1)}
WARMUP = optax.linear_schedule(0.0, 1.0, 1)


def check_decay(config: Any) -> None:
    """Raises ValueError where a learning rate would have fallen to 0 before it has risen."""
    if 0 < config.decay_env_steps <= config.warmup_env_steps:
        raise ValueError(
            f"config.warmup_env_steps={config.warmup_env_steps} must be below "
            f"config.decay_env_steps={config.decay_env_steps}, where the rate is 0; on a command line that "
            "is --max_env_steps unless it is given"
        )


def remaining(config: Any, state: Any) -> chex.Array | float:
    """The share that is left after `state.env_steps` of what falls to 0 from `config.warmup_env_steps` to
    `config.decay_env_steps`, as `config.decay` says; 1 where the latter are 0."""
    if not config.decay_env_steps:
        return 1.0
    start, end = float(config.warmup_env_steps), float(config.decay_env_steps)
    return DECAYS[config.decay](jnp.maximum(0.0, state.env_steps - start) / (end - start))


def learning_rate_of(config: Any, state: Any) -> chex.Array:
    """`state.hypers.learning_rate`, or as much of it as warm-up and decay let be after `state.env_steps`."""
    rate = state.hypers.learning_rate * remaining(config, state)
    return rate * WARMUP(state.env_steps / float(config.warmup_env_steps)) if config.warmup_env_steps else rate


def descend(
    optimizer: optax.GradientTransformation, gradient: Any, opt_state: Any, params: Any, learning_rate: Any
) -> tuple[Any, Any]:
    """One step down the gradient: the parameters after it, and the optimiser's state after it.

    Args:
      optimizer: turns the gradient into the direction of the step, as `make_optimizer`'s do.
      gradient: of the loss at `params`, averaged over devices.
      opt_state: the optimiser's state before the step.
      params: the parameters before the step.
      learning_rate: a scalar for all parameters, or where `params` is a NamedTuple, another one with a scalar for each
        of its parts.
    """
    updates, opt_state = optimizer.update(gradient, opt_state, params)
    steps = jax.tree.map(lambda rate, part: jax.tree.map(lambda u: -rate * u, part), learning_rate, updates)
    return optax.apply_updates(params, steps), opt_state


class Descent(NamedTuple):
    """What `minimize` comes to."""

    params: Any  # after the step
    opt_state: Any
    loss: chex.Array  # before the step, float32 scalar
    aux: Any
    gradient_norm: chex.Array  # before clipping


def minimize(
    loss: Callable[..., tuple[chex.Array, Any]],
    args: tuple[Any, ...],
    optimizer: optax.GradientTransformation,
    params: Any,
    opt_state: Any,
    learning_rate: Any,
) -> Descent:
    """One step down the gradient of `loss(params, *args)` with respect to `params`, averaged over devices.

    Args:
      loss: gives the loss, and what else is wanted of its computation.
      optimizer, params, opt_state, learning_rate: as `descend` takes them.
    """
    (value, aux), gradient = jax.value_and_grad(loss, has_aux=True)(params, *args)
    gradient = pmean(gradient)
    after = descend(optimizer, gradient, opt_state, params, learning_rate)
    return Descent(*after, value, aux, optax.tree.norm(gradient))


def due_every(period: int, step: chex.Array, due: Callable[..., Any], rest: Callable[..., Any], *args: Any) -> Any:
    """`due(*args)` at every `period`-th update and `rest(*args)` at the others, which is all that they compute.

    Args:
      step: updates so far, this one among them; int32 scalar.
    """
    return due(*args) if period == 1 else jax.lax.cond(step % period == 0, due, rest, *args)


def new_every(period: int, step: chex.Array, new: Any, old: Any) -> Any:
    """`new` after every `period`-th update, else `old`, for target parameters: pytrees that are alike.

    Args:
      step: updates so far, this one among them; int32 scalar.
    """
    due = step % period == 0
    return jax.tree.map(lambda new, old: jnp.where(due, new, old), new, old)
