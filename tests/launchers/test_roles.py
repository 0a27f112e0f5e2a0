"""The arguments that the launchers hand to the parts of a run. Tiny runs are put together in this process, from fakes
that note what they are given."""

import inspect
import itertools
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

import environments
import replay
import runtime.checkpoint
from agents.agent import BoundedActions, DiscreteActions, EnvironmentSpec, Feedback, Version
from environments import tasks
from environments.environment import Episodes
from launchers import (
    device,
    evaluate,
    flags,
    kinds,
    processes,
    program,
    role,
    roles,
    serial,
    shutdown,
    supervision,
    threads,
    train,
)
from launchers import population as populations
from launchers import run as runs
from launchers.ports import free_port
from launchers.roles import Parts
from launchers.settings import UsageError
from launchers.shutdown import AT_ONCE, ENDING
from replay import local
from replay.local_carrier import LocalCarrier
from replay.rows import Batch
from runtime import actor, best, device_learner, evaluator, learner, metrics, scheduling, worker
from runtime.hosts import Hosts
from tests.conftest import HAS_REVERB
from tests.launchers import command_line
from tests.pictures import has_curve

ROOT = pathlib.Path(__file__).parents[2]
COMMON = {
    "num_actors": 2,
    "envs_per_actor": 4,
    "seed": 5,
    "max_env_steps": 1000,
    "eval_period": 70,
    "eval_episodes": 6,
    "publish_period": 3,
    "carrier": "local",
}
TINY_REPLAY = {"batch_size": 8, "min_replay_size": 8, "replay_size": 64, "hidden_sizes": (8,)}
MEMBERS = {"population": 3, "tune": "learning_rate:log:1e-5:1e-2"}
# name -> (agent, environment, settings, fields)
RUNS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "queue": ("impala", "CartPole-v1", {}, {}),
    "two tasks": ("a2c", "CartPole-v1,Acrobot-v1", {}, {}),
    "uniform": ("ddpg", "Pendulum-v1", {"updates_per_dispatch": 5}, TINY_REPLAY | {"replay": "uniform"}),
    "prioritized": ("ddpg", "Pendulum-v1", {"updates_per_dispatch": 5}, TINY_REPLAY | {"replay": "prioritized"}),
    "gradients": ("a3c", "CartPole-v1", {"max_staleness": 7, "max_loss_deviations": 2.5}, {"batch_size": 4}),
    "gradients of a replay": ("gorila", "CartPole-v1", {"max_staleness": 9}, TINY_REPLAY),
    "stacked": ("a2c", "CartPole-v1", MEMBERS | {"population_mode": "vmap", "fitness": "evaluation"}, {}),
}
GRADIENTS = [name for name in RUNS if name.startswith("gradients")]


def make(name: str, **settings) -> runs.Run:
    agent, env, own, config = RUNS[name]
    return runs.make(agent, env, COMMON | own | settings, config)


def same(a: Any, b: Any) -> bool:
    """Returns whether two PRNG keys are equal."""
    return bool((jax.random.key_data(a) == jax.random.key_data(b)).all())


class Noted(list):
    """Stands for a function. It is the list of its calls, with the arguments by name. It returns `gives(call)`."""

    def __init__(self, function: Any, gives: Any):
        super().__init__()
        self._signature, self._gives = inspect.signature(function), gives

    def __call__(self, *args, **kwargs):
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        self.append(SimpleNamespace(**bound.arguments))
        return self._gives(self[-1])


class Clock:
    """Stands for the module `time`. The time moves only by `sleep`, or when a test sets `now`."""

    def __init__(self, now: float = 100.0):
        self.now = now

    def monotonic(self) -> float:
        return self.now

    perf_counter = monotonic

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Channel:
    """Stands for a channel; its batches are made up, and nothing travels."""

    def __init__(self, source=None):
        self.source, self.calls, self.turn, self.stopped = source, [], None, None
        self.writer = Noted(lambda task, priority, stopped: None, lambda call: ("writer", call.task))

    def batches(self):
        for env_steps in itertools.cycle([30, 31]):
            if self.turn:
                self.turn()
                self.turn()
            yield Batch(f"a sample of {env_steps}", None, env_steps)

    def feedback(self, keys, priorities):
        """Does nothing: nobody asks for priorities."""

    def save(self):
        self.calls.append("save")

    def count(self):
        return 7

    def state(self):
        return "what the replay holds"


class Container:
    """Stands for a container of variables; notes the calls."""

    def __init__(self, name):
        self.name, self.calls = name, []

    def wait(self):
        self.calls.append("wait")

    def push(self, version, params):
        self.calls.append(("push", version, params))


class Carrier:
    def __init__(self, source=None):
        self.of, self.one = {}, Channel(source)
        self.channel = Noted(LocalCarrier(None, None).channel, lambda _: self.one)

    def variables(self, structure, name="variables"):
        return self.of.setdefault(name, Container(name))


class FakeLearner:
    """Stands for a Learner. Its updates are the class's `turns`: (seconds, Version, the host's metrics, metrics)."""

    turns: tuple[Any, ...] = ()
    clock = Clock()

    def __init__(self, given):
        self.given, self.version, self.published, self.done = given, given.version, 0, False

    def run(self, batches):
        for seconds, self.version, host, learnt in FakeLearner.turns:
            FakeLearner.clock.now += seconds
            if not isinstance(batches, tuple):  # a tuple is the fake prefetch: its arguments, and no batches
                next(batches)
            yield Feedback(learnt), dict(host)

    def publish(self):
        self.published += 1

    def host_state(self):
        return "the state now"


class FakeExchange:
    def __init__(self):
        self.calls = []

    def start(self, given):
        self.calls.append("start")

    def __call__(self, given):
        self.calls.append(given.version)

    def rescue(self, given, why):
        raise AssertionError(why)

    def close(self):
        self.calls.append("close")


class FakeCheckpointer:
    """Stands for a Checkpointer, and saves nothing. `saved`: folder name -> what `restore` returns there."""

    saved: dict[str, Any] = {}

    def __init__(self, directory, agent, keep=2, *, owner=False):
        self.directory, self.agent, self.keep, self.owner, self.calls = directory, agent, keep, owner, []
        self.counts = {"replay": 7}

    def restore(self):
        return FakeCheckpointer.saved.get(self.directory.name)

    def save(self, state, version, counts=None):
        self.calls.append((state, version))
        assert (counts is None) == (self.directory.name == "replay_0")
        assert counts in (None, {"replay": 7})

    def close(self):
        self.calls.append("close")


class FakeRecorder:
    last: dict[str, float] | None = None

    def __init__(self, given):
        self.given, self.rows, self.histograms, self.closed = given, [], [], False
        self.last = FakeRecorder.last

    def write(self, row, histograms=None):
        self.rows.append(row)
        self.histograms.append(histograms)

    def close(self):
        self.closed = True


def environment_of(asked):
    bounded = BoundedActions(-np.ones(1, np.float32), np.ones(1, np.float32))
    actions = bounded if "Pendulum" in asked.name else DiscreteActions(3)
    spec = EnvironmentSpec((2,), np.dtype(np.float32), actions, 100, len(tasks.names(asked.name)))
    asked.closed = 0

    def close():
        asked.closed += 1

    return SimpleNamespace(spec=spec, num_envs=asked.num_envs, close=close, logged=list)


@pytest.fixture(autouse=True)
def held(monkeypatch):
    """Returns a list that collects the ports to be held for a run; none is really held."""
    ports: list[int] = []
    monkeypatch.setattr(roles.ports, "hold_port", ports.append)
    return ports


@pytest.fixture(autouse=True)
def nothing_remembered():
    """Clears the cache of environments' specs, so that no test sees the spec of another test's fake."""
    kinds.spec_of.cache_clear()
    yield
    kinds.spec_of.cache_clear()


@pytest.fixture
def fakes(monkeypatch):
    """Replaces all that roles are made of by fakes; fakes.NAME is the list of the calls to one of them."""
    noted = SimpleNamespace()

    def replace(name, where, attribute, gives):
        setattr(noted, name, Noted(getattr(where, attribute), gives))
        monkeypatch.setattr(where, attribute, getattr(noted, name))

    def keep(given):
        return given

    def instance(of):
        def make_one(given):
            given.made = of(given)
            return given.made

        return make_one

    replace("environments", environments, "make", environment_of)
    replace("compile_act", actor, "compile_act", keep)
    replace("compile_priority", actor, "compile_priority", keep)
    replace("compile_gradient", worker, "compile_gradient", keep)
    replace("actors", actor, "run", lambda _: iter(()))
    replace("workers", worker, "run", lambda _: iter(()))
    replace("evaluators", evaluator, "run", lambda _: iter(()))
    replace("recorders", roles, "Recorder", instance(FakeRecorder))
    replace("learners", learner, "Learner", instance(FakeLearner))
    replace("publishers", learner, "Publisher", instance(lambda _: SimpleNamespace(close=lambda: None)))
    replace("updaters", learner, "PriorityUpdater", instance(lambda _: SimpleNamespace(close=lambda: None)))
    replace("admissions", learner, "Admission", keep)
    replace("prefetches", learner, "prefetch", lambda given: ("prefetched", given.batches))
    replace("metrics", learner, "read_metrics", lambda given: dict(given.feedback.metrics))
    replace("replays", local, "LocalReplay", keep)
    replace("blocks", local, "LocalBlocks", keep)
    replace("exchanges", populations, "Exchange", instance(lambda _: FakeExchange()))
    replace("returns", populations, "Returns", keep)
    monkeypatch.setattr(roles, "Checkpointer", FakeCheckpointer)
    monkeypatch.setattr(Parts, "init", lambda self: "a new state")
    noted.clock = FakeLearner.clock = Clock()
    monkeypatch.setattr(roles, "time", noted.clock)
    monkeypatch.setattr(FakeLearner, "turns", ())
    monkeypatch.setattr(FakeCheckpointer, "saved", {})
    monkeypatch.setattr(FakeRecorder, "last", None)
    return noted


# Seeds ---------------------------------------------------------------------------------------------------------------


def test_each_role_and_task_of_each_run_has_a_seed_of_its_own():
    seeds = [
        make("queue", seed=seed).seed_of(name, task, sitting)
        for seed in (0, 1, 5)
        for name in ("actor", "evaluator", "evaluate", "learner", "init", "replay", "exchange", "population", "member")
        for task in range(20)
        for sitting in range(4)
    ]
    assert len(set(seeds)) == len(seeds) and min(seeds) >= 0 and max(seeds) < 2**31


