"""Learning curves: which runs share one, how far it goes, and what is around it."""

import json
import shutil

import numpy as np
import pytest
from matplotlib import colors

from runtime import metrics, plot, records, statistics
from runtime.records import Record, Result
from tests.pictures import has_curve


def write(logdir, rows, **settings) -> None:
    """Writes a run's evaluations, each of them (env_steps, return_mean, return_std)."""
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
    """drawn(folders, ...) -> (label, x, y, low side of the band, high side of the band) of each curve; without a band
    the sides are None."""
    figures = []
    monkeypatch.setattr(plot.pyplot, "close", figures.append)

    def draw(folders, x="env_steps", **kwargs):
        settled = lambda run: {name: value for name, value in run.items() if name != "seed"}
        out = tmp_path / "curve.png"
        assert plot.draw(folders, out, settled, x, **kwargs) and has_curve(out)
        (axes,) = figures[-1].axes
        bands = {tuple(band.get_facecolor()[0][:3]): band for band in axes.collections}
        curves = []
        for line in axes.lines:
            x_, y = line.get_data()
            band = bands.get(colors.to_rgb(line.get_color()))
            if band is None:
                curves.append((line.get_label(), list(x_), list(y), None, None))
                continue
            corners = band.get_paths()[0].vertices
            sides = [corners[np.isclose(corners[:, 0], at), 1] for at in x_]
            curves.append((line.get_label(), list(x_), list(y), [s.min() for s in sides], [s.max() for s in sides]))
        return curves

    draw.figures = figures
    return draw


def test_seeds_make_one_curve_as_far_as_the_shortest(drawn, tmp_path):
    write(tmp_path / "a", [(100, 1.0, 0.5), (200, 3.0, 0.5), (400, 9.0, 0.5)], seed=0)
    write(tmp_path / "b", [(100, 2.0, 0.5), (300, 6.0, 0.5)], seed=1)
    ((label, x, y, low, high),) = drawn([tmp_path / "a", tmp_path / "b"])
    assert label == "a2c on CartPole-v1 (2 seeds)"
    assert x == [100, 200, 300], "none is known of b beyond"
    np.testing.assert_allclose(y, [1.5, 3.5, 6.0])  # a at 300 is between 3 and 9, b at 200 between 2 and 6
    np.testing.assert_allclose(low, [1.0, 3.0, 6.0])  # two numbers' bootstrap interval reaches from one to the other
    np.testing.assert_allclose(high, [2.0, 4.0, 6.0])
    assert drawn.figures[-1].legends[0].get_title().get_text() == plot.INTERVALS


@pytest.mark.parametrize("seeds", [2, 5, 10])
def test_a_band_is_the_bootstrap_interval_and_stays_inside_what_was_seen(drawn, tmp_path, seeds):
    returns = np.random.default_rng(seeds).uniform(400.0, 500.0, (seeds, 4))
    for seed, row in enumerate(returns):
        write(tmp_path / f"s{seed}", [(100 * (k + 1), value, 80.0) for k, value in enumerate(row)], seed=seed)
    ((_, _, y, low, high),) = drawn([tmp_path / f"s{seed}" for seed in range(seeds)])
    expected = statistics.interval(returns)
    np.testing.assert_allclose(y, returns.mean(axis=0))
    np.testing.assert_allclose([low, high], expected)
    assert (returns.min(axis=0) <= np.array(low) + 1e-9).all() and (np.array(high) - 1e-9 <= returns.max(axis=0)).all()


def test_a_run_alone_has_no_band(drawn, tmp_path):
    write(tmp_path / "a", [(100, 1.0, 0.5), (200, 3.0, 2.0)])
    assert drawn([tmp_path / "a"], "learner_steps") == [("a2c on CartPole-v1", [10, 20], [1.0, 3.0], None, None)]
    assert drawn.figures[-1].legends[0].get_title().get_text() in ("", "None")


def test_members_of_a_population_are_no_seeds(drawn, tmp_path):
    (tmp_path / "p").mkdir()
    for member in range(3):
        write(tmp_path / "p" / f"member_{member}", [(100, 1.0, 0.0), (200, 2.0 + member, 0.0)], seed=member)
    ((label, *_),) = drawn(sorted((tmp_path / "p").iterdir()))
    assert label == "a2c on CartPole-v1 (3 members)"


def write_record(folder, curves) -> None:
    """Writes a baseline's record; `curves` maps a seed to its evaluations (env_steps, return_mean, return_std)."""
    folder.mkdir()
    for seed, rows in curves.items():
        write(folder / "made", rows)
        (folder / "made" / "evaluator.csv").rename(folder / f"seed{seed}.csv")
        shutil.rmtree(folder / "made")
    records.write(folder, Record("scripts/train", {seed: Result(rows[-1][1]) for seed, rows in curves.items()}))


def test_a_record_is_drawn_like_its_runs_by_its_name(drawn, tmp_path):
    rows = {0: [(100, 1.0, 0.0), (200, 3.0, 0.0)], 1: [(100, 2.0, 0.0), (200, 5.0, 0.0)]}
    write_record(tmp_path / "ppo-Catch-v0", rows)
    write(tmp_path / "run", rows[0])
    record, run = drawn([tmp_path / "ppo-Catch-v0", tmp_path / "run"])
    assert record[0] == "ppo-Catch-v0 (2 seeds)" and run[0] == "a2c on CartPole-v1"
    np.testing.assert_allclose(record[2], [1.5, 4.0])


