"""Records what each of this process's devices draws from rings, and the likelihood that it reports for each item. Run
as a program, it prints what it found as JSON."""

import json
from typing import Any

import jax
import numpy as np

from agents.agent import AXIS, Agent, Sample, Step, TableSpec, Transition, Transitions, Version
from replay.ring_channel import RingChannel
from replay.rows import Row, never
from replay.structures import Structure
from runtime import devices

ROWS, ENVIRONMENTS, SHARE, DRAWS = 40, 8, 64, 60
NUMBER = np.zeros((), np.float32)
STRUCTURE = Structure(
    Transition(np.zeros(2, np.float32), np.zeros((), np.int32), NUMBER, NUMBER, np.zeros(2, np.float32))
)


def priority_of(row: Any, environment: Any) -> Any:
    """Returns a priority that varies with the row and has a different mean in each environment."""
    return 1.0 + 3.0 * environment + row % 5


# For each kind of draw, the fields of its TableSpec.
KINDS: dict[str, dict[str, Any]] = {
    "uniform": {"kind": "uniform"},
    "prioritized": {"kind": "prioritized"},
    "mixed": {"kind": "prioritized", "uniform_fraction": 0.5},
    "ranked": {"kind": "prioritized", "priority": "rank"},
    "ranked and mixed": {"kind": "prioritized", "priority": "rank", "uniform_fraction": 0.5},
}


def make_channel(mesh: devices.Mesh, kind: str, exponent: float = 0.6, saved: Any = None) -> RingChannel:
    table = TableSpec("replay", Transitions(1, 0.5), max_size=10_000, priority_exponent=exponent, **KINDS[kind])

    def priority(params, transition):
        return params * priority_of(transition.observation[:, 1], transition.observation[:, 0])

    agent = Agent(None, None, None, None, None, None, table, SHARE * mesh.size, None if kind == "uniform" else priority)
    return RingChannel(mesh, agent, table, STRUCTURE, SHARE * mesh.size, 1, ENVIRONMENTS, 10**9, saved)


def write(channel: RingChannel, rows: int = ROWS) -> None:
    """Writes one endless episode of each environment; item i of environment e starts at the observation (e, i)."""
    writer = channel.writer(0, None, never)
    environment, one = np.arange(ENVIRONMENTS, dtype=np.float32), np.ones(ENVIRONMENTS, np.float32)
    for row in range(rows):
        observation = np.stack([environment, row * one], axis=1)
        step = Step(observation, np.full(ENVIRONMENTS, row, np.int32), one, one, np.full(ENVIRONMENTS, row == 0), {})
        writer.append(Row(step, (), Version(0, 0), np.float32(2)))
    channel.drain()


def compile_draw(mesh: devices.Mesh, channel: RingChannel) -> Any:
    """Returns a compiled function: (rows, masses, key data) -> (each device's sample, anchors)."""

    def draw(rows, masses, key):
        key = jax.random.fold_in(jax.random.wrap_key_data(key), jax.lax.axis_index(AXIS))
        return channel.draw(rows, masses, key, SHARE)

    return mesh.compile(draw, (*channel.specs, mesh.REPLICATED), (Sample(mesh.ROWS, mesh.ROWS, mesh.ROWS), mesh.ROWS))


def draw(mesh: devices.Mesh, channel: RingChannel, draws: int = DRAWS) -> dict[str, list[float]]:
    compiled = compile_draw(mesh, channel)
    next(channel.batches())
    found: dict[str, list[float]] = {"environment": [], "row": [], "likelihood": []}
    for number in range(draws):
        key = mesh.put(jax.random.key_data(jax.random.key(number)))
        sample, _ = compiled(channel.rows, channel.masses, key)
        observation = mesh.local(sample.steps.observation)
        found["environment"] += observation[:, 0].tolist()
        found["row"] += observation[:, 1].tolist()
        found["likelihood"] += mesh.local(sample.likelihood).tolist()
    return found


def main() -> dict[str, Any]:
    report = {}
    for mapper in devices.MAPPERS:
        mesh = devices.make_mesh(mapper)
        for kind in KINDS:
            channel = make_channel(mesh, kind)
            write(channel)
            report[f"{mapper} {kind}"] = draw(mesh, channel) | {"devices": mesh.size}
    return report


if __name__ == "__main__":
    print(json.dumps(main()))
