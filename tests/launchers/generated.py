"""Random command lines by the thousand, always the same ones for a seed.

They draw on every flag that a command declares and every field of a Config. Flags come from the declarations, so that a
new flag is tried as soon as it is declared.
"""

import dataclasses
import json
import pathlib
import random
import typing
from collections.abc import Iterator, Sequence
from typing import Any

from launchers import configs, evaluate, manifests, plot, role, settings, sweep
from launchers import run as runs
from launchers.settings import Logdir, Setting, Settings, Sitting
from scripts import bench, bench_learners
from tests.launchers import odd_values as odd
from tests.launchers.odd_values import FOLDER

DECLARING: dict[str, tuple[type, ...]] = {
    "train": (Settings, Sitting, settings.Tracking, settings.RayCluster, settings.Ending),
    "role": (Settings, Sitting, role.Place),
    "manifests": (Settings, Sitting, manifests.Manifest),
    "sweep": (Settings, settings.RayCluster, settings.Ending, sweep.Sweep),
    "evaluate": (evaluate.Evaluation,),
    "plot": (plot.Picture,),
    "bench": (Settings, bench.Timing),
    "bench_learners": (bench_learners.Choice, bench.Timing),
}
SHARES = {"train": 10, "role": 5, "manifests": 3, "sweep": 4, "evaluate": 3, "plot": 4, "bench": 1, "bench_learners": 1}


@dataclasses.dataclass
class Line:
    """A command line, and the files that are there when it runs."""

    command: str
    arguments: list[str]
    files: dict[str, bytes]  # path below the line's own folder -> content; the folder replaces FOLDER in an argument
    parted: int = -1  # the index of an argument --name=value that is given as two words; -1: none

    def words(self, folder: pathlib.Path) -> list[str]:
        """Returns the arguments as a person gives them."""
        given = [argument.replace(FOLDER, str(folder)) for argument in self.arguments]
        parts = [x.split("=", 1) if index == self.parted else [x] for index, x in enumerate(given)]
        return [word for part in parts for word in part]


def lines(seed: int, count: int) -> Iterator[Line]:
    """Yields `count` command lines, which the seed determines."""
    draw = random.Random(seed)
    commands = [name for name, share in SHARES.items() for _ in range(share)]
    for _ in range(count):
        command = draw.choice(commands)
        line = {"plot": _plot, "evaluate": _evaluate, "role": _role}.get(command, _of_run)(draw, command)
        if draw.random() < 0.1 and line.arguments:
            line.parted = draw.randrange(len(line.arguments))
        yield line


def declared(command: str) -> dict[str, Setting]:
    return {name: each for of in DECLARING[command] for name, each in settings.declarations(of).items()}


def _value(draw: random.Random, name: str, of: Setting) -> str:
    """Returns some text for a flag, which may or may not be a value of its kind."""
    pools: list[Sequence[str]]
    if name in ("agent", "env"):
        pools = [odd.ENVS if name == "env" else (*sorted(configs.AGENTS), *odd.ODD_AGENTS)]
    elif of.kind in (pathlib.Path, Logdir, bool):
        pools = [odd.BOOLS if of.kind is bool else odd.PATHS]
    elif of.kind is str:
        like = {"tune": odd.RANGES, "tpu": odd.SLICES, "ray_resources": odd.NEEDS} | dict.fromkeys(
            odd.RESERVING, odd.RESOURCES
        )
        pools = [of.choices] * 4 if of.choices else [odd.TEXTS, like.get(name, odd.ADDRESSES)]
    else:
        number: Any = of.kind
        edges = [number(of.least) - 1, number(of.least), number(of.least) + 1, number(of.most), number(of.most) + 1]
        pools = [odd.NUMBERS, [str(edge) for edge in edges], ["1", "2", "4", "8"]]
    return draw.choice(draw.choice([*pools, *([odd.TEXTS] if draw.random() < 0.1 else [])]))


def _field(draw: random.Random, agent: str) -> str:
    """Returns a flag --config.FIELD for a field of the agent's Config."""
    name, kind = draw.choice(sorted(configs.fields(agent).items()))
    if kind is bool:
        return draw.choice((f"--config.{name}", f"--noconfig.{name}", f"--config.{name}={draw.choice(odd.BOOLS)}"))
    origin = typing.get_origin(kind)
    pool: Any = odd.TUPLES if origin is tuple else odd.NUMBERS
    if origin is typing.Literal:
        pool = [*map(str, typing.get_args(kind)), *map(str, typing.get_args(kind)), *odd.TEXTS[:4]]
    return f"--config.{name}={draw.choice(pool)}"


