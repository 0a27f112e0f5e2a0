"""Everything that speaks Reverb: tables, server, writers, samples and variables (https://arxiv.org/abs/2102.04736)."""

import os

# rlax brings TensorFlow Probability, which must be imported before Reverb brings TensorFlow. TensorFlow is here for
# Reverb's tensors alone: it is to be silent and to leave the accelerators to JAX.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import rlax  # noqa: F401
import tensorflow as tf
from reverb import Client, Server

__all__ = ["Client", "Server"]

tf.config.set_visible_devices([], "GPU")
