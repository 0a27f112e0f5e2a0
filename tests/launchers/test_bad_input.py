"""Every mistake at the command line is one clear line and exit code 2."""

import os
import socket

import pytest

from launchers import evaluate, flags, plot, role, sweep, train
from launchers import run as runs
from tests.launchers import command_line

COMMANDS = {
    "train": train.train,
    "evaluate": evaluate.evaluate,
    "role": role.role,
    "plot": plot.plot,
    "sweep": sweep.sweep,
}
DDPG = ("--agent=ddpg", "--env=Pendulum-v1")
TRIALS = ("--trials=3", "--tune=learning_rate:log:1e-4:1e-2")

# name -> (launcher, arguments, what the line must contain)
MISTAKES = {
    "agent": ("train", ["--agent=impalla"], ["impalla", "did you mean impala"]),
    "agent in capitals": ("train", ["--agent=PPO"], ["'PPO'", "did you mean ppo"]),
    "field as a flag": ("train", ["--learning_rate=1e-3"], ["--learning_rate", "did you mean --config.learning_rate?"]),
    "environment": ("train", ["--env=Pong-v55"], ["Pong-v55", "Pong-v5"]),
    "gymnasium environment": ("train", ["--env=gymnasium:CartPol-v1"], ["CartPol"]),
    "flag": ("train", ["--max_env_stps=10"], ["max_env_stps", "max_env_steps"]),
    "field": ("train", ["--config.lerning_rate=1e-3"], ["lerning_rate", "learning_rate"]),
    "field's type": ("train", ["--config.learning_rate=fast"], ["learning_rate", "fast"]),
    "field's range": ("train", ["--config.discount=1.5"], ["discount", "1.5"]),
    "field's choice": ("train", ["--config.torso=transformer"], ["torso", "mlp, shallow, nature, residual"]),
    "flag's type": ("train", ["--num_actors=two"], ["num_actors", "two"]),
    "flag's range": ("train", ["--num_actors=0"], ["num_actors"]),
    "placement": ("train", ["--placement=cloud"], ["placement", "threads, processes, serial"]),
    "batch": ("train", ["--config.batch_size=33"], ["batch_size=33", "envs_per_actor"]),
    "continuous environment": ("train", ["--agent=all_actions", "--env=Pendulum-v1"], ["all_actions", "discrete"]),
    "discrete environment": ("train", ["--agent=ddpg"], ["ddpg", "continuous", "discrete"]),
    "values of continuous actions": ("train", ["--agent=dqn", "--env=Pendulum-v1"], ["dqn", "discrete", "continuous"]),
    "values of factored actions": ("train", ["--agent=dqn", "--env=binned:3:Pendulum-v1"], ["factored; use a2c"]),
    "tasks unlike": ("train", ["--env=CartPole-v1,Catch-v0"], ["same observations", "CartPole-v1", "Catch-v0"]),
    "tasks of an actor": ("train", ["--env=CartPole-v1,MaskedCartPole-v1", "--envs_per_actor=5"], ["envs_per_actor=5"]),
    "tasks of an evaluation": (
        "train",
        ["--env=CartPole-v1,gymnasium:CartPole-v1", "--eval_episodes=3"],
        ["eval_episodes=3", "2 tasks"],
    ),
    "ViZDoom's rewards": ("train", ["--env=Cig-v1"], ["rewards of Cig-v1", "MyWayHome-v1"]),
    "keywords": ("train", ['--env_kwargs={"k": 1'], ["--env_kwargs", "JSON", """'{"k": 1}'"""]),
    "keywords without names": ("train", ["--env_kwargs=[1]"], ["--env_kwargs=[1]", "JSON"]),
    "keyword of EnvPool": ("train", ['--env_kwargs={"k": 1}'], ["'k'", "max_episode_steps"]),
    "keyword of Gymnasium": ("train", ["--env=gymnasium:CartPole-v1", '--env_kwargs={"k": 1}'], ["argument 'k'"]),
    "processes of EnvPool": (
        "train",
        ["--gymnasium_vectorization=async"],
        ["--gymnasium_vectorization", "gymnasium:ID"],
    ),
    "bins": ("train", ["--env=binned:4:Pendulum-v1"], ["binned:4:Pendulum-v1", "odd"]),
    "window longer than an episode": ("train", ["--agent=dqn", "--config.n_step=501"], ["n_step=501", "500"]),
    "overlap": ("train", ["--agent=r2d2", "--env=Catch-v0", "--config.overlap=12"], ["overlap=12", "sequence_length"]),
    "ladder": ("train", ["--agent=apex_dqn", "--config.epsilon=1"], ["epsilon", "below 1"]),
    "batch larger than the replay": (
        "train",
        [*DDPG, "--config.replay_size=100", "--config.min_replay_size=10", "--config.batch_size=101"],
        ["batch, 101", "100"],
    ),
    "n-step window larger than the replay": (
        "train",
        [*DDPG, "--config.replay_size=9", "--config.min_replay_size=9", "--config.batch_size=9", "--config.n_step=10"],
        ["n-step window, 10"],
    ),
    "replay too large": ("train", [*DDPG, f"--config.replay_size={2 * 10**9}", f"--max_env_steps={10**10}"], ["GB"]),
    "replay that nobody can have": ("train", [*DDPG, f"--config.replay_size={10**14}"], ["replay_size", "2147483647"]),
    "environments that nobody can have": ("train", [f"--envs_per_actor={10**14}"], ["--envs_per_actor", "1048576"]),
    "flag's NaN": ("train", ["--checkpoint_seconds=nan"], ["--checkpoint_seconds", "finite"]),
    "flag's other NaN": ("train", ["--max_loss_deviations=nan"], ["--max_loss_deviations", "finite"]),
    "field's NaN": ("train", ["--config.learning_rate=nan"], ["config.learning_rate", "finite"]),
    "field's infinity": ("train", ["--config.learning_rate=inf"], ["config.learning_rate", "finite"]),
    "field's size": ("train", ["--config.hidden_sizes=(0,)"], ["config.hidden_sizes", "from 1"]),
    "field's half a unit": ("train", ["--config.hidden_sizes=(1.5,)"], ["config.hidden_sizes", "whole number"]),
    "argument": ("train", ["7"], ["'7'", "--help"]),
    "flag file": ("train", ["--flagfile=/nonexistent"], ["/nonexistent"]),
    "peers of no population": ("train", ["--exploit=tournament"], ["--exploit", "--population=8"]),
    "ranges of no population": ("train", ["--tune=learning_rate:log:1e-4:1e-3"], ["--tune", "--population=8"]),
    "staleness of no gradients": ("train", ["--max_staleness=4"], ["--max_staleness", "--travels=gradients"]),
    "processes of threads": ("train", ["--actors_per_process=1"], ["--actors_per_process", "--placement=processes"]),
    "updates of a queue": ("train", ["--updates_per_dispatch=2"], ["updates_per_dispatch=2", "queue"]),
    "range twice": (
        "train",
        ["--population=2", "--tune=learning_rate:log:1e-4:1e-3,learning_rate:log:1e-4:1e-2"],
        ["--tune", "'learning_rate' twice"],
    ),
    "range without an end": ("train", ["--population=2", "--tune=learning_rate:log:1e-4:inf"], ["--tune", "finite"]),
    "port": ("train", ["--port=70000"], ["--port", "65535"]),
    "port of no server": ("train", ["--carrier=local", "--port=8000"], ["--port", "--carrier=reverb"]),
    "seconds of no pod": ("train", ["--connect_seconds=9"], ["--connect_seconds", "--placement=pod or ray"]),
    "code with a meaning": ("train", ["--unfinished_code=2"], ["--unfinished_code", "3 or more"]),
    "updates on the device": (
        "train",
        ["--agent=dqn", "--placement=device", "--env=gymnax:CartPole-v1", "--updates_per_dispatch=4"],
        ["--updates_per_dispatch", "another than device"],
    ),
    "ports": (
        "train",
        [*DDPG, "--port=65535", "--num_replay_servers=2", "--num_actors=2", "--config.batch_size=2"],
        ["--port=65535", "65536", "65535"],
    ),
    "environments in all": ("train", ["--envs_per_actor=65536", "--num_actors=17"], ["1,114,112", "1,048,576"]),
    "place of nobody's": ("train", ["--logdir=~nouser/x"], ["--logdir=~nouser/x", "no user 'nouser'"]),
    "place elsewhere": ("train", ["--logdir=gs://bucket/run"], ["--logdir=gs://bucket/run", "install gcsfs"]),
    "place of no kind": ("train", ["--logdir=zz://bucket/run"], ["--logdir=zz://bucket/run", "not known: zz"]),
    "place without a folder": (
        "role",
        ["--logdir=memory://", "--role=actor"],
        ["--logdir=memory://", "a folder, such as gs://"],
    ),
    "place without a scheme": ("train", ["--logdir=://x"], ["--logdir=://x", "with a scheme"]),
    "place that is a file": ("train", [f"--logdir=file://{__file__}"], [f"file://{__file__} is a file"]),
    "place that cannot be": ("train", ["--logdir=file:///dev/null/x"], ["file:///dev/null/x", "Not a directory"]),
    "no run at a place": ("evaluate", ["--logdir=memory://a/b"], ["no run in memory://a/b"]),
    "no place": ("train", ["--logdir="], ["--logdir"]),
    "flag of a library": ("train", ["--verbosity=1"], ["--verbosity=1", "--help"]),
    "field that no device holds": ("train", ["--config.learning_rate=1e-300"], ["config.learning_rate", "1e-38"]),
    "no curve": ("plot", [], ["folders of runs"]),
    "kind of picture": ("plot", ["--out=curve.txt", "RUN"], ["curve.txt", ".png"]),
    "place of a picture": ("plot", ["--out=no/folder/curve.png", "RUN"], ["no/folder"]),
    "picture elsewhere": ("plot", ["--out=s3://bucket/x.png", "RUN"], ["--out=s3://bucket/x.png", "this machine"]),
    "no run to plot": ("plot", ["/nonexistent"], ["/nonexistent"]),
    "run elsewhere to plot": ("plot", ["s3://bucket/run"], ["s3://bucket/run", "Install s3fs"]),
    "axis": ("plot", ["--x=days", "RUN"], ["--x", "env_steps, learner_steps, wall_seconds"]),
    "no address of a server": ("role", ["--logdir=/tmp/x", "--role=actor", "--replay=zzz"], ["'zzz'", "host:port"]),
    "no trials": ("sweep", [TRIALS[1]], ["--trials"]),
    "nothing tuned": ("sweep", [TRIALS[0]], ["--tune", "learning_rate:log:1e-5:1e-2"]),
    "nothing in what is tuned": ("sweep", [TRIALS[0], "--tune=,"], ["--tune=,", "NAME:log:LOW:HIGH"]),
    "ranges of a sweep": ("sweep", [TRIALS[0], "--tune=learning_rate:log:2:1"], ["--tune=", "LOW below HIGH"]),
    "tuned name": ("sweep", [TRIALS[0], "--tune=learning_rat:log:1:2"], ["learning_rat", "did you mean learning_rate"]),
    "tuned text": ("sweep", [TRIALS[0], "--tune=torso:log:1:2"], ["torso", "not a field of impala's Config"]),
    "tuned beyond": ("sweep", [TRIALS[0], "--tune=discount:linear:0.5:2"], ["--tune", "discount"]),
    "tuned sizes": ("sweep", [TRIALS[0], "--tune=unroll_length:log:1:8"], ["unroll_length", "step=SIZE:LOW:HIGH"]),
    "tuned batch": ("sweep", [TRIALS[0], "--tune=batch_size:step=1:32:33"], ["batch_size=33", "envs_per_actor"]),
    "tuned and given": ("sweep", [*TRIALS, "--config.learning_rate=1e-3"], ["--config.learning_rate", "--tune"]),
    "population of a sweep": ("sweep", [*TRIALS, "--population=2"], ["--population", "scripts/train"]),
    "pod of a sweep": ("sweep", [*TRIALS, "--placement=pod"], ["--placement=pod", "sweep"]),
    "cluster of no sweep": ("sweep", [*TRIALS, "--num_learners=2"], ["--num_learners", "--placement=ray"]),
    "port of a sweep": ("sweep", [*TRIALS, "--port=8000"], ["--port=8000"]),
    "place of a sweep": ("sweep", [*TRIALS, "--logdir=gs://bucket/sweep"], ["--logdir", "this machine"]),
    "run of a sweep": ("sweep", [*TRIALS, "--agent=dqn", "--env=Pendulum-v1"], ["dqn", "discrete", "continuous"]),
    "support": ("train", ["--agent=d4pg", "--env=Pendulum-v1", "--config.v_min=5"], ["v_min=5", "v_max"]),
    "replay in series": ("train", [*DDPG, "--placement=serial"], ["serial", "threads"]),
    "idle replay servers": ("train", [*DDPG, "--num_replay_servers=2"], ["num_replay_servers=2", "num_actors=1"]),
    "servers of a queue": ("train", ["--num_replay_servers=2"], ["num_replay_servers=2", "queue"]),
    "worker's batch": ("train", ["--agent=a3c", "--config.batch_size=2"], ["batch_size=2", "envs_per_actor=1"]),
    "workers": ("train", ["--agent=a3c", "--num_actors=0"], ["num_actors", "1 or more"]),
    "mixture of more than all": (
        "train",
        ["--agent=r2d2", "--carrier=local", "--config.uniform_fraction=1.5"],
        ["uniform_fraction", "within [0, 1]"],
    ),
    "eviction of the best": ("train", ["--agent=apex_dpg", "--config.eviction_exponent=0.4"], ["give 0 or less"]),
    "eviction from rings": (
        "train",
        ["--agent=apex_dpg", "--env=Pendulum-v1", "--carrier=local", "--config.eviction_exponent=-0.4"],
        ["eviction_exponent=-0.4", "--carrier=reverb", "--config.eviction_exponent=0"],
    ),
    "gradients of priorities": ("train", ["--agent=gorila", "--config.replay=prioritized"], ["replay=uniform"]),
    "gradients of no halves": ("train", ["--agent=impala", "--travels=gradients"], ["--travels=experience"]),
    "what travels": ("train", ["--travels=rumours"], ["travels", "experience, gradients"]),
    "network": ("train", ["--config.torso=nature"], ["nature", "torso=mlp"]),
    "logdir that cannot be": ("train", ["--logdir=/dev/null/run"], ["/dev/null/run"]),
    "no run to evaluate": ("evaluate", ["--logdir=/nonexistent"], ["/nonexistent"]),
    "another run to evaluate": (
        "evaluate",
        ["--logdir=/tmp/x", "--agent=ppo"],
        ["--agent=ppo", "--logdir", "--episodes"],
    ),
    "replays in step": ("train", ["--agent=dqn", "--synchronous"], ["--synchronous is for", "dqn does not"]),
    "episodes in step": (
        "train",
        ["--agent=reinforce", "--synchronous"],
        ["--synchronous is for", "reinforce does not"],
    ),
    "gradients in step": (
        "train",
        ["--agent=a3c", "--synchronous"],
        ["--synchronous is for", "--travels=gradients does not"],
    ),
    "half a batch in step": (
        "train",
        ["--agent=ppo", "--synchronous", "--num_actors=2", "--envs_per_actor=8"],
        ["--num_actors=2", "--envs_per_actor=8", "config.batch_size=8"],
    ),
    "seldom in step": ("train", ["--agent=ppo", "--synchronous", "--publish_period=2"], ["--publish_period=2"]),
    "protocol of no Atari": ("train", ["--atari_protocol=machado"], ["--atari_protocol is for Atari", "CartPole-v1"]),
    "protocol": ("train", ["--env=Pong-v5", "--atari_protocol=mnih"], ["nature, machado", "mnih"]),
    "rewards": ("train", ["--reward_clip=hard"], ["--reward_clip", "soft_asymmetric"]),
    "no chance": ("train", ["--eval_epsilon=1.5"], ["--eval_epsilon", "1 or less"]),
    "chance of continuous actions": ("train", [*DDPG, "--eval_epsilon=0.1"], ["--eval_epsilon=0.1", "continuous"]),
    "no episodes": ("evaluate", ["--logdir=/tmp/x", "--episodes=0"], ["--episodes", "1 or more"]),
    "no time": ("role", ["--logdir=/tmp/x", "--role=actor", "--connect_seconds=nan"], ["--connect_seconds", "finite"]),
    "no role": ("role", ["--logdir=/tmp/x", "--role=teacher"], ["teacher", "replay, learner, evaluator, actor"]),
    "no address": ("role", ["--logdir=/tmp/x", "--role=actor"], ["--replay"]),
}


