"""Reaching a server, starting one, and starting it again."""

import socket

import numpy as np
import pytest

from agents.agent import Blocks, TableSpec, Version
from replay import server
from replay.client import ReplayUnavailable, connect
from replay.structures import Structure
from replay.variables import VARIABLES, VariableContainer
from tests.waiting import within

STRUCTURE = Structure((Version(np.int64(0), np.int64(0)), {"w": np.zeros(2, np.float32)}))


def free_port() -> int:
    with socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::", 0))
        return probe.getsockname()[1]


def test_connect_names_the_address_that_does_not_answer():
    address = f"localhost:{free_port()}"
    with pytest.raises(ReplayUnavailable, match=address) as error:
        within(60, "connect to give up", connect, address, 1.0)
    assert "\n" not in str(error.value)


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
