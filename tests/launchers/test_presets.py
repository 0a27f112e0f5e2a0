"""Which preset a run gets of its agent and its environment, or of a list of these."""

import pytest

from launchers import presets, run, settings

# The epsilons of a run, by its agent and environment: of exploration, of clipping, and what an optimiser adds to its
# denominator. On Atari they are the papers'.
EPSILONS = {
    ("dqn", "CartPole-v1"): {"epsilon_initial": 1.0, "epsilon_final": 0.05, "epsilon_steps": 5_000},
    ("dqn", "Catch-v0"): {"epsilon_final": 0.05, "epsilon_steps": 2_500, "optimizer_epsilon": 1e-8},
    ("dqn", "Acrobot-v1"): {"epsilon_final": 0.05, "epsilon_steps": 5_000, "optimizer_epsilon": 1e-8},
    # Mnih et al. 2015: over the first million frames, an update for each four; 0.01 squared gradients.
    ("dqn", "Pong-v5"): {"epsilon_initial": 1.0, "epsilon_final": 0.1, "epsilon_steps": 250_000,
                         "optimizer_epsilon": 0.01},
    # Horgan et al. 2018 and Kapturowski et al. 2019.
    ("apex_dqn", "Pong-v5"): {"epsilon": 0.4, "epsilon_spread": 7.0, "optimizer_epsilon": 1.5e-7},
    ("r2d2", "Pong-v5"): {"epsilon": 0.4, "epsilon_spread": 7.0, "adam_epsilon": 1e-3},
    ("r2d2", "Catch-v0"): {"epsilon_spread": 7.0, "adam_epsilon": 1e-5},
    ("r2d2", "MiniGrid-MemoryS7-v0"): {"epsilon_spread": 3.0, "adam_epsilon": 1e-5},
    # Mnih et al. 2016: three kinds of actors.
    ("async_q", "CartPole-v1"): {"epsilon_initial": 1.0, "epsilon_finals": (0.5, 0.2, 0.1, 0.3)},
    ("q_learning", "CartPole-v1"): {"epsilon_initial": 1.0, "epsilon_final": 0.05, "epsilon_steps": 5_000},
    # Schulman et al. 2017, tables 5 and 3.
    ("ppo", "Pong-v5"): {"clip_epsilon": 0.1},
    ("ppo", "Hopper-v4"): {"clip_epsilon": 0.2, "adam_epsilon": 1e-5},
    ("ppo", "CartPole-v1"): {"clip_epsilon": 0.2},
    ("a2c", "CartPole-v1"): {"epsilon": 1e-5, "optimizer": "adam"},
    ("a2c", "Pong-v5"): {"epsilon": 0.1, "optimizer": "rmsprop"},
    ("impala", "CartPole-v1"): {"epsilon": 1e-5, "optimizer": "adam"},
    ("impala", "Pong-v5"): {"epsilon": 1e-5},
    ("impala", "MyWayHome-v1"): {"epsilon": 1e-5},
    ("mix_match", "DeadlyCorridor-v1"): {"epsilon": 1e-5},
}  # fmt: skip


@pytest.mark.parametrize(("agent", "env"), EPSILONS)
def test_epsilons(agent, env):
    config = run.make(agent, env, {"carrier": "local"}, {}).config
    expected = EPSILONS[agent, env]
    assert {name: getattr(config, name) for name in expected} == expected


DECAYING = sorted(agent for agent in presets.PRESETS if hasattr(run.agent_module(agent).Config, "decay_env_steps"))


@pytest.mark.parametrize("agent", DECAYING)
def test_the_learning_rate_falls_until_the_run_ends(agent):
    """Unless a preset, or a person, says another number: with 0 it is constant."""
    preset = presets.find(agent, "CartPole-v1").config.get("decay_env_steps")
    make = lambda **config: run.make(agent, "CartPole-v1", {"max_env_steps": 7_777, "carrier": "local"}, config).config
    assert make().decay_env_steps == (7_777 if preset is None else preset)
    assert make(decay_env_steps=0).decay_env_steps == 0 and make(decay_env_steps=5).decay_env_steps == 5


def test_the_learning_rate_of_most_agents_falls():
    assert {"a2c", "a3c", "impala", "ppo", "mix_match"} <= set(DECAYING)
    assert presets.find("impala", "CartPole-v1").config.get("decay_env_steps") is None


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
