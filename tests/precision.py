"""A context in which JAX computes with 64 bits, under the name that the installed JAX has for it."""

from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.experimental


def double_precision() -> AbstractContextManager[Any]:
    return jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64()
