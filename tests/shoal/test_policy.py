"""A loaded policy acts as the run's evaluations do, on the observations that the environment itself gives."""

import dataclasses
import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

import shoal
from agents.agent import Version
from environments import interface
from launchers import recorded
from launchers import run as runs
from launchers.settings import UsageError
from replay.structures import params_structure
from runtime import best
from tests.launchers import command_line
from tests.shoal.runs import COMMANDS, SEED

PLAIN = [name for name in COMMANDS if "members" not in name]
RECURRENT = {"impala, recurrent", "r2d2"}
DRAWN = {"sampled, with errors", "off_pac"}  # actions in their evaluations are random
ONE = "q_learning"  # for tests where one run is enough


def same(name: str, logdir: pathlib.Path, taken, chosen, tolerance: float = 1e-6) -> None:
    """Asserts that a policy gave the actions that the agent chose, in the form that the environment takes."""
    run = runs.load(logdir)
    expected = interface.interface(run.env, run.spec()).take(chosen)
    assert np.shape(taken) == np.shape(expected) and np.asarray(taken).dtype == expected.dtype, name
    if np.issubdtype(expected.dtype, np.integer):
        np.testing.assert_array_equal(taken, expected)
    else:
        np.testing.assert_allclose(taken, expected, rtol=tolerance, atol=tolerance)


def of_one(observation, index: int):
    return jax.tree.map(lambda x: x[index], observation)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", PLAIN)
def test_a_batch_is_acted_on_as_in_evaluations(name, made):
    logdir, evaluation = made(name)
    policy = shoal.load(logdir, seed=SEED)
    assert policy.version.env_steps >= 200 and policy.needs_reward == (name in RECURRENT)
    for timestep, raw, reward, chosen in zip(*evaluation, strict=True):
        policy.reset(timestep.first)
        same(name, logdir, policy(raw, reward=reward), chosen)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", [name for name in PLAIN if name not in DRAWN])
def test_one_observation_is_acted_on_as_in_a_batch(name, made):
    """The policy also keeps its memory until it is told that an episode begins."""
    logdir, evaluation = made(name)
    index, policy, forgetful = 1, shoal.load(logdir), shoal.load(logdir)
    differ = False
    for timestep, raw, reward, chosen in zip(*evaluation, strict=True):
        if timestep.first[index]:
            policy.reset()
        forgetful.reset()
        observation = of_one(raw, index)
        action = policy(observation, reward=reward[index])
        same(name, logdir, np.asarray(action)[None], chosen[index : index + 1], 1e-5)
        differ |= not np.allclose(action, forgetful(observation, reward=reward[index]), atol=1e-6)
    assert differ or name != "impala, recurrent", "without its memory it would act otherwise"


@pytest.mark.parametrize("name", sorted(RECURRENT))
def test_an_agent_that_is_fed_rewards_says_so(name, made):
    logdir, evaluation = made(name)
    policy, raw = shoal.load(logdir), evaluation.raw[0]
    policy(raw)
    with pytest.raises(
        ValueError, match=r"^this agent needs the last reward: call policy\(observation, reward=[^\n]*$"
    ):
        policy(raw)
    policy.reset(np.arange(len(evaluation.rewards[0])) > 0)
    with pytest.raises(ValueError, match=r"^this agent needs the last reward"):
        policy(raw)
    policy.reset()
    policy(raw)
    policy(raw, reward=0)
    with pytest.raises(ValueError, match=r"^reward must be finite, and one number for each of 4, not [^\n]*$"):
        policy(raw, reward=np.zeros(3))


def test_rewards_are_seen_as_in_training(made):
    """Pong's rewards are clipped to [-1, 1]. The first step of an episode has no reward."""
    policy = shoal.load(made("dqn of frames")[0])
    assert policy._rewards([5.0, 5.0, -0.5], np.array([False, True, False])).tolist() == [1.0, 0.0, -0.5]


