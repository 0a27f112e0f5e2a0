"""Runs whose --logdir is a URL. Nothing that was uploaded is lost, whatever ends, fails or is removed."""

import contextlib
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import threading
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from launchers import evaluate, flags, mirror, plot, train
from launchers.mirror import Mirror
from launchers.ports import free_port
from launchers.settings import UsageError
from runtime import metrics
from tests import waiting
from tests.launchers import command_line

WAIT = 120.0
QUICK = (*command_line.TINY, "--carrier=local", "--eval_episodes=2")


class Killed(BaseException):
    """Stands for the end of a process in the middle of a call."""


class Shaky(MemoryFileSystem):
    """A file system that fails. A call raises an error if `fails(its number)` is true, and Killed if its number is
    `killed_at`."""

    protocol = "shaky"
    store: dict[str, Any] = {}
    pseudo_dirs = [""]
    calls = 0
    killed_at = -1
    fails: Any = staticmethod(lambda call: False)

    @classmethod
    def _strip_protocol(cls, path):
        return MemoryFileSystem._strip_protocol(str(path).removeprefix("shaky://"))

    def unstrip_protocol(self, name):
        return f"shaky://{name}"

    def _shake(self):
        Shaky.calls += 1
        if Shaky.calls == Shaky.killed_at:
            raise Killed
        if Shaky.fails(Shaky.calls):
            raise RuntimeError("the network is unreachable")

    def put_file(self, lpath, rpath, **kwargs):
        self._shake()
        self.pipe_file(rpath, pathlib.Path(lpath).read_bytes())

    def get_file(self, rpath, lpath, **kwargs):
        self._shake()
        return super().get_file(rpath, lpath, **kwargs)

    def find(self, path, **kwargs):
        self._shake()
        return super().find(path, **kwargs)

    def rm_file(self, path):
        self._shake()
        super().rm_file(path)


@pytest.fixture
def shaky(monkeypatch):
    """Registers an empty file system for shaky://, and returns its class."""
    fsspec.register_implementation("shaky", Shaky, clobber=True)
    for name, value in dict(store={}, pseudo_dirs=[""], calls=0, killed_at=-1, fails=lambda call: False).items():
        monkeypatch.setattr(Shaky, name, staticmethod(value) if name == "fails" else value)
    monkeypatch.setattr(mirror, "PAUSES", (0.0,) * 4)
    return Shaky


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Returns a function that moves this process to a machine of a given name, whose local folders are its own."""

    def become(name: str) -> pathlib.Path:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
        return tmp_path / name / "shoal" / "logdirs"

    become("first")
    return become


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    """Returns the files of a local folder that should also be at its URL: path -> content."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".mirror")
    }


def insist(function, *args):
    """Calls a function until it does not fail, at most 50 times; returns what it returns."""
    for _ in range(50):
        with contextlib.suppress(RuntimeError, UsageError):
            return function(*args)
    raise AssertionError(f"{function} failed 50 times")


def uploaded(folder: str = "/bucket/run/") -> dict[str, bytes]:
    return {path.removeprefix(folder): file.getvalue() for path, file in Shaky.store.items()}


def save_checkpoint(folder: pathlib.Path, number: int, draw: random.Random) -> None:
    """Writes a checkpoint of a few files, which all contain its number. Keeps the newest two checkpoints."""
    path = folder / "checkpoints" / f"learner_steps_{number}"
    (path / "default").mkdir(parents=True)
    for file in range(draw.randint(1, 4)):
        (path / "default" / f"{draw.random()}").write_text(f"{number} {file}")
    (path / "contents.json").write_text(
        json.dumps({"number": number, "files": len(list((path / "default").iterdir()))})
    )
    for old in sorted(path.parent.iterdir(), key=lambda each: int(each.name.split("_")[-1]))[:-2]:
        shutil.rmtree(old)


def check_whole(folder: pathlib.Path) -> int:
    """Returns the number of the newest checkpoint, or 0; asserts that each checkpoint is whole."""
    newest = 0
    for path in (folder / "checkpoints").glob("*"):
        said = json.loads((path / "contents.json").read_text())
        files = list((path / "default").iterdir())
        assert len(files) == said["files"] and all(file.read_text().split()[0] == str(said["number"]) for file in files)
        newest = max(newest, said["number"])
    return newest


