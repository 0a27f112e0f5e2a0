"""Reaching a server, starting one, and starting it again."""

import threading
import time

import numpy as np
import pytest

from agents.agent import Blocks, TableSpec, Transitions, Version
from launchers.ports import free_port
from replay import server
from replay.client import connect
from replay.rows import VARIABLES, ReplayUnavailable
from replay.structures import Structure
from replay.variables import VariableContainer
from tests.waiting import until, within

STRUCTURE = Structure((Version(np.int64(0), np.int64(0)), {"w": np.zeros(2, np.float32)}))


def test_connect_names_the_address_that_does_not_answer():
    address = f"localhost:{free_port()}"
    with pytest.raises(ReplayUnavailable, match=address) as error:
        within(60, "connect to give up", connect, address, 1.0)
    assert "\n" not in str(error.value)


def heartbeats() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "heartbeat"}


def test_a_client_that_is_gone_leaves_no_thread():
    """A process that makes many runs, one after another, would have more and more threads that ask ended servers."""
    before = heartbeats()
    serving = server.serve([server.build_variables_table(STRUCTURE)], None, None)
    clients = [connect(f"localhost:{serving.port}", heartbeat=0.05) for _ in range(3)]
    mine = heartbeats() - before
    assert len(mine) == 3
    time.sleep(0.3)  # several heartbeats
    assert mine <= heartbeats(), "they beat as long as there are the clients"
    clients.clear()
    until(lambda: not mine & heartbeats(), 60, "the threads' end")
    serving.stop()


@pytest.mark.parametrize("file", ["tables", "chunks", "items", "DONE"])
@pytest.mark.parametrize("left", [None, 0.0, 0.5])
def test_a_replay_that_was_damaged_is_begun_anew_and_kept_aside(file, left, tmp_path):
    """It may also come back whole, or without the items that are lost: Reverb does not notice that the file of the
    items is shorter, if by chance it ends between two of them. Damage never ends the run, and no item differs from what
    was saved."""
    path, values = tmp_path / "replay_0", np.arange(40, dtype=np.float32)

    def start():
        table = TableSpec("replay", Transitions(1, 1.0), "uniform", 100)
        running = server.serve([server.build_table(table, Structure([np.zeros((), np.float32)]))], None, path)
        return running, running.localhost_client()

    running, client = start()
    writer = client.trajectory_writer(num_keep_alive_refs=1)
    for value in values:
        writer.append([value])
        writer.create_item("replay", 1.0, [writer.history[0][-1]])
    writer.flush()
    within(60, "the checkpoint", client.checkpoint)
    running.stop()
    (damaged,) = path.rglob(f"{file}*")
    content = damaged.read_bytes()
    damaged.unlink()
    if left is not None:
        damaged.write_bytes(content[: int(left * len(content))])
    for _ in range(2):  # the second time, the server before has dealt with the damage
        running, client = start()
        size = client.server_info(timeout=30)["replay"].current_size
        got = [float(sample.data[0]) for sample in client.sample("replay", size, emit_timesteps=False)] if size else []
        assert set(got) <= set(values.tolist())
        assert size in (0, 40) or (file == "items" and size < 40)
        running.stop()
    assert size == 0 or file == "DONE" or (file == "items" and size < 40), "what is damaged is put aside"


def test_a_free_port_is_served():
    port = free_port()
    running = server.serve([server.build_variables_table(STRUCTURE)], port, None)
    try:
        assert running.port == port
        assert VARIABLES in connect(f"localhost:{port}", 30).server_info()
    finally:
        running.stop()


@pytest.mark.parametrize(("max_size", "sequences_per_item", "expected"), [(12, 4, 3), (13, 4, 3), (2, 4, 1)])
def test_a_queues_size_counts_sequences(max_size, sequences_per_item, expected):
    spec = TableSpec("queue", Blocks(2), "queue", max_size)
    table = server.build_table(spec, STRUCTURE, sequences_per_item)
    assert (table.name, table.info.max_size, table.info.max_times_sampled) == ("queue", expected, 1)


def test_a_restarted_server_finds_its_newest_checkpoint(tmp_path):
    for version in (1, 2):
        running = server.serve([server.build_variables_table(STRUCTURE)], None, tmp_path / "replay")
        try:
            client = connect(f"localhost:{running.port}", 30)
            variables = VariableContainer(client, STRUCTURE)
            if version > 1:
                assert within(60, "the restored parameters", variables.pull)[0] == Version(version - 1, 0)
            variables.push(Version(version, 0), {"w": np.full(2, version, np.float32)})
            within(60, "the checkpoint", client.checkpoint)
        finally:
            running.stop()
    running = server.serve([server.build_variables_table(STRUCTURE)], None, tmp_path / "replay")
    try:
        variables = VariableContainer(connect(f"localhost:{running.port}", 30), STRUCTURE)
        version, params = within(60, "the restored parameters", variables.pull)
        assert version == Version(2, 0) and params["w"].tolist() == [2, 2]
    finally:
        running.stop()
