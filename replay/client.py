"""The connection to a replay server: how it is made and kept alive."""

import contextlib
import threading
import time

from replay.reverb_import import reverb
from replay.variables import ReplayUnavailable

HEARTBEAT_SECONDS = 10.0


def connect(address: str, timeout: float = 60.0, heartbeat: float = HEARTBEAT_SECONDS) -> reverb.Client:
    """Returns a client of the server at `address` (host:port), once the server answers.

    After that, Reverb's writers and samplers survive a restart of the server, and an interrupted network, by
    themselves: they wait. A thread asks the server for a sign of life every `heartbeat` seconds. After an interruption
    the server may have given up the connection, and a client that has nothing to send would never notice.

    Raises:
      ReplayUnavailable: the server did not answer within `timeout` seconds.
    """
    client = reverb.Client(address)
    try:
        client.server_info(timeout=max(1, int(timeout)))
    except reverb.errors.DeadlineExceededError as error:
        raise ReplayUnavailable(
            f"the replay server at {address} did not answer in {timeout:.0f} s: is it running, and is --replay right?"
        ) from error
    threading.Thread(target=_ask_for_ever, args=(client, heartbeat), name="heartbeat", daemon=True).start()
    return client


def _ask_for_ever(client: reverb.Client, seconds: float) -> None:
    while True:
        time.sleep(seconds)
        with contextlib.suppress(reverb.errors.ReverbError, RuntimeError):  # the server is down or out of reach
            client.server_info(timeout=max(1, int(seconds)))