@pytest.mark.parametrize(("sampled", "epsilon"), [(True, 0.0), (False, 0.0), (False, 1.0), (None, None)])
def test_how_it_acts_can_be_said(sampled, epsilon, made):
    """By default a policy acts as the run's settings say. Its random choices follow from the seed."""
    logdir, evaluation = made("sampled, with errors")
    many = np.repeat(evaluation.raw[0][:1], 200, axis=0)

    def act(seed: int) -> np.ndarray:
        return shoal.load(logdir, sampled=sampled, epsilon=epsilon, seed=seed)(many)

    one, again, other = act(0), act(0), act(1)
    np.testing.assert_array_equal(one, again)
    greedy = sampled is False and epsilon == 0.0
    assert (len({*one.tolist()}) == 1) == greedy and np.array_equal(one, other) == greedy
    if epsilon == 1.0:
        assert np.bincount(one, minlength=3).min() > 30


MODULES = """
import json, sys
import shoal
light = sorted({"jax", "numpy", "gymnasium", "orbax"} & sys.modules.keys())
import numpy as np
for logdir in sys.argv[1:]:
    policy = shoal.load(logdir)
    space = (policy.spec.spaces or [None])[0]
    shown = np.zeros(policy.spec.observation_shape, policy.spec.observation_dtype)
    policy({key: np.zeros(part.shape) for key, part in space.items()} if hasattr(space, "items") else
           shown if space is None or space.shape else 0)
print(json.dumps([light, sorted({"reverb", "tensorflow", "envpool"} & sys.modules.keys())]))
"""


