"""What a run has left in its LOGDIR for those who use its policy: beside config.json its environment's spec, the newest
checkpoint, and the best parameters."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
from typing import TYPE_CHECKING, Any

import environments
from agents.agent import Agent, EnvironmentSpec, State, Version
from launchers.settings import UsageError

if TYPE_CHECKING:
    from launchers.run import Run
    from runtime.best import Best

SPEC = "spec.json"


def write(path: pathlib.Path, values: dict[str, Any]) -> None:
    """Writes a file of JSON, whole or not at all: roles may start at once."""
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(values, indent=2) + "\n")
    temporary.rename(path)


def save_spec(run: Run, logdir: pathlib.Path) -> None:
    """Writes LOGDIR/spec.json; an earlier one is of a version that may have seen something else."""
    from environments import interface  # only where there is a run: it brings Gymnasium

    clip = environments.settled_clip(run.env, run.reward_clip)
    write(logdir / SPEC, interface.to_json(run.spec()) | {"reward_clip": clip})


def spec_of(run: Run, logdir: pathlib.Path) -> tuple[EnvironmentSpec, str]:
    """What one of the run's environments looks like, and which of environments.environment.REWARD_CLIPS it has: by
    LOGDIR/spec.json, else, of a run of a version that wrote none, by making one.

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
    except Exception as error:  # whatever somebody made of it
        raise UsageError(f"{path} cannot be read ({error!r}): remove it, and the environment is looked at") from error


def restored(agent: Agent, logdir: pathlib.Path) -> tuple[State, Version]:
    """The newest checkpoint of the run in `logdir`, on the host.

    Raises:
      UsageError: there is none yet.
      Damaged: none can be read.
    """
    from runtime.checkpoint import Checkpointer  # only now: it brings orbax

    directory = logdir / "checkpoints"
    if directory.exists():
        with contextlib.closing(Checkpointer(directory, agent)) as checkpointer:
            if saved := checkpointer.restore():
                return saved
    raise UsageError(f"no checkpoint in {directory} yet: one is saved every --checkpoint_seconds and at the end")


def best_of(agent: Agent, logdir: pathlib.Path, option: str) -> Best:
    """The parameters that did best in the evaluations of the run in `logdir`, on the host.

    Args:
      option: how the person who asks says which checkpoint is meant, as "--checkpoint=NAME".

    Raises:
      UsageError: there are none yet, or they cannot be read.
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
