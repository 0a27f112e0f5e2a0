"""Placement `threads`: every role a thread of this process, the Reverb servers in it too."""

import concurrent.futures
import pathlib
import threading
from collections.abc import Iterator
from typing import Any

from launchers import roles
from launchers.run import Run
from launchers.shutdown import stop_on_signals
from launchers.terminal import Display
from runtime.scheduling import give_way


def train(run: Run, logdir: pathlib.Path, port: int) -> None:
    """Trains until `max_env_steps`, a signal or the first role's error, which is raised here."""
    stop, acting_ends = stop_on_signals(), threading.Event()
    parts = roles.Parts(run, logdir)
    tasks = range(run.num_replay_servers)
    with concurrent.futures.ThreadPoolExecutor(1, initializer=give_way) as executor:  # servers' threads inherit it
        servers = list(executor.map(lambda task: parts.serve(task, port and port + task), tasks))
    clients = [server.localhost_client() for server in servers]
    errors: list[BaseException] = []

    def start(name: str, role: Iterator[Any]) -> threading.Thread:
        def guarded():
            if name != "learner":
                give_way()
            try:
                for _ in role:
                    pass
            except BaseException as error:
                errors.append(error)
                stop.set()
                acting_ends.set()

        # Daemons: a thread that waits inside Reverb must not keep the process alive.
        thread = threading.Thread(target=guarded, name=name, daemon=True)
        thread.start()
        return thread

    learner = start("learner", roles.learn(parts, clients, stop))
    actors = [start(f"actor_{task}", roles.act(parts, clients, task, acting_ends)) for task in range(run.num_actors)]
    evaluator = start("evaluator", roles.evaluate(parts, clients, stop))
    with Display(run, logdir) as display:
        # The learner saves and ends on `stop` by itself; the evaluator ends after the learner's last parameters.
        for thread in (learner, evaluator):
            while thread.is_alive():
                thread.join(0.25)
                display.refresh()
            acting_ends.set()
    for thread in actors:
        thread.join(10.0)
    if errors:
        raise errors[0]
