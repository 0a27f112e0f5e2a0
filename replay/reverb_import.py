"""Imports Reverb and TensorFlow in the only order that works; all other modules import them from here."""

import os

# rlax imports TensorFlow Probability, which must come before Reverb imports TensorFlow. TensorFlow is here only for
# Reverb's tensors, so it must be silent and leave the accelerators to JAX.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import rlax  # noqa: F401, I001
import tensorflow as tf
import reverb

__all__ = ["reverb", "tf"]

tf.config.set_visible_devices([], "GPU")
