"""The connection to a replay server: how it is made, asked and kept alive."""

import contextlib
import math
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

from replay.reverb_import import reverb
from replay.rows import ReplayUnavailable

HEARTBEAT_SECONDS = 10.0
RETRY_SECONDS = 0.1
RECONNECT_SECONDS = 5.0  # for a broken connection to be made anew, before a call is given up
# What is raised where a server fails, or cannot be reached; the first two by Reverb.
FAILURES = (reverb.errors.ReverbError, RuntimeError, ReplayUnavailable)


def connect(address: str, timeout: float = 60.0, heartbeat: float = HEARTBEAT_SECONDS) -> reverb.Client:
    """Returns a client of the server at `address` (host:port), once the server answers.

    After that, Reverb's writers and samplers survive a restart of the server, and an interrupted network, by
    themselves: they wait. As long as there is the client, a thread asks the server for a sign of life every `heartbeat`
    seconds. After an interruption the server may have given up the connection, and a client that has nothing to send
    would never notice.

    Raises:
      ReplayUnavailable: the server did not answer within `timeout` seconds.
    """
    client = reverb.Client(address)
    ask_tables(client, timeout)
    threading.Thread(target=_keep_alive, args=(weakref.ref(client), heartbeat), name="heartbeat", daemon=True).start()
    return client


def ask_tables(client: reverb.Client, timeout: float = 60.0) -> dict[str, Any]:
    """Returns the TableInfo of each table of the client's server, by the tables' names.

    Reverb waits for a server that is not there yet, but a connection that breaks before the answer is an error of its
    own (the server ended at this moment, or a proxy closed the connection). Then this function asks again.

    Raises:
      ReplayUnavailable: the server did not answer within `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            tables: dict[str, Any] = client.server_info(timeout=max(1, math.ceil(deadline - time.monotonic())))
            return tables
        except FAILURES as error:
            if time.monotonic() + RETRY_SECONDS > deadline:
                raise ReplayUnavailable(
                    f"the replay server at {client.server_address} did not answer in {timeout:.0f} s: is it running, "
                    "and is --replay right?"
                ) from error
        time.sleep(RETRY_SECONDS)


def call_twice(client: reverb.Client, call: Callable[[], Any]) -> None:
    """Calls a method of the client, and once more if that fails; so what it does may happen twice.

    A connection that broke unnoticed fails at the next call. The second call is made on a new connection, once the
    server has answered on it.

    Raises:
      One of FAILURES: the second call failed too, or the server did not answer within RECONNECT_SECONDS.
    """
    try:
        call()
    except FAILURES:
        ask_tables(client, RECONNECT_SECONDS)
        call()


def _keep_alive(of: Callable[[], reverb.Client | None], seconds: float) -> None:
    """Asks a server for a sign of life every `seconds`, until `of`, a weak reference, no longer has its client."""
    while True:
        time.sleep(seconds)
        client = of()
        if client is None:
            return
        with contextlib.suppress(ReplayUnavailable):  # the server is down or out of reach
            ask_tables(client, seconds)
        del client  # else this thread would keep it
