"""Imports point one way, and each thing has one home. Most of these tests only read the source; some import modules, in
processes of their own."""

import ast
import io
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# What a room may import from the project. A name stands for that module and everything inside it.
ALLOWED = {
    "agents": {"agents"},
    "environments": {"environments", "agents.agent"},
    "replay": {"replay", "agents.agent"},
    "runtime": {"runtime", "environments", "replay", "agents"},
    "launchers": {"launchers", "runtime", "environments", "replay", "agents"},
    "shoal": {"shoal", "launchers", "runtime", "environments", "replay", "agents"},
    "scripts": {"scripts", "launchers", "runtime", "environments", "replay", "agents"},
}
ROOMS = [room for room in ALLOWED if room != "scripts"]
# The parts that algorithms are made of know no algorithm: for files in agents/parts this replaces the entry of agents.
PARTS, PARTS_ALLOWED = "agents/parts", {"agents.agent", "agents.parts"}
PROJECT = {*ALLOWED, "tests"}

# What agents/ may import from outside: pure functions need no threads, clock, files or hidden randomness.
AGENTS_LIBRARIES = {"jax", "flax", "optax", "rlax", "chex", "distrax", "numpy"}
IMPURE = {
    *("threading", "_thread", "concurrent", "multiprocessing", "asyncio", "queue", "sched", "contextvars"),
    *("time", "datetime", "calendar", "random", "secrets", "uuid"),
    *("os", "sys", "io", "pathlib", "shutil", "tempfile", "pickle", "shelve", "logging", "argparse"),
    *("subprocess", "socket", "selectors", "signal", "ctypes", "importlib"),
}
AGENTS_STANDARD = sys.stdlib_module_names - IMPURE

MAPPING_HOME = "runtime/devices.py"
MAPPING = {"pmap", "shard_map", "PartitionSpec", "NamedSharding", "PositionalSharding"}  # and names with "addressable"
VAGUE_NAMES = {"utils.py", "common.py", "base.py", "helpers.py"}
AGENT_LINES = 300


def sources(*rooms: str) -> list[Path]:
    return sorted(path for room in rooms for path in (ROOT / room).rglob("*.py"))


