"""Checkpoints of the learner's state and version, by orbax; written atomically, the newest few kept.

Each checkpoint lists the files that must be there, with their checksums. So damage is noticed, and an older checkpoint
is taken instead.
"""

import contextlib
import errno
import json
import pathlib
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint._src.multihost import multihost

from agents.agent import Agent, State, Version

# Orbax is told that each process is the only one, so that what a process saves is its own and it waits for no other.
# Otherwise orbax would write NumPy's arrays in the first of several processes alone, whatever its options say.
multihost.process_index = lambda: 0
# What orbax logs of an error it raises too, and `save` and `restore` say it in one line.
logging.get_absl_logger().addFilter(lambda record: "orbax" not in record.pathname)

_PREFIX = "learner_steps"
_DAMAGED = "damaged_"  # in front of the name of a checkpoint that was set aside
_CONTENTS = "contents.json"  # a file in each checkpoint: its files' checksums, and the `counts` that `save` was given


class Damaged(OSError):
    """A run has checkpoints, and none of them can be read."""


class Checkpointer:
    """Saves states to a directory, either LOGDIR/checkpoints or that of a replay, and restores the newest."""

    def __init__(self, directory: pathlib.Path, agent: Agent | None, keep: int = 2, *, owner: bool = False):
        """
        Args:
          agent: the agent whose states are saved, or None for a replay's, whose arrays come back as they were saved.
          keep: how many checkpoints are kept; the oldest are removed first.
          owner: whether this is the only process that saves here. An owner removes what interrupted saves left behind,
            and sets damaged checkpoints aside.
        """
        self.directory = directory.absolute()
        self.directory.mkdir(parents=True, exist_ok=True)
        self._owner = owner
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                enable_async_checkpointing=False,
                step_prefix=_PREFIX,
                multiprocessing_options=ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0}),
                create=False,
                cleanup_tmp_directories=owner,
            ),
        )
        self._structure = agent and {
            "state": jax.eval_shape(agent.init, jax.eval_shape(jax.random.key, 0)),
            "version": {"learner_steps": 0, "env_steps": 0},
        }
        self.counts: dict[str, int] = {}

    def save(self, state: State, version: Version, counts: Mapping[str, int] | None = None) -> None:
        """Writes `state` (on the host) and returns once it is on disk; does nothing if this step is saved already.

        Args:
          counts: how much of what is saved elsewhere belongs to this state, by name, such as the number of a replay's
            items. `restore` puts them into `self.counts`.

        Raises:
          OSError: the state cannot be written, as on a full disk; earlier checkpoints are kept.
        """
        if version.learner_steps in self._manager.all_steps():
            return
        if not self.directory.exists():  # orbax would make it again, in a folder without the run's config.json
            raise OSError(f"{self.directory} was removed while the run went on: give it a --logdir that stays")
        tree = {"state": state, "version": version._asdict()}
        try:
            self._manager.save(version.learner_steps, args=ocp.args.StandardSave(tree))
            self._manager.wait_until_finished()
            self._list_contents(self._path(version.learner_steps), counts or {})
        except (OSError, ValueError) as error:  # orbax's own writer says ValueError
            full = "No space left" in str(error) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
            raise OSError(
                f"cannot write a checkpoint to {self.directory}: {'no space left' if full else error}; earlier ones "
                f"are kept: {'make room' if full else 'mend that'}, then give the same command again"
            ) from error

    def restore(self) -> tuple[State, Version] | None:
        """Returns the newest undamaged (state, version), on the host, or None if nothing was saved.

        It also sets `self.counts` to the counts that were saved with that state.

        Raises:
          Damaged: there are checkpoints, and none can be read.
        """
        reasons = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                state, version, self.counts = self._read(step)
            except Exception as error:  # reading a damaged file may raise anything
                reasons.append(" ".join(str(error).split())[:200] or type(error).__name__)
                where = f"{self.directory.name}/{self._path(step).name}"
                logging.warning("what was saved in %s is damaged (%s)", where, reasons[-1])
                continue
            if reasons:
                logging.warning("going on from the one before it, at %d environment steps", version.env_steps)
                self.set_aside(newer_than=step)
            return state, version
        if not reasons:
            return None
        raise Damaged(
            f"no checkpoint in {self.directory} can be read ({reasons[0]}): put a copy there, or remove the directory "
            "to begin anew"
        )

    def _read(self, step: int) -> tuple[State, Version, dict[str, int]]:
        contents = self._contents(step)
        target = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype) if hasattr(x, "shape") else x, self._structure)
        tree: Any = self._manager.restore(step, args=ocp.args.StandardRestore(target or None))
        version = Version(**{name: int(count) for name, count in tree["version"].items()})
        return tree["state"], version, contents.get("counts", {})

    def _list_contents(self, path: pathlib.Path, counts: Mapping[str, int]) -> None:
        if path.exists():  # it does not if the step is not above the newest one, for then orbax saves nothing
            contents = {"crc32": _checksums(path), "counts": dict(counts)}
            (path / _CONTENTS).write_text(json.dumps(contents, indent=2) + "\n")

    def _contents(self, step: int) -> dict[str, Any]:
        """Returns what a checkpoint's _CONTENTS says; {} if there is none, as in those of older versions of Shoal.

        Raises:
          ValueError: a listed file is missing, or not as it was saved.
        """
        path = self._path(step)
        try:
            contents: dict[str, Any] = json.loads((path / _CONTENTS).read_text())
            listed = contents["crc32"].items()
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return {}
        found = _checksums(path)
        for name, checksum in listed:
            if found.get(name) != checksum:
                raise ValueError(f"{name} is {'not as it was saved' if name in found else 'missing'}")
        return contents

    def _path(self, step: int) -> pathlib.Path:
        return self.directory / f"{_PREFIX}_{step}"

    def set_aside(self, newer_than: int = -1) -> None:
        """Renames the checkpoints above the step `newer_than`, which are damaged, so that new ones can replace them.

        Does nothing unless this process is the `owner`.
        """
        if not self._owner:
            return
        for step in self._manager.all_steps():
            if step > newer_than:
                path = self._path(step)
                with contextlib.suppress(OSError):
                    path.rename(path.with_name(_DAMAGED + path.name))
        self._manager.reload()

    def close(self) -> None:
        self._manager.close()


def _checksums(directory: pathlib.Path) -> dict[str, int]:
    """Returns the CRC-32 of each file in a checkpoint's directory but _CONTENTS, by its path in the directory."""
    files = [path for path in sorted(directory.rglob("*")) if path.is_file() and path.name != _CONTENTS]
    return {str(path.relative_to(directory)): zlib.crc32(path.read_bytes()) for path in files}
