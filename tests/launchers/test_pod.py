"""Placement `pod`: the hosts end together, and each says what is wrong."""

import re
import signal
import subprocess

import pytest

from launchers import roles
from launchers import run as runs
from runtime import metrics
from runtime.checkpoint import Checkpointer
from runtime.hosts import Hosts
from tests.launchers import command_line
from tests.runtime.test_hosts import free_port

REPLAY = (
    "--agent=ddpg", "--env=Pendulum-v1", "--carrier=local", "--num_actors=1", "--envs_per_actor=2",
    "--config.replay=prioritized", "--config.hidden_sizes=8", "--config.batch_size=8", "--config.min_replay_size=200",
)  # fmt: skip
QUEUE = (*command_line.TINY, "--agent=impala", "--carrier=reverb")
FOR_EVER = ("--max_env_steps=1000000000", "--eval_period=1000000000", "--checkpoint_seconds=1")


def start(count, logdir, *arguments, **of_host):
    """Starts a pod's processes, one for each host. `of_host` has further arguments for a host: host_0=(...)."""
    common = (f"--logdir={logdir}", "--placement=pod", f"--coordinator=localhost:{free_port()}", f"--num_hosts={count}")
    return [
        command_line.start("train", *common, f"--host={host}", *arguments, *of_host.get(f"host_{host}", ()))
        for host in range(count)
    ]


def ends(processes: list[subprocess.Popen], timeout: float = 240) -> list[tuple[int, str]]:
    """Waits for the processes; returns the (exit code, output) of each."""
    try:
        return [(command_line.output_of(process, timeout), process.returncode)[::-1] for process in processes]
    finally:
        for process in processes:
            process.kill()


def env_steps(logdir) -> float:
    return (metrics.latest(logdir, "learner") or {"env_steps": 0.0})["env_steps"]


def saved(logdir):
    run = runs.load(logdir)
    checkpointer = Checkpointer(logdir / "checkpoints", run.make_agent(run.spec()))
    restored = checkpointer.restore()
    return restored and restored[1]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("arguments", [QUEUE, REPLAY], ids=["a queue", "a replay"])
def test_hosts_end_together_and_the_same_command_goes_on_with_other_hosts(arguments, tmp_path):
    pod = start(2, tmp_path, *arguments, *FOR_EVER)
    command_line.wait_for("learning", lambda: env_steps(tmp_path) > 500, 300, running=pod)
    pod[1].send_signal(signal.SIGTERM)  # heard by one, obeyed by all
    for code, output in ends(pod):
        assert code == 0 and "Traceback" not in output, output
    first = saved(tmp_path)
    assert first.env_steps > 500 and first.learner_steps > 0
    replays = sorted(path.name for path in tmp_path.glob("replay_*"))
    assert replays == (["replay_0", "replay_1"] if arguments is REPLAY else [])

    lost, said = (75, ("--unfinished_code=75",)) if arguments is REPLAY else (2, ())
    pod = start(2, tmp_path, *arguments, *FOR_EVER, *said)
    command_line.wait_for("a checkpoint of the second sitting", lambda: saved(tmp_path) != first, 300, running=pod)
    pod[0].kill() if arguments is REPLAY else pod[1].kill()
    left = pod[1 if arguments is REPLAY else 0]
    output = command_line.output_of(left, 100)
    for process in pod:
        process.kill()
    second = saved(tmp_path)
    assert second.learner_steps > first.learner_steps, "the second went on from the first"
    line = next((line for line in output.splitlines() if line.startswith("error:")), "")
    assert left.returncode == lost and re.search(r"host [01] of 2 (ended|is silent)", line), output
    assert "Traceback" not in output

    more = (f"--max_env_steps={second.env_steps + 500}", "--eval_episodes=1")
    ((code, output),) = ends(start(1, tmp_path, *arguments, *more))
    assert code == 0, output
    assert ("the replays in replay_1 are not used" in output) == (arguments is REPLAY), output
    third = saved(tmp_path)
    assert third.env_steps >= second.env_steps + 500 and third.learner_steps > second.learner_steps


