"""The Behaviour Suite as environments of Gymnasium, its log, and its scores."""

import sys

import numpy as np
import pytest

pytest.importorskip("bsuite")  # a virtual environment made from an older lock lacks it
from bsuite import sweep
from bsuite.utils import datasets

import environments
from environments import bsuite as suite
from environments.bsuite import Behaviour
from environments.gymnasium import LOG
from launchers import flags
from launchers.baselines import BSUITE
from launchers.settings import UsageError
from runtime import metrics
from scripts import scores
from tests.launchers import command_line

DOOR = "gymnasium:environments.bsuite:bsuite"
EXPERIMENTS = sorted({bsuite_id.split("/")[0] for bsuite_id in sweep.SWEEP})


@pytest.fixture(autouse=True)
def digits(monkeypatch):
    """Puts a few digits of noise in the place of MNIST, which cannot be downloaded everywhere."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(-128, 128, (30, 28, 28)).astype(np.int8), np.arange(30, dtype=np.uint8) % 10
    monkeypatch.setattr(datasets, "load_mnist", lambda: ((images, labels), (images, labels)))


def make(level: str, num_envs: int = 1, seed: int = 0):
    return environments.make(f"{DOOR}/{level.replace('/', '-')}-v0", num_envs, seed)


def walk(environment, steps: int, seed: int = 0) -> tuple[list, list[dict]]:
    """Returns the TimeSteps of random actions, after that of the reset, and what was logged."""
    rng, count = np.random.default_rng(seed), environment.spec.actions.num_actions
    walked = [environment.reset()]
    for _ in range(steps):
        walked.append(environment.step(rng.integers(count, size=environment.num_envs).astype(np.int32)))
    logged = environment.logged()
    environment.close()
    return walked, logged


def play(level: str, choose, episodes: int, seed: int = 0) -> list[dict[str, float]]:
    """Plays episodes and returns the logged rows; `choose` maps the environment and its observation to an action."""
    environment, rows = Behaviour(level), []
    observation, _ = environment.reset(seed=seed)
    for _ in range(episodes):
        over = False
        while not over:
            observation, _, over, _, info = environment.step(choose(environment, observation))
            rows += [info[LOG]] if LOG in info else []
        observation, _ = environment.reset()
    return rows


def test_the_registry_has_the_first_level_of_every_experiment_and_its_episodes():
    assert sorted(BSUITE) == EXPERIMENTS and len(EXPERIMENTS) == 23
    for experiment, (_, episodes) in BSUITE.items():
        assert sweep.EPISODES[f"{experiment}/0"] == episodes


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_is_played_and_what_is_logged_is_what_was_played(experiment):
    """In all experiments an episode ends within 1,001 steps. Shoal's own returns and lengths are compared."""
    environment = make(f"{experiment}/0", seed=3)
    rng, episodes, logged = np.random.default_rng(3), [], []
    space, actions = environment.spec.spaces
    assert space.contains(environment.reset().observation[0])
    for _ in range(1_100):
        step = environment.step(rng.integers(actions.n, size=1).astype(np.int32))
        logged += environment.logged()
        finished = environment.finished()
        episodes += list(zip(finished.returns, finished.lengths, strict=True))
        assert step.observation.dtype == np.float32 and np.isfinite(step.observation).all()
        assert space.contains(step.observation[0])
        assert step.discount[0] == (0.0 if step.last[0] else 1.0)  # bsuite's time limits terminate, too
    environment.close()
    assert episodes and logged
    lengths = {length for _, length in episodes}
    fixed = BSUITE[experiment][0]
    assert lengths == {fixed} if fixed else max(lengths) <= 1_001
    totals, steps = np.cumsum([value for value, _ in episodes]), np.cumsum([length for _, length in episodes])
    assert [row["episode"] for row in logged[:5]] == [1, 2, 3, 4, 5][: len(logged)]
    for row in logged:
        index = int(row["episode"]) - 1
        assert (row["steps"], row["episode_len"]) == (steps[index], episodes[index][1])
        np.testing.assert_allclose(row["episode_return"], episodes[index][0], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(row["total_return"], totals[index], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("level", ["cartpole/0", "catch_noise/4", "deep_sea_stochastic/0", "mnist/0", "memory_size/3"])
def test_a_seed_decides_all_that_is_random(level):
    walks = [[step.observation for step in walk(make(level, seed=seed), 300)[0]] for seed in (1, 1, 2)]
    np.testing.assert_array_equal(walks[0], walks[1])
    assert not np.array_equal(walks[0], walks[2])


def test_each_of_several_environments_logs_its_own():
    _, logged = walk(make("catch/0", num_envs=3), 40)
    assert [(row["environment"], row["episode"]) for row in logged] == [(i, e) for e in (1, 2, 3, 4) for i in range(3)]


def test_each_of_several_tasks_logs_its_own():
    """The two tasks have the same spaces, and two environments each: environment i has task i mod 2."""
    tasks = ",".join(f"{DOOR}/{name}-v0" for name in ("deep_sea-0", "deep_sea_stochastic-0"))
    _, logged = walk(environments.make(tasks, 4, 0), 11)
    assert sorted(row["environment"] for row in logged) == [0, 1, 2, 3]
    assert {row["environment"] for row in logged if row["episode_return"] != round(row["episode_return"], 6)} <= {1, 3}


def bandit_arm(environment) -> int:
    return int(np.argmax(environment._raw._rewards))


def under_the_ball(environment, observation) -> int:
    ball, paddle = int(np.argmax(observation[:-1].max(axis=0))), int(np.argmax(observation[-1]))
    return 1 + int(np.sign(ball - paddle))


def to_the_right(environment, observation) -> int:
    row, column = np.unravel_index(np.argmax(observation), observation.shape)
    return int(environment._raw._action_mapping[row, column])


def at_random(seed: int = 0):
    rng = np.random.default_rng(seed)
    return lambda environment, observation: int(rng.integers(environment.action_space.n))


@pytest.mark.parametrize(
    ("level", "best", "random"),
    [
        ("bandit/0", lambda environment, _: bandit_arm(environment), 0.0),
        ("catch/0", under_the_ball, 0.0),
        ("catch_scale/0", under_the_ball, 0.0),
        ("deep_sea/0", to_the_right, 0.0),
        ("discounting_chain/0", lambda environment, _: 0, 0.2),  # one of five chains pays a tenth more
    ],
)
def test_the_best_player_scores_1_and_a_random_one_0(level, best, random):
    assert scores.score(level, play(level, best, 500)) == pytest.approx(1.0, abs=0.02)
    assert scores.score(level, play(level, at_random(), 500)) == pytest.approx(random, abs=0.12)


def test_a_stochastic_sea_is_solved_by_the_best_player_alone():
    """The score needs at least a hundred episodes, and wind pushes the player off its way."""

    def best(environment, observation) -> int:
        layer = environment._raw
        return int(layer._action_mapping[layer._row, layer._column])

    assert scores.score("deep_sea_stochastic/0", play("deep_sea_stochastic/0", best, 200)) == 1.0
    assert scores.score("deep_sea_stochastic/0", play("deep_sea_stochastic/0", at_random(), 200)) == 0.0


def test_scoring_leaves_pandas_and_pictures_as_they_were():
    import matplotlib
    import pandas

    before = dict(matplotlib.rcParams), hasattr(pandas.Series, "append")
    scores.score("deep_sea/0", play("deep_sea/0", to_the_right, 10))
    assert (dict(matplotlib.rcParams), hasattr(pandas.Series, "append")) == before


def test_a_tags_mean_is_over_all_of_its_experiments():
    means = scores.by_tag(dict.fromkeys(BSUITE, 0.5) | {"memory_len": 1.0})
    assert means["memory"] == 0.75 and means["basic"] == 0.5 and list(means) == list(scores.TAGS)
    assert "memory" not in scores.by_tag({"memory_len": 1.0})


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "has no episodes"),
        ([(0, 1), (1, 1), (0, 2)], "several environments"),
        ([(0, 1), (0, 2), (0, 1)], "was resumed"),
        ([(0, 1), (0, 2), (0, 2), (0, 3)], "was resumed"),
    ],
)
def test_what_bsuite_cannot_score_is_refused(rows, words, tmp_path):
    path = tmp_path / "log_0.csv"
    path.write_text("steps,environment,episode\n" + "".join(f"0,{each},{episode}\n" for each, episode in rows))
    with pytest.raises(UsageError, match=words):
        scores.rows_of(path)


