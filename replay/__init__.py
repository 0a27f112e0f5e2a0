"""How data travels: one file for each way of travelling, and two carriers below them.

`channels` has the one dispatch. The Reverb carrier (https://arxiv.org/abs/2102.04736) joins threads, processes and
machines; the local one is of one process, needs neither Reverb nor TensorFlow, and keeps replays on the learner's
devices.
"""
