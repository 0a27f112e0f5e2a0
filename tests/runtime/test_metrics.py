"""The roles' CSV files, to which resumed runs append and which are read while they are written."""

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from runtime import metrics


def test_latest_is_the_last_whole_row_wherever_the_file_is_cut(tmp_path):
    recorder = metrics.Recorder(tmp_path, "learner")
    for step in range(400):  # far more than the end of the file that `latest` reads
        recorder.write({"env_steps": step * 1000003, "learner_steps": step, "loss": step / 7})
        assert metrics.latest(tmp_path, "learner")["learner_steps"] == step
    recorder.close()
    whole = (tmp_path / "learner.csv").read_text()
    rows = metrics.read(tmp_path / "learner.csv")
    assert [row["learner_steps"] for row in rows] == list(range(400))
    for cut in range(1, 200):  # as if a writer were half-way through its row
        (tmp_path / "learner.csv").write_text(whole[:-cut])
        assert metrics.latest(tmp_path, "learner")["learner_steps"] in range(390, 400)


def test_resumed_recorder_appends_and_continues_the_clock(tmp_path):
    first = metrics.Recorder(tmp_path, "learner")
    first.write({"env_steps": 1, "learner_steps": 1, "loss": 0.5})
    first.close()
    (tmp_path / "learner.csv").write_text((tmp_path / "learner.csv").read_text().replace(",0.0", ",100.0", 1))
    before = metrics.latest(tmp_path, "learner")
    second = metrics.Recorder(tmp_path, "learner")
    assert second.last == before
    second.write({"env_steps": 2, "learner_steps": 2, "loss": 0.25})
    second.close()
    after = metrics.read(tmp_path / "learner.csv")
    assert len(after) == 2 and after[1]["wall_seconds"] >= before["wall_seconds"]


def test_a_file_that_was_removed_is_missed(tmp_path):
    recorder = metrics.Recorder(tmp_path, "actor_0")
    recorder.write({"env_steps": 1, "learner_steps": 1})
    (tmp_path / "actor_0.csv").unlink()
    with pytest.raises(OSError, match=r"actor_0.csv was removed while the run went on"):
        recorder.write({"env_steps": 2, "learner_steps": 2})
    recorder.close()


def test_a_full_disk_is_said_with_the_files_name(tmp_path):
    recorder = metrics.Recorder(tmp_path, "learner")
    recorder._file.close()
    recorder._file = open("/dev/full", "w", buffering=1)  # noqa: SIM115 (closed by close)
    for write in (lambda: recorder.write({"env_steps": 1, "learner_steps": 1}), recorder.close):
        with pytest.raises(OSError, match=r"cannot write to .*learner.csv: No space left on device"):
            write()


def test_no_file_is_no_rows(tmp_path):
    assert metrics.read(tmp_path / "actor_0.csv") == []
    assert metrics.latest(tmp_path, "actor_0") is None


def test_recorder_refuses_nothing_but_ignores_unknown_columns(tmp_path):
    recorder = metrics.Recorder(tmp_path, "evaluator")
    recorder.write({"env_steps": 1, "learner_steps": 1})
    recorder.write({"env_steps": 2, "learner_steps": 2, "late": 3})
    recorder.close()
    with pytest.raises(KeyError):
        metrics.latest(tmp_path, "evaluator")["late"]


@pytest.mark.parametrize("seed", range(20))
def test_whatever_stands_in_a_file_its_whole_rows_are_read_and_more_can_be_written(tmp_path, seed):
    """The files have half lines of killed processes, headers of other runs, and bytes that Shoal never wrote."""
    rng = np.random.default_rng(seed)
    path = tmp_path / "learner.csv"
    rubbish = [b"env_steps,learner_steps\n", b"\n", b"a,b,c,d\n", b"1,2\n", rng.bytes(40).replace(b"\n", b"") + b"\n"]
    half = [b"12,3", b"\xff\xfe", b"wall_seconds,env_st"]
    if rng.random() < 0.5:  # before there is a header
        path.write_bytes(b"".join(rubbish[1:]) + half[rng.integers(3)])
    written = []
    for sitting in range(4):
        recorder = metrics.Recorder(tmp_path, "learner")
        for _ in range(rng.integers(1, 4)):
            written.append(len(written))
            recorder.write({"env_steps": written[-1], "learner_steps": sitting, "loss": float("nan")})
        recorder.close()
        with open(path, "ab") as file:
            file.write(b"".join(rubbish[i] for i in rng.integers(5, size=rng.integers(3))))
            if rng.random() < 0.7:
                file.write(half[rng.integers(3)])
        assert [row["env_steps"] for row in metrics.read(path)] == written
        latest = metrics.latest(tmp_path, "learner")
        assert (latest["env_steps"], latest["learner_steps"]) == (written[-1], sitting)


def events(folder):
    """Returns the (event, value) pairs in a folder's event files. They are read by hand: TensorBoard's reader imports
    TensorFlow, with which other tests in this process could not run agents."""
    found = []
    for path in sorted(folder.iterdir()):
        said = path.read_bytes()
        while said:
            size = int.from_bytes(said[:8], "little")  # then a checksum of 4 bytes, the event, and another
            event = Event.FromString(said[12 : 12 + size])
            found += [(event, value) for value in event.summary.value]
            said = said[16 + size :]
    return found


def test_tensorboard_has_each_number_at_its_environment_steps(tmp_path):
    """It gets all of a row's numbers but those that are not there (NaN), also those for which the CSV has no column;
    and each row at once, so that whatever ends the process, none is lost. A resumed run adds to them."""
    expected = {}
    for sitting in range(2):
        recorder = metrics.Recorder(tmp_path, "learner")
        for row in range(5 * sitting, 5 * sitting + 5):
            told = {"env_steps": 1000 * row, "learner_steps": row, "loss": row / 7, "lag": np.nan if row == 3 else row}
            told |= {"late": 2.5} if row > 2 else {}
            recorder.write(told, {"lags": [row, 2 * row]})
            for name, value in told.items():
                if value == value:
                    expected.setdefault(name, []).append((1000 * row, np.float32(value)))
            shown = events(tmp_path / "tensorboard" / "learner")
            for name, values in expected.items():
                assert [(event.step, value.simple_value) for event, value in shown if value.tag == name] == values
            assert [event.step for event, value in shown if value.tag == "wall_seconds"] == [
                1000 * at for at in range(row + 1)
            ]
            drawn = [(event.step, value.histo) for event, value in shown if value.tag == "lags"]
            assert [(step, histogram.min, histogram.max, histogram.num) for step, histogram in drawn] == [
                (1000 * at, at, 2 * at, 2) for at in range(row + 1)
            ]
        if sitting:
            recorder.close()


@pytest.mark.parametrize("far", [1e3, 1e6, 1e12])
def test_a_histogram_with_one_value_far_away_stays_small(far, tmp_path):
    recorder = metrics.Recorder(tmp_path, "learner")
    recorder.write({"env_steps": 1}, {"lags": [*np.linspace(1, 2, 500), far]})
    recorder.close()
    (drawn,) = (value.histo for _, value in events(tmp_path / "tensorboard" / "learner") if value.tag == "lags")
    assert drawn.max == far and sum(drawn.bucket) == 501 and len(drawn.bucket) < 100
