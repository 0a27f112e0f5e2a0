"""Replays on the learner's devices: every item of every environment, from rows to what an update sees; which items are
lost where a ring wraps around; how often each is drawn; who waits; what a checkpoint brings back."""

import threading
from typing import Any

import jax
import numpy as np
import pytest
import scipy.stats

from agents.agent import Agent, Sample, Sequences, Stacks, Step, TableSpec, Transition, Transitions, Version
from replay import channels, sums
from replay.limiter import Limiter
from replay.ring_channel import RingChannel, RingWriter
from replay.rows import PULL_ITEMS, PULL_STEPS, Row, never
from replay.structures import Structure
from runtime import devices
from tests.replay import ring_drawing, told_sequences, told_stacks
from tests.replay.told_sequences import WINDOWS, Item, item_of, memory_before, sequences
from tests.replay.told_transitions import GAMMA, action_in, stream, tell, windows
from tests.runtime import several_devices
from tests.waiting import until, within

WAIT = 60.0
IMPLAUSIBLE = 1e-7  # the probability that a correct replay fails a chi-square test
NUMBER = np.zeros((), np.float32)
VECTORS = Structure(
    Transition(np.zeros(3, np.float32), np.zeros((), np.int32), NUMBER, NUMBER, np.zeros(3, np.float32))
)


def make_channel(
    items: Any, structure: Structure, num_envs: int, *, max_size: int = 10_000, priority: Any = None, **more: Any
) -> RingChannel:
    kind = "uniform" if priority is None else "prioritized"
    more = {"saved": None, "num_actors": 1, "batch_size": 16, "max_rows": 10**9, "table": {}} | more
    table = TableSpec("replay", items, kind, max_size, **more["table"])  # type: ignore[arg-type]
    agent = Agent(None, None, None, None, None, None, table, more["batch_size"], priority)
    return RingChannel(
        devices.make_mesh(), agent, table, structure, more["batch_size"], more["num_actors"], num_envs,
        more["max_rows"], more["saved"],
    )  # fmt: skip


def written_rows(channel: RingChannel, rows: int) -> int:
    """Returns how many of `rows` rows the writer has handed over: whole chunks."""
    return rows // channel.ring.chunk * channel.ring.chunk


def append(writer: RingWriter, step: Step, memory: Any = (), params: Any = None) -> bool:
    return within(WAIT, "a row to be written", writer.append, Row(step, memory, Version(0, 0), params))


def all_items(channel: RingChannel) -> tuple[Sample, np.ndarray, np.ndarray]:
    """Returns every item in the rings, its mass and its anchor."""
    masses = np.asarray(channel.masses.of_rows).reshape(-1)
    anchors = np.flatnonzero(masses).astype(np.int32)
    assert int(channel.masses.count[0]) == len(anchors), "they are counted rightly"
    assert float(sums.total(channel.masses.sums)) == pytest.approx(masses.sum(), rel=1e-5)
    sample = jax.tree.map(np.asarray, jax.jit(channel.ring.look)(channel.rows, anchors))
    return sample, masses[anchors], anchors


# Every item -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("num_envs", [1, 7, 40])
def test_every_transition_of_every_environment(n, num_envs):
    channel, rows = make_channel(Transitions(n, GAMMA), VECTORS, num_envs), 77
    writer = channel.writer(0, None, never)
    for step in stream(num_envs, rows):
        append(writer, step)
        channel.drain()
    expected = sorted(told for e in range(num_envs) for _, told in windows(e, written_rows(channel, rows), n))
    sample, masses, _ = all_items(channel)
    assert sorted(tell(sample.steps)) == expected and len(expected) > 30
    assert set(masses) == {1.0}
    assert channel.drain() == len(expected), "as the limiter counts them"


