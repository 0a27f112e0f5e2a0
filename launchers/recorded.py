"""Reads and writes what a run leaves in its LOGDIR for users of its policy: besides config.json these are the
environment's spec, the newest checkpoint and the best parameters."""

from __future__ import annotations

import contextlib
import json
import pathlib
from typing import TYPE_CHECKING, Any

import environments
from agents.agent import Agent, EnvironmentSpec, State, Version
from launchers.settings import UsageError
from runtime.files import replacing

if TYPE_CHECKING:
    from launchers.run import Run
    from runtime.best import Best

SPEC = "spec.json"


def write(path: pathlib.Path, values: dict[str, Any]) -> None:
    """Writes a JSON file, whole or not at all, because several roles may write and read it at the same time."""
    with replacing(path) as new:
        new.write_text(json.dumps(values, indent=2) + "\n")


def learners_in(logdir: pathlib.Path) -> list[pathlib.Path]:
    """Returns the folders of a population's members, if they have learners of their own; else the run's folder."""
    return sorted(logdir.glob("member_*"), key=lambda path: (len(path.name), path.name)) or [logdir]


def save_spec(run: Run, logdir: pathlib.Path) -> None:
    """Writes LOGDIR/spec.json, in place of an earlier one: the version that wrote that may have seen another spec."""
    from environments import interface  # only where it is needed, because it imports Gymnasium

    clip = environments.settled_clip(run.env, run.reward_clip)
    write(logdir / SPEC, interface.to_json(run.spec()) | {"reward_clip": clip})


def spec_of(run: Run, logdir: pathlib.Path) -> tuple[EnvironmentSpec, str]:
    """Returns the spec of one of the run's environments, and which of environments.environment.REWARD_CLIPS it has.
    Both are read from LOGDIR/spec.json. If an older version wrote none, an environment is made to see its spec.

    Raises:
      UsageError: the file cannot be read, or the environment cannot be made.
    """
    from environments import interface

    path = logdir / SPEC
    if not path.exists():
        return run.spec(), environments.settled_clip(run.env, run.reward_clip)
    try:
        values = json.loads(path.read_text())
        return interface.from_json(values), str(values["reward_clip"])
    except Exception as error:  # the file may hold anything
        raise UsageError(
            f"{path} cannot be read ({type(error).__name__}): remove it, and Shoal makes the environment to see it"
        ) from error


def restored(agent: Agent, logdir: pathlib.Path) -> tuple[State, Version]:
    """Returns the newest checkpoint of the run in `logdir`, with its arrays on the host.

    Raises:
      UsageError: there is no checkpoint yet.
      Damaged: no checkpoint can be read.
    """
    from runtime.checkpoint import Checkpointer  # only now, because it imports orbax

    directory = logdir / "checkpoints"
    if directory.exists():
        with contextlib.closing(Checkpointer(directory, agent)) as checkpointer:
            if saved := checkpointer.restore():
                return saved
    raise UsageError(f"no checkpoint in {directory} yet: one is saved every --checkpoint_seconds and at the end")


def best_of(agent: Agent, logdir: pathlib.Path, option: str) -> Best:
    """Returns the parameters, on the host, that did best in the evaluations of the run in `logdir`.

    Args:
      option: for messages, the option by which the person chose the checkpoint, with NAME in its name's place, such as
        "--checkpoint=NAME".

    Raises:
      UsageError: no best parameters are saved yet, or they cannot be read.
    """
    from replay.structures import params_structure
    from runtime import best

    asked, instead = option.replace("NAME", "best"), option.replace("NAME", "newest")
    try:
        found = best.restore(logdir, params_structure(agent))
    except OSError as error:
        raise UsageError(f"{asked}: {error}; give {instead}") from error
    if found is None:
        raise UsageError(
            f"{asked}: {logdir} has no {best.FILE} yet: the run's first evaluation saves one; {instead} needs none"
        )
    return found
