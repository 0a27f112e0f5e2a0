"""Worker processes for Gymnasium's AsyncVectorEnv, made to suit a run.

They ignore signals that are meant for the run. They end with the process that started them, however it ends, and print
nothing then. They are forked from the standard library's forkserver, a process that has imported little, and never from
this process, whose threads a fork would lose.
"""

import contextlib
import multiprocessing
import multiprocessing.resource_tracker
import signal
import time
from collections.abc import Iterator
from typing import Any

from gymnasium.vector import async_vector_env

from environments.environment import EnvironmentFailure, describe

GRACE_SECONDS = 5.0  # the time for environments to close; then their processes are killed
# A terminal, or a time-out, sends them to all of a run.
SIGNALS = {signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP}


def work(index, make, pipe, parent_pipe, shared_memory, error_queue, autoreset_mode, semaphore) -> None:
    """Runs one environment in its process, as Gymnasium's own worker does, whose arguments these are."""
    for number in SIGNALS:
        signal.signal(number, lambda *_: None)  # not SIG_IGN, which an environment's own processes would inherit
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    try:
        environment = make()
    except BaseException as error:
        said = describe(error)
        parent_pipe.close()
        with contextlib.suppress(EOFError, OSError):
            pipe.recv()  # the first request, whatever it is, is answered with the failure
            error_queue.put((index, EnvironmentFailure, said, said))
            pipe.send((None, False))
        return
    rest = (pipe, parent_pipe, shared_memory, error_queue, autoreset_mode, semaphore)
    with contextlib.suppress(EOFError, OSError):  # the process that asks is gone
        async_vector_env._async_worker(index, lambda: environment, *rest)


# Observations travel through pipes, not shared memory: an observation of a wrong shape would be written into shared
# memory without an error.
OPTIONS: dict[str, Any] = {"context": "forkserver", "shared_memory": False, "daemon": False, "worker": work}


@contextlib.contextmanager
def starting() -> Iterator[None]:
    """Blocks signals in this thread while workers start. They inherit the block, and end it once they have handlers."""
    multiprocessing.set_forkserver_preload(["environments.gymnasium", "environments.workers"])
    multiprocessing.resource_tracker.ensure_running()  # if it were started in the block below, it would unblock signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end(vector: async_vector_env.AsyncVectorEnv) -> None:
    """Ends the workers by closing their pipes, upon which they close their environments.

    Workers that are left after GRACE_SECONDS are killed; Gymnasium's own `close` would wait for them for ever.
    """
    vector.closed = True
    for pipe in filter(None, vector.parent_pipes):
        pipe.close()
    deadline = time.monotonic() + GRACE_SECONDS
    for process in vector.processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()