def _flags(draw: random.Random, command: str, agent: str, count: int) -> list[str]:
    """Returns `count` flags of a command; now and then one of them is mangled."""
    of, said = declared(command), []
    for _ in range(count):
        if "agent" in of and draw.random() < 0.35:
            said.append(_field(draw, agent))
            continue
        name = draw.choice(sorted(of))
        flag = f"--{name}={_value(draw, name, of[name])}"
        said.append(_mangled(draw, flag) if draw.random() < 0.06 else flag)
    return said


def _mangled(draw: random.Random, flag: str) -> str:
    """Returns a misspelt form of a flag, or some other text that is hardly a flag."""
    name, _, value = flag.partition("=")
    cut = draw.randrange(len(name))
    typed = (name, f"-{flag}", flag[1:], f"{name[:cut]}{name[cut + 1 :]}={value}", f"--no{name[2:]}", flag.upper())
    ends = (f"{name}=", f"--config.{name[2:]}={value}", value, "--", "-", "--=", "--config.=1", "--noconfig.")
    of_absl = (f"--verbosity={value}", f"--undefok={name[2:]}", "--log_dir=/tmp", "--helpfull=1", "--flagfile=/no/file")
    return draw.choice((*typed, *ends, *of_absl, f"--flagfile={FOLDER}/file", f"--flagfile={FOLDER}"))


def _of_run(draw: random.Random, command: str) -> Line:
    """Returns a line of a command that describes a run by flags, or that takes no run at all."""
    files = {"file": b"--seed=3\n"}
    if "agent" not in declared(command):
        return Line(command, _flags(draw, command, "", draw.choice((0, 1, 2))), files)
    agent, arguments = "impala", []
    if draw.random() < 0.85:
        agent = draw.choice(sorted(configs.AGENTS))
        arguments = [f"--agent={agent}", f"--env={_fitting(draw, agent)}"]
    arguments += draw.choice(odd.SURROUNDINGS) if draw.random() < (0.1 if command == "sweep" else 0.35) else ()
    arguments += _of_sweep(draw, agent) if command == "sweep" else ()
    arguments += _flags(draw, command, agent, draw.choice((0, 0, 1) if command == "sweep" else (0, 1, 1, 2, 2, 3, 5)))
    if command == "manifests":
        arguments += [flag for flag in ("--image=shoal:cpu", "--claim=runs") if draw.random() < 0.95]
        arguments += draw.choice(((), (), ("--placement=pod", "--num_hosts=2"), ("--placement=pod", "--tpu=v5:2x4")))
    elif "logdir" in declared(command) and draw.random() < 0.8:
        arguments.append(f"--logdir={FOLDER}/new")
    return Line(command, arguments, files)


def _of_sweep(draw: random.Random, agent: str) -> list[str]:
    """Returns flags that a sweep needs, now and then without one of them or with an unsound range."""
    fields, parts = configs.fields(agent), []
    config = configs.agent_module(agent).Config()
    numbers = sorted(name for name, kind in fields.items() if kind in (int, float))
    for name in draw.sample(numbers, draw.choice((1, 1, 2))):
        value = getattr(config, name)
        if fields[name] is int:
            ranges = [f"step=1:{value}:{value + 1}", f"step=2:{value}:{value + 5}", "step=1:1:4", "step=4:8:64"]
            odd_ranges = ["step=0.5:1:2", "log:1:8", "step=2:2:9"]
        else:
            ranges = [f"linear:{value}:{value + 1e-4}", f"step=1e-4:{value}:{value + 1e-3}", "linear:0.1:0.9"]
            odd_ranges = ["log:1e-4:1e-2", "linear:0:1", "step=0.3:0.1:1", "linear:-1:2", "log:1e-9:1e9"]
        parts.append(f"{name}:{draw.choice(ranges if draw.random() < 0.8 else odd_ranges)}")
    said = [f"--tune={','.join(parts)}", f"--trials={draw.choice((1, 3, 30))}"]
    return [flag for flag in said if draw.random() < 0.97]


def _fitting(draw: random.Random, agent: str) -> str:
    """Returns an environment, most often one with actions that the agent can take."""
    if draw.random() < 0.35:
        return draw.choice(odd.ENVS)
    continuous = agent in ("ddpg", "td3", "d4pg", "dpg", "apex_dpg", "mpo", "dmpo")
    return draw.choice(("Pendulum-v1", "HalfCheetah-v4") if continuous else ("CartPole-v1", "Catch-v0", "Acrobot-v1"))