@pytest.mark.timeout(600)
def test_neither_reverb_nor_tensorflow_nor_envpool_is_imported(made):
    logdirs = [str(made(name)[0]) for name in PLAIN]
    done = subprocess.run(
        [sys.executable, "-c", MODULES, *logdirs],
        env=command_line.ENVIRONMENT, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [[], []]


@pytest.mark.parametrize("name", [ONE, "dqn of frames", "impala of factors", "ppo of parts"])
def test_a_run_without_a_recorded_spec_has_its_environment_looked_at(name, made, tmp_path):
    logdir, evaluation = made(name)
    older = tmp_path / "older"
    shutil.copytree(logdir, older)
    (older / recorded.SPEC).unlink()
    run = runs.load(logdir)
    (spec, clip), (looked_at, looked_clip) = recorded.spec_of(run, logdir), recorded.spec_of(run, older)
    assert interface.to_json(spec) == interface.to_json(looked_at) and clip == looked_clip
    np.testing.assert_array_equal(shoal.load(older)(evaluation.raw[0]), shoal.load(logdir)(evaluation.raw[0]))
    assert not (older / recorded.SPEC).exists(), "reading writes nothing"


def test_a_run_that_was_trained_over_reverb_is_loaded_where_there_is_none(made, tmp_path, monkeypatch):
    logdir, evaluation = made("dqn")
    shutil.copytree(logdir, tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    values = json.loads(path.read_text()) | {"carrier": "reverb", "placement": "processes", "num_replay_servers": 2}
    path.write_text(json.dumps(values))
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "reverb" else find(name))
    with pytest.raises(UsageError, match="Reverb is not installed"):
        runs.load(tmp_path / "run")
    same("dqn", logdir, shoal.load(tmp_path / "run")(evaluation.raw[0]), evaluation.actions[0])


@pytest.mark.timeout(600)
def test_a_member_of_a_stacked_population_acts_as_it_does_beside_the_others(made):
    logdir, evaluation = made("stacked members")
    for member in (0, 1):
        policy = shoal.load(logdir, member=member)
        for timestep, raw, reward, chosen in zip(*evaluation, strict=True):
            policy.reset(timestep.first[member::2])
            same("stacked members", logdir, policy(raw[member::2], reward=reward[member::2]), chosen[member::2], 1e-5)
    for given, words in ((None, "None"), (2, "2"), (-1, "-1")):
        with pytest.raises(
            UsageError, match=rf"is the folder of a population: [^\n]* member=0 to member=1, not member={words}$"
        ):
            shoal.load(logdir, member=given)


def test_a_member_with_a_learner_of_its_own_is_an_ordinary_run(made, tmp_path):
    logdir, evaluation = made("impala")
    values = json.loads((logdir / "config.json").read_text())
    whole = tmp_path / "whole"
    whole.mkdir()
    population = {"population": 2, "tune": "learning_rate:log:1e-4:1e-2", "placement": "threads"}
    (whole / "config.json").write_text(json.dumps(values | population))
    shutil.copytree(logdir, whole / "member_1")
    same("impala", logdir, shoal.load(whole, member=1)(evaluation.raw[0]), evaluation.actions[0])
    for member in (None, -1, 2, 2**70, 0.5, "0", True):
        with pytest.raises(UsageError, match=rf"is the folder of a population: [^\n]*not member={member!r}$"):
            shoal.load(whole, member=member)
    with pytest.raises(UsageError, match=r"^no run in [^\n]*member_0"):
        shoal.load(whole, member=0)


def member_of(params, member: int):
    return jax.tree.map(lambda x: x[member], params)


def kept(logdir: pathlib.Path, folder: pathlib.Path):
    """Copies a run, and gives the copy best parameters that differ from its newest. Returns the copy and these
    parameters."""
    copy = folder / "copy"
    shutil.copytree(logdir, copy)
    run = runs.load(copy, check=False)
    agent = run.make_agent(recorded.spec_of(run, copy)[0], check=False)
    params = jax.device_get(agent.policy(agent.init(jax.random.key(99))))
    best.Keeper(copy, params_structure(agent)).show(Version(7, 70), params, 1e9)
    return copy, params


@pytest.mark.parametrize("name", ["impala, recurrent", "r2d2", "ddpg", "off_pac", "ppo of parts", ONE])
def test_the_best_parameters_can_be_asked_for(name, made, tmp_path):
    logdir, evaluation = made(name)
    early = shoal.load(logdir, checkpoint="best")
    restored = best.restore(logdir, params_structure(early._agent))
    assert early.version == restored.version
    jax.tree.map(np.testing.assert_array_equal, early._params, restored.params)
    copy, params = kept(logdir, tmp_path)
    newest, policy = shoal.load(copy, seed=SEED), shoal.load(copy, checkpoint="best", seed=SEED)
    assert policy.version == (7, 70) and newest.version == shoal.load(copy, checkpoint="newest").version
    jax.tree.map(np.testing.assert_array_equal, policy._params, params)
    same(name, logdir, newest(evaluation.raw[0], reward=evaluation.rewards[0]), evaluation.actions[0])
    shutil.rmtree(copy / "checkpoints")
    shoal.load(copy, checkpoint="best")(evaluation.raw[0])  # the best parameters need no checkpoint


@pytest.mark.timeout(600)
def test_the_best_of_a_member_can_be_asked_for(made, tmp_path):
    """The member may be stacked or have a learner of its own, and the LOGDIR may be a URL."""
    copy, params = kept(made("stacked members")[0], tmp_path)
    for member in (0, 1):
        policy = shoal.load(copy, checkpoint="best", member=member)
        assert policy.version == (7, 70)
        jax.tree.map(np.testing.assert_array_equal, policy._params, member_of(params, member))
    whole = tmp_path / "whole"
    single, params = kept(made("impala")[0], whole)
    single.rename(whole / "member_1")
    values = json.loads((whole / "member_1" / "config.json").read_text())
    values |= {"population": 2, "tune": "learning_rate:log:1e-4:1e-2", "placement": "threads"}
    (whole / "config.json").write_text(json.dumps(values))
    for logdir in (whole, f"file://{whole}"):
        policy = shoal.load(logdir, member=1, checkpoint="best")
        assert policy.version == (7, 70)
        jax.tree.map(np.testing.assert_array_equal, policy._params, params)


def test_the_best_is_fetched_from_a_url_alone(made, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    copy, _ = kept(made(ONE)[0], tmp_path)
    assert shoal.load(f"file://{copy}", checkpoint="best").version == (7, 70)
    (folder,) = (tmp_path / "cache" / "shoal" / "logdirs").iterdir()
    assert (folder / best.FILE).exists() and not (folder / "checkpoints").exists()


@pytest.mark.parametrize(
    ("checkpoint", "content", "words"),
    [
        ("best", None, r'^checkpoint="best": [^\n]* has no best.npz yet: [^\n]*; checkpoint="newest" needs none$'),
        ("best", b"", r'^checkpoint="best": [^\n]*best.npz is damaged [^\n]*; give checkpoint="newest"$'),
        ("best", b"PK", r'^checkpoint="best": [^\n]*best.npz is damaged [^\n]*; give checkpoint="newest"$'),
        ("latest", b"", r"""^checkpoint is "newest" or "best", not 'latest'$"""),
        (None, b"", r"""^checkpoint is "newest" or "best", not None$"""),
    ],
)
def test_what_is_no_best_is_one_line(checkpoint, content, words, made, tmp_path):
    logdir = emptied(made(ONE)[0], tmp_path, best.FILE)
    if content is not None:
        (logdir / best.FILE).write_bytes(content)
    with pytest.raises(UsageError, match=words):
        shoal.load(logdir, checkpoint=checkpoint)
    shoal.load(logdir)


def test_a_url_is_a_logdir(made, tmp_path, monkeypatch):
    """A population at a URL is read too, if its members have folders. Loading does not need the environment."""
    logdir, evaluation = made("impala")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(runs.Run, "spec", None)
    whole = tmp_path / "whole"
    shutil.copytree(logdir, whole / "member_1")
    values = json.loads((logdir / "config.json").read_text()) | {"population": 2, "tune": "learning_rate:log:1e-4:1e-2"}
    (whole / "config.json").write_text(json.dumps(values | {"placement": "threads"}))
    for policy in (shoal.load(f"file://{logdir}"), shoal.load(f"file://{whole}/", member=1)):
        np.testing.assert_array_equal(policy(evaluation.raw[0]), evaluation.actions[0])
    with pytest.raises(UsageError, match=r"^no run in file://[^\n]*/nowhere: it has no config.json$"):
        shoal.load(f"file://{tmp_path}/nowhere")


def emptied(logdir: pathlib.Path, folder: pathlib.Path, *left_out: str) -> pathlib.Path:
    shutil.copytree(logdir, folder / "run", ignore=shutil.ignore_patterns(*left_out))
    return folder / "run"


def test_what_is_no_trained_run_is_one_line(made, tmp_path):
    logdir, _ = made(ONE)
    for given, words in (
        (tmp_path, rf"^no run in {tmp_path}: its config.json cannot be read"),
        ("", r"^no run in '': give the path of a file or a folder$"),
        (str(tmp_path / "nowhere"), r"^no run in [^\n]*nowhere"),
        ("nothing://there", r"^no run in 'nothing://there': "),
        (emptied(logdir, tmp_path / "a", "checkpoints"), r"^no checkpoint in [^\n]*/a/run/checkpoints yet: "),
        (emptied(logdir, tmp_path / "b", "learner_steps_*"), r"^no checkpoint in [^\n]*/b/run/checkpoints yet: "),
    ):
        with pytest.raises(UsageError, match=words) as caught:
            shoal.load(given)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "a" / "run" / "checkpoints").exists(), "reading writes nothing"
    with pytest.raises(UsageError, match=r"is not the folder of a population: leave member=0 out$"):
        shoal.load(logdir, member=0)
    with pytest.raises(UsageError, match=r"^--eval_epsilon must be 1 or less, not 2$"):
        shoal.load(logdir, epsilon=2)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"observation": 1}', "null"])
