"""The actor's loop: the order of its calls, and what it hands on. The whole path is in tests/replay/test_blocks.py."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from agents import impala
from agents.agent import Agent, DiscreteActions, EnvironmentSpec, Sample, Step, Transition, Version
from environments.counting import CountingEnvironment
from runtime import actor


class Recorded:
    """Fakes of everything that the actor's loop calls, each of which notes its calls in `calls`."""

    def __init__(self, item_every: int):
        self.calls: list[tuple] = []
        self.item_every, self.version, self.appended = item_every, 0, []
        self.num_envs, self._row = 1, 0
        self._counting = CountingEnvironment(1)

    def agent(self) -> Agent:
        return Agent(None, None, self.memory, None, None, None, None, 1)

    def memory(self, num_envs: int, ranks) -> np.ndarray:
        self.calls.append(("memory", num_envs))
        return np.zeros(num_envs, int)

    def act(self, params, key, count, timestep, memory):
        self.calls.append(("act", int(params), int(count), int(memory[0])))
        return np.full(1, count), {"count": np.full(1, count)}, memory + 1

    # The environment
    def reset(self):
        self.calls.append(("reset",))
        return self._counting.reset()

    def step(self, action):
        self.calls.append(("step", int(action[0])))
        return self._counting.step(action)

    def finished(self):
        return self._counting.finished()

    # The variable container
    def pull(self):
        self.version += 1
        self.calls.append(("pull",))
        return Version(self.version, 0), np.array(self.version)

    # The writer
    def append(self, row):
        action, memory = int(row.step.action[0]), int(row.memory[0])
        self.calls.append(("append", action, memory, row.version.learner_steps, int(row.params)))
        self.appended.append(row.step)
        self._row += 1
        return self._row % self.item_every == 0

    def run(self, stopped=lambda: False):
        device = jax.devices()[0]
        return actor.run(self.agent(), self.act, self, self, self, jax.random.key(0), device, stopped)


def test_the_order_is_pull_then_act_step_append_until_an_item_was_sent():
    fakes = Recorded(item_every=3)
    loop = fakes.run()
    metrics = [next(loop), next(loop)]

    def row(count, version):
        return [("act", version, count, count), ("step", count), ("append", count, count, version, version)]

    assert fakes.calls[:2] in ([("reset",), ("memory", 1)], [("memory", 1), ("reset",)])
    assert fakes.calls[2:] == [
        *[("pull",), *row(0, 1), *row(1, 1), *row(2, 1)],
        *[("pull",), *row(3, 2), *row(4, 2), *row(5, 2)],
    ]
    assert [m["learner_steps"] for m, _ in metrics] == [1, 2]


def test_a_row_is_the_observation_with_the_reward_and_discount_that_arrive_next():
    fakes = Recorded(item_every=12)
    next(fakes.run())
    counting = CountingEnvironment(1)
    told = [counting.reset(), *(counting.step(np.zeros(1, int)) for _ in range(12))]
    for step, now, after in zip(fakes.appended, told, told[1:], strict=False):
        np.testing.assert_array_equal(step.observation, now.observation)
        np.testing.assert_array_equal(step.first, now.first)
        np.testing.assert_array_equal(step.reward, after.reward)
        np.testing.assert_array_equal(step.discount, after.discount)
        np.testing.assert_array_equal(step.extras["count"], step.action)
    assert any(step.discount == 0 for step in fakes.appended)


def test_metrics_count_transitions_and_the_episodes_that_ended_are_told():
    """Counting-v0's environment 0 has episodes of 1, 3 and 5 actions: rows 0-1, 2-5, 6-11."""
    loop = Recorded(item_every=6).run()
    (first, first_episodes), (second, second_episodes) = next(loop), next(loop)
    # After 6 and 12 steps. The actions in rows 1, 5 and 11, the last of their episodes, were thrown away.
    assert (first["actor_steps"], second["actor_steps"]) == (4, 9)
    assert first_episodes == ([0, 0], [1.0, 11.0 + 12 + 13], [1, 3])
    assert second_episodes == ([0], [21.0 + 22 + 23 + 24 + 25], [5])
    assert 0 <= first["wait_fraction"] <= 1 and 0 <= first["pull_fraction"] <= 1


