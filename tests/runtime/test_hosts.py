"""Hosts of a pod: they meet or are told why not, hear of each other's end, and learn what one host would."""

import functools
import json
import os
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from runtime import hosts
from runtime.hosts import HostLost, Hosts, HostsDiffer, Meeting
from tests import compiling
from tests.runtime.several_devices import ROOT
from tests.waiting import until

WAIT = 60.0


def free_port() -> int:
    """Returns a port that is free, as is the next one."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("", 0))
            port: int = first.getsockname()[1]
            try:
                second.bind(("", port + 1))
            except (OSError, OverflowError):
                continue
            return port


def meet(*calls: Callable[[], Meeting]) -> list[Any]:
    """Lets hosts meet at the same time; returns for each its Meeting, or the exception that it raised."""
    results: list[Any] = [None] * len(calls)

    def call(index: int) -> None:
        try:
            results[index] = calls[index]()
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=call, args=(index,), daemon=True) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
        assert not thread.is_alive(), "they never stopped waiting"
    return results


def host(index: int, count: int, port: int, told: dict[str, Any], seconds: float = WAIT) -> Callable[[], Meeting]:
    return lambda: Meeting(Hosts(index, count), ("localhost", port), told, seconds)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_hosts_that_are_alike_meet_and_part(count):
    port = free_port()
    met = meet(*(host(index, count, port, {"--seed": 3}) for index in range(count)))
    assert [meeting.hosts for meeting in met] == [Hosts(index, count) for index in range(count)]
    for meeting in met:
        meeting.check()
    for meeting in reversed(met):
        meeting.close(WAIT)
        for connection in list(meeting._left.values()):  # as when its process ends
            connection.shutdown(socket.SHUT_RDWR)
    for meeting in met:
        meeting.check()  # a host that ended after its close is not lost


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("odd", [0, 1])
def test_hosts_that_differ_are_all_told_in_what(count, odd):
    port = free_port()
    told = [{"--seed": 3 + (index == odd), "--config.discount": 0.9} for index in range(count)]
    failures = meet(*(host(index, count, port, told[index]) for index in range(count)))
    assert all(isinstance(failure, HostsDiffer) for failure in failures), failures
    (words,) = {str(failure) for failure in failures}
    assert words.startswith("hosts differ: --seed is ") and "3" in words and "4" in words


def test_other_numbers_of_hosts_and_two_of_one_number_are_told():
    port = free_port()
    failures = meet(host(0, 2, port, {}), host(1, 3, port, {}))
    assert all("count is 2 on host 0 and 3 on host 1" in str(failure) for failure in failures), failures
    port = free_port()
    failures = meet(host(0, 3, port, {}), host(1, 3, port, {}), host(1, 3, port, {}))
    assert all("two processes say that they are host 1" in str(failure) for failure in failures), failures


def test_a_host_that_does_not_come_is_named():
    port = free_port()
    failures = meet(host(0, 3, port, {}, seconds=3.0), host(2, 3, port, {}))
    assert all("of 3 hosts 1 did not join within 3 s" in str(failure) for failure in failures), failures
    (failure,) = meet(host(1, 2, free_port(), {}, seconds=0.5))
    assert "host 0 does not answer at localhost:" in str(failure)


def test_a_strangers_words_disturb_nobody():
    port = free_port()

    def stranger() -> None:
        for words in (b"", b"GET / HTTP/1.1\r\n\r\n", b"[1]\n", b'{"host": "x"}\n', b"\xff\xfe\n"):
            until(functools.partial(_heard, port, words), WAIT, "the first host to listen")

    threading.Thread(target=stranger, daemon=True).start()
    met = meet(host(0, 2, port, {}), lambda: _late(host(1, 2, port, {})))
    assert all(isinstance(each, Meeting) for each in met), met


def _heard(port: int, words: bytes) -> bool:
    try:
        with socket.create_connection(("localhost", port), timeout=5) as connection:
            connection.sendall(words)
    except OSError:
        return False
    return True


def _late(come: Callable[[], Meeting]) -> Meeting:
    threading.Event().wait(1.0)  # most likely after the strangers; the result must not depend on the order
    return come()


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_who_ends_before_its_time_is_missed_by_all(lost):
    port = free_port()
    met = meet(*(host(index, 3, port, {}) for index in range(3)))
    for connection in list(met[lost]._left.values()):  # as when its process ends
        connection.shutdown(socket.SHUT_RDWR)
        connection.close()
    for index, meeting in enumerate(met):
        if index != lost:
            # If host 0 is lost, its threads still go on in this process and may report another host as ended.
            with pytest.raises(HostLost, match=f"host {lost} of 3 ended" if lost else "of 3 ended"):
                meeting.check(WAIT)


@pytest.mark.parametrize("ended", [False, True], ids=["while the others go on", "when the others are at their end"])
def test_the_end_of_a_host_has_the_others_leave_wherever_they_are(ended):
    port, left = free_port(), queue.Queue()
    met = meet(*(host(index, 2, port, {}) for index in range(2)))
    met[0].watch(left.put)
    if ended:
        threading.Thread(target=met[0].close, args=(WAIT,), daemon=True).start()
        until(lambda: met[0]._closing, WAIT, "the end")
    met[1].fail()
    until(lambda: met[0]._lost, WAIT, "the loss to be heard")
    if ended:
        with pytest.raises(queue.Empty):
            left.get(timeout=0.5)
    else:
        assert "host 1 of 2 ended, so the others cannot go on" in str(left.get(timeout=WAIT))


def test_who_is_silent_is_missed(monkeypatch):
    monkeypatch.setattr(hosts, "LOST_SECONDS", 1.0)
    monkeypatch.setattr(Meeting, "_beat", lambda self: None)
    port = free_port()
    met = meet(host(0, 2, port, {}), host(1, 2, port, {}))
    for meeting in met:
        with pytest.raises(HostLost, match=r"is silent|ended"):
            meeting.check(WAIT)


def updates(count: int, devices: int) -> list[dict[str, Any]]:
    """Returns what each of `count` hosts prints, each with `devices` devices."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{compiling.UNOPTIMISED} --xla_force_host_platform_device_count={devices}",
    }
    port = free_port()
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.runtime.pod_updates", str(count), str(index), str(port)],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for index in range(count)
    ]  # fmt: skip
    found = []
    try:
        for process in processes:
            output, errors = process.communicate(timeout=280)
            assert process.returncode == 0, errors
            found.append(json.loads(output.splitlines()[-1]))
    finally:
        for process in processes:
            process.kill()
    return found


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("count", "devices"), [(2, 2), (4, 1)])
def test_a_pod_learns_what_one_host_with_its_devices_does(count, devices):
    (alone,) = updates(1, count * devices)
    pod = updates(count, devices)
    assert {each["devices"] for each in pod} == {alone["devices"]} == {count * devices}
    for each in pod:
        np.testing.assert_allclose(each["blocks"], alone["blocks"], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(each["rings"][0], alone["rings"][0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(each["rings"][1], alone["rings"][1], rtol=1e-5)
        # Two updates late, all hosts hear the same: the sum of their steps, that one is to end, that the run is done.
        steps = sum(10 + index for index in range(count))
        late = [[steps, False, False]] * 2 + [[steps, True, False], [steps, False, True]]
        assert each["agreed"] == [[0, False, False]] * 2 + late
        assert each["said"] == [True, False]
        assert each["shared"] == [[0, 0], [1, 5_000_000_000]]


@pytest.mark.parametrize("seed", range(5))
def test_a_host_that_is_asked_to_end_waits_so_long_for_an_update(seed, monkeypatch):
    rng, now = np.random.default_rng(seed), [50.0]
    monkeypatch.setattr(hosts, "time", SimpleNamespace(monotonic=lambda: now[0]))
    asked_at, seconds = rng.uniform(50, 60), rng.uniform(1, 20)
    patience, seen = hosts.asked_for(lambda: now[0] >= asked_at, seconds), None
    for _ in range(100):
        if now[0] >= asked_at and seen is None:
            seen = now[0]  # the time counts from the first look after it was asked
        assert patience() == (seen is not None and now[0] - seen > seconds)
        now[0] += rng.uniform(0, 1)
    assert patience()
