"""n-step transitions, from the environment through the actor, the writer and a real Reverb server to the learner's
batch, are compared with a loop over one environment at a time in plain notation."""

import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.agent import Agent, Step, TableSpec, Transition, Transitions, Version
from environments.counting import CountingEnvironment
from replay import reverb_carrier, sampler, server
from replay.channels import item_structure, way
from replay.rows import PULL_ITEMS, ReplayUnavailable, Row, never
from replay.sampler import Replay as Sampler
from replay.structures import Packing, Structure, params_structure
from replay.transitions import LOCAL_ITEMS, NStep, TransitionWriter
from replay.variables import VariableContainer
from runtime import actor
from tests.counting_rows import first_rows
from tests.replay.told_transitions import GAMMA, Told, action_in, stream, tell, windows
from tests.waiting import until, within

WAIT = 60.0


def test_the_windows_of_an_environment_told_by_hand():
    """Environment 0: an episode of 1 action that terminates, one of 3 that is truncated, one of 5 that terminates."""
    n_step = NStep(Transitions(3, GAMMA))
    completed = [[t for part in n_step.append(step) for t in tell(part)] for step in stream(1, 13)]
    told = {row: [(t.observation[1:], t.reward, t.discount, t.next_observation[1:]) for t in done]
            for row, done in enumerate(completed) if done}  # fmt: skip
    assert told == {
        2: [((0, 0), 1.0, 0.0, (0, 1))],
        5: [((1, 0), 11 + 12 / 2 + 13 / 4, 1 / 8, (1, 3))],  # truncated: bootstraps from its last observation
        6: [((1, 1), 12 + 13 / 2, 1 / 4, (1, 3)), ((1, 2), 13.0, 1 / 2, (1, 3))],
        9: [((2, 0), 21 + 22 / 2 + 23 / 4, 1 / 8, (2, 3))],
        10: [((2, 1), 22 + 23 / 2 + 24 / 4, 1 / 8, (2, 4))],
        11: [((2, 2), 23 + 24 / 2 + 25 / 4, 0.0, (2, 5))],
        12: [((2, 3), 24 + 25 / 2, 0.0, (2, 5)), ((2, 4), 25.0, 0.0, (2, 5))],
    }


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("num_envs", [1, 2, 7])
def test_every_window_of_every_environment_as_soon_as_it_is_complete(n, num_envs):
    rows, n_step = 45, NStep(Transitions(n, GAMMA))
    completed = [n_step.append(step) for step in stream(num_envs, rows)]  # compared below: none may change later
    for environment in range(num_envs):
        got = [
            (row, told)
            for row, parts in enumerate(completed)
            for part in parts
            for told in tell(part)
            if told.observation[0] == environment
        ]
        assert got == windows(environment, rows, n)
        for _, told in got:
            assert told.next_observation[:2] == told.observation[:2], "of one episode"
            assert 1 <= told.next_observation[2] - told.observation[2] <= n
        starts = [told.observation for _, told in got]
        live = [row.observation for row in first_rows(environment, rows - n - 1) if not row.last]
        assert starts[: len(live)] == live, "one from each live row, none from a dead one"
        assert len(set(starts)) == len(starts)
    batches = [part for parts in completed for part in parts]
    assert all(len(part.reward) > 0 for part in batches), "no empty batches"


def test_episodes_that_all_end_at_once():
    """Two copies of an environment have all their windows closed by the same row, and none is lost."""

    def twice(x):
        return np.concatenate([x, x])

    n_step = NStep(Transitions(3, GAMMA))
    steps = [Step(*map(twice, step[:5]), {}) for step in stream(1, 30)]
    got = [told for step in steps for part in n_step.append(step) for told in tell(part)]
    assert got[0] == got[1]
    assert sorted(got) == sorted(2 * [told for _, told in windows(0, 30, 3)])


