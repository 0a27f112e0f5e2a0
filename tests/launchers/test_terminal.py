"""What a person sees of a run, and what is kept from them."""

import subprocess
import sys

import pytest

from tests.launchers import command_line

LINES = """
import logging, os, pathlib, sys
from absl import logging as absl_logging
from launchers import terminal

for set_up in sys.argv[2:]:  # what a library may have done before
    exec(set_up)
with terminal.native_lines_in(pathlib.Path(sys.argv[1])):
    absl_logging.warning("a warning")
    logging.getLogger("library").warning("a library's")
    print("a print", file=sys.stderr)
    os.write(2, b"a native line\\n")
absl_logging.warning("a last warning")
os.write(2, b"a last native line\\n")
"""


@pytest.mark.parametrize("set_up", [(), ("logging.basicConfig()",), ("absl_logging.use_absl_handler()",)])
def test_native_lines_are_kept_and_pythons_are_seen(tmp_path, set_up):
    done = subprocess.run(
        [sys.executable, "-c", LINES, str(tmp_path / "logs" / "native.log"), *set_up],
        cwd=command_line.ROOT,
        env=command_line.ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    seen = ("a warning", "a library's", "a print", "a last warning", "a last native line")
    assert [line for line in seen if line not in done.stderr] == []
    assert (tmp_path / "logs" / "native.log").read_text() == "a native line\n" and "a native line" not in done.stderr