def test_a_new_state_is_of_the_runs_seed(monkeypatch, tmp_path):
    monkeypatch.setattr(environments, "make", Noted(environments.make, environment_of))
    states = [Parts(make("two tasks", seed=seed), tmp_path).init() for seed in (1, 1, 2)]
    first, again, other = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(s.params)]) for s in states)
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0
    parts = Parts(make("stacked"), tmp_path)
    drawn = populations.draws(parts.run)["learning_rate"]
    state = parts.init()
    np.testing.assert_array_equal(state.hypers.learning_rate, np.array(drawn, np.float32))
    assert len(set(drawn)) == 3


# Actors --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("sitting", [0, 3])
def test_each_actor_has_what_is_its_own(sitting, name, fakes, tmp_path):
    run = make(name)
    parts, carrier = Parts(run, tmp_path), Carrier()
    stops = [threading.Event() for _ in range(2)]
    for task in range(2):
        list(roles.act(parts, carrier, task, sitting, stops[task]))
    calls, others = (fakes.workers, fakes.actors) if name in GRADIENTS else (fakes.actors, fakes.workers)
    assert (len(calls), len(others)) == (2, 0)
    size = 12 if name == "stacked" else 4
    spec, *made = fakes.environments
    assert (spec.name, spec.num_envs) == (run.env, len(run.tasks))
    assert [(e.name, e.num_envs, e.evaluation, e.closed) for e in made] == [(run.env, size, False, 1)] * 2
    assert [e.seed for e in made] == [run.seed_of("actor", task, sitting) for task in range(2)]
    assert len({e.seed for e in (spec, *made)}) == 3
    for task, call in enumerate(calls):
        assert call.agent is parts.agent and call.act is parts.act and call.device is parts.device
        assert call.variables is carrier.of["variables"] and call.variables.calls == ["wait"] * 2
        assert call.environment.num_envs == size
        assert same(call.key, jax.random.key(run.seed_of("actor", task, sitting)))
        assert call.writer == ("writer", task)
        places = np.arange(size) + task * size
        np.testing.assert_allclose(call.ranks, places / (2 * size - 1), rtol=1e-6)
        assert call.ranks.dtype == np.float32
        assert not call.stopped()
        stops[task].set()
        assert call.stopped()
    assert not same(calls[0].key, calls[1].key)
    assert parts.act.act is parts.agent.act and parts.act.device is parts.device
    assert [(r.logdir, r.role, r.made.closed) for r in fakes.recorders] == [
        (tmp_path, "actor_0", True),
        (tmp_path, "actor_1", True),
    ]
    writers = carrier.one.writer
    assert [w.task for w in writers] == [0, 1] and all(w.priority is parts.priority for w in writers)
    assert all(w.stopped() for w in writers)


def test_environments_have_their_places_among_those_of_all_hosts(fakes, tmp_path):
    for host in range(3):
        parts = Parts(make("queue"), tmp_path, hosts=Hosts(host, 3))
        for task in range(2):
            list(roles.act(parts, Carrier(), task, 0, threading.Event()))
    ranks = np.concatenate([call.ranks for call in fakes.actors])
    np.testing.assert_allclose(ranks, np.arange(3 * 2 * 4) / (3 * 2 * 4 - 1), rtol=1e-6)
    assert len({tuple(jax.random.key_data(call.key).tolist()) for call in fakes.actors}) == 3 * 2


def test_a_lone_environment_is_the_first_of_all(fakes, tmp_path):
    list(roles.act(Parts(make("queue", num_actors=1, envs_per_actor=1), tmp_path), Carrier(), 0, 0, threading.Event()))
    assert fakes.actors[0].ranks.tolist() == [0.0]


@pytest.mark.parametrize("name", RUNS)
def test_actors_give_priorities_where_there_is_a_replay(name, fakes, tmp_path):
    parts = Parts(make(name), tmp_path)
    if name not in ("uniform", "prioritized"):
        assert parts.priority is None and not fakes.compile_priority
        return
    assert parts.priority.priority is parts.agent.priority and parts.priority.device is parts.device
    assert parts.priority.capacity >= parts.num_envs
    assert (parts.agent.priority is not None) == (name == "prioritized")


@pytest.mark.parametrize("name", RUNS)
def test_a_channel_is_of_the_runs_sizes(name, fakes, tmp_path):
    parts, carrier = Parts(make(name), tmp_path), Carrier()
    parts.channel(carrier, "saved")
    (call,) = carrier.channel
    assert call.agent is parts.agent and call.table == parts.table and call.structure is parts.items
    batch = {"uniform": 40, "prioritized": 40, "gradients": parts.mesh.size, "gradients of a replay": parts.mesh.size}
    assert call.batch_size == batch.get(name, parts.agent.batch_size)
    assert (call.num_actors, call.num_envs) == (2, 12 if name == "stacked" else 4)
    assert call.max_rows == 2000 and call.saved == "saved"


def test_a_worker_keeps_what_it_sees_to_itself(fakes, tmp_path):
    on_policy = Parts(make("gradients"), tmp_path)
    assert on_policy.experience(0, 0) is fakes.blocks[0] and fakes.blocks[0].structure is on_policy.own_items
    run = make("gradients of a replay")
    parts = Parts(run, tmp_path)
    for task in range(2):
        kept = parts.experience(task, sitting=4)
        assert kept is fakes.replays[task] and kept.agent is parts.own and kept.structure is parts.own_items
        assert kept.seed == run.seed_of("replay", task, 4)
        assert (kept.batch_size, kept.num_envs, kept.max_rows, kept.workers) == (8, 4, 2000, 2)
    assert fakes.replays[0].seed != fakes.replays[1].seed
    assert parts.own.table.kind == "uniform" and parts.own.table.max_size == 64
    assert parts.gradient.agent is parts.agent and parts.gradient.device is parts.device


def test_an_actors_rows_are_of_the_time_since_the_last(fakes, tmp_path, monkeypatch):
    # (seconds, actor steps, environments of the episodes that ended, their returns)
    turns = [
        (2.0, 10, [0], [1.0]),
        (0.5, 40, [1, 3], [2.0, 7.0]),
        (1.5, 70, [2], [6.0]),
        (2.0, 74, [], []),
    ]

    def play(_):
        for seconds, steps, environments_, returns in turns:
            fakes.clock.now += seconds
            metrics = {"learner_steps": 4, "env_steps": 100, "actor_steps": steps}
            yield metrics, Episodes(environments_, returns, [1] * len(returns))

    monkeypatch.setattr(fakes.actors, "_gives", play)
    parts = Parts(make("two tasks"), tmp_path)
    assert len(list(roles.act(parts, Carrier(), 0, 0, threading.Event()))) == 4
    rows = fakes.recorders[0].made.rows
    assert [row["env_steps_per_second"] for row in rows] == [10 / 2, 60 / 2, 4 / 2]
    assert [row["episodes"] for row in rows] == [1, 3, 0]
    np.testing.assert_array_equal([row["return_mean"] for row in rows], [1.0, 5.0, np.nan])
    of_tasks = [[row[f"return_mean_{task}"] for row in rows] for task in parts.run.tasks]
    np.testing.assert_array_equal(of_tasks, [[1.0, 6.0, np.nan], [np.nan, 4.5, np.nan]])


def test_means_are_told_of_each_member(fakes, tmp_path):
    parts = Parts(make("stacked"), tmp_path)
    told = parts.return_means([0, 1, 2, 3, 4], [1.0, 2.0, 3.0, 5.0, 6.0])
    assert told == {"return_mean_member_0": 3.0, "return_mean_member_1": 4.0, "return_mean_member_2": 3.0}


# The learner ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("carrier", ["local", "reverb"])
def test_the_learner_has_what_the_command_line_says(name, carrier, fakes, tmp_path):
    run = make(name) if carrier == "local" else settings_of(name, carrier="reverb")
    parts = Parts(run, tmp_path)
    source = "the rings" if carrier == "local" and parts.replays else None
    fake = Carrier(source)
    stop = threading.Event()
    learning, batches, publisher = roles.open_learning(parts, fake, stop.is_set)
    (given,) = fakes.learners
    assert given.agent is parts.agent and given.state == "a new state" and given.version == Version(0, 0)
    assert given.seed == run.seed_of("learner")
    assert (given.publish_period, given.mesh, given.source) == (3, parts.mesh, source)
    assert given.updates_per_dispatch == (5 if parts.replays else 1)
    if name in GRADIENTS:
        (admission,) = fakes.admissions
        numbers = {"gradients": (7, 2.5), "gradients of a replay": (9, 0.0)}
        assert given.admission is admission
        assert (admission.max_staleness, admission.max_loss_deviations) == numbers[name]
    else:
        assert given.admission is None
    if name == "prioritized" and carrier == "reverb":
        (updater,) = fakes.updaters
        assert updater.send == fake.one.feedback and updater.local == parts.mesh.local
        assert given.update_priorities is updater.made
    else:
        assert given.update_priorities is None and not fakes.updaters
    variables = fake.of["variables"]
    if carrier == "local":
        assert given.publish == variables.push and publisher is None and not fakes.publishers
    else:
        (publishing,) = fakes.publishers
        assert publishing.variables is variables and publishing.host == parts.mesh.host
        assert given.publish is publisher is publishing.made
    assert fake.one.stopped == stop.is_set
    if source is None:
        (prefetch,) = fakes.prefetches
        assert batches == ("prefetched", prefetch.batches)
        assert prefetch.stopped == stop.is_set and prefetch.send == parts.send
        batches = prefetch.batches
    counted = [10, 10] if name == "stacked" else [30, 31]
    assert [next(batches).env_steps for _ in range(2)] == counted, "of each member"
    assert [(r.logdir, r.role) for r in fakes.recorders] == [(tmp_path, "learner")]
    assert learning.version == Version(0, 0)
    if name == "stacked":
        (exchange,) = fakes.exchanges
        assert exchange.population.member is None and exchange.env_steps == 0 and exchange.states == []
        assert [[c.name for c in containers] for containers in exchange.returns] == [["evaluator"]]
        assert same(exchange.key, jax.random.key(run.seed_of("exchange")))
    else:
        assert not fakes.exchanges