def test_transitions_keep_shapes_and_dtypes_and_round_as_float32_does():
    rng = np.random.default_rng(0)

    def step(first):
        return Step(
            rng.integers(0, 255, (2, 4, 5), np.uint8),
            rng.normal(size=(2, 3)).astype(np.float32),
            rng.normal(size=2).astype(np.float32),
            np.ones(2, np.float32),
            np.array([first, False]),
            {},
        )

    n_step, steps = NStep(Transitions(2, 0.99)), [step(True), step(False), step(False)]
    *nothing, (transition,) = [n_step.append(s) for s in steps]
    assert nothing == [[], []]
    assert [(x.shape, x.dtype) for x in transition] == [
        ((2, 4, 5), np.uint8),
        ((2, 3), np.float32),
        *[((2,), np.float32)] * 2,
        ((2, 4, 5), np.uint8),
    ]
    np.testing.assert_array_equal(transition.observation, steps[0].observation)
    np.testing.assert_array_equal(transition.action, steps[0].action)
    np.testing.assert_array_equal(transition.next_observation, steps[2].observation)
    np.testing.assert_allclose(transition.reward, steps[0].reward + 0.99 * steps[1].reward, rtol=1e-6)
    np.testing.assert_allclose(transition.discount, 0.99**2, rtol=1e-6)


# The whole path ------------------------------------------------------------------------------------------------------


class Counted(CountingEnvironment):
    """Counting-v0 that knows how many rows it has shown."""

    rows = 1  # the reset's

    def _step(self, action, resets):
        self.rows += 1
        return super()._step(action, resets)


def row_agent(window: Transitions, kind: str = "uniform") -> Agent:
    """Returns an agent whose action tells the environment and the row. A new item's priority is the parameter times 1 +
    the action."""

    def act(params, key, timestep, memory):
        environment = timestep.observation[:, 0].astype(jnp.int32)
        return action_in(environment, memory), {}, memory + 1

    def priority(params, transition):
        return params["scale"] * (1.0 + transition.action)

    return Agent(
        init=lambda key: {"scale": jnp.float32(0)},
        policy=lambda state: state,
        memory=lambda num_envs, ranks: jnp.zeros(num_envs, jnp.int32),
        act=act,
        act_greedily=act,
        update=lambda state, key, sample: (state, None),
        table=TableSpec("replay", window, kind, max_size=10_000),
        batch_size=16,
        priority=priority,
    )


