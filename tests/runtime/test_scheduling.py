import os
import threading

from runtime.scheduling import NICENESS, give_way


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def test_a_thread_that_gives_way_and_those_that_it_starts_do_and_no_other():
    before, seen = niceness(), []

    def outer():
        give_way()
        seen.append(niceness())
        inner = threading.Thread(target=lambda: seen.append(niceness()))
        inner.start()
        inner.join()

    thread = threading.Thread(target=outer)
    thread.start()
    thread.join()
    assert seen == [max(before, NICENESS)] * 2
    assert niceness() == before