@pytest.mark.parametrize("learner_steps", [4, 2**20])
def test_a_populations_choices_have_other_keys_after_a_resume(learner_steps, fakes, tmp_path):
    """Its first turns would repeat the draws of the turns after the start."""
    FakeCheckpointer.saved = {"checkpoints": ("an old state", Version(learner_steps, 90))}
    run = make("stacked")
    roles.open_learning(Parts(run, tmp_path), Carrier(), lambda: False)
    (exchange,) = fakes.exchanges
    assert same(exchange.key, jax.random.key(run.seed_of("exchange", learner_steps))) and exchange.env_steps == 90
    assert not same(exchange.key, jax.random.key(run.seed_of("exchange")))


def settings_of(name: str, **settings) -> runs.Run:
    """Returns a run with changed settings, unchecked: also with carrier=reverb where Reverb is not installed."""
    run = make(name)
    return runs.dataclasses.replace(run, **settings)


@pytest.mark.parametrize("name", ["uniform", "queue"])
def test_learning_goes_on_from_what_was_saved(name, fakes, tmp_path):
    saved = {"checkpoints": ("an old state", Version(4, 90)), "replay_0": ("an old replay", Version(4, 90))}
    FakeCheckpointer.saved = saved
    parts, carrier = Parts(make(name), tmp_path), Carrier("the rings" if name == "uniform" else None)
    learning, _, _ = roles.open_learning(parts, carrier, lambda: False)
    (given,) = fakes.learners
    assert (given.state, given.version) == saved["checkpoints"] and learning.version == Version(4, 90)
    assert carrier.channel[0].saved == ("an old replay" if name == "uniform" else None)


@pytest.mark.parametrize(("there", "warned"), [(0, True), (6, True), (7, False), (8, False)])
def test_a_replay_that_lost_what_was_saved_is_missed(there, warned, fakes, tmp_path, monkeypatch, caplog):
    FakeCheckpointer.saved = {"checkpoints": ("an old state", Version(4, 90))}
    parts, carrier = Parts(make("uniform"), tmp_path), Carrier("the rings")
    monkeypatch.setattr(carrier.one, "count", lambda: there)
    roles.open_learning(parts, carrier, lambda: False)
    assert (f"the replay has only {there} of the 7 items that were saved" in caplog.text) == warned


def test_a_damaged_replay_on_the_devices_is_begun_anew(fakes, tmp_path, monkeypatch):
    aside = []

    class Broken(FakeCheckpointer):
        def restore(self):
            if self.directory.name == "replay_0":
                raise runtime.checkpoint.Damaged("no checkpoint can be read")
            return super().restore()

        def set_aside(self):
            aside.append((self.directory.name, self.owner))

    monkeypatch.setattr(roles, "Checkpointer", Broken)
    FakeCheckpointer.saved = {"checkpoints": ("an old state", Version(4, 90))}
    parts, carrier = Parts(make("uniform"), tmp_path), Carrier("the rings")
    learning, _, _ = roles.open_learning(parts, carrier, lambda: False)
    assert carrier.channel[0].saved is None and aside == [("replay_0", True)] and learning.version == Version(4, 90)


@pytest.mark.parametrize("host", [0, 1])
def test_a_replay_on_the_devices_keeps_its_newest_checkpoint_alone(host, tmp_path):
    """It may be as large as the memory, so a disk has no room for two for long."""
    parts: Any = SimpleNamespace(logdir=tmp_path, hosts=Hosts(host, 2))
    checkpointer, saved = roles.restore_replay(parts)
    assert saved is None
    for steps in (3, 8):
        checkpointer.save({"rows": np.arange(steps)}, Version(steps, 10 * steps))
        there = [path.name for path in (tmp_path / f"replay_{host}").glob("learner_steps_*")]
        assert there == [f"learner_steps_{steps}"]
    checkpointer.close()
    checkpointer, saved = roles.restore_replay(parts)
    assert saved is not None
    np.testing.assert_array_equal(saved["rows"], np.arange(8))
    checkpointer.close()


class Saving(FakeCheckpointer):
    """Notes each save of a run in `order`, as (folder name, state, version)."""

    order: list[Any] = []

    def save(self, state, version, counts=None):
        Saving.order.append((self.directory.name, state, version))


@pytest.fixture
def saves(monkeypatch):
    monkeypatch.setattr(roles, "Checkpointer", Saving)
    monkeypatch.setattr(Saving, "order", [])
    return Saving.order


@pytest.mark.parametrize("name", ["uniform", "queue"])
def test_what_is_learnt_is_published_and_saved_at_the_end(name, fakes, saves, tmp_path):
    FakeLearner.turns = tuple(
        (1.0, Version(n, 400 * n), {"wait_seconds": 0.25}, {"loss": 1.0 * n}) for n in range(1, 9)
    )
    parts, carrier = Parts(make(name), tmp_path), Carrier("the rings" if name == "uniform" else None)
    versions = list(roles.learn(parts, carrier, threading.Event()))
    assert versions == [Version(n, 400 * n) for n in (1, 2, 3)], "until max_env_steps"
    (given,) = fakes.learners
    assert given.made.published == 1
    assert saves[0] == ("checkpoints", "the state now", Version(3, 1200))
    if name == "uniform":
        assert saves[1:] == [("replay_0", "what the replay holds", Version(3, 1200))] and not carrier.one.calls
    else:
        assert len(saves) == 1 and carrier.one.calls == ["save"]
    assert fakes.recorders[0].made.closed
    assert [m.feedback.metrics["loss"] for m in fakes.metrics][-1] == 3.0, "none is saved unseen"


def refuse_nan(given):
    if not np.isfinite(given.feedback.metrics["loss"]):
        raise learner.NotFinite("the loss became nan")
    return dict(given.feedback.metrics)


@pytest.mark.parametrize("recorded", [False, True])
def test_what_is_not_finite_is_not_saved(recorded, fakes, saves, tmp_path, monkeypatch):
    """A loss that is not finite ends the run, whether its update is recorded in a row or first seen before a save."""
    FakeLearner.turns = (
        (3.0, Version(1, 10), {"wait_seconds": 0.0}, {"loss": 1.0}),
        (3.0 if recorded else 0.5, Version(2, 20), {"wait_seconds": 0.0}, {"loss": float("nan")}),
        (3.0, Version(3, 2000), {"wait_seconds": 0.0}, {"loss": 1.0}),
    )
    monkeypatch.setattr(fakes.metrics, "_gives", refuse_nan)
    run = make("queue", checkpoint_seconds=600.0 if recorded else 0.1)
    with pytest.raises(learner.NotFinite):
        list(roles.learn(Parts(run, tmp_path), Carrier(), threading.Event()))
    assert [version for _, _, version in saves] == ([] if recorded else [Version(1, 10)])


@pytest.mark.parametrize("error", [learner.NotFinite("nan"), OSError("no space left"), RuntimeError("out of memory")])
@pytest.mark.parametrize("updates", [1, 3])
def test_what_was_recorded_is_kept_whatever_error_ends_the_learner(updates, error, fakes, saves, tmp_path, monkeypatch):
    FakeLearner.turns = tuple((3.0, Version(n, n), {"wait_seconds": 0.0}, {"loss": 1.0 * n}) for n in range(1, 9))

    def read(given):
        if given.feedback.metrics["loss"] > updates:
            raise error
        return dict(given.feedback.metrics)

    monkeypatch.setattr(fakes.metrics, "_gives", read)
    with pytest.raises(type(error)):
        list(roles.learn(Parts(make("queue"), tmp_path), Carrier(), threading.Event()))
    recorder = fakes.recorders[0].made
    assert [row["learner_steps"] for row in recorder.rows] == list(range(1, updates + 1))


def test_a_member_that_is_not_finite_goes_on_from_a_peer(fakes, saves, tmp_path, monkeypatch):
    FakeLearner.turns = (
        (3.0, Version(1, 10), {"wait_seconds": 0.0}, {"loss": float("nan")}),
        (3.0, Version(2, 2000), {"wait_seconds": 0.0}, {"loss": 1.0}),
    )
    rescued: list[Any] = []
    monkeypatch.setattr(fakes.metrics, "_gives", refuse_nan)
    monkeypatch.setattr(FakeExchange, "rescue", lambda self, given, why: rescued.append((given, why)))
    parts = Parts(make("stacked", population_mode="separate"), tmp_path, 1)
    list(roles.learn(parts, Carrier(), threading.Event()))
    assert rescued == [(fakes.learners[0].made, "the loss became nan")]
    assert [np.isnan(row["loss"]) for row in fakes.recorders[0].made.rows] == [True, False]
    assert fakes.exchanges[0].made.calls == ["start", Version(1, 10), Version(2, 2000), "close"]


def test_a_run_that_is_done_learns_nothing(fakes, saves, tmp_path):
    FakeLearner.turns = ((1.0, Version(11, 1010), {"wait_seconds": 0.0}, {}),)
    FakeCheckpointer.saved = {"checkpoints": ("an old state", Version(10, 1000))}
    assert list(roles.learn(Parts(make("queue"), tmp_path), Carrier(), threading.Event())) == []
    assert not saves


def test_checkpoints_are_as_many_seconds_apart_as_asked(fakes, saves, tmp_path):
    FakeLearner.turns = tuple((4.0, Version(n, n), {"wait_seconds": 0.0}, {}) for n in range(1, 10))
    list(roles.learn(Parts(make("queue", checkpoint_seconds=10.0), tmp_path), Carrier(), threading.Event()))
    assert [version.learner_steps for _, _, version in saves] == [3, 6, 9, 9]