DIES = {
    "before JAX": "pod.pods.start_jax = lambda *given: os._exit(9)",
    "in JAX": "start = pod.pods.start_jax; pod.pods.start_jax = lambda *given: (start(*given), os._exit(9))",
    "before it computes": "pod._check = lambda *given: os._exit(9)",
    "before it learns": "pod.roles.make_parts = lambda *given: os._exit(9)",
}


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("moment", DIES)
def test_a_host_that_dies_at_the_start_is_the_others_end(moment, victim, tmp_path):
    """The other host ends too, wherever in JAX it waits for the one that died."""
    common = (*QUEUE, *FOR_EVER, f"--logdir={tmp_path}", "--placement=pod", "--num_hosts=2")
    common += (f"--coordinator=localhost:{free_port()}",)
    dying = f"import os\nfrom launchers import pod, train\n{DIES[moment]}\ntrain.run()"
    pod = []
    for host in (0, 1):
        given = command_line.command("train", *common, f"--host={host}")
        given = [given[0], "-c", dying, *given[3:]] if host == victim else given
        pod.append(command_line.launch(given))
    (code, output), (other, lines) = ends(pod, timeout=100)[:: 1 if victim else -1]
    assert other == 9, lines
    error = [line for line in output.splitlines() if line.startswith("error:")]
    assert code == 2 and error and re.search(rf"host {victim} of 2 (ended|is silent)", error[0]), output
    assert len(error) == 1 and "Traceback" not in output, output


@pytest.mark.parametrize(
    ("count", "arguments", "of_host", "words"),
    [
        (2, ("--config.discount=0.9",), {"host_1": ("--config.discount=0.8",)}, "--config.discount is 0.9 on host 0"),
        (3, ("--config.batch_size=8",), {}, "--num_hosts=3 must divide config.batch_size=8"),
        (2, ("--agent=a3c", "--config.batch_size=4"), {}, "with --travels=gradients the learner is on one host"),
        (2, ("--population=2", "--tune=learning_rate:log:1e-4:1e-2"), {}, "the members of a population"),
        (2, ("--connect_seconds=4",), {"host_1": ("--num_hosts=3",)}, "count is 2 on host 0 and 3 on host 1"),
    ],
)
def test_what_is_wrong_is_one_line_on_every_host(count, arguments, of_host, words, tmp_path):
    for code, output in ends(start(count, tmp_path / "run", *command_line.TINY, *arguments, **of_host)):
        assert code == 2, output
        (line,) = output.strip().splitlines()
        assert line.startswith("error: --placement=pod") or line.startswith("error: --num_hosts"), line
        assert words in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--placement=pod",), "needs --logdir"),
        (("--placement=pod", "--logdir=LOGDIR"), "no TPU pod, SLURM or Open MPI was found here"),
        (("--placement=pod", "--logdir=LOGDIR", "--host=0"), "lacks --coordinator"),
        (("--placement=pod", "--logdir=LOGDIR", "--coordinator=x", "--num_hosts=2", "--host=0"), "is not an address"),
        (("--placement=pod", "--logdir=LOGDIR", "--coordinator=x:1", "--num_hosts=2", "--host=2"), "numbered from 0"),
        (
            ("--placement=pod", "--logdir=LOGDIR", "--coordinator=localhost:1", "--num_hosts=2", "--host=1",
             "--connect_seconds=1"),
            "host 0 does not answer at localhost:1",
        ),
        (("--num_hosts=2",), "--num_hosts is for --placement=pod"),
    ],
)  # fmt: skip
def test_a_command_line_that_is_no_pods_is_refused(arguments, words, tmp_path):
    given = [argument.replace("LOGDIR", str(tmp_path / "run")) for argument in arguments]
    code, output = command_line.run("train", *command_line.TINY, *given)
    (line,) = output.strip().splitlines()
    assert code == 2 and line.startswith("error: ") and words in line, output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("agent", ["dqn", "impala"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_hosts_share_batches_and_replays_evenly_and_no_two_actors_are_alike(agent, count, tmp_path):
    config = {"batch_size": 16} | ({"replay_size": 4000, "min_replay_size": 400} if agent == "dqn" else {})
    run = runs.make(agent, "CartPole-v1", {"num_actors": 3, "envs_per_actor": 4, "placement": "pod"}, config)
    whole = run.make_agent(run.spec()).table
    places, seeds = set(), set()
    for index in range(count):
        parts = roles.Parts(run, tmp_path, hosts=Hosts(index, count))
        assert parts.batch_size * count == 16
        assert parts.table.max_size * count == whole.max_size
        assert parts.table.min_size * count == whole.min_size or whole.min_size == parts.table.min_size == 1
        places |= {parts.place(task) for task in range(3)}
        seeds |= {run.seed_of("actor", parts.place(task)) for task in range(3)}
    assert places == set(range(3 * count)) and len(seeds) == 3 * count
