"""The loops: actor, learner and evaluator; devices, checkpoints and metrics."""

import jax

# On a CPU a computation is done in the thread that asks for it, not handed to JAX's own: an actor that waits behind a
# learner's update there takes twice as long. Accelerators are not concerned.
jax.config.update("jax_cpu_enable_async_dispatch", False)