@pytest.mark.parametrize(("n", "stack", "num_envs"), [(1, 2, 3), (1, 4, 1), (3, 4, 6), (5, 2, 40)])
def test_every_transition_has_the_stacks_of_its_two_ends(n, stack, num_envs):
    channel, rows = make_channel(Stacks(n, GAMMA, stack), told_stacks.structure_of(stack, (2, 3)), num_envs), 77
    writer = channel.writer(0, None, never)
    for step in told_stacks.framed(num_envs, rows):
        append(writer, step)
    channel.drain()
    expected = [told for e in range(num_envs) for _, told in windows(e, written_rows(channel, rows), n)]
    transition = all_items(channel)[0].steps
    assert transition.observation.dtype == np.uint8 and transition.observation.shape[1:] == (stack, 2, 3)
    by_start = {(told.observation[0], told.action): told for told in expected}
    assert len(by_start) == len(expected) == len(transition.reward)
    for index in range(len(expected)):
        start = int(transition.observation[index, -1, 0, 0]), int(transition.action[index])
        told_stacks.check(transition, index, by_start.pop(start), stack)


def write_sequences(writer: RingWriter, num_envs: int, rows: int, params: Any = None) -> None:
    for row, step in enumerate(stream(num_envs, rows)):
        mine = Step(*step[:5], {"number": np.full(num_envs, row + 1, np.int32)})
        append(writer, mine, memory_before(row, range(num_envs)), params)


def numbered(sample: Sample, column: int, environments: np.ndarray) -> tuple[int, Item]:
    numbers = sample.steps.extras["number"][:, column].tolist()
    return int(environments[column]), tuple(number - 1 if number else None for number in numbers)


def check_sequence(sample: Sample, column: int, environment: int, item: Item) -> None:
    """Checks a sequence as those from Reverb are checked, except for the memory of one that opens with its episode. The
    rings give zeros for that memory, which the agent resets anyway."""
    opening = next(t for t, row in enumerate(item) if row is not None)
    if sample.steps.first[opening, column]:
        memory = jax.tree.map(lambda x: x[column : column + 1], sample.memory)
        assert not any(np.any(x) for x in jax.tree.leaves(memory)), "nothing of an episode before"
        told = jax.tree.map(lambda x: np.array(x), sample.memory)
        expected = memory_before(item[opening], [environment])
        for array, value in zip(jax.tree.leaves(told), jax.tree.leaves(expected), strict=True):
            array[column] = value[0]
        sample = sample._replace(memory=told)
    assert item_of(sample, column) == (environment, item)
    told_sequences.check(sample, column, environment, item)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("num_envs", [1, 7, 40])
def test_every_sequence_of_every_environment(window, num_envs):
    channel, rows = make_channel(window, told_sequences.structure_of(window), num_envs), 77
    write_sequences(channel.writer(0, None, never), num_envs, rows)
    channel.drain()
    sample, _, anchors = all_items(channel)
    expected = {(e, item) for e in range(num_envs) for item in sequences(e, written_rows(channel, rows), window)}
    assert len(anchors) == len(expected) == channel.drain()
    for column, environment in enumerate(anchors % num_envs):
        found = numbered(sample, column, anchors % num_envs)
        expected.remove(found)
        check_sequence(sample, column, int(environment), found[1])
    assert not expected


def test_several_actors_have_rings_of_their_own():
    channel = make_channel(Transitions(2, GAMMA), VECTORS, 2, num_actors=3)
    writers = [channel.writer(task, None, never) for task in range(3)]
    for task, rows in enumerate((64, 160, 96)):  # each at its own pace
        for step in stream(2 * 3, rows):
            mine = Step(*(x[2 * task : 2 * task + 2] for x in step[:5]), {})
            append(writers[task], mine)
        channel.drain()
    expected = [told for task, rows in enumerate((64, 160, 96)) for e in (2 * task, 2 * task + 1)
                for _, told in windows(e, rows, 2)]  # fmt: skip
    assert sorted(tell(all_items(channel)[0].steps)) == sorted(expected)


def test_new_items_get_their_priorities_by_the_parameters_that_acted():
    def priority(params, transition):
        return params["scale"] * (1.0 + transition.action)

    channel = make_channel(Transitions(3, GAMMA), VECTORS, 4, priority=priority, table={"priority_exponent": 1.0})
    writer = channel.writer(0, None, never)
    for row, step in enumerate(stream(4, 64)):
        append(writer, step, params={"scale": np.float32(1000 if row >= 32 else 1)})
    channel.drain()
    sample, masses, _ = all_items(channel)
    of_rows = {(told.observation[0], told.action): row for e in range(4) for row, told in windows(e, 64, 3)}
    for told, mass in zip(tell(sample.steps), masses, strict=True):
        completed = of_rows[told.observation[0], told.action]
        scale = 1000 if completed >= 32 else 1  # a chunk is judged by the parameters of its last row
        assert mass == pytest.approx(scale * (1.0 + told.action), rel=1e-6)