@pytest.mark.parametrize(
    "text", [None, "", "{", "[]", "{}", '{"config": {}}', '{"config": {}, "env": 3, "agent": "a2c"}']
)
def test_what_is_no_run_is_one_line(text, tmp_path, capsys):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    assert flags.attempt(scores.scores, ["scores", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path) in line


def test_a_run_logs_its_training_and_not_its_evaluations(tmp_path):
    """Evaluations play 8 episodes each; the log has only those of the actor, in order."""
    arguments = ["--agent=a2c", f"--env={DOOR}/catch-0-v0", "--max_env_steps=600", "--eval_period=200"]
    arguments += ["--placement=serial", "--carrier=local"]
    code, output = command_line.end(
        [sys.executable, "-m", "launchers.train", *arguments, "--eval_episodes=8", f"--logdir={tmp_path}"]
    )
    assert code == 0, output
    rows = scores.rows_of(tmp_path / "log_0.csv")
    assert len(metrics.read(tmp_path / "evaluator.csv")) == 3
    assert [row["episode"] for row in rows][:10] == list(range(1, 11))
    for row in rows:
        assert row["steps"] == 9 * row["episode"]
        assert row["total_return"] == row["episode"] - row["total_regret"]
    assert 60 <= rows[-1]["episode"] <= 70
    code, output = command_line.end([sys.executable, "-P", "scripts/scores.py", str(tmp_path)])
    assert code == 0 and f"a2c catch/0 episodes={rows[-1]['episode']:.0f}/10000 score=" in output, output


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cartpol-0-v0", ["cartpol-0", "cartpole-0"]),
        ("deepsea-3-v0", ["deepsea-3", "deep_sea-3"]),
        ("catch-20-v0", ["catch-20", "catch-"]),
    ],
)
def test_an_unknown_level_is_one_line_that_names_the_nearest(name, words, tmp_path):
    arguments = ["--agent=dqn", f"--env={DOOR}/{name}", f"--logdir={tmp_path / 'run'}"]
    code, output = command_line.end([sys.executable, "-m", "launchers.train", *arguments])
    (line,) = [line for line in output.splitlines() if "error" in line]
    assert code == 2 and all(word in line for word in words), output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("missing", ["bsuite", "dm_env", "pandas", "skimage"])
def test_without_the_package_it_is_one_line(missing, tmp_path):
    code = f"import sys; sys.modules[{missing!r}] = None; from launchers import flags, train; flags.main(train.train)"
    arguments = ["--agent=dqn", f"--env={DOOR}/catch-0-v0", f"--logdir={tmp_path / 'run'}"]
    status, output = command_line.end([sys.executable, "-c", code, *arguments])
    (line,) = [line for line in output.splitlines() if "error" in line]
    assert status == 2 and f"needs bsuite, and {missing} is not installed" in line, output


def test_without_mnist_it_is_one_line(tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(datasets, "urlretrieve", lambda url, path: (_ for _ in ()).throw(OSError("no way there")))
    monkeypatch.setattr(datasets.path, "isfile", lambda name: False)
    with pytest.raises(environments.EnvironmentFailure, match=f"MNIST's four files are not in {suite.MNIST}.*no way"):
        make("mnist/0")
