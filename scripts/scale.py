"""Predicts the speed of a run on many machines from measurements on this one.

  scripts/scale --agent=impala --env=Pong-v5
  scripts/scale --check --agent=impala --env=CartPole-v1     # beside real runs of 1, 2 and 4 actors and hosts, here

Each stage of the run is timed alone, on this machine, and the sizes of the data that is sent are computed. For several
numbers of actors and of hosts, the command then prints which part of the run would be the slowest, and how many
environment steps a second that part allows. The prediction assumes that all machines are like this one, and that each
can send and receive --network_gigabits a second.
"""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import rich.console
import rich.table

from launchers import flags
from launchers import run as runs
from launchers.ports import free_port
from launchers.run import Run
from launchers.settings import Settings, UsageError, setting
from replay import channels, structures
from runtime import metrics
from scripts.bench import Bench, timed

ROOT = pathlib.Path(__file__).resolve().parents[1]
START_SECONDS = 180.0  # for a run's first update
END_SECONDS = 120.0  # for its end


@dataclasses.dataclass
class Scale:
    seconds: float = setting(
        3.0,
        "seconds for which each stage is measured; with --check each real run is watched for seven times as long",
        least=0.1,
    )
    actors: str = setting("1,8,64,512", "the numbers of actors for which the speed is predicted, with commas between")
    hosts: str = setting(
        "1,8,64",
        "the numbers of a pod's hosts for which the speed is predicted, with commas between; each has --num_actors",
    )
    cores: int = setting(os.cpu_count() or 1, "number of processor cores of a machine", most=4096)
    network_gigabits: float = setting(10.0, "gigabits a second that a machine can send, and also receive", least=1e-3)
    latency_microseconds: float = setting(
        50.0, "microseconds that a message takes from one machine to another", least=0
    )
    check: bool = setting(False, "also compare with real runs on this machine")
    json: bool = setting(False, "print the measurements, and the limits that follow from them, as JSON")


class Costs(NamedTuple):
    """The costs of one environment step. CPU seconds are those of all threads together."""

    actor: float  # CPU seconds of an actor: stepping, acting, cutting items and sending them
    actor_thread: float  # wall seconds of the same; fewer, for environments step in threads of their own
    serve: float  # CPU seconds of sampling, in the server and the learner together
    update: float  # CPU seconds of the learner's update
    update_wall: float  # wall seconds of the same
    half_update_wall: float  # wall seconds of an update on half a batch, over the steps of a whole batch
    steps_per_update: float  # environment steps for each update
    row_bytes: float  # bytes from an actor to the replay
    batch_bytes: float  # bytes from the replay to the learner
    params_bytes: int  # bytes of one pull
    pulls: float  # pulls of an actor for each step


class Layout(NamedTuple):
    """The machines on which a run is."""

    hosts: int = 1  # hosts with a learner
    actors: int = 1  # actors of all hosts together
    cores: int = 1  # cores of a machine
    together: bool = False  # whether all is on one machine
    network: float = np.inf  # bytes a second that a machine can send, and as many that it can receive
    latency: float = 0.0  # seconds from one machine to another


def limits(costs: Costs, of: Layout) -> dict[str, float]:
    """Returns the environment steps a second that each part allows."""
    # The time of an update on a share of a batch has a fixed part, and a part that grows with the share.
    slope = 2 * (costs.update_wall - costs.half_update_wall)
    fixed = max(0.0, costs.update_wall - slope)
    learn = fixed + slope / of.hosts
    found = {"actors": of.actors / costs.actor_thread}
    pulled = costs.params_bytes * costs.pulls
    if of.hosts > 1:
        # Each host sends and receives nearly two times its gradients: a ring's all-reduce, in 2 (hosts - 1) messages.
        steps = costs.steps_per_update
        rounds = 2 * (of.hosts - 1)
        reduce = rounds * of.latency + rounds / of.hosts * costs.params_bytes / of.network
        found["learner"] = 1 / (learn + reduce / steps)
        found["network of a host"] = of.network * of.hosts / (rounds * costs.params_bytes / steps + 1e-12)
    else:
        found["learner"] = 1 / learn
        if not of.together:
            found["network of the replay"] = of.network / max(costs.row_bytes, costs.batch_bytes + pulled)
    if of.together:
        # Each host spends the fixed part of an update.
        update = costs.update / costs.update_wall * learn * of.hosts
        found["cores"] = of.cores / (costs.actor + costs.serve + update)
    elif of.hosts == 1:
        found["cores of the replay"] = of.cores / costs.serve
    return found