def imports(path: str, tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yields every (line, dotted name) that a file imports, anywhere in the file; `from a import b` gives a.b."""
    package = list(Path(path).parent.parts)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            for alias in node.names:
                yield node.lineno, ".".join([*base, *filter(None, [node.module]), alias.name])
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = getattr(node.func, "attr", getattr(node.func, "id", None))
            if called in ("import_module", "__import__"):
                yield node.lineno, str(node.args[0].value)


def within(name: str, allowed: set[str]) -> bool:
    parts = name.split(".")
    return any(".".join(parts[: i + 1]) in allowed for i in range(len(parts)))


def violations(path: str, source: str) -> list[str]:
    """Returns what is wrong with the file at `path`, which is relative to the repository's root."""
    room = path.split("/")[0]
    importer, may = (PARTS, PARTS_ALLOWED) if path.startswith(f"{PARTS}/") else (room, ALLOWED[room])
    tree = ast.parse(source)
    found = []
    for line, name in imports(path, tree):
        top = name.split(".")[0]
        if top in PROJECT:
            allowed = within(name, may)
        else:
            allowed = room != "agents" or top in AGENTS_LIBRARIES or top in AGENTS_STANDARD
        if not allowed:
            found.append(f"{path}:{line}: {importer} must not import {name}")
    if path != MAPPING_HOME:
        for node in ast.walk(tree):
            names = [getattr(node, "attr", None), getattr(node, "id", None)]
            if isinstance(node, ast.ImportFrom):
                names += [alias.name for alias in node.names]
            for name in filter(None, names):
                if name in MAPPING or "addressable" in name:
                    found.append(f"{path}:{getattr(node, 'lineno', 0)}: {name} belongs in {MAPPING_HOME}")
    return found


def code_lines(source: str) -> int:
    """Returns how many lines hold code: lines that are not blank, not only a comment and not part of a docstring."""
    layout = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in (*layout, tokenize.ENDMARKER):
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Expr(ast.Constant(str())):
                lines.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_holds_code(room: str):
    assert sources(room), f"{room}/ holds no Python file: the other tests here would check nothing"


def test_imports_point_one_way_and_mapping_has_one_home():
    found = [
        fault for path in sources(*ALLOWED) for fault in violations(path.relative_to(ROOT).as_posix(), path.read_text())
    ]
    assert not found, "\n".join(found)


def test_no_file_has_a_vague_name():
    found = [str(path.relative_to(ROOT)) for path in sources(*PROJECT) if path.name in VAGUE_NAMES]
    assert not found, f"name these for what they hold: {found}"


def test_agents_are_short():
    lengths = {path.name: code_lines(path.read_text()) for path in sources("agents")}
    found = {name: length for name, length in lengths.items() if length >= AGENT_LINES}
    assert not found, f"agents/ files have fewer than {AGENT_LINES} lines of code: {found}"


IMPORT_AGENTS = """
import importlib, sys

BLOCKED = {"reverb", "tensorflow", "envpool", "gymnasium", "environments", "replay", "runtime", "launchers"}

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"{name} is blocked: agents/ must do without it", name=name)

sys.meta_path.insert(0, Block())
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


def import_blocked(*modules: str, root: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", IMPORT_AGENTS, *modules]
    return subprocess.run(command, cwd=root, capture_output=True, text=True)


def test_agents_import_without_reverb_tensorflow_and_envpool():
    paths = [path.relative_to(ROOT).with_suffix("") for path in sources("agents")]
    modules = [".".join(path.parts).removesuffix(".__init__") for path in paths]
    result = import_blocked(*modules)
    assert result.returncode == 0, result.stderr


IMPORT_REST = """
import importlib, sys

for name in ("reverb", "tensorflow"):
    sys.modules[name] = None  # an import of it fails
for name in sys.argv[1:]:
    importlib.import_module(name)
"""
# The modules that are needed to read a checkpoint, draw a curve, evaluate, and train over the local carrier.
WITHOUT_REVERB = [
    *("replay.channels", "replay.local_carrier", "replay.ring_channel", "replay.local", "replay.rows"),
    *("runtime.checkpoint", "runtime.devices", "runtime.metrics", "runtime.plot", "runtime.evaluator"),
    *("runtime.actor", "runtime.learner", "runtime.worker", "runtime.population"),
    *("launchers.roles", "launchers.run", "launchers.train", "launchers.evaluate", "launchers.plot"),
    *("launchers.threads", "launchers.serial", "launchers.population"),
    *("launchers.sweep", "launchers.study", "launchers.trial"),
    *("shoal", "shoal.policy", "shoal.training", "environments.interface"),
]


def test_all_but_the_reverb_carrier_imports_without_reverb_and_tensorflow():
    command = [sys.executable, "-c", IMPORT_REST, *WITHOUT_REVERB]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    command[-1] = "replay.reverb_carrier"
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode != 0, "the test can see an import of Reverb"


# Code that tells ways of travelling apart by type belongs in the way's own file, or in the one dispatch.
WAYS = {"Blocks", "WholeEpisodes", "Transitions", "Stacks", "Sequences", "Gradients", "Block"}
MOST_TYPE_TESTS = 5


def type_tests(source: str) -> list[int]:
    """Returns the lines that test with isinstance for a way of travelling."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "isinstance" and len(node.args) == 2
        if {getattr(each, "id", getattr(each, "attr", None)) for each in ast.walk(node.args[1])} & WAYS
    ]


def test_ways_of_travelling_are_told_apart_in_one_place():
    found = [f"{path.relative_to(ROOT)}:{line}" for path in sources(*ALLOWED) for line in type_tests(path.read_text())]
    assert len(found) <= MOST_TYPE_TESTS, found
    assert type_tests("isinstance(table.items, (agent.Blocks, int))\nisinstance(x, int)") == [1]


