"""Agents that are trained from the command line reach the returns that docs/results states."""

import pytest

from launchers import settings
from runtime import metrics
from tests.launchers import command_line

pytestmark = pytest.mark.timeout(900)  # enough on slow cores beside other tests: steps, not time, end a training


def evaluation(logdir, *arguments: str) -> float:
    """Trains an agent, and returns the mean return of 100 episodes of its last parameters (of a population, of each
    member), played as its preset says.

    The run evaluates nothing else, because on few cores evaluations take their time from the training.
    """
    once = ("--eval_episodes=100", f"--eval_period={settings.STEPS}")
    code, output = command_line.run("train", f"--logdir={logdir}", *once, *arguments, timeout=800.0)
    assert code == 0, output
    row = metrics.latest(logdir, "evaluator")
    assert row["episodes"] % 100 == 0 and row["env_steps"] >= metrics.latest(logdir, "learner")["env_steps"]
    return row["return_mean"]


@pytest.mark.learn
def test_impala_learns_cartpole(tmp_path):
    assert evaluation(tmp_path, "--agent=impala", "--env=CartPole-v1") >= 475


@pytest.mark.learn
def test_a2c_learns_cartpole(tmp_path):
    assert evaluation(tmp_path, "--agent=a2c", "--env=CartPole-v1") >= 475


@pytest.mark.learn
def test_impala_learns_catch(tmp_path):
    assert evaluation(tmp_path, "--agent=impala", "--env=Catch-v0") >= 0.95


@pytest.mark.learn
def test_impala_learns_acrobot_without_flags(tmp_path):
    """Acrobot's returns go down to -500, and no preset scales its rewards by hand."""
    assert evaluation(tmp_path, "--agent=impala", "--env=Acrobot-v1") >= -100


@pytest.mark.learn
def test_d4pg_learns_pendulum(tmp_path):
    arguments = ("--agent=d4pg", "--env=Pendulum-v1", "--config.replay=prioritized", "--max_env_steps=10000")
    assert evaluation(tmp_path, *arguments) >= -250


@pytest.mark.learn
def test_ddpg_learns_pendulum_from_a_replay_on_its_devices(tmp_path):
    arguments = ("--agent=ddpg", "--env=Pendulum-v1", "--carrier=local", "--max_env_steps=10000")
    assert evaluation(tmp_path, *arguments) >= -250


@pytest.mark.learn
def test_td3_learns_pendulum(tmp_path):
    arguments = ("--agent=td3", "--env=Pendulum-v1", "--carrier=local", "--max_env_steps=15000")
    assert evaluation(tmp_path, *arguments) >= -200


@pytest.mark.learn
def test_sac_learns_pendulum(tmp_path):
    arguments = ("--agent=sac", "--env=Pendulum-v1", "--carrier=local", "--max_env_steps=8000")
    assert evaluation(tmp_path, *arguments) >= -200


@pytest.mark.learn
@pytest.mark.parametrize("agent", ["mpo", "dmpo"])
def test_mpo_learns_pendulum_with_either_critic(tmp_path, agent):
    arguments = (f"--agent={agent}", "--env=Pendulum-v1", "--carrier=local", "--max_env_steps=15000")
    assert evaluation(tmp_path, *arguments) >= -200


@pytest.mark.learn
def test_vmpo_learns_catch(tmp_path):
    arguments = ("--agent=vmpo", "--env=Catch-v0", "--carrier=local", "--max_env_steps=50000")
    assert evaluation(tmp_path, *arguments) >= 0.95


@pytest.mark.learn
def test_sac_of_discrete_actions_learns_catch(tmp_path):
    arguments = ("--agent=sac", "--env=Catch-v0", "--carrier=local", "--max_env_steps=20000")
    assert evaluation(tmp_path, *arguments) >= 0.95


@pytest.mark.learn
@pytest.mark.parametrize(
    "agent, steps",
    [
        *(("q_learning", 120_000), ("prioritized_dqn", 40_000), ("r2d2", 75_000)),
        *(("c51", 25_000), ("rainbow", 20_000), ("qr_dqn", 20_000), ("iqn", 25_000), ("munchausen_dqn", 20_000)),
    ],
)
def test_value_based_agents_learn_catch(tmp_path, agent, steps):
    assert evaluation(tmp_path, f"--agent={agent}", "--env=Catch-v0", f"--max_env_steps={steps}") >= 0.95


@pytest.mark.learn
def test_an_intrinsic_reward_finds_the_extrinsic_one(tmp_path):
    """PPO alone does not find the extrinsic reward."""
    arguments = ("--agent=ppo_rnd", "--env=gymnasium:environments.textbook:OpenLake-v0", "--carrier=local")
    assert evaluation(tmp_path / "with", *arguments) >= 0.95
    assert evaluation(tmp_path / "without", *arguments, "--config.intrinsic_coefficient=0") == 0


@pytest.mark.learn
@pytest.mark.parametrize(("env", "least"), [("CartPole-v1", 475), ("Catch-v0", 0.95)])
def test_pqn_learns(tmp_path, env, least):
    assert evaluation(tmp_path, "--agent=pqn", f"--env={env}", "--carrier=local") >= least


@pytest.mark.learn
@pytest.mark.parametrize("agent", ["actor_critic_lambda", "reinforce_baseline"])
def test_policy_gradients_learn_cartpole(tmp_path, agent):
    assert evaluation(tmp_path, f"--agent={agent}", "--env=CartPole-v1", "--max_env_steps=200000") >= 475


@pytest.mark.learn
@pytest.mark.parametrize("agent", ["actor_critic_lambda", "reinforce"])
def test_policy_gradients_of_continuous_actions_balance_a_pendulum(tmp_path, agent):
    assert evaluation(tmp_path, f"--agent={agent}", "--env=InvertedPendulum-v4", "--max_env_steps=150000") >= 900


@pytest.mark.learn
def test_off_pac_learns_mountain_car(tmp_path):
    """The behaviour policy reaches the goal in one episode of fifteen."""
    assert evaluation(tmp_path, "--agent=off_pac", "--env=MountainCar-v0") >= -150


@pytest.mark.learn
def test_every_member_of_a_population_learns_catch(tmp_path):
    """Learning rates are drawn from three decades, and most of them are too small."""
    tune = "--tune=learning_rate:log:1e-5:1e-2,entropy_cost:log:1e-3:1e-1"
    arguments = ("--env=Catch-v0", "--population=8", "--population_mode=vmap", tune, "--config.decay_env_steps=0")
    assert evaluation(tmp_path, *arguments, "--max_env_steps=80000", "--eval_period=40000") >= 0.95


@pytest.mark.learn
def test_a_curriculum_of_architectures_learns_catch(tmp_path):
    population = ("--population=4", "--population_mode=vmap", "--tune=alpha:step=0.1:0:1", "--ready_env_steps=2000")
    arguments = ("--agent=mix_match", "--env=Catch-v0", "--max_env_steps=200000", "--eval_period=100000", *population)
    assert evaluation(tmp_path, *arguments, "--exploit=tournament", "--config.evaluate=target") >= 0.95
