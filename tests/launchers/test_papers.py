"""The tables "The paper's settings" in docs/ say exactly what `--preset=paper` sets."""

import dataclasses
import pathlib
import re
import shlex

import pytest

from launchers import configs, flags, papers, settings, train
from launchers import run as runs
from launchers.settings import DECLARED, UsageError

DOCS = pathlib.Path(__file__).resolve().parents[2] / "docs"
# A block of commands, then perhaps a sentence with the agent whose table this one changes, and a table.
TABLE = re.compile(
    r"```sh\n((?:scripts/train .* --preset=paper\n)+)```\n\n(?:As `(\w+)`[^|]*?but:\n\n)?((?:\|.*\n)+)", re.M
)
FLAG = re.compile(r"`--([\w.]+)=([^`]*)`")
UNSAID = {"agent", "env", "preset", "carrier", "seed"}  # settings that no paper decides


def rows_of(text: str) -> dict[str, str]:
    """Returns the flags at the start of each row's last cell: name -> value. Flags after other words do not count."""
    found = {}
    for line in text.splitlines()[2:]:
        cell = line.strip("|").split("|")[-1].strip()
        while match := FLAG.match(cell):
            name, value = match.groups()
            assert name not in found, f"{name} has two rows"
            found[name] = "".join(shlex.split(value))
            cell = cell[match.end() :].lstrip()
    return found


def tables() -> dict[tuple[str, str], dict[str, str]]:
    """Returns the flags of each table: (agent, environment) -> name -> value."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for path in sorted(DOCS.glob("*.md")):
        for commands, other, text in TABLE.findall(path.read_text()):
            whose = re.findall(r"--agent=(\S+) --env=(\S+) --preset=paper", commands)
            inherited = next(rows for (agent, _), rows in found.items() if agent == other) if other else {}
            for key in whose:
                assert key not in found, f"{key} has two tables"
                found[key] = inherited | rows_of(text)
    return found


TABLES = tables()


def flat(run: runs.Run) -> dict[str, object]:
    """Returns a run's settings and its Config's fields in one dict, by the names of their flags."""
    values = dataclasses.asdict(run)
    config = values.pop("config")
    return values | {f"config.{name}": value for name, value in config.items()}


def run_of(agent: str, env: str, **more: str) -> runs.Run:
    said = {"agent": agent, "env": env, "preset": "paper"} | more
    flags.parse(train.train, ["train", *(f"--{name}={value}" for name, value in said.items())])
    return flags.run_from_flags()


@pytest.mark.parametrize(("agent", "env"), TABLES)
def test_a_row_has_the_value_that_the_preset_sets(agent, env):
    assert flat(run_of(agent, env, **TABLES[agent, env])) == flat(run_of(agent, env))


@pytest.mark.parametrize(("agent", "env"), TABLES)
def test_what_differs_from_the_defaults_has_a_row(agent, env):
    run = flat(run_of(agent, env))
    preset = papers.find(agent, env)
    set_here = {*preset.run, *(f"config.{name}" for name in preset.config)}
    kept = {name: run[name] for name, declared in DECLARED.items() if declared.default == settings.PRESET}
    config = dataclasses.asdict(configs.agent_module(agent).Config())
    default = settings.complete(kept) | {f"config.{name}": value for name, value in config.items()}
    idle = {name for name, declared in DECLARED.items() if declared.only and not declared.only.holds(run)}
    differing = {name for name in run.keys() - idle if name in kept or run[name] != default[name]}
    assert (set_here | differing) - UNSAID <= TABLES[agent, env].keys()


def test_each_agent_has_a_table_of_each_of_its_kinds_or_its_page_says_why_not():
    assert papers.PAPERS.keys() | papers.SILENT.keys() == configs.AGENTS.keys()
    assert not papers.PAPERS.keys() & papers.SILENT.keys()
    shown = {(agent, id(papers.find(agent, env))) for agent, env in TABLES}
    assert shown == {(agent, id(paper)) for agent, of in papers.PAPERS.items() for paper in of}
    for agent in papers.SILENT:
        page = DOCS / f"{configs.AGENTS[agent].removeprefix('agents.')}.md"
        (section,) = re.findall(r"^## The [^\n]*'s settings\n(.*?)^## ", page.read_text(), re.M | re.S)
        assert f"`{agent}`" in section and "--preset=paper" in section, f"{page} does not say it of {agent}"


@pytest.mark.parametrize("agent", papers.PAPERS)
def test_an_example_is_an_environment_of_its_paper(agent):
    for paper in papers.PAPERS[agent]:
        assert papers.find(agent, paper.example) is paper


@pytest.mark.parametrize(
    ("agent", "env", "named"),
    [
        ("dqn", "CartPole-v1", "--env=Pong-v5"),
        ("ppo", "CheetahRun-v1", "--env=Pong-v5 or --env=HalfCheetah-v4"),
        ("ppo", "binned:3:HalfCheetah-v4", "--env=HalfCheetah-v4"),
        ("impala", "Pong-v5,Breakout-v5", "--env=Pong-v5"),
        ("d4pg", "HalfCheetah-v4", "--env=CheetahRun-v1"),
        ("dpg", "HalfCheetah-v4", "--env=Pendulum-v1"),
        ("trpo", "Ant-v5", "--env=Swimmer-v4"),
        ("q_learning", "CliffWalking-v1", "--env=gymnasium:CliffWalking-v1"),
    ],
)
def test_an_environment_of_another_kind_is_refused_in_a_line_that_names_one(agent, env, named):
    with pytest.raises(UsageError) as error:
        run_of(agent, env)
    assert "\n" not in str(error.value) and named in str(error.value) and "leave --preset out" in str(error.value)


@pytest.mark.parametrize("agent", papers.SILENT)
def test_an_agent_whose_source_says_nothing_is_refused_without_a_look_at_the_environment(agent, monkeypatch):
    monkeypatch.setattr(papers.kinds, "kind_of", None)
    with pytest.raises(UsageError, match=f"^--preset=paper has no settings for {agent}: .*leave --preset out$"):
        run_of(agent, "CartPole-v1")


def test_flags_go_over_the_paper():
    run = run_of("r2d2", "Pong-v5", num_actors="2", env_kwargs='{"noop_max": 5}', **{"config.batch_size": "8"})
    assert (run.num_actors, run.env_kwargs, run.config.batch_size) == (2, '{"noop_max": 5}', 8)
    assert run.reward_clip == "none" and run.config.lstm_size == 512


def test_the_learning_rate_falls_until_the_run_ends_where_the_papers_does():
    assert run_of("ppo", "Pong-v5", max_env_steps="1000").config.decay_env_steps == 1000
    assert run_of("ppo", "HalfCheetah-v4", max_env_steps="1000").config.decay_env_steps == 0


def test_a_run_is_resumed_by_the_same_preset_alone(tmp_path):
    runs.save(run_of("q_learning", "gymnasium:CliffWalking-v1"), tmp_path)
    runs.save(run_of("q_learning", "gymnasium:CliffWalking-v1"), tmp_path)
    assert runs.load(tmp_path).preset == "paper"
    with pytest.raises(UsageError, match="preset is paper, not tuned"):
        runs.save(runs.make("q_learning", "gymnasium:CliffWalking-v1", {}, {}), tmp_path)
