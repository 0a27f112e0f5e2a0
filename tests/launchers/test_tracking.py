"""--track: a tracking service gets each row that a run writes exactly once, whatever fails meanwhile."""

import itertools
import json
import pathlib
import random
import subprocess
import sys
import threading

import pytest

from launchers import flags, services, tracking, train
from runtime import metrics
from tests.launchers import command_line, tracked_runs
from tests.launchers.test_best_checkpoint import STACKED
from tests.launchers.test_stop_at_return import QUEUE
from tests.launchers.tracked_runs import expected

LOCAL = ("--carrier=local", "--placement=threads")
CONFIG = {"agent": "impala", "env": "CartPole-v1", "config": {}}


class Store:
    """The rows that a fake service has, and how often it fails. Fake is a tracked run of the service."""

    def __init__(self, draw: random.Random, known: bool):
        self.draw, self.known = draw, known
        self.rows: list[services.Row] = []
        self.ends: list[bool] = []
        self.failing = 0.0  # how likely a call is to fail

    def fail(self) -> None:
        if self.draw.random() < self.failing:
            raise ConnectionError("nobody answers")


class Fake:
    """A tracked run. If the store is `known`, the service can say which rows it has, as for W&B's online runs; `log`
    may then fail after the rows were taken."""

    def __init__(self, store: Store, saved: dict):
        store.fail()
        self.store, self.place = store, "nowhere"
        counted = {row.role: row.number for row in store.rows}
        self.state = {"rows": counted if store.known else dict(saved.get("rows", {}))}

    def log(self, rows: list[services.Row]) -> None:
        self.store.fail()
        self.store.rows += rows
        if self.store.known:
            self.store.fail()

    def end(self, failed: bool) -> None:
        self.store.fail()
        self.store.ends.append(failed)


@pytest.fixture
def logdir(tmp_path) -> pathlib.Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def of(store: Store, logdir: pathlib.Path) -> tracking.Tracker:
    return tracking.Tracker(logdir, "fake", lambda logdir, settings, saved: Fake(store, saved))


def grow(logdir: pathlib.Path, draw: random.Random) -> None:
    """Writes rows as roles do. Some roles are killed in the middle of a row, and start again later."""
    for role in ("learner", "evaluator", "actor_0", "member_1/actor_12", "evaluating", "lineage_0"):
        if draw.random() < 0.4:
            (logdir / role).parent.mkdir(exist_ok=True)
            recorder = metrics.Recorder((logdir / role).parent, role.rpartition("/")[2])
            for _ in range(draw.choice([0, 1, 2, 30])):
                steps = draw.randrange(10**6)
                recorder.write({"env_steps": steps, "loss": draw.choice([draw.random(), float("nan")])})
            recorder.close()
            if draw.random() < 0.5:
                with open(logdir / f"{role}.csv", "a") as file:
                    file.write(draw.choice(["12", "1,2", "1,2,3,4"]))


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("seed", range(10))
def test_each_row_is_there_once_and_in_order_whatever_fails(seed, known, logdir, monkeypatch):
    draw = random.Random(seed)
    monkeypatch.setattr(tracking, "BYTES", draw.choice([1, 100, 10**6]))
    store = Store(draw, known)
    tracker = of(store, logdir)
    for _ in range(40):
        grow(logdir, draw)
        store.failing = draw.choice([0.0, 0.3, 1.0])
        if draw.random() < 0.2:
            tracker = of(store, logdir)  # another sitting
        try:
            tracker.send()
        except ConnectionError:
            tracker._service = None
    store.failing = 0.0
    of(store, logdir).send()
    sent: dict[str, list[services.Row]] = {}
    for row in store.rows:
        sent.setdefault(row.role, []).append(row)
    assert {*sent} <= {"learner", "evaluator", "actor_0", "member_1/actor_12"} and len(store.rows) > 100
    for role, path in tracked_runs.role_files(logdir).items():
        rows = metrics.read(path)
        assert [row.number for row in sent.get(role, [])] == [*range(1, len(rows) + 1)]
        assert str([row.values for row in sent.get(role, [])]) == str(rows), "of NaN none is another's equal"
    assert all(value == value for row in store.rows for value in row.finite.values())


