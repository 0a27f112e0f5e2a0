"""Members of a population that look at each other through a real Reverb server; their learners are played here."""

import math
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from agents import pbt
from agents.agent import Version
from agents.pbt import Range
from environments.environment import Episodes
from replay import server
from replay.client import connect
from replay.variables import VariableContainer
from runtime import metrics
from runtime.learner import NotFinite
from runtime.population import COPIED, Exchange, Population, Returns, state_structure, told_structure

RANGES = {"learning_rate": Range("log", 1e-5, 1e-2)}


class Hypers(NamedTuple):
    learning_rate: Any
    discount: Any


class State(NamedTuple):
    params: Any
    opt_state: Any
    hypers: Hypers
    step: Any


def state_of(number: int) -> State:
    generator = np.random.default_rng(number)
    return State(
        {"kernel": generator.normal(size=(3, 2)).astype(np.float32)},
        (generator.normal(size=4).astype(np.float32), np.int32(number)),
        Hypers(np.float32(1e-3 * (number + 1)), np.float32(0.9)),
        np.int32(10 * number),
    )


class Learner:
    """A stand-in for a learner that has what an exchange uses of it."""

    def __init__(self, state: State, env_steps: int = 0):
        self.state, self.version, self.replaced = state, Version(env_steps // 10, env_steps), 0

    def host_state(self) -> State:
        return self.state

    def replace(self, state: State) -> None:
        self.state, self.replaced = state, self.replaced + 1

    def advance(self, env_steps: int) -> None:
        self.version = Version(env_steps // 10, env_steps)


def population(size, member, logdir, **changes) -> Population:
    each = Population(size, member, RANGES, "truncation", "perturb", 100, 4, ("actor_0",), 1, logdir)
    return each._replace(**changes)


@pytest.fixture
def members(tmp_path):
    """members(size) -> (learners, exchanges, returns, a function that makes member m's exchange anew) of separate
    members that share a server."""
    servers = []

    def make(size: int, **changes):
        each = [population(size, m, tmp_path, **changes) for m in range(size)]
        states, returns = state_structure(state_of(0)), told_structure(each[0])
        tables = [server.build_variables_table(states, f"state_{m}") for m in range(size)]
        tables += [server.build_variables_table(returns, f"returns_{m}") for m in range(size)]
        tables += [server.build_variables_table(COPIED, f"copied_{m}") for m in range(size)]
        servers.append(server.serve(tables, None, None))
        client = connect(f"localhost:{servers[-1].port}", 30)
        state_containers = [VariableContainer(client, states, f"state_{m}") for m in range(size)]
        copied = [VariableContainer(client, COPIED, f"copied_{m}") for m in range(size)]
        returns_containers = [[VariableContainer(client, returns, f"returns_{m}")] for m in range(size)]

        def exchange(m):
            return Exchange(each[m], returns_containers, state_containers, copied, jax.random.key(m), 0)

        learners = [Learner(state_of(m)) for m in range(size)]
        reports = [Returns(each[m], returns_containers[m][0]) for m in range(size)]
        return learners, [exchange(m) for m in range(size)], reports, exchange

    yield make
    for each in servers:
        each.stop()


def report(returns: Returns, *values: float, env_steps: int = 0) -> None:
    """Reports episodes that ended while parameters of `env_steps` acted."""
    returns.add(Version(0, env_steps), Episodes([0] * len(values), list(values), [1] * len(values)))


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_worse_member_copies_a_better_ones_state_to_the_bit(members, tmp_path):
    learners, exchanges, reports, _ = members(2)
    for learner, exchange in zip(learners, exchanges, strict=True):
        exchange.start(learner)
    report(reports[0], 1.0, 2.0)
    report(reports[1], 5.0, 6.0)
    learners[1].advance(100)
    exchanges[1](learners[1])
    assert learners[1].replaced == 0, "the better one goes on"
    learners[0].advance(99)
    exchanges[0](learners[0])
    assert learners[0].replaced == 0, "its turn has not come"
    learners[0].advance(100)
    exchanges[0](learners[0])
    assert learners[0].replaced == 1
    copied, donor = learners[0].state, state_of(1)
    assert_same(copied._replace(hypers=None), donor._replace(hypers=None))
    assert copied.hypers.discount == donor.hypers.discount, "what is not tuned is copied as it is"
    ratio = copied.hypers.learning_rate / donor.hypers.learning_rate
    assert np.isclose(ratio, 0.8) or np.isclose(ratio, 1.2)
    rows = metrics.read(tmp_path / "lineage_0.csv")
    assert [(row["env_steps"], row["donor"]) for row in rows] == [(0, 0), (100, 1)]
    assert rows[1]["score"] == 1.5 and rows[1]["learning_rate"] == pytest.approx(copied.hypers.learning_rate)


def test_a_state_is_copied_as_it_was_last_shown(members):
    learners, exchanges, reports, _ = members(2)
    exchanges[1].start(learners[1])
    exchanges[0].start(learners[0])
    learners[1].state = state_of(7)  # it has learned since
    report(reports[0], 1.0)
    report(reports[1], 5.0)
    learners[0].advance(100)
    exchanges[0](learners[0])
    assert_same(learners[0].state.params, state_of(1).params)


def test_nobody_copies_before_episodes_ended(members):
    learners, exchanges, _, _ = members(2)
    for learner, exchange in zip(learners, exchanges, strict=True):
        exchange.start(learner)
        learner.advance(500)
        exchange(learner)
        assert learner.replaced == 0


def test_a_member_that_comes_back_goes_on_from_its_best_peer(members):
    """Its learner was killed and started again; the server and the peers went on."""
    learners, exchanges, reports, exchange = members(3)
    for learner, each in zip(learners, exchanges, strict=True):
        each.start(learner)
    for m, value in enumerate((1.0, 2.0, 3.0)):
        report(reports[m], value)
    again = Learner(state_of(9), env_steps=50)  # its own checkpoint
    exchange(0).start(again)
    assert again.replaced == 1
    assert_same(again.state.params, state_of(2).params)
    assert again.version.env_steps == 50


@pytest.mark.parametrize("saved", [50, 150])
def test_a_member_that_comes_back_while_no_peer_has_a_score_goes_on_from_itself(members, saved, tmp_path):
    """Its peers have copied it, and none of their episodes has ended since. It last showed its state at 100."""
    learners, exchanges, reports, exchange = members(3)
    for learner, each in zip(learners, exchanges, strict=True):
        each.start(learner)
    for m, value in enumerate((3.0, 1.0, 2.0)):
        report(reports[m], value)
    for m in range(3):
        learners[m].advance(100)
        exchanges[m](learners[m])
    assert [learner.replaced for learner in learners] == [0, 1, 1], "the worst of those with a score copied"
    again = Learner(state_of(9), env_steps=saved)
    exchange(0).start(again)
    assert_same(again.state, state_of(0) if saved < 100 else state_of(9))
    assert again.version.env_steps == saved
    row = metrics.read(tmp_path / "lineage_0.csv")[-1]
    assert (row["env_steps"], row["donor"]) == (saved, 0)


def test_a_diverged_member_is_replaced_and_a_diverged_population_is_an_error(members):
    learners, exchanges, reports, _ = members(2)
    for learner, each in zip(learners, exchanges, strict=True):
        each.start(learner)
    with pytest.raises(NotFinite, match=r"the loss became nan"):
        exchanges[0].rescue(learners[0], "the loss became nan")
    report(reports[0], 9.0)
    report(reports[1], 1.0)
    learners[0].state = state_of(0)._replace(params={"kernel": np.full((3, 2), np.nan, np.float32)})
    learners[0].advance(100)
    exchanges[0](learners[0])
    assert_same(learners[0].state.params, state_of(1).params)


def test_only_the_last_episodes_count(members):
    learners, exchanges, reports, _ = members(2)
    for learner, each in zip(learners, exchanges, strict=True):
        each.start(learner)
    report(reports[1], 2.0)
    report(reports[0], 1000.0)
    for _ in range(4):
        report(reports[0], 1.0)
    learners[0].advance(100)
    exchanges[0](learners[0])
    assert learners[0].replaced == 1


def test_what_was_returned_before_a_copy_does_not_count(members, tmp_path):
    """The member has no score, for itself or for its peers, until an episode of its new state ends."""
    learners, exchanges, reports, _ = members(3)
    for learner, each in zip(learners, exchanges, strict=True):
        each.start(learner)
    for m, values in enumerate([(1.0, 2.0), (5.0, 6.0), (3.0, 3.0)]):
        report(reports[m], *values, env_steps=60)
    learners[0].advance(100)
    exchanges[0](learners[0])
    assert learners[0].replaced == 1
    report(reports[0], 0.0, env_steps=100)  # this episode was over before the copied parameters came
    for env_steps in (200, 300):
        learners[0].advance(env_steps)
        exchanges[0](learners[0])
    assert learners[0].replaced == 1, "nothing is known of the state that it has now"
    learners[2].advance(300)
    exchanges[2](learners[2])
    assert learners[2].replaced == 1, "of the two that are known it is the worse"
    report(reports[0], 4.0, env_steps=310)
    learners[1].advance(400)
    exchanges[1](learners[1])
    learners[0].advance(400)
    exchanges[0](learners[0])
    scores = [row["score"] for row in metrics.read(tmp_path / "lineage_0.csv")]
    np.testing.assert_array_equal(scores, [np.nan, 1.5, np.nan, np.nan, 4.0])
    assert learners[0].replaced == 2, "by its new episode alone it is the worse"


def test_stacked_members_forget_what_was_before_their_copy(tmp_path):
    each, container = population(4, None, tmp_path), Container()
    returns = Returns(each, container)
    learner = Learner(jax.tree.map(lambda *x: np.stack(x), *(state_of(m) for m in range(4))))
    exchange = Exchange(each, [[container]], [], [], jax.random.key(0), 0)
    returns.add(Version(0, 60), Episodes(list(range(4)), [5.0, 1.0, 3.0, 4.0], [1] * 4))
    for env_steps in (100, 200):
        learner.advance(env_steps)
        exchange(learner)
    returns.add(Version(0, 210), Episodes([1], [4.5], [1]))
    learner.advance(300)
    exchange(learner)
    rows = metrics.read(tmp_path / "lineage_1.csv")
    assert [row["donor"] for row in rows] == [0, 1, 1]
    np.testing.assert_array_equal([row["score"] for row in rows], [1.0, np.nan, 4.5])


class Container:
    """A variable container in memory."""

    def push(self, version, value):
        self.newest = version, value

    def pull(self):
        return self.newest

    def filled(self):
        return hasattr(self, "newest")


@pytest.mark.parametrize("where", ["params", "opt_state"])
def test_a_stacked_member_that_has_diverged_is_replaced(tmp_path, where):
    """It is replaced although its episodes, which it played before it diverged, were the best."""
    each, container = population(4, None, tmp_path), Container()
    Returns(each, container).add(Version(0, 0), Episodes(list(range(4)), [5.0, 6.0, 9.0, 5.0], [1] * 4))
    states = [state_of(m) for m in range(4)]
    broken = jax.tree.map(lambda x: np.full_like(x, np.nan) if x.dtype == np.float32 else x, getattr(states[2], where))
    states[2] = states[2]._replace(**{where: broken})
    learner = Learner(jax.tree.map(lambda *x: np.stack(x), *states))
    exchange = Exchange(each, [[container]], [], [], jax.random.key(0), 0)
    exchange.start(learner)
    learner.advance(100)
    exchange(learner)
    after = [jax.tree.map(lambda x, m=m: x[m], learner.state) for m in range(4)]
    assert_same(after[2]._replace(hypers=None), states[1]._replace(hypers=None))
    for m in (0, 1, 3):
        assert_same(after[m], states[m])
    assert metrics.read(tmp_path / "lineage_2.csv")[-1]["donor"] == 1


def test_stacked_members_take_their_turns_together(tmp_path):
    each = population(4, None, tmp_path)
    structure = told_structure(each)
    running = server.serve([server.build_variables_table(structure, "actor_0")], None, None)
    container = VariableContainer(connect(f"localhost:{running.port}", 30), structure, "actor_0")
    returns = Returns(each, container)
    # Environments 0 to 7 belong to members 0, 1, 2, 3, 0, 1, 2, 3.
    returns.add(Version(0, 0), Episodes(list(range(8)), [5.0, 1.0, 3.0, 4.0, 5.0, 1.0, 3.0, 4.0], [1] * 8))
    _, told = container.pull()
    assert np.nanmean(told.returns, axis=1).tolist() == [5.0, 1.0, 3.0, 4.0] and math.isnan(told.returns[0, 0])
    states = [state_of(m) for m in range(4)]
    learner = Learner(jax.tree.map(lambda *x: np.stack(x), *states))
    exchange = Exchange(each, [[container]], [], [], jax.random.key(0), 0)
    exchange.start(learner)
    learner.advance(100)
    exchange(learner)
    after = [jax.tree.map(lambda x, m=m: x[m], learner.state) for m in range(4)]
    for m in (0, 2, 3):
        assert_same(after[m], states[m])
    assert_same(after[1]._replace(hypers=None), states[0]._replace(hypers=None))
    assert after[1].hypers.learning_rate != states[0].hypers.learning_rate
    assert metrics.read(tmp_path / "lineage_1.csv")[-1]["donor"] == 0
    running.stop()


def separate(size: int, logdir, member: int, **changes) -> tuple[Exchange, list[Returns], list[Container]]:
    """Returns the exchange of one of several separate members, what tells the returns of each, and the containers of
    their states. All containers are in memory."""
    each = [population(size, m, logdir, **changes) for m in range(size)]
    told, states, copied = ([Container() for _ in range(size)] for _ in range(3))
    exchange = Exchange(each[member], [[c] for c in told], states, copied, jax.random.key(member), 0)
    return exchange, [Returns(each[m], told[m]) for m in range(size)], states


def test_each_random_choice_of_each_turn_has_a_key_of_its_own(tmp_path, monkeypatch):
    keys = []

    def exploit(key, returns):
        keys.append(key)
        return np.array([1, 1])

    def explore(key, rule, values, ranges):
        keys.append(key)
        return values

    monkeypatch.setitem(pbt.EXPLOIT, "truncation", exploit)
    monkeypatch.setattr(pbt, "explore", explore)
    for member in (0, 1):
        exchange, _, states = separate(2, tmp_path, member)
        learner = Learner(state_of(0))
        states[1].push(Version(0, 0), state_of(1))
        for turn in range(1, 6):
            learner.advance(100 * turn)
            exchange(learner)
        assert learner.replaced == (5 if member == 0 else 0)
    assert len(keys) == 2 * 5 + 5
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == len(keys)


def test_a_peer_whose_state_is_not_there_is_not_copied(tmp_path):
    """A replay server that was started again has no states until members show theirs."""
    exchange, reports, states = separate(3, tmp_path, 0)
    for m, value in enumerate((1.0, 2.0, 9.0)):
        report(reports[m], value)
    learner = Learner(state_of(0))
    learner.advance(100)
    exchange(learner)
    assert learner.replaced == 0, "nobody else has shown a state"
    states[1].push(Version(0, 0), state_of(1))
    learner.advance(200)
    exchange(learner)
    assert_same(learner.state.params, state_of(1).params)
    states[2].push(Version(0, 0), state_of(2))
    report(reports[0], 1.0, env_steps=250)
    learner.advance(300)
    exchange(learner)
    assert_same(learner.state.params, state_of(2).params)
    assert [row["donor"] for row in metrics.read(tmp_path / "lineage_0.csv")] == [0, 1, 2]


def test_each_stacked_member_records_its_own_hyperparameters_and_score(tmp_path):
    each, container = population(4, None, tmp_path), Container()
    Returns(each, container).add(Version(0, 0), Episodes(list(range(4)), [5.0, 3.0, 9.0, 4.0], [1] * 4))
    learner = Learner(jax.tree.map(lambda *x: np.stack(x), *(state_of(m) for m in range(4))), env_steps=30)
    exchange = Exchange(each, [[container]], [], [], jax.random.key(0), 30)
    exchange.start(learner)
    learner.advance(100)
    exchange(learner)
    exchange.close()
    for m, score in enumerate([5.0, 3.0, 9.0, 4.0]):
        before, after = metrics.read(tmp_path / f"lineage_{m}.csv")
        assert (before["env_steps"], before["member"], before["donor"], before["score"]) == (30, m, m, score)
        assert before["learning_rate"] == pytest.approx(1e-3 * (m + 1))
        assert (after["env_steps"], after["member"], after["donor"], after["score"]) == (
            100,
            m,
            2 if m == 1 else m,
            score,
        )
        assert after["learning_rate"] == pytest.approx(float(learner.state.hypers.learning_rate[m]))