def test_a_learners_rows_are_of_the_time_since_the_last(fakes, saves, tmp_path):
    FakeLearner.turns = (
        (2.0, Version(4, 100), {"wait_seconds": 0.5, "lag": 1.0, "stale": 2}, {"loss": 1.5}),
        (0.5, Version(5, 140), {"wait_seconds": 0.25, "lag": 3.0}, {"loss": 2.5}),
        (0.75, Version(9, 200), {"wait_seconds": 0.5, "lag": 4.0}, {"loss": 3.5}),
        (4.0, Version(10, 240), {"wait_seconds": 1.0}, {"loss": 4.5}),
        (0.25, Version(11, 1000), {"wait_seconds": 0.125, "lag": 9.0}, {"loss": 5.5}),
    )
    list(roles.learn(Parts(make("queue"), tmp_path), Carrier(), threading.Event()))
    recorder = fakes.recorders[0].made
    rows = recorder.rows
    assert [(row["learner_steps"], row["env_steps"]) for row in rows] == [(4, 100), (9, 200), (10, 240), (11, 1000)]
    assert [row["env_steps_per_second"] for row in rows] == [100 / 2, 100 / 1.25, 40 / 4, 760 / 0.25]
    assert [row["learner_steps_per_second"] for row in rows] == [4 / 2, 5 / 1.25, 1 / 4, 1 / 0.25]
    assert [row["wait_fraction"] for row in rows] == [0.5 / 2, 0.75 / 1.25, 1 / 4, 0.125 / 0.25]
    assert [row["loss"] for row in rows] == [1.5, 3.5, 4.5, 5.5]
    assert [row.get("lag") for row in rows] == [1.0, 4.0, None, 9.0] and rows[0]["stale"] == 2
    assert recorder.histograms == [{"lags": [1.0]}, {"lags": [3.0, 4.0]}, {}, {"lags": [9.0]}]


def test_of_several_hosts_the_first_alone_publishes_records_and_saves(fakes, saves, tmp_path, monkeypatch):
    FakeLearner.turns = ((1.0, Version(1, 2000), {"wait_seconds": 0.0}, {}),)
    parts, carrier = Parts(make("queue"), tmp_path), Carrier()
    assert parts.mesh.size
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    list(roles.learn(parts, carrier, threading.Event()))
    fakes.learners[0].publish(Version(0, 0), "parameters")
    assert carrier.of["variables"].calls == [] and not fakes.recorders and not saves and not carrier.one.calls


def test_each_host_of_a_pod_saves_its_own_replay_and_publishes_to_its_own_actors(fakes, saves, tmp_path, monkeypatch):
    FakeLearner.turns = ((1.0, Version(1, 2000), {"wait_seconds": 0.0}, {}),)
    parts, carrier = Parts(make("uniform"), tmp_path, hosts=Hosts(1, 2)), Carrier("the rings")
    assert parts.mesh.size
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(roles.hosts, "share_state", lambda state, version: (state, version))
    list(roles.learn(parts, carrier, threading.Event()))
    assert fakes.learners[0].publish == carrier.of["variables"].push
    assert saves == [("replay_1", "what the replay holds", Version(1, 2000))]
    assert not fakes.recorders and not carrier.one.calls


@pytest.mark.parametrize(
    ("name", "count", "servers"), [("uniform", 1, 1), ("uniform", 2, 1), ("uniform", 1, 2), ("queue", 1, 1)]
)
def test_replays_of_hosts_that_are_gone_are_told(name, count, servers, fakes, tmp_path, monkeypatch):
    told: list[str] = []
    monkeypatch.setattr(roles.logging, "warning", lambda words, *values: told.append(words % values))
    parts = Parts(settings_of(name, num_replay_servers=servers), tmp_path, hosts=Hosts(0, count))
    used = count * servers
    for there in range(used + 3):
        roles.warn_of_left_out(parts)
        left = ", ".join(f"replay_{k}" for k in range(used, there))
        words = f"there were more hosts before: the replays in {left} are not used"
        assert told == ([words] if left and name == "uniform" else [])
        told.clear()
        (tmp_path / f"replay_{there}").mkdir()


class Program(NamedTuple):
    """Stands for a compiled program."""

    name: str


@pytest.mark.parametrize("name", ["queue", "uniform", "stacked"])
def test_a_learner_on_the_device_has_what_the_command_line_says(name, fakes, tmp_path, monkeypatch):
    _, _, own, config = RUNS[name]
    agent = {"queue": "a2c", "uniform": "dqn", "stacked": "a2c"}[name]
    changes = {"placement": "device", "ready_env_steps": 50} if name == "stacked" else {"placement": "device"}
    settings = {key: value for key, value in (COMMON | own).items() if key != "updates_per_dispatch"} | changes
    config = {key: value for key, value in config.items() if key != "replay"}
    run = runs.make(agent, "gymnax:CartPole-v1", settings | {"reward_clip": "unit"}, config)
    members = 3 if name == "stacked" else 1
    made = SimpleNamespace()
    for attribute, where, gives in (
        ("Rollout", device, lambda _: SimpleNamespace(start=lambda params: params, specs=lambda mesh: mesh.REPLICATED)),
        ("FilledRings", device, lambda _: Channel("the rings")),
        ("blocks_program", device_learner, lambda _: Program("blocks")),
        ("replay_program", device_learner, lambda _: Program("replay")),
        ("DeviceLearner", device_learner, lambda call: SimpleNamespace(version=call.args[2], done=False)),
    ):
        noted = Noted(getattr(where, attribute), gives)
        setattr(made, attribute, noted)
        monkeypatch.setattr(where, attribute, noted)
    monkeypatch.setattr(device.functional, "make", lambda env, keywords: (env, keywords))
    parts, stop = Parts(run, tmp_path), threading.Event()
    for sitting in (0, 1):
        carrier = Carrier()
        learning, batches, publisher = roles.open_learning(parts, carrier, stop.is_set)
        rollout, learner_ = made.Rollout[sitting], made.DeviceLearner[sitting]
        assert publisher is None and learner_.args[4] == carrier.of["variables"].push
        assert rollout.agent is parts.agent and rollout.environment == ("gymnax:CartPole-v1", {})
        assert rollout.num_envs == 2 * 4 * members and rollout.devices == parts.mesh.total
        assert rollout.seed == run.seed_of("actor", 0, sitting), "a sitting goes on to other episodes"
        assert rollout.clip(np.float32(-7)) == -1
        programs, others = made.blocks_program, made.replay_program
        if name == "uniform":
            programs, others = others, programs
            assert programs[sitting].source is learner_.replay
            given = made.FilledRings[sitting]
            assert given.table is parts.table and given.structure is parts.items and given.saved is None
            assert (given.batch_size, given.num_actors, given.num_envs, given.max_rows) == (8, 1, 2 * 4, 2000)
        else:
            assert programs[sitting].members == members
        program_ = programs[sitting]
        assert program_.agent is parts.agent and program_.seed == run.seed_of("learner") and not others
        assert program_.most_steps == {"stacked": 50 * 3}.get(name, 70), "no call goes beyond what is due"
        assert learner_.program == Program("replay" if name == "uniform" else "blocks")
        assert learner_.members == members
        actor_recorder, learner_recorder = (r.made for r in fakes.recorders[2 * sitting :])
        assert [r.role for r in fakes.recorders[2 * sitting :]] == ["actor_0", "learner"]
        for steps, total in ((30, 30), (12, 42)):
            fakes.clock.now += 2.0
            learner_.played(Version(4, 90), steps, Episodes([0], [3.0], [5]))
            assert (actor_recorder.rows[-1]["env_steps"], actor_recorder.rows[-1]["actor_steps"]) == (90, total)
        assert next(batches).env_steps in (0, 30)
        learning.close()
        assert learner_recorder.closed


# Evaluations ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("done", [0, 150])
def test_the_evaluator_plays_greedily(name, done, fakes, tmp_path):
    FakeRecorder.last = {"env_steps": float(done)} if done else None
    run = make(name)
    parts, carrier, stop = Parts(run, tmp_path), Carrier(), threading.Event()
    list(roles.evaluate(parts, carrier, stop))
    (call,) = fakes.evaluators
    assert call.agent is parts.agent and call.act is parts.act_in_evaluations
    assert parts.act_in_evaluations.act is parts.agent.act_greedily
    assert parts.act_in_evaluations.device is parts.device
    assert parts.agent.act_greedily is not parts.agent.act
    assert call.variables is carrier.of["variables"] and call.variables.calls == ["wait"]
    assert same(call.key, jax.random.key(run.seed_of("evaluator")))
    members = 3 if name == "stacked" else 1
    assert (call.episodes, call.period, call.max_env_steps) == (6 * members, 70, 1000)
    assert call.due == (210 if done else 70), "the next that was not made"
    del fakes.environments[:]
    for learner_steps in (0, 5):
        call.make_environment(Version(learner_steps, 70))
    made = fakes.environments
    assert [(e.name, e.num_envs, e.evaluation) for e in made] == [(run.env, 6 * members, True)] * 2
    assert [e.seed for e in made] == [run.seed_of("evaluator", 0), run.seed_of("evaluator", 5)]
    assert not call.stopped()
    stop.set()
    assert call.stopped()
    assert [(r.logdir, r.role, r.made.closed) for r in fakes.recorders] == [(tmp_path, "evaluator", True)]
    assert [r.container.name for r in fakes.returns] == (["evaluator"] if name == "stacked" else [])


@pytest.mark.parametrize("policy", ["greedy", "sampled"])
@pytest.mark.parametrize("epsilon", [0.0, 0.05])
def test_evaluations_act_as_the_run_says_and_the_command_may_say_otherwise(
    policy, epsilon, fakes, tmp_path, monkeypatch, capsys
):
    asked = []
    monkeypatch.setattr(evaluator, "policy", lambda *given: asked.append(given))
    run = make("queue", eval_policy=policy, eval_epsilon=epsilon)
    parts = Parts(run, tmp_path)
    assert asked == [(parts.agent, parts.spec.actions, policy == "sampled", epsilon)]
    state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), jax.eval_shape(parts.agent.init, jax.random.key(0)))
    FakeCheckpointer.saved = {"checkpoints": (state, Version(3, 456))}
    for said, expected in (
        ((), (policy == "sampled", epsilon)),
        (("--eval_policy=sampled", "--eval_epsilon=0.25"), (True, 0.25)),
        (("--eval_policy=greedy", "--eval_epsilon=0"), (False, 0.0)),
    ):
        assert evaluated(monkeypatch, tmp_path, run, capsys, *said)[0] == 0
        assert asked[-1][2:] == expected


