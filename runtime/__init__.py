"""The loops of actor, learner and evaluator, and what they need: devices, checkpoints and metrics."""

import os
import pathlib
import sys

import jax

# Without this, JAX runs CPU computations in a thread of its own, where an actor's inference waits behind the learner's
# update and takes twice as long. With it, each runs in the thread that asks for it. Accelerators are not affected.
jax.config.update("jax_cpu_enable_async_dispatch", False)


def leave_out_tensorflow() -> None:
    """Makes later imports of TensorFlow fail, in a process without Reverb. TensorFlow Probability, which rlax needs,
    works without TensorFlow but imports it wherever it is installed, which costs three seconds and 350 MB."""
    sys.modules.setdefault("tensorflow", None)  # type: ignore[arg-type]  # an import of it fails from now on


def _keep_compiled() -> None:
    """Has JAX keep compiled programs in the user's cache folder, for the next start and for a run's other processes.

    JAX_COMPILATION_CACHE_DIR names another folder, if it is set. Nothing is kept if the folder cannot be written.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "shoal", "jax")
    try:
        folder = folder.expanduser()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # the home folder is not writable, or there is none
        return
    if os.access(folder, os.W_OK | os.X_OK):
        jax.config.update("jax_compilation_cache_dir", str(folder))
        if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:  # JAX's default is 1 s
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


_keep_compiled()
