"""The learner whose actor is part of its program: what it counts, publishes and tells, whatever a program made, which
is played here; and what the programs make."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.agent import AXIS, Agent, Blocks, Feedback, TableSpec, Transitions, Version
from environments import EnvironmentFailure
from environments.environment import Episodes
from environments.functional import Ended, Scores
from replay import transitions
from replay.filling import FilledRings
from runtime import device_learner, devices
from runtime.device_learner import DeviceLearner, Made, Program
from runtime.rollout import Acting, Rollout
from tests.environments.test_functional import WALK
from tests.runtime.test_rollout import LENGTH, SEED, acted, agent_of

MESH = devices.make_mesh(devices=jax.local_devices()[:1])
ROWS, ENVIRONMENTS = 7, 3
TABLE = TableSpec("queue", Blocks(1), "queue", 1)


class State(NamedTuple):
    updates: jax.Array


AGENT = Agent(None, lambda state: state.updates, None, None, None, None, TABLE, 6)


class Played:
    """Stands for a program and for what it keeps. `made` has for each of its calls the environment steps, the updates,
    and whether everything was finite."""

    def __init__(self, made, seed=0):
        self.made, self.rng = iter(made), np.random.default_rng(seed)
        self.published, self.bases, self.taken, self.ended, self.told = [], [], [], [], []

    def learner(self, **changes) -> DeviceLearner:
        return DeviceLearner(
            AGENT, State(np.int32(5)), Version(5, 100), 0, self.publish, mesh=MESH, program=Program(self.call, ROWS),
            replay=self, start=self.start, played=lambda *said: self.told.append(said), **changes,
        )  # fmt: skip

    def publish(self, version, params):
        self.published.append((version, int(MESH.host(params))))

    def start(self, params):
        return Acting(None, None, (), MESH.put(np.bool_(True)))

    def give(self):
        return f"kept {len(self.taken)}"

    def take(self, kept, rows):
        self.taken.append((kept, rows))

    def call(self, state, step, acting, kept, env_steps):
        assert kept == f"kept {len(self.taken)}"
        self.bases.append(float(MESH.host(env_steps)))
        steps, updates, finite = next(self.made)
        ended = Ended(
            self.rng.random((ROWS, ENVIRONMENTS)) < 0.2,
            Scores(
                self.rng.normal(size=(ROWS, ENVIRONMENTS)).astype(np.float32),
                self.rng.integers(1, 9, (ROWS, ENVIRONMENTS)).astype(np.int32),
            ),
        )
        self.ended.append(ended)
        counts = MESH.put((np.int32(steps), np.int32(updates)))
        made = Made(*counts, MESH.put(ended, devices.COLUMNS))
        state = State(MESH.put(np.int32(int(MESH.host(state.updates)) + updates)))
        acting = acting._replace(finite=MESH.put(np.bool_(finite)))
        return state, step, acting, kept, {"loss": MESH.put(np.float32(len(self.bases)))}, made


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("period", [1, 4])
def test_what_a_program_made_is_counted_told_and_published(members, period):
    rng = np.random.default_rng(10 * members + period)
    made = [(int(steps), int(updates), True) for steps, updates in rng.integers(0, [50, 4], (30, 2))]
    played = Played(made)
    learner = played.learner(publish_period=period, members=members)
    yielded = [
        (learner.version, float(MESH.host(feedback.metrics["loss"])), host)
        for feedback, host in learner.run(iter([None] * len(made)))
    ]
    steps = np.cumsum([0, *(steps for steps, _, _ in made)])
    versions = [
        Version(5 + sum(updates for _, updates, _ in made[:n]), 100 + int(steps[n]) // members)
        for n in range(len(made) + 1)
    ]
    assert played.bases == [version.env_steps for version in versions[:-1]], "of one member, before the call"
    assert [said[:2] for said in played.told] == [
        (version, steps) for version, (steps, _, _) in zip(versions[1:], made, strict=True)
    ]
    for ended, (_, _, episodes) in zip(played.ended, played.told, strict=True):
        places = [(row, e) for row in range(ROWS) for e in range(ENVIRONMENTS) if ended.ended[row, e]]
        assert episodes == Episodes(
            [e for _, e in places],
            [float(ended.scores.returns[place]) for place in places],
            [int(ended.scores.lengths[place]) for place in places],
        )
    updated = [n for n, (_, updates, _) in enumerate(made, 1) if updates]
    assert 0 < len(updated) < len(made)
    assert yielded == [(versions[n], n, {"wait_seconds": 0.0, "lag": 0.0}) for n in updated]
    passed = [n for n in updated if versions[n][0] // period != versions[n - 1][0] // period]
    assert played.published == [(versions[n], versions[n].learner_steps) for n in (0, *passed)]
    assert played.taken == [(f"kept {n}", ROWS) for n in range(len(made))]


@pytest.mark.parametrize("calls", [1, 4])
def test_what_is_not_finite_ends_the_run_and_nothing_is_learnt_from_it(calls):
    played = Played([(10, 1, True)] * (calls - 1) + [(10, 1, False), (10, 1, True)])
    learner, yielded = played.learner(), []
    with pytest.raises(EnvironmentFailure, match="is not finite"):
        for _ in learner.run(iter([None] * (calls + 1))):
            yielded.append(learner.version)
    assert len(yielded) == len(played.told) == calls - 1 and learner.version == Version(4 + calls, 90 + 10 * calls)


def test_each_draw_and_each_update_has_a_key_of_its_own():
    """They differ by the seed, the update and the device."""

    class Source:
        def draw(self, rows, masses, key, size):
            assert size == AGENT.batch_size // 2, "a device's share"
            return jax.random.key_data(key), ()

        def reprioritize(self, masses, items, priorities):
            return masses

    def update(state, key, sample):
        return state, Feedback({"draw": sample, "update": jax.random.key_data(key)})

    class Two:
        total = 2

    agent, keys = AGENT._replace(update=update), []
    for seed in (0, 1):
        one = devices.drawing_update(Two(), agent, seed, Source())  # type: ignore[arg-type]

        def updates(_, one=one):
            return jax.lax.scan(lambda carry, _: one(carry, ()), ((), jnp.uint32(0), ()), length=5)[1]

        metrics = jax.vmap(updates, axis_name=AXIS)(jnp.arange(2))
        keys += [tuple(key) for of in metrics.values() for key in np.asarray(of).reshape(-1, 2).tolist()]
    assert len(set(keys)) == len(keys) == 2 * 2 * 2 * 5


def test_episodes_are_in_the_order_in_which_they_ended():
    ended = Ended(np.array([[False, True], [True, True]]), Scores(np.arange(4.0).reshape(2, 2), np.ones((2, 2), int)))
    assert device_learner.episodes_of(ended) == Episodes([1, 0, 1], [1.0, 2.0, 3.0], [1, 1, 1])


# The programs --------------------------------------------------------------------------------------------------------

MOST = 512  # updates that a Log has room for


class Log(NamedTuple):
    """A state that notes, for each update, the environment steps that it was told, its key and its sample's rewards."""

    env_steps: jax.Array
    count: jax.Array
    told: jax.Array
    keys: jax.Array
    rewards: jax.Array