@pytest.mark.parametrize("seed", range(4))
def test_what_pulling_and_waiting_took_is_told_as_a_share_of_the_turn(seed, monkeypatch):
    rng, now, spent = np.random.default_rng(seed), [7.0], {}

    def taking(name, function):
        def call(*args):
            seconds = float(rng.integers(1, 9))
            now[0] += seconds
            spent[name] = spent.get(name, 0.0) + seconds
            return function(*args)

        return call

    monkeypatch.setattr(actor, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    fakes = Recorded(item_every=3)
    for name in ("pull", "act", "step", "append"):
        monkeypatch.setattr(fakes, name, taking(name, getattr(fakes, name)))
    loop = fakes.run()
    for _ in range(3):
        spent.clear()
        told, _ = next(loop)
        assert told["pull_fraction"] == pytest.approx(spent["pull"] / sum(spent.values()))
        assert told["wait_fraction"] == pytest.approx(spent["append"] / sum(spent.values()))


def test_stopped_is_asked_before_every_pull():
    fakes = Recorded(item_every=2)
    answers = iter([False, False, True])
    assert len(list(fakes.run(lambda: next(answers)))) == 2
    assert fakes.calls.count(("pull",)) == 2


FRAMES = EnvironmentSpec((2, 3), np.dtype(np.uint8), DiscreteActions(3))


def recurrent_agent():
    config = impala.Config(torso="mlp", hidden_sizes=(4,), frame_stack=3, lstm_size=4)
    return impala.make(config, FRAMES)


class Frames(CountingEnvironment):
    """Counting-v0 shown as small frames of bytes; notes before each step how many compilations there were so far."""

    def __init__(self, num_envs: int, compiled: list | None = None):
        super().__init__(num_envs)
        self.spec = FRAMES
        self.compiled, self.compiled_before_step = [] if compiled is None else compiled, []

    def _observe(self):
        return np.tile(super()._observe()[:, None], (1, 2, 1)).astype(np.uint8)

    def _step(self, action, resets):
        self.compiled_before_step.append(len(self.compiled))
        return super()._step(action, resets)


class Variables:
    def __init__(self, params):
        self._params = jax.tree.map(np.asarray, params)

    def pull(self):
        return Version(0, 0), self._params


class Rows:
    """A writer that keeps what it is given; every fourth row completes an item."""

    def __init__(self):
        self.steps = []

    def append(self, row):
        self.steps.append(jax.tree.map(np.array, row.step))
        return len(self.steps) % 4 == 0


def run_actor(agent, act, params, environment, key=0, items=3):
    rows = Rows()
    loop = actor.run(agent, act, environment, Variables(params), rows, jax.random.key(key), jax.devices()[0])
    for _ in range(items):
        next(loop)
    return jax.tree.map(lambda *x: np.stack(x), *rows.steps)


@pytest.fixture(scope="module")
def recurrent():
    agent = recurrent_agent()
    return agent, agent.policy(jax.jit(agent.init)(jax.random.key(0)))


def test_acting_is_traced_once_for_all_actors_and_compiled_once(recurrent):
    """The agent has a recurrent state and frames: the memory that the actor starts with must not cost a compilation of
    its own."""
    agent, params = recurrent
    traces, compiled = [], []

    def counted(*args):
        traces.append(args)
        return agent.act(*args)

    def note(event, duration, **kwargs):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(kwargs)

    act = actor.compile_act(counted, jax.devices()[0])
    jax.monitoring.register_event_duration_secs_listener(note)  # for ever: JAX cannot unregister it
    for _ in range(2):
        environment = Frames(2, compiled)
        run_actor(agent, act, params, environment)
        after_first_action, *later = environment.compiled_before_step
        assert set(later) == {after_first_action}, "only the first action is compiled"
    assert len(traces) == 1
    assert compiled, "else the listener hears nothing, and this test says nothing"


def test_an_actors_key_decides_its_actions(recurrent):
    agent, params = recurrent
    act = actor.compile_act(agent.act, jax.devices()[0])
    steps, again, other = (run_actor(agent, act, params, Frames(4), key) for key in (1, 1, 2))
    jax.tree.map(np.testing.assert_array_equal, steps, again)
    assert (steps.action != other.action).any()
    assert len(np.unique(steps.action)) == 3
    assert (steps.action[1:] != steps.action[:-1]).any(), "each step has a key of its own"


def test_priorities_are_traced_once_however_many_transitions_there_are():
    traces = []

    def priority(params, transition):
        traces.append(transition.reward.shape)
        return params["scale"] * transition.reward + transition.observation[:, 1].astype(np.float32)

    compiled = actor.compile_priority(priority, 5, jax.devices()[0])
    for size in (5, 1, 3, 2, 4, 5):
        rewards = np.arange(size, dtype=np.float32) + 10 * size
        frames = np.arange(2 * size, dtype=np.uint8).reshape(size, 2)
        found = compiled({"scale": np.float32(size)}, Transition(frames, rewards, rewards, rewards, frames))
        assert isinstance(found, np.ndarray)
        np.testing.assert_array_equal(found, size * rewards + frames[:, 1])
    assert traces == [(5,)]


def test_priorities_of_sequences_are_filled_up_along_their_batch():
    """The batch axis is the second of steps, [T, b, ...], and the first of the memory, [b, ...]."""
    traces = []

    def priority(params, sample):
        traces.append((sample.steps.reward.shape, sample.memory["state"].shape))
        return params * sample.steps.reward.sum(axis=0) + sample.memory["state"][:, 1]

    compiled = actor.compile_priority(priority, 5, jax.devices()[0])
    for size in (2, 5, 1, 3):
        rows = np.arange(3 * size, dtype=np.float32).reshape(3, size)
        steps = Step(rows[..., None], rows.astype(np.int32), rows, rows, rows > 1, {"q": rows})
        state = np.arange(2 * size, dtype=np.float32).reshape(size, 2)
        found = compiled(np.float32(10), Sample(steps, {"state": state}))
        np.testing.assert_array_equal(found, 10 * rows.sum(axis=0) + state[:, 1])
    assert traces == [((3, 5), (5, 2))]


def test_an_agent_without_priorities_has_none_to_compile():
    assert actor.compile_priority(None, 5, jax.devices()[0]) is None


def test_parameters_are_sent_from_the_host_and_stay_where_they_are_on_the_device():
    device = jax.local_devices()[0]
    host = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "none": (), "n": np.int32(4)}
    sent = actor.send_params(host, device)
    assert all(isinstance(x, jax.Array) and x.devices() == {device} for x in jax.tree.leaves(sent))
    jax.tree.map(np.testing.assert_array_equal, sent, host)
    host["w"][:] = -1  # the host's arrays may be written again
    np.testing.assert_array_equal(sent["w"], np.arange(6, dtype=np.float32).reshape(2, 3))
    assert actor.send_params(sent, device) is sent and actor.send_params((), device) == ()
