"""Makes a policy a function of arrays alone, finds which of these it needs, and exports it as StableHLO."""

import numbers
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import export as jax_export
from jax.interpreters import partial_eval

from agents.agent import Agent, EnvironmentSpec, Params, TimeStep

PLATFORMS = ("cpu", "cuda", "tpu")
REWARD, MEMORY = 2, slice(4, None)  # places among the arguments of a Flat


class Flat:
    """An agent's act as a function of arrays: (key, observation [B, ...], reward [B], first [B], *memory) -> (action,
    *memory). The memory is any number of arrays [B, ...].

    `needed` says of each argument whether actions depend on it.
    """

    def __init__(self, agent: Agent, act: Callable[..., Any], params: Params, spec: EnvironmentSpec):
        self._act, self._params, self._spec = act, params, spec
        one, self._structure = jax.tree.flatten(jax.eval_shape(lambda: agent.memory(1, None)))
        self._memory = [(x.shape[1:], x.dtype) for x in one]
        self.needed = self._needed()

    def __call__(self, key: jax.Array, observation: Any, reward: Any, first: Any, *memory: Any) -> tuple[Any, ...]:
        timestep = TimeStep(observation, reward, jnp.ones_like(reward), first, jnp.zeros_like(first))
        remembered = jax.tree.unflatten(self._structure, memory)
        action, _, remembered = self._act(self._params, key, timestep, remembered)
        return action, *jax.tree.leaves(remembered)

    def structs(self, size: Any) -> list[Any]:
        """Returns the shapes and dtypes of its arguments for `size` observations."""
        seen = (self._spec.observation_shape, self._spec.observation_dtype)
        arrays = (seen, ((), jnp.float32), ((), bool), *self._memory)
        key = jax.eval_shape(jax.random.key, 0)
        return [key, *(jax.ShapeDtypeStruct((size, *shape), dtype) for shape, dtype in arrays)]

    def _needed(self) -> list[bool]:
        """Returns, for each argument, whether actions depend on it.

        The actions of later calls count too, since they get the memory that this call returns.
        """
        jaxpr = jax.make_jaxpr(self)(*self.structs(1)).jaxpr
        needed = [False] * len(jaxpr.invars)
        while True:
            _, used = partial_eval.dce_jaxpr(jaxpr, [True, *needed[MEMORY]])
            if list(used) == needed:
                return needed
            needed = list(used)


def export(function: Flat, key: jax.Array, batch_size: int | None) -> bytes:
    """Serialises the function (observation [B, ...], reward [B], first [B], step, *memory) -> (action, *memory) by
    jax.export. Its memory has only the arrays that actions depend on.

    Args:
      key: together with the step it seeds what is random in acting.
      batch_size: B; None for any.

    Raises:
      ValueError: the batch size is no whole number from 1, or the function cannot be exported.
    """
    whole = isinstance(batch_size, numbers.Integral) and not isinstance(batch_size, bool)
    if batch_size is not None and (not whole or batch_size < 1):
        raise ValueError(f"batch_size must be a whole number from 1, or None, not {batch_size!r}")
    kept = function.needed[MEMORY]

    def call_one(key, observation, reward, first, *memory):
        """Acts on one row, as a batch of one: agents then see only concrete sizes, although B may be symbolic."""
        given = iter(memory)
        others = [jnp.zeros(x.shape, x.dtype) for x in function.structs(1)[MEMORY]]
        whole = [next(given)[None] if keep else other for keep, other in zip(kept, others, strict=True)]
        action, *after = function(key, observation[None], reward[None], first[None], *whole)
        return action[0], *(x[0] for keep, x in zip(kept, after, strict=True) if keep)

    def call(observation, reward, first, step, *memory):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, step), jnp.arange(reward.shape[0]))
        return jax.vmap(call_one)(keys, observation, reward, first, *memory)

    try:
        size: Any = jax_export.symbolic_shape("b")[0] if batch_size is None else batch_size
        _, observation, reward, first, *memory = function.structs(size)
        step = jax.ShapeDtypeStruct((), jnp.uint32)
        memory = [x for keep, x in zip(kept, memory, strict=True) if keep]
        exported = jax_export.export(jax.jit(call), platforms=PLATFORMS)(observation, reward, first, step, *memory)
        return bytes(exported.serialize())
    except Exception as error:  # lowering may raise anything
        words = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        of = "batches of any size: try batch_size=1, or another" if batch_size is None else f"batch_size={batch_size}"
        raise ValueError(f"this policy cannot be exported for {of} ({words})") from error