@pytest.mark.parametrize("seed", range(30))
def test_what_was_uploaded_is_never_lost_and_no_half_checkpoint_is_taken(seed, shaky, machine):
    """The run plays on two machines by turns. It is killed at any call of its file system, and the network sometimes
    fails."""
    draw = random.Random(seed)
    shaky.fails = staticmethod(lambda call: draw.random() < 0.2)
    number, rows, safe = 0, 0, 0
    for sitting in range(8):
        machine(draw.choice(("first", "second")))
        shaky.killed_at = -1
        run = insist(Mirror, "shaky://bucket/run")
        csv, list_of_uploads = run.folder / "learner.csv", run.folder / ".mirror.json"
        had = csv.read_bytes() if csv.exists() else b""
        insist(run.fetch, {"checkpoints"})
        assert not had or len(csv.read_bytes()) >= len(had), "fewer rows than this machine had"
        before = list_of_uploads.read_bytes()
        assert check_whole(run.folder) >= safe, "an older checkpoint than was uploaded"
        assert len(csv.read_text().splitlines() if csv.exists() else []) >= rows, "fewer rows than were uploaded"
        number = max(number, check_whole(run.folder))
        (run.folder / "config.json").write_text("{}")
        (run.folder / "sittings").mkdir(exist_ok=True)
        (run.folder / "sittings" / "train").write_text(f"{sitting:<9}")
        shaky.killed_at = shaky.calls + draw.randint(1, 60)
        try:
            for _ in range(draw.randint(1, 4)):
                with open(csv, "a") as file:
                    file.write(f"{number}\n" * draw.randint(0, 3))
                number += draw.randint(1, 9)
                save_checkpoint(run.folder, number, draw)
                insist(run.upload)
                safe, rows = number, len(csv.read_text().splitlines())
                assert uploaded() == contents(run.folder), "after an upload both have the same"
        except Killed:
            list_of_uploads.write_bytes(before)  # a killed process would not have written this list
    assert safe, "no upload was ever completed: the cases test nothing"


def test_a_checkpoint_that_was_uploaded_in_part_is_left_out(shaky, machine, caplog):
    draw = random.Random(0)
    run = Mirror("shaky://bucket/run")
    run.fetch({"checkpoints"})
    save_checkpoint(run.folder, 5, draw)
    run.upload()
    save_checkpoint(run.folder, 10, draw)
    shaky.killed_at = shaky.calls + 2
    with pytest.raises(Killed):
        run.upload()
    assert any("learner_steps_10" in path for path in uploaded())
    machine("second")
    other = Mirror("shaky://bucket/run")
    other.fetch({"checkpoints"})
    assert check_whole(other.folder) == 5 and "learner_steps_10 was uploaded only in part" in caplog.text
    run.upload()  # the first machine goes on
    other.fetch({"checkpoints"})
    assert check_whole(other.folder) == 10


def test_what_goes_after_a_newer_one_was_uploaded_goes_at_the_end(shaky, machine):
    """A replay server removes its older checkpoint some time after the newer one is whole. When the run ends, the older
    one is removed at the URL too."""
    draw, run = random.Random(0), Mirror("shaky://bucket/run")
    run.fetch({"checkpoints"})
    for number in (5, 10):
        save_checkpoint(run.folder, number, draw)
    run.upload()
    shutil.rmtree(run.folder / "checkpoints" / "learner_steps_5")
    run.upload()
    ended = threading.Thread(target=run.upload)
    ended.start()
    run.finish(ended)
    assert uploaded() == contents(run.folder) and check_whole(run.folder) == 10


def test_each_machine_uploads_what_it_wrote_and_removes_nothing_of_others(shaky, machine):
    names = ("first", "second", "third")
    runs = {}
    for name in names:
        machine(name)
        runs[name] = Mirror("shaky://bucket/run")
        runs[name].fetch({"checkpoints"} if name == "first" else set())
    draw = random.Random(1)
    for number in range(1, 6):
        save_checkpoint(runs["first"].folder, number, draw)
        for name in names:
            with open(runs[name].folder / f"{name}.csv", "a") as file:
                file.write(f"{number}\n")
        for name in draw.sample(names, 3):
            runs[name].upload()
    assert {path for path in uploaded() if path.endswith(".csv")} == {f"{name}.csv" for name in names}
    assert {path.split("/")[1] for path in uploaded() if "/" in path} == {"learner_steps_4", "learner_steps_5"}
    runs["second"].fetch(set())
    assert (runs["second"].folder / "first.csv").read_text() == "1\n2\n3\n4\n5\n"
    assert not (runs["second"].folder / "checkpoints").exists(), "it saves none, and needs none"
    before = uploaded()
    runs["second"].upload()
    assert uploaded() == before


def test_sittings_of_another_machine_count(shaky, machine):
    """The file always has the same length. Only what the URL's file system says of it shows that it is newer."""
    for name, text in (("first", "1"), ("second", "2"), ("first", "3")):
        machine(name)
        run = Mirror("shaky://bucket/run")
        run.fetch(set())
        path = run.folder / "sittings" / "train"
        path.parent.mkdir(exist_ok=True)
        assert not path.exists() or path.read_text() == str(int(text) - 1)
        path.write_text(text)
        run.upload()


