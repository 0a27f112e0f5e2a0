"""Tries thousands of command lines: none may end in a traceback, and none may start nonsense.

Each line is either refused or accepted. A refused line ends with exit code 2 and one line on stderr that starts with
`error:`, and leaves nothing behind: no new logdir and no picture. An accepted line reaches the point where work would
begin, and this work makes sense:

- train: every setting of the run has the value that the line gives, read by Python's own `int` and `float`. It is
  finite and within its declared range. The run that is saved is loaded as the same run, and can be saved again.
- role: the same holds for the run. The roles that would be played belong to it, with the kind and the task that the
  line names.
- sweep: the same holds for the run. The ends of each range make a run, and the command line of a trial with these
  values is read as that run.
- manifests: the text that is printed, or written to --output, is a JobSet.
- evaluate: the run is the one in the logdir. At least as many episodes are played as the line asks for, and equally
  many of each task.
- plot: there is a whole picture, of the kind that its name says.
- bench, bench_learners: no more is asked than that work would begin.

By default the test tries 300 lines, in chunks of 100 with a seed each; SHOAL_TEST_COMMANDS=2000 tries 2,000.
"""

import ast
import dataclasses
import io
import json
import math
import os
import pathlib
import sys
import threading
import typing
from typing import Any

import jax
import numpy as np
import pytest
import yaml

import runtime
from agents.agent import Version
from launchers import (
    evaluate,
    flags,
    manifests,
    plot,
    pod,
    processes,
    program,
    role,
    serial,
    settings,
    shutdown,
    sweep,
    threads,
    train,
    trial,
)
from launchers import population as populations
from launchers import ray as rays
from launchers import run as runs
from replay.structures import Structure
from runtime import best, checkpoint, evaluator, hosts, scheduling
from scripts import bench, bench_learners
from tests.launchers import generated, kubernetes, odd_values
from tests.launchers.generated import FOLDER, Line

COMMANDS = {
    "train": train.train,
    "role": role.role,
    "manifests": manifests.manifests,
    "sweep": sweep.sweep,
    "evaluate": evaluate.evaluate,
    "plot": plot.plot,
    "bench": bench.bench,
    "bench_learners": bench_learners.bench,
}
CHUNK = 100
CHUNKS = max(1, int(os.environ.get("SHOAL_TEST_COMMANDS", "300")) // CHUNK)
FIRST_BYTES = {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml"}


class Begun(BaseException):
    """Says that work would have begun; its arguments are those of the function that would have done the work."""


def begin(*given: Any, **named: Any) -> Any:
    raise Begun(*given)


class Restored:
    """Stands for a Checkpointer; its checkpoint is full of zeros."""

    def __init__(self, directory: pathlib.Path, agent: Any, *_: Any, **__: Any):
        self._agent = agent

    def restore(self) -> Any:
        state = jax.eval_shape(self._agent.init, jax.eval_shape(jax.random.key, 0))
        return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), state), Version(3, 456)


def kept(logdir: pathlib.Path, structure: Structure) -> best.Best:
    """Stands for best.restore; returns parameters that are zeros."""
    _, params = structure.unflatten([np.zeros(leaf.shape, leaf.dtype) for leaf in structure.leaves])
    return best.Best(Version(3, 456), params, 7.0)


class BegunBench:
    def __init__(self, run: runs.Run, *_: Any):
        run.make_agent(run.spec())
        raise Begun(run)


class Met:
    """Stands for the meeting of a pod's hosts; all of them came."""

    def __init__(self, of: hosts.Hosts, *_: Any):
        self.hosts = of

    def watch(self, *_: Any) -> None:
        """Does nothing: no host is lost."""

    def close(self, seconds: float) -> None:
        """Does nothing: no host waits."""


