"""All that the project knows of a setting follows from its one declaration."""

import ast
import dataclasses
import json
import math
import pathlib
import re
import subprocess
import sys

import pytest

from agents import pbt
from launchers import configs, evaluate, flags, manifests, plot, role, settings, sweep, train
from launchers import run as runs
from launchers.settings import DECLARED, UsageError
from scripts import flags_page
from tests.launchers import command_line

DECLARING = (
    *(
        settings.Settings,
        settings.Sitting,
        settings.Tracking,
        settings.Pod,
        settings.RayCluster,
        settings.Ending,
        role.Place,
        manifests.Manifest,
    ),
    *(evaluate.Evaluation, plot.Picture, sweep.Sweep),
)
ALL = {name: declared for declaring in DECLARING for name, declared in settings.declarations(declaring).items()}
NUMBERS = [name for name, declared in ALL.items() if declared.kind in (int, float)]
TEXTS = sorted(name for name, declared in ALL.items() if declared.kind is str)
# Condition of a setting -> settings with which the condition holds.
HOLDING = {
    settings.GYMNASIUM: {"env": "gymnasium:CartPole-v1"},
    settings.POPULATION: {"population": 4},
    settings.ALONE: {},
    settings.GRADIENTS: {"travels": "gradients"},
    settings.PROCESSES: {"placement": "processes"},
    settings.REVERB: {"carrier": "reverb"},
    settings.DISPATCHED: {},
}
# Condition -> settings with which the condition fails, if it holds by default.
FAILING = {
    settings.REVERB: {"carrier": "local"},
    settings.ALONE: {"population": 4},
    settings.DISPATCHED: {"placement": "device", "carrier": "local", "env": "gymnax:CartPole-v1"},
}
CONDITIONAL = [name for name, declared in DECLARED.items() if declared.only]


def other_than(name: str) -> object:
    """Returns a value that a setting does not have in CartPole's runs."""
    declared = DECLARED[name]
    if declared.choices:
        return next(choice for choice in declared.choices if choice != declared.default)
    if declared.kind is bool:
        return not declared.default
    return "else" if declared.kind is str else min(7, declared.most)


@flags.command(*DECLARING)
def nothing() -> int:
    return 0


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_is_finite_no_bool_and_within_its_limits(name):
    declared = ALL[name]
    least, most = declared.least, declared.most
    assert least is not None and most is not None
    for value in (math.nan, math.inf, -math.inf, True, "1", None, (1,), least - 1, most + 1):
        if value is None and declared.default is None:
            continue  # None: the setting was not given
        with pytest.raises(UsageError, match=f"^--{name} must be ") as error:
            settings.check_value(name, value, declared)
        assert "\n" not in str(error.value)
    if declared.kind is int:
        with pytest.raises(UsageError, match="a whole number"):
            settings.check_value(name, least + 0.5, declared)
    for value in (least, least + 1, most):
        settings.check_value(name, value, declared)


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_is_one_of_its_choices(name):
    declared = ALL[name]
    for value in (1, None, math.nan):
        with pytest.raises(UsageError, match=f"^--{name} must be text"):
            settings.check_value(name, value, declared)
    for choice in declared.choices:
        settings.check_value(name, choice, declared)
    if declared.choices:
        with pytest.raises(UsageError, match=f"^--{name} is one of {', '.join(declared.choices)}, not 'else'"):
            settings.check_value(name, "else", declared)


@pytest.mark.parametrize("name", NUMBERS)
def test_the_command_line_takes_no_other_numbers(name, capsys):
    for value in ("nan", "inf", str(ALL[name].least - 1), "-inf", "True", "1e400", str(10**20)):
        assert flags.attempt(nothing, ["train", f"--{name}={value}"]) == 2, value
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and name in line
    assert flags.attempt(nothing, ["train", f"--{name}={ALL[name].least}"]) == 0


def test_no_flag_of_an_earlier_command_line_is_left():
    flags.parse(nothing, ["train", "--agent=ppo", "--config.epochs=2", "--seed=3"])
    assert flags.any_given() and flags.run_from_flags().config.epochs == 2
    flags.parse(nothing, ["train"])
    assert not flags.any_given() and flags.run_from_flags().agent == "impala"