def test_a_failure_is_told_once_for_each_kind_and_what_was_missed_is_uploaded(shaky, machine, caplog, monkeypatch):
    monkeypatch.setattr(mirror, "LOOK_SECONDS", 0.001)
    monkeypatch.setattr(mirror, "UPLOAD_SECONDS", 0.01)
    run = Mirror("shaky://bucket/run")
    run.fetch(set())
    (run.folder / "config.json").write_text("{}")
    shaky.fails = staticmethod(lambda call: True)
    stop = threading.Event()
    thread = threading.Thread(target=run.keep_up, args=(stop,))
    thread.start()
    try:
        calls = shaky.calls
        waiting.until(lambda: shaky.calls > calls + 40, WAIT, "uploads were tried several times")
        shaky.fails = staticmethod(lambda call: False)
        waiting.until(lambda: "config.json" in uploaded(), WAIT, "what failed was uploaded")
    finally:
        stop.set()
        thread.join()
    assert caplog.text.count("the run goes on, ") == 1 and "RuntimeError: the network is unreachable" in caplog.text


def attempt(command, *arguments: str) -> int:
    return flags.attempt(command, [command.__name__, *arguments])


def newest_checkpoint(paths) -> int:
    """Returns the number of updates in the newest whole checkpoint among these paths, or 0."""
    names = [path.split("/")[-2] for path in paths if path.endswith("/contents.json") and "/checkpoints/" in path]
    return max((int(name.split("_")[-1]) for name in names), default=0)


def test_a_run_goes_on_from_its_url_and_is_evaluated_and_drawn_from_there(machine, tmp_path, capfd):
    url, store = "memory://bucket/here", MemoryFileSystem.store
    picture = tmp_path / "curve.png"
    folders = machine("first")
    assert attempt(train.train, *QUICK, f"--logdir={url}", "--max_env_steps=1600", "--eval_period=400") == 0
    steps = newest_checkpoint(store)
    assert steps > 0
    assert "/bucket/here/evaluator.csv" in store and "/bucket/here/curve.png" in store
    shutil.rmtree(folders)  # without its folders, this machine is a new one
    assert attempt(train.train, *QUICK, f"--logdir={url}", "--max_env_steps=3200", "--eval_period=400") == 0
    (folder,) = folders.iterdir()
    rows = metrics.read(folder / "learner.csv")
    first = [row for row in rows if row["learner_steps"] <= steps]
    assert first and len(rows) > len(first) and rows[-1]["env_steps"] >= 3200
    assert newest_checkpoint(store) == rows[-1]["learner_steps"] > steps
    capfd.readouterr()
    machine("second")
    assert attempt(evaluate.evaluate, f"--logdir={url}", "--episodes=2") == 0
    assert f"env_steps={rows[-1]['env_steps']:.0f} " in capfd.readouterr().out
    assert attempt(plot.plot, f"--out={picture}", url) == 0 and picture.stat().st_size > 1000
    (folder,) = machine("second").iterdir()
    assert not list(folder.glob("tensorboard")), "what only reads fetches what it reads"


def test_a_url_that_cannot_be_written_at_the_end_is_one_line_and_nothing_is_lost(shaky, machine, capfd, monkeypatch):
    real = shaky.put_file

    def put_file(self, lpath, rpath, **kwargs):
        if rpath.endswith("learner.csv"):
            raise RuntimeError("the quota is used up")
        real(self, lpath, rpath, **kwargs)

    monkeypatch.setattr(shaky, "put_file", put_file)
    url = "shaky://bucket/run"
    assert attempt(train.train, *QUICK, f"--logdir={url}", "--max_env_steps=800", "--eval_period=800") == 2
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1 and "the same command on this machine uploads the rest" in said[0] and url in said[0]
    monkeypatch.setattr(shaky, "put_file", real)
    (folder,) = machine("first").iterdir()
    rows = len((folder / "learner.csv").read_text().splitlines())
    assert attempt(train.train, *QUICK, f"--logdir={url}", "--max_env_steps=800", "--eval_period=800") == 0
    assert len(uploaded()["learner.csv"].splitlines()) >= rows > 1


def start(machine: pathlib.Path, module: str, *arguments: str) -> subprocess.Popen:
    """Starts a command on a machine with folders of its own. Its output goes to the file `output` there."""
    machine.mkdir(exist_ok=True)
    compiled = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache", "shoal", "jax")
    environment = command_line.ENVIRONMENT | {
        "XDG_CACHE_HOME": str(machine),
        "JAX_COMPILATION_CACHE_DIR": str(compiled),
    }
    with open(machine / "output", "ab") as output:
        command = [sys.executable, "-m", f"launchers.{module}", *arguments]
        return subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)


