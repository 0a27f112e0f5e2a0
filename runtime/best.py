"""The parameters that did best in a run's evaluations, kept beside the learner's checkpoints: LOGDIR/best.npz.

The file holds only what acting needs. It is replaced as a whole, so that the older or the newer best is there, whatever
ends the process. NumPy's format has a checksum of each array, so that damage is noticed.
"""

import os
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from agents.agent import Version
from replay.structures import Structure
from runtime.files import replacing

FILE = "best.npz"


class Best(NamedTuple):
    """The parameters of one version, and the mean return of their evaluation."""

    version: Version
    params: Any  # on the host
    return_mean: float


def restore(logdir: pathlib.Path, structure: Structure) -> Best | None:
    """Returns a run's best parameters, or None if none were saved.

    Args:
      structure: the structure of (Version, params), from replay.structures.params_structure.

    Raises:
      OSError: the file cannot be read, or holds another agent's parameters.
    """
    path = logdir / FILE
    if not path.exists():
        return None
    try:
        with np.load(path) as arrays:
            # NumPy's format has no name for some dtypes, such as bfloat16, and stores their arrays as raw bytes.
            leaves = [arrays[f"arr_{n}"].view(leaf.dtype) for n, leaf in enumerate(structure.leaves)]
            return_mean = float(arrays["return_mean"])
        if [leaf.shape for leaf in leaves] != [leaf.shape for leaf in structure.leaves]:
            raise ValueError("it holds another agent's parameters")
    except Exception as error:  # reading a damaged file may raise anything
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise OSError(f"{path} is damaged ({why})") from error
    version, params = structure.unflatten(leaves)
    return Best(Version(*map(int, version)), params, return_mean)


class Keeper:
    """Keeps the best of the parameters that it is shown, in this process and in earlier processes of the run."""

    def __init__(self, logdir: pathlib.Path, structure: Structure):
        """Reads what is the best so far, and sets a damaged file aside; `structure` is as for `restore`."""
        self._path, self._structure = logdir / FILE, structure
        self._best = -np.inf
        try:
            if before := restore(logdir, structure):
                self._best = before.return_mean
        except OSError as error:
            aside = self._path.with_name(f"damaged_{FILE}")
            logging.warning("%s: it is renamed to %s, and the next evaluations find the best anew", error, aside.name)
            self._path.replace(aside)

    def show(self, version: Version, params: Any, return_mean: float) -> None:
        """Saves the parameters if they are finite and did better than all before.

        Raises:
          OSError: they cannot be written, as on a full disk; the file of the best before is kept.
        """
        if not return_mean > self._best:
            return
        leaves = self._structure.flatten((Version(*map(np.int64, version)), params))
        if not all(np.isfinite(leaf).all() for leaf in leaves if jax.dtypes.issubdtype(leaf.dtype, np.floating)):
            return
        try:
            with replacing(self._path) as new, open(new, "wb") as file:
                np.savez(file, *leaves, return_mean=np.float64(return_mean))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OSError(
                f"cannot write the best parameters to {self._path}: {error.strerror or error}; those before are kept: "
                "mend that, then give the same command again"
            ) from error
        self._best = return_mean
