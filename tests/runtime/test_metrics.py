"""CSVs of roles: appended by resumed runs, read while they are written."""

import pytest

from runtime import metrics


def test_latest_is_the_last_whole_row_wherever_the_file_is_cut(tmp_path):
    recorder = metrics.Recorder(tmp_path, "learner")
    for step in range(400):  # far more than the end that is read
        recorder.write({"env_steps": step * 1000003, "learner_steps": step, "loss": step / 7})
        assert metrics.latest(tmp_path, "learner")["learner_steps"] == step
    recorder.close()
    whole = (tmp_path / "learner.csv").read_text()
    rows = metrics.read(tmp_path / "learner.csv")
    assert [row["learner_steps"] for row in rows] == list(range(400))
    for cut in range(1, 200):  # a writer that is half-way through its row
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