@pytest.fixture
def nothing_begins(monkeypatch, tmp_path):
    """Has the commands raise Begun where work would begin."""
    for placement in (threads, serial, processes, pod, rays):
        monkeypatch.setattr(placement, "train", begin)
    monkeypatch.setattr(sweep, "search", begin)
    monkeypatch.setattr(pod, "Meeting", Met)
    monkeypatch.setattr(rays, "probe", lambda host, port: None)
    monkeypatch.setattr(hosts, "start_jax", lambda *_: None)
    monkeypatch.setattr(threads, "play", begin)
    monkeypatch.setattr(evaluator, "play", begin)
    monkeypatch.setattr(bench, "Bench", BegunBench)
    monkeypatch.setattr(bench_learners, "ceilings", begin)
    monkeypatch.setattr(role, "_carrier", lambda run, addresses, seconds: addresses)
    monkeypatch.setattr(checkpoint, "Checkpointer", Restored)
    monkeypatch.setattr(best, "restore", kept)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_: None)
    monkeypatch.setattr(shutdown, "stop_on_signals", lambda notice: threading.Event())
    monkeypatch.setattr(scheduling, "give_way", lambda: None)
    monkeypatch.setattr(runtime, "leave_out_tensorflow", lambda: None)
    modules = tmp_path / "modules"
    modules.mkdir()
    odd_values.write_modules(modules)
    monkeypatch.syspath_prepend(modules)
    monkeypatch.chdir(modules)


def attempt(line: Line, folder: pathlib.Path) -> tuple[int | None, Any, str]:
    """Runs a line in its folder. Returns its exit code, stdout and stderr; or None, the arguments of Begun and stderr,
    where work would have begun."""
    folder.mkdir()
    for name, content in line.files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "loop").symlink_to("loop")
    os.chdir(folder)  # where a line without --logdir or --out writes
    command, errors, out = COMMANDS[line.command], io.StringIO(), sys.stdout
    seen, sys.stderr, sys.stdout = sys.stderr, errors, io.StringIO()
    try:
        code = flags.attempt(command, [line.command, *line.words(folder)])
        return code, sys.stdout.getvalue(), errors.getvalue()
    except Begun as begun:
        return None, begun.args, errors.getvalue()
    except BaseException as error:  # no command may let any exception out
        return 1, None, f"{errors.getvalue()} {type(error).__name__}: {error}"
    finally:
        sys.stderr, sys.stdout = seen, out


