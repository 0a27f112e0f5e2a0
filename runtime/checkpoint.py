"""Checkpoints of the learner: its state and how far it has come, by orbax; written atomically, the newest few kept.

Each has a list of what must be there, so that damage is seen: an older one is taken then.
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

# To orbax each process is the only one: what it saves is its own, and it waits for nobody. Of several it would write
# NumPy's arrays on the first alone, whatever its options say.
multihost.process_index = lambda: 0

_PREFIX = "learner_steps"
_DAMAGED = "damaged_"  # in front of the name of a checkpoint that was set aside
_CONTENTS = "contents.json"  # in a checkpoint: its files' checksums, and counts of what belongs to it


class Damaged(OSError):
    """None of a run's checkpoints can be read."""


class Checkpointer:
    """Saves states to a directory, LOGDIR/checkpoints or that of a replay, and restores the newest."""

    def __init__(self, directory: pathlib.Path, agent: Agent | None, keep: int = 2, *, owner: bool = False):
        """
        Args:
          agent: whose states they are; None: of a replay, which come back as they were saved.
          keep: how many checkpoints, the newest.
          owner: whether this process alone saves here: it removes what killed saves left behind, and sets aside what is
            damaged.
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
        """Writes `state` (on the host); returns once it is on disk. A step that is saved already is left as it is.

        Args:
          counts: of what is saved elsewhere and belongs to it, by name; `restore` gives them back.

        Raises:
          OSError: it cannot be written, as on a full disk; earlier checkpoints are kept.
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
        """The newest (state, version) that is whole, on the host; None if nothing was saved. `counts` are then those
        that were saved with it.

        Raises:
          Damaged: there are checkpoints and none can be read.
        """
        reasons = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                state, version, self.counts = self._read(step)
            except Exception as error:  # whatever a damaged file makes of the libraries that read it
                reasons.append(" ".join(str(error).split())[:200] or type(error).__name__)
                logging.warning("the checkpoint %s is damaged (%s)", self._path(step).name, reasons[-1])
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
        if path.exists():  # orbax passes over a step that does not come after the newest
            contents = {"crc32": _checksums(path), "counts": dict(counts)}
            (path / _CONTENTS).write_text(json.dumps(contents, indent=2) + "\n")

    def _contents(self, step: int) -> dict[str, Any]:
        """What a checkpoint's list says; nothing where there is none, as in those of older versions.

        Raises:
          ValueError: a file is not as it was saved.
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
        """Takes checkpoints, which are damaged, out of the way of those to come."""
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
    """CRC-32 of each file in a checkpoint's directory but the list, by its path there."""
    files = [path for path in sorted(directory.rglob("*")) if path.is_file() and path.name != _CONTENTS]
    return {str(path.relative_to(directory)): zlib.crc32(path.read_bytes()) for path in files}
