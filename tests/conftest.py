"""Settings for all tests. They run on the CPU on every machine: the variables below must be set before anything imports
JAX or TensorFlow."""

import gc
import importlib.util
import os
import sys

import pytest

from launchers.settings import UsageError
from tests import compiling

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
compiling.quickly(os.environ)


def pytest_collection_modifyitems(items):
    """Skips the tests that start ViZDoom's games, except in the process that tests/environments/test_games.py starts
    for them. Now and then a game does not start, and EnvPool then waits for ever, where no time-out reaches."""
    if os.environ.get("SHOAL_TEST_VIZDOOM") != "1":
        for item in items:
            if item.get_closest_marker("vizdoom"):
                item.add_marker(pytest.mark.skip(reason="runs in a process of test_games.py"))


HAS_REVERB = importlib.util.find_spec("reverb") is not None
NO_REVERB = f"no Reverb here (Python {sys.version_info.major}.{sys.version_info.minor})"


def names_reverb(text: str) -> bool:
    """Returns whether an error's text says that Reverb is missing, or TensorFlow or Ray, which are installed only with
    Reverb; or that Shoal refuses something because it needs Reverb."""
    asked = (
        "needs --carrier=reverb (and Python 3.11), because only Reverb connects several processes",
        "--carrier=reverb: Reverb is not installed",
    )
    lacking = [f"No module named '{name}" for name in ("reverb", "tensorflow", "ray")]
    return any(words in text for words in (*asked, *lacking))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    """Skips a file of tests that cannot be imported because Reverb is not installed."""
    report = yield
    if not HAS_REVERB and report.failed and names_reverb(str(report.longrepr)):
        report.outcome, report.longrepr = "skipped", (str(collector.path), None, NO_REVERB)
    return report


@pytest.hookimpl(wrapper=True)
def skip_without_reverb(item):
    """Skips a test that fails because it, or one of its fixtures, imports Reverb where that is not installed."""
    try:
        return (yield)
    except (ModuleNotFoundError, UsageError) as error:
        if HAS_REVERB or not names_reverb(str(error)):
            raise
        pytest.skip(NO_REVERB)


pytest_runtest_setup = pytest_runtest_call = skip_without_reverb


@pytest.fixture(scope="module", autouse=True)
def what_was_compiled_is_forgotten():
    """Clears JAX's caches after each file of tests. What one file compiled is of little use to the next, and grows to
    gigabytes that Python's garbage collector walks through again and again."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
        gc.collect()


@pytest.fixture(autouse=True)
def tensorflow_comes_back():
    """Lets TensorFlow be imported again: a command in the tests' process may have blocked it
    (runtime.leave_out_tensorflow)."""
    yield
    if sys.modules.get("tensorflow", True) is None:
        del sys.modules["tensorflow"]


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config):
    """Ends the process as the launchers do (launchers/flags.py). Python's own exit now and then aborts while threads
    wait inside Reverb, although every test has passed."""
    status = getattr(config, "exit_status", None)
    if status is not None:
        sys.stdout.flush()
        sys.stderr.flush()
        config.get_terminal_writer().flush()
        os._exit(status)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session, exitstatus):
    session.config.exit_status = int(exitstatus)
