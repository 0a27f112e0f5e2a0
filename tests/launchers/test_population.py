"""Populations from the command line: members stacked in one learner, and members with learners that are killed."""

import json
import math
import os
import random
import signal

import jax
import numpy as np
import pytest

from agents.pbt import Range
from launchers import flags, plot, recorded
from launchers import population as populations
from launchers import run as runs
from launchers.run import UsageError
from runtime import metrics
from runtime.checkpoint import Checkpointer
from scripts import chaos
from tests.launchers import command_line
from tests.pictures import has_curve

TUNE = "--tune=learning_rate:log:1e-5:1e-2"
TINY = ("--env=CartPole-v1", "--agent=a2c", "--num_actors=1", "--envs_per_actor=4", "--config.batch_size=4", TUNE)


def test_a_stacked_population_is_reproducible_to_the_bit(tmp_path):
    states, lineages = [], []
    for name in ("a", "b"):
        logdir = tmp_path / name
        arguments = ("--population=3", "--population_mode=vmap", "--placement=serial", "--max_env_steps=2000")
        code, output = command_line.run("train", *TINY, *arguments, f"--logdir={logdir}", "--seed=3")
        assert code == 0, output
        run = runs.load(logdir)
        states.append(Checkpointer(logdir / "checkpoints", run.make_agent(run.spec())).restore())
        rows = [row for m in range(3) for row in metrics.read(logdir / f"lineage_{m}.csv")]
        lineages.append([(row["env_steps"], row["donor"], row["learning_rate"]) for row in rows])
        assert (logdir / "lineages.png").exists()
        assert {"return_mean_member_0", "return_mean_member_2"} <= metrics.read(logdir / "evaluator.csv")[0].keys()
    (a, version), (b, _) = states
    assert 2000 <= version.env_steps < 2200, "steps are those of each member"
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert lineages[0] == lineages[1] and len({rate for _, _, rate in lineages[0]}) > 3, "some were copied and varied"
    code, output = command_line.run("evaluate", f"--logdir={tmp_path / 'a'}", "--episodes=4")
    assert code == 0 and "return_mean_member_2=" in output and "episodes=12 " in output, output


def test_a_member_that_is_killed_goes_on_from_its_peer(tmp_path):
    arguments = (*TINY, "--population=2", "--placement=processes", "--ready_env_steps=500", f"--logdir={tmp_path}")
    training = command_line.start("train", *arguments, "--max_env_steps=1000000000")

    def turns(member: int) -> int:
        return len(metrics.read(tmp_path / f"lineage_{member}.csv"))

    def env_steps(member: int) -> float:
        row = metrics.latest(tmp_path / f"member_{member}", "learner")
        return row["env_steps"] if row else 0.0

    try:
        command_line.wait_for(
            "both members' turns", lambda: min(turns(0), turns(1)) > 2, timeout=240.0, running=[training]
        )
        played = chaos.processes_of(tmp_path)
        (victim,) = [each for given, each in played if (given["role"], given.get("member")) == ("learner", "0")]
        os.kill(victim, signal.SIGKILL)
        command_line.wait_for("its end", lambda: not os.path.exists(f"/proc/{victim}"))
        before = turns(0)
        command_line.wait_for("the member's return", lambda: turns(0) > before, running=[training])
        donor = metrics.read(tmp_path / "lineage_0.csv")[before]["donor"]
        steps = env_steps(0)
        command_line.wait_for("it to learn on", lambda: env_steps(0) > steps, running=[training])
        training.terminate()
        output = command_line.output_of(training, 120)
        assert training.returncode == 0, output
        assert "learner_0_member_0 was killed by SIGKILL; restart 1 of" in output
        # The other member has no score if it had just copied the member that was killed.
        assert f"member 0 goes on from {'member 1' if donor == 1 else 'its own state'}: it was interrupted" in output
        assert not command_line.processes_of(tmp_path)
    finally:
        training.kill()
    # Each member is a run that can be evaluated by itself.
    code, output = command_line.run("evaluate", f"--logdir={tmp_path / 'member_1'}", "--episodes=3")
    assert code == 0 and "episodes=3 " in output, output


def make(**settings):
    base = {"population": 4, "tune": "learning_rate:log:1e-5:1e-2,entropy_cost:linear:0:0.1"}
    return runs.make("a2c", "CartPole-v1", base | settings, {})


def test_members_start_where_the_draws_are_and_differ_in_nothing_else_but_seeds():
    run = make()
    drawn = populations.draws(run)
    members = [populations.member_run(run, m) for m in range(4)]
    assert [m.config.learning_rate for m in members] == drawn["learning_rate"]
    assert len(set(drawn["learning_rate"])) == 4 and len({m.seed for m in members}) == 4
    assert populations.draws(make(population_mode="vmap")) == drawn, "the same in every mode"
    assert populations.draws(make(seed=1)) != drawn


