"""How many operations a program's matrix products and convolutions take."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launchers import flags
from scripts import bench_learners
from scripts.bench_learners import BACKENDS, ROWS, acting_run, operations, run_of


def counted(function, *shapes, dtype=jnp.float32):
    program = jax.make_jaxpr(function)(*(jnp.zeros(shape, dtype) for shape in shapes))
    total: collections.Counter[str] = collections.Counter()
    for name, count in operations(program):
        total[name] += count
    return dict(total)


@pytest.mark.parametrize(("m", "k", "n"), [(1, 1, 1), (3, 5, 7), (64, 1, 2)])
def test_a_matrix_product(m, k, n):
    assert counted(jnp.matmul, (m, k), (k, n)) == {"float32": 2 * m * k * n}
    assert counted(jnp.matmul, (m, k), (k, n), dtype=jnp.bfloat16) == {"bfloat16": 2 * m * k * n}
    batched = counted(lambda a, b: jnp.einsum("bmk,bkn->bmn", a, b), (4, m, k), (4, k, n))
    assert batched == {"float32": 4 * 2 * m * k * n}


@pytest.mark.parametrize("length", [1, 6])
def test_a_loop_counts_as_often_as_it_runs_and_what_is_called_counts(length):
    @jax.jit
    def product(a, b):
        return a @ b

    def loop(a, b):
        return jax.lax.scan(lambda carry, _: (product(carry, b), None), a, length=length)[0]

    assert counted(loop, (3, 5), (5, 5)) == {"float32": length * 2 * 3 * 5 * 5}


@pytest.mark.parametrize(("window", "stride", "inputs", "outputs"), [(3, 1, 2, 4), (8, 4, 1, 16), (1, 1, 5, 3)])
def test_a_convolution(window, stride, inputs, outputs):
    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    side = (20 - window) // stride + 1
    found = counted(convolve, (7, 20, 20, inputs), (window, window, inputs, outputs))
    assert found == {"float32": 7 * side**2 * outputs * 2 * window**2 * inputs}


def test_a_gradient_takes_about_twice_as_many_more():
    def loss(kernel, x):
        return jnp.sum(jnp.square(x @ kernel))

    forward = counted(loss, (5, 7), (3, 5))["float32"]
    both = counted(jax.grad(loss, argnums=(0, 1)), (5, 7), (3, 5))["float32"]
    np.testing.assert_allclose(both, 3 * forward)


def test_every_row_is_a_run_that_there_can_be():
    for name in ROWS:
        run_of(name).check_fit()
    for backend in BACKENDS:
        assert acting_run(backend).actor_backend == backend


@pytest.mark.parametrize("only", ["impalla", "zz", "acting gpu", "impala shallow float16"])
def test_a_name_of_no_row_is_one_line_before_anything_is_timed(only, capsys, monkeypatch):
    monkeypatch.setattr(bench_learners, "ceilings", None)
    assert flags.attempt(bench_learners.bench, ["bench", f"--only={only}"]) == 2
    printed = capsys.readouterr()
    assert f"--only={only}: no row has this in its name" in printed.err and printed.err.count("\n") == 1
    assert printed.out == ""
