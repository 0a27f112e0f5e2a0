"""A test that waits in vain says what it waited for, and where the launcher and its children stood."""

import sys

import pytest

from tests.launchers import command_line

WAITING = "import threading\ndef {name}(): threading.Event().wait()\n"
PARENT = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {WAITING.format(name="sleep_of_the_child") + "sleep_of_the_child()"!r}])
print("began", flush=True)
{WAITING.format(name="sleep_of_the_parent")}
threading.Thread(target=sleep_of_the_parent).start()
child.wait()
"""


@pytest.mark.parametrize("by_condition", [False, True])
def test_a_vain_wait_shows_the_stacks_of_all_threads_and_leaves_no_process(by_condition):
    process = command_line.launch([sys.executable, "-c", PARENT])
    command_line.wait_for("a child", lambda: command_line.descendants(process.pid), running=[process])
    with pytest.raises(AssertionError) as raised:
        if by_condition:
            command_line.wait_for("what never comes", lambda: False, timeout=2.0, running=[process])
        else:
            command_line.output_of(process, timeout=2.0)
    message = str(raised.value)
    assert message.startswith(
        f"waited 2 s for {'what never comes' if by_condition else 'the end of ' + sys.executable}"
    )
    assert all(words in message for words in ("began", "in sleep_of_the_parent", "in sleep_of_the_child")), message
    assert process.returncode
