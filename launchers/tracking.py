"""A run's numbers and settings in Weights & Biases or MLflow, sent by the process that watches over the run.

The roles write LOGDIR's CSVs wherever they are; this follows the files. LOGDIR/tracking.json keeps which tracked run
belongs to the LOGDIR and how many rows of each file it has, so that a run that is resumed goes on in it.
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
MOST_SECONDS = 600.0  # likewise, while the service does not take them
STALLED_SECONDS = 30.0  # at the end: how long to wait for a service that takes nothing
BYTES = 2**16  # of a file that are sent at a time, about
FOLLOWED = re.compile(r"(member_\d+/)?(learner|evaluator|actor_\d+)\.csv")


@contextlib.contextmanager
def tracked(service: str, logdir: pathlib.Path) -> Iterator[None]:
    """Has a service, one of SERVICES or "none", told of the run in `logdir` in the background until the block ends, and
    then of the rest. Whatever becomes of that, it is no error of the run's."""
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
        self.failed = False  # whether the run has ended by an error
        self._logdir, self._name, self._start = logdir, name, start
        self._path = logdir / "tracking.json"
        self._service: Service | None = None
        self._state: dict[str, Any] | None = None  # what tracking.json says of the service, or would if it could
        self._ended = False  # and all was sent
        self._said: set[str] = set()
        self._sent = 0  # rows, which tells whoever waits that it goes on
        self._read: dict[str, tuple[int, int]] = {}  # of each file, rows that were read and the byte to go on from

    def keep_up(self, stop: threading.Event) -> None:
        """Sends what is new until `stop`, and then the rest; of each kind of failure it warns once."""
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
            except Exception as error:  # of whatever kind: the run goes on
                self._service = None  # what it has of these rows is asked, or known, when it is there again
                pause = min(2 * pause, MOST_SECONDS)
                if type(error).__name__ not in self._said:
                    self._said.add(type(error).__name__)
                    words = " ".join(str(error).split())[:300]
                    logging.warning(
                        "--track=%s does not go on (%s: %s): the run does, and what is missing is sent later",
                        self._name, type(error).__name__, words,
                    )  # fmt: skip

    def finish(self, thread: threading.Thread) -> None:
        """Waits for the rest, as long as the service takes some of it."""
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
        """Sends the rows that are not there yet; raises whatever the service does."""
        while rows := self._unsent():
            assert self._service  # it was made for the first of them
            self._service.log(rows)
            self._sent += len(rows)
            self._save(rows)

    def _unsent(self) -> list[Row]:
        """Some of the rows that are not there yet, in their order in each file; none: there are none."""
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
            if rows and self._service is None:  # not before: of a run that breaks at once nothing is to be seen
                self._connect()
            if self._service:
                rows = [row for row in rows if row.number > self._service.state["rows"].get(row.role, 0)]
            if rows or not moved:
                return rows

    def _files(self) -> Iterable[tuple[str, pathlib.Path]]:
        """The CSVs that are followed, by name."""
        found = [*self._logdir.glob("*.csv"), *self._logdir.glob("member_*/*.csv")]
        names = {path.relative_to(self._logdir).as_posix(): path for path in found}
        return [(name.removesuffix(".csv"), names[name]) for name in sorted(names) if FOLLOWED.fullmatch(name)]

    def _connect(self) -> None:
        settings = json.loads((self._logdir / "config.json").read_text())
        self._service = self._start(self._logdir, settings, self._state or self._saved().get(self._name, {}))
        self._save([])
        self._say(f"tracked by {self._name}: {self._service.place}")

    def _saved(self) -> dict[str, Any]:
        """What is in tracking.json, by the name of the service; a file that is damaged says nothing."""
        with contextlib.suppress(OSError, ValueError):
            saved = json.loads(self._path.read_text())
            if isinstance(saved, dict) and all(isinstance(each, dict) for each in saved.values()):
                return saved
        return {}

    def _save(self, sent: list[Row]) -> None:
        """Keeps how far the service is, whole or as it was."""
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
        if text not in self._said:  # again, when it was connected again
            self._said.add(text)
            with contextlib.suppress(OSError):  # a run outlives its terminal
                print(text, flush=True)
