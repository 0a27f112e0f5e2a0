"""Faster compiling for tests, which compile thousands of programs and run most of them a few times. Call it before JAX
is imported."""

import pathlib
from collections.abc import MutableMapping

# Unoptimised code is compiled in half the time.
UNOPTIMISED = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
CACHE = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")


def quickly(environ: MutableMapping[str, str]) -> None:
    """Sets variables that have JAX compile without optimising, and keep all that it compiles for the next time: in the
    user's cache folder, unless `environ` already names a folder."""
    environ["XLA_FLAGS"] = f"{environ.get('XLA_FLAGS', '')} {UNOPTIMISED}".strip()
    if CACHE[0] not in environ:
        caches = pathlib.Path(environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
        environ.update(zip(CACHE, (str(caches / "shoal" / "jax-tests"), "0"), strict=True))


def as_a_person(environ: MutableMapping[str, str]) -> dict[str, str]:
    """Returns `environ` without what `quickly` sets, for commands that are started as a person starts them."""
    rest = {name: value for name, value in environ.items() if name not in CACHE}
    return rest | {"XLA_FLAGS": environ.get("XLA_FLAGS", "").replace(UNOPTIMISED, "").strip()}
