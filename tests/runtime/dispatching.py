"""Compares K updates in one dispatch with K dispatches of one update, on this process's devices, with each mapper. Run
as a program, it prints what it found as JSON."""

import json
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from agents import ddpg
from agents.agent import Agent, BoundedActions, EnvironmentSpec, Feedback, Sample, Transition, pmean
from runtime import devices

K, BATCH = 3, 8  # updates in a dispatch, transitions in an update


class State(NamedTuple):
    total: Any
    step: Any


def ordered_agent() -> Agent:
    """Returns an agent whose state depends on the order of the updates and on their keys. A transition's priority is
    its reward + 1000 times the number of the update."""

    def update(state, key, sample):
        random = jax.random.uniform(key)
        total = 0.5 * state.total + pmean(sample.steps.reward.mean() + random)
        metrics = {"random": random, "total": total}
        return State(total, state.step + 1), Feedback(metrics, sample.steps.reward + 1000.0 * state.step)

    return Agent(lambda key: State(jnp.float32(0), jnp.int32(0)), lambda s: s, None, None, None, update, (), BATCH)


def ddpg_agent() -> Agent:
    config = ddpg.Config(
        hidden_sizes=(8,),
        batch_size=BATCH,
        replay="prioritized",
        normalize_observations=True,
        importance_steps=10,
        policy_learning_rate=0.1,
        critic_learning_rate=0.1,
    )
    bound = np.ones(2, np.float32)
    return ddpg.make(config, EnvironmentSpec((3,), np.dtype(np.float32), BoundedActions(-bound, bound)))


def transitions(rng: np.random.Generator, size: int) -> Sample:
    def normal(*shape):
        return rng.normal(size=(size, *shape)).astype(np.float32)

    steps = Transition(normal(3), np.tanh(normal(2)), normal(), np.full(size, 0.9, np.float32), normal(3))
    return Sample(steps, (), rng.uniform(0.5, 2.0, size).astype(np.float32))


def compare(mesh: devices.Mesh, agent: Agent, dispatches: int = 2) -> dict[str, Any]:
    """Runs both ways from the same state on the same data, and reports the largest differences."""
    num_devices = mesh.size
    rng = np.random.default_rng(0)
    state = jax.jit(agent.init)(jax.random.key(0))
    runs = [[mesh.put(state), mesh.put(np.uint32(7))] for _ in range(2)]
    at_once, one_by_one = devices.compile_update(mesh, agent, 1, K), devices.compile_update(mesh, agent, 1)
    report: dict[str, Any] = {"devices": num_devices, "steps": [], "states": 0.0, "priorities": 0.0, "metrics": 0.0}
    largest = 0.0
    for _ in range(dispatches):
        sample = transitions(rng, K * BATCH)
        *runs[0], feedback = at_once(*runs[0], devices.send(mesh, sample))
        # The first of K pieces of each device's part make up the first minibatch, and so on.
        rows = np.arange(K * BATCH).reshape(num_devices, K, -1)
        priorities = np.full(K * BATCH, np.nan)
        for k in range(K):
            chosen = rows[:, k].reshape(-1)
            minibatch = jax.tree.map(lambda x, chosen=chosen: x[chosen], sample)
            *runs[1], single = one_by_one(*runs[1], devices.send(mesh, minibatch))
            priorities[chosen] = mesh.local(single.priorities)
        largest = max(largest, np.abs(priorities).max())
        report["steps"].append([int(mesh.host(step)) for _, step in runs])
        states = [jax.tree.leaves(mesh.host(state)) for state, _ in runs]
        at_once_metrics, metrics = mesh.host(feedback.metrics), mesh.host(single.metrics)
        for name, pairs in {
            "states": zip(*states, strict=True),
            "priorities": [(mesh.local(feedback.priorities), priorities)],
            "metrics": [(at_once_metrics[name], value) for name, value in metrics.items()],
        }.items():
            worst = max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs)
            report[name] = max(report[name], worst)
        report["shapes"] = [list(mesh.local(feedback.priorities).shape), len(feedback.metrics), len(single.metrics)]
    end = mesh.host(runs[0][0])
    before, after = (getattr(each, "params", each) for each in (state, end))
    both = zip(jax.tree.leaves(after), jax.tree.leaves(before), strict=True)
    moved = max(float(np.abs(a - np.asarray(b)).max()) for a, b in both)
    return report | {"updates": int(end.step), "moved": moved, "largest priority": float(largest)}


def main() -> dict[str, Any]:
    agents = {"ordered": ordered_agent(), "ddpg": ddpg_agent()}
    return {
        mapper: {name: compare(devices.make_mesh(mapper), agent) for name, agent in agents.items()}
        for mapper in devices.MAPPERS
    }


if __name__ == "__main__":
    print(json.dumps(main()))