@pytest.mark.parametrize(
    "env", ["CartPole-v1", "gymnasium:ALE/Pong-v5", "CartPole-v1,Acrobot-v1", "binned:5:Pendulum-v1"]
)
def test_a_run_without_a_logdir_gets_a_folder_of_its_own(env):
    flags.parse(train.train, ["train", "--agent=ppo", f"--env={env}"])
    logdir = flags.logdir_from_flags()
    assert logdir.parent == pathlib.Path("runs"), "one folder, whatever the environment is called"
    assert re.fullmatch(r"ppo-[\w.+-]+-\d{8}-\d{6}", logdir.name) and "v" in logdir.name
    flags.parse(train.train, ["train", "--agent=ppo", f"--env={env}", "--logdir=my/own"])
    assert flags.logdir_from_flags() == pathlib.Path("my/own")


@pytest.mark.parametrize("name", DECLARED)
def test_a_default_is_allowed(name):
    settings.check_value(name, getattr(settings.resolve("impala", "CartPole-v1", {}), name), DECLARED[name])


@pytest.mark.parametrize("name", CONDITIONAL)
def test_what_says_nothing_of_the_run_is_refused(name):
    only = DECLARED[name].only
    default = getattr(settings.resolve("a2c", "CartPole-v1", {}), name)
    for value in (default, other_than(name)):
        with pytest.raises(UsageError, match=f"^--{name} is for ") as error:
            settings.resolve("a2c", "CartPole-v1", {name: value} | FAILING.get(only, {}))
        assert "\n" not in str(error.value)
        assert getattr(settings.resolve("a2c", "CartPole-v1", {name: value} | HOLDING[only]), name) == value
        assert (
            getattr(settings.resolve("a2c", "CartPole-v1", {name: value} | FAILING.get(only, {}), used=[name]), name)
            == value
        )


def test_what_a_preset_says_is_not_given(monkeypatch):
    preset = settings.presets.find("a3c", "CartPole-v1")
    assert preset.run["travels"] == "gradients"
    monkeypatch.setattr(settings.presets, "find", lambda *_: preset._replace(run=preset.run | {"max_staleness": 3}))
    assert settings.resolve("a3c", "CartPole-v1", {"travels": "experience"}).max_staleness == 3


@pytest.mark.parametrize("name", DECLARED)
def test_what_a_resumed_run_may_be_given_anew(name, tmp_path):
    run = runs.make("a2c", "CartPole-v1", {"synchronous": False}, {})
    runs.save(run, tmp_path)
    changed = dataclasses.replace(run, **{name: other_than(name)})
    assert getattr(changed, name) != getattr(run, name)
    if DECLARED[name].free:
        runs.save(changed, tmp_path)
        assert runs.load(tmp_path) == changed
    else:
        with pytest.raises(UsageError, match=f"holds another run .{name} is "):
            runs.save(changed, tmp_path)


