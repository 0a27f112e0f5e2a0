"""Command lines: how a run's roles become one thread, many threads, processes or hosts."""
