"""Ports for replay servers."""

import socket

from launchers.settings import UsageError

_held: dict[int, socket.socket] = {}  # what keeps other runs off a port


def hold_port(port: int) -> None:
    """Keeps the other runs of this machine off `port` until this process ends.

    Raises:
      UsageError: it is taken. Two Reverb servers on one port would share its clients in silence.
    """
    if not port:  # 0: one will be picked
        return
    check_port(port)
    if port in _held:
        return
    # A name in the kernel alone, which goes with the process however that ends. To bind the port itself would keep
    # Reverb off it too.
    lock = socket.socket(socket.AF_UNIX)
    try:
        lock.bind(f"\0shoal-replay-{port}")
    except OSError as error:
        lock.close()
        raise UsageError(f"port {port} is another run's; choose another with --port") from error
    _held[port] = lock


def check_port(port: int) -> None:
    """Raises UsageError if `port` is taken now."""
    if not port:  # 0: one will be picked
        return
    with socket.socket(socket.AF_INET6) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("::", port))
        except OSError as error:
            raise UsageError(f"port {port} cannot be used ({error.strerror}); choose another with --port") from error


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]
