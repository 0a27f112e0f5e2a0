"""Fixtures that start real Reverb servers, in this process or in one of their own, and stop them when their test ends.
Where there is no Reverb, tests/conftest.py skips the tests that ask for them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from agents.agent import TableSpec
from replay.structures import Structure
from tests.waiting import within

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def serve():
    """serve(*tables) -> a client of a new server on a free port."""
    from replay import client, server

    servers = []

    def start(*tables):
        servers.append(server.serve(list(tables), port=None, checkpoint_path=None))
        return client.connect(f"localhost:{servers[-1].port}", timeout=30)

    yield start
    for each in servers:
        each.stop()


@pytest.fixture
def serve_here(serve):
    """serve_here(queue, block structure, sequences per item, params structure) -> a client of a server of a run."""
    from replay import server

    def start(table: TableSpec, block: Structure, sequences_per_item: int, params: Structure):
        return serve(server.build_table(table, block, sequences_per_item), server.build_variables_table(params))

    return start


SERVER = """
import json, sys
import numpy as np
from agents.agent import Blocks, TableSpec
from replay import server
from replay.structures import Structure

name, max_size, sequences_per_item, *columns = json.loads(sys.argv[1])
block, params = (Structure([np.zeros(shape, dtype) for shape, dtype in c]) for c in columns)
table = server.build_table(TableSpec(name, Blocks(1), "queue", max_size), block, sequences_per_item)
running = server.serve([table, server.build_variables_table(params)], None, None)
print(running.port, flush=True)
sys.stdin.read()  # until the test ends
running.stop()
"""


@pytest.fixture
def serve_apart():
    """Like serve_here, but the server has a process of its own and is reached by gRPC; within one, Reverb takes a short
    cut."""
    from replay import client

    processes = []

    def start(table: TableSpec, block: Structure, sequences_per_item: int, params: Structure):
        columns = [[(leaf.shape, leaf.dtype.str) for leaf in structure.leaves] for structure in (block, params)]
        argument = json.dumps([table.name, table.max_size, sequences_per_item, *columns])
        command = [sys.executable, "-c", SERVER, argument]
        processes.append(subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        port = within(120, "the replay server's process to start", processes[-1].stdout.readline).strip()
        assert port, "the replay server's process did not start: see stderr"
        return client.connect(f"localhost:{port}", timeout=30)

    yield start
    for process in processes:
        process.stdin.close()
        try:
            process.wait(30)
        finally:
            process.kill()
