"""Actors that wait for the next version, on both carriers."""

import threading

import numpy as np
import pytest

from agents.agent import Version
from replay import synchrony
from replay.local_carrier import LocalVariables
from replay.structures import Structure
from replay.synchrony import NextVersion
from tests.waiting import until, within

WAIT = 60.0


def of_carrier(carrier, request):
    """Returns (the learner's variable container, an actor's)."""
    if carrier == "local":
        both = LocalVariables(lambda params: params)
        return both, both
    from replay.server import build_variables_table
    from replay.variables import VariableContainer

    structure = Structure((Version(np.int64(0), np.int64(0)), np.float32(0)))
    client = request.getfixturevalue("serve")(build_variables_table(structure))
    learner = VariableContainer(client, structure)
    return learner, learner if carrier == "threads" else VariableContainer(client, structure)


@pytest.fixture(params=["local", "threads", "processes"])
def containers(request):
    if request.param != "local":
        pytest.importorskip("reverb")
    return of_carrier(request.param, request)


class Actor:
    """Pulls in a thread of its own, once for each call of `pull`."""

    def __init__(self, variables):
        self.stop, self.pulled, self._let = threading.Event(), [], threading.Semaphore(0)
        self._source = NextVersion(variables, self.stop.is_set)
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self):
        while True:
            self._let.acquire()
            version, params = self._source.pull()
            self.pulled.append((version.learner_steps, float(params)))

    def pull(self):
        self._let.release()

    def has(self, count):
        until(lambda: len(self.pulled) >= count, WAIT, f"{count} pulls have ended, of which {len(self.pulled)} have")
        return self.pulled


def test_each_pull_is_of_another_version_whatever_is_pushed_again(containers):
    learner, variables = containers
    rng = np.random.default_rng(0)
    actor, version, told = Actor(variables), 0, [0]
    learner.push(Version(0, 0), np.float32(0))
    actor.pull()
    actor.has(1)
    for _ in range(12):
        actor.pull()
        for _ in range(rng.integers(3)):  # as a publisher does, lest a restarted server have none
            learner.push(Version(version, 0), np.float32(version))
            assert len(actor.pulled) == len(told)
        version = int(rng.choice([v for v in range(5) if v != version]))  # back, too, as to a checkpoint
        learner.push(Version(version, 0), np.float32(version))
        told.append(version)
        assert actor.has(len(told)) == [(v, float(v)) for v in told]


def test_whoever_is_stopped_waits_no_longer(containers):
    learner, variables = containers
    actor = Actor(variables)
    learner.push(Version(3, 0), np.float32(3))
    actor.pull()
    actor.has(1)
    actor.pull()
    actor.stop.set()
    assert actor.has(2) == [(3, 3.0)] * 2


def test_what_was_lost_is_waited_for_a_while_only(containers, monkeypatch, caplog):
    monkeypatch.setattr(synchrony, "STALL_SECONDS", 0.2)
    learner, variables = containers
    learner.push(Version(3, 0), np.float32(3))
    source = NextVersion(variables, lambda: False)
    for _ in range(2):
        version, _ = within(WAIT, "a pull", source.pull)
        assert version.learner_steps == 3
    assert "no new parameters" in caplog.text