# Mistakes only where Reverb is the default carrier; elsewhere others are found first, or none.
OF_REVERB = {"ports", "replay in series", "idle replay servers", "servers of a queue"}


def expect_one_line(code: int, output: str, parts: list[str]) -> None:
    lines = [line for line in output.splitlines() if line.startswith("error: ")]
    assert code == 2, output
    assert len(lines) == 1, output
    assert "Traceback" not in output, output
    for part in parts:
        assert part in lines[0], lines[0]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_one_line_and_leaves_nothing(mistake, tmp_path, capfd):
    if mistake in OF_REVERB:
        pytest.importorskip("reverb")
    launcher, arguments, parts = MISTAKES[mistake]
    logdir = tmp_path / "logdir"
    if "RUN" in arguments:
        runs.save(runs.make("impala", "CartPole-v1", {}, {}), tmp_path / "saved")
        arguments = [str(tmp_path / "saved") if a == "RUN" else a for a in arguments]
    if launcher != "plot" and not any(a.startswith("--logdir") for a in arguments):
        arguments = [*arguments, f"--logdir={logdir}"]
    code = flags.attempt(COMMANDS[launcher], [launcher, *arguments])
    expect_one_line(code, "".join(capfd.readouterr()), parts)
    assert not logdir.exists(), "a logdir was made for a run that never began"