@pytest.mark.parametrize(("cap", "longest"), [(27_000, 100), (100, 100), (40, 40)])
def test_an_evaluation_says_how_far_it_is(cap, longest, fakes, tmp_path, monkeypatch):
    """The progress is in a file of its own, from a second after the start until the evaluation has ended. The
    environment's own limit is 100 steps."""
    run = make("queue", eval_max_steps=cap, eval_episodes=202)  # each environment plays several episodes

    def evaluations(_):
        for steps in range(1, 5):
            fakes.clock.now += 0.6
            yield evaluator.Progress(steps // 2, steps)
        row = {"env_steps": 80, "learner_steps": 2, "return_mean": float("nan")}
        yield evaluator.Evaluation(row, Episodes([], [], []), None)

    monkeypatch.setattr(fakes.evaluators, "_gives", evaluations)
    parts, shown = Parts(run, tmp_path), []
    for said in roles.evaluate(parts, Carrier(), threading.Event()):
        shown.append((said is None, metrics.latest(tmp_path, "evaluating")))
    each = 202 // run.eval_envs
    bounds = {"of": 202.0, "most": each * (longest + 1.0) - 1}
    assert shown == [
        (True, {"episodes": 1.0, "steps": 2.0} | bounds),
        (True, {"episodes": 2.0, "steps": 4.0} | bounds),
        (False, None),
    ]
    (call,) = fakes.evaluators
    assert call.cuts_at == (40 if cap == 40 else None), "the environment's own limit is none of the evaluation's"
    call.make_environment(Version(0, 0))
    assert fakes.environments[-1].max_steps == cap


def test_an_evaluator_that_is_done_plays_nothing(fakes, tmp_path):
    FakeRecorder.last = {"env_steps": 1000.0}
    assert list(roles.evaluate(Parts(make("queue"), tmp_path), Carrier(), threading.Event())) == []
    assert not fakes.evaluators


@pytest.mark.parametrize("fitness", ["training", "evaluation"])
def test_members_are_judged_by_whose_episodes_it_says(fitness, fakes, tmp_path):
    run = make("stacked", fitness=fitness)
    parts, carrier = Parts(run, tmp_path), Carrier()
    list(roles.evaluate(parts, carrier, threading.Event()))
    told = [r.container.name for r in fakes.returns]
    for task in range(2):
        list(roles.act(parts, carrier, task, 0, threading.Event()))
    told += [r.container.name for r in fakes.returns[len(told) :]]
    expected = ["actor_0", "actor_1"] if fitness == "training" else ["evaluator"]
    assert told == expected
    parts.peers.exchange(carrier, parts.agent, jax.random.key(0), 0)
    (containers,) = fakes.exchanges[-1].returns
    assert [c.name for c in containers] == expected


@pytest.mark.parametrize("fitness", ["training", "evaluation"])
def test_members_are_told_with_which_parameters_their_episodes_were_played(fitness, fakes, tmp_path, monkeypatch):
    told: list[Any] = []
    returns = SimpleNamespace(add=lambda version, episodes: told.append((version, episodes)))
    monkeypatch.setattr(fakes.returns, "_gives", lambda _: returns)
    played = [Episodes([0, 2], [1.0, 2.0], [3, 4]), Episodes([1], [5.0], [6])]
    turns = [({"learner_steps": 4, "env_steps": 100, "actor_steps": 9}, played[0])]
    turns.append(({"learner_steps": 7, "env_steps": 150, "actor_steps": 19}, played[1]))

    def play(_):
        for metrics_, episodes in turns:
            fakes.clock.now += 2.0
            yield metrics_, episodes

    monkeypatch.setattr(fakes.actors, "_gives", play)
    rows = [({"learner_steps": 4, "env_steps": 100, "return_mean": 1.5}, played[0])]
    rows.append(({"learner_steps": 7, "env_steps": 150, "return_mean": 5.0}, played[1]))
    evaluations = [evaluator.Evaluation(row, episodes, None) for row, episodes in rows]
    monkeypatch.setattr(fakes.evaluators, "_gives", lambda _: iter(evaluations))
    monkeypatch.setattr(best, "Keeper", lambda *_: SimpleNamespace(show=lambda *_: None))
    parts = Parts(make("stacked", fitness=fitness), tmp_path)
    list(roles.act(parts, Carrier(), 0, 0, threading.Event()))
    list(roles.evaluate(parts, Carrier(), threading.Event()))
    assert told == [(Version(4, 100), played[0]), (Version(7, 150), played[1])], "once, by one of the two roles"


def test_the_best_parameters_are_kept_before_the_row_that_may_end_the_run(fakes, tmp_path, monkeypatch):
    order: list[Any] = []

    def keeper(logdir, structure):
        return SimpleNamespace(show=lambda *said: order.append((logdir, structure, *said)))

    rows = [{"learner_steps": n, "env_steps": 100 * n, "return_mean": float(n % 3)} for n in range(1, 5)]
    evaluations = [
        evaluator.Evaluation(dict(row), Episodes([0], [1.0], [1]), f"params {n}") for n, row in enumerate(rows)
    ]
    monkeypatch.setattr(fakes.evaluators, "_gives", lambda _: iter(evaluations))
    monkeypatch.setattr(best, "Keeper", keeper)
    monkeypatch.setattr(FakeRecorder, "write", lambda self, row: order.append(row["env_steps"]))
    parts = Parts(make("queue"), tmp_path)
    assert len(list(roles.evaluate(parts, Carrier(), threading.Event()))) == 4
    expected: list[Any] = []
    for n, row in enumerate(rows):
        version = Version(row["learner_steps"], row["env_steps"])
        expected += [(tmp_path, parts.params, version, f"params {n}", row["return_mean"]), row["env_steps"]]
    assert order == expected


def test_separate_members_have_tables_folders_and_seeds_of_their_own(fakes, tmp_path):
    run = make("stacked", population_mode="separate")
    members = roles.make_parts(run, tmp_path)
    assert list(members) == [0, 1, 2]
    members = list(members.values())
    assert [parts.logdir for parts in members] == [tmp_path / f"member_{m}" for m in range(3)]
    assert len({parts.run.seed for parts in members}) == len({parts.run.config.learning_rate for parts in members}) == 3
    carrier = Carrier()
    for m, parts in enumerate(members):
        list(roles.act(parts, carrier, 0, 0, threading.Event()))
        assert fakes.actors[m].variables.name == f"member_{m}_variables"
        assert carrier.channel[m].table.name == f"member_{m}_queue"
        parts.peers.exchange(carrier, parts.agent, jax.random.key(0), 40)
        exchange = fakes.exchanges[m]
        assert exchange.population.member == m and exchange.env_steps == 40
        assert [s.name for s in exchange.states] == [f"member_{n}_state" for n in range(3)]
        assert [[c.name for c in of] for of in exchange.returns] == [[f"member_{n}_evaluator"] for n in range(3)]
    assert not same(fakes.actors[0].key, fakes.actors[1].key)


def evaluated(monkeypatch, logdir, run, capsys, *arguments):
    """Runs scripts/evaluate with a fake evaluator.play. Returns the exit code, the calls of the fake, the words
    NAME=VALUE that were printed, and stderr."""
    runs.save(run, logdir)
    for folder in FakeCheckpointer.saved:
        (logdir / folder).mkdir(exist_ok=True)
    returns = [2.0, 4.0, 12.0]

    def play(_):
        yield evaluator.Progress(1, 1)
        return Episodes([0, 1, 2], returns, [1, 1, 27_000])

    played = Noted(evaluator.play, play)
    monkeypatch.setattr(evaluator, "play", played)
    monkeypatch.setattr(runtime, "leave_out_tensorflow", lambda: None)
    monkeypatch.setattr(runtime.checkpoint, "Checkpointer", FakeCheckpointer)
    code = flags.attempt(evaluate.evaluate, ["evaluate", f"--logdir={logdir}", *arguments])
    printed = capsys.readouterr()
    return code, played, dict(word.split("=") for word in printed.out.split() if "=" in word), printed.err


@pytest.mark.parametrize(("name", "episodes"), [("queue", 7), ("two tasks", 8), ("stacked", 7)])
def test_evaluate_plays_the_checkpoint(name, episodes, fakes, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jax, "device_put", lambda tree, device: (tree, device))
    run = make(name)
    agent = run.make_agent(run.spec())
    state = jax.tree.map(lambda x: np.full(x.shape, 7, x.dtype), jax.eval_shape(agent.init, jax.random.key(0)))
    FakeCheckpointer.saved = {"checkpoints": (state, Version(3, 456))}
    del fakes.environments[:]
    code, (call,), words, _ = evaluated(monkeypatch, tmp_path, run, capsys, "--episodes=7")
    assert code == 0
    params, device = call.params
    assert jax.tree.structure(params) == jax.tree.structure(agent.policy(state))
    assert all((x == 7).all() for x in jax.tree.leaves(params)), "not a new init's"
    (acting,) = [given for given in fakes.compile_act if given is call.act]
    assert acting.act is call.agent.act_greedily and acting.device == device
    members = 3 if name == "stacked" else 1
    assert call.episodes == episodes * members and same(call.key, jax.random.key(run.seed_of("evaluate", 3)))
    made = fakes.environments[-1]
    assert (made.num_envs, made.evaluation, made.seed) == (episodes * members, True, run.seed_of("evaluate", 3))
    assert made.closed == 1 and call.environment.num_envs == made.num_envs
    assert (words["episodes"], words["env_steps"]) == ("3", "456")
    assert (float(words["return_mean"]), float(words["return_std"])) == (6.0, 4.3205)
    assert words["episodes_cut"] == "0" and made.max_steps == 27_000, "the longest has ended by itself"
    assert ("return_mean_Acrobot-v1" in words) == (name == "two tasks")
    assert ("return_mean_member_2" in words) == (name == "stacked")


@pytest.mark.parametrize("folder", [False, True])
def test_evaluate_without_a_checkpoint_is_one_line(folder, fakes, tmp_path, monkeypatch, capsys):
    FakeCheckpointer.saved = {"checkpoints": None} if folder else {}
    code, played, _, err = evaluated(monkeypatch, tmp_path, make("queue"), capsys)
    assert code == 2 and not played and err.startswith("error: no checkpoint") and err.count("\n") == 1


# Servers -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(monkeypatch):
    """Replaces replay.server, which imports TensorFlow, by a fake."""
    fake = SimpleNamespace(
        build_table=Noted(
            lambda spec, structure, sequences_per_item=1, num_servers=1: None, lambda given: ("table", given)
        ),
        build_variables_table=Noted(lambda structure, name="variables": None, lambda given: ("variables", given)),
        build_steps_table=Noted(lambda table: None, lambda given: ("steps", given)),
        serve=Noted(
            lambda tables, port, checkpoint_path: None,
            lambda given: SimpleNamespace(localhost_client=lambda: ("client of", given.port)),
        ),
    )
    monkeypatch.setitem(sys.modules, "replay.server", fake)
    monkeypatch.setattr(replay, "server", fake, raising=False)
    return fake


@pytest.mark.parametrize(("name", "servers"), [("prioritized", 2), ("uniform", 1), ("queue", 1)])
def test_servers_share_the_replay(name, servers, fakes, server, tmp_path, held):
    parts = Parts(settings_of(name, carrier="reverb", num_replay_servers=servers), tmp_path)
    for task in range(servers):
        roles.serve([parts], tmp_path, task, 8000 + task)
        assert held[-1] == 8000 + task
    assert [(s.port, s.checkpoint_path) for s in server.serve] == [
        (8000 + task, None if name == "queue" else tmp_path / f"replay_{task}") for task in range(servers)
    ]
    for given in server.build_table:
        assert given.spec == parts.table and given.num_servers == servers
        assert given.sequences_per_item == (4 if name == "queue" else 1)
    for served in server.serve:
        kinds = [kind for kind, _ in served.tables]
        assert kinds == ["table", "variables"]
    assert all(given.name == "variables" and given.structure is parts.params for given in server.build_variables_table)


def test_sequences_have_a_table_that_counts_their_steps(fakes, server, tmp_path, monkeypatch):
    run = runs.dataclasses.replace(runs.make("r2d2", "CartPole-v1", {"carrier": "local"}, {}), carrier="reverb")
    Parts(run, tmp_path).build_tables()
    assert [given.table for given in server.build_steps_table] == [server.build_table[0].spec.name]


@pytest.mark.parametrize("port", [0, 8000])
def test_a_run_in_one_process_starts_its_servers(port, fakes, server, tmp_path, monkeypatch):
    module = SimpleNamespace(ReverbCarrier=lambda clients, servers=(): ("carrier", clients, servers))
    monkeypatch.setitem(sys.modules, "replay.reverb_carrier", module)
    parts = Parts(settings_of("prioritized", carrier="reverb", num_replay_servers=2), tmp_path)
    _, clients, servers = roles.connect([parts], tmp_path, port)
    ports = [8000, 8001] if port else [0, 0]
    assert [s.port for s in server.serve] == ports and clients == [("client of", p) for p in ports]
    assert len(servers) == 2
    carrier = roles.connect([Parts(make("queue"), tmp_path)], tmp_path, port)
    assert isinstance(carrier, LocalCarrier) and len(server.serve) == 2


def test_another_runs_servers_are_one_line(fakes, server, tmp_path, monkeypatch):
    def refuse(*_):
        raise ValueError("saved with other settings")

    monkeypatch.setattr(server, "serve", refuse)
    with pytest.raises(UsageError, match="other settings"):
        roles.serve([Parts(make("queue"), tmp_path)], tmp_path)


# Processes -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def child(monkeypatch, tmp_path):
    """Returns (a watched process, the codes with which it ends, the clock, its starts, the messages about it)."""
    codes, clock, started, said = [], Clock(1000.0), [], []

    class Process:
        pid = property(lambda _: None)
        exitcode = property(lambda _: codes[-1] if codes else None)

        def __init__(self, *, target, args, name):
            self.given = target, args, name

        def start(self):
            started.append(self.given)

    for module in (processes, supervision):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(processes, "_forks", SimpleNamespace(Process=Process))
    (tmp_path / "logs").mkdir()
    process = processes.RoleProcess("actor_0", ["--role=actor", "--task=0"], tmp_path, said.append)
    assert not started and not process.ended()
    log = tmp_path / "logs" / "actor_0.log"
    assert started == [(processes._play, (["--role=actor", "--task=0"], log, None, ()), "actor_0")]
    return process, codes, clock, started, said


@pytest.mark.parametrize(
    ("code", "words"),
    [(1, "exit code 1"), (-9, "killed by SIGKILL"), (143, "ended by SIGTERM"), (130, "ended by SIGINT")],
)
def test_who_dies_is_started_again_after_a_while_that_doubles_from_the_third_death_on(child, code, words):
    process, codes, clock, started, said = child
    assert not process.ended() and not said
    for restart, pause in enumerate((0.5, 0.5, 1.0, 2.0, 4.0), start=1):
        codes.append(code)
        assert not process.ended()
        assert words in said[-1] and f"restart {restart} of 10 in {pause} s" in said[-1] and len(said) == restart
        process.ask()
        process.wait()  # returns at once while no process is running
        del codes[:]
        clock.now += pause - 0.01
        assert not process.ended() and len(started) == restart, "not yet"
        clock.now += 0.02
        assert not process.ended() and len(started) == restart + 1
    clock.now += supervision.HEALTHY_SECONDS + 1
    codes.append(code)
    assert not process.ended() and "restart 1 of 10 in 0.5 s" in said[-1], "it lived long"


def test_who_ends_well_is_not_started_again(child):
    process, codes, clock, started, said = child
    codes.append(0)
    assert process.ended() and process.ended() and len(started) == 1 and not said


def test_what_a_role_warns_of_is_said_once_and_nothing_else_of_its_log(child):
    process, _, _, _, said = child
    warning = "WARNING:absl:"
    with open(process.log.path, "a") as log:
        for line in ("serving on port 1", warning + "an actor waits", "W0000 00:00:17 12 gpu.cc:9] driver", "W1128 x"):
            print(line, file=log, flush=True)
            process.ended()
        log.write(warning + "half")
        log.flush()
        process.ended()
        assert said == ["actor_0: an actor waits"]
        log.write(" a line\n")
        log.flush()
    process.ended()
    process.ended()
    assert said == ["actor_0: an actor waits", "actor_0: half a line"]


@pytest.mark.parametrize("log", ["a line", None])
def test_an_end_that_cannot_be_read_about_is_said_all_the_same(child, log):
    process, codes, *_ = child
    if log:
        process.log.path.write_text(log)
    codes.append(2)
    with pytest.raises(UsageError, match=rf"^actor_0: .*{log or 'cannot be read'}"):
        process.ended()


def test_a_learner_that_cannot_begin_ends_the_run_and_one_that_could_does_not(monkeypatch, tmp_path):
    """An error before the first update would come back each time that the learner is started."""

    class Broken:
        def __init__(self, updates):
            self.updates = updates

        def run(self, batches):
            yield from range(self.updates)
            raise KeyError("a layer")

    for updates, error in ((0, UsageError), (1, KeyError)):
        monkeypatch.setattr(roles, "open_learning", lambda *_, updates=updates: (Broken(updates), iter(()), None))
        with pytest.raises(error, match="a layer"):
            list(roles.learn(None, None, threading.Event()))
    for expected in (UsageError("mend it"), OSError("no room"), FloatingPointError("loss became nan")):
        monkeypatch.setattr(roles, "open_learning", lambda *_, expected=expected: (_ for _ in ()).throw(expected))
        with pytest.raises(type(expected), match=str(expected)):
            list(roles.learn(None, None, threading.Event()))


def test_what_a_person_must_mend_is_not_tried_again(child, tmp_path):
    process, codes, _, started, _ = child
    process.log.path.write_text("a warning\nerror: no such flag\nother words\n")
    codes.append(2)
    with pytest.raises(UsageError, match=r"^actor_0: no such flag$"):
        process.ended()
    assert len(started) == 1


def test_who_dies_too_often_ends_the_run(child):
    process, codes, clock, started, said = child
    for death in range(supervision.MAX_RESTARTS):
        codes.append(1)
        process.ended()
        assert len(said) == death + 1
        del codes[:]
        clock.now += 31.0
        process.ended()
    codes.append(1)
    with pytest.raises(UsageError, match=r"actor_0 .*, as 10 times before.*actor_0\.log"):
        process.ended()
    assert len(started) == 11


def live(logdir: pathlib.Path, role: str, *_: object) -> None:
    """Runs in a forked process instead of a role. It writes its process id, and ends when it is asked to, unless the
    role is "deaf"."""
    (logdir / f"{role}.pid").write_text(str(os.getpid()))
    if role == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)


