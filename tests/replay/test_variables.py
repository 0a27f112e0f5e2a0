"""The variable container on a real Reverb server."""

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from agents.agent import Version
from replay import variables
from replay.reverb_carrier import ReverbCarrier
from replay.reverb_import import reverb
from replay.rows import VARIABLES, ReplayUnavailable
from replay.server import build_variables_table
from replay.structures import Structure
from replay.variables import VariableContainer
from tests.waiting import within

WAIT = 60.0


def numbered(version: int):
    """Returns parameters whose numbers all equal the version. They are large enough for a torn read to show."""
    return {"w": np.full((256, 64), version, np.float32), "b": {"inner": np.full(3, version, np.int32)}, "empty": ()}


STRUCTURE = Structure((Version(np.int64(0), np.int64(0)), numbered(0)))


@pytest.fixture
def client(serve):
    return serve(build_variables_table(STRUCTURE))


def test_pull_gives_what_was_pushed_last(client):
    rng = np.random.default_rng(0)
    learner, actor = VariableContainer(client, STRUCTURE), VariableContainer(client, STRUCTURE)
    for version in range(20):
        params = {
            "w": rng.normal(size=(256, 64)).astype(np.float32),
            "b": {"inner": rng.integers(9, size=3, dtype=np.int32)},
            "empty": (),
        }
        learner.push(Version(version, 10 * version), params)
        for _ in range(2):  # a pull takes nothing away
            pulled_version, pulled = within(WAIT, "a pull", actor.pull)
            assert pulled_version == Version(version, 10 * version)
            assert [type(count) for count in pulled_version] == [int, int]
            assert pulled.keys() == params.keys() and pulled["empty"] == ()
            np.testing.assert_array_equal(pulled["w"], params["w"])
            np.testing.assert_array_equal(pulled["b"]["inner"], params["b"]["inner"])
    assert client.server_info()[VARIABLES].current_size == 1


def test_concurrent_pulls_see_whole_parameters_and_versions_that_never_go_back(client):
    newest, pullers = 60, 3
    learner = VariableContainer(client, STRUCTURE)
    learner.push(Version(1, 10), numbered(1))
    seen: list[list[int]] = [[] for _ in range(pullers)]
    faults: list[str] = []

    def pull(index: int):
        actor = VariableContainer(client, STRUCTURE)
        while not seen[index] or seen[index][-1] < newest:
            version, params = actor.pull()
            whole = (params["w"] == version.learner_steps).all() and (
                params["b"]["inner"] == version.learner_steps
            ).all()
            if not whole or version.env_steps != 10 * version.learner_steps:
                faults.append(f"version {version} came with {np.unique(params['w'])} and {params['b']['inner']}")
            seen[index].append(version.learner_steps)

    threads = [threading.Thread(target=pull, args=(index,), daemon=True) for index in range(pullers)]
    for thread in threads:
        thread.start()
    for version in range(2, newest + 1):
        within(WAIT, f"the push of version {version}", learner.push, Version(version, 10 * version), numbered(version))
    for thread in threads:
        thread.join(WAIT)
        assert not thread.is_alive(), f"waited {WAIT} s in vain for a thread to pull version {newest}"
    assert not faults
    for versions in seen:
        assert versions == sorted(versions)


@pytest.mark.parametrize(
    "other",
    [
        {"w": np.zeros((256, 65), np.float32), "b": {"inner": np.zeros(3, np.int32)}},
        {"w": np.zeros((256, 64), np.float64), "b": {"inner": np.zeros(3, np.int32)}},
        {"w": np.zeros((256, 64), np.float32)},
    ],
    ids=["shape", "dtype", "leaves"],
)
def test_another_agents_parameters_are_refused_at_construction(client, other):
    with pytest.raises(ValueError, match="another config"):
        VariableContainer(client, Structure((Version(np.int64(0), np.int64(0)), other)))


def test_a_server_without_the_table_is_refused_at_construction(serve):
    client = serve(reverb.Table.queue("queue", 1))
    with pytest.raises(ValueError, match="no table 'variables'"):
        VariableContainer(client, STRUCTURE)


def test_wait_names_what_it_waited_for(client):
    variables = VariableContainer(client, STRUCTURE)
    with pytest.raises(ReplayUnavailable, match=r"no learner published parameters within \d+ s"):
        variables.wait(timeout=0.2)


def test_wait_returns_once_something_was_pushed(client):
    waiting = threading.Thread(target=VariableContainer(client, STRUCTURE).wait, args=(WAIT,), daemon=True)
    waiting.start()
    VariableContainer(client, STRUCTURE).push(Version(0, 0), numbered(0))
    waiting.join(WAIT)
    assert not waiting.is_alive(), f"waited {WAIT} s in vain for wait() to return"


def test_where_all_are_in_the_servers_process_what_was_pushed_is_pulled_as_it_is(client):
    carrier = ReverbCarrier([client], ["the servers"])
    learner, actor, elsewhere = carrier.variables(STRUCTURE), carrier.variables(STRUCTURE), ReverbCarrier([client])
    assert not actor.filled()
    for version in range(3):
        params = numbered(version)
        learner.push(Version(np.int64(version), np.int64(7)), params)
        pulled_version, pulled = actor.pull()
        assert pulled_version == Version(version, 7) and pulled is params and actor.filled()
        assert [type(count) for count in pulled_version] == [int, int]
        pulled_version, pulled = within(WAIT, "a pull", elsewhere.variables(STRUCTURE).pull)
        assert pulled_version == Version(version, 7)
        np.testing.assert_array_equal(pulled["w"], params["w"])


@pytest.mark.parametrize("most", [0, 1000, 2**40])
def test_parameters_that_this_run_cannot_have_are_not_pulled(client, most, monkeypatch):
    """Somebody else writes to the server; the parameters of the run's own learner come later."""
    other, learner = (VariableContainer(client, STRUCTURE) for _ in range(2))
    actor = ReverbCarrier([client], max_env_steps=most).variables(STRUCTURE)
    other.push(Version(5, most + 1), numbered(5))
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        learner.push(Version(3, most), numbered(3))

    monkeypatch.setattr(variables, "time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
    version, params = within(WAIT, "the learner's parameters", actor.pull)
    assert version == Version(3, most) and slept
    np.testing.assert_array_equal(params["w"], numbered(3)["w"])