def expect_end(process: subprocess.Popen, machine: pathlib.Path, code: int = 0) -> None:
    """Waits for a command's end. If it does not end in time, its output shows where its threads are."""
    try:
        assert process.wait(WAIT) == code, (machine / "output").read_text()
    except subprocess.TimeoutExpired:
        command_line.abort(process)
        process.wait()
        raise AssertionError(f"waited {WAIT} s for its end: {(machine / 'output').read_text()}") from None


@pytest.mark.parametrize("placement", ["threads", "serial"])
def test_a_run_that_was_killed_goes_on_elsewhere_from_the_checkpoint_that_was_uploaded(placement, tmp_path):
    target, url = tmp_path / "target", f"file://{tmp_path / 'target'}"
    rest = (*QUICK, f"--logdir={url}", f"--placement={placement}")
    training = start(tmp_path / "first", "train", *rest, "--max_env_steps=1000000000", "--checkpoint_seconds=0.5")
    try:
        saved = lambda: newest_checkpoint([str(path) for path in target.rglob("contents.json")])
        waiting.until(lambda: saved() > 0 or training.poll() is not None, WAIT, "a checkpoint was uploaded")
    finally:
        training.send_signal(signal.SIGKILL)
        training.wait()
    assert saved(), (tmp_path / "first" / "output").read_text()
    again = start(tmp_path / "second", "evaluate", f"--logdir={url}", "--episodes=2")
    expect_end(again, tmp_path / "second")
    words = (tmp_path / "second" / "output").read_text().split()
    (env_steps,) = (int(word.split("=")[1]) for word in words if word.startswith("env_steps="))
    going_on = start(tmp_path / "third", "train", *rest, f"--max_env_steps={env_steps + 400}", "--eval_period=1000000")
    try:
        expect_end(going_on, tmp_path / "third")
    finally:
        going_on.kill()
    (folder,) = (tmp_path / "third" / "shoal" / "logdirs").iterdir()
    last = metrics.latest(folder, "learner")
    assert env_steps + 400 <= last["env_steps"] < env_steps + 800, "it went on from another checkpoint"
    assert contents(folder) == contents(target)


@pytest.mark.parametrize(
    "arguments", [("--placement=processes",), (*command_line.TINY_REPLAY, "--placement=processes")]
)
def test_processes_write_here_and_their_launcher_uploads(arguments, tmp_path):
    pytest.importorskip("reverb")
    target, url = tmp_path / "target", f"file://{tmp_path / 'target'}"
    tiny = arguments if len(arguments) > 1 else (*command_line.TINY, *arguments)
    rest = (*tiny, "--max_env_steps=1600", "--eval_period=1600", "--eval_episodes=2", f"--logdir={url}")
    for machine, more in (("first", ()), ("second", ("--max_env_steps=2400",))):
        training = start(tmp_path / machine, "train", *rest, *more)
        try:
            expect_end(training, tmp_path / machine)
        finally:
            training.terminate()
        (folder,) = (tmp_path / machine / "shoal" / "logdirs").iterdir()
        assert contents(folder) == contents(target)
    assert int((target / "sittings" / "learner_0").read_text().split()[0]) == 2
    if len(arguments) > 1:
        assert len(list(target.glob("replay_[01]/*/DONE"))) == 2
        assert "fill it again" not in (tmp_path / "second" / "output").read_text()


def test_roles_on_two_machines_have_one_url(tmp_path):
    pytest.importorskip("reverb")
    target, url, port = tmp_path / "target", f"--logdir=file://{tmp_path / 'target'}", free_port()
    run = (*command_line.TINY, "--max_env_steps=1600", "--eval_period=800", "--eval_episodes=2")
    replay, own = f"--replay=localhost:{port}", {"first": [], "second": []}
    try:
        own["first"].append(start(tmp_path / "first", "role", "--role=replay", f"--port={port}", url, *run))
        waiting.until(lambda: (target / "config.json").exists(), WAIT, "the first role's run was uploaded")
        # The other roles read the run's settings from the URL.
        own["second"] += [
            start(tmp_path / "second", "role", f"--role={role}", replay, url) for role in ("learner", "evaluator")
        ]
        own["first"].append(start(tmp_path / "first", "role", "--role=actor", replay, url))  # both actors
        for process in own["second"]:
            expect_end(process, tmp_path / "second")
        for process in own["first"]:
            process.terminate()
        for process in own["first"]:
            expect_end(process, tmp_path / "first", 128 + signal.SIGTERM)
    finally:
        for process in (*own["first"], *own["second"]):
            process.kill()
    (first,), (second,) = ((tmp_path / name / "shoal" / "logdirs").iterdir() for name in own)
    assert {"actor_0.csv", "actor_1.csv", "learner.csv", "evaluator.csv"} <= contents(target).keys()
    assert not (first / "learner.csv").exists() and not (second / "actor_0.csv").exists()
    for folder in (first, second):
        assert contents(folder).items() <= contents(target).items()