def test_a_process_is_asked_to_end_then_killed_and_outlives_the_one_it_was_forked_from(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "GRACE_SECONDS", 1.0)
    monkeypatch.setattr(processes, "_play", live)
    monkeypatch.setattr(processes, "PRELOADED", ())
    said: list[str] = []
    running = {}
    processes._start_forkserver()
    for name in ("heeding", "deaf"):
        running[name] = processes.RoleProcess(name, [], tmp_path, said.append)
        monkeypatch.setattr(running[name], "_arguments", tmp_path)
        monkeypatch.setattr(running[name].log, "path", name)
        monkeypatch.setattr(running[name].log, "tell_warnings", lambda: None)
        assert not running[name].ended()
    pids = {}
    for name in running:
        command_line.wait_for(f"{name} to run", (tmp_path / f"{name}.pid").exists)
        command_line.wait_for("its words", lambda name=name: (tmp_path / f"{name}.pid").read_text())
        pids[name] = int((tmp_path / f"{name}.pid").read_text())
    parent = int(pathlib.Path(f"/proc/{pids['deaf']}/stat").read_text().rsplit(")", 1)[1].split()[1])
    os.kill(parent, signal.SIGKILL)
    command_line.wait_for("the forking process to be gone", lambda: not pathlib.Path(f"/proc/{parent}/exe").exists())
    assert not any(process.ended() for process in running.values()) and not said
    for process in running.values():
        process.ask()
        process.wait()
    assert not any(pathlib.Path(f"/proc/{pid}").exists() for pid in pids.values())


class Child:
    """Stands for a RoleProcess: a learner has ended after a few calls of `ended`, an evaluator after some more."""

    made: list["Child"] = []
    order: list[str] = []  # the names, as they end or are asked to

    def __init__(self, name, arguments, logdir, say, held, awaited):
        self.name, self.arguments, self.logdir, self.looks = name, arguments, logdir, 0
        Child.made.append(self)

    def ended(self):
        self.looks += 1
        lasting = {"learner": 3, "evaluator": 6}.get(self.name.split("_")[0])
        if lasting and self.looks > lasting:
            Child.order.append(self.name)
        return bool(lasting) and self.looks > lasting

    def ask(self):
        Child.order.append(self.name)

    def wait(self):
        """Returns at once: the process has ended."""


