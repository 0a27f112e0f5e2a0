"""Optimisation: optimisers, learning rates, gradient steps, and the hyperparameters that they read."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from agents.agent import pmean


def initial_hypers(Hypers: Any, config: Any) -> Any:
    """Makes an agent's initial `Hypers`, a NamedTuple: each field is the config's field of the same name.

    The fields are float32 arrays, so that a population can change them in a running learner without compiling again.
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
    """Makes the optimiser that turns a gradient into a direction for `descend`. The learning rate is no part of it.

    Args:
      kind: 'sgd' leaves the gradient as it is; 'rmsprop' divides each of its numbers by the root of a running mean of
        that number's square; 'adam' is Kingma and Ba's (2015, https://arxiv.org/abs/1412.6980); 'radam' is Adam whose
        first steps, while little is known of the squares, are small (Liu et al. 2020,
        https://arxiv.org/abs/1908.03265).
      epsilon: keeps divisors from being 0. It is added inside RMSProp's root, and outside Adam's and RAdam's.
      decay: the decay rate of RMSProp's running means.
      max_gradient_norm: clips the gradient's global norm to this; 0 means no clipping.
      centred: whether RMSProp divides by a running standard deviation instead.
      momentum: RMSProp's momentum: the decay rate of the sum of its directions; 0 means none.
      initial: the initial value of RMSProp's running means of squares.
      weight_decay: c, where the loss gets a term c / 2 |W|^2 over all weights but not biases. The term's gradient is
        added before clipping.
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
    """Returns True for each array of `params` that holds weights, False for biases and scales, which have one axis."""
    return jax.tree.map(lambda x: x.ndim > 1, params)


# These schedules take the share of a period that is over, 0 to 1, and not environment steps: float32 holds the share
# well however long the period is.
DECAYS = {"linear": optax.linear_schedule(1.0, 0.0, 1), "cosine": optax.cosine_decay_schedule(1.0, 1)}
WARMUP = optax.linear_schedule(0.0, 1.0, 1)


def check_decay(config: Any) -> None:
    """Raises ValueError if the learning rate would fall to 0 before its warm-up is over."""
    if 0 < config.decay_env_steps <= config.warmup_env_steps:
        raise ValueError(
            f"config.warmup_env_steps={config.warmup_env_steps} must be below "
            f"config.decay_env_steps={config.decay_env_steps}, where the learning rate is 0 (on a "
            "command line --max_env_steps, unless it is given)"
        )


def remaining(config: Any, state: Any) -> chex.Array | float:
    """Returns the decay factor at `state.env_steps`.

    It falls from 1 at `config.warmup_env_steps` to 0 at `config.decay_env_steps`, by the schedule `config.decay`. It is
    always 1 if `config.decay_env_steps` is 0.
    """
    if not config.decay_env_steps:
        return 1.0
    start, end = float(config.warmup_env_steps), float(config.decay_env_steps)
    return DECAYS[config.decay](jnp.maximum(0.0, state.env_steps - start) / (end - start))


def learning_rate_of(config: Any, state: Any) -> chex.Array:
    """Returns the learning rate at `state.env_steps`: `state.hypers.learning_rate` after warm-up and decay."""
    rate = state.hypers.learning_rate * remaining(config, state)
    return rate * WARMUP(state.env_steps / float(config.warmup_env_steps)) if config.warmup_env_steps else rate


def descend(
    optimizer: optax.GradientTransformation, gradient: Any, opt_state: Any, params: Any, learning_rate: Any
) -> tuple[Any, Any]:
    """Takes one step down the gradient; returns the new parameters and the new optimiser state.

    Args:
      optimizer: turns the gradient into the direction of the step, as those of `make_optimizer` do.
      gradient: the loss's gradient at `params`, averaged over devices.
      opt_state: the optimiser's state before the step.
      params: the parameters before the step.
      learning_rate: a scalar for all parameters. If `params` is a NamedTuple, it may be the same NamedTuple with a
        scalar for each field.
    """
    updates, opt_state = optimizer.update(gradient, opt_state, params)
    steps = jax.tree.map(lambda rate, part: jax.tree.map(lambda u: -rate * u, part), learning_rate, updates)
    return optax.apply_updates(params, steps), opt_state


class Descent(NamedTuple):
    """The result of `minimize`."""

    params: Any  # after the step
    opt_state: Any
    loss: chex.Array  # before the step, float32 scalar
    aux: Any  # what else the loss function returned
    gradient_norm: chex.Array  # before clipping


def minimize(
    loss: Callable[..., tuple[chex.Array, Any]],
    args: tuple[Any, ...],
    optimizer: optax.GradientTransformation,
    params: Any,
    opt_state: Any,
    learning_rate: Any,
) -> Descent:
    """Takes one step down the gradient of `loss(params, *args)` with respect to `params`, averaged over devices.

    Args:
      loss: returns the loss, and any other results that the caller wants.
      optimizer, params, opt_state, learning_rate: as `descend` takes them.
    """
    (value, aux), gradient = jax.value_and_grad(loss, has_aux=True)(params, *args)
    gradient = pmean(gradient)
    after = descend(optimizer, gradient, opt_state, params, learning_rate)
    return Descent(*after, value, aux, optax.tree.norm(gradient))


def due_every(period: int, step: chex.Array, due: Callable[..., Any], rest: Callable[..., Any], *args: Any) -> Any:
    """Computes `due(*args)` at every `period`-th update, and only `rest(*args)` at the others.

    Args:
      step: the number of updates so far, including this one; int32 scalar.
    """
    return due(*args) if period == 1 else jax.lax.cond(step % period == 0, due, rest, *args)


def new_every(period: int, step: chex.Array, new: Any, old: Any) -> Any:
    """Returns `new` after every `period`-th update, else `old`: target parameters, pytrees of one structure.

    Args:
      step: the number of updates so far, including this one; int32 scalar.
    """
    due = step % period == 0
    return jax.tree.map(lambda new, old: jnp.where(due, new, old), new, old)
