"""Every field of every agent's Config refuses values that its type does not allow, whether a rule names the field or
not."""

import dataclasses
import typing

import pytest

from agents.agent import LARGEST, MOST_ENV_STEPS
from launchers import configs

MODULES = sorted(set(configs.AGENTS.values()))
# Fields that may be negative: the bounds of returns, the bound of a logarithm, the exponent by which a full replay
# evicts the items of least priority, and a density's entropy.
NEGATIVE = {"v_min", "v_max", "l_0", "eviction_exponent", "continuous_entropy"}
NOT_FINITE = [float("nan"), float("inf"), -float("inf")]


def fields(*kinds: type) -> list[tuple[type, str]]:
    """Returns (Config, name) for each field whose type is one of `kinds`."""
    found = []
    for module in MODULES:
        config_class = next(
            configs.agent_module(agent).Config for agent, place in configs.AGENTS.items() if place == module
        )
        hints = typing.get_type_hints(config_class)
        found += [(config_class, name) for name, kind in hints.items() if kind in kinds]
    return found


def name_of(value: typing.Any) -> str:
    return value.__module__ if isinstance(value, type) else str(value)


def refused(config_class: type, name: str, value: typing.Any) -> None:
    with pytest.raises(ValueError, match=rf"config\.{name}\b") as error:
        config_class(**{name: value})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("config_class", "name"), fields(int), ids=name_of)
def test_a_whole_number_is_one_and_can_be_counted(config_class, name):
    largest = MOST_ENV_STEPS if name.endswith("_env_steps") else LARGEST
    for value in [*NOT_FINITE, -1, True, False, 1.5, 2.0, "2", None, (2,), largest + 1, 10**400]:
        refused(config_class, name, value)
    assert getattr(config_class(), name) == getattr(dataclasses.replace(config_class()), name), "its default is allowed"


@pytest.mark.parametrize(("config_class", "name"), fields(float), ids=name_of)
def test_a_number_is_finite(config_class, name):
    for value in [*NOT_FINITE, True, False, "1.0", None, (1.0,)] + [-1.0] * (name not in NEGATIVE):
        refused(config_class, name, value)


@pytest.mark.parametrize(("config_class", "name"), fields(bool), ids=name_of)
def test_a_switch_is_on_or_off(config_class, name):
    for value in (0, 1, "true", None):
        refused(config_class, name, value)


@pytest.mark.parametrize(("config_class", "name"), fields(tuple[int, ...]), ids=name_of)
def test_sizes_are_one_or_more(config_class, name):
    for value in [(0,), (8, -1), (1.5,), (True,), (float("nan"),), ("8",), [8], 8, (LARGEST + 1,)]:
        refused(config_class, name, value)
    assert getattr(config_class(**{name: (1, 8)}), name) == (1, 8)


@pytest.mark.parametrize(("config_class", "name"), fields(tuple[float, ...]), ids=name_of)
def test_numbers_in_a_tuple_are_finite(config_class, name):
    for value in [(x,) for x in [*NOT_FINITE, True, "1.0"]] + [[0.5], 0.5]:
        refused(config_class, name, value)


@pytest.mark.parametrize("module", MODULES)
def test_a_choice_is_one_of_those_declared(module):
    config_class = next(
        configs.agent_module(agent).Config for agent, place in configs.AGENTS.items() if place == module
    )
    for name, kind in typing.get_type_hints(config_class).items():
        if typing.get_origin(kind) is typing.Literal:
            refused(config_class, name, "none of these")
            refused(config_class, name, None)


@pytest.mark.parametrize(
    "config_class", [each for each, name in fields(int) if name == "warmup_env_steps"], ids=name_of
)
def test_a_learning_rate_has_risen_before_it_has_fallen(config_class):
    for warmup in (100, 101):
        with pytest.raises(
            ValueError, match=rf"config\.warmup_env_steps={warmup} must be below config\.decay_env_steps=100"
        ):
            config_class(warmup_env_steps=warmup, decay_env_steps=100)
    config_class(warmup_env_steps=99, decay_env_steps=100)
    config_class(warmup_env_steps=100)  # without a decay the rate then stays


@pytest.mark.parametrize("agent", configs.AGENTS)
def test_the_source_says_the_fields_that_the_class_has(agent):
    """The command line reads the fields from the source code, so that it need not import JAX."""
    assert configs.fields(agent) == typing.get_type_hints(configs.agent_module(agent).Config)


def test_text_becomes_what_a_field_takes_and_nothing_is_rounded():
    types = {"size": int, "rate": float, "on": bool, "sizes": tuple[int, ...]}
    given = {"size": "3", "rate": 2, "on": "True", "sizes": [8, "16", 32.0]}
    assert configs.check_types(types, given) == {"size": 3, "rate": 2.0, "on": True, "sizes": (8, 16, 32)}
    for name, values in {
        "size": ["1.5", 1.5, True, "nan", float("inf"), None, (1,)],
        "rate": ["fast", "nan", float("inf"), True, None, 10**400],
        "on": [1, "yes", None],
        "sizes": ["8", (1.5,), (True,), 8, ("nan",)],
    }.items():
        for value in values:
            with pytest.raises(configs.UsageError, match=rf"config\.{name} takes "):
                configs.check_types(types, {name: value})