def test_labels_axes_and_published_lines_are_as_asked_for(drawn, tmp_path):
    for name, rate in (("a", 0.1), ("b", 0.2)):
        write(tmp_path / name, [(100, 10 * rate, 0.0), (200, 20 * rate, 0.0)], rate=rate)
    folders = [tmp_path / "a", tmp_path / "b"]
    curves = drawn(folders, labels=["slow", "fast"], log="xy", published={"the paper's": 3.0})
    assert [label for label, *_ in curves] == ["slow", "fast", "the paper's"]
    (axes,) = drawn.figures[-1].axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert curves[-1][2] == [3.0, 3.0]
    with pytest.raises(ValueError, match="3 labels for 2 curves"):
        drawn(folders, labels=["x", "y", "z"])


@pytest.mark.parametrize("log", ["x", "y", "xy"])
@pytest.mark.parametrize("returns", [(-3.0, -1.0), (0.0, 0.0), (-3.0, 1.0), (1.0, -2.0, 3.0), (1.0, 2.0)])
def test_a_logarithmic_axis_without_anything_on_it_is_refused(log, returns, tmp_path):
    write(tmp_path / "a", [(100 * k, value, 0.0) for k, value in enumerate(returns, 1)])
    draw = lambda: plot.draw([tmp_path / "a"], tmp_path / "curve.png", lambda run: run, log=log)
    if "y" in log and min(returns) <= 0:
        with pytest.raises(ValueError, match=f"--log={log}: a logarithmic axis shows no returns of 0 or less"):
            draw()
        assert not (tmp_path / "curve.png").exists()
    else:
        assert draw() and has_curve(tmp_path / "curve.png")


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_smoothing_is_the_mean_of_the_evaluations_before(drawn, tmp_path, count):
    returns = np.random.default_rng(0).normal(size=7)
    write(tmp_path / "a", [(100 * (k + 1), value, 0.0) for k, value in enumerate(returns)])
    ((_, _, y, _, _),) = drawn([tmp_path / "a"], smooth=count)
    np.testing.assert_allclose(y, [returns[max(0, k + 1 - count) : k + 1].mean() for k in range(7)])


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


def test_a_radar_is_drawn_as_png_and_the_same_svg_each_time(tmp_path):
    spokes = {"basic": 0.9, "credit_assignment": 0.4, "memory": 0.0}
    both = {"one": spokes, "other": dict.fromkeys(spokes, 0.5)}
    outs = [tmp_path / name for name in ("radar.png", "radar.svg", "again.svg")]
    plot.draw_radar(both, *outs)
    assert has_curve(outs[0]) and outs[1].read_bytes() == outs[2].read_bytes()
    assert "credit assignment" in outs[1].read_text()  # the words are in a comment beside their outlines
    plot.draw_radar({}, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


@pytest.mark.parametrize("seed", range(4))
def test_a_line_of_descent_has_its_founders_colour_and_goes_on_where_the_donor_was(seed, tmp_path, monkeypatch):
    """A score goes on from the member's own, for it is of the state before the copy."""
    rng, figures = np.random.default_rng(seed), []
    members, turns = 4, 6
    donors = np.where(rng.random((turns, members)) < 0.4, rng.integers(members, size=(turns, members)), range(members))
    donors[0] = range(members)
    scores, rates = rng.normal(size=(turns, members)), rng.uniform(1, 2, (turns, members))
    for member in range(members):
        recorder = metrics.Recorder(tmp_path, f"lineage_{member}")
        for turn in range(turns):
            row = {"member": member, "donor": int(donors[turn, member]), "score": scores[turn, member]}
            recorder.write({"env_steps": 100 * turn} | row | {"learning_rate": rates[turn, member]})
        recorder.close()
    monkeypatch.setattr(plot.pyplot, "close", figures.append)
    assert plot.draw_lineages(tmp_path, tmp_path / "lineages.png") and has_curve(tmp_path / "lineages.png")
    expected, founders = ([], []), list(range(members))
    for turn in range(1, turns):
        founders = [founders[donor] for donor in donors[turn]]
        for member, donor in enumerate(donors[turn]):
            for lines, values, start in ((expected[0], scores, member), (expected[1], rates, donor)):
                ends = float(values[turn - 1, start]), float(values[turn, member])
                lines.append((100 * (turn - 1), *ends, plot.pyplot.get_cmap("tab20")(founders[member])))
    (figure,) = figures
    for axes, lines, name in zip(figure.axes, expected, ("score", "learning rate"), strict=True):
        assert axes.get_ylabel() == name
        found = [(line.get_xdata()[0], *map(float, line.get_ydata()), line.get_color()) for line in axes.lines]
        assert sorted(found) == sorted(lines)
        assert all(line.get_xdata()[1] == line.get_xdata()[0] + 100 for line in axes.lines)
    assert not plot.draw_lineages(tmp_path / "nothing", tmp_path / "none.png")