class Path:
    """A path of real parts from the environment to the sampler."""

    def __init__(self, serve, n: int, num_envs: int, kind: str = "uniform"):
        self.n, self.num_envs = n, num_envs
        self.agent = row_agent(Transitions(n, GAMMA), kind)
        self.table = self.agent.table
        self.environment = Counted(num_envs)
        self.structure = item_structure(self.agent, self.environment.spec, num_envs)
        params = params_structure(self.agent)
        packed = Packing(self.structure).structure
        self.client = serve(server.build_table(self.table, packed), server.build_variables_table(params))
        self.variables = VariableContainer(self.client, params)
        self.push(1.0)
        device = jax.devices()[0]
        at_once = way(self.table).items_at_once(self.table, num_envs)
        priority = actor.compile_priority(self.agent.priority, at_once, device)
        self.writer = way(self.table).writer(self.client, self.table, self.structure, priority, never)
        assert isinstance(self.writer, TransitionWriter)
        self.actor = actor.run(
            self.agent,
            actor.compile_act(self.agent.act, device),
            self.environment,
            self.variables,
            self.writer,
            jax.random.key(0),
            device,
        )

    def push(self, scale: float) -> None:
        self.variables.push(Version(int(scale), 0), {"scale": np.float32(scale)})

    def size(self) -> int:
        return self.client.server_info()[self.table.name].current_size

    def write(self) -> None:
        """Lets the actor act until it would pull again."""
        within(WAIT, "the actor to write items", next, self.actor)

    def expected(self) -> list[Told]:
        """Returns all that belongs into the table. The actor's last row is written only with its next action, and the
        newest transitions wait until there are LOCAL_ITEMS of them."""

        def place(window: tuple[int, Told]) -> tuple:
            """Returns a sort key for the writer's order: by row, windows cut short by an end first, oldest first."""
            row, told = window
            whole = told.next_observation[2] - told.observation[2] == self.n
            return row, whole, told.action - action_in(told.observation[0], 0), told.observation[0]

        rows = self.environment.rows - 1
        done = sorted((w for e in range(self.num_envs) for w in windows(e, rows, self.n)), key=place)
        return [told for _, told in done[: len(done) // LOCAL_ITEMS * LOCAL_ITEMS]]

    def wait(self) -> None:
        """Returns once the items that were on their way are there."""
        count = len(self.expected())
        until(lambda: self.size() >= count, WAIT, f"the table holds {count} items")
        assert self.size() == count


@pytest.mark.parametrize(("n", "num_envs"), [(1, 3), (2, 1), (3, 7), (5, 4)])
def test_what_is_sampled_is_what_happened(serve, n, num_envs):
    path = Path(serve, n, num_envs)
    for _ in range(3):
        path.write()
    path.wait()
    expected = path.expected()
    assert {told.discount for told in expected} == {0.0, *(GAMMA**k for k in range(1, n + 1))}, "all kinds occur"
    batches = iter(Sampler([path.client], path.table, path.structure, 16))
    told_of_key: dict[int, Told] = {}
    for _ in range(1000):  # each batch leaves out any one item with a probability of about 0.86
        batch = within(WAIT, "a batch", next, batches)
        assert batch.sample.steps.observation.shape == (16, 3) and batch.sample.steps.action.dtype == np.int32
        for key, told in zip(batch.keys[0].tolist(), tell(batch.sample.steps), strict=True):
            assert told_of_key.setdefault(key, told) == told, "an item does not change"
        if len(told_of_key) == len(expected):
            break
    assert sorted(told_of_key.values()) == sorted(expected)


def test_the_actor_pulls_after_so_many_items_and_new_items_have_the_priorities_of_its_parameters(serve):
    path = Path(serve, 3, 4, "prioritized")
    path.write()
    first = len(path.expected())
    assert PULL_ITEMS <= first < PULL_ITEMS + LOCAL_ITEMS, "the row that completed the items ends the turn"
    path.push(1000.0)
    path.write()
    path.wait()
    assert 2 * PULL_ITEMS <= len(path.expected()) < 2 * PULL_ITEMS + LOCAL_ITEMS
    by_action: dict[int, float] = {}
    for _ in range(300):
        samples = within(WAIT, "samples", list, path.client.sample("replay", 200, emit_timesteps=False))
        for sample in samples:
            (told,) = tell(Packing(path.structure).unpack([np.asarray(column)[None] for column in sample.data]))
            by_action[told.action] = sample.info.priority
        # The items of the second turn hide those of the first, which have a thousandth of their weight.
        if sum(priority >= 1000 for priority in by_action.values()) == path.size() - first:
            break
    scales = {action: priority / (1 + action) for action, priority in by_action.items()}
    assert set(scales.values()) <= {1.0, 1000.0}
    assert sum(scale == 1000 for scale in scales.values()) == len(path.expected()) - first


def test_frames_and_vectors_survive_the_table(serve):
    rng, window = np.random.default_rng(3), Transitions(1, GAMMA)
    number = np.zeros((), np.float32)
    frame = np.zeros((5, 4), np.uint8)
    structure = Structure(Transition(frame, np.zeros(3, np.float32), number, number, frame))
    table = TableSpec("replay", window, "uniform", 100)
    client = serve(server.build_table(table, Packing(structure).structure))
    writer = TransitionWriter(client, table, structure)
    steps = [
        Step(
            rng.integers(0, 255, (2, 5, 4), np.uint8),
            rng.normal(size=(2, 3)).astype(np.float32),
            np.array([2 * row, 2 * row + 1], np.float32),
            np.ones(2, np.float32),
            np.full(2, row == 0),
            {},
        )
        for row in range(1 + LOCAL_ITEMS // 2)
    ]
    for step in steps:
        within(WAIT, "a row to be written", writer.append, Row(step, (), Version(0, 0)))
    until(lambda: client.server_info()["replay"].current_size == LOCAL_ITEMS, WAIT, "the table holds all items")
    batches = iter(Sampler([client], table, structure, 32))
    seen = set()
    for _ in range(100):
        transition = within(WAIT, "a batch", next, batches).sample.steps
        for index, reward in enumerate(transition.reward.astype(int).tolist()):
            row, environment = divmod(reward, 2)
            np.testing.assert_array_equal(transition.observation[index], steps[row].observation[environment])
            np.testing.assert_array_equal(transition.action[index], steps[row].action[environment])
            np.testing.assert_array_equal(transition.next_observation[index], steps[row + 1].observation[environment])
            seen.add(reward)
        if len(seen) == LOCAL_ITEMS:
            break
    assert seen == set(range(LOCAL_ITEMS))
    assert transition.observation.dtype == np.uint8 and transition.action.dtype == np.float32


def test_new_experience_is_counted_in_items_of_all_servers(serve):
    """`env_steps` of the batches add up to what was written since the sampler was made."""
    expected = 16
    structure = Structure(np.zeros(1, np.float32))
    table = TableSpec("replay", Transitions(1, GAMMA), "uniform", 100)
    clients = [serve(server.build_table(table, Packing(structure).structure)) for _ in range(2)]
    writers = [client.trajectory_writer(1) for client in clients]

    def write(count):
        for writer, _ in itertools.product(writers, range(count)):
            writer.append([np.zeros(1, np.float32)])
            writer.create_item("replay", 1.0, [writer.history[0][-1]])
        for writer in writers:
            writer.flush()

    write(5)
    batches = iter(Sampler(clients, table, structure, 4))
    write(expected // 2)
    counted = [0]

    def all_counted():
        batch = within(WAIT, "a batch", next, batches)
        assert batch.env_steps >= 0
        counted.append(counted[-1] + batch.env_steps)
        return counted[-1] >= expected

    until(all_counted, WAIT, f"{expected} steps are counted")
    assert counted[-1] == expected


@pytest.mark.parametrize("seed", range(5))
def test_a_server_that_comes_back_with_less_takes_nothing_from_the_count(seed, monkeypatch):
    """A server that was restarted goes on from the count of its checkpoint; one that is down is counted later."""
    rng, asked, numbers = np.random.default_rng(seed), [], [5, 9]

    def ask(client):
        asked.append(client)
        if numbers[client] is None:
            raise ReplayUnavailable("it is down")
        stats = SimpleNamespace(insert_stats=SimpleNamespace(completed=numbers[client]))
        return {"replay": SimpleNamespace(rate_limiter_info=stats)}

    monkeypatch.setattr(sampler, "ask_tables", ask)
    table = TableSpec("replay", Transitions(1, GAMMA), "uniform", 100)
    replay = Sampler([0, 1], table, Structure(np.zeros(1, np.float32)), 4)
    known = list(numbers)
    for _ in range(40):
        expected = 0
        for index in (0, 1):
            down = rng.random() < 0.2
            numbers[index] = None if down else max(0, known[index] + int(rng.integers(-5, 12)))
            if not down:
                expected += max(0, numbers[index] - known[index])
                known[index] = numbers[index]
        assert replay._count_new() == expected
    assert set(asked) == {0, 1}


def test_the_items_of_all_servers_that_answer_are_counted(monkeypatch):
    sizes = {0: 7, 1: None, 2: 30}

    def ask(client, seconds):
        if sizes[client] is None:
            raise ReplayUnavailable("it is down")
        return {"replay": SimpleNamespace(current_size=sizes[client]), "other": SimpleNamespace(current_size=1000)}

    monkeypatch.setattr(reverb_carrier, "ask_tables", ask)
    table = TableSpec("replay", Transitions(1, GAMMA), "uniform", 100)
    channel = reverb_carrier.TableChannel([0, 1, 2], table, Structure(np.zeros(1, np.float32)), 6)
    assert channel.count() == 37
    sizes[1] = 4
    assert channel.count() == 41


@pytest.mark.parametrize("servers", [1, 2, 3])
def test_actors_write_to_the_servers_by_turns(servers, monkeypatch):
    table = TableSpec("replay", Transitions(1, GAMMA), "uniform", 100)
    channel = reverb_carrier.TableChannel([f"server {k}" for k in range(servers)], table, None, 6)
    fake = SimpleNamespace(writer=lambda client, *_: client)
    monkeypatch.setattr(reverb_carrier, "way", lambda _: fake)
    used = [channel.writer(task, None, never) for task in range(7)]
    assert used == [f"server {task % servers}" for task in range(7)]