@pytest.mark.parametrize("name", [name for name, declared in DECLARED.items() if declared.default != settings.PRESET])
def test_a_run_of_a_version_without_a_setting_has_its_default(name, tmp_path):
    run = runs.make("ppo", "Catch-v0", {}, {})
    runs.save(run, tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    if name in ("agent", "env"):
        pytest.skip("always said")
    del values[name]
    path.write_text(json.dumps(values))
    plain = {"eval_period": run.max_env_steps // 20, "ready_env_steps": run.max_env_steps // 20}
    assert getattr(runs.load(tmp_path), name) == plain.get(name, DECLARED[name].default)
    runs.save(run, tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_actors": 0}, "--num_actors must be 1 or more"),
        ({"checkpoint_seconds": math.nan}, "--checkpoint_seconds must be a finite number"),
        ({"placement": "cloud"}, "--placement is one of"),
        ({"config": {"discount": 2.0}}, "config.discount must be within"),
        ({"config": None}, "written by another version"),
        ({"unheard_of": 1}, "written by another version"),
    ],
)
def test_a_run_that_was_written_over_is_refused_in_one_line(change, words, tmp_path):
    runs.save(runs.make("a2c", "CartPole-v1", {}, {}), tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UsageError, match=words) as error:
        runs.load(tmp_path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_a_curve_is_told_apart_by_what_decides_what_is_learnt():
    run = runs.make("a2c", "CartPole-v1", {}, {}).to_json()
    settled = settings.decisive(run)
    assert {"agent", "env", "num_actors", "learning_rate"} <= settled.keys()
    silent = {name for name, declared in DECLARED.items() if not declared.learnt}
    silent |= {name for name, declared in DECLARED.items() if declared.only and not declared.only.holds(run)}
    assert {"seed", "carrier", "tune", "max_staleness"} <= silent
    assert not settled.keys() & silent
    population = settings.decisive(run | {"population": 4})
    assert {"tune", "exploit"} <= population.keys() and "population_mode" not in population
    older = {name: value for name, value in run.items() if name != "travels"}
    assert settings.decisive(older) == settled, "a run from before there was the setting is on the same curve"


def test_the_rules_of_a_population_are_those_that_there_are():
    assert DECLARED["exploit"].choices == tuple(pbt.EXPLOIT)
    assert DECLARED["explore"].choices == tuple(pbt.EXPLORE)


def test_the_page_of_flags_has_the_declarations():
    """`scripts/python scripts/flags_page.py` writes the declarations into the page."""
    text = flags_page.PAGE.read_text()
    assert flags_page.written(text) == text
    assert all(f"`--{name}`" in flags_page.table() for name in DECLARED)


def test_the_help_has_the_declarations():
    done = subprocess.run(
        command_line.command("train", "--help"), env=command_line.ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 0 and all(f"  --{name}: " in done.stdout for name in [*DECLARED, "logdir", "port"])


@pytest.mark.parametrize(
    ("argument", "absent"),
    [
        ("--max_env_stps=1", ["jax"]),
        ("--agent=impalla", ["jax"]),
        ("--num_actors=0", ["jax"]),
        ("--exploit=none", ["jax"]),
        ("--config.lerning_rate=1", ["jax"]),
        ("--config.learning_rate=nan", ["jax"]),
        ("--config.torso=transformer", ["jax"]),
        ("--config.discount=1.5", ["rlax", "tensorflow", "reverb", "matplotlib", "envpool"]),
        ("--env=Pong-v55", ["rlax", "tensorflow", "reverb"]),
        ("--config.batch_size=33", ["rlax", "tensorflow", "reverb"]),
    ],
)
def test_a_mistake_waits_for_nothing_that_it_does_not_need(argument, absent):
    program = (
        "import sys; from launchers import flags, train; code = flags.attempt(train.train, sys.argv); "
        f"print(code, *(name for name in {absent} if sys.modules.get(name)))"
    )
    command = [sys.executable, "-c", program, argument, "--logdir=/nonexistent/run"]
    done = subprocess.run(command, env=command_line.ENVIRONMENT, capture_output=True, text=True)
    assert done.stdout.split() == ["2"], done.stdout + done.stderr


def test_keywords_are_the_same_run_however_they_are_written(tmp_path):
    def make(text):
        return runs.make("impala", "gymnasium:CartPole-v1", {"env_kwargs": text} if text else {}, {})

    runs.save(make('{"sutton_barto_reward": true,"max_episode_steps":9}'), tmp_path)
    runs.save(make('{ "max_episode_steps": 9, "sutton_barto_reward": true }'), tmp_path)
    assert runs.load(tmp_path).spec().max_episode_steps == 9
    for other in ('{"max_episode_steps": 8}', ""):
        with pytest.raises(settings.UsageError, match=r"holds another run \(env_kwargs is "):
            runs.save(make(other), tmp_path)


# Flags that are named but not declared: absl's, the prefix of a Config's fields, scripts/baseline's and Ray's own.
OTHERS = {"help", "flagfile", "config", "list", "head"}
FIELDS = {name for agent in configs.AGENTS for name in configs.fields(agent)}


def texts(path: pathlib.Path) -> list[str]:
    """Returns the texts in a module's code, among them those of its messages, without its docstrings."""
    module = ast.parse(path.read_text())
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docs = {id(node.body[0].value) for node in ast.walk(module)
            if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)}  # fmt: skip
    constants = [node for node in ast.walk(module) if isinstance(node, ast.Constant) and id(node) not in docs]
    return [node.value for node in constants if isinstance(node.value, str)]


@pytest.mark.parametrize("room", ["agents", "environments", "launchers", "replay", "runtime", "shoal"])
def test_messages_name_flags_and_fields_that_there_are(room):
    files = sorted((command_line.ROOT / room).rglob("*.py"))
    said = [(path.name, text) for path in files for text in texts(path)]
    flags_ = {
        (name, file) for file, text in said for name in re.findall(r"(?<![\w-])--([a-z][a-z_]*)(?![\w.{-])", text)
    }
    fields = {(name, file) for file, text in said for name in re.findall(r"(?<![\w./])config\.([a-z]\w*)", text)}
    assert not sorted((name, file) for name, file in flags_ if name not in ALL.keys() | OTHERS)
    fields = {(name, file) for name, file in fields if name != "json"}
    assert not sorted((name, file) for name, file in fields if name not in FIELDS)
    assert flags_ or room in ("agents", "environments", "shoal")