@pytest.mark.parametrize("mistake", ["field", "environment", "no address"])
def test_mistake_of_a_command(mistake, tmp_path):
    """Tries some of the mistakes as commands, as a person meets them; the tests above try them in this process."""
    launcher, arguments, parts = MISTAKES[mistake]
    code, output = command_line.run(launcher, f"--logdir={tmp_path / 'run'}", *arguments)
    expect_one_line(code, output, parts)
    assert not (tmp_path / "run").exists()


def test_port_in_use(tmp_path, capfd):
    with socket.socket(socket.AF_INET6) as taken:
        taken.bind(("::", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code = flags.attempt(train.train, ["train", f"--logdir={tmp_path / 'run'}", f"--port={port}"])
    expect_one_line(code, "".join(capfd.readouterr()), [str(port), "--port"])


def test_replay_server_that_does_not_answer(tmp_path):
    with socket.socket() as free:
        free.bind(("", 0))
        address = f"localhost:{free.getsockname()[1]}"
    logdir = f"--logdir={tmp_path / 'run'}"
    code, output = command_line.run("role", logdir, "--role=actor", f"--replay={address}", "--connect_seconds=2")
    expect_one_line(code, output, [address, "--replay"])


def test_logdir_of_another_run_and_no_checkpoint_and_not_finite(tmp_path, capfd):
    logdir = tmp_path / "run"
    diverging = (*command_line.TINY, "--config.learning_rate=1e30", "--max_env_steps=100000")
    code, output = command_line.run("train", f"--logdir={logdir}", *diverging)
    expect_one_line(code, output, ["nan", "learning rate"])
    assert not list((logdir / "checkpoints").iterdir()), "a checkpoint of parameters that are not finite"

    code = flags.attempt(train.train, ["train", f"--logdir={logdir}", *command_line.TINY])
    expect_one_line(code, "".join(capfd.readouterr()), [str(logdir), "config.learning_rate"])

    code = flags.attempt(evaluate.evaluate, ["evaluate", f"--logdir={logdir}"])
    expect_one_line(code, "".join(capfd.readouterr()), ["no checkpoint", str(logdir)])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_logdir_that_is_not_writable(tmp_path, capfd):
    tmp_path.chmod(0o500)
    code = flags.attempt(train.train, ["train", f"--logdir={tmp_path / 'run'}"])
    expect_one_line(code, "".join(capfd.readouterr()), [str(tmp_path)])
