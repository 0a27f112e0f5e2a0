"""Algorithms, each a record of pure functions over arrays."""
