"""Ports that are in use are refused, in one line."""

import socket
import subprocess
import sys

import pytest

from launchers.ports import check_port, free_port, hold_port, parse_address
from launchers.run import UsageError
from tests.launchers.command_line import ENVIRONMENT


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET6, "::"), (socket.AF_INET, "127.0.0.1")])
def test_a_port_in_use_is_refused(family, host):
    with socket.socket(family) as taken:
        taken.bind((host, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"port {port} .*--port") as error:
            check_port(port)
        assert "\n" not in str(error.value)
    check_port(port)  # free again


def test_a_replay_servers_port_is_in_use():
    from replay import server, structures  # imported here, because rlax must come before Reverb

    running = server.serve([server.build_variables_table(structures.Structure({}))], None, None)
    try:
        with pytest.raises(UsageError, match=str(running.port)):
            check_port(running.port)
    finally:
        running.stop()


def test_a_free_port_and_0_are_allowed():
    check_port(0)
    check_port(free_port())


@pytest.mark.parametrize(
    ("text", "ports", "address"),
    [
        ("localhost:8000", 1, ("localhost", 8000)),
        ("[::1]:7", 2, ("[::1]", 7)),
        ("run-replay-0-0.run:65535", 1, ("run-replay-0-0.run", 65535)),
        ("a:65534", 2, ("a", 65534)),
        ("a:65535", 2, None),
        ("a:65536", 1, None),
        *((text, 1, None) for text in ("", "a", "a:", ":1", "a:0", "a:-1", "a:1 ", "a:٣", "a:²", "a:0x1", "a:1\n")),
    ],
)
def test_an_address_is_a_host_and_a_port(text, ports, address):
    if address:
        assert parse_address("--replay", text, ports) == address
        return
    with pytest.raises(UsageError, match=r"^--replay: .* is not an address") as error:
        parse_address("--replay", text, ports)
    assert "\n" not in str(error.value)


def hold_in_another_process(port: int) -> subprocess.Popen:
    """Starts a process that holds a port as a run does, and prints a line when it does."""
    words = f"from launchers.ports import hold_port; hold_port({port}); print('holding', flush=True); input()"
    return subprocess.Popen(
        [sys.executable, "-c", words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT, text=True
    )


def test_a_port_is_one_runs_from_before_anything_listens_there_until_it_ends():
    port = free_port()
    other = hold_in_another_process(port)
    assert other.stdout.readline() == "holding\n"
    with pytest.raises(UsageError, match=f"port {port} is in use by another run: choose another with --port"):
        hold_port(port)
    other.kill()
    other.wait()
    hold_port(port)
    hold_port(port)  # again by the same process, as when a server is restarted
