"""A run whose --logdir is a URL lives in a local folder, its mirror; what changes there is uploaded in the background.

A process that starts fetches what the URL has and the folder has not. A checkpoint's last file, its marker, is uploaded
last and removed first: a checkpoint without its marker is never fetched.
"""

import contextlib
import fcntl
import fnmatch
import hashlib
import json
import os
import pathlib
import re
import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any

from absl import logging

from launchers.settings import UsageError, local_path

LOOK_SECONDS = 2.0  # between two looks for what is uploaded at once: a checkpoint, an evaluation
UPLOAD_SECONDS = 60.0  # from one upload to the next of all else that has changed
PAUSES = (0.5, 1.0, 2.0, 4.0)  # seconds before each new try of an operation that failed
LOCK_SECONDS = 600  # the most that another process of this machine may hold the lock: then something is wrong with it
FINAL = (FileNotFoundError, PermissionError, NotADirectoryError, FileExistsError, NotImplementedError)  # no new try

MARKERS = ("contents.json", "DONE")  # the last file of orbax's checkpoints, as Shoal writes them, and of Reverb's
CHECKPOINT = re.compile(r"((?:.*/)?(checkpoints|replay_\d+))/[^/]+(?=/)")
# Files that are only passing, and not mirrored.
PASSING = re.compile(r"\.mirror.*|(.*/)?(damaged_.*|evaluating\.csv|[^/]*\.new)")
AT_ONCE = re.compile(rf"(.*/)?({'|'.join(MARKERS)}|evaluator\.csv|config\.json|spec\.json|sittings/.*)")


def place(text: str) -> pathlib.Path | str:
    """Returns where a run lives, from what a person wrote: a local path, or the URL itself.

    Raises:
      UsageError: the text can be neither.
    """
    if "://" not in text:
        return local_path(text)
    _connect(text)
    return text


def _connect(url: str) -> tuple[Any, str]:
    """Returns the file system of a URL, and the path there; raises UsageError if there is none."""
    import fsspec  # imported here: only URLs need it

    scheme, _, rest = url.partition("://")
    if not scheme or not rest.strip("/"):
        raise UsageError("give a URL with a scheme and a folder, such as gs://bucket/run")
    try:
        kind = fsspec.get_filesystem_class(scheme)
        options = {"auto_mkdir": True} if getattr(kind, "local_file", False) else {}
        system, root = fsspec.core.url_to_fs(url, **options)
    except Exception as error:  # there is no such scheme, or a library is missing, which it names
        raise UsageError(str(error)) from error
    return system, root.rstrip("/")


@contextlib.contextmanager
def mirrored(logdir: pathlib.Path | str, saves: Collection[str]) -> Iterator[pathlib.Path]:
    """Gives the local folder of a run, to a process that takes part in it, and uploads what changes there.

    When the block ends, the URL has all of the folder. A `logdir` that is no URL is given as it is.

    Args:
      saves: the names of the folders from whose checkpoints the process goes on.

    Raises:
      UsageError: the URL cannot be read or written.
      OSError: not all could be uploaded, after a block that did not fail itself.
    """
    if isinstance(logdir, pathlib.Path):
        yield logdir
        return
    mirror, stop = Mirror(logdir), threading.Event()
    mirror.check_writable()
    print(f"{logdir} is mirrored in {mirror.folder}", flush=True)
    mirror.fetch(saves)
    thread = threading.Thread(target=mirror.keep_up, args=(stop,), name="mirror", daemon=True)
    thread.start()
    failed = True
    try:
        yield mirror.folder
        failed = False
    finally:
        stop.set()
        try:
            mirror.finish(thread)
        except OSError as error:
            if not failed:
                raise
            logging.warning("%s", error)


def fetched(logdir: pathlib.Path | str, saves: Collection[str], *names: str) -> pathlib.Path:
    """Fetches parts of a run that is only read, and returns its local folder. A `logdir` that is no URL is that folder.

    Args:
      saves: the names of the folders whose newest checkpoints are wanted.
      names: patterns of the other files that are wanted, besides config.json.

    Raises:
      UsageError: the URL cannot be read, or has no run.
    """
    if isinstance(logdir, pathlib.Path):
        return logdir
    mirror = Mirror(logdir)
    mirror.fetch(saves, ("config.json", *names))
    return mirror.folder