# The checker itself must be able to fail.


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("agents/dqn.py", "import reverb"),
        ("agents/dqn.py", "from absl import flags"),
        ("agents/dqn.py", "import time"),
        ("agents/dqn.py", "from jax import numpy as jnp\ndef act():\n    import threading"),
        ("agents/dqn.py", "from replay import tables"),
        ("agents/dqn.py", "from jax import pmap"),
        ("agents/dqn.py", "from jax.experimental.shard_map import shard_map as over"),
        ("agents/dqn.py", "from ..replay import tables"),
        ("agents/dqn.py", "__import__('tensorflow')"),
        ("agents/parts/networks.py", "from agents import dqn"),
        ("agents/parts/networks.py", "from agents.dqn import q"),
        ("agents/parts/networks.py", "from .. import dqn"),
        ("agents/parts/networks.py", "from agents.parts import policies\nimport time"),
        ("environments/pool.py", "import agents"),
        ("environments/pool.py", "from agents import agent, dqn"),
        ("environments/pool.py", "from agents.dqn import make"),
        ("environments/pool.py", "from replay import tables"),
        ("replay/server.py", "def serve():\n    from environments import pool"),
        ("replay/server.py", "from agents.parts import networks"),
        ("replay/server.py", "from . import tables\nfrom runtime.devices import replicate"),
        ("runtime/learner.py", "import launchers.train"),
        ("runtime/learner.py", "import jax\nupdate = jax.pmap(lambda x: x)"),
        ("runtime/learner.py", "import jax\nupdate = jax.shard_map(lambda x: x)"),
        ("runtime/learner.py", "from jax.sharding import PartitionSpec as P"),
        ("launchers/roles.py", "def local(x):\n    return x.addressable_shards[0].data"),
        ("launchers/train.py", "from importlib import import_module\nimport_module('tests.conftest')"),
        ("launchers/train.py", "def run():\n    import shoal"),
        ("shoal/policy.py", "from scripts import bench"),
        ("scripts/bench.py", "import tests.conftest"),
    ],
)
def test_checker_flags(path: str, source: str):
    assert len(violations(path, source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        (
            "agents/dqn.py",
            "import dataclasses, jax.numpy as jnp\nfrom agents import agent\nfrom . import mlp",
        ),
        ("agents/dqn.py", "from agents.parts import networks\nfrom agents import ddpg"),
        ("agents/parts/networks.py", "import jax\nfrom agents.agent import pmean\nfrom . import policies"),
        ("agents/parts/networks.py", "from agents.parts.policies import softmax\nfrom agents import agent"),
        ("environments/pool.py", "import envpool, time\nfrom agents import agent\nfrom . import spec"),
        ("replay/server.py", "import reverb\nfrom agents.agent import Step"),
        ("runtime/devices.py", "import jax\nfrom agents import dqn\nreplicate = jax.pmap(lambda x: x)"),
        ("runtime/devices.py", "from jax.sharding import PartitionSpec as P\nx.addressable_shards"),
        ("launchers/train.py", "import importlib\nimportlib.import_module('agents.dqn')  # not pmap"),
        ("launchers/serial.py", "from runtime.devices import ROWS, make_mesh\nmesh = make_mesh('pmap')"),
        ("shoal/policy.py", "from launchers import run\nfrom runtime import evaluator\nfrom . import exporting"),
    ],
)
def test_checker_allows(path: str, source: str):
    assert violations(path, source) == []


def test_checker_counts_lines_of_code():
    source = '"""Doc."""\n\n# comment\nx = """a\nb"""  # two lines\n\ndef f():\n    """Doc\n    doc."""\n'
    assert code_lines(source) == 3


def test_blocked_import_fails(tmp_path: Path):
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / "__init__.py").touch()
    (tmp_path / "agents" / "greedy.py").write_text("import envpool")
    result = import_blocked("agents.greedy", root=tmp_path)
    assert result.returncode != 0
    assert "envpool is blocked" in result.stderr
