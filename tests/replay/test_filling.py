"""Rings that are filled inside a compiled program hold what an actor's writer puts into them, row for row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.agent import Agent, Step, TableSpec, Transitions
from replay import filling
from replay.filling import FilledRings
from replay.ring_channel import RingChannel
from replay.rows import Row, Version, never
from runtime import devices
from tests.replay import told_sequences, told_stacks
from tests.replay.test_rings import VECTORS, Stacks
from tests.replay.told_sequences import WINDOWS, memory_before
from tests.replay.told_transitions import GAMMA, stream


def steps_of(kind, num_envs, rows):
    """Returns rows of experience, each with the memory before it."""
    if isinstance(kind, Stacks):
        return [(step, ()) for step in told_stacks.framed(num_envs, rows)]
    if isinstance(kind, Transitions):
        return [(step, ()) for step in stream(num_envs, rows)]
    return [
        (Step(*step[:5], {"number": np.full(num_envs, row + 1, np.int32)}), memory_before(row, range(num_envs)))
        for row, step in enumerate(stream(num_envs, rows))
    ]


def structure_of(kind):
    if isinstance(kind, Stacks):
        return told_stacks.structure_of(kind.stack, (2, 3))
    return VECTORS if isinstance(kind, Transitions) else told_sequences.structure_of(kind)


def priority(params, items):
    """Returns priorities that depend on the parameters and on the items' rewards."""
    steps = items.steps if hasattr(items, "steps") else items
    reward = steps.reward if steps.reward.ndim == 1 else steps.reward[-1]
    return params * (1.0 + jnp.abs(reward) % 7)


def channels(kind, num_envs, prioritized, max_size):
    table = TableSpec("replay", kind, "prioritized" if prioritized else "uniform", max_size)
    agent = Agent(None, None, None, None, None, None, table, 16, priority if prioritized else None)
    mesh = devices.make_mesh(devices=jax.local_devices()[:1])
    return [make(mesh, agent, table, structure_of(kind), 16, 1, num_envs, 10**9) for make in (RingChannel, FilledRings)]


def test_a_replay_of_other_actors_is_refused():
    written, _ = channels(Transitions(1, GAMMA), 4, False, 100)
    table, mesh = TableSpec("replay", Transitions(1, GAMMA), "uniform", 100), devices.make_mesh()
    agent = Agent(None, None, None, None, None, None, table, 16)
    with pytest.raises(ValueError, match="1 actors of 4 environments, and this run has 2 of 2: give the --placement"):
        RingChannel(mesh, agent, table, VECTORS, 16, 2, 2, 10**9, written.state())


@pytest.mark.parametrize("num_envs", [1, 7, 100])
@pytest.mark.parametrize(
    ("kind", "prioritized"),
    [
        (Transitions(1, GAMMA), False), (Transitions(4, GAMMA), True), (Stacks(3, GAMMA, 4), False),
        *[(window, index % 2 == 0) for index, window in enumerate(WINDOWS)],
    ],
)  # fmt: skip
def test_the_same_rows_fill_the_same_rings(kind, prioritized, num_envs):
    written, filled = channels(kind, num_envs, prioritized, 3 * num_envs)
    ring, writer = filled.ring, written.writer(0, None, never)
    mesh, columns = devices.make_mesh(devices=jax.local_devices()[:1]), devices.COLUMNS
    rows = 3 * ring.length + ring.chunk
    told = steps_of(kind, num_envs, rows)

    def append(kept, steps, memory, params):
        rows, masses, filled_to, count = filling.append(
            ring, priority if prioritized else None, kept.rows, kept.masses, kept.filling, steps, memory, params
        )
        return kept._replace(rows=rows, masses=masses, filling=filled_to, inserted=kept.inserted + count)

    compiled = mesh.compile(append, (filled.kept_specs, columns, columns, devices.REPLICATED), filled.kept_specs)
    for start in range(0, rows, ring.chunk):
        params = np.float32(1 + start % 3)
        chunk = told[start : start + ring.chunk]
        for step, memory in chunk:
            writer.append(Row(step, memory, Version(0, 0), params))
        written.drain()
        steps, memory = jax.tree.map(lambda *x: np.stack(x), *chunk)
        filled.take(compiled(filled.give(), *mesh.put((steps, memory), columns), mesh.put(params)), ring.chunk)
    expected, found = written.state(), filled.state()
    assert expected["counts"][0] == found["counts"][0] > 0
    for name in ("rows", "masses", "heads", "tails", "length"):
        jax.tree.map(np.testing.assert_array_equal, expected[name], found[name])
    if ring.memory_slots:
        np.testing.assert_array_equal(expected["opened"] % ring.memory_slots, found["opened"] % ring.memory_slots)
    assert filled.count() == written.count()
    np.testing.assert_array_equal(written.masses.count, filled.masses.count)


@pytest.mark.parametrize("ratio", [0.5, 4.0])
@pytest.mark.parametrize("inserted", [30, 100, 5_000])
def test_samples_that_are_owed_are_owed_after_a_resume_too(inserted, ratio):
    table = TableSpec("replay", Transitions(1, GAMMA), "uniform", 100, min_size=50, samples_per_insert=ratio)
    agent = Agent(None, None, None, None, None, None, table, 16)
    mesh = devices.make_mesh(devices=jax.local_devices()[:1])
    for owed in (0, 11) if inserted > 50 else (0,):
        filled = FilledRings(mesh, agent, table, VECTORS, 16, 1, 4, 10**9)
        kept = filled.give()
        counts = {"inserted": mesh.put(np.int32(inserted)), "owed": mesh.put(np.float32(owed))}
        filled.take(kept._replace(**counts), filled.ring.chunk)
        saved = jax.tree.map(np.array, filled.state())
        again = FilledRings(mesh, agent, table, VECTORS, 16, 1, 4, 10**9, saved)
        kept = again.give()
        assert int(mesh.host(kept.inserted)) == inserted == again.count()
        assert float(mesh.host(kept.owed)) == owed
        assert again.heads[0] == again.ring.chunk and int(mesh.host(kept.filling.slot)) == again.ring.chunk
