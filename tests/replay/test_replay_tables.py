"""Replay tables: how often items are sampled, whose priorities change, what is kept, who waits, what restarts keep.

Item i of server s is a transition whose observation is (s, i).
"""

import dataclasses
import functools
import pathlib
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from agents.agent import Agent, Feedback, Step, TableSpec, Transition, Transitions, Version, pmean
from replay import server
from replay.client import connect
from replay.limiter import MIN_BUFFER_ITEMS, error_buffer
from replay.priorities import update_priorities
from replay.reverb_carrier import TableChannel
from replay.rows import Row
from replay.sampler import Replay as Sampler
from replay.structures import Packing, Structure
from replay.transitions import TransitionWriter
from runtime import devices, learner
from runtime.learner import PriorityUpdater
from tests.replay.conftest import ROOT
from tests.waiting import until, within

WAIT = 60.0
NUMBER = np.zeros((), np.float32)
STRUCTURE = Structure(
    Transition(np.zeros(2, np.float32), np.zeros((), np.int32), NUMBER, NUMBER, np.zeros(2, np.float32))
)
PACKING = Packing(STRUCTURE)
SPEC = TableSpec("replay", Transitions(1, 0.99), "prioritized", max_size=1000, priority_exponent=0.6)
IMPLAUSIBLE = 1e-7  # the probability that a correct table fails a chi-square test


def table_of(spec: TableSpec, num_servers: int = 1):
    return server.build_table(spec, PACKING.structure, 1, num_servers)


def write(client, priorities: Sequence[float], server_index: int = 0, first: int = 0) -> None:
    """Writes items `first`, `first` + 1, ... with these priorities."""
    writer = client.trajectory_writer(1)
    for index, priority in enumerate(priorities, first):
        name = np.array([[server_index, index]], np.float32)
        item = Transition(name, np.full(1, index, np.int32), np.zeros(1, np.float32), np.ones(1, np.float32), name)
        writer.append([column[0] for column in PACKING.pack(item)])
        writer.create_item("replay", priority, [column[-1] for column in writer.history])
    within(WAIT, "items to be written", writer.flush)
    writer.close()


class Item(NamedTuple):
    key: int
    priority: float


def contents(client, count: int) -> dict[tuple[int, int], Item]:
    """Samples until it has seen `count` items; returns (server, index) -> the item's key and priority."""
    found: dict[tuple[int, int], Item] = {}
    for _ in range(300):
        for sample in within(WAIT, "samples", list, client.sample("replay", 100, emit_timesteps=False)):
            (name,) = PACKING.unpack([np.asarray(column)[None] for column in sample.data]).observation.astype(int)
            found[tuple(name.tolist())] = Item(sample.info.key, sample.info.priority)
        if len(found) >= count:
            break
    return found


def size(client) -> int:
    return client.server_info()["replay"].current_size


class Drawn(NamedTuple):
    names: np.ndarray  # int [N, 2]: server, index
    likelihood: np.ndarray  # [N]
    keys: list[int]


def draw(clients, spec: TableSpec, batch_size: int, batches: int) -> Drawn:
    names, likelihood, keys = [], [], []
    sampler = iter(Sampler(clients, spec, STRUCTURE, batch_size))
    for _ in range(batches):
        batch = within(WAIT, "a batch", next, sampler)
        names.append(batch.sample.steps.observation.astype(int))
        likelihood.append(batch.sample.likelihood)
        keys += np.stack(batch.keys, axis=1).reshape(-1).tolist()
    return Drawn(np.concatenate(names), np.concatenate(likelihood), keys)


def chi_square(counts: np.ndarray, probability: np.ndarray) -> float:
    """Returns the probability of a deviation that is at least as large as that of `counts`."""
    return scipy.stats.chisquare(counts, probability * counts.sum()).pvalue


def powers(priorities, exponent: float) -> np.ndarray:
    p = np.asarray(priorities, float) ** exponent
    return p / p.sum()


