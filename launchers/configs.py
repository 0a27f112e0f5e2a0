"""The agents by name, and the checks of the values that a command line gives to the fields of their Configs."""

import ast
import importlib
import importlib.util
import math
import pathlib
import typing
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from launchers.settings import UsageError, nearest

# The module of each agent. Several agents may share one, and then differ in their presets.
AGENTS = {
    "a2c": "agents.a2c",
    "actor_critic": "agents.actor_critic",
    "actor_critic_lambda": "agents.actor_critic",
    "a3c": "agents.a2c",
    "all_actions": "agents.reinforce",
    "apex_dpg": "agents.apex_dpg",
    "apex_dqn": "agents.apex_dqn",
    "async_n_step_q": "agents.q_learning",
    "async_q": "agents.q_learning",
    "async_sarsa": "agents.q_learning",
    "c51": "agents.rainbow",
    "d4pg": "agents.d4pg",
    "ddpg": "agents.ddpg",
    "double_dqn": "agents.dqn",
    "dmpo": "agents.mpo",
    "dpg": "agents.dpg",
    "dqn": "agents.dqn",
    "dueling_dqn": "agents.dqn",
    "gorila": "agents.dqn",
    "impala": "agents.impala",
    "iqn": "agents.iqn",
    "mix_match": "agents.mix_match",
    "mpo": "agents.mpo",
    "munchausen_dqn": "agents.munchausen_dqn",
    "off_pac": "agents.off_pac",
    "ppo": "agents.ppo",
    "ppo_rnd": "agents.ppo_rnd",
    "pqn": "agents.pqn",
    "prioritized_dqn": "agents.dqn",
    "q_learning": "agents.q_learning",
    "qr_dqn": "agents.qr_dqn",
    "r2d2": "agents.r2d2",
    "rainbow": "agents.rainbow",
    "reinforce": "agents.reinforce",
    "reinforce_baseline": "agents.reinforce",
    "sac": "agents.sac",
    "sarsa": "agents.q_learning",
    "td3": "agents.td3",
    "trpo": "agents.trpo",
    "vmpo": "agents.vmpo",
}
NOUNS: dict[type, str] = {bool: "true or false", int: "a whole number", float: "a finite number", str: "text"}


def agent_module(agent: str) -> ModuleType:
    """Returns the module of an agent.

    Raises:
      UsageError: there is no such agent.
    """
    return importlib.import_module(_module_name(agent))


def _module_name(agent: str) -> str:
    if agent not in AGENTS:
        raise UsageError(f"unknown agent {agent!r}{nearest(agent, AGENTS)}")
    return AGENTS[agent]


def fields(agent: str) -> dict[str, Any]:
    """Returns the types of the fields of an agent's Config, by name. They are read from the module's source: an import
    would take a second or two for JAX and its libraries, and a mistake on the command line should not wait for that.

    Raises:
      UsageError: there is no such agent.
    """
    spec = importlib.util.find_spec(_module_name(agent))
    assert spec and spec.origin
    module = ast.parse(pathlib.Path(spec.origin).read_text())
    (config,) = (node for node in module.body if isinstance(node, ast.ClassDef) and node.name == "Config")
    return {
        node.target.id: _type(node.annotation)
        for node in config.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def _type(annotation: ast.expr) -> Any:
    named: dict[str, type] = {kind.__name__: kind for kind in NOUNS}
    match annotation:
        case ast.Name(name) if name in named:
            return named[name]
        case ast.Subscript(ast.Name("Literal"), choices):
            return typing.Literal[ast.literal_eval(choices)]
        case ast.Subscript(ast.Name("tuple"), ast.Tuple([element, ast.Constant()])):
            return tuple[_type(element), ...]  # type: ignore[misc]
    raise TypeError(f"a Config's field is a bool, int, float, str, Literal or tuple, not {ast.unparse(annotation)}")


def make_config(module: ModuleType, values: Mapping[str, Any]) -> Any:
    """Returns the Config of an agent's module with these values of its fields.

    Raises:
      UsageError: a field is unknown, or a value has another type or is out of range.
    """
    try:
        return module.Config(**check_types(typing.get_type_hints(module.Config), values))
    except ValueError as error:
        raise UsageError(str(error)) from error


def check_types(types: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the `values` by field, each converted to its field's type in `types`.

    Raises:
      UsageError: a field is unknown, or a value is not of its field's type.
    """
    return {name: _convert(name, value, types) for name, value in values.items()}


def _convert(name: str, value: Any, types: Mapping[str, Any]) -> Any:
    if name not in types:
        raise UsageError(f"unknown config field {name!r}{nearest(name, types)}")
    kind = types[name]
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is typing.Literal:
        if value not in arguments:
            raise UsageError(f"config.{name} is one of {', '.join(map(str, arguments))}, not {value!r}")
        return value
    try:
        if typing.get_origin(kind) is tuple:
            if isinstance(value, str):
                raise TypeError
            return tuple(_scalar(arguments[0], item) for item in value)
        return _scalar(kind, value)
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        wanted = f"a tuple, each element {NOUNS[arguments[0]]}" if arguments else NOUNS[kind]
        raise UsageError(f"config.{name} takes {wanted}, not {value!r}") from error


def _scalar(kind: type, value: Any) -> Any:
    """Returns `value`, which may be text, as a `kind`. Nothing is rounded, and a bool is not taken for a number."""
    if kind is bool and isinstance(value, str):
        return {"true": True, "false": False}[value.lower()]
    if kind in (bool, str) or isinstance(value, bool):
        if type(value) is not kind:
            raise TypeError
        return value
    if kind is int and isinstance(value, int):
        return value
    number = float(value)
    if not math.isfinite(number) or (kind is int and not number.is_integer()):
        raise ValueError
    return kind(number)
