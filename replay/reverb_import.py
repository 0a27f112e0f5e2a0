"""Reverb and TensorFlow, imported in the one order that works: whoever needs either takes it from here."""

import os

# rlax brings TensorFlow Probability, which must be imported before Reverb brings TensorFlow. TensorFlow is here for
# Reverb's tensors alone: it is to be silent and to leave the accelerators to JAX.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import rlax  # noqa: F401, I001
import tensorflow as tf
import reverb

__all__ = ["reverb", "tf"]

tf.config.set_visible_devices([], "GPU")