def files_in(folder: pathlib.Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def judge(line: Line, folder: pathlib.Path) -> bool:
    """Returns whether the line was accepted. Raises AssertionError if it was refused or accepted wrongly."""
    code, given, errors = attempt(line, folder)
    if code == 2:
        assert "Traceback" not in errors, errors
        said = [text for text in errors.splitlines() if text.startswith("error: ")]
        assert len(said) == 1 and len(said[0]) > len("error: 12345"), errors
        assert errors.splitlines()[-1] == said[0], errors
        there = {"loop"} | {part for name in line.files for part in (name, *map(str, pathlib.Path(name).parents))}
        assert files_in(folder) <= there, f"refused, and left {files_in(folder) - there}: {errors}"
        return False
    assert code in (None, 0), errors
    assert "error" not in errors, errors
    judges = {"train": judge_train, "role": judge_role, "manifests": judge_manifest}
    judges |= {"sweep": judge_sweep, "evaluate": judge_evaluate, "plot": judge_plot}
    if line.command in judges:
        judges[line.command](line, folder, given)
    return True


def said(line: Line, folder: pathlib.Path) -> dict[str, str]:
    """Returns the last text that the line gives for each flag: by --name=value, --name of a bool, or --name before its
    value."""
    texts, declared = {}, generated.declared(line.command)
    arguments = iter([argument.replace(FOLDER, str(folder)) for argument in line.arguments])
    for argument in arguments:
        name, equals, value = argument.lstrip("-").partition("=")
        if not equals and name in declared and declared[name].kind is not bool:
            texts[name] = next(arguments, "")
        elif argument.startswith("--flagfile"):
            texts |= {"seed": "3"} if argument.endswith("/file") else {}
        elif not equals:
            texts[name.removeprefix("no") if name.startswith("noconfig.") else name] = str(
                not name.startswith("noconfig.")
            )
        else:
            texts[name] = value
    return texts


def meant(text: str, kind: Any) -> Any:
    """Returns the value that a flag's text means, read without Shoal's code."""
    if kind is bool:
        return text.lower() in ("true", "t", "1")
    if kind is int:
        return int(text, 0) if text.strip()[:2] == "0x" else int(text)
    if typing.get_origin(kind) is tuple:
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text.split(",")
        element = typing.get_args(kind)[0]
        return tuple(map(element, value if isinstance(value, tuple | list) else (value,)))
    return float(text) if kind is float else text


def judge_run(line: Line, folder: pathlib.Path, run: runs.Run) -> None:
    """Asserts that a run makes sense and has the settings that the line gives."""
    for name, declared in settings.DECLARED.items():
        settings.check_value(name, getattr(run, name), declared)
    settings.check(run)
    for value in jax.tree.leaves(run.to_json()):
        assert not isinstance(value, float) or math.isfinite(value), run
    types = typing.get_type_hints(type(run.config))
    for name, text in said(line, folder).items():
        if name in settings.DECLARED:
            assert getattr(run, name) == meant(text, settings.DECLARED[name].kind), name
        elif name.startswith("config."):
            name = name.removeprefix("config.")
            assert getattr(run.config, name) == meant(text, types[name]), name
    assert type(run.config)(**dataclasses.asdict(run.config)) == run.config
    elsewhere = folder / "elsewhere"
    runs.save(run, elsewhere)
    assert runs.load(elsewhere) == run
    runs.save(run, elsewhere)


def judge_train(line: Line, folder: pathlib.Path, given: Any) -> None:
    run, logdir, port, *_ = given
    judge_run(line, folder, run)
    assert runs.load(logdir) == run
    assert 0 <= port <= 65_536 - run.num_replay_servers and port == int(said(line, folder).get("port", "0"), 0)
    named = said(line, folder).get("logdir")
    assert named is None or logdir == pathlib.Path(named)


def judge_sweep(line: Line, folder: pathlib.Path, given: Any) -> None:
    run, ranges, logdir, _ = given
    judge_run(line, folder, run)
    assert runs.load(logdir) == run and run.tune == said(line, folder)["tune"] and not run.population
    types = typing.get_type_hints(type(run.config))
    for end in ("low", "high"):
        values = {name: getattr(range_, end) for name, range_ in ranges.items()}
        meant = populations.with_values(dataclasses.replace(run, tune=""), values)
        assert all(type(getattr(meant.config, name)) is types[name] for name in values)
        flags.parse(train.train, ["train", *trial.words(run, values)])
        read = flags.run_from_flags()
        # A preset's `synchronous` is dropped where a value does not fit the preset's own sizes.
        assert read in (meant, dataclasses.replace(meant, synchronous=False))
        flags.parse(sweep.sweep, ["sweep", *line.words(folder)])


def judge_role(line: Line, folder: pathlib.Path, given: Any) -> None:
    works = given[0]
    told = said(line, folder)
    run = runs.load(pathlib.Path(told["logdir"]))
    judge_run(line, folder, run)
    known = program.processes_of(run, int(told.get("num_learners", "1"), 0))
    task, member = int(told.get("task", "0"), 0), told.get("member")
    assert [*works] == known.get(program.Role(told["role"], task, None if member is None else int(member, 0))) or (
        told["role"] == "replay" and [*works] == [program.Role("replay", task)]
    )


def judge_manifest(line: Line, folder: pathlib.Path, printed: str) -> None:
    written = said(line, folder).get("output")
    kubernetes.check(yaml.safe_load(pathlib.Path(written).expanduser().read_text() if written else printed))


def judge_evaluate(line: Line, folder: pathlib.Path, given: Any) -> None:
    told = said(line, folder)
    run = runs.load(pathlib.Path(told["logdir"]))
    json.dumps(run.to_json(), allow_nan=False)
    agent, _, environment, *_, episodes = given
    wanted = int(told.get("episodes", "100"), 0) * run.stacked
    assert wanted <= episodes < wanted + len(run.tasks) * run.stacked and episodes % environment.num_envs == 0


def judge_plot(line: Line, folder: pathlib.Path, given: Any) -> None:
    out = folder / said(line, folder).get("out", "curves.png")
    start = FIRST_BYTES.get(out.suffix.lower(), b"")
    assert out.stat().st_size > 1000 and out.read_bytes().startswith(start)


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_no_line_ends_in_a_traceback_or_starts_nonsense(chunk, nothing_begins, tmp_path):
    accepted, wrong = 0, []
    for index, line in enumerate(generated.lines(chunk, CHUNK)):
        try:
            accepted += judge(line, tmp_path / f"line{index}")
        except Exception as error:
            wrong.append(f"{chunk}:{index} {line.command} {line.arguments}\n  {type(error).__name__}: {error}")
    assert not wrong, "\n".join([f"{len(wrong)} of {CHUNK} lines:", *wrong])
    assert CHUNK // 10 <= accepted < CHUNK * 9 // 10, "the lines say little where nearly all of them fare alike"
