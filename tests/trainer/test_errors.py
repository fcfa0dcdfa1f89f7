"""Bad input gets a clear error, before any work is lost."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint

from rl_lightning import DQN, PPO, Agent, ConfigurationError, EnvError, NonFiniteError, RLModule, Trainer
from rl_lightning.callbacks import Evaluation
from rl_lightning.envs import GymEnvModule
from tests.trainer.helpers import quiet, small_dqn, small_ppo


def fit(agent, env, **arguments):
    trainer = Trainer(**{"max_steps": 64, **quiet(), **arguments})
    trainer.fit(agent, env)
    return trainer


class Box1(gym.Env):
    """One observation number, two actions, never ends; subclasses break something."""

    observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self):
        self.num_steps = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.num_steps += 1
        return np.zeros(1, np.float32), 0.0, False, False, {}


class NanObs(Box1):
    def step(self, action):
        obs, *rest = super().step(action)
        return (obs * np.nan if self.num_steps == 5 else obs), *rest


class InfReward(Box1):
    def step(self, action):
        obs, _, *rest = super().step(action)
        return obs, np.inf if self.num_steps == 5 else 0.0, *rest


class WrongShape(Box1):
    def reset(self, *, seed=None, options=None):
        return np.zeros(3, np.float32), {}


class WrongDtype(Box1):
    def reset(self, *, seed=None, options=None):
        return np.array(["a"]), {}


class OldStep(Box1):
    def step(self, action):
        return np.zeros(1, np.float32), 0.0, False, {}


class NanLoss(DQN):
    def update(self, batch, step):
        step("q", next(self.network.parameters()).sum() * float("nan"))


class NoOptimizer(DQN):
    def configure_optimizers(self):
        return {}


class WildAction(DQN):
    def act(self, obs, *, explore):
        return torch.full((len(obs),), 7), {}


class Rogue(DQN):
    def update(self, batch, step):
        step("actor", next(self.network.parameters()).sum())


@pytest.mark.parametrize(
    ("agent", "env", "error", "match"),
    [
        (PPO, "CartPole-v9", ConfigurationError, "CartPole-v1"),
        (PPO, "CratPole-v1", ConfigurationError, "CartPole-v1"),
        (PPO, 7, ConfigurationError, "int is no env"),
        (small_ppo, OldStep, EnvError, "old gym"),
        (small_ppo, NanObs, NonFiniteError, r"(?s)observation.*step 5|step 5.*observation"),
        (small_ppo, InfReward, NonFiniteError, r"(?s)reward.*step 5|step 5.*reward"),
        (small_ppo, WrongShape, EnvError, r"\(3,\)"),
        (small_ppo, WrongDtype, EnvError, "dtype|<U1"),
        (lambda: NanLoss(learning_starts=64, batch_size=4), Box1, None, ""),
        (lambda: NanLoss(learning_starts=8, batch_size=4), Box1, NonFiniteError, r"loss 'q' is nan at env step 12"),
        (NoOptimizer, Box1, ConfigurationError, "no optimizer"),
        (WildAction, Box1, EnvError, "7"),
        (lambda: Rogue(learning_starts=8, batch_size=4), Box1, ConfigurationError, "'actor'.*only: q"),
        (DQN, "Pendulum-v1", ConfigurationError, r"(?s)DQN.*Discrete.*Box"),
        (lambda: DQN(batch_size=100, buffer_size=10), "CartPole-v1", ConfigurationError, "100"),
        (lambda: "PPO", "CartPole-v1", ConfigurationError, "str is no agent"),
    ],
)
def test_bad_agents_and_envs(agent, env, error, match):
    if error is None:
        assert fit(agent(), env).global_step == 64
    else:
        with pytest.raises(error, match=match):
            fit(agent(), env)


def test_no_env():
    with pytest.raises(ConfigurationError, match="No env"):
        Trainer(max_steps=10, **quiet()).fit(PPO())


def test_no_agent():
    with pytest.raises(ConfigurationError, match="No agent"):
        Trainer(**quiet()).test()


def test_env_twice():
    with pytest.raises(ConfigurationError, match="not both"):
        Trainer(max_steps=10, **quiet()).fit(PPO(), "CartPole-v1", datamodule=GymEnvModule("CartPole-v1"))


def test_agent_built_for_another_env():
    module = RLModule(small_ppo())
    fit(module, "CartPole-v1")
    with pytest.raises(ConfigurationError, match="built for"):
        fit(module, "Acrobot-v1")


def test_sync_with_several_envs():
    with pytest.raises(ConfigurationError, match="num_envs=4"):
        fit(small_ppo(), GymEnvModule("CartPole-v1", num_envs=4), strategy="sync")


@pytest.mark.parametrize("monitor", ["eval/maen", "val_loss", "return"])
@pytest.mark.parametrize("callback", [EarlyStopping, ModelCheckpoint])
def test_monitor_that_nobody_logs(callback, monitor):
    with pytest.raises(ConfigurationError, match=f"{monitor}.*nobody logs.*eval/mean"):
        fit(small_ppo(), "CartPole-v1", **quiet(callback(monitor=monitor, mode="max"), Evaluation()))


def test_monitor_of_an_evaluation_that_is_not_there():
    with pytest.raises(ConfigurationError, match="nothing is evaluated"):
        fit(small_ppo(), "CartPole-v1", **quiet(EarlyStopping(monitor="eval/mean", mode="max")))


def test_monitor_that_the_users_module_logs_is_let_through():
    class Own(RLModule):
        def on_train_epoch_end(self):
            self.log("mine", 1.0)

    fit(Own(small_ppo()), "CartPole-v1", **quiet(EarlyStopping(monitor="mine", mode="max")))


def test_a_bare_env_that_cannot_be_made_again_for_evaluation():
    with pytest.raises(ConfigurationError, match="factory"):
        fit(small_ppo(), Box1(), **quiet(Evaluation(num_episodes=1)))


def test_a_registered_bare_env_is_made_again_for_evaluation():
    env = gym.make("CartPole-v1")
    trainer = fit(small_ppo(), env, **quiet(Evaluation(num_episodes=1)))
    assert trainer.callback_metrics["eval/mean"] > 0
    env.reset()  # still the user's own, and open


@pytest.mark.parametrize("error", [ValueError, StopIteration, KeyError])
def test_what_an_env_raises_comes_through(error):
    class Broken(Box1):
        def step(self, action):
            raise error("sensor unplugged")

    with pytest.raises(error, match="sensor unplugged"):
        fit(small_ppo(), Broken)


def test_envs_are_closed_after_an_error():
    closed = []

    class Closing(NanObs):
        def close(self):
            closed.append(True)

    with pytest.raises(NonFiniteError):
        fit(small_ppo(), Closing)
    assert closed


def test_unknown_agent_in_a_checkpoint(tmp_path):
    class Passing(DQN):
        """Known only for as long as this test runs."""

    trainer = fit(Passing(learning_starts=8, batch_size=4), "CartPole-v1")
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    del Agent.registry["Passing"]
    with pytest.raises(ConfigurationError, match=r"'Passing'.*Import the module.*Known: .*PPO"):
        RLModule.load_from_checkpoint(tmp_path / "a.ckpt")
    assert RLModule.load_from_checkpoint(tmp_path / "a.ckpt", agent=Passing()).built


def test_a_file_that_is_no_checkpoint_of_ours(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(ConfigurationError, match="no rl_lightning checkpoint"):
        RLModule.load_from_checkpoint(tmp_path / "other.ckpt")


def test_a_checkpoint_with_code_in_it_is_refused(tmp_path):
    ran = tmp_path / "ran"

    class Bomb:
        def __reduce__(self):
            return ran.touch, ()

    trainer = fit(small_dqn(), "CartPole-v1")
    trainer.save_checkpoint(tmp_path / "good.ckpt")
    checkpoint = torch.load(tmp_path / "good.ckpt", weights_only=True)
    torch.save({**checkpoint, "bomb": Bomb()}, tmp_path / "bad.ckpt")
    for load in (
        lambda: RLModule.load_from_checkpoint(tmp_path / "bad.ckpt"),
        lambda: Trainer(max_steps=64, **quiet()).fit(small_dqn(), "CartPole-v1", ckpt_path=tmp_path / "bad.ckpt"),
        lambda: Trainer(**quiet()).validate(small_dqn(), "CartPole-v1", ckpt_path=tmp_path / "bad.ckpt"),
    ):
        with pytest.raises(Exception, match="weights_only|Weights only"):
            load()
    assert not ran.exists()