class Mirror:
    """A run's local folder, and the URL that is made to hold the same files."""

    def __init__(self, url: str):
        """Raises UsageError if the URL is a file, or cannot be read."""
        self.url = url
        self._system, self._root = _connect(url)
        full = self._system.unstrip_protocol(self._root)
        name = re.sub(r"[^\w.-]+", "-", full)[-80:] + "-" + hashlib.sha256(full.encode()).hexdigest()[:8]
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        self.folder = pathlib.Path(cache, "shoal", "logdirs", name).absolute()
        self._saved_in: set[str] = set()  # folders whose older checkpoints are to be removed from the URL
        self._ever_saved_in: set[str] = set()  # all that ever were in `_saved_in`
        if self._ask(self._system.isfile, self._root):
            raise UsageError(f"{url} is a file: a run needs a folder")

    def _ask(self, function: Callable[..., Any], *args: Any) -> Any:
        """Returns what a function of the URL's file system returns; raises UsageError if it keeps failing."""
        try:
            return _persist(function, *args)
        except Exception as error:
            raise UsageError(f"--logdir={self.url} cannot be read or written: {_words(error)}") from error

    def check_writable(self) -> None:
        """Raises UsageError unless a file can be written there and removed again."""
        probe = f"{self._root}/.mirror-{os.uname().nodename}-{os.getpid()}"
        self._ask(self._system.pipe_file, probe, b"")
        self._ask(self._system.rm_file, probe)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[dict[str, list[Any]]]:
        """Gives the record of what the URL has, and saves it when the block ends. Only one process of this machine at a
        time is in the block.

        Keyed by path, the record has each local file's size in bytes and modification time in ns when the URL had the
        same file, and then, where it is known, the `_version` of the URL's file.
        """
        path, new = self.folder / ".mirror.json", self.folder / ".mirror.new"
        with open(self.folder / ".mirror.lock", "w") as lock:
            _persist(fcntl.lockf, lock, fcntl.LOCK_EX | fcntl.LOCK_NB, pauses=[0.1] * 10 * LOCK_SECONDS)
            known: dict[str, list[Any]] = {}
            with contextlib.suppress(OSError, ValueError):
                known = json.loads(path.read_text())
            try:
                yield known
            finally:
                new.write_text(json.dumps(known))
                new.replace(path)

    def _here(self) -> dict[str, list[Any]]:
        """Returns the size and the modification time in ns of each local file that is to be at the URL, by path."""
        found = {}
        for directory, _, names in os.walk(self.folder):
            for name in names:
                path = pathlib.Path(directory, name)
                with contextlib.suppress(FileNotFoundError):  # removed just now
                    found[path.relative_to(self.folder).as_posix()] = [path.stat().st_size, path.stat().st_mtime_ns]
        return _whole(found)

    def _there(self) -> dict[str, dict[str, Any]]:
        """Returns what the URL's file system says of each file there, by path."""
        self._system.invalidate_cache()
        found = self._system.find(self._root, detail=True)
        return {name.removeprefix(self._root).lstrip("/"): said for name, said in found.items()}

    def fetch(self, saves: Collection[str], reads: Collection[str] = ()) -> None:
        """Fetches what the URL has and this folder has not.

        A file is fetched if the folder never had it as it is at the URL, unless the local one is longer: files only
        grow. Checkpoints are fetched if the newest at the URL is newer than the newest here.

        Args:
          saves: as in `mirrored`.
          reads: for a run that is only read, patterns of the files that are wanted; empty means all.

        Raises:
          UsageError: the URL cannot be read, or there is no run to read.
        """
        there = self._ask(self._there)
        if reads and "config.json" not in there:
            raise UsageError(f"no run in {self.url}: it has no config.json")
        self.folder.mkdir(parents=True, exist_ok=True)
        whole, part, count = _whole(there), self.folder / ".mirror.part", 0
        for left_out in sorted({*_checkpoints(there)} - {*_checkpoints(whole)}):
            logging.warning("%s/%s was uploaded only in part: it is not fetched", self.url, left_out)
        with self._locked() as known:
            here = self._here()
            behind = {
                folder
                for folder in set(_checkpoints(whole).values())
                if folder.rpartition("/")[2] in saves and _newest(folder, whole) > _newest(folder, here)
            }
            for path in sorted(whole, key=_turn):
                said, mine, checkpoint = whole[path], here.get(path), CHECKPOINT.match(path)
                if checkpoint:
                    wanted = checkpoint[1] in behind and not mine
                else:
                    as_known = mine and (mine[0] > said["size"] or known.get(path, mine)[2:] == [_version(said)])
                    wanted = not as_known and any(fnmatch.fnmatchcase(path, each) for each in reads or "*")
                if wanted:
                    self._ask(self._system.get_file, f"{self._root}/{path}", str(part))
                    (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
                    part.replace(self.folder / path)
                    stat = (self.folder / path).stat()
                    known[path] = [stat.st_size, stat.st_mtime_ns, _version(said)]
                    count += 1
        if count:
            print(f"fetched {count} files from {self.url}", flush=True)

    def keep_up(self, stop: threading.Event) -> None:
        """Uploads what is new until `stop` is set, in a thread of its own; warns once of each type of error."""
        seen: dict[str, Any] = {}
        warned, due, pause = set(), 0.0, LOOK_SECONDS
        while not stop.wait(pause):
            try:
                telling = {path: each for path, each in self._here().items() if AT_ONCE.fullmatch(path)}
                if telling != seen or time.monotonic() > due:
                    self.upload()
                    seen, due, pause = telling, time.monotonic() + UPLOAD_SECONDS, LOOK_SECONDS
            except Exception as error:  # of whatever kind: the run goes on
                pause = min(2 * pause, UPLOAD_SECONDS)
                if type(error) not in warned:
                    warned.add(type(error))
                    logging.warning(
                        "%s cannot be written (%s): the run goes on, and what is missing is uploaded later",
                        self.url,
                        _words(error),
                    )

    def finish(self, thread: threading.Thread) -> None:
        """Waits for the `thread` of `keep_up` to end, and uploads the rest; raises OSError if that fails."""
        thread.join(1.0)
        if thread.is_alive():
            print(f"waiting for an upload to {self.url}", flush=True)
            thread.join()
        try:
            self._saved_in |= self._ever_saved_in  # an older checkpoint may have gone here after the newer was uploaded
            self.upload(say=True)
        except Exception as error:
            raise OSError(
                f"not all of {self.folder} could be uploaded to {self.url} ({_words(error)}): nothing is lost; the "
                "same command on this machine uploads the rest"
            ) from error

    def upload(self, say: bool = False) -> None:
        """Uploads what has changed since it was uploaded or fetched; with `say`, prints how much that is.

        Raises:
          Exception: of any type; the error of an operation that kept failing.
        """
        part, removed = self.folder / ".mirror.part", False
        with self._locked() as known:
            here = self._here()
            for path in known.keys() - here.keys():
                del known[path]
            new = [path for path in sorted(here, key=_turn) if known.get(path, [])[:2] != here[path]]
            if say and new:
                megabytes = sum(here[path][0] for path in new) / 1e6
                print(f"uploading {len(new)} files, {megabytes:,.1f} MB, to {self.url}", flush=True)
            for path in new:
                if removed and path.endswith(MARKERS):  # maybe of the checkpoint that lost a file: next time
                    break
                try:
                    shutil.copyfile(self.folder / path, part)  # a copy, which cannot change during the upload
                except FileNotFoundError:
                    removed = True
                    continue
                _persist(self._system.put_file, str(part), f"{self._root}/{path}")
                known[path] = here[path]
                if path.endswith(MARKERS) and (match := CHECKPOINT.match(path)):
                    self._saved_in.add(match[1])
                    self._ever_saved_in.add(match[1])
            if new or self._saved_in:
                there = _persist(self._there)
                known.update((path, [*here[path], _version(there[path])]) for path in new if path in there)
                self._remove_old(here, there)

    def _remove_old(self, here: Collection[str], there: Collection[str]) -> None:
        """Removes from the URL the checkpoints that are no longer here, of folders that had newer ones uploaded."""
        ours = _checkpoints(here)
        for checkpoint, folder in _checkpoints(there).items():
            if folder in self._saved_in and checkpoint not in ours:
                for path in {f"{checkpoint}/{marker}" for marker in MARKERS} & {*there}:
                    _persist(self._system.rm_file, f"{self._root}/{path}")
                _persist(self._system.rm, f"{self._root}/{checkpoint}", True)
        self._saved_in.clear()


def _persist(function: Callable[..., Any], *args: Any, pauses: Collection[float] | None = None) -> Any:
    """Returns what a function returns. If it fails with an error that is not FINAL, calls it again after each pause."""
    for pause in PAUSES if pauses is None else pauses:
        try:
            return function(*args)
        except FINAL:
            raise
        except Exception:
            time.sleep(pause)
    return function(*args)


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _version(said: dict[str, Any]) -> str:
    """Returns a text that differs for each content of a file, made from all that its file system says of the file."""
    return hashlib.sha256(repr(sorted((name, str(value)) for name, value in said.items())).encode()).hexdigest()[:16]


def _whole(files: dict[str, Any]) -> dict[str, Any]:
    """Returns those of the files that are mirrored; files of checkpoints only if the checkpoint has its marker."""
    found = {path: value for path, value in files.items() if not PASSING.fullmatch(path)}
    whole = {path.rpartition("/")[0] for path in found if path.endswith(MARKERS)}
    return {path: value for path, value in found.items() if not (at := CHECKPOINT.match(path)) or at[0] in whole}


def _checkpoints(paths: Collection[str]) -> dict[str, str]:
    """Returns the checkpoints that have files among `paths`, and for each the folder that it is in."""
    return {match[0]: match[1] for match in filter(None, map(CHECKPOINT.match, paths))}


def _newest(folder: str, paths: Collection[str]) -> list[int]:
    """Returns the numbers in the name of the newest checkpoint in `folder`; [] if there is none."""
    names = (checkpoint.rpartition("/")[2] for checkpoint, at in _checkpoints(paths).items() if at == folder)
    return max(([int(digits) for digits in re.findall(r"\d+", name)] for name in names), default=[])


def _turn(path: str) -> tuple[bool, bool, str]:
    """Returns the key that puts files in order: config.json, without which there is no run, first, and markers last."""
    return path.endswith(MARKERS), path.rpartition("/")[2] != "config.json", path