# How often -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exponent", [0.6, 1.0])
def test_items_are_sampled_by_their_priorities_to_the_power_of_the_exponent(serve, exponent):
    spec = dataclasses.replace(SPEC, priority_exponent=exponent)
    priorities = np.array([1.0, 2, 3, 5, 8, 13, 0.5, 0.1])
    client = serve(table_of(spec))
    write(client, priorities)
    for now in (priorities, priorities[::-1], priorities):
        drawn = draw([client], spec, 200, 40)
        counts = np.bincount(drawn.names[:, 1], minlength=len(now))
        assert chi_square(counts, powers(now, exponent)) > IMPLAUSIBLE
        assert chi_square(counts, powers(now[::-1], exponent)) < IMPLAUSIBLE
        assert chi_square(counts, powers(now, 1.6 - exponent)) < IMPLAUSIBLE, "the test can tell exponents apart"
        np.testing.assert_allclose(drawn.likelihood, 8 * powers(now, exponent)[drawn.names[:, 1]], rtol=1e-5)
        key_of = dict(zip(drawn.names[:, 1].tolist(), drawn.keys, strict=True))
        assert len(set(drawn.keys)) == len(key_of) == 8
        keys = np.array([key_of[index] for index in range(8)], np.uint64)
        update_priorities(client, "replay", keys, now[::-1])


def test_an_item_of_priority_zero_is_not_sampled_until_it_gets_another(serve):
    client = serve(table_of(SPEC))
    write(client, [1.0, 2.0, 3.0])
    items = contents(client, 3)
    update_priorities(client, "replay", np.array([items[0, 1].key], np.uint64), np.zeros(1))
    drawn = draw([client], SPEC, 50, 4)
    assert set(drawn.names[:, 1].tolist()) == {0, 2}
    update_priorities(client, "replay", np.array([items[0, 1].key], np.uint64), np.full(1, 100.0))
    assert np.bincount(draw([client], SPEC, 50, 4).names[:, 1]).argmax() == 1


def test_uniform_sampling_ignores_priorities(serve):
    spec = dataclasses.replace(SPEC, kind="uniform")
    client = serve(table_of(spec))
    write(client, [1.0, 100.0, 0.01, 5.0, 1.0])
    drawn = draw([client], spec, 200, 20)
    assert chi_square(np.bincount(drawn.names[:, 1], minlength=5), np.full(5, 0.2)) > IMPLAUSIBLE
    np.testing.assert_allclose(drawn.likelihood, 1.0, rtol=1e-6)


THREE = ([1.0, 2, 3, 4], [5.0, 1, 1, 2, 9, 0.5, 3, 3, 1], [0.1, 0.2, 0.7, 0.4, 0.5])  # priorities of three servers


def three_servers(serve, spec: TableSpec = SPEC):
    clients = [serve(table_of(spec, 3)) for _ in THREE]
    for index, (client, priorities) in enumerate(zip(clients, THREE, strict=True)):
        write(client, priorities, index)
    return clients


def test_three_servers_are_sampled_by_turns_and_their_likelihood_is_that_of_the_mixture(serve):
    clients = three_servers(serve)
    drawn = draw(clients, SPEC, 120, 30)
    np.testing.assert_array_equal(drawn.names[:, 0], np.arange(120 * 30) % 3, "they take turns")
    total = sum(map(len, THREE))
    probability = [powers(priorities, 0.6) for priorities in THREE]
    expected = [total * probability[s][i] / 3 for s, i in drawn.names.tolist()]
    np.testing.assert_allclose(drawn.likelihood, expected, rtol=1e-5)
    # This is what the likelihood is for: weighted by its inverse, the items of all servers count the same.
    assert np.mean(1 / drawn.likelihood) == pytest.approx(1.0, abs=0.1)
    for index, p in enumerate(probability):
        counts = np.bincount(drawn.names[drawn.names[:, 0] == index, 1], minlength=len(p))
        assert chi_square(counts, p) > IMPLAUSIBLE


def test_a_batch_that_does_not_divide_over_the_servers_is_refused(serve):
    with pytest.raises(ValueError, match="a batch of 16 is not a multiple of 3, the number of replay servers"):
        Sampler(three_servers(serve), SPEC, STRUCTURE, 16)


# Whose priorities -----------------------------------------------------------------------------------------------------


def updater_of(clients, mesh, **options) -> PriorityUpdater:
    return PriorityUpdater(TableChannel(clients, SPEC, STRUCTURE, len(clients)).feedback, mesh.local, **options)