def _saved(draw: random.Random) -> dict[str, bytes]:
    """Returns a run's config.json (name -> content), often damaged."""
    agent, how = draw.choice(("a2c", "impala", "ppo", "dqn", "reinforce", "q_learning")), draw.random()
    if how < 0.12:
        return {"config.json": draw.choice(odd.FILES)}
    members = {"population": 2, "population_mode": "vmap", "tune": "learning_rate:log:1e-4:1e-2"}
    stacked = agent in ("a2c", "impala") and draw.random() < 0.2
    values = runs.make(agent, "CartPole-v1", members if stacked else {}, {}).to_json()
    for _ in range(draw.choice((1, 1, 2)) if how < 0.6 else 0):
        of = values["config"] if draw.random() < 0.4 and isinstance(values["config"], dict) else values
        name = draw.choice([*sorted(of), "unheard_of", "config"])
        of[name] = draw.choice(odd.JSON)
        if draw.random() < 0.2 and name != "config":
            del of[name]
    text = json.dumps(values).encode()
    return {"config.json": text[: draw.randrange(len(text))] if draw.random() < 0.05 else text}


def _evaluate(draw: random.Random, command: str) -> Line:
    arguments = [f"--logdir={FOLDER}"] if draw.random() < 0.9 else []
    arguments += [f"--video={FOLDER}/{draw.choice(odd.VIDEOS)}"] if draw.random() < 0.3 else []
    return Line(command, arguments + _flags(draw, command, "", draw.choice((0, 0, 1, 1, 2))), _saved(draw))


def _role(draw: random.Random, command: str) -> Line:
    kind = draw.choice((*role.KINDS, *role.KINDS, *role.KINDS, "", "teacher"))
    plain = [f"--role={kind}", f"--logdir={FOLDER}", "--replay=localhost:1"]
    arguments = [flag for flag in plain if draw.random() < 0.95]
    arguments += _flags(draw, command, "impala", draw.choice((0, 0, 1, 1, 2, 3)))
    of = declared(command)
    for name in ("task", "member", "num_learners", "coordinator", "connect_seconds"):
        if draw.random() < 0.15:
            arguments.append(f"--{name}={_value(draw, name, of[name])}")
    return Line(command, arguments, _saved(draw) if draw.random() < 0.7 else {})


def _plot(draw: random.Random, command: str) -> Line:
    files: dict[str, bytes] = {"file": b""}
    names = []
    for index in range(draw.choice((0, 1, 1, 1, 1, 1, 2, 2, 3))):
        folder = f"run{index}"
        names.append(f"{FOLDER}/{folder}" if draw.random() < 0.93 else draw.choice((*odd.PATHS, *odd.TEXTS[:8])))
        config = json.dumps(runs.make("a2c", "CartPole-v1", {"seed": index}, {}).to_json()).encode()
        files[f"{folder}/config.json"] = config if draw.random() < 0.85 else _saved(draw)["config.json"]
        files[f"{folder}/evaluator.csv"] = _evaluations(draw)
        if draw.random() < 0.3:
            files[f"{folder}/lineage_0.csv"] = _lineage(draw)
    arguments = [f"--out={FOLDER}/{draw.choice((*odd.PICTURES[:3] * 6, *odd.PICTURES))}"] if draw.random() < 0.9 else []
    arguments += ["--lineages"] if draw.random() < 0.2 else []
    arguments += [f"--x={draw.choice(('env_steps', 'wall_seconds', 'learner_steps'))}"] if draw.random() < 0.3 else []
    return Line(command, arguments + (_flags(draw, command, "", 1) if draw.random() < 0.15 else []) + names, files)


def _evaluations(draw: random.Random) -> bytes:
    """Returns the content of an evaluator.csv, which may be unsound."""
    header = odd.COLUMNS if draw.random() < 0.85 else draw.choice(odd.OTHER_COLUMNS)
    step, rows = 0, []
    for _ in range(draw.choice((0, 1, 2, 3, 10))):
        step += draw.choice((10, 10, 100, 0, -30))
        rows.append([step, step, step / 7, 5, draw.gauss(0, 10), draw.random()])
    return _table(draw, header, rows)


def _lineage(draw: random.Random) -> bytes:
    """Returns the content of a lineage's CSV, which may be unsound."""
    header = draw.choice(("env_steps,member,donor,score,learning_rate",) * 4 + ("env_steps,member", "score", "x,y"))
    turns = range(draw.choice((0, 1, 3)))
    return _table(draw, header, [[100 * n, m, draw.randrange(3), 1.5, 1e-3] for n in turns for m in range(3)])


def _table(draw: random.Random, header: str, rows: list[list[Any]]) -> bytes:
    sound = draw.random() < 0.5
    lines = [header]
    for row in rows:
        cells = [str(value) for value in row][: header.count(",") + 1]
        if not sound and draw.random() < 0.5:
            cells[draw.randrange(len(cells))] = draw.choice(odd.CELLS)
        lines.append(",".join(cells + [draw.choice(odd.CELLS)] * (draw.random() < 0.05)))
    text = "\n".join([*lines, *([""] if draw.random() < 0.9 else [])]).encode()
    noise = bytes(draw.randrange(256) for _ in range(200))
    return noise if draw.random() < 0.05 else text + (noise if draw.random() < 0.05 else b"")
