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
    """`function`, compiled for `device` whatever the default one is: where none of its arguments lives anywhere."""
    compiled = jax.jit(function)

    def call(*args):
        with jax.default_device(device):
            return compiled(*args)

    return call


@functools.cache
def _compile_sending(device: jax.Device) -> Callable[[Any], Any]:
    return compile_on(device, lambda tree: tree)


def send_params(params: Any, device: jax.Device) -> Any:
    """Parameters on `device`, from the host or where they are there already. Compiled: `device_put` sends one array
    after another, which for a small network takes as long as five actions."""
    if isinstance(next(iter(jax.tree.leaves(params)), None), jax.Array):
        return params
    return _compile_sending(device)(params)


def compile_act(act: Callable[..., Any], device: jax.Device) -> Callable[..., Any]:
    """`act` with a step count, from which each step's key is made: (params, key, count, timestep, memory) on `device`.

    Give all actors of a process the same one: it is traced and compiled once.
    """

    def act_at(params, key, count, timestep, memory):
        return act(params, jax.random.fold_in(key, count), timestep, memory)

    return compile_on(device, act_at)


def compile_priority(
    priority: Callable[..., Any] | None, capacity: int, device: jax.Device
) -> Callable[..., np.ndarray] | None:
    """`priority` of an Agent for up to `capacity` transitions or sequences, on `device`; None of None.

    Traced once: fewer, as at an episode's end, are filled up.
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
    """Acts for ever; yields metrics, and the episodes that ended, each time an item was written.

    `ranks`, float32 [B], are the environments' places, 0 to 1, among all of the run's.

    The order is fixed: pull, then (act, step, append) until the writer has sent an item, then pull again. The reward of
    an action is the one that arrives with the next observation, so that a row is appended one step later.
    """
    # On the device from the start: else the first action and the others would be compiled apart.
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
