"""Ports that are taken are refused, in one line."""

import socket
import subprocess
import sys

import pytest

from launchers.ports import check_port, free_port, hold_port
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
    from replay import server, structures  # here, for rlax comes before Reverb

    running = server.serve([server.build_variables_table(structures.Structure({}))], None, None)
    try:
        with pytest.raises(UsageError, match=str(running.port)):
            check_port(running.port)
    finally:
        running.stop()


def test_a_free_port_and_0_are_allowed():
    check_port(0)
    check_port(free_port())


def hold_in_another_process(port: int) -> subprocess.Popen:
    """A process that holds a port as a run does, and says so."""
    words = f"from launchers.ports import hold_port; hold_port({port}); print('holding', flush=True); input()"
    return subprocess.Popen(
        [sys.executable, "-c", words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT, text=True
    )


def test_a_port_is_one_runs_from_before_anything_listens_there_until_it_ends():
    port = free_port()
    other = hold_in_another_process(port)
    assert other.stdout.readline() == "holding\n"
    with pytest.raises(UsageError, match=f"port {port} is another run's; choose another with --port"):
        hold_port(port)
    other.kill()
    other.wait()
    hold_port(port)
    hold_port(port)  # this process's own, as of a server that is started again
