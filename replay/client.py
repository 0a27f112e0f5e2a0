"""Reaching a replay server."""

from replay.reverb_import import reverb
from replay.variables import ReplayUnavailable


def connect(address: str, timeout: float = 60.0) -> reverb.Client:
    """A client of the server at `address` (host:port), once it answers.

    From then on Reverb's writers and samplers outlive a restart of the server by themselves: they wait.

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
    return client
