"""The multipliers of constraints, and the parameters from which they are computed."""

import jax.numpy as jnp
import numpy as np
import pytest

from agents.parts.multipliers import multiplier, parameter_of


@pytest.mark.parametrize("value", [1e-6, 1e-3, 0.1, 1.0, 30.0, 1e3])
def test_a_multiplier_begins_as_it_is_set_and_never_comes_to_zero(value):
    start = parameter_of(value)
    np.testing.assert_allclose(multiplier(start), value, rtol=2e-2 if value < 1e-5 else 1e-4)
    assert multiplier(jnp.float32(-1e4)) > 0
    np.testing.assert_allclose(multiplier(jnp.float32(1e4)), 1e4)
