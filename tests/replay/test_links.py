"""Links between machines that are cut, with a word to the client or without one."""

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from agents.agent import TableSpec, Transitions, WholeEpisodes
from replay import server
from replay.client import ask_tables, connect
from replay.priorities import update_priorities
from replay.reverb_carrier import ReverbQueue
from replay.rows import ReplayUnavailable
from replay.structures import Structure
from tests.launchers.command_line import wait_for
from tests.waiting import within

PREFACE = b"SM\r\n\r\n"  # how the preface of a client's HTTP/2 connection ends
SETTINGS, HEADERS, GOAWAY = 4, 1, 7


def frame(kind: int, payload: bytes = b"") -> bytes:
    """Returns an HTTP/2 frame of the connection's own stream, 0."""
    return struct.pack(">I", len(payload))[1:] + bytes([kind, 0]) + struct.pack(">I", 0) + payload


def asks(data: bytes) -> bool:
    """Returns whether a client that has sent `data` has begun a call."""
    at = data.find(PREFACE) + len(PREFACE)
    while PREFACE in data and at + 9 <= len(data):
        if data[at + 3] == HEADERS:
            return True
        at += 9 + int.from_bytes(data[at : at + 3], "big")
    return False


def reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def refuse(client: socket.socket) -> None:
    """Says that this call will be answered, and no other."""
    client.sendall(frame(GOAWAY, struct.pack(">II", 2**31 - 1, 0)))


def give_up(client: socket.socket) -> None:
    """Says that this call will not be answered."""
    client.sendall(frame(GOAWAY, struct.pack(">II", 0, 0)))


BREAKS = {"close": lambda client: None, "reset": reset, "refuse": refuse, "give up": give_up}


class Link:
    """A proxy for a server's port, on a port of its own, that can be cut without telling the clients.

    The first `breaks` connections do not reach the server: they end while the client waits for its first answer, in the
    way that `how` names.
    """

    def __init__(self, port: int, how: str = "close", breaks: int = 0):
        self.to, self._live = port, True
        self._how, self.breaks = how, breaks
        self._connections: list[Connection] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self.breaks:
                    self.breaks -= 1
                    threading.Thread(target=self._break, args=(client,), daemon=True).start()
                    continue
                connection = Connection(client, socket.create_connection(("127.0.0.1", self.to)))
                self._connections.append(connection)

    def _break(self, client: socket.socket) -> None:
        data, more = b"", b"-"
        with contextlib.suppress(OSError):
            client.sendall(frame(SETTINGS))
            while more and not asks(data):
                more = client.recv(1 << 16)
                data += more
            BREAKS[self._how](client)
        client.close()

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
            reset(self._client)
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


@pytest.mark.parametrize("how", BREAKS)
@pytest.mark.parametrize("breaks", [1, 2, 5])
def test_a_question_whose_connection_breaks_is_asked_again(link, how, breaks):
    """So it is when a server ends at the moment at which a client finds it, and begins again."""
    link, local = link
    again = Link(link.to, how, breaks)
    client = within(60, "the server to answer", connect, f"localhost:{again.port}", 30.0)
    assert again.breaks == 0, "every break was seen"
    assert ask_tables(client)["queue"].max_size == ask_tables(local)["queue"].max_size == 1
    again.close()


@pytest.mark.parametrize("how", BREAKS)
def test_a_server_that_breaks_every_connection_is_unavailable(how):
    never = Link(0, how, breaks=10**6)
    with pytest.raises(ReplayUnavailable, match=f"localhost:{never.port} did not answer in 1 s") as error:
        within(60, "connect to give up", connect, f"localhost:{never.port}", 1.0)
    assert "\n" not in str(error.value)
    never.close()


@pytest.mark.parametrize("cuts", [1, 3])
def test_priorities_and_saves_are_not_lost_where_the_link_was_cut_unnoticed(cuts, tmp_path):
    spec = TableSpec("replay", Transitions(1, 1.0), "prioritized", 100)
    serving = server.serve([server.build_table(spec, Structure([np.zeros((), np.float32)]))], None, tmp_path / "replay")
    link, local = Link(serving.port), serving.localhost_client()
    with local.trajectory_writer(num_keep_alive_refs=1) as writer:
        writer.append([np.float32(0.0)])
        writer.create_item("replay", 1.0, [column[-1] for column in writer.history])
    client = connect(f"localhost:{link.port}", heartbeat=1000.0)  # and so learns of no cut
    (sample,) = local.sample("replay", 1, emit_timesteps=False)
    for cut in range(cuts):
        link.cut()
        within(
            60,
            "new priorities",
            update_priorities,
            client,
            "replay",
            np.array([sample.info.key]),
            np.array([cut + 2.0]),
        )
        (sample,) = local.sample("replay", 1, emit_timesteps=False)
        assert sample.info.priority == pytest.approx((cut + 2.0) ** spec.priority_exponent)
        link.cut()
        before = set(tmp_path.glob("replay/*/DONE"))
        within(60, "the save", server.save_tables, client)
        assert set(tmp_path.glob("replay/*/DONE")) - before, "the server has saved"
    link.close()
    serving.stop()
