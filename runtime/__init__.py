"""The loops: actor, learner and evaluator; devices, checkpoints and metrics."""

import os
import pathlib
import sys

import jax

# On a CPU a computation is done in the thread that asks for it, not handed to JAX's own: an actor that waits behind a
# learner's update there takes twice as long. Accelerators are not concerned.
jax.config.update("jax_cpu_enable_async_dispatch", False)


def leave_out_tensorflow() -> None:
    """For a process that does without Reverb. TensorFlow Probability, which rlax brings, works without TensorFlow, but
    takes it in wherever it is installed: three seconds and 350 MB."""
    sys.modules.setdefault("tensorflow", None)  # type: ignore[arg-type]  # an import of it fails from now on


def _keep_compiled() -> None:
    """Keeps what is compiled in the user's cache folder, for the next start and for a run's other processes; where
    JAX_COMPILATION_CACHE_DIR says, if it does, and nowhere if that folder cannot be written."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "shoal", "jax")
    try:
        folder = folder.expanduser()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # a home that is not writable, or none at all
        return
    if os.access(folder, os.W_OK | os.X_OK):
        jax.config.update("jax_compilation_cache_dir", str(folder))
        if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:  # JAX's own is a second
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


_keep_compiled()