# The wrap -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("items", "num_envs"),
    [(Transitions(1, GAMMA), 1), (Transitions(5, GAMMA), 3), (Transitions(2, GAMMA), 40)],
)
@pytest.mark.parametrize("rows", [50, 64, 96, 160, 400])
def test_a_full_ring_has_the_newest_transitions_and_no_others(items, num_envs, rows):
    channel = make_channel(items, VECTORS, num_envs, max_size=30 * num_envs)
    writer = channel.writer(0, None, never)
    for step in stream(num_envs, rows):
        append(writer, step)
        channel.drain()
    written = written_rows(channel, rows)
    oldest = written - channel.ring.length
    expected = [told for e in range(num_envs) for _, told in windows(e, written, items.n)
                if told.action - action_in(e, 0) >= oldest]  # fmt: skip
    assert sorted(tell(all_items(channel)[0].steps)) == sorted(expected)
    if written > channel.ring.length:
        live = len({told.action for told in expected if told.observation[0] == 0})
        assert live < channel.ring.length and 30 <= channel.ring.length < written


@pytest.mark.parametrize("rows", [96, 400])
def test_a_full_ring_of_frames_shows_no_stack_that_lost_one(rows):
    n, stack, num_envs = 2, 4, 3
    channel = make_channel(Stacks(n, GAMMA, stack), told_stacks.structure_of(stack, (2, 3)), num_envs, max_size=90)
    writer = channel.writer(0, None, never)
    for step in told_stacks.framed(num_envs, rows):
        append(writer, step)
        channel.drain()
    written = written_rows(channel, rows)
    oldest = written - channel.ring.length + stack - 1
    expected = {(e, told.action): told for e in range(num_envs) for _, told in windows(e, written, n)
                if told.action - action_in(e, 0) >= oldest}  # fmt: skip
    transition = all_items(channel)[0].steps
    assert len(transition.reward) == len(expected)
    for index in range(len(expected)):
        start = int(transition.observation[index, -1, 0, 0]), int(transition.action[index])
        told_stacks.check(transition, index, expected.pop(start), stack)


@pytest.mark.parametrize("window", WINDOWS)
def test_a_full_ring_of_sequences_is_whole(window):
    num_envs, rows = 5, 500
    channel = make_channel(window, told_sequences.structure_of(window), num_envs, max_size=20 * num_envs)
    write_sequences(channel.writer(0, None, never), num_envs, rows)
    channel.drain()
    written = written_rows(channel, rows)
    oldest = written - channel.ring.length
    assert oldest > 0, "else nothing is lost"
    expected = {(e, item) for e in range(num_envs) for item in sequences(e, written, window)
                if item[window.burn_in] >= oldest + window.burn_in}  # fmt: skip
    sample, _, anchors = all_items(channel)
    assert len(anchors) == len(expected) > 0
    for column, environment in enumerate(anchors % num_envs):
        found = numbered(sample, column, anchors % num_envs)
        expected.remove(found)
        check_sequence(sample, column, int(environment), found[1])


