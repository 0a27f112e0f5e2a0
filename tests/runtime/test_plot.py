"""Learning curves: which runs share one, how far it goes, and what is around it."""

import json

import numpy as np
import pytest

from runtime import metrics, plot
from tests.pictures import has_curve


def write(logdir, rows, **settings) -> None:
    """A run's evaluations, (env_steps, return_mean, return_std) each."""
    logdir.mkdir()
    (logdir / "config.json").write_text(json.dumps({"agent": "a2c", "env": "CartPole-v1"} | settings))
    recorder = metrics.Recorder(logdir, "evaluator")
    for env_steps, mean, std in rows:
        recorder.write(
            {"env_steps": env_steps, "learner_steps": env_steps // 10, "return_mean": mean, "return_std": std}
        )
    recorder.close()


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """drawn(logdirs) -> [(label, x, y, low, high)] of each curve."""
    figures = []
    monkeypatch.setattr(plot.pyplot, "close", figures.append)

    def draw(logdirs, x="env_steps"):
        settled = lambda run: {name: value for name, value in run.items() if name != "seed"}
        assert plot.draw(logdirs, tmp_path / "curve.png", settled, x) and has_curve(tmp_path / "curve.png")
        (axes,) = figures.pop().axes
        curves = []
        for line, band in zip(axes.lines, axes.collections, strict=True):
            x, y = line.get_data()
            corners = band.get_paths()[0].vertices
            sides = [corners[np.isclose(corners[:, 0], at), 1] for at in x]
            curves.append((line.get_label(), list(x), list(y), [s.min() for s in sides], [s.max() for s in sides]))
        return curves

    return draw


def test_seeds_make_one_curve_as_far_as_the_shortest(drawn, tmp_path):
    write(tmp_path / "a", [(100, 1.0, 0.5), (200, 3.0, 0.5), (400, 9.0, 0.5)], seed=0)
    write(tmp_path / "b", [(100, 2.0, 0.5), (300, 6.0, 0.5)], seed=1)
    ((label, x, y, low, high),) = drawn([tmp_path / "a", tmp_path / "b"])
    assert label == "a2c on CartPole-v1 (2 seeds)"
    assert x == [100, 200, 300], "none is known of b beyond"
    np.testing.assert_allclose(y, [1.5, 3.5, 6.0])  # a at 300 is between 3 and 9, b at 200 between 2 and 6
    np.testing.assert_allclose(low, [1.0, 3.0, 6.0])
    np.testing.assert_allclose(high, [2.0, 4.0, 6.0])


def test_a_run_alone_has_its_episodes_deviation_around_it(drawn, tmp_path):
    write(tmp_path / "a", [(100, 1.0, 0.5), (200, 3.0, 2.0)])
    ((label, x, y, low, high),) = drawn([tmp_path / "a"], "learner_steps")
    assert (label, x, y) == ("a2c on CartPole-v1", [10, 20], [1.0, 3.0])
    np.testing.assert_allclose([low, high], [[0.5, 1.0], [1.5, 5.0]])


def test_runs_that_learn_otherwise_have_curves_of_their_own(drawn, tmp_path):
    for name, rate in (("a", 0.1), ("b", 0.2)):
        write(tmp_path / name, [(100, 10 * rate, 0.0), (200, 20 * rate, 0.0)], rate=rate)
    curves = drawn([tmp_path / "a", tmp_path / "b"])
    assert [(label, y) for label, _, y, _, _ in curves] == [
        ("a2c on CartPole-v1, rate=0.1", [1.0, 2.0]),
        ("a2c on CartPole-v1, rate=0.2", [2.0, 4.0]),
    ]


def test_one_evaluation_is_no_curve(tmp_path):
    write(tmp_path / "a", [(100, 1.0, 0.5)])
    assert not plot.draw([tmp_path / "a"], tmp_path / "curve.png", dict)
    assert not (tmp_path / "curve.png").exists()
