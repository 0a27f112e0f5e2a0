"""How a run notices that its machine will be taken away."""

import contextlib
import http.server
import os
import signal
import threading
from collections.abc import Iterator

import pytest

from launchers import flags as command
from launchers import serial, shutdown, train
from launchers.ports import free_port
from launchers.shutdown import noticed
from runtime import metrics
from tests.launchers import command_line

WAIT = 60.0


@contextlib.contextmanager
def serving(code: int, body: bytes) -> Iterator[str]:
    """Yields the address of a server that gives this answer to each request."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(code)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("localhost", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://localhost:{server.server_address[1]}/notice"
        finally:
            server.shutdown()


@pytest.mark.parametrize(
    ("code", "body", "says"),
    [
        (200, b"TRUE", True),
        (200, b"TERMINATE_ON_HOST_MAINTENANCE", True),
        (200, b'{"action": "terminate", "time": "2017-09-18T08:22:00Z"}', True),
        (200, b"FALSE\n", False),
        (200, b"none", False),
        (200, b"", False),
        (404, b"TRUE", False),
        (500, b"TRUE", False),
    ],
)
def test_a_url_says_so_by_an_answer(code, body, says):
    with serving(code, body) as address:
        assert noticed(address) == says


def test_what_does_not_answer_says_nothing():
    assert not noticed(f"http://localhost:{free_port()}/notice")
    assert not noticed("http://no.such.host.invalid/")


def test_a_file_says_so_by_being_there(tmp_path):
    file = tmp_path / "notice"
    assert not noticed(str(file))
    file.touch()
    assert noticed(str(file))


def test_a_notice_asks_for_an_orderly_end(tmp_path, monkeypatch):
    monkeypatch.setattr(shutdown, "NOTICE_SECONDS", 0.01)
    monkeypatch.setattr(shutdown.signal, "signal", lambda *_: None)  # keeps the tests' own handlers
    file = tmp_path / "notice"
    stop = shutdown.stop_on_signals(str(file))
    assert not stop.wait(0.1)
    file.touch()
    assert stop.wait(WAIT) and stop.exit_code == 128 + signal.SIGTERM


@pytest.mark.parametrize("number", shutdown.ENDING)
def test_a_signal_while_a_command_starts_is_heard_by_the_run(number, signals):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored
    assert not shutdown.asked()
    shutdown.listen()
    os.kill(os.getpid(), number)
    assert shutdown.asked()
    stop = shutdown.stop_on_signals()
    assert stop.is_set() and stop.exit_code == 128 + number
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, "a second one is obeyed at once"


@pytest.mark.parametrize("code", [None, 75])
@pytest.mark.parametrize("when", ["while it imports", "when it has begun to write"])
def test_a_signal_before_the_training_begins_ends_it(when, code, signals, tmp_path, monkeypatch):
    def come(*_):
        os.kill(os.getpid(), signal.SIGTERM)

    shutdown.listen()
    monkeypatch.setattr(serial, "train", lambda *_: pytest.fail("it trains"))
    if when == "while it imports":
        come()
    else:
        monkeypatch.setattr(train, "_tell_of_begin", come)
    words = ["--agent=a2c", "--placement=serial", "--carrier=local", f"--logdir={tmp_path / 'run'}"]
    words += [] if code is None else [f"--unfinished_code={code}"]
    assert command.attempt(train.train, ["train", *words]) == (code or 0)
    assert (tmp_path / "run").exists() == (when != "while it imports")


@pytest.mark.parametrize("path", ["~nouser/notice", "~/no such notice", "relative/notice"])
def test_a_path_that_cannot_be_says_nothing(path):
    assert not noticed(path)


@pytest.mark.parametrize(
    ("placement", "flags", "code"), [("threads", (), 0), ("processes", ("--unfinished_code=75",), 75)]
)
def test_a_run_that_gets_notice_is_saved(placement, flags, code, tmp_path):
    file, logdir = tmp_path / "notice", tmp_path / "run"
    arguments = (*command_line.TINY, f"--logdir={logdir}", f"--preemption_notice={file}")
    arguments += (f"--placement={placement}", *flags)
    training = command_line.start("train", *arguments, "--max_env_steps=1000000000", "--checkpoint_seconds=100000")
    try:
        command_line.wait_for("learning", lambda: metrics.latest(logdir, "learner"), running=[training])
        file.touch()
        output = command_line.output_of(training, 120)
    finally:
        training.kill()
    assert training.returncode == code and "will be taken away" in output, output
    told = [log.name for log in (logdir / "logs").glob("*.log") if "will be taken away" in log.read_text()]
    assert not told, "the launcher looks for the notice, and asks its roles in their order"
    assert list((logdir / "checkpoints").glob("learner_steps_*"))
    code, output = command_line.run("train", *arguments)
    assert code == 2 and "is there already: remove it first" in output


def test_a_role_by_hand_that_gets_notice_is_not_done(tmp_path):
    file = tmp_path / "notice"
    file.touch()
    place = ("--role=replay", f"--port={free_port()}", f"--logdir={tmp_path / 'run'}")
    code, output = command_line.run(
        "role", *command_line.TINY, *place, f"--preemption_notice={file}", "--carrier=reverb"
    )
    assert code == 128 + signal.SIGTERM and "will be taken away" in output, output