@pytest.mark.parametrize(
    ("items", "period"),
    [(Transitions(2, GAMMA), PULL_ITEMS), (Stacks(2, GAMMA, 4), PULL_STEPS), (WINDOWS[0], PULL_STEPS)],
)
def test_an_actor_pulls_after_so_many_transitions(items, period):
    num_envs, made, pulls = 24, 0, 0
    if isinstance(items, Sequences):
        structure = told_sequences.structure_of(items)
        steps = [
            (Step(*step[:5], {"number": np.zeros(num_envs, np.int32)}), memory_before(row, range(num_envs)))
            for row, step in enumerate(stream(num_envs, 60))
        ]
    elif isinstance(items, Stacks):
        structure = told_stacks.structure_of(items.stack, (2, 3))
        steps = [(step, ()) for step in told_stacks.framed(num_envs, 60)]
    else:
        structure, steps = VECTORS, [(step, ()) for step in stream(num_envs, 60)]
    writer = make_channel(items, structure, num_envs).writer(0, None, never)
    for step, memory in steps:
        before, made = made, made + int(np.sum(~step.first))
        pull = append(writer, step, memory)
        assert pull == (before // period != made // period), f"{made} transitions"
        pulls += pull
    assert pulls >= 2


def test_rings_are_no_longer_than_a_run_can_fill():
    short = make_channel(Transitions(1, GAMMA), VECTORS, 4, max_size=1_000_000, max_rows=400)
    assert short.ring.length * 4 < 800


# How often ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[1, 4])
def drawn(request):
    report = several_devices.run("tests.replay.ring_drawing", request.param)
    assert {each["devices"] for each in report.values()} == {request.param}
    return report


@pytest.mark.parametrize("mapper", ["shard_map", "pmap"])
@pytest.mark.parametrize("kind", ring_drawing.KINDS)
def test_items_are_drawn_by_their_priorities_and_say_how_likely_that_was(drawn, mapper, kind):
    """Each device draws from its own environments; the likelihood is that of the mixture of all devices."""
    found = drawn[f"{mapper} {kind}"]
    shards, rows = found["devices"], ring_drawing.ROWS // 4 * 4 - 1  # the newest row has no successor yet
    share = ring_drawing.ENVIRONMENTS // shards
    environment, row = np.array(found["environment"], int), np.array(found["row"], int)
    of_device = np.arange(len(row)) // ring_drawing.SHARE % shards
    np.testing.assert_array_equal(environment // share, of_device, "devices by turns, each of its own")
    e, r = np.meshgrid(np.arange(ring_drawing.ENVIRONMENTS), np.arange(rows), indexing="ij")
    table = ring_drawing.KINDS[kind]
    weight = (2 * ring_drawing.priority_of(r, e)) ** 0.6 if kind != "uniform" else np.ones(e.shape)
    if "priority" in table:
        ranks = np.zeros(e.shape)
        for first in range(0, len(e), share):  # each device ranks its own
            order = sorted(
                (-weight[i, t], -t, -i) for i in range(first, first + share) for t in range(rows)
            )  # the heaviest first, and of equal ones the last in the rings first
            for rank, (_, t, i) in enumerate(order, 1):
                ranks[-i, -t] = rank
        weight = ranks**-0.6
    by_device = weight.reshape(shards, -1)
    u = table.get("uniform_fraction", 0.0)
    by_device = (1 - u) * by_device / by_device.sum(axis=1, keepdims=True) + u / (share * rows)
    probability = (by_device / shards).reshape(e.shape)
    np.testing.assert_allclose(found["likelihood"], e.size * probability[environment, row], rtol=1e-4)
    counts = np.zeros(e.shape)
    np.add.at(counts, (environment, row), 1)
    assert scipy.stats.chisquare(counts.ravel(), probability.ravel() * len(row)).pvalue > IMPLAUSIBLE
    others = [] if kind == "uniform" else [probability.ravel()[::-1]]
    if u:
        others = [(weight / weight.sum()).ravel(), np.full(e.size, 1 / e.size)]
    for other in others:
        ratio = np.sum(counts.ravel() * np.log(probability.ravel() / other))
        assert ratio > -np.log(IMPLAUSIBLE), "draws tell the law from others"


@pytest.mark.parametrize("exponent", [0.6, 1.0])
def test_new_priorities_decide_what_is_drawn(exponent):
    mesh = devices.make_mesh()
    channel = ring_drawing.make_channel(mesh, "prioritized", exponent)
    ring_drawing.write(channel)
    anchors = all_items(channel)[2]
    rng = np.random.default_rng(0)
    priorities = rng.uniform(0.0, 9.0, len(anchors)).astype(np.float32)
    priorities[:3] = np.nan, np.inf, 0.0
    before = all_items(channel)[1]
    reprioritize = mesh.compile(
        channel.reprioritize, (channel.specs[1], mesh.ROWS, mesh.ROWS), channel.specs[1], donate_argnums=(0,)
    )
    channel.masses = reprioritize(channel.masses, mesh.put(anchors, mesh.ROWS), mesh.put(priorities, mesh.ROWS))
    masses = all_items(channel)[1].astype(np.float64)  # SciPy insists on equal sums
    np.testing.assert_allclose(masses[3:], priorities[3:] ** exponent, rtol=1e-5)
    np.testing.assert_array_equal(masses[:2], before[:2], "one that is not finite leaves the old one")
    _, drawn = jax.jit(
        lambda key: (0, sums.sample(channel.masses.of_rows.reshape(-1), channel.masses.sums, key, 30_000))
    )(jax.random.key(1))
    counts = np.bincount(np.searchsorted(anchors, drawn), minlength=len(anchors))
    assert counts[2] == 0, "of priority 0"
    likely = masses > 1e-20
    assert scipy.stats.chisquare(counts[likely], masses[likely] / masses[likely].sum() * 30_000).pvalue > IMPLAUSIBLE


def test_ranks_are_among_priorities_as_they_were_until_all_are_ranked_anew():
    """A checkpoint holds priorities, from which the ranks are computed again."""
    mesh, alpha, rng = devices.make_mesh(), 0.7, np.random.default_rng(0)
    channel = ring_drawing.make_channel(mesh, "ranked and mixed", alpha)
    ring_drawing.write(channel)
    batches = channel.batches()
    next(batches)
    anchors = all_items(channel)[2]
    number, places = len(anchors), channel.ring.anchors
    before = np.asarray(channel.masses.ranks.priorities).reshape(-1)[anchors]
    reprioritize = mesh.compile(
        channel.reprioritize, (channel.specs[1], mesh.ROWS, mesh.ROWS), channel.specs[1], donate_argnums=(0,)
    )

    def set_all(priorities):
        channel.masses = reprioritize(channel.masses, mesh.put(anchors, mesh.ROWS), mesh.put(priorities, mesh.ROWS))

    after = rng.permutation(number).astype(np.float32)
    after[:2] = np.nan, np.inf
    set_all(after)
    after[:2] = before[:2]  # a priority that is not finite leaves the old one
    after = np.maximum(after, np.float32(1e-30))  # an item of priority 0 remains an item
    greater = (before > after[:, None]).sum(axis=1)
    np.testing.assert_allclose(all_items(channel)[1], (1.0 + greater) ** -alpha, rtol=1e-5)
    next(batches)
    np.testing.assert_allclose(
        all_items(channel)[1], (1.0 + greater) ** -alpha, rtol=1e-5, err_msg="it is not time yet"
    )
    again = ring_drawing.make_channel(mesh, "ranked and mixed", alpha, jax.tree.map(np.array, channel.state()))
    for _ in range(places // ring_drawing.SHARE + 1):
        next(batches)
    order = np.lexsort((np.arange(number), after))[::-1]  # of equal ones the last in the rings first
    masses = np.zeros(number)
    masses[order] = np.arange(1.0, number + 1) ** -alpha
    for each in (channel, again):
        np.testing.assert_allclose(all_items(each)[1], masses, rtol=1e-5)
        np.testing.assert_array_equal(np.asarray(each.masses.ranks.priorities).reshape(-1)[anchors], after)
        assert float(sums.total(each.masses.counts)) == number
    jax.tree.map(np.testing.assert_array_equal, channel.masses, again.masses)
    ring_drawing.write(channel, 2 * channel.ring.length)  # every row is written over
    assert float(sums.total(channel.masses.counts)) == int(channel.masses.count[0]) == len(all_items(channel)[2])
    assert np.all((np.asarray(channel.masses.ranks.priorities) > 0) == (np.asarray(channel.masses.of_rows) > 0))


def test_a_table_without_ranks_and_mixture_keeps_nothing_for_them():
    masses = ring_drawing.make_channel(devices.make_mesh(), "prioritized").masses
    assert masses.counts == masses.ranks == ()


@pytest.mark.parametrize("size", [16, 48, 4096, 100_000])
def test_a_tree_of_sums_never_draws_nothing(size):
    """The masses are few among zeros, and far apart in size. After updates the sums must still be right."""
    rng = np.random.default_rng(size)
    masses = np.zeros(size, np.float32)
    there = rng.choice(size, max(2, size // 50), replace=False)
    masses[there] = 10.0 ** rng.uniform(-6, 6, len(there))
    levels = jax.jit(sums.build)(masses)
    drawn = np.asarray(jax.jit(lambda m, s, k: sums.sample(m, s, k, 20_000))(masses, levels, jax.random.key(0)))
    assert np.all(masses[drawn] > 0)
    changed = rng.choice(size, 12).astype(np.int32)
    changed[0] = size  # beyond the end: passed over
    masses[changed[1:]] = rng.uniform(0, 5, 11)
    updated = jax.jit(sums.update)(masses, levels, changed)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), updated, jax.jit(sums.build)(masses))


# Who waits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0.25, 1.0, 8.0])
@pytest.mark.parametrize("min_size", [1, 100])
def test_neither_side_is_further_ahead_than_the_buffer_and_one_is_always_free(ratio, min_size):
    batch, chunk = 64, 32
    spec = TableSpec("replay", Transitions(1, 0.9), "uniform", 10_000, min_size=min_size, samples_per_insert=ratio)
    for first in ("insert", "sample"):
        limiter = Limiter(spec, batch, chunk)
        for _ in range(400):
            insert, sample = limiter.may_insert(), limiter.may_sample(batch)
            assert insert or sample
            if insert and (first == "insert" or not sample):
                limiter.inserted += chunk
            else:
                limiter.sampled += batch
            assert limiter.sampled == 0 or limiter.inserted >= min_size
        owed = (limiter.inserted - min_size) * ratio - limiter.sampled
        assert abs(owed) <= 2 * max(32, 0.1 * min_size, batch, chunk) * max(1.0, ratio) + batch


def test_an_actor_waits_for_samples_until_it_is_stopped_and_a_learner_for_items():
    channel = make_channel(
        Transitions(1, GAMMA), VECTORS, 4, table={"min_size": 40, "samples_per_insert": 4.0}, batch_size=8
    )
    stop = threading.Event()
    writer, rows = channel.writer(0, None, stop.is_set), []

    def act():
        for step in stream(4, 100_000):
            writer.append(Row(step, (), Version(0, 0), None))
            rows.append(1)
            if stop.is_set():
                return

    actor = threading.Thread(target=act, daemon=True)
    batches = channel.batches()
    actor.start()
    first = within(WAIT, "a batch", next, batches)
    assert channel.drain() >= 40 and first.sample is None
    counted = first.env_steps
    for _ in range(200):
        counted += within(WAIT, "a batch", next, batches).env_steps
    until(lambda: not channel._limiter.may_insert(), WAIT, "the actor is as far ahead as it may be")
    before = len(rows)
    actor.join(1.0)
    assert actor.is_alive() and len(rows) - before <= channel.ring.chunk, "it waits"
    sampled = 201 * 8
    assert abs((channel.drain() - 40) * 4 - sampled) <= 3 * channel._limiter._buffer
    stop.set()
    within(WAIT, "the actor to end", actor.join)
    channel.stopped = stop.is_set
    assert within(WAIT, "the learner to end", lambda: next(batches, None)) is None


@pytest.mark.parametrize("ratio", [0.0, 0.5, 8.0])
def test_in_one_thread_actors_take_turns_as_the_ratio_says_and_without_one_a_turn_for_each_batch(ratio):
    table = {"min_size": 20, "samples_per_insert": ratio}
    channel = make_channel(Transitions(1, GAMMA), VECTORS, 4, table=table, batch_size=8)
    writer, rows, turns = channel.writer(0, None, never), stream(4, 10_000), []

    def turn():
        assert not ratio or channel.count() <= 20 or not channel._limiter.may_sample(8), "a batch is due"
        turns.append(channel.count())
        for _ in range(5):
            writer.append(Row(next(rows), (), Version(0, 0), None))

    channel.turn, batches, counts = turn, channel.batches(), []
    for _ in range(200):
        within(WAIT, "a batch", next, batches)
        counts.append(len(turns))
    assert counts[0] > 0 and turns[-1] > 20, "actors had turns later too"
    if ratio:
        assert 0 in np.diff(counts), "some batches are drawn without a turn"
    else:
        assert set(np.diff(counts)) == {1}


def test_environment_steps_are_transitions_made():
    channel, num_envs, rows = make_channel(Transitions(1, GAMMA), VECTORS, 4), 4, 64
    writer = channel.writer(0, None, never)
    for step in stream(num_envs, rows):
        append(writer, step)
    batches = channel.batches()
    steps = [within(WAIT, "a batch", next, batches).env_steps for _ in range(3)]
    live = sum(not step.first[e] for step in stream(num_envs, rows) for e in range(num_envs))
    assert steps == [live, 0, 0]


# Checkpoints ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [32, 200])
def test_what_was_saved_comes_back_and_goes_on(rows):
    window, num_envs = Sequences(2, 4, 2), 5
    structure = told_sequences.structure_of(window)
    channel = make_channel(window, structure, num_envs, max_size=200)
    write_sequences(channel.writer(0, None, never), num_envs, rows)
    saved = jax.tree.map(np.array, channel.state())
    again = make_channel(window, structure, num_envs, max_size=200, saved=saved)
    one, other = all_items(channel), all_items(again)
    jax.tree.map(np.testing.assert_array_equal, one, other)
    assert channel.drain() == again.drain() and again._limiter.sampled == channel._limiter.sampled
    # A new sitting's environments start anew, so the last episode before it was cut short and is over.
    write_sequences(again.writer(0, None, never), num_envs, 64)
    again.drain()
    sample, _, anchors = all_items(again)
    new = {(e, item) for e in range(num_envs) for item in sequences(e, written_rows(again, 64), window)}
    found = [numbered(sample, column, anchors % num_envs) for column in range(len(anchors))]
    assert new <= set(found)
    for column, (environment, item) in enumerate(found):
        if (environment, item) in new and 0 in item:  # only those of the new sitting have its first row first
            check_sequence(sample, column, environment, item)


def test_a_longer_run_keeps_a_shorter_ones_replay():
    channel = make_channel(Transitions(2, GAMMA), VECTORS, 4, max_rows=256)
    writer = channel.writer(0, None, never)
    for step in stream(4, 64):
        append(writer, step)
    saved = jax.tree.map(np.array, channel.state())
    longer = make_channel(Transitions(2, GAMMA), VECTORS, 4, max_rows=4096, saved=saved)
    assert longer.ring.length > channel.ring.length
    assert sorted(tell(all_items(longer)[0].steps)) == sorted(tell(all_items(channel)[0].steps))
    shorter = make_channel(Transitions(2, GAMMA), VECTORS, 4, max_rows=64, saved=saved)
    assert shorter.ring.length == channel.ring.length
    assert sorted(tell(all_items(shorter)[0].steps)) == sorted(tell(all_items(channel)[0].steps))


def test_environments_that_do_not_divide_over_the_devices_are_refused():
    table = TableSpec("replay", Transitions(1, GAMMA), "uniform", 100)
    from replay.rings import Ring

    with pytest.raises(ValueError, match="--envs_per_actor=6 must be a multiple of 4"):
        Ring(table, channels.way(table).ring(table, VECTORS), 1, 6, 4, 1000)


@pytest.mark.parametrize("rows", [64, 320])
@pytest.mark.parametrize("items", [Transitions(3, GAMMA), *WINDOWS[:2]])
def test_a_resumed_replay_is_as_it_would_be_without_the_stop(items, rows):
    """The environments of a new sitting begin anew, which ends the episodes of the one before. The rings are not full
    after 64 rows, and have been written over after 320."""
    num_envs = 4
    structure = VECTORS if isinstance(items, Transitions) else told_sequences.structure_of(items)

    def play(writer, count):
        if isinstance(items, Sequences):
            write_sequences(writer, num_envs, count)
            return
        for step in stream(num_envs, count):
            append(writer, step)

    def draw(channel, count):
        batches = channel.batches()
        for _ in range(count):
            within(WAIT, "a batch", next, batches)

    straight = make_channel(items, structure, num_envs, max_size=200)
    writer = straight.writer(0, None, never)
    play(writer, rows)
    draw(straight, 3)
    saved = jax.tree.map(np.array, straight.state())
    resumed = make_channel(items, structure, num_envs, max_size=200, saved=saved)
    jax.tree.map(np.testing.assert_array_equal, resumed.state(), saved)
    for channel, each in ((straight, writer), (resumed, resumed.writer(0, None, never))):
        play(each, 48)
        draw(channel, 2)
    expected, found = straight.state(), resumed.state()
    assert expected["counts"].tolist() == [straight.count(), 5 * 16]
    assert expected.keys() == found.keys()
    for name in expected:
        jax.tree.map(np.testing.assert_array_equal, expected[name], found[name])
    jax.tree.map(np.testing.assert_array_equal, all_items(straight), all_items(resumed))
    assert straight._limiter.owed() == resumed._limiter.owed()