def test_each_servers_items_get_their_own_priorities_and_no_others(serve):
    clients = three_servers(serve)
    before = [contents(client, len(priorities)) for client, priorities in zip(clients, THREE, strict=True)]
    batches = [batch for _, batch in zip(range(3), Sampler(clients, SPEC, STRUCTURE, 12), strict=False)]
    updater = updater_of(clients, devices.make_mesh())
    expected = [{name: item.priority for name, item in each.items()} for each in before]
    for batch in batches:
        assert [keys.dtype for keys in batch.keys] == [np.uint64] * 3
        names = batch.sample.steps.observation.astype(int)
        for k, (s, i) in enumerate(names.tolist()):
            assert batch.keys[k % 3][k // 3] == before[s][s, i].key, "item k is the servers' k // 3rd by turns"
            expected[s][s, i] = 10.0 * s + i + 1
        priorities = 10.0 * names[:, 0] + names[:, 1] + 1
        updater(batch.keys, jnp.asarray(priorities, jnp.float32))
    within(WAIT, "the priorities to be sent", updater.close)
    after = [contents(client, len(each)) for client, each in zip(clients, before, strict=True)]
    for s in range(3):
        assert {name: item.priority for name, item in after[s].items()} == pytest.approx(expected[s])
        assert {name: item.key for name, item in after[s].items()} == {n: item.key for n, item in before[s].items()}
    keys = [item.key for each in before for item in each.values()]
    assert len(set(keys)) == len(keys) and any(int(float(key)) != key for key in keys), "no float holds such a key"


def named_agent(batch_size: int) -> Agent:
    """Returns an agent that gives an item the new priority 10 times its server + its index + 1 + 100 times the number
    of the update, counted from 0."""

    def update(state, key, sample):
        observation = sample.steps.observation
        priorities = 100.0 * state + 10.0 * observation[:, 0] + observation[:, 1] + 1
        return state + 1, Feedback({"likelihood": pmean(sample.likelihood.mean())}, priorities)

    return Agent(None, lambda state: state, None, None, None, update, SPEC, batch_size)


@pytest.mark.parametrize("updates_per_dispatch", [1, 2])
def test_a_learners_priorities_go_to_the_items_that_it_learned_from(serve, updates_per_dispatch):
    """Tests the sampler, the prefetching, the learner and the updater together, on three servers."""
    clients = three_servers(serve)
    before = [contents(client, len(priorities)) for client, priorities in zip(clients, THREE, strict=True)]
    expected = [{name: item.priority for name, item in each.items()} for each in before]
    batches, size, keys = 3, 6 * updates_per_dispatch, []

    def noted():
        for number, batch in enumerate(Sampler(clients, SPEC, STRUCTURE, size)):
            if number == batches:
                return
            keys.append(batch.keys)
            for k, (s, i) in enumerate(batch.sample.steps.observation.astype(int).tolist()):
                update = number * updates_per_dispatch + k * updates_per_dispatch // size
                expected[s][s, i] = 100.0 * update + 10.0 * s + i + 1
            yield batch

    mesh = devices.make_mesh()
    updater, seen = updater_of(clients, mesh), []

    def update_priorities(keys, priorities):
        seen.append(keys)
        updater(keys, priorities)

    version = Version(0, 0)
    learning = learner.Learner(
        named_agent(size),
        np.float32(0),
        version,
        0,
        lambda version, params: None,
        update_priorities=update_priorities,
        updates_per_dispatch=updates_per_dispatch,
        mesh=mesh,
    )
    sent = learner.prefetch(noted(), lambda: False, functools.partial(devices.send, mesh))
    within(WAIT, "the learner to learn", list, learning.run(sent))
    within(WAIT, "the priorities to be sent", updater.close)
    assert seen == keys and len(seen) == batches, "each update's keys are its own batch's"
    assert learning.version.learner_steps == learning.host_state() == batches * updates_per_dispatch
    after = [contents(client, len(each)) for client, each in zip(clients, before, strict=True)]
    # If an item is in several updates, the last update's priority counts.
    for s in range(3):
        assert {name: item.priority for name, item in after[s].items()} == pytest.approx(expected[s])


def test_removed_items_are_passed_over(serve):
    client = serve(table_of(dataclasses.replace(SPEC, max_size=4)))
    write(client, [1.0, 1.0, 1.0, 1.0])
    old = contents(client, 4)
    write(client, [1.0, 1.0, 1.0], first=4)  # removes 0, 1 and 2
    keys = np.array([old[0, i].key for i in range(4)], np.uint64)
    update_priorities(client, "replay", keys, np.full(4, 3.0))
    assert {name[1]: item.priority for name, item in contents(client, 4).items()} == {3: 3.0, 4: 1, 5: 1, 6: 1}


@pytest.mark.parametrize(("kind", "num_servers"), [("uniform", 1), ("prioritized", 1), ("prioritized", 3)])
def test_a_full_table_forgets_the_oldest(serve, kind, num_servers):
    client = serve(table_of(dataclasses.replace(SPEC, kind=kind, max_size=10), num_servers))
    share = -(-10 // num_servers)
    write(client, [1.0] * 10)
    write(client, [1.0] * 3, first=10)
    assert size(client) == share
    assert sorted(name[1] for name in contents(client, share)) == list(range(13 - share, 13))


@pytest.mark.parametrize("exponent", [-0.4, -1.0])
def test_a_full_table_may_forget_by_priority(serve, exponent):
    spec = dataclasses.replace(SPEC, max_size=900, eviction_exponent=exponent, priority_exponent=0.0)
    client = serve(table_of(spec))
    steps = [0.001, 0.1, 10.0]
    write(client, np.repeat(steps, 300))
    write(client, [1e9] * 100, first=900)  # these are themselves almost never removed
    left = {name[1] for name in contents(client, 900)}
    gone = np.array([sum(index not in left for index in range(start, start + 300)) for start in (0, 300, 600)])
    assert len(left) == 900 and gone.sum() == 100
    expected, there = np.zeros(3), np.full(3, 300.0)
    for _ in range(100):  # each is removed from the items that are left
        chance = (there - expected) * powers(steps, exponent)
        expected += chance / chance.sum()
    assert chi_square(gone, expected / expected.sum()) > IMPLAUSIBLE
    assert chi_square(gone, np.full(3, 1 / 3)) < IMPLAUSIBLE, "not the oldest, nor all alike"


def test_priorities_that_cannot_be_set_are_lost_with_a_warning_and_the_others_are_not(serve, caplog):
    """A diverged update gives NaN. The learner must find that out by itself, and must not hang."""
    client = serve(table_of(SPEC))
    write(client, [1.0, 2.0, 3.0])
    items = contents(client, 3)
    keys = (np.array([items[0, i].key for i in range(3)], np.uint64),)
    updater = updater_of([client], devices.make_mesh())
    updater(keys, jnp.array([jnp.nan, 5.0, jnp.inf]))
    within(WAIT, "the priorities to be sent", updater.close)
    assert {name[1]: item.priority for name, item in contents(client, 3).items()} == {0: 1.0, 1: 5.0, 2: 3.0}
    assert "2 priorities were not finite" in caplog.text
    update_priorities(client, "no such table", *keys, np.ones(3))
    assert "priorities were lost: Priority table no such table was not found" in caplog.text


# Who waits ------------------------------------------------------------------------------------------------------------

LIMITED = dataclasses.replace(SPEC, kind="uniform", min_size=10, samples_per_insert=4.0)
BUFFER = error_buffer(LIMITED)
MOST_INSERTS = 10 + int(BUFFER) // 4  # what can be inserted before the first sample


def test_the_error_buffer_is_a_tenth_of_the_minimum_size_but_never_small():
    assert BUFFER == MIN_BUFFER_ITEMS * 4
    large = dataclasses.replace(LIMITED, min_size=30_000)
    assert error_buffer(large) == 3_000 * 4 and error_buffer(large, 3) == 1_000 * 4
    assert error_buffer(dataclasses.replace(large, samples_per_insert=0.5)) == 3_000


@pytest.mark.parametrize("num_servers", [1, 3])
def test_each_of_several_servers_limits_its_share(num_servers):
    """The shares are of 30,000 items, four samples each, and of a buffer of a tenth to either side of that ratio."""
    spec = dataclasses.replace(LIMITED, min_size=30_000, max_size=90_000)
    info = table_of(spec, num_servers).info
    limiter, share = info.rate_limiter_info, 30_000 // num_servers
    assert (info.max_size, limiter.min_size_to_sample) == (90_000 // num_servers, share)
    assert limiter.samples_per_insert == 4.0
    assert (limiter.min_diff, limiter.max_diff) == (4 * share * 0.9, 4 * share * 1.1)


def counts(client) -> tuple[int, int]:
    """Returns how many (inserts, samples) the table has let through."""
    limiter = client.server_info()["replay"].rate_limiter_info
    return limiter.insert_stats.completed, limiter.sample_stats.completed


class Actor:
    """A thread that appends rows of one environment without end, until told to stop."""

    def __init__(self, client, spec: TableSpec = LIMITED):
        self.writer = TransitionWriter(client, spec, STRUCTURE, stopped=self._stopped)
        self.stop, self.asked = threading.Event(), 0
        self.thread = threading.Thread(target=self._append, daemon=True)
        self.thread.start()

    def _append(self) -> None:
        row = 0
        while not self.stop.is_set():
            one = np.ones(1, np.float32)
            step = Step(np.array([[0, row]], np.float32), np.zeros(1, np.int32), one, one, np.full(1, row == 0), {})
            self.asked = 0
            self.writer.append(Row(step, (), Version(0, 0)))
            row += 1

    def _stopped(self) -> bool:
        self.asked += 1  # asked again after each time-out of the flush that waits for the table
        return self.stop.is_set()

    def waits(self) -> bool:
        return self.asked > 1

    def end(self) -> None:
        self.stop.set()
        self.thread.join(WAIT)
        assert not self.thread.is_alive(), f"waited {WAIT} s in vain for append to return"


class Taker:
    """A thread that takes batches until its server ends, and counts them."""

    def __init__(self, client, spec: TableSpec = LIMITED, batch_size: int = 8):
        self.taken, self.stop = 0, threading.Event()
        self.batches = iter(Sampler([client], spec, STRUCTURE, batch_size))
        self.thread = threading.Thread(target=self._take, daemon=True)  # may wait in C++ for ever
        self.thread.start()

    def _take(self) -> None:
        try:
            for _ in self.batches:
                self.taken += 1
        except Exception:  # the test is over, and its server stopped
            if not self.stop.is_set():
                raise


def within_buffer(client) -> bool:
    inserts, samples = counts(client)
    return abs(4 * (inserts - LIMITED.min_size) - samples) <= BUFFER


def test_an_actor_alone_stops_at_the_error_buffer_and_goes_on_once_its_items_are_sampled(serve):
    client = serve(table_of(LIMITED))
    actor = Actor(client)
    # On a busy machine the actor may also wait a while for its first items.
    until(lambda: actor.waits() and counts(client) == (MOST_INSERTS, 0), WAIT, "the actor waits at the error buffer")
    taker = Taker(client)
    until(lambda: counts(client)[0] > 3 * MOST_INSERTS, WAIT, "the actor goes on")
    actor.end()
    taker.stop.set()


def test_a_learner_waits_for_the_minimum_size_and_stops_at_the_error_buffer(serve):
    table = table_of(LIMITED)
    client = serve(table)
    write(client, [1.0] * (LIMITED.min_size - 1))
    assert not table.can_sample(1)
    taker = Taker(client, batch_size=1)
    write(client, [1.0], first=9)
    until(lambda: counts(client)[1] == BUFFER, WAIT, "the learner takes what it may")
    write(client, [1.0], first=10)
    until(lambda: counts(client)[1] == BUFFER + 4, WAIT, "and four more for another item")
    taker.stop.set()


def test_together_they_keep_to_the_ratio_and_both_go_on(serve):
    client = serve(table_of(LIMITED))
    actor, taker = Actor(client), Taker(client)
    seen = 0

    def far():
        nonlocal seen
        inserts, samples = counts(client)
        assert inserts < LIMITED.min_size or abs(4 * (inserts - LIMITED.min_size) - samples) <= BUFFER
        seen += 1
        return inserts > 1500 and samples > 6000

    until(far, WAIT, "1500 items are written and 6000 sampled")
    assert seen > 3
    assert size(client) == SPEC.max_size, "those that are removed count as inserted"
    actor.end()
    taker.stop.set()


DYING_ACTOR = """
import sys
from tests.replay.test_replay_tables import Actor, connect
actor = Actor(connect(sys.argv[1], 30))
actor.thread.join()
"""


def test_an_actor_that_is_killed_while_it_waits_holds_nobody_up(serve):
    client = serve(table_of(LIMITED))
    command = [sys.executable, "-c", DYING_ACTOR, client.server_address]
    with subprocess.Popen(command, cwd=ROOT) as process:
        try:
            # The actor's next items are at the server, which has not let them in.
            until(lambda: counts(client)[0] == MOST_INSERTS, WAIT, "an actor of another process fills the table")
        finally:
            process.send_signal(signal.SIGKILL)
    actor, taker = Actor(client), Taker(client)
    until(lambda: counts(client)[0] > 5 * MOST_INSERTS, WAIT, "another actor goes on")
    taken = taker.taken
    until(lambda: taker.taken > taken + 10, WAIT, "the learner goes on")
    assert within_buffer(client)
    actor.end()
    taker.stop.set()


def test_an_actor_whose_writer_is_dropped_holds_nobody_up(serve):
    client = serve(table_of(LIMITED))
    first = Actor(client)
    until(first.waits, WAIT, "the actor waits")
    first.end()
    del first.writer
    actor, taker = Actor(client), Taker(client)
    until(lambda: counts(client)[0] > 5 * MOST_INSERTS, WAIT, "another actor goes on")
    assert taker.taken > 0 and within_buffer(client)
    actor.end()
    taker.stop.set()


# Restarts -------------------------------------------------------------------------------------------------------------


class Restarts:
    """Serves a table that is saved in `path`: each call stops the server before, starts another, returns a client."""

    def __init__(self, path: pathlib.Path):
        self._path, self._server = path, None

    def __call__(self, spec: TableSpec = SPEC, structure: Structure = PACKING.structure):
        self.stop()
        # On a new port: on the old one, this process would reuse its connections to the server before.
        self._server = server.serve([server.build_table(spec, structure)], None, self._path)
        return connect(f"localhost:{self._server.port}", timeout=30)

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop()
        self._server = None


@pytest.fixture
def restart(tmp_path):
    restarts = Restarts(tmp_path / "replay_0")
    yield restarts
    restarts.stop()


def test_a_restart_brings_back_contents_priorities_and_counts(restart):
    client = restart()
    write(client, [1.0, 2.0, 3.0, 4.0, 5.0])
    before = contents(client, 5)
    update_priorities(client, "replay", np.array([before[0, 2].key], np.uint64), np.array([9.0]))
    expected = before | {(0, 2): Item(before[0, 2].key, 9.0)}
    server.save_tables(client)
    write(client, [1.0], first=5)  # too late to be saved
    client = restart()
    assert size(client) == counts(client)[0] == 5
    assert contents(client, 5) == expected
    drawn = draw([client], SPEC, 50, 4)
    np.testing.assert_allclose(drawn.likelihood, 5 * powers([1, 2, 9, 4, 5], 0.6)[drawn.names[:, 1]], rtol=1e-5)
    write(client, [7.0], first=6)
    assert counts(client)[0] == 6
    assert contents(client, 6) == expected | {(0, 6): contents(client, 6)[0, 6]}


def test_a_restart_keeps_to_the_ratio_of_before(restart):
    client = restart(LIMITED)
    actor = Actor(client, LIMITED)
    until(lambda: actor.waits() and counts(client)[0] == MOST_INSERTS, WAIT, "the actor waits at the error buffer")
    actor.end()
    within(WAIT, "the actor's writer to close", actor.writer.close)
    server.save_tables(client)
    client = restart(LIMITED)
    actor = Actor(client, LIMITED)
    until(actor.waits, WAIT, "the actor waits")
    assert counts(client)[0] == MOST_INSERTS == size(client), "no more than before the restart"
    taker = Taker(client)
    until(lambda: counts(client)[0] > 5 * MOST_INSERTS, WAIT, "both go on")
    assert within_buffer(client)
    actor.end()
    taker.stop.set()


OTHERS = {
    "smaller": (dataclasses.replace(SPEC, max_size=500), "replay's size is 1000, not 500"),
    "larger": (dataclasses.replace(SPEC, max_size=2000), "replay's size is 1000, not 2000"),
    "uniform": (dataclasses.replace(SPEC, kind="uniform"), "replay's sampler is prioritized"),
    "exponent": (
        dataclasses.replace(SPEC, priority_exponent=0.7),
        r"exponent: 0\.6 .*exponent: 0\.7",
    ),
    "ratio": (dataclasses.replace(SPEC, samples_per_insert=4.0), "samples per insert is 1, not 4"),
    "minimum": (dataclasses.replace(SPEC, min_size=7), "replay's minimum size is 1, not 7"),
    "name": (dataclasses.replace(SPEC, name="another"), "replay's size is 1000, not None"),
}
OTHER_STRUCTURES = {
    "longer": (
        Structure([np.zeros(7, np.float32), np.zeros(1, np.int32)]),
        r"float32\[6\], int32\[1\], not float32\[7\]",
    ),
    "bytes": (Structure([np.zeros(6, np.uint8), np.zeros(1, np.int32)]), r"float32\[6\], int32\[1\], not uint8\[6\]"),
    "fewer": (Structure([np.zeros(6, np.float32)]), r"float32\[6\], int32\[1\], not float32\[6\]\)"),
}


@pytest.mark.parametrize(
    ("spec", "structure", "reason"),
    [
        *((spec, PACKING.structure, reason) for spec, reason in OTHERS.values()),
        *((SPEC, structure, reason) for structure, reason in OTHER_STRUCTURES.values()),
    ],
    ids=[*OTHERS, *OTHER_STRUCTURES],
)
def test_the_checkpoint_of_other_tables_is_refused(restart, tmp_path, spec, structure, reason):
    """Reverb itself would silently restore the old table, whatever was asked for."""
    client = restart()
    for index in range(3):  # Reverb keeps its newest checkpoint alone
        write(client, [1.0], first=index)
        server.save_tables(client)
    with pytest.raises(ValueError, match=reason) as error:
        within(WAIT, "the server to be refused", restart, spec, structure)
    message = str(error.value)
    assert "\n" not in message and "remove the directory" in message
    assert message.startswith(f"{tmp_path / 'replay_0'} holds a replay saved with other settings")
    assert size(restart()) == 3, "and the checkpoint is still there for those it belongs to"


def test_other_tables_may_be_served_where_nothing_was_saved(restart):
    write(restart(), [1.0])
    for spec, _ in OTHERS.values():
        if spec.name == "replay":
            assert size(restart(spec)) == 0
    for structure, _ in OTHER_STRUCTURES.values():
        assert size(restart(SPEC, structure)) == 0


SERVER = """
import pathlib, sys
from tests.replay.test_replay_tables import SPEC, server, table_of
running = server.serve([table_of(SPEC)], int(sys.argv[1]), pathlib.Path(sys.argv[2]))
print(running.port, flush=True)
sys.stdin.read()  # until the test ends
"""


class Killed:
    """A server in a process of its own that can be killed and started again on the same port."""

    def __init__(self, path: pathlib.Path):
        self._path, self.port = path, 0

    def start(self) -> None:
        command = [sys.executable, "-c", SERVER, str(self.port), str(self._path)]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.port = int(within(120, "the replay server's process to start", self.process.stdout.readline))

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def killed(tmp_path):
    server_process = Killed(tmp_path / "replay_0")
    server_process.start()
    yield server_process
    server_process.kill()


def test_a_server_that_is_killed_holds_up_no_more_than_samples_and_all_goes_on_when_it_is_back(killed, caplog):
    client = connect(f"localhost:{killed.port}", 30)
    write(client, [1.0, 2.0])
    key = (np.array([contents(client, 2)[0, 1].key], np.uint64),)
    server.save_tables(client)
    taker = Taker(client, SPEC)
    until(lambda: taker.taken > 5, WAIT, "the learner samples")
    killed.kill()
    updater = updater_of([client], devices.make_mesh(), patience=0.1)
    for priority in range(3, 30):
        within(WAIT, "the learner to hand over priorities", updater, key, jnp.full(1, float(priority)))
    assert "priorities were lost: no replay server took any for 0.1 s" in caplog.text, "more than may wait"
    within(WAIT, "the updater to give up", updater.close, 0.2)
    assert "the last priorities were lost" in caplog.text
    killed.start()
    # 16 priorities waited, behind one that was already on its way.
    until(lambda: contents(client, 2)[0, 1].priority >= 18, WAIT, "the priorities that waited arrive")
    taken = taker.taken
    until(lambda: taker.taken > taken + 100, WAIT, "the learner samples again")
    write(client, [1.0], first=2)
    assert size(client) == 3
    taker.stop.set()
