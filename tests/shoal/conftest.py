"""Runs are trained once, and for the test that asks first."""

import pytest

from tests.shoal.runs import SEED, evaluated, trained


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A name of tests.shoal.runs.COMMANDS -> the run's LOGDIR, and its evaluation by the key of SEED."""
    folder, found = tmp_path_factory.mktemp("runs"), {}

    def make(name: str):
        if name not in found:
            logdir = trained(name, folder)
            found[name] = logdir, evaluated(logdir, SEED)
        return found[name]

    return make