def slowest(found: dict[str, float]) -> tuple[str, float]:
    """Returns the part that allows the fewest steps, and how many it allows."""
    name = min(found, key=lambda name: found[name])
    return name, found[name]


def measure(run: Run, seconds: float) -> Costs:
    """Measures the costs of a run with one actor, each stage for `seconds`."""
    one = runs.replace(run, num_actors=1)
    bench = Bench(one)
    with bench.stepping() as work:
        step_wall, step = timed(seconds, work)
    act_wall, act = timed(seconds, bench.acting(bench.timestep()))
    update_wall, update = timed(seconds, bench.updating())
    size = bench.agent.batch_size
    half = dataclasses.replace(run.config, batch_size=max(1, size // 2))
    half_wall, _ = timed(seconds, Bench(dataclasses.replace(one, config=half)).updating())
    write, sample = (value * 1e-6 for value in bench.write_and_sample())
    parts, spec = bench.parts, bench.parts.spec
    item = structures.nbytes(parts.items.leaves)
    if parts.replays:
        items = size / bench.steps_per_update  # items that the learner samples for each environment step
        sample *= items
        way = channels.way(parts.table)
        row_bytes, batch_bytes = way.item_bytes(parts.agent, spec), items * item
        pulls = 1 / way.ring(parts.table, parts.items).pull_period  # Reverb's writers have the same
    else:
        steps = run.config.unroll_length * channels.way(parts.table).sequences_per_item(parts.items)
        row_bytes = batch_bytes = item / steps
        pulls = 1 / steps
    return Costs(
        actor=step + act + write,
        actor_thread=step_wall + act_wall + write,
        serve=sample,
        update=update,
        update_wall=update_wall,
        half_update_wall=half_wall / 2,  # half_wall is per step of half a batch, and a whole one has twice the steps
        steps_per_update=bench.steps_per_update,
        row_bytes=row_bytes,
        batch_bytes=batch_bytes,
        params_bytes=structures.nbytes(parts.params.leaves),
        pulls=pulls,
    )


def watch(commands: Sequence[Sequence[str]], logdir: pathlib.Path, seconds: float) -> float:
    """Starts a real run by these commands, ends it, and returns the environment steps a second that it made.

    Raises:
      UsageError: the run did not start or end in time.
    """
    path = logdir.with_suffix(".log")
    with open(path, "ab") as log:
        processes = [subprocess.Popen(command, stdout=log, stderr=log) for command in commands]
    made = lambda: metrics.read(logdir / "learner.csv")[3:]  # the rows after the run's start
    try:
        wait_for("its first updates", made, processes, path)
        time.sleep(seconds)
        wait_for("further updates", lambda: len(made()) > 1, processes, path)
        rows = made()
        for process in processes:
            process.send_signal(signal.SIGTERM)
        wait_for("its end", lambda: all(process.poll() is not None for process in processes), [], path)
    finally:
        for process in processes:
            process.kill()
    first, last = rows[0], rows[-1]
    return (last["env_steps"] - first["env_steps"]) / (last["wall_seconds"] - first["wall_seconds"])


def wait_for(
    what: str, condition: Callable[[], object], processes: Sequence[subprocess.Popen], log: pathlib.Path
) -> None:
    deadline = time.monotonic() + (START_SECONDS if processes else END_SECONDS)
    while not condition():
        if any(process.poll() is not None for process in processes) or time.monotonic() > deadline:
            raise UsageError(
                f"a real run did not come to {what} in time: {log} has what it said; leave --check out to do without"
            )
        time.sleep(0.2)


def check(run: Run, costs: Costs, given: Sequence[str], seconds: float, cores: int) -> list[list[str]]:
    """Makes real runs on this machine; returns the rows of a table that compares them with the model."""
    train = str(ROOT / "scripts" / "train")
    endless = [*given, f"--max_env_steps={10**12}", f"--eval_period={10**12}"]
    found = []
    folder = pathlib.Path(tempfile.mkdtemp(prefix="shoal_scale_"))
    for placement in ("processes", "pod"):
        for count in (1, 2, 4):
            logdir = folder / f"{placement}_{count}"
            common = [*endless, f"--placement={placement}", f"--logdir={logdir}"]  # a repeated flag's last value counts
            if placement == "processes":
                commands = [[train, *common, f"--num_actors={count}", "--actors_per_process=1"]]
                layout = Layout(actors=count, cores=cores, together=True)
            else:
                hosts = [f"--coordinator=localhost:{free_port()}", f"--num_hosts={count}", "--num_actors=1"]
                commands = [[train, *common, *hosts, f"--host={host}"] for host in range(count)]
                layout = Layout(hosts=count, actors=count, cores=cores, together=True)
            name, said = slowest(limits(costs, layout))
            was = watch(commands, logdir, seconds)
            found.append([f"{placement}, {count}", f"{was:,.0f}", f"{said:,.0f}", f"{said / was:.2f}", name])
    shutil.rmtree(folder)
    return found


def numbers(flag: str) -> list[int]:
    """Returns the numbers of a flag, which has commas between them.

    Raises:
      UsageError: the flag is no list of numbers from 1 on.
    """
    text = getattr(flags.FLAGS, flag)
    with contextlib.suppress(ValueError):
        found = [int(part) for part in text.split(",")]
        if all(0 < each < 2**20 for each in found):
            return found
    raise UsageError(f"--{flag}={text} must be whole numbers from 1 on, with commas between, such as 1,8,64")


@flags.command(Settings, Scale)
def scale() -> int:
    asked = flags.FLAGS
    actors, hosts = numbers("actors"), numbers("hosts")
    run = runs.replace(flags.run_from_flags(), max_env_steps=10**12)
    if run.population or run.travels == "gradients" or run.carrier == "local" or run.synchronous:
        raise UsageError(
            "scripts/scale is only for runs with --carrier=reverb, --travels=experience, --synchronous=false and no "
            "--population"
        )
    costs = measure(run, asked.seconds)
    machine = functools.partial(
        Layout, cores=asked.cores, network=asked.network_gigabits * 1e9 / 8, latency=asked.latency_microseconds * 1e-6
    )
    layouts = {f"{count} actors": machine(actors=count) for count in actors}
    layouts |= {f"{count} hosts": machine(hosts=count, actors=count * run.num_actors) for count in hosts}
    bounds = {name: limits(costs, layout) for name, layout in layouts.items()}
    if asked.json:
        print(json.dumps({"costs": costs._asdict(), "limits": bounds}, indent=2))
        return 0
    console = rich.console.Console(soft_wrap=True)
    for name, value in costs._asdict().items():
        unit = "B" if "bytes" in name else "us" if name not in ("steps_per_update", "pulls") else ""
        console.print(f"{name.replace('_', ' ')}: {value * (1e6 if unit == 'us' else 1):,.4g} {unit}")
    table = rich.table.Table("layout", "environment steps/s", "at most by")
    for name, found in bounds.items():
        part, most = slowest(found)
        table.add_row(name, f"{most:,.0f}", part)
    console.print(table)
    if asked.check:
        given = [word for name, word in flags.words_of_run().items() if name not in ("num_actors", "max_env_steps")]
        table = rich.table.Table("run", "environment steps/s", "the model's", "over", "at most by")
        for row in check(run, costs, given, 7 * asked.seconds, asked.cores):
            table.add_row(*row)
        console.print(table)
    return 0


if __name__ == "__main__":
    flags.main(scale)
