"""Reaching a replay server, and staying in reach."""

import contextlib
import threading
import time

from replay.reverb_import import reverb
from replay.variables import ReplayUnavailable

HEARTBEAT_SECONDS = 10.0


def connect(address: str, timeout: float = 60.0, heartbeat: float = HEARTBEAT_SECONDS) -> reverb.Client:
    """A client of the server at `address` (host:port), once it answers.

    From then on Reverb's writers and samplers outlive a restart of the server by themselves, and a cut of the link:
    they wait. Every `heartbeat` seconds a thread asks the server for a sign of life: after a cut it may have given the
    connection up, which a client that has nothing to send would never hear of.

    Raises:
      ReplayUnavailable: no answer within `timeout` seconds.
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
        with contextlib.suppress(reverb.errors.ReverbError, RuntimeError):  # it is down, or out of reach
            client.server_info(timeout=max(1, int(seconds)))