class Nothing:
    """Stands for a Display, and shows nothing."""

    def __init__(self, run, logdir):
        """Keeps nothing."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def say(self, text):
        """Prints nothing."""

    def refresh(self):
        """Changes nothing."""


@pytest.mark.parametrize("members", [0, 3])
@pytest.mark.parametrize("port", [0, 8000])
def test_each_process_is_told_which_role_it_is(members, port, tmp_path, monkeypatch):
    ports = iter(range(9000, 9010))
    monkeypatch.setattr(processes, "free_port", lambda: next(ports))
    monkeypatch.setattr(processes, "RoleProcess", Child)
    monkeypatch.setattr(processes, "Display", Nothing)
    monkeypatch.setattr(processes, "_start_forkserver", lambda: None)
    monkeypatch.setattr(processes, "stop_on_signals", lambda notice: threading.Event())
    monkeypatch.setattr(program, "ATTEND_SECONDS", 0.0)
    monkeypatch.setattr(Child, "made", [])
    monkeypatch.setattr(Child, "order", [])
    changes = {"num_replay_servers": 2, "num_actors": 5, "actors_per_process": 2, "placement": "processes"}
    run = runs.dataclasses.replace(make("uniform"), carrier="reverb", **changes, population=members)
    processes.train(run, tmp_path, port)
    first, second = (port, port + 1) if port else (9000, 9001)
    servers = f"--replay=localhost:{first},localhost:{second}"
    expected = {f"replay_{task}": (f"--role=replay --task={task}", f"--port={p}") for task, p in
                ((0, first), (1, second))}  # fmt: skip
    each = [(f"_member_{m}", f" --member={m}") for m in range(members)] or [("", "")]
    for suffix, member in each:
        expected[f"learner_0{suffix}"] = ("--role=learner --task=0", servers + member)
        expected[f"evaluator_0{suffix}"] = ("--role=evaluator --task=0", servers + member)
        for task in range(3):
            expected[f"actor_{task}{suffix}"] = (f"--role=actor --task={task}", servers + member)
    told = {child.name: " ".join(child.arguments) for child in Child.made}
    assert told == {name: f"{who} --logdir={tmp_path} {where}" for name, (who, where) in expected.items()}
    assert all(child.looks > 3 for child in Child.made), "each was watched"
    ends = {name: Child.order.index(name) for name in told}
    assert len(Child.order) == len(told), "each ended once"

    def ended(*kinds):
        return [place for name, place in ends.items() if name.startswith(kinds)]

    assert max(ended("learner")) < min(ended("actor")) and max(ended("actor")) < min(ended("evaluator"))
    assert max(ended("learner", "actor", "evaluator")) < min(ended("replay")), "nobody needs them"


def test_the_actors_are_shared_out_among_their_processes():
    for num_actors, per_process in ((5, 2), (4, 2), (1, 3), (6, 1)):
        run = runs.dataclasses.replace(make("queue"), num_actors=num_actors, actors_per_process=per_process)
        shares = [roles_ for process, roles_ in program.processes_of(run).items() if process.kind == "actor"]
        assert [role.task for share in shares for role in share] == list(range(num_actors))
        assert max(map(len, shares)) <= per_process and len(shares) == -(-num_actors // per_process)


class Playing:
    """A role in a program: it ends after `looks` calls of `ended`, or when asked, and then adds itself to `order`."""

    def __init__(self, order, role, looks):
        self.order, self.role, self.looks, self.over = order, role, looks, False

    def ended(self):
        self.looks -= 1
        if self.looks == 0 and not self.over:
            self.over = True
            self.order.append(self.role)
        return self.over

    def ask(self):
        if not self.over:
            self.over = True
            self.order.append(self.role)

    def wait(self):
        assert self.over


@pytest.mark.parametrize("ends", ["by themselves", "by a signal", "by an error"])
@pytest.mark.parametrize("members", [0, 2])
def test_a_program_ends_in_its_order_however_it_ends(ends, members, monkeypatch):
    monkeypatch.setattr(program, "ATTEND_SECONDS", 0.0)
    run = runs.dataclasses.replace(make("uniform"), carrier="reverb", num_replay_servers=2, population=members)
    order: list[program.Role] = []
    stop, attended = threading.Event(), []
    forever = -1
    looks = {"learner": 5, "evaluator": 9} if ends == "by themselves" else {}
    running = {role: Playing(order, role, looks.get(role.kind, forever)) for role in program.roles_of(run)}

    def attend():
        attended.append(1)
        if len(attended) == 12 and ends == "by a signal":
            stop.set()
        if len(attended) == 12 and ends == "by an error":
            raise RuntimeError("broken")

    if ends == "by an error":
        with pytest.raises(RuntimeError, match="broken"):
            program.conduct(running, stop, attend)
    else:
        program.conduct(running, stop, attend)
    assert sorted(order) == sorted(running), "each ended, once"
    for later in running:
        for earlier in running:
            if earlier.kind in program.KINDS[later.kind].after:
                assert order.index(earlier) < order.index(later)
    assert len(attended) >= 9 if ends == "by themselves" else len(attended) == 12


@pytest.mark.parametrize("kind", ["actor", "replay"])
def test_a_part_of_a_program_ends_when_it_is_asked(kind):
    """An actor or a server alone in its process cannot know when the learner has ended."""
    order: list[program.Role] = []
    stop, looks, part = threading.Event(), [], program.Role(kind)
    program.conduct({part: Playing(order, part, -1)}, stop, lambda: looks.append(1) or len(looks) < 3 or stop.set())
    assert order == [part] and len(looks) == 3


class TheParts(NamedTuple):
    """Stands for Parts."""

    logdir: pathlib.Path
    member: int | None

    def place(self, task: int) -> int:
        return task


@pytest.mark.parametrize("sitting", [0, 2])
@pytest.mark.parametrize("which", ["learner", "evaluator", "actor", "replay"])
def test_a_role_by_hand_is_the_role_that_was_asked_for(which, sitting, monkeypatch, tmp_path):
    played: list[Any] = []
    for name in ("learn", "evaluate", "act", "serving"):
        monkeypatch.setattr(roles, name, lambda *given, name=name: played.append((name, *given[:-1])) or iter(()))
    client = SimpleNamespace(connect=lambda address, seconds: ("client", address, seconds))
    monkeypatch.setitem(sys.modules, "replay.client", client)
    monkeypatch.setitem(
        sys.modules, "replay.reverb_carrier", SimpleNamespace(ReverbCarrier=lambda clients, max_env_steps: clients)
    )
    monkeypatch.setattr(shutdown, "stop_on_signals", lambda notice: shutdown.Stop())
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    monkeypatch.setattr(scheduling, "give_way", lambda: None)
    monkeypatch.setattr(roles, "make_parts", lambda run, logdir: {None: TheParts(logdir, None)})
    monkeypatch.setattr(roles, "Parts", lambda run, logdir, member: TheParts(logdir, member))
    run = runs.dataclasses.replace(make("uniform"), carrier="reverb", num_replay_servers=2, num_actors=5)
    run = runs.replace(run, placement="threads", actors_per_process=2)
    runs.save(run, tmp_path)
    parts, clients = TheParts(tmp_path, None), [("client", "a:1", 7.0), ("client", "b:2", 7.0)]
    task = 0 if which in ("learner", "evaluator") else 1
    port = free_port()
    where = [f"--port={port}"] if which == "replay" else ["--replay=a:1,b:2", "--connect_seconds=7"]
    arguments = ["role", f"--role={which}", f"--logdir={tmp_path}", f"--task={task}", *where]
    for _ in range(sitting):
        assert flags.attempt(role.role, arguments) == 0
    del played[:]
    assert flags.attempt(role.role, arguments) == 0
    expected = {
        "learner": [("learn", parts, clients)],
        "evaluator": [("evaluate", parts, clients)],
        "actor": [("act", parts, clients, actor_task, sitting) for actor_task in (2, 3)],
        "replay": [("serving", [parts], tmp_path, 1, port)],
    }
    # The roles of a process are threads, which may begin in any order.
    assert sorted((name, *map(_plain, given)) for name, *given in played) == expected[which]


def _plain(given: Any) -> Any:
    return list(given) if isinstance(given, type({}.values())) else given


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--role=actor", "--task=3"), "--task=3: the run has 3 processes with --role=actor, numbered from 0"),
        (("--role=replay", "--task=2"), "--task=2: the run has 2 processes with --role=replay, numbered from 0"),
        (("--role=learner", "--task=1"), "--task=1: the run has 1 processes with --role=learner, numbered from 0"),
        (("--role=actor", "--member=0"), "--member=0: in this run --role=actor is not for one member of a population"),
        (("--role=learner", "--num_learners=2"), "--num_learners=2 needs --coordinator=host:port"),
        (("--role=learner", "--num_learners=2", "--coordinator=x:1"), "an agent with a replay learns on one host"),
        (("--role=actor", "--replay=a:1"), "--replay=a:1 names 1 servers, but the run has 2"),
        (("--role=actor", "--replay="), "--role=actor needs --replay=host:port"),
        (("--task=0",), "needs --role, which is one of replay, learner, evaluator, actor"),
        (("--role=actor", "--logdir="), "--logdir=: give the path of a file or a folder"),
    ],
)
def test_a_role_that_the_run_has_not_is_refused(arguments, words, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    monkeypatch.setattr(scheduling, "give_way", lambda: None)
    monkeypatch.setattr(shutdown, "stop_on_signals", lambda notice: shutdown.Stop())
    monkeypatch.setattr(roles, "Parts", lambda *_: None)
    run = runs.dataclasses.replace(make("uniform"), carrier="reverb", num_replay_servers=2, num_actors=5)
    runs.save(runs.replace(run, placement="threads", actors_per_process=2), tmp_path)
    given = ["role", f"--logdir={tmp_path}", "--replay=a:1,b:2", "--connect_seconds=0", *arguments]
    assert flags.attempt(role.role, given) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and words in line


@pytest.mark.parametrize(
    ("error", "code"),
    [(None, 0), (RuntimeError("broken"), 1), (UsageError("mend it"), 2), (OSError("full"), 2),
     (learner.NotFinite("nan"), 2)],
)  # fmt: skip
def test_the_exit_code_says_how_it_ended(error, code, monkeypatch, capsys):
    ended = []
    monkeypatch.setattr(flags.os, "_exit", ended.append)
    monkeypatch.setattr(sys, "argv", ["train"])

    def command():
        if error:
            raise error
        return 0

    flags.main(command)
    assert ended == [code]
    assert (str(error) in capsys.readouterr().err) or error is None


SIGNALS = """
import os, signal, sys, time
from launchers.shutdown import stop_on_signals
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored
stop = stop_on_signals()
os.kill(os.getpid(), int(sys.argv[1]))
assert stop.wait(5)
print("asked", flush=True)
os.kill(os.getpid(), int(sys.argv[2]))
time.sleep(5)
print("ignored", flush=True)
"""


@pytest.mark.parametrize("first", ENDING)
@pytest.mark.parametrize("second", AT_ONCE)
def test_a_second_signal_ends_it_at_once(first, second):
    done = subprocess.run(
        [sys.executable, "-c", SIGNALS, str(int(first)), str(int(second))],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.split() == ["asked"] and done.returncode == -second, done.stderr


@pytest.mark.parametrize("evaluations", [1, 2])
def test_train_hands_the_run_to_its_placement_and_draws_what_it_learnt(evaluations, tmp_path, monkeypatch, capsys):
    def play(run, logdir, port):
        played.append((run, logdir, port))
        recorder = metrics.Recorder(logdir, "evaluator")
        for n in range(evaluations):
            recorder.write({"env_steps": 100 * n, "return_mean": 5.0 * n, "return_std": 1.0})
        recorder.close()

    played: list[Any] = []
    port = free_port() if HAS_REVERB else 0  # only Reverb's server has a port
    monkeypatch.setattr(serial, "train", play)
    monkeypatch.setattr(runtime, "leave_out_tensorflow", lambda: None)
    arguments = ["--agent=a2c", "--placement=serial", "--publish_period=9"]
    arguments += ["--carrier=reverb", f"--port={port}"] if HAS_REVERB else ["--carrier=local"]
    assert flags.attempt(train.train, ["train", f"--logdir={tmp_path}", *arguments, "--config.discount=0.5"]) == 0
    ((run, logdir, told),) = played
    assert (run.agent, run.placement, run.publish_period, run.config.discount) == ("a2c", "serial", 9, 0.5)
    assert (logdir, told) == (tmp_path, port) and runs.load(tmp_path) == run
    picture = tmp_path / "curve.png"
    assert has_curve(picture) if evaluations > 1 else not picture.exists()
    assert (str(picture) in capsys.readouterr().out) == (evaluations > 1)


@pytest.mark.parametrize("learnt", [0, 5])
def test_a_run_whose_checkpoints_were_removed_is_told_that_it_begins_anew(learnt, tmp_path, monkeypatch):
    told: list[str] = []
    monkeypatch.setattr(roles.logging, "warning", lambda words, *values: told.append(words % values))
    recorder = metrics.Recorder(tmp_path, "learner")
    for steps in range(1, learnt + 1):
        recorder.write({"env_steps": 100 * steps, "learner_steps": steps})
    recorder.close()
    roles.warn_of_no_checkpoint(tmp_path)
    words = f"there is no checkpoint in {tmp_path / 'checkpoints'}, where the run had come to 500 environment steps"
    assert told == ([f"{words}: it begins anew"] if learnt else [])


@pytest.mark.parametrize(
    ("agent", "config", "steps"),
    [
        ("dqn", {"min_replay_size": 700}, 700),
        ("r2d2", {"min_replay_size": 20, "sequence_length": 12, "overlap": 2}, 200),
        ("a2c", {"unroll_length": 50, "batch_size": 32}, 1600),
        ("reinforce", {}, 0),
    ],
)
def test_a_run_that_is_shorter_than_what_comes_before_its_first_update_is_told(agent, config, steps, capsys):
    for length, told in ((max(steps, 1), False), (max(steps - 1, 1), steps > 0)):
        run = runs.make(agent, "CartPole-v1", {"carrier": "local", "max_env_steps": length}, config)
        assert run.steps_before_update(run.make_agent(run.spec())) == steps
        train._tell_of_begin(run, pathlib.Path("run"))
        assert (f"the first update is due after {steps:,} env steps" in capsys.readouterr().out) == told


# Threads and turns ---------------------------------------------------------------------------------------------------


class Threads:
    """Replaces the roles of a run in one process by fakes, which note in `order` how they end."""

    def __init__(self, monkeypatch, logdir: pathlib.Path, broken: str = "", learning: int = 1):
        self.order, self.lazy, self.broken, self.learning = [], set(), broken, learning
        self.members = {m: SimpleNamespace(name=m, logdir=logdir / f"member_{m}", place=int) for m in range(2)}
        for parts in self.members.values():
            parts.logdir.mkdir()
        monkeypatch.setattr(threads, "Display", Nothing)
        monkeypatch.setattr(program, "ATTEND_SECONDS", 0.01)
        self.stop = threading.Event()
        monkeypatch.setattr(threads, "stop_on_signals", lambda notice: self.stop)
        monkeypatch.setattr(threads, "give_way", lambda: self.lazy.add(threading.current_thread().name))
        monkeypatch.setattr(roles, "make_parts", lambda run, logdir: self.members)
        monkeypatch.setattr(roles, "connect", lambda members, logdir, port: ("carrier", [*members], logdir, port))
        for name in ("learn", "act", "evaluate"):
            monkeypatch.setattr(roles, name, lambda *given, name=name: self.work(name, *given))

    def work(self, name, parts, carrier, *rest):
        *task, stop = rest
        self.carrier = carrier
        if self.broken == name:
            raise RuntimeError(f"{name} is broken")
        looks = itertools.count() if name == "act" else range(self.learning)
        for _ in looks:
            yield
            if stop.wait(0.01):
                break
        if self.broken == f"end of {name}":
            raise RuntimeError(f"end of {name} is broken")
        self.order.append((name, parts.name, *task))

    def train(self, tmp_path):
        run = runs.dataclasses.replace(make("queue"), population=2)  # members with separate learners
        threads.train(run, tmp_path, 8000)


def test_threads_are_one_for_each_role_of_each_member(monkeypatch, tmp_path):
    playing = Threads(monkeypatch, tmp_path, learning=20)
    playing.train(tmp_path)
    actors = [("act", m, task, 0) for m in range(2) for task in range(2)]
    assert sorted(playing.order) == sorted([*actors, *((name, m) for name in ("learn", "evaluate") for m in range(2))])
    last = max(playing.order.index(("learn", m)) for m in range(2))
    assert all(playing.order.index(who) > last for who in actors), "actors end when their learners have"
    assert playing.carrier == ("carrier", [*playing.members.values()], tmp_path, 8000)
    assert not playing.stop.is_set()
    lazy = {f"{kind}_member_{m}" for kind in ("actor_0", "actor_1", "evaluator_0") for m in range(2)}
    assert lazy <= playing.lazy and not any(name.startswith("learner") for name in playing.lazy)


def test_a_signal_ends_threads_in_their_order(monkeypatch, tmp_path):
    playing = Threads(monkeypatch, tmp_path, learning=10**6)
    threading.Timer(0.2, playing.stop.set).start()
    playing.train(tmp_path)
    assert {who[0] for who in playing.order[:2]} == {"learn"} and len(playing.order) == 8


@pytest.mark.parametrize("broken", ["learn", "act", "evaluate", "end of learn", "end of act", "end of evaluate"])
def test_the_first_error_of_a_thread_is_the_runs(broken, monkeypatch, tmp_path):
    playing = Threads(monkeypatch, tmp_path, broken)
    with pytest.raises(RuntimeError, match=f"^{broken} is broken$"):
        playing.train(tmp_path)
    assert {who[0] for who in playing.order} == {"learn", "act", "evaluate"} - {broken.split()[-1]}, "all others ended"


@pytest.mark.parametrize(("name", "carrier"), [("queue", "local"), ("queue", "reverb"), ("uniform", "local")])
def test_roles_take_turns_in_one_thread(name, carrier, fakes, saves, tmp_path, monkeypatch):
    """The actors take turns whenever the learner waits. An evaluation is made once it is due, with parameters that are
    published for it."""
    FakeLearner.turns = tuple((1.0, Version(n, 40 * n), {"wait_seconds": 0.0}, {}) for n in range(1, 6))
    run, order = settings_of(name, max_env_steps=200, eval_period=70, carrier=carrier), []
    source = "the rings" if name == "uniform" else None
    carrier = Carrier(source)
    monkeypatch.setattr(serial, "Display", Nothing)
    monkeypatch.setattr(serial, "stop_on_signals", lambda notice: threading.Event())
    monkeypatch.setattr(roles, "connect", lambda members, logdir, port: carrier)

    def act(parts, given, task, sitting, stop):
        while True:
            order.append(task)
            yield

    def evaluations(parts, given, stop):
        while True:
            yield None  # the evaluation goes on ...
            yield None
            order.append(("evaluation", fakes.learners[0].made.version.env_steps, fakes.learners[0].made.published))
            yield {}  # ... to its end, before the learner goes on

    monkeypatch.setattr(roles, "act", act)
    monkeypatch.setattr(roles, "evaluate", evaluations)
    monkeypatch.setattr(Parts, "send", lambda self, sample: order.append(sample))
    serial.train(run, tmp_path, 0)
    samples = [[] if source else [f"a sample of {steps}"] for steps in (30, 31, 30, 31, 30)]
    turns = [[0, 1, *sample] for sample in samples]  # the rings' samples are not sent: they are on the devices
    assert order == [
        *turns[0], *turns[1], ("evaluation", 80, 1), *turns[2], *turns[3], ("evaluation", 160, 2), *turns[4],
        ("evaluation", 200, 3),
    ]  # fmt: skip
    (given,) = fakes.learners
    params = given.mesh.put(np.float32(3))
    given.publish(Version(9, 9), params)
    ((_, version, pushed),) = carrier.of["variables"].calls
    assert version == Version(9, 9)
    assert (pushed is params) if run.carrier == "local" else isinstance(pushed, np.ndarray), "to the host, for Reverb"
    assert (given.seed, given.publish_period) == (run.seed_of("learner"), 3)
    assert [version.env_steps for _, _, version in saves] == ([200, 200] if source else [200]), "the replay too"
