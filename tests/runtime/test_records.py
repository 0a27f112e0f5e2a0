"""Records of a baseline's runs, and the figures that are computed from them."""

import dataclasses
import json

import numpy as np
import pytest
import scipy.stats

from runtime import records, statistics
from runtime.records import Record, Result

FULL = Result(498.5, 3.25, 100, 100_042, 21.5, 20.25, "82cd0e374b79", "2026-01-02", "abc+", "cpu.lock", "1 core")


def test_a_record_is_read_as_it_was_written(tmp_path):
    record = Record("scripts/train --agent=ppo", {3: FULL, 0: Result(1.0, earlier="scripts/train")})
    records.write(tmp_path, record)
    assert records.read(tmp_path) == record
    assert record.is_earlier and not dataclasses.replace(record, results={3: FULL}).is_earlier
    np.testing.assert_array_equal(record.returns, [1.0, 498.5])  # in the order of the seeds
    assert list(json.loads((tmp_path / records.FILE).read_text())["seeds"]) == ["0", "3"]


def test_where_nothing_was_recorded_there_is_no_record(tmp_path):
    assert records.read(tmp_path) is None


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"command": "x", "seeds": {"a": {}}}', '{"command": "x", "seeds": {"0": {"mean": 1}}}']
)
def test_a_file_that_is_no_record_is_said_to_be_none(tmp_path, text):
    (tmp_path / records.FILE).write_text(text)
    with pytest.raises(OSError, match=r"record\.json is not the record of a baseline"):
        records.read(tmp_path)


@pytest.fixture
def folder(tmp_path):
    """Returns a folder with the evaluations of two seeds."""
    (tmp_path / "seed0.csv").write_text(
        "env_steps,return_mean\n" + "".join(f"{100 * k},{k}.0\n" for k in range(1, 9))  # the last five are 4 to 8
    )
    (tmp_path / "seed1.csv").write_text("env_steps,return_mean\n100,10.0\n300,30.0\n")
    return tmp_path


def test_the_last_five_and_the_area_are_of_each_seed(folder):
    record = Record("", {0: FULL, 1: FULL})
    np.testing.assert_allclose(records.last_five(folder, record), [6.0, 20.0])
    np.testing.assert_allclose(records.area(folder, record), [4.5, 20.0])


@pytest.mark.parametrize(
    ("value", "words"),
    [(5841.2, "5,841"), (498.24, "498.2"), (500.0, "500"), (-16.06, "-16.1"), (0.966, "0.97"), (1.0, "1"), (0.0, "0")],
)
def test_numbers_have_as_many_places_as_returns_need(value, words):
    assert records.number(value) == words


def test_a_mean_is_spoken_with_its_interval():
    assert records.spoken(np.array([])) == ""
    assert records.spoken(np.array([3.0])) == "3"
    assert records.spoken(np.array([500.0] * 5)) == "500 [500, 500]"
    values = np.array([100.0, 110.0, 120.0, 130.0])
    low, high = statistics.interval(values[:, None])
    assert records.spoken(values) == f"115 [{records.number(low[0])}, {records.number(high[0])}]"


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_a_further_seed_is_in_the_predicted_interval_as_often_as_it_says(seeds):
    """Draws normal returns, those of the seeds and of a further one, 4,000 times."""
    draws = np.random.default_rng(seeds).normal(70.0, 5.0, (4000, seeds + 1))
    inside = 0
    for draw in draws:
        low, high = statistics.predicted(draw[:-1], confidence=0.9)
        inside += low <= draw[-1] <= high
    assert scipy.stats.binomtest(inside, len(draws), 0.9).pvalue > 1e-4


def test_of_one_seed_nothing_is_predicted_and_of_equal_ones_the_same():
    assert statistics.predicted(np.array([3.0])) == (-np.inf, np.inf)
    assert statistics.predicted(np.array([3.0, 3.0, 3.0])) == (3.0, 3.0)


def test_intervals_hold_the_mean_and_are_those_of_means():
    """For normal numbers the bootstrap's interval of the mean is about that of the standard error."""
    runs = np.random.default_rng(0).normal(3.0, 1.0, (200, 5))
    low, high = statistics.interval(runs)
    assert ((low < runs.mean(axis=0)) & (runs.mean(axis=0) < high)).all()
    np.testing.assert_allclose(high - low, 2 * 1.96 / np.sqrt(200), rtol=0.15)
    same = np.ones((3, 2))
    np.testing.assert_array_equal(statistics.interval(same), [same[0], same[0]])


def test_the_interquartile_mean_is_of_the_middle_half():
    values = np.random.default_rng(0).permutation(np.arange(8.0))
    assert statistics.interquartile_mean(values) == np.mean([2, 3, 4, 5])
    values[values == 7.0] = 1e9  # a single outlier does not change it
    assert statistics.interquartile_mean(values) == np.mean([2, 3, 4, 5])


def test_over_tasks_the_interval_is_of_runs_drawn_within_their_task():
    """Tasks whose runs are alike have no spread, however unlike the tasks are."""
    score, low, high = statistics.over_tasks({"a": np.zeros(5), "b": np.full(5, 2.0), "c": np.ones(5)})
    assert score == low == high == 1.0
    scores = {"a": np.array([0.1, 0.5, 0.9]), "b": np.array([0.2, 0.3, 0.4])}
    score, low, high = statistics.over_tasks(scores)
    assert low < score < high and score == statistics.interquartile_mean(np.concatenate(list(scores.values())))


def test_a_profile_is_the_share_of_runs_above():
    scores = {"a": np.array([0.0, 1.0]), "b": np.array([0.5, 0.5, 2.0])}
    shares = statistics.profile(scores, np.array([-1.0, 0.25, 0.75, 1.5, 3.0]))
    np.testing.assert_allclose(shares, [1.0, (0.5 + 1) / 2, (0.5 + 1 / 3) / 2, (0 + 1 / 3) / 2, 0.0])


@pytest.mark.parametrize("seed", range(10))
def test_a_curve_goes_only_forward_and_the_later_sitting_counts(seed, tmp_path):
    """Each sitting goes on from a checkpoint, before or at the last evaluation of the one before it."""
    rng, path = np.random.default_rng(seed), tmp_path / "evaluator.csv"
    rows, expected, last = ["env_steps,learner_steps,return_mean"], {}, 0
    for _ in range(4):
        start = int(rng.integers(0, last + 1))
        for steps in np.sort(rng.choice(np.arange(start, start + 12), 5, replace=False)).tolist():
            value = float(rng.choice([rng.normal(), np.nan, np.inf], p=[0.8, 0.1, 0.1]))
            rows.append(f"{steps},{steps // 2},{value!r}")
            if np.isfinite(value):
                expected = {other: old for other, old in expected.items() if other < steps} | {steps: value}
            last = steps
    path.write_text("\n".join(rows) + "\n")
    found = records.curve(path)
    np.testing.assert_array_equal(found, np.array(list(expected.items())).reshape(-1, 2))
    assert np.all(np.diff(found[:, 0]) > 0)
    assert records.curve(tmp_path / "none.csv").shape == (0, 2)
    with pytest.raises(ValueError, match="has no column wall_seconds"):
        records.curve(path, "wall_seconds")
