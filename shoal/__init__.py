"""Shoal as a Python package: loads a trained policy in three lines, and trains from a notebook.

    import shoal
    policy = shoal.load(LOGDIR)
    action = policy(observation)

Importing this package does not import JAX; the first use of one of the names below does. docs/policy.md says more.
"""

import importlib
import importlib.util
import pathlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shoal.policy import Policy, load
    from shoal.training import make_agent, train

__all__ = ["Policy", "load", "make_agent", "train"]

_HOMES = {"Policy": "policy", "load": "policy", "make_agent": "training", "train": "training"}
_ROOMS = ("agents", "environments", "launchers", "replay", "runtime")  # Shoal's packages beside this one


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'shoal' has no attribute {name!r}")
    _check_rooms()
    return getattr(importlib.import_module(f"shoal.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]


def _check_rooms() -> None:
    """Raises ImportError if Python finds another package by the name of one of Shoal's packages."""
    root = pathlib.Path(__file__).resolve().parent.parent
    for room in _ROOMS:
        spec = importlib.util.find_spec(room)
        found = [pathlib.Path(place).resolve() for place in (spec and spec.submodule_search_locations) or []]
        if root / room not in found:
            other = (found and found[0]) or (spec and spec.origin) or "not there"
            raise ImportError(
                f"Shoal needs its own package {room!r}, {root / room}, and Python finds {other}: see "
                "docs/policy.md#beside-other-packages"
            )
