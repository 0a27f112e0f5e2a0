"""The parameters that did best in a run's evaluations, kept beside the learner's checkpoints: LOGDIR/best.npz.

One file, of what acting needs alone. It is replaced as a whole, so that whatever ends the process, the older best or
the newer one is there; NumPy's format has a checksum of each array, so that damage is seen.
"""

import os
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from agents.agent import Version
from replay.structures import Structure

FILE = "best.npz"


class Best(NamedTuple):
    """What an evaluation of a version's parameters came to."""

    version: Version
    params: Any  # on the host
    return_mean: float


def restore(logdir: pathlib.Path, structure: Structure) -> Best | None:
    """A run's best parameters; None if none were saved.

    Args:
      structure: of (Version, params), as replay.structures.params_structure gives it.

    Raises:
      OSError: the file cannot be read, or is another agent's.
    """
    path = logdir / FILE
    if not path.exists():
        return None
    try:
        with np.load(path) as arrays:
            # As raw bytes where NumPy's format has no name for a dtype, as for bfloat16.
            leaves = [arrays[f"arr_{n}"].view(leaf.dtype) for n, leaf in enumerate(structure.leaves)]
            return_mean = float(arrays["return_mean"])
        if [leaf.shape for leaf in leaves] != [leaf.shape for leaf in structure.leaves]:
            raise ValueError("it holds another agent's parameters")
    except Exception as error:  # whatever a damaged file makes of the libraries that read it
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise OSError(f"{path} is damaged ({why})") from error
    version, params = structure.unflatten(leaves)
    return Best(Version(*map(int, version)), params, return_mean)


class Keeper:
    """Keeps the best parameters that it is shown, and those of earlier sittings."""

    def __init__(self, logdir: pathlib.Path, structure: Structure):
        """`structure` is as for `restore`. A file that is damaged is set aside."""
        self._path, self._structure = logdir / FILE, structure
        self._best = -np.inf
        try:
            if before := restore(logdir, structure):
                self._best = before.return_mean
        except OSError as error:
            aside = self._path.with_name(f"damaged_{FILE}")
            logging.warning("%s: it is set aside as %s, and the best is sought anew", error, aside.name)
            self._path.replace(aside)

    def show(self, version: Version, params: Any, return_mean: float) -> None:
        """Saves the parameters if they did better than any before; not what is not finite.

        Raises:
          OSError: they cannot be written, as on a full disk; the best before is kept.
        """
        if not return_mean > self._best:
            return
        leaves = self._structure.flatten((Version(*map(np.int64, version)), params))
        if not all(np.isfinite(leaf).all() for leaf in leaves if jax.dtypes.issubdtype(leaf.dtype, np.floating)):
            return
        new = self._path.with_suffix(".new")
        try:
            with open(new, "wb") as file:
                np.savez(file, *leaves, return_mean=np.float64(return_mean))
                file.flush()
                os.fsync(file.fileno())
            new.replace(self._path)
        except OSError as error:
            raise OSError(
                f"cannot write the best parameters to {self._path}: {error.strerror or error}; those before are kept: "
                "mend that, then give the same command again"
            ) from error
        self._best = return_mean
