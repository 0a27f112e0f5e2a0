"""Checkpoints of the learner: its state and how far it has come, by orbax; written atomically, the newest few kept."""

import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from agents.agent import Agent, State, Version


class Checkpointer:
    """Saves states to a directory, LOGDIR/checkpoints or that of a replay, and restores the newest."""

    def __init__(self, directory: pathlib.Path, agent: Agent | None, keep: int = 2):
        """`agent`: whose states they are; None: of a replay, which come back as they were saved."""
        self.directory = directory.absolute()
        self.directory.mkdir(parents=True, exist_ok=True)
        host = jax.process_index()
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                enable_async_checkpointing=False,
                step_prefix="learner_steps",
                # Of several learner hosts the first saves and each restores, without waiting for the others.
                multiprocessing_options=ocp.options.MultiprocessingOptions(
                    primary_host=host, active_processes={host}, barrier_sync_key_prefix=f"host_{host}"
                ),
                create=False,
            ),
        )
        self._structure = agent and {
            "state": jax.eval_shape(agent.init, jax.eval_shape(jax.random.key, 0)),
            "version": {"learner_steps": 0, "env_steps": 0},
        }

    def save(self, state: State, version: Version) -> None:
        """Writes `state` (on the host); returns once it is on disk. A step that is saved already is left as it is.

        Raises:
          OSError: it cannot be written, as on a full disk; earlier checkpoints are kept.
        """
        if version.learner_steps in self._manager.all_steps():
            return
        tree = {"state": state, "version": version._asdict()}
        try:
            self._manager.save(version.learner_steps, args=ocp.args.StandardSave(tree))
            self._manager.wait_until_finished()
        except (OSError, ValueError) as error:  # orbax's own writer says ValueError
            reason = "no space left" if "No space left" in str(error) else str(error)
            raise OSError(
                f"cannot write a checkpoint to {self.directory}: {reason}; earlier ones are kept: make room, then give "
                "the same command again"
            ) from error

    def restore(self) -> tuple[State, Version] | None:
        """The newest (state, version), on the host; None if nothing was saved."""
        step = self._manager.latest_step()
        if step is None:
            return None
        target = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype) if hasattr(x, "shape") else x, self._structure)
        tree: Any = self._manager.restore(step, args=ocp.args.StandardRestore(target or None))
        return tree["state"], Version(**{k: int(v) for k, v in tree["version"].items()})

    def close(self) -> None:
        self._manager.close()