def tracked(store: Store, logdir: pathlib.Path, monkeypatch, fails: bool = False) -> None:
    """Plays a sitting of a tracked run, which writes one row; with `fails` it then ends in an error."""
    monkeypatch.setitem(services.SERVICES, "fake", lambda logdir, settings, saved: Fake(store, saved))
    with tracking.tracked("fake", logdir):
        recorder = metrics.Recorder(logdir, "learner")
        recorder.write({"env_steps": 3})
        recorder.close()
        if fails:
            raise FloatingPointError("loss became nan")


def test_the_end_of_a_sitting_sends_what_is_left_and_says_how_it_ended(logdir, monkeypatch, capsys):
    store = Store(random.Random(0), known=False)
    tracked(store, logdir, monkeypatch)
    with pytest.raises(FloatingPointError):
        tracked(store, logdir, monkeypatch, fails=True)
    with tracking.tracked("fake", logdir):
        pass  # a run that was finished before
    assert [row.number for row in store.rows] == [1, 2] and store.ends == [False, True, False]
    assert capsys.readouterr().out.splitlines() == ["tracked by fake: nowhere"] * 3


def test_a_service_that_fails_is_told_once_and_ends_nothing(logdir, monkeypatch, capsys, caplog):
    monkeypatch.setattr(tracking, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(tracking, "MOST_SECONDS", 0.01)
    store = Store(random.Random(0), known=False)
    store.failing = 1.0
    tries = threading.Event()
    counted = itertools.count()
    fail = store.fail
    store.fail = lambda: (tries.set() if next(counted) > 5 else None, fail())  # type: ignore[method-assign]
    monkeypatch.setitem(services.SERVICES, "fake", lambda logdir, settings, saved: Fake(store, saved))
    with tracking.tracked("fake", logdir):
        metrics.Recorder(logdir, "learner").write({"env_steps": 3})
        assert tries.wait(60.0), "waited 60 s for it to be tried again and again"
    assert len([line for line in caplog.messages if "ConnectionError: nobody answers" in line]) == 1
    said = capsys.readouterr().out
    assert said == f"not all of {logdir} is in fake yet: the same command sends the rest\n"
    store.failing = 0.0
    tracked(store, logdir, monkeypatch)
    assert [row.number for row in store.rows] == [1, 2]


def test_a_service_that_never_answers_is_waited_for_only_so_long(logdir, monkeypatch, capsys):
    monkeypatch.setattr(tracking, "STALLED_SECONDS", 0.2)
    answer = threading.Event()
    monkeypatch.setitem(services.SERVICES, "fake", lambda *_: answer.wait(60.0))
    metrics.Recorder(logdir, "learner").write({"env_steps": 3})
    with tracking.tracked("fake", logdir):
        pass
    said = capsys.readouterr().out.splitlines()
    answer.set()
    assert said[0] == "sending the rest to fake" and said[1].startswith("not all of ")


@pytest.mark.parametrize("service", ["wandb", "mlflow"])
@pytest.mark.parametrize("folder", [False, True])
def test_a_missing_library_is_one_line_that_says_how_to_install_it(service, folder, tmp_path, monkeypatch, capsys):
    if folder:  # such a folder as W&B itself leaves, which Python takes for an empty package
        (tmp_path / service).mkdir()
        monkeypatch.setattr(sys, "path", [str(tmp_path)])
        monkeypatch.delitem(sys.modules, service, raising=False)
        with pytest.raises(services.UsageError, match=f"No module named '{service}'"):
            services.check(service)
        del sys.modules[service]
        return
    monkeypatch.setitem(sys.modules, service, None)
    assert flags.attempt(train.train, ["train", f"--track={service}", *LOCAL, f"--logdir={tmp_path / 'run'}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    package = {"wandb": "wandb", "mlflow": "mlflow-skinny"}[service]
    lock = line.rpartition("-m pip install -c ")[2].removesuffix(f" {package}")
    assert line.startswith(f"error: --track={service}: ") and pathlib.Path(lock).exists()
    assert not (tmp_path / "run").exists()


def test_the_libraries_are_imported_only_where_they_are_asked_for():
    code = "import sys; from launchers import services, tracking; print({'wandb', 'mlflow'} & {*sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code], env=command_line.ENVIRONMENT, capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "set()\n", done.stderr


def learn(logdir: pathlib.Path, *arguments: str) -> str:
    """Trains a run until it is done; returns what it writes to the terminal."""
    command = [sys.executable, "-m", "launchers.train", f"--logdir={logdir}", *LOCAL, *arguments]
    code, output = command_line.end(command)
    assert code == 0, output
    return output


@pytest.fixture
def mlflow(tmp_path, monkeypatch) -> str:
    pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setitem(command_line.ENVIRONMENT, "MLFLOW_TRACKING_URI", uri)
    return uri


@pytest.fixture
def wandb(monkeypatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setitem(command_line.ENVIRONMENT, "WANDB_MODE", "offline")


RUNS = {"queue": QUEUE, "population": (*STACKED, "--population=2")}


def told(settings: dict) -> dict[str, str]:
    config = {f"config.{name}": str(value) for name, value in settings["config"].items()}
    return {name: str(value) for name, value in settings.items() if name != "config"} | config


@pytest.mark.parametrize(("name", "sittings"), [("queue", (600, 1200, 1200)), ("population", (600,))])
def test_mlflow_has_what_the_files_have_also_after_a_resume(name, sittings, mlflow, tmp_path):
    logdir = tmp_path / "run"
    for steps in sittings:
        learn(logdir, "--track=mlflow", *RUNS[name], f"--max_env_steps={steps}")
        run, found = tracked_runs.in_mlflow(logdir)
        assert found == expected(logdir) and f"{'member_1/' * (name == 'population')}evaluator/return_mean" in found
        settings = json.loads((logdir / "config.json").read_text())
        if steps == 600:
            first = run.info.run_id, told(settings)
        assert (run.info.run_id, run.data.params) == first
        changed = {key: value for key, value in told(settings).items() if value != first[1][key]}
        tags = {"agent": settings["agent"], "env": "CartPole-v1", "mlflow.runName": "run"}
        assert run.data.tags == tags | changed and (not changed) == (steps == 600)
        assert run.info.status == "FINISHED"


def test_mlflow_that_does_not_answer_ends_nothing_and_has_all_later(mlflow, tmp_path, monkeypatch):
    logdir = tmp_path / "run"
    with monkeypatch.context() as elsewhere:
        elsewhere.setitem(command_line.ENVIRONMENT, "MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
        output = learn(logdir, "--track=mlflow", *QUEUE, "--max_env_steps=600")
    assert output.count("--track=mlflow cannot send now (MlflowException: ") == 1 and "Traceback" not in output, output
    assert f"not all of {logdir} is in mlflow yet" in output
    learn(logdir, "--track=mlflow", *QUEUE, "--max_env_steps=600")
    assert tracked_runs.in_mlflow(logdir)[1] == expected(logdir)


def test_mlflow_keeps_one_of_what_is_sent_twice_and_a_run_that_is_not_there_begins_anew(mlflow, logdir):
    metrics.Recorder(logdir, "learner").write({"env_steps": 3, "loss": 0.5})
    mine = tracking.Tracker(logdir, "mlflow", services.MLflow)
    mine.send()
    saved = json.loads((logdir / "tracking.json").read_text())
    (logdir / "tracking.json").write_text(json.dumps({"mlflow": saved["mlflow"] | {"rows": {}}}))
    tracking.Tracker(logdir, "mlflow", services.MLflow).send()
    run, found = tracked_runs.in_mlflow(logdir)
    assert found == expected(logdir) and run.info.run_id == saved["mlflow"]["run"]
    import mlflow as library

    library.MlflowClient().delete_run(run.info.run_id)
    tracking.Tracker(logdir, "mlflow", services.MLflow).send()
    again, found = tracked_runs.in_mlflow(logdir)
    assert found == expected(logdir) and again.info.run_id != run.info.run_id


@pytest.mark.parametrize(("name", "sittings"), [("queue", (600, 1200, 1200)), ("population", (600,))])
def test_wandb_has_what_the_files_have_also_after_a_resume(name, sittings, wandb, tmp_path):
    logdir = tmp_path / "run"
    for count, steps in enumerate(sittings, start=1):
        output = learn(logdir, "--track=wandb", *RUNS[name], f"--max_env_steps={steps}")
        assert f"tracked by wandb: {logdir}/wandb/offline-run-" in output
        runs, found, numbers = tracked_runs.in_wandb(logdir)
        assert found == expected(logdir) and len(runs) == count
        assert numbers == [*range(len(numbers))], "else W&B drops rows when the sittings are sent"
        saved = json.loads((logdir / "tracking.json").read_text())
        assert {(run.run_id, run.project, run.display_name) for run in runs} == {
            (saved["wandb"]["run"], "shoal", "run")
        }
        assert {*runs[-1].tags} == {json.loads((logdir / "config.json").read_text())["agent"], "CartPole-v1"}


KILLED = """
import json, os, pathlib, sys
from launchers import services, tracking

tracker = tracking.Tracker(pathlib.Path(sys.argv[1]), "wandb", services.WandB)
tracker.send()
os.kill(os.getpid(), 9)
"""


def test_what_wandb_had_not_written_when_it_was_killed_is_sent_again(wandb, logdir):
    command = [sys.executable, "-c", KILLED, str(logdir)]
    for sitting in range(4):
        for role in ("learner", "actor_0"):
            recorder = metrics.Recorder(logdir, role)
            for step in range(150 * sitting * (role == "learner") + 100):  # rows of about 100 bytes
                recorder.write({"env_steps": step, "loss": step / 7})
            recorder.close()
        if sitting == 3:
            command[2] = KILLED.replace("os.kill(os.getpid(), 9)", "tracker._end()")
        done = subprocess.run(command, env=command_line.ENVIRONMENT, capture_output=True, text=True, timeout=120)
        assert done.returncode == (0 if sitting == 3 else -9), done.stderr
        state = json.loads((logdir / "tracking.json").read_text())["wandb"]
        assert state["rows"] == {role: len(metrics.read(logdir / f"{role}.csv")) for role in ("learner", "actor_0")}
        assert ("open" in state) == (sitting < 3)
    runs, found, numbers = tracked_runs.in_wandb(logdir)
    assert found == expected(logdir) and numbers == [*range(len(numbers))] and len(runs) <= 4


@pytest.mark.parametrize("given", [{}, {"WANDB_MODE": "nonsense"}, {"WANDB_MODE": "disabled"}])
def test_wandb_without_an_account_is_one_line(given, wandb, tmp_path, monkeypatch):
    environment = {k: v for k, v in command_line.ENVIRONMENT.items() if not k.startswith("WANDB_")}
    command = [sys.executable, "-m", "launchers.train", f"--logdir={tmp_path / 'run'}", "--track=wandb", *LOCAL]
    done = subprocess.run(
        command,
        env=environment | {"HOME": str(tmp_path)} | given,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: --track=wandb: ") and "WANDB_MODE" in done.stderr
    assert not (tmp_path / "run").exists()
