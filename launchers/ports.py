"""Ports and addresses. Nothing here needs JAX: an address is understood before a second is spent on importing it."""

import re
import socket

from launchers.settings import LAST_PORT, UsageError

_held: dict[int, socket.socket] = {}  # port -> the socket that keeps other runs off it


def hold_port(port: int) -> None:
    """Keeps the other runs of this machine off `port` until this process ends.

    Raises:
      UsageError: the port is taken. Two Reverb servers on one port would share its clients in silence.
    """
    if not port:  # 0: Reverb picks a free one
        return
    check_port(port)
    if port in _held:
        return
    # The lock is a socket's name that is in the kernel alone, and goes with the process however that ends. To bind the
    # port itself would keep Reverb off it too.
    lock = socket.socket(socket.AF_UNIX)
    try:
        lock.bind(f"\0shoal-replay-{port}")
    except OSError as error:
        lock.close()
        raise UsageError(f"port {port} is in use by another run: choose another with --port") from error
    _held[port] = lock


def check_port(port: int) -> None:
    """Raises UsageError if `port` is taken now."""
    if not port:  # 0: Reverb picks a free one
        return
    with socket.socket(socket.AF_INET6) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("::", port))
        except OSError as error:
            raise UsageError(f"port {port} cannot be used ({error.strerror}); choose another with --port") from error


def parse_address(what: str, text: str, ports: int = 1) -> tuple[str, int]:
    """Returns the host and the port that `text` names.

    Args:
      what: where the text is from, such as "--replay".
      ports: how many ports will be used, from that one on; none may be beyond LAST_PORT.

    Raises:
      UsageError: `text` is not host:port.
    """
    host, _, port = text.rpartition(":")
    if not host or not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) <= LAST_PORT - ports + 1:
        raise UsageError(
            f"{what}: {text!r} is not an address: give host:port, such as localhost:8000, with a port from 1 to "
            f"{LAST_PORT - ports + 1}"
        )
    return host, int(port)


def free_port() -> int:
    """Returns a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]
