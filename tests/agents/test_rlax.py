"""rlax is imported by the functions that use it, possibly for the first time while JAX traces them."""

import subprocess
import sys

PROGRAM = """
import gc
import jax, jax.numpy as jnp
from agents.parts.advantages import gae

rows = jnp.ones((4, 2))

@jax.jit
def first(rows):  # imports it
    return gae(jnp.zeros((5, 2)), rows, rows, rows, 1.0)

once = first(rows)
gc.collect()
assert not [each for each in gc.get_objects() if isinstance(each, jax.core.Tracer)], "rlax holds what was traced"
again = jax.jit(lambda x: first(x) + 0.0)(rows)
assert jnp.array_equal(once, again) and jnp.array_equal(once[:, 0], jnp.array([4.0, 3.0, 2.0, 1.0]))
"""


def test_an_import_while_tracing_leaves_nothing_of_the_trace():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