def test_a_spec_that_cannot_be_read_is_one_line(text, made, tmp_path):
    logdir = emptied(made(ONE)[0], tmp_path)
    (logdir / recorded.SPEC).write_text(text)
    with pytest.raises(UsageError, match=r"spec.json cannot be read \([^\n]*\): remove it, [^\n]*$"):
        shoal.load(logdir)


def test_a_random_action_of_a_continuous_policy_is_refused(made):
    with pytest.raises(UsageError, match=r"^epsilon=0.1 is for discrete actions; those of Pendulum-v1 are continuous$"):
        shoal.load(made("ddpg")[0], epsilon=0.1)


WRONG = {
    "dqn": [
        (np.zeros(5), r"has the shape \(5,\), and not \(4,\), or \(B, 4\) of a batch"),
        (np.zeros((2, 3, 4)), r"has the shape \(2, 3, 4\)"),
        (np.full(4, np.nan), "holds numbers that are not finite"),
        ({"a": np.zeros(4)}, r"has the shape \(\)"),
        ("text", r"has the shape \(\)"),
        (np.zeros((0, 4)), "is a batch of none"),
        ((np.zeros(4), {"info": 1}), "is no array: its parts have different shapes"),
        ([[0.0] * 4, [0.0] * 3], "is no array: its parts have different shapes"),
    ],
    "dqn of frames": [
        (np.zeros((84, 84)), "is of float64, and not of bytes, uint8"),
        (np.zeros((0, 84, 84), np.uint8), "is a batch of none"),
        (np.zeros((4, 4, 84, 84), np.uint8), r"has the shape \(4, 4, 84, 84\), and not \(84, 84\)"),
    ],
    "double_dqn of choices": [
        (16, "has a number that its space does not have"),
        (np.zeros((2, 2)), "has the shape"),
        (np.zeros(0, int), "is a batch of none"),
    ],
    "ppo of parts": [
        (np.zeros(17), "is a ndarray, and not a dict of parts"),
        ({"position": np.zeros((0, 8)), "velocity": np.zeros((0, 9))}, r"in its part '\w+' is a batch of none"),
        ({"position": np.zeros(8)}, "lacks its part 'velocity'"),
        ({"position": np.zeros(9), "velocity": np.zeros(8)}, r"in its part '\w+' has the shape"),
        ({"position": np.zeros((2, 8)), "velocity": np.zeros(9)}, "has parts that are not batches of the same size"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_observation_is_one_line(name, made):
    logdir, evaluation = made(name)
    policy = shoal.load(logdir)
    for observation, words in WRONG[name]:
        with pytest.raises(ValueError, match=rf"^an observation of {runs.load(logdir).env} [^\n]*{words}[^\n]*$"):
            policy(observation)
    policy(evaluation.raw[0])  # the refused observations did no harm


@pytest.mark.parametrize("name", ["dqn", "dqn of frames", "impala, recurrent", "ppo"])
def test_a_batch_is_of_the_same_size_until_all_is_forgotten_where_anything_is_remembered(name, made):
    logdir, evaluation = made(name)
    policy, batch = shoal.load(logdir), evaluation.raw[0]
    policy.reset([True])  # before the first call there is nothing to forget
    policy(batch)
    with pytest.raises(ValueError, match=r"^policy.reset\(done\) has 3 values, and the batch has 4$"):
        policy.reset([True] * 3)
    if name in ("dqn", "ppo"):
        policy(of_one(batch, 0))
    else:
        with pytest.raises(ValueError, match=r"^1 observations after a batch of 4: [^\n]*policy.reset\(\)[^\n]*$"):
            policy(of_one(batch, 0))
        policy.reset()
    same(name, logdir, policy(jax.tree.map(lambda x: x[:2], batch)), evaluation.actions[0][:2])


def test_another_package_of_the_same_name_is_named(tmp_path):
    """A person's own `agents` comes first on the path. One line says so, instead of an error about a name it lacks."""
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / "__init__.py").touch()
    environment = command_line.ENVIRONMENT | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(command_line.ROOT)])}
    program = "import shoal\ntry:\n    shoal.load\nexcept ImportError as error:\n    print(error)"
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=100
    )
    assert done.stdout.startswith("Shoal needs its own package 'agents', "), done.stdout + done.stderr
    assert f"and Python finds {tmp_path / 'agents'}: " in done.stdout and done.stdout.count("\n") == 1


@pytest.mark.parametrize("name", ["dqn", "double_dqn of choices", "impala of factors"])
def test_an_action_is_of_the_environments_own_space(name, made):
    logdir, evaluation = made(name)
    action = shoal.load(logdir)(of_one(evaluation.raw[0], 0))
    assert runs.load(logdir).spec().spaces[1].contains(action)


def test_a_field_that_says_nothing_of_shapes_is_not_compared():
    spec = runs.make("dqn", "CartPole-v1", {}, {}).spec()
    assert spec == dataclasses.replace(spec, spaces=None)