def test_a_run_from_before_there_were_populations_is_still_a_run(tmp_path):
    run = runs.make("a2c", "CartPole-v1", {}, {})
    runs.save(run, tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    for name in ("population", "tune", "exploit", "ready_env_steps"):
        del settings[name]
    (tmp_path / "config.json").write_text(json.dumps(settings))
    loaded = runs.load(tmp_path)
    assert loaded.population == 0 and loaded.config == run.config
    runs.save(runs.replace(run, max_env_steps=2 * run.max_env_steps), tmp_path)  # resumed, and for longer
    (tmp_path / "config.json").unlink()
    (tmp_path / "checkpoints" / "learner_steps_1").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"no config\.json"):
        runs.save(run, tmp_path)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"population": 1}, "no peers"),
        ({"tune": ""}, "needs --tune"),
        ({"population": 0}, "--population=8"),
        ({"tune": "learning_rat:log:1e-5:1e-2"}, "did you mean learning_rate"),
        ({"tune": "hidden_sizes:linear:1:2"}, "not a hyperparameter of a2c"),
        ({"tune": "learning_rate:log:1e-2:1e-5"}, "LOW below HIGH"),
        ({"tune": "learning_rate:log:1e-3:1e-3"}, "LOW below HIGH"),
        ({"tune": "learning_rate:log:0:1e-3"}, "above 0"),
        ({"tune": "learning_rate:1e-5:1e-2"}, "NAME:log:LOW:HIGH"),
        ({"tune": "learning_rate:step:1e-5:1e-2"}, "step=SIZE"),
        ({"tune": "discount:linear:0.9:1.5"}, "config.discount must be within"),
        ({"placement": "serial"}, "--population_mode=vmap"),
        ({"exploit": "t_test", "score_episodes": 1}, "--score_episodes"),
    ],
)
def test_bad_populations_are_refused_in_one_line(settings, words):
    with pytest.raises(UsageError, match=words) as error:
        populations.check(make(**settings))
    assert "\n" not in str(error.value)


def test_a_replay_cannot_be_stacked():
    run = runs.make(
        "ddpg", "Pendulum-v1", {"population": 2, "tune": "tau:log:1e-3:1e-1", "population_mode": "vmap"}, {}
    )
    with pytest.raises(UsageError, match="--population_mode=separate"):
        populations.check(run)
    populations.check(runs.replace(run, population_mode="separate"))


@pytest.mark.parametrize("seed", range(5))
def test_ranges_are_read_as_they_are_written_or_refused_in_one_line(seed):
    draw = random.Random(seed)
    for _ in range(300):
        scale, step = draw.choice(["log", "linear", "step", "exp"]), draw.choice([-1.0, 0.0, 0.25])
        low, high = (draw.choice([-1.0, 0.0, 1e-3, 0.5, 1.0, math.inf, math.nan]) for _ in range(2))
        words = f"alpha:{scale}{f'={step}' if scale == 'step' else ''}:{low}:{high}"
        known = scale != "exp" and (scale != "step" or step > 0)
        if known and math.isfinite(low) and math.isfinite(high) and low < high and (scale != "log" or low > 0):
            expected = Range(scale, low, high, step if scale == "step" else 0.0)
            assert populations.parse_ranges(f"beta:linear:0:1,{words}") == {
                "beta": Range("linear", 0, 1),
                "alpha": expected,
            }
            continue
        with pytest.raises(UsageError) as error:
            populations.parse_ranges(f"beta:linear:0:1,{words}")
        assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("members", [2, 3, 12])
def test_a_populations_folder_is_plotted_by_its_members(members, tmp_path, capsys, monkeypatch):
    """By a path or a URL, and alone or beside other folders, as at the end of its own run."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run = make(population=members)
    populations.save(run, tmp_path / "run")
    folders = populations.logdirs(run, tmp_path / "run")
    assert recorded.learners_in(tmp_path / "run") == folders
    assert recorded.learners_in(folders[0]) == [folders[0]]
    for at, folder in enumerate(folders):
        recorder = metrics.Recorder(folder, "evaluator")
        for env_steps in (10, 20):
            recorder.write({"env_steps": env_steps, "return_mean": float(at)})
        recorder.close()
    for out, name in (("a", str(tmp_path / "run")), ("b", f"file://{tmp_path / 'run'}")):
        picture = tmp_path / f"{out}.png"
        assert flags.attempt(plot.plot, ["plot", f"--out={picture}", name]) == 0, capsys.readouterr().err
        assert has_curve(picture)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
