"""Runs that tests share: each is trained once, when the first test asks for it."""

import pytest

from tests.shoal.runs import SEED, evaluated, trained


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """Returns a function from a name in tests.shoal.runs.COMMANDS to the run's LOGDIR and its evaluation by the key of
    SEED."""
    folder, found = tmp_path_factory.mktemp("runs"), {}

    def make(name: str):
        if name not in found:
            logdir = trained(name, folder)
            found[name] = logdir, evaluated(logdir, SEED)
        return found[name]

    return make
