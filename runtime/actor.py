"""The actor: steps environments with the newest parameters and writes what happens."""

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from agents.agent import Agent, Sample, Step
from environments.environment import Environment, Episodes
from replay.rows import Row, Source, Writer


def compile_on(device: jax.Device, function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles `function` for `device`, whatever JAX's default device is.

    An argument that is on a device already would decide where the function runs; host arrays do not.
    """
    compiled = jax.jit(function)

    def call(*args):
        with jax.default_device(device):
            return compiled(*args)

    return call


@functools.cache
def _compile_sending(device: jax.Device) -> Callable[[Any], Any]:
    return compile_on(device, lambda tree: tree)


def send_params(params: Any, device: jax.Device) -> Any:
    """Returns parameters on `device`: sends those that are on the host, and leaves JAX arrays where they are.

    It sends them through a compiled identity. `device_put` sends one array after another, which for a small network
    takes as long as five actions.
    """
    if isinstance(next(iter(jax.tree.leaves(params)), None), jax.Array):
        return params
    return _compile_sending(device)(params)


def compile_act(act: Callable[..., Any], device: jax.Device) -> Callable[..., Any]:
    """Compiles `act` for `device` as a function of (params, key, count, timestep, memory).

    The key of each step is made from `key` and the step's number `count`. Give all actors of a process the same
    compiled function, so that `act` is traced and compiled once.
    """

    def act_at(params, key, count, timestep, memory):
        return act(params, jax.random.fold_in(key, count), timestep, memory)

    return compile_on(device, act_at)


def compile_priority(
    priority: Callable[..., Any] | None, capacity: int, device: jax.Device
) -> Callable[..., np.ndarray] | None:
    """Compiles an Agent's `priority` for `device`; returns None if it is None.

    The result takes (params, item) with up to `capacity` transitions or sequences. It repeats fewer of them, as at an
    episode's end, to fill `capacity`, so that `priority` is traced only once.
    """
    if priority is None:
        return None
    compiled = compile_on(device, priority)

    def call(params, item):
        sequences = isinstance(item, Sample)
        size = item.steps.reward.shape[1] if sequences else len(item.reward)
        rows = np.arange(capacity) % size
        if sequences:
            steps = jax.tree.map(lambda x: x[:, rows], item.steps)
            item = Sample(steps, jax.tree.map(lambda x: x[rows], item.memory))
        else:
            item = jax.tree.map(lambda x: x[rows], item)
        return np.asarray(compiled(params, item))[:size]

    return call


def run(
    agent: Agent,
    act: Callable[..., Any],
    environment: Environment,
    variables: Source,
    writer: Writer,
    key: jax.Array,
    device: jax.Device,
    stopped: Callable[[], bool] = lambda: False,
    ranks: np.ndarray | None = None,
) -> Iterator[tuple[dict[str, Any], Episodes]]:
    """Acts until `stopped`; each time that `writer.append` returns true, yields metrics and the episodes that ended.

    The order is fixed: pull parameters, then (act, step, append) until the writer says that it is time to pull again.
    The reward of an action arrives with the next observation, so a row is appended one step later.

    Args:
      act: compiled by `compile_act`.
      ranks: float32 [B] from 0 to 1, the place of each environment among all of the run's; see Agent.memory.
    """
    # The memory is put on the device at once: else the first action would be compiled apart from the others.
    timestep, memory = environment.reset(), jax.device_put(agent.memory(environment.num_envs, ranks), device)
    env_steps = count = 0
    while not stopped():
        start = time.perf_counter()
        version, params = variables.pull()
        params = send_params(params, device)
        pulled = time.perf_counter()
        waited = 0.0
        sent = False
        while not sent:
            action, extras, next_memory = act(params, key, np.uint32(count), timestep, memory)
            action = np.asarray(action)
            next_timestep = environment.step(action)
            step = Step(
                timestep.observation, action, next_timestep.reward, next_timestep.discount, timestep.first, extras
            )
            before = time.perf_counter()
            sent = writer.append(Row(step, memory, version, params, next_timestep))
            waited += time.perf_counter() - before
            env_steps += environment.num_envs - int(np.count_nonzero(next_timestep.first))
            timestep, memory, count = next_timestep, next_memory, count + 1
        metrics = {
            **version._asdict(),
            "actor_steps": env_steps,
            "pull_fraction": (pulled - start) / (time.perf_counter() - start),
            "wait_fraction": waited / (time.perf_counter() - start),
        }
        yield metrics, environment.finished()
