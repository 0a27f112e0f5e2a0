"""The processes of Gymnasium's AsyncVectorEnv, as a run wants them: they hear no signal that is meant for the run, end
with the process that started them however that ends, and say nothing then.

They are forked from a process that has imported little (the standard library's forkserver), never from this one, whose
threads a fork would lose.
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

GRACE_SECONDS = 5.0  # for an environment to close; then its process is killed
SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}  # a terminal, or a time-out, sends them to all of a run


def work(index, make, pipe, parent_pipe, shared_memory, error_queue, autoreset_mode, semaphore) -> None:
    """What Gymnasium's own worker does, of whose arguments these are."""
    for number in SIGNALS:
        signal.signal(number, lambda *_: None)  # not SIG_IGN, which an environment's own processes would inherit
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    try:
        environment = make()
    except BaseException as error:
        said = describe(error)
        parent_pipe.close()
        with contextlib.suppress(EOFError, OSError):
            pipe.recv()  # whatever is asked first
            error_queue.put((index, EnvironmentFailure, said, said))
            pipe.send((None, False))
        return
    rest = (pipe, parent_pipe, shared_memory, error_queue, autoreset_mode, semaphore)
    with contextlib.suppress(EOFError, OSError):  # whoever asked is gone
        async_vector_env._async_worker(index, lambda: environment, *rest)


# Through pipes, not shared memory: a changed shape would be written into that as if nothing were.
OPTIONS: dict[str, Any] = {"context": "forkserver", "shared_memory": False, "daemon": False, "worker": work}


@contextlib.contextmanager
def starting() -> Iterator[None]:
    """While workers start they hear nothing either: they unblock signals once they have handlers."""
    multiprocessing.set_forkserver_preload(["environments.gymnasium", "environments.workers"])
    multiprocessing.resource_tracker.ensure_running()  # else it is started below, and unblocks signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end(vector: async_vector_env.AsyncVectorEnv) -> None:
    """Ends the workers: they close their environments when nobody can ask them any more. Gymnasium's own way waits for
    each without an end."""
    vector.closed = True
    for pipe in filter(None, vector.parent_pipes):
        pipe.close()
    deadline = time.monotonic() + GRACE_SECONDS
    for process in vector.processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()
