"""Samples of the experience that any agent learns from, as its own policy makes them."""

from typing import Any

import jax
import numpy as np

from agents.agent import (
    Agent,
    EnvironmentSpec,
    Sample,
    Sequences,
    Step,
    TimeStep,
    Transition,
    Transitions,
    WholeEpisodes,
)


def stream(agent: Agent, state: Any, spec: EnvironmentSpec, updates: int, batch: int) -> list[Sample]:
    """Returns a sample of `batch` items for each of `updates`, of actions that `state` takes.

    The reward is a sign in the observation, or minus this sign if the action's first factor is not above 0. The sign is
    that of a vector's first number, or of how much brighter a frame's odd columns are than its even ones.
    """
    rng, N, items = np.random.default_rng(0), updates * batch, agent.table.items
    if isinstance(items, Transitions):
        rows = 2
    elif isinstance(items, WholeEpisodes):
        rows = items.max_steps + 1
    else:
        rows = items.burn_in + items.length if isinstance(items, Sequences) else items.length + 1
    shape = (rows, N)
    if spec.frame_sides:
        light = rng.uniform(-100, 100, (*shape, 1, 1)) * np.where(np.arange(spec.frame_sides[1]) % 2, 1, -1)
        observation = np.clip(128 + light + rng.normal(size=(*shape, *spec.frame_sides)), 0, 255).astype(np.uint8)
        sign = np.sign(light[..., 0, 0])
    else:
        observation = rng.normal(size=(*shape, *spec.observation_shape)).astype(np.float32)
        sign = np.sign(observation[..., 0])
    first = rng.random(shape) < 0.1
    first[0], first[1] = True, False
    closing = np.concatenate([first[1:], np.zeros((1, N), bool)])

    before = memory = agent.memory(N, None)
    act, params, played = jax.jit(agent.act), agent.policy(state), []
    for t in range(rows):
        now = TimeStep(observation[t], np.zeros(N, np.float32), np.ones(N, np.float32), first[t], closing[t])
        action, extras, memory = act(params, jax.random.key(t), now, memory)
        played.append((action, extras))
    action, extras = jax.tree.map(lambda *x: np.stack(x), *played)
    chosen = action if action.ndim == 2 else action[..., 0]
    reward = (sign * np.where(chosen > 0, 1.0, -1.0)).astype(np.float32)
    discount = np.where(np.concatenate([closing[1:], closing[:1]]), 0.0, 1.0).astype(np.float32)

    def of(update: int, x: Any, axis: int = 1) -> Any:
        part = slice(update * batch, (update + 1) * batch)
        return jax.tree.map(lambda x: x[(slice(None),) * axis + (part,)], x)

    if isinstance(items, Transitions):
        rows_of = Transition(observation[0], action[0], reward[0], 0.9 * discount[0], observation[1])
        return [Sample(of(i, rows_of, 0), likelihood=np.ones(batch, np.float32)) for i in range(updates)]
    steps = Step(observation, action, reward, discount, first, extras)
    return [Sample(of(i, steps), of(i, before, 0), np.ones(batch, np.float32)) for i in range(updates)]
