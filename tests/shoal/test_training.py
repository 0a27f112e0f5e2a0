"""Training from Python does what scripts/train does, in this process, and leaves the process as it was."""

import inspect
import json
import pathlib
import signal
import sys
import threading

import jax
import numpy as np
import pytest

import shoal
from launchers import train as command
from launchers.settings import UsageError

TINY = {
    **{"agent": "q_learning", "env": "gymnasium:FrozenLake-v1", "placement": "serial", "num_actors": 1},
    **{"envs_per_actor": 4, "max_env_steps": 200, "eval_episodes": 4, "eval_max_steps": 20},
    "config": {"batch_size": 4},
}


def test_a_run_is_trained_resumed_and_loaded(tmp_path, capsys):
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    logdir = shoal.train(**TINY, logdir=tmp_path / "run", env_kwargs={"is_slippery": False}, synchronous=None)
    assert logdir == tmp_path / "run" and "q_learning learns gymnasium:FrozenLake-v1" in capsys.readouterr().out
    assert before == [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    assert sys.modules.get("tensorflow", True) is not None
    config = json.loads((logdir / "config.json").read_text())
    assert (config["carrier"], config["env_kwargs"]) == ("local", '{"is_slippery": false}')
    policy = shoal.load(logdir)
    assert 0 <= policy(5) < 4 and policy.version.env_steps >= 200
    further = {**TINY, "max_env_steps": 400, "logdir": logdir, "env_kwargs": {"is_slippery": False}}
    shoal.train(**further)
    assert shoal.load(logdir).version.env_steps >= 400


def test_a_run_is_made_in_any_thread_and_one_at_a_time(tmp_path):
    """A second call meanwhile is refused, and does not change the settings of the first."""
    going_on, refused = threading.Event(), []

    def train():
        done.append(shoal.train(**TINY, logdir=tmp_path / "run"))

    def while_it_runs(run, *args):
        with pytest.raises(UsageError, match="makes one run at a time") as caught:
            shoal.train(**TINY, logdir=tmp_path / "other")
        refused.append(caught)
        going_on.set()
        return begin(run, *args)

    done, begin = [], command._train
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(command, "_train", while_it_runs)
        thread = threading.Thread(target=train)
        thread.start()
        thread.join(timeout=120)
    assert going_on.is_set() and done == [tmp_path / "run"] and not (tmp_path / "other").exists()
    with pytest.raises(UsageError):  # a call that fails does not stand in the way of the next
        shoal.train(agent="none")
    assert shoal.train(**TINY, logdir=tmp_path / "other") == tmp_path / "other"


def test_a_new_run_is_under_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    logdir = shoal.train(**TINY)
    assert logdir.parent == pathlib.Path("runs") and (tmp_path / logdir / "spec.json").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"agent": "impalla"}, r"^unknown agent 'impalla'; did you mean impala\?$"),
        ({"max_env_step": 5}, r"^unknown argument '--max_env_step=5'; did you mean --max_env_steps"),
        ({"config": {"learning_rat": 1}}, r"^unknown config field 'learning_rat'; did you mean learning_rate"),
        ({"config": [("learning_rate", 1)]}, r"^config is a dict of fields [^\n]*not \[\('learning_rate', 1\)\]$"),
        ({"max_env_steps": 0}, r"^--max_env_steps must be 1 or more, not 0$"),
        ({"env": "CartPole-v11"}, r"^unknown environment 'CartPole-v11'"),
        ({"carrier": "reverb"}, r"^shoal.train takes carrier='local' [^\n]*scripts/train$"),
        ({"placement": "processes"}, r"^shoal.train takes [^\n]*'processes'[^\n]*scripts/train$"),
    ],
)
def test_what_the_command_refuses_is_one_line(flags, words, tmp_path):
    with pytest.raises(UsageError, match=words) as caught:
        shoal.train(**{"agent": "q_learning", "env": "CartPole-v1", "logdir": tmp_path / "run"} | flags)
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_an_agent_is_a_record_of_pure_functions():
    agent = shoal.make_agent(agent="dqn", env="CartPole-v1", config={"hidden_sizes": (8,), "batch_size": 4})
    assert agent.batch_size == 4
    params = agent.policy(agent.init(jax.random.key(0)))
    assert {8} <= {x.shape[-1] for x in jax.tree.leaves(params) if np.ndim(x)}
    with pytest.raises(UsageError, match="continuous"):
        shoal.make_agent(agent="dqn", env="Pendulum-v1")


def test_what_is_named_is_there():
    assert set(shoal.__all__) <= set(dir(shoal))
    for name in shoal.__all__:
        assert inspect.getdoc(getattr(shoal, name)), name
    with pytest.raises(AttributeError, match="module 'shoal' has no attribute 'lod'"):
        shoal.lod  # noqa: B018
