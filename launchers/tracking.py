"""Sends a run's numbers and settings to Weights & Biases or MLflow, from the process that watches over the run.

The roles write LOGDIR's CSVs wherever they run, and this module follows the files. LOGDIR/tracking.json says which
tracked run belongs to the LOGDIR and how many rows of each file were sent, so that a resumed run continues in it.
"""

import contextlib
import json
import pathlib
import re
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

from absl import logging

from launchers import recorded
from launchers.services import SERVICES, Row, Service, Start
from runtime import metrics
from runtime.scheduling import give_way

LOOK_SECONDS = 5.0  # between two looks for new rows
MOST_SECONDS = 600.0  # the longest pause between two looks, while the service does not take rows
STALLED_SECONDS = 30.0  # how long the end of a run waits for a service that takes nothing
BYTES = 2**16  # about how much of a file is sent at a time
FOLLOWED = re.compile(r"(member_\d+/)?(learner|evaluator|actor_\d+)\.csv")


@contextlib.contextmanager
def tracked(service: str, logdir: pathlib.Path) -> Iterator[None]:
    """Sends the run in `logdir` to `service` in a background thread until the block ends, and then sends the rest.
    `service` is one of SERVICES, or "none", for which nothing is sent. A failure to send is never an error of the run.
    """
    if service not in SERVICES:
        yield
        return
    tracker, stop = Tracker(logdir, service, SERVICES[service]), threading.Event()
    thread = threading.Thread(target=tracker.keep_up, args=(stop,), name="tracking", daemon=True)
    thread.start()
    tracker.failed = True
    try:
        yield
        tracker.failed = False
    finally:
        stop.set()
        tracker.finish(thread)


class Tracker:
    """Sends the rows of a LOGDIR's CSVs to a service, each once."""

    def __init__(self, logdir: pathlib.Path, name: str, start: Start):
        self.failed = False  # whether the run has ended with an error
        self._logdir, self._name, self._start = logdir, name, start
        self._path = logdir / "tracking.json"
        self._service: Service | None = None
        self._state: dict[str, Any] | None = None  # as in tracking.json, if that can be written
        self._ended = False  # whether the run has ended and all rows were sent
        self._said: set[str] = set()  # messages and kinds of errors that were printed
        self._sent = 0  # rows that were sent, by which `finish` sees progress
        self._read: dict[str, tuple[int, int]] = {}  # for each file: how many rows were read, the byte to go on from

    def keep_up(self, stop: threading.Event) -> None:
        """Sends new rows until `stop` is set, and then the rest; a thread of its own runs this. Each kind of error
        gives one warning."""
        give_way()
        pause = LOOK_SECONDS
        last = False
        while not last:
            last = stop.wait(pause)
            try:
                self.send()
                pause = LOOK_SECONDS
                if last:
                    self._end()
            except Exception as error:  # of any kind: the run goes on
                self._service = None  # the next connection finds out which of the rows it has
                pause = min(2 * pause, MOST_SECONDS)
                if type(error).__name__ not in self._said:
                    self._said.add(type(error).__name__)
                    words = " ".join(str(error).split())[:300]
                    logging.warning(
                        "--track=%s cannot send now (%s: %s): the run goes on, and what is missing is sent later",
                        self._name, type(error).__name__, words,
                    )  # fmt: skip

    def finish(self, thread: threading.Thread) -> None:
        """Waits until `thread`, which runs `keep_up`, has sent the rest. It gives up once the service has taken nothing
        for STALLED_SECONDS."""
        sent, deadline = self._sent, time.monotonic() + STALLED_SECONDS
        thread.join(1.0)
        if thread.is_alive():
            self._say(f"sending the rest to {self._name}")
        while thread.is_alive() and time.monotonic() < deadline:
            thread.join(0.5)
            if self._sent != sent:
                sent, deadline = self._sent, time.monotonic() + STALLED_SECONDS
        if not self._ended:
            self._say(f"not all of {self._logdir} is in {self._name} yet: the same command sends the rest")

    def send(self) -> None:
        """Sends the rows that the service does not have yet. Raises whatever the service raises."""
        while rows := self._unsent():
            assert self._service  # `_unsent` has connected for the first row
            self._service.log(rows)
            self._sent += len(rows)
            self._save(rows)

    def _unsent(self) -> list[Row]:
        """Returns some of the rows that the service does not have yet, in order within each file; [] if there are none.

        Connects to the service, if it is not connected, once there is a row."""
        if self._service is None:
            self._read.clear()
        while True:
            rows, moved = [], False
            for role, path in self._files():
                count, at = self._read.get(role, (0, 0))
                values, end = metrics.read_on(path, at, BYTES)
                moved = moved or end != at
                rows += [Row(role, count + index, each) for index, each in enumerate(values, start=1)]
                self._read[role] = count + len(values), end
            if rows and self._service is None:  # not before, so that a run that breaks at once is not tracked
                self._connect()
            if self._service:
                rows = [row for row in rows if row.number > self._service.state["rows"].get(row.role, 0)]
            if rows or not moved:
                return rows

    def _files(self) -> Iterable[tuple[str, pathlib.Path]]:
        """Returns the CSVs that are followed, each with its name without .csv."""
        found = [*self._logdir.glob("*.csv"), *self._logdir.glob("member_*/*.csv")]
        names = {path.relative_to(self._logdir).as_posix(): path for path in found}
        return [(name.removesuffix(".csv"), names[name]) for name in sorted(names) if FOLLOWED.fullmatch(name)]

    def _connect(self) -> None:
        settings = json.loads((self._logdir / "config.json").read_text())
        self._service = self._start(self._logdir, settings, self._state or self._saved().get(self._name, {}))
        self._save([])
        self._say(f"tracked by {self._name}: {self._service.place}")

    def _saved(self) -> dict[str, Any]:
        """Returns what tracking.json holds, by the name of the service; {} if it is missing or damaged."""
        with contextlib.suppress(OSError, ValueError):
            saved = json.loads(self._path.read_text())
            if isinstance(saved, dict) and all(isinstance(each, dict) for each in saved.values()):
                return saved
        return {}

    def _save(self, sent: list[Row]) -> None:
        """Records the rows `sent` in tracking.json, which is replaced as a whole or not at all."""
        assert self._service
        self._state = self._service.state
        self._state["rows"] |= {row.role: row.number for row in sent}
        recorded.write(self._path, self._saved() | {self._name: self._state})

    def _end(self) -> None:
        if self._service:
            self._service.end(self.failed)
            self._save([])
        self._ended = True

    def _say(self, text: str) -> None:
        if text not in self._said:  # a message would come again with each new connection
            self._said.add(text)
            with contextlib.suppress(OSError):  # a run outlives its terminal
                print(text, flush=True)
