"""Links between machines that are cut: the server gives a connection up, and its client is not told."""

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from agents.agent import TableSpec, WholeEpisodes
from replay import server
from replay.client import connect
from replay.reverb_carrier import ReverbQueue
from replay.structures import Structure
from tests.launchers.command_line import wait_for


class Link:
    """A proxy for a server's port, on a port of its own, that can be cut without telling the clients."""

    def __init__(self, port: int):
        self._to, self._live = port, True
        self._connections: list[Connection] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                connection = Connection(client, socket.create_connection(("127.0.0.1", self._to)))
                self._connections.append(connection)

    def cut(self) -> None:
        for connection in self._connections:
            connection.cut()

    def close(self) -> None:
        self._listener.close()


class Connection:
    """A client's connection through a link. After a cut it behaves like TCP after a time-out at the server's end: the
    client's end looks sound until it sends something, which is answered by a reset."""

    def __init__(self, client: socket.socket, server: socket.socket):
        self._client, self._server, self._cut = client, server, False
        threading.Thread(target=self._pump, args=(client, server), daemon=True).start()
        threading.Thread(target=self._pump, args=(server, client), daemon=True).start()

    def _pump(self, source: socket.socket, to: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if self._cut:
                    break
                to.sendall(data)
        if not self._cut:
            self._client.close()
            self._server.close()
        elif source is self._client:
            self._client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._client.close()

    def cut(self) -> None:
        self._cut = True
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def link() -> Iterator[tuple[Link, server.reverb.Client]]:
    """Yields a link to a server with a table for one item, and a client that does not go through the link."""
    table = server.build_table(
        TableSpec("queue", WholeEpisodes(1), "queue", max_size=1), Structure([np.zeros(2, np.float32)])
    )
    serving = server.serve([table], None, None)
    link = Link(serving.port)
    yield link, serving.localhost_client()
    link.close()
    serving.stop()


def writing(client: server.reverb.Client, written: list[int]) -> Callable[[], None]:
    """Returns a function that puts items into the queue for ever, each as soon as there is room."""
    queue = ReverbQueue(client, "queue")

    def write():
        while True:
            queue.put([np.full(2, len(written), np.float32)])
            written.append(len(written))

    return write


@pytest.mark.parametrize("cuts", [1, 3])
def test_a_writer_that_waits_goes_on_after_the_link_was_cut(link, cuts):
    """The writer waits for room, and has nothing to send, when its connection is cut. No item is lost; one may come
    twice, because the server could not say that it had it."""
    link, local = link
    written: list[int] = []
    taken: list[int] = []
    client = connect(f"localhost:{link.port}", heartbeat=0.5)
    threading.Thread(target=writing(client, written), daemon=True).start()

    def take() -> None:
        if local.server_info()["queue"].current_size:
            (item,) = local.sample("queue", 1, emit_timesteps=False)
            taken.append(int(item.data[0][0]))

    for _ in range(cuts):
        before = len(written)
        wait_for("a full queue", lambda: local.server_info()["queue"].current_size == 1, 30)
        link.cut()
        wait_for("the writer to go on", lambda before=before: take() or len(written) >= before + 3, 60)
    assert sorted(set(taken)) == list(range(max(taken) + 1)), "none was lost"
    assert taken == sorted(taken) and len(taken) <= len(set(taken)) + cuts