def new_log() -> Log:
    return Log(np.float32(0), np.int32(0), np.zeros(MOST, np.float32), np.zeros((MOST, 2), np.uint32), np.zeros(MOST))


def logging_agent(batch: int, table: TableSpec | None = None) -> Agent:
    def update(state, key, sample):
        n, reward = state.count, sample.steps.reward.sum()
        state = Log(
            state.env_steps,
            n + 1,
            state.told.at[n].set(state.env_steps),
            state.keys.at[n].set(jax.random.key_data(key)),
            state.rewards.at[n].set(reward),
        )
        return state, Feedback({"reward": reward})

    def init(key):
        return jax.tree.map(jnp.asarray, new_log())

    agent = agent_of()._replace(init=init, policy=lambda state: state.count * 0, update=update, batch_size=batch)
    return agent if table is None else agent._replace(table=table)


@pytest.mark.parametrize(("batch", "num_envs", "members"), [(4, 4, 1), (2, 4, 1), (8, 4, 1), (6, 6, 3), (2, 6, 2)])
def test_blocks_are_learnt_from_as_they_are_made(batch, num_envs, members):
    """A batch is a block, or several, or a part of one. Members of a population are told the steps of one of them."""
    agent, turns = logging_agent(batch), 3
    rollout = Rollout(agent, WALK, num_envs, 1, SEED)
    count, parts = max(1, batch // num_envs), max(1, num_envs // batch)
    rows = count * LENGTH
    program = device_learner.blocks_program(MESH, agent, rollout, 5, turns * rows * num_envs + 1, members)
    assert program.rows == turns * rows
    state, step = MESH.put(new_log()), MESH.put(np.uint32(0))
    acting = MESH.compile(rollout.start, (devices.REPLICATED,), rollout.specs(MESH))(MESH.put(np.int32(0)))
    told, rewards = [], []
    made_rows, _ = acted(agent, num_envs, 2 * program.rows + 1)
    for call in range(2):
        base = 1000.0 * (call + 1)
        state, step, acting, _, metrics, made = program.call(state, step, acting, (), MESH.put(np.float32(base)))
        steps = 0
        for turn in range(turns):
            first_row = (call * turns + turn) * rows
            for part in range(parts):
                mine = slice(part * batch, (part + 1) * batch) if parts > 1 else slice(None)
                told.append(base + steps // members)
                there = made_rows[first_row : first_row + rows]
                rewards.append(sum(float(row.step.reward[mine].sum()) for row in there))
                after = made_rows[first_row + 1 : first_row + rows + 1]
                steps += sum(int(np.sum(~row.step.first[mine])) for row in after)
        assert (int(made.env_steps), int(made.updates)) == (steps, turns * parts)
        assert made.ended.ended.shape == (program.rows, num_envs)
        assert float(metrics["reward"]) == pytest.approx(rewards[-1], rel=1e-4), "the last update's"
    log, number = MESH.host(state), 2 * turns * parts
    assert int(log.count) == int(MESH.host(step)) == number
    np.testing.assert_array_equal(log.told[:number], told)
    np.testing.assert_allclose(log.rewards[:number], rewards, rtol=1e-4, atol=1e-4)
    assert len({tuple(key) for key in log.keys[:number].tolist()}) == number


@pytest.mark.parametrize("ratio", [0.0, 2.0])
def test_from_a_replay_as_many_updates_are_made_as_are_due(ratio):
    """No samples are due for the first `min_size` items. Without a ratio, a batch is due for each `pull_period`."""
    batch, num_envs, least = 8, 4, 50
    table = TableSpec("replay", Transitions(1, 0.9), "uniform", 400, min_size=least, samples_per_insert=ratio)
    agent = logging_agent(batch, table)
    rollout, structure = Rollout(agent, WALK, num_envs, 1, SEED), transitions.structure(agent, WALK.spec, num_envs)
    replay = FilledRings(MESH, agent, table, structure, batch, 1, num_envs, 10**6)
    program = device_learner.replay_program(MESH, agent, rollout, 5, 130, replay)
    chunk = replay.ring.chunk
    assert program.rows == 2 * chunk
    state, step = MESH.put(new_log()), MESH.put(np.uint32(0))
    acting = MESH.compile(rollout.start, (devices.REPLICATED,), rollout.specs(MESH))(MESH.put(np.int32(0)))
    made_rows, _ = acted(agent, num_envs, 5 * program.rows)
    per_item, updates = ratio or batch / replay.ring.cut.pull_period, 0
    for call in range(5):
        base = 1000.0 * (call + 1)
        state, step, acting, kept, _, made = program.call(
            state, step, acting, replay.give(), MESH.put(np.float32(base))
        )
        replay.take(kept, program.rows)
        mine = made_rows[call * program.rows : (call + 1) * program.rows]
        live = np.cumsum([int(np.sum(~row.step.first)) for row in mine])
        assert int(made.env_steps) == live[-1]
        inserted = int(MESH.host(kept.inserted))
        due = int(per_item * max(0, inserted - least) // batch)
        told = np.array(MESH.host(state).told)[updates:due]
        assert set(told.tolist()) <= {base + live[chunk - 1], base + live[-1]} and np.all(np.diff(told) >= 0)
        updates += int(made.updates)
        assert updates == due == int(MESH.host(step)) == int(MESH.host(state).count)
    assert updates > 2 and replay.count() == inserted
