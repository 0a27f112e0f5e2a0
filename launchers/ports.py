"""Ports for replay servers."""

import socket

from launchers.settings import UsageError


def check_port(port: int) -> None:
    """Raises UsageError if `port` is taken: two Reverb servers on one port would share its clients in silence."""
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
