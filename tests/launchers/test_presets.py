"""Which preset a run gets for its agent and its environment, or for its agent and a list of environments."""

import pytest

from agents.parts.torsos import LEAST_SIDES
from launchers import configs, kinds, presets, run, settings
from launchers.kinds import Kind

# (agent, environment) -> the epsilons of a run: of exploration, of clipping, and of the optimiser's denominator. On
# Atari they are the papers'.
EPSILONS = {
    ("dqn", "CartPole-v1"): {"epsilon_initial": 1.0, "epsilon_final": 0.05, "epsilon_steps": 5_000},
    ("dqn", "Catch-v0"): {"epsilon_final": 0.05, "epsilon_steps": 2_500, "optimizer_epsilon": 1e-8},
    ("dqn", "Acrobot-v1"): {"epsilon_final": 0.05, "epsilon_steps": 5_000, "optimizer_epsilon": 1e-8},
    # Mnih et al. 2015: epsilon falls over a million actions, four to an update. Its 0.01 is for sums over 32 gradients.
    ("dqn", "Pong-v5"): {"epsilon_initial": 1.0, "epsilon_final": 0.1, "epsilon_steps": 250_000,
                         "optimizer_epsilon": 0.01 / 1024},
    # Schaul et al. 2016: every term of a step is a quarter of DQN's, so the epsilon in the root is a sixteenth.
    ("prioritized_dqn", "Pong-v5"): {"optimizer_epsilon": 0.01 / 1024 / 16},
    # Bellemare et al. 2017, Dabney et al. 2018 and Vieillard et al. 2020. Rainbow explores by noise instead of epsilon.
    ("c51", "Pong-v5"): {"epsilon_initial": 1.0, "epsilon_final": 0.01, "optimizer_epsilon": 0.01 / 32},
    ("qr_dqn", "Pong-v5"): {"epsilon_final": 0.01, "epsilon_steps": 250_000, "optimizer_epsilon": 0.01 / 32},
    ("iqn", "Pong-v5"): {"epsilon_final": 0.01, "epsilon_steps": 250_000, "optimizer_epsilon": 0.01 / 32},
    ("munchausen_dqn", "Pong-v5"): {"epsilon_final": 0.01, "epsilon_steps": 62_500, "optimizer_epsilon": 0.01 / 32},
    ("rainbow", "Pong-v5"): {"epsilon_initial": 0.0, "epsilon_final": 0.0, "optimizer_epsilon": 1.5e-4},
    ("rainbow", "Catch-v0"): {"epsilon_initial": 0.0, "epsilon_final": 0.0, "optimizer_epsilon": 1e-8},
    # Mnih et al. 2016: the paper's 0.1 is for sums over the gradients of five steps.
    ("async_n_step_q", "Pong-v5"): {"optimizer_epsilon": 0.1 / 25},
    # Horgan et al. 2018 and Kapturowski et al. 2019.
    ("apex_dqn", "Pong-v5"): {"epsilon": 0.4, "epsilon_spread": 7.0, "optimizer_epsilon": 1.5e-7},
    ("r2d2", "Pong-v5"): {"epsilon": 0.4, "epsilon_spread": 7.0, "adam_epsilon": 1e-3},
    ("r2d2", "Catch-v0"): {"epsilon_spread": 7.0, "adam_epsilon": 1e-5},
    ("r2d2", "MiniGrid-MemoryS7-v0"): {"epsilon_spread": 3.0, "adam_epsilon": 1e-5},
    # Mnih et al. 2016: actors have different final epsilons. These are higher than the paper's three.
    ("async_q", "CartPole-v1"): {"epsilon_initial": 1.0, "epsilon_finals": (0.5, 0.2, 0.1, 0.3)},
    ("q_learning", "CartPole-v1"): {"epsilon_initial": 1.0, "epsilon_final": 0.05, "epsilon_steps": 5_000},
    # Schulman et al. 2017, tables 5 and 3.
    ("ppo", "Pong-v5"): {"clip_epsilon": 0.1},
    ("ppo", "Hopper-v4"): {"clip_epsilon": 0.2, "adam_epsilon": 1e-5},
    ("ppo", "CartPole-v1"): {"clip_epsilon": 0.2},
    # Burda et al. 2019: the values in their code.
    ("ppo_rnd", "MontezumaRevenge-v5"): {"clip_epsilon": 0.1, "decay_clip": False, "adam_epsilon": 1e-8},
    # Gallici et al. 2024: the values in their code.
    ("pqn", "Pong-v5"): {"epsilon_initial": 1.0, "epsilon_final": 0.001, "epsilon_env_steps": 1_000_000},
    ("pqn", "CartPole-v1"): {"epsilon_final": 0.05, "epsilon_env_steps": 50_000},
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
    """A preset or a person may give another number of steps; with 0 the learning rate is constant."""
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
        ("CartPole-v1,gymnasium:CartPole-v1", "tasks"),
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
        config = preset.config | ({"torso": "nature"} if preset.config.get("torso") == presets.FITTING else {})
        config = run.agent_module(agent).Config(**config)
        values = {"agent": agent, "env": "CartPole-v1"} | preset.run
        settings.check(run.Run(**settings.complete(values), config=config))


KINDS = [
    Kind(suite, side, actions, actions == "factored", num_tasks)
    for suite in ("", "atari", "mujoco.dmc", "mujoco.gym", "minigrid")
    for side in (0, 84)
    for actions in ("discrete", "factored", "continuous")
    for num_tasks in (1, 2)
]


@pytest.mark.parametrize("agent", sorted(presets.PRESETS))
def test_each_preset_is_that_of_some_environment(agent, monkeypatch):
    own = [preset for preset in presets.PRESETS[agent] if isinstance(preset.of, str)]
    for preset in own:
        assert presets.find(agent, preset.of.replace("*", "X")) == preset, preset.of
        if ":" not in preset.of:
            assert presets.find(agent, f"gymnasium:{preset.of.replace('*', 'X')}") == preset, preset.of
    found = []
    for kind in KINDS:
        monkeypatch.setattr(kinds, "kind_of", lambda *_, kind=kind: kind)
        found.append(presets.find(agent, "X,Y" if kind.num_tasks > 1 else "X"))
    fitting = [f._replace(config=f.config | {"torso": presets.FITTING}) for f in found]
    for preset in presets.PRESETS[agent]:
        assert preset in (*own, *found, *fitting), preset


@pytest.mark.parametrize("agent", sorted(presets.PRESETS))
def test_what_says_whether_a_flag_says_something_is_alike_in_all_presets_of_an_agent(agent):
    """All presets of an agent agree on the settings that decide whether a flag has an effect, so that a flag without
    effect is refused before an environment is made."""
    first, *others = presets.of(agent)[:-1]
    for name in ("travels", "population", "carrier", "placement"):
        assert all(preset.run.get(name) == first.run.get(name) for preset in others)


@pytest.mark.parametrize(
    ("side", "torso"), [(84, "nature"), (36, "nature"), (35, "shallow"), (20, "shallow"), (19, "mlp")]
)
def test_frames_get_the_largest_torso_that_they_fit(side, torso, monkeypatch):
    monkeypatch.setattr(kinds, "kind_of", lambda *_: Kind("", side, "discrete", False, 1))
    assert LEAST_SIDES["nature"] == 36 and LEAST_SIDES["shallow"] == 20
    for agent in SEEING:
        assert presets.find(agent, "X").config["torso"] == torso


def test_only_what_goes_by_kind_looks_at_the_environment(monkeypatch):
    monkeypatch.setattr(kinds, "kind_of", None)
    assert presets.find("impala", "gymnasium:Pendulum-v1") == presets.find("impala", "Pendulum-v1")
    with pytest.raises(TypeError):
        presets.find("impala", "gymnasium:my_module:Pendulum-v1")


# Environments of every kind -> (their actions, the shorter side of their frames in pixels; 0: no frames).
ENVIRONMENTS = {
    "Pong-v5": ("discrete", 84),
    "gymnasium:tests.launchers.plain_environments:Grey84-v0": ("discrete", 84),
    "gymnasium:tests.launchers.plain_environments:Colour24-v0": ("factored", 24),
    "gymnasium:tests.launchers.plain_environments:Colour36-v0": ("continuous", 36),
    "gymnasium:tests.launchers.plain_environments:Grey12-v0": ("discrete", 12),
    "gymnasium:tests.launchers.plain_environments:Factored-v0": ("factored", 0),
    "gymnasium:tests.launchers.plain_environments:Continuous-v0": ("continuous", 0),
    "Acrobot-v1": ("discrete", 0),
    "gymnasium:FrozenLake-v1": ("discrete", 0),
    "MiniGrid-Empty-5x5-v0": ("discrete", 0),
    "CartPole-v1,gymnasium:CartPole-v1": ("discrete", 0),
    "Ant-v5": ("continuous", 0),
    "CheetahRun-v1": ("continuous", 0),
    "binned:3:CheetahRun-v1": ("factored", 0),
}
SEEING = sorted(agent for agent in presets.PRESETS if "torso" in configs.fields(agent))
CONTINUOUS = {"ddpg", "td3", "d4pg", "dpg", "apex_dpg", "mpo", "dmpo"}
EITHER = {"a2c", "a3c", "actor_critic", "actor_critic_lambda", "impala", "mix_match", "off_pac", "ppo", "ppo_rnd"}
EITHER |= {"reinforce", "reinforce_baseline", "trpo", "vmpo"}
UNFACTORED = {"sac"}
# Agents that ask for what no preset can know of an environment -> the field: the observations' bounds, or the steps of
# the longest episode.
ASKING = {
    "dpg": "observation_low",
    "off_pac": "observation_low",
    "reinforce": "max_episode_steps",
    "reinforce_baseline": "max_episode_steps",
    "all_actions": "max_episode_steps",
}


def fits(agent: str, actions: str, side: int) -> bool:
    taken = {"continuous"} if agent in CONTINUOUS else {"discrete"}
    taken |= {"continuous"} if agent in UNFACTORED else set()
    return actions in ({"discrete", "factored", "continuous"} if agent in EITHER else taken) and (
        not side or agent in SEEING
    )


@pytest.mark.parametrize("agent", sorted(presets.PRESETS))
def test_each_agent_in_an_environment_of_each_kind_fits_or_is_refused(agent):
    for env, (actions, side) in ENVIRONMENTS.items():
        try:
            made = run.make(agent, env, {}, {})
            made.check_fit(made.num_replay_servers)
        except settings.UsageError as error:
            assert "\n" not in str(error), error
            asked = any(words in str(error) for words in (ASKING.get(agent, "smaller --config"), "multiple of the 2"))
            assert asked or not fits(agent, actions, side), f"{agent} in {env}: {error}"
            continue
        assert fits(agent, actions, side), f"{agent} learns {env}"
        config = made.config
        if agent in SEEING:
            least = LEAST_SIDES.get(config.torso, 0)
            assert least <= side and (config.torso == "mlp") == (side < LEAST_SIDES["shallow"]), f"{agent} in {env}"
            assert (config.frame_stack > 1) == (side > 0), f"{agent} in {env}"
        if side:
            assert made.max_env_steps >= 2_500_000, f"{agent} stops learning {env} after {made.max_env_steps}"
        if actions == "continuous" and "entropy_cost" in configs.fields(agent):
            assert config.entropy_cost <= 1e-3, f"{agent} has {env}'s actions at random"
