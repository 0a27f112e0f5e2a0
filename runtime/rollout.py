"""An actor inside the compiled program that learns. It acts with the newest parameters in environments that are JAX
functions, and makes the same rows as runtime/actor.py makes in these environments."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from agents.agent import AXIS, Agent, Memory, Params, Sample, Step
from environments import functional
from environments.functional import Ended, Functional, Running


class Acting(NamedTuple):
    """One device's environments and the actor's memory of them. B is the device's share of the environments."""

    running: Running
    memory: Memory  # [B, ...]
    opening: Any  # for Blocks with `next_action`: (Step [B, ...], Memory), the next block's first row; otherwise ()
    finite: Any  # bool, whether all observations and rewards so far were finite


class Rollout:
    """One actor of `num_envs` environments, of which each of the mesh's devices has an equal part.

    Its methods are pure functions, which each device calls inside a compiled function; but `specs` is for the host.
    """

    def __init__(
        self,
        agent: Agent,
        environment: Functional,
        num_envs: int,
        devices: int,
        seed: int,
        clip: Callable[[Any], Any] | None = None,
    ):
        """
        Args:
          devices: how many devices the mesh has.
          seed: of all random draws. What environment i draws at row t is the same on any number of devices; what the
            policy draws is not.
          clip: clips the rewards that agents see; None: they are not clipped.

        Raises:
          ValueError: the environments do not divide over the devices.
        """
        if num_envs % devices:
            raise ValueError(f"{num_envs} environments are not a multiple of {devices}, the number of devices")
        self._agent, self._environment, self._seed, self._clip = agent, environment, seed, clip
        self._next_action = getattr(agent.table.items, "next_action", False)
        self.num_envs, self._devices, self.share = num_envs, devices, num_envs // devices

    def specs(self, mesh: Any) -> Acting:
        """Returns the specs by which an Acting lies on the mesh's devices."""
        rows, all_ = mesh.ROWS, mesh.REPLICATED
        return Acting(Running(rows, rows, rows, all_), rows, rows, all_)

    def _mine(self) -> Any:
        """Returns the numbers of this device's environments, uint32 [B]."""
        first = jax.lax.axis_index(AXIS) * self.share if self._devices > 1 else 0
        return (first + jnp.arange(self.share)).astype(jnp.uint32)

    def start(self, params: Params) -> Acting:
        """Starts all environments; with `next_action`, also acts once for the first block's opening row."""
        ids = self._mine()
        ranks = ids.astype(jnp.float32) / max(1, self.num_envs - 1)
        running = functional.start(self._environment, self._seed, ids)
        acting = Acting(running, self._agent.memory(self.share, ranks), (), jnp.bool_(True))
        if self._next_action:
            acting, (step, memory, _) = self.act(acting, params)
            acting = acting._replace(opening=(step, memory))
        return acting

    def act(self, acting: Acting, params: Params) -> tuple[Acting, tuple[Step, Memory, Ended]]:
        """Acts and steps the environments once; returns the row, the memory before it, and which episodes ended."""
        timestep = acting.running.timestep
        key = jax.random.fold_in(jax.random.key(self._seed), acting.running.count - 1)
        if self._devices > 1:
            key = jax.random.fold_in(key, jax.lax.axis_index(AXIS))
        action, extras, memory = self._agent.act(params, key, timestep, acting.memory)
        running, ended = functional.advance(
            self._environment, acting.running, action, self._seed, self._mine(), self._clip
        )
        answer = running.timestep
        step = Step(timestep.observation, action, answer.reward, answer.discount, timestep.first, extras)
        finite = acting.finite & jnp.all(jnp.isfinite(answer.reward))
        if jnp.issubdtype(answer.observation.dtype, jnp.floating):
            finite &= jnp.all(jnp.isfinite(answer.observation))
        return acting._replace(running=running, memory=memory, finite=finite), (step, acting.memory, ended)

    def rows(self, acting: Acting, params: Params, length: int) -> tuple[Acting, tuple[Step, Memory, Ended]]:
        """Does as `act` does, `length` times; each array returned is [length, B, ...]."""
        return jax.lax.scan(lambda acting, _: self.act(acting, params), acting, length=length)

    def blocks(self, acting: Acting, params: Params, count: int) -> tuple[Acting, Sample, Ended]:
        """Makes `count` Blocks of all environments, one after another.

        Returns them as one Sample of `count` * B sequences, and which episodes ended, [count * T, B].
        """
        length: int = self._agent.table.items.length  # type: ignore[union-attr]

        def block(acting, _):
            if self._next_action:
                opening, memory = acting.opening
                acting, (steps, memories, ended) = self.rows(acting, params, length)
                steps = jax.tree.map(lambda x, y: jnp.concatenate([x[None], y]), opening, steps)
                last = jax.tree.map(lambda x: x[-1], (steps, memories))
                return acting._replace(opening=last), (steps, memory, ended)
            memory = acting.memory
            acting, (steps, _, ended) = self.rows(acting, params, length)
            timestep = acting.running.timestep
            closing = jax.tree.map(lambda x: jnp.zeros_like(x[0]), steps)
            closing = closing._replace(observation=timestep.observation, first=timestep.first)
            steps = jax.tree.map(lambda x, y: jnp.concatenate([x, y[None]]), steps, closing)
            return acting, (steps, memory, ended)

        acting, (steps, memory, ended) = jax.lax.scan(block, acting, length=count)
        sample = Sample(
            jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1, *x.shape[3:]), steps),
            jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), memory),
        )
        return acting, sample, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), ended)
