"""Everything that speaks Reverb: tables, server, writers, samples and variables (https://arxiv.org/abs/2102.04736)."""

import os

# rlax brings TensorFlow Probability, which must be imported before Reverb brings TensorFlow. TensorFlow is here for
# Reverb's tensors alone: it is to be silent and to leave the accelerators to JAX.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import rlax  # noqa: E402, F401
import tensorflow as tf  # noqa: E402

tf.config.set_visible_devices([], "GPU")
