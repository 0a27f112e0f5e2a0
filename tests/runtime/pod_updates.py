"""Makes a few updates of a pod, as a program that runs on each of its hosts, or on one host with as many devices, and
prints the results as JSON: `python -m tests.runtime.pod_updates HOSTS HOST PORT`."""

import dataclasses
import json
import os
import sys
from typing import Any

import jax
import numpy as np

from agents import dqn, impala
from agents.agent import DiscreteActions, EnvironmentSpec, Sample, Step, Version
from replay import channels
from replay.local_carrier import LocalCarrier
from replay.rings import CHUNK_ITEMS
from replay.rows import Batch, Row
from runtime import devices, hosts
from runtime.hosts import Agreement, Hosts, Meeting
from runtime.learner import Learner

UPDATES, LENGTH, ENVIRONMENTS = 6, 4, 8  # on all hosts together
VECTORS = EnvironmentSpec((3,), np.dtype(np.float32), DiscreteActions(3))
SMALL: dict[str, Any] = {"torso": "mlp", "hidden_sizes": (8,), "frame_stack": 1}


def mine(x: Any, axis: int, of: Hosts) -> Any:
    """Returns this host's share of an array along an axis."""
    return np.split(x, of.count, axis)[of.index]


def sums(state: Any, policy: Any) -> list[float]:
    """Returns the sum of each array of the parameters, with different weights for its elements."""
    return [float(np.sum(x * np.linspace(0.5, 1.5, x.size).reshape(x.shape))) for x in jax.tree.leaves(policy(state))]


def learnt_from_blocks(mesh: devices.Mesh, of: Hosts) -> list[float]:
    agent = impala.make(
        impala.Config(unroll_length=LENGTH, batch_size=ENVIRONMENTS, learning_rate=0.01, **SMALL), VECTORS
    )
    learner = Learner(agent, jax.jit(agent.init)(jax.random.key(0)), Version(0, 0), 0, lambda *_: None, mesh=mesh)
    rng, rows = np.random.default_rng(0), (LENGTH + 1, ENVIRONMENTS)

    def batches():
        for _ in range(UPDATES):
            steps = Step(
                rng.normal(size=(*rows, 3)).astype(np.float32),
                rng.integers(3, size=rows).astype(np.int32),
                rng.normal(size=rows).astype(np.float32),
                (rng.random(rows) < 0.9).astype(np.float32),
                rng.random(rows) < 0.2,
                {"outputs": rng.normal(size=(*rows, 3)).astype(np.float32)},
            )
            sample = Sample(jax.tree.map(lambda x: mine(x, 1, of), steps), agent.memory(ENVIRONMENTS // of.count, None))
            yield Batch(devices.send(mesh, sample), None, 10 + of.index)

    for _ in learner.run(batches()):
        pass
    return sums(learner.host_state(), agent.policy)


def learnt_from_rings(mesh: devices.Mesh, of: Hosts) -> tuple[list[float], float]:
    """Learns by prioritised DQN; returns the sums of its parameters and the sum of all hosts' masses in the rings."""
    config = dqn.Config(
        replay="prioritized", batch_size=ENVIRONMENTS, replay_size=10_000, min_replay_size=8, learning_rate=0.1,
        samples_per_insert=1_000.0, **SMALL,
    )  # fmt: skip
    agent = dqn.make(config, VECTORS)
    num_envs, share = ENVIRONMENTS // of.count, ENVIRONMENTS // of.count
    structure = channels.item_structure(agent, VECTORS, num_envs)
    carrier = LocalCarrier(mesh, jax.local_devices(backend="cpu")[0])
    # Rings must be as long as one host's: else sums are rounded differently, and a draw may fall beyond a border.
    table = dataclasses.replace(agent.table, max_size=10_000 // of.count, min_size=8 // of.count)
    channel = carrier.channel(agent, table, structure, share, 1, num_envs, 10_000 // of.count)
    writer, rng = channel.writer(0, None, lambda: True), np.random.default_rng(1)
    state = jax.jit(agent.init)(jax.random.key(0))
    params = agent.policy(state)
    # The rows are a multiple of those that an actor keeps before it hands them over, so all of them are in the rings.
    for _ in range(2 * CHUNK_ITEMS):
        step = Step(
            rng.normal(size=(ENVIRONMENTS, 3)).astype(np.float32),
            rng.integers(3, size=ENVIRONMENTS).astype(np.int32),
            rng.normal(size=ENVIRONMENTS).astype(np.float32),
            np.full(ENVIRONMENTS, 0.9, np.float32),
            rng.random(ENVIRONMENTS) < 0.1,
            {},
        )
        memory = agent.memory(num_envs, np.zeros(num_envs, np.float32))
        writer.append(Row(jax.tree.map(lambda x: mine(x, 0, of), step), memory, Version(0, 0), params))
    learner = Learner(agent, state, Version(0, 0), 0, lambda *_: None, mesh=mesh, source=channel)
    batches = channel.batches()
    for update, _ in enumerate(learner.run(batches), start=1):
        if update == UPDATES:
            break
    masses = mesh.span(channel.masses, channel.specs[1])
    total = mesh.compile(lambda m: jax.lax.psum(m.of_rows.sum(), devices.AXIS), (channel.specs[1],), mesh.REPLICATED)(
        masses
    )
    return sums(learner.host_state(), agent.policy), float(mesh.host(total))


def main(count: int, index: int, port: int) -> None:
    of = Hosts(index, count)
    meeting = Meeting(of, ("localhost", port), {}, 120.0)
    if count > 1:
        hosts.start_jax(of, ("localhost", port + 1))
    mesh = devices.make_mesh()
    found: dict[str, Any] = {"devices": mesh.total, "blocks": learnt_from_blocks(mesh, of)}
    found["rings"] = learnt_from_rings(mesh, of)
    if count > 1:
        agreement = Agreement(mesh)
        # The last host is asked to end at the third update; the first sees at the fourth that the run is done.
        found["agreed"] = [
            agreement(10 + index, update == 2 and index == count - 1, update == 3 and index == 0) for update in range(6)
        ]
        found["said"] = [hosts.first_says(fact) for fact in (index == 0, index > 0)]
        state, version = hosts.share_state({"x": np.full(2, index)}, Version(index + 1, 5_000_000_000 + index))
        found["shared"] = [state["x"].tolist(), list(version)]
    print(json.dumps(found), flush=True)
    meeting.close(60.0)
    os._exit(0)


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:4]))
