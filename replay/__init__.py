"""How data travels: one module for each way of travelling, and two carriers that all ways use.

Only `channels` knows which module serves which way. The Reverb carrier (https://arxiv.org/abs/2102.04736) connects
threads, processes and machines. The local carrier works within one process, needs neither Reverb nor TensorFlow, and
keeps replays on the learner's devices.
"""
