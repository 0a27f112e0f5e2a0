"""Prints how much memory an item of an agent takes in a Reverb server's process, as JSON: [measured, estimated] bytes.

Each agent is measured by a run of this program of its own: in the tests' process memory grows for many reasons, and
freed memory is used again.
"""

import dataclasses
import json
import os
import sys

import jax
import numpy as np

from agents import ddpg, dqn, r2d2
from agents.agent import BoundedActions, DiscreteActions, EnvironmentSpec, Step, Version
from replay import channels, server
from replay.rows import Row, never
from replay.structures import step_structs

NUM_ENVS = 8
HALF_CHEETAH = EnvironmentSpec(
    (17,), np.dtype(np.float32), BoundedActions(-np.ones(6, np.float32), np.ones(6, np.float32))
)
FRAMES = EnvironmentSpec((84, 84), np.dtype(np.uint8), DiscreteActions(6))
CASES = {  # agent -> (environment, config, rows written before measuring, rows written while measuring)
    "ddpg": (HALF_CHEETAH, ddpg.Config(), 250, 1_500),
    "dqn": (FRAMES, dqn.Config(), 50, 400),
    "r2d2": (FRAMES, r2d2.Config(), 120, 960),
}


def resident() -> int:
    """Returns how many bytes of this process are in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(module, spec: EnvironmentSpec, config, before: int, rows: int) -> tuple[float, int]:
    agent = module.make(config, spec)
    table = dataclasses.replace(agent.table, min_size=1, samples_per_insert=0.0)  # nobody samples
    structure = channels.item_structure(agent, spec, NUM_ENVS)
    way, columns = channels.way(table), channels.columns(table, structure)
    tables = [server.build_table(table, columns, 1, 1)]
    if way.counter(table)[0] != table.name:
        tables.append(server.build_steps_table(table.name))
    running = server.serve(tables, None, None)
    client = running.localhost_client()
    writer, rng = way.writer(client, table, structure, None, never), np.random.default_rng(0)
    memory = agent.memory(NUM_ENVS, None)
    extras = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), step_structs(agent, spec, NUM_ENVS)[0].extras)

    def write(rows: range) -> None:
        for row in rows:
            if spec is FRAMES:
                observation = rng.integers(256, size=(NUM_ENVS, 84, 84), dtype=np.uint8)
                action = rng.integers(6, size=NUM_ENVS, dtype=np.int32)
            else:
                observation = rng.normal(size=(NUM_ENVS, 17)).astype(np.float32)
                action = rng.uniform(-1, 1, size=(NUM_ENVS, 6)).astype(np.float32)
            ones, first = np.ones(NUM_ENVS, np.float32), np.full(NUM_ENVS, row == 0)
            step = Step(observation, action, rng.normal(size=NUM_ENVS).astype(np.float32), ones, first, extras)
            writer.append(Row(step, memory, Version(0, 0)))

    def held() -> int:
        return client.server_info()[table.name].current_size

    write(range(before))
    items, bytes_ = held(), resident()
    write(range(before, before + rows))
    return (resident() - bytes_) / (held() - items), way.item_bytes(agent, spec)


if __name__ == "__main__":
    module = {"ddpg": ddpg, "dqn": dqn, "r2d2": r2d2}[sys.argv[1]]
    print(json.dumps(measure(module, *CASES[sys.argv[1]])), flush=True)
    os._exit(0)  # at a normal exit the writers would wait for their servers
