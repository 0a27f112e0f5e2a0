"""Placement `threads`: every role a thread of this process; where Reverb carries, its servers are in it too."""

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
    members = roles.make_parts(run, logdir)
    with concurrent.futures.ThreadPoolExecutor(1, initializer=give_way) as executor:  # servers' threads inherit it
        carrier = executor.submit(roles.connect, members, logdir, port).result()
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

    learners = [start("learner", roles.learn(parts, carrier, stop)) for parts in members]
    actors = [
        start(f"actor_{task}", roles.act(parts, carrier, task, acting_ends))
        for parts in members
        for task in range(run.num_actors)
    ]
    evaluators = [start("evaluator", roles.evaluate(parts, carrier, stop)) for parts in members]
    with Display(run, logdir) as display:
        # A learner saves and ends on `stop` by itself; an evaluator ends after its learner's last parameters.
        for threads in (learners, evaluators):
            while alive := [thread for thread in threads if thread.is_alive()]:
                alive[0].join(0.25)
                display.refresh()
            acting_ends.set()
    for thread in actors:
        thread.join(10.0)
    if errors:
        raise errors[0]
