"""What TensorBoard shows of a run's settings, read by TensorBoard's own code."""

import json
import pathlib
from typing import Any, NamedTuple

import pytest
from tensorboard import context
from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
from tensorboard.plugins import base_plugin
from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups

from runtime import metrics
from tests.launchers.test_best_checkpoint import STACKED, THREADS, learn
from tests.launchers.test_stop_at_return import QUEUE, REPLAY, SERIAL


class Shown(NamedTuple):
    """What TensorBoard shows of a folder."""

    differing: set[str]  # the hyperparameters in which the runs differ
    hparams: dict[str, dict[str, Any]]  # folder of a run -> its hyperparameters
    returns: dict[str, float]  # folder of a run -> its last return
    metrics: dict[str, set[str]]  # folder of a run -> the names of all its metrics
    texts: dict[str, Any]  # folder of a run -> its settings, parsed from the text


def shown(folder: pathlib.Path) -> Shown:
    multiplexer = plugin_event_multiplexer.EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    provider, request = data_provider.MultiplexerDataProvider(multiplexer, str(folder)), context.RequestContext()
    plugin = backend_context.Context(base_plugin.TBContext(data_provider=provider))
    there = plugin.hparams_metadata(request, "")
    experiment = plugin.experiment_from_metadata(request, "", True, there, [])
    asked = api_pb2.ListSessionGroupsRequest(slice_size=100, allowed_statuses=api_pb2.Status.values())
    groups = list_session_groups.Handler(request, plugin, "", asked).run().session_groups
    suffix = "/tensorboard/evaluator"
    assert all(group.name.endswith(suffix) and len(group.sessions) == 1 for group in groups)
    hparams, returns, names = {}, {}, {}
    for group in groups:
        run, values = group.name.removesuffix(suffix), {each.name.tag: each.value for each in group.metric_values}
        hparams[run] = {name: getattr(value, value.WhichOneof("kind")) for name, value in group.hparams.items()}
        returns[run], names[run] = values.get("return_mean"), {*values}
    texts = provider.read_tensors(request, experiment_id="", plugin_name="text", downsample=100)
    return Shown(
        {each.name for each in experiment.hparam_infos if each.differs},
        hparams,
        returns,
        names,
        {run.removesuffix(suffix): json.loads(only(only(tags.values())).numpy[0]) for run, tags in texts.items()},
    )


def only(values: Any) -> Any:
    (value,) = values
    return value


def check(folder: pathlib.Path, logdir: str) -> dict[str, Any]:
    """Asserts that TensorBoard shows a run once, with its config.json and newest evaluation. Returns its settings."""
    saved = json.loads((folder / logdir / "config.json").read_text())
    seen = shown(folder)
    flat = {f"config.{name}": value for name, value in saved["config"].items()}
    flat |= {name: value for name, value in saved.items() if name != "config"}
    expected = {
        name: json.dumps(value) if isinstance(value, list) else value
        for name, value in flat.items()
        if value is not None
    }
    assert seen.hparams[logdir] == pytest.approx(expected), "numbers are floats there"
    assert seen.texts[logdir] == saved
    rows = metrics.read(folder / logdir / "evaluator.csv")
    assert seen.returns[logdir] == pytest.approx(rows[-1]["return_mean"], rel=1e-5)
    assert seen.metrics[logdir] == {*rows[-1]}, "the evaluator's alone"
    assert [path.parent.name for path in (folder / logdir).rglob("*.settings")] == ["evaluator"]
    return saved


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        (QUEUE, SERIAL),
        (REPLAY, THREADS),
        ((*STACKED, "--population_mode=vmap"), SERIAL),
    ],
)
def test_a_run_shows_its_settings_and_after_a_resume_those_it_was_given_then(arguments, where, tmp_path):
    learn(tmp_path / "run", *arguments, *where, steps=600)
    before = check(tmp_path, "run")
    learn(tmp_path / "run", *arguments, *where, "--eval_episodes=4", steps=1200)
    after = check(tmp_path, "run")
    assert (before["max_env_steps"], after["max_env_steps"], after["eval_episodes"]) == (600, 1200, 4)
    learn(tmp_path / "run", *arguments, *where, "--eval_episodes=4", steps=1200)  # nothing is left to do
    assert check(tmp_path, "run") == after


def test_runs_are_compared_by_what_they_differ_in(tmp_path):
    learn(tmp_path / "first", *QUEUE, *SERIAL, steps=300)
    learn(tmp_path / "group" / "second", *QUEUE, *SERIAL, "--seed=3", "--config.learning_rate=0.01", steps=300)
    assert shown(tmp_path).differing == {"seed", "config.learning_rate"}
    learn(tmp_path / "third", *REPLAY, *SERIAL, steps=300)
    seen = shown(tmp_path)
    assert {"agent", "seed", "config.learning_rate"} < seen.differing
    for logdir in ("first", "group/second", "third"):
        check(tmp_path, logdir)
    assert "config.replay_size" in seen.hparams["third"] and "config.replay_size" not in seen.hparams["first"]


def test_each_member_of_a_population_is_a_run(tmp_path):
    learn(tmp_path, *STACKED, *THREADS, steps=600)
    assert {*shown(tmp_path).hparams} == {"member_0", "member_1"}
    rates = [check(tmp_path, f"member_{member}")["config"]["learning_rate"] for member in range(2)]
    assert rates[0] != rates[1] and "config.learning_rate" in shown(tmp_path).differing
