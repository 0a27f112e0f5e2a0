"""Which preset a run gets of its agent and its environment, or of a list of these."""

import pytest

from launchers import presets, run, settings


@pytest.mark.parametrize(
    ("env", "curriculum"),
    [
        ("MiniGrid-MemoryS7-v0", "architectures"),
        ("MiniGrid-LavaGapS5-v0,MiniGrid-LavaGapS6-v0", "tasks"),
        ("Catch-v0,Catch-v1", "tasks"),
        ("binned:5:Pendulum-v1", "actions"),
        ("DeadlyCorridor-v1", "actions"),
        ("MaskedCartPole-v1", "architectures"),
    ],
)
def test_mix_and_match_has_the_curriculum_of_its_environment(env, curriculum):
    assert presets.find("mix_match", env).config["curriculum"] == curriculum


def test_a_list_has_its_first_tasks_preset_where_none_is_for_lists():
    assert presets.find("impala", "Catch-v0,CartPole-v1") == presets.find("impala", "Catch-v0")


@pytest.mark.parametrize("agent", sorted(presets.PRESETS))
def test_all_presets_are_of_fields_that_there_are(agent):
    for preset in presets.PRESETS[agent]:
        config = run.agent_module(agent).Config(**preset.config)
        values = {"agent": agent, "env": "CartPole-v1"} | preset.run
        settings.check(run.Run(**settings.complete(values), config=config))


@pytest.mark.parametrize("agent", sorted(presets.PRESETS))
def test_each_preset_is_that_of_some_environment(agent):
    for preset in presets.PRESETS[agent]:
        env = preset.pattern.replace("?", "X").replace("*", "X")
        assert presets.find(agent, env) == preset, preset.pattern
