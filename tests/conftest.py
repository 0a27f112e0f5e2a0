"""Tests run on the CPU wherever they run. This must be said before anything imports JAX or TensorFlow."""

import os
import sys

import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"


def pytest_collection_modifyitems(items):
    """What starts ViZDoom's games runs in a process of its own (tests/environments/test_games.py): rarely one does not
    start, and EnvPool then waits for it for ever, where no time-out reaches."""
    if os.environ.get("SHOAL_TEST_VIZDOOM") != "1":
        for item in items:
            if item.get_closest_marker("vizdoom"):
                item.add_marker(pytest.mark.skip(reason="runs in a process of test_games.py"))


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config):
    """Ends the process as the launchers do (launchers/flags.py): the interpreter's own teardown, under threads that
    wait inside Reverb, aborts now and then after every test has passed."""
    status = getattr(config, "exit_status", None)
    if status is not None:
        sys.stdout.flush()
        sys.stderr.flush()
        config.get_terminal_writer().flush()
        os._exit(status)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session, exitstatus):
    session.config.exit_status = int(exitstatus)
