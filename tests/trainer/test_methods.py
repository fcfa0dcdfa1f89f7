"""validate, test and predict; checkpoints in and out."""

import pytest
import pytorch_lightning as pl
import torch

from rl_lightning import DQN, PPO, ConfigurationError, RLModule, Trainer
from rl_lightning.callbacks import BestAgent, Evaluation
from rl_lightning.envs import GymEnvModule
from rl_lightning.evaluation import evaluate
from tests.trainer.helpers import Recorder, quiet, small_dqn, small_ppo


@pytest.fixture
def fitted():
    trainer = Trainer(max_steps=200, **quiet(Evaluation(num_episodes=3), BestAgent()))
    module = RLModule(small_ppo())
    trainer.fit(module, GymEnvModule("CartPole-v1", num_envs=2))
    return trainer, module


def test_validate_and_test_run_the_same_code_with_other_starts(fitted):
    trainer, module = fitted
    pl.seed_everything(3, verbose=False)
    validated = trainer.validate(module, verbose=False)[0]
    assert trainer.validate(module, verbose=False)[0] == validated
    tested = trainer.test(verbose=False, ckpt_path="best")[0]
    names = ["mean", "median", "stdev", "max", "min", "length_mean"]
    assert list(validated) == [f"eval/{name}" for name in names]
    assert list(tested) == [f"test/{name}" for name in names]


def test_validate_without_fit_with_an_agent_and_an_id():
    trainer = Trainer(limit_val_batches=2, limit_test_batches=1, **quiet())
    assert trainer.validate(PPO(), "CartPole-v1", verbose=False)[0]["eval/mean"] > 0
    assert trainer.test(PPO(), "CartPole-v1", verbose=False)[0]["test/stdev"] == 0


def test_hooks_of_test_and_validate(fitted):
    _, module = fitted
    recorder = Recorder("on_test_start", "on_test_batch_end", "on_test_end", "on_validation_batch_end")
    trainer = Trainer(**quiet(recorder, Evaluation(num_episodes=2)))
    trainer.test(module, "CartPole-v1", verbose=False)
    trainer.validate(module, "CartPole-v1", verbose=False)
    assert [name for name, _ in recorder.calls] == [
        "on_test_start",
        "on_test_batch_end",
        "on_test_batch_end",
        "on_test_end",
        "on_validation_batch_end",
        "on_validation_batch_end",
    ]


def test_predict_returns_whole_episodes(fitted):
    _, module = fitted
    trainer = Trainer(limit_predict_batches=3, **quiet())
    episodes = trainer.predict(module, "CartPole-v1")
    assert len(episodes) == 3
    for episode in episodes:
        assert episode.obs.shape == (episode.length + 1, 4)
        assert episode.action.shape == episode.reward.shape == (episode.length,)
        assert episode.return_ == episode.reward.sum()


def test_predict_step_decides_what_is_returned(fitted):
    class Own(RLModule):
        def predict_step(self, episode, batch_idx):
            return batch_idx, episode.length

    module = Own(fitted[1].agent)
    assert module.built
    predictions = Trainer(limit_predict_batches=2, **quiet()).predict(module, "CartPole-v1")
    assert [index for index, _ in predictions] == [0, 1]


@pytest.mark.parametrize("make", [small_ppo, small_dqn, lambda: DQN(dueling=True, double=True, hidden_sizes=(8,))])
def test_load_from_checkpoint_needs_no_env(make, tmp_path):
    trainer = Trainer(max_steps=60, **quiet())
    module = RLModule(make())
    trainer.fit(module, "CartPole-v1")
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    loaded = RLModule.load_from_checkpoint(tmp_path / "a.ckpt")
    assert type(loaded.agent) is type(module.agent)
    assert loaded.agent.init_args == module.agent.init_args
    for ours, theirs in zip(module.state_dict().values(), loaded.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs
    obs = torch.randn(5, 4)
    assert torch.equal(module(obs), loaded(obs))
    assert evaluate(loaded.agent, "CartPole-v1", num_episodes=2, seed=3).returns == (
        evaluate(module.agent, "CartPole-v1", num_episodes=2, seed=3).returns
    )


@pytest.mark.parametrize("make", [small_ppo, small_dqn])
def test_resume_goes_on_from_the_checkpoint(make, tmp_path):
    env = GymEnvModule("CartPole-v1", num_envs=2)
    first = Trainer(max_steps=100, steps_per_epoch=50, **quiet())
    module = RLModule(make())
    first.fit(module, env)
    first.save_checkpoint(tmp_path / "a.ckpt")

    at_start = {}

    class Look(pl.Callback):
        def on_train_start(self, trainer, module):
            at_start["clock"] = (trainer.global_step, trainer.num_updates, trainer.num_episodes, trainer.current_epoch)
            at_start["weights"] = [parameter.detach().clone() for parameter in module.parameters()]
            at_start["moments"] = trainer.optimizers[0].state_dict()["state"][0]["exp_avg"].clone()

    second = Trainer(max_steps=180, steps_per_epoch=50, **quiet(Look()))
    second.fit(RLModule(make()), env, ckpt_path=tmp_path / "a.ckpt")
    assert at_start["clock"] == (100, first.num_updates, first.num_episodes, 2)
    assert all(torch.equal(a, b) for a, b in zip(at_start["weights"], module.parameters(), strict=True))
    assert torch.equal(at_start["moments"], first.optimizers[0].state_dict()["state"][0]["exp_avg"])
    assert second.global_step == 180
    assert second.num_updates > first.num_updates
    assert second.current_epoch == 4  # of 50, 50, 50 and 30 env steps


def test_resume_past_the_budget_does_nothing(tmp_path):
    trainer = Trainer(max_steps=40, **quiet())
    trainer.fit(small_ppo(), "CartPole-v1")
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    again = Trainer(max_steps=40, **quiet())
    again.fit(small_ppo(), "CartPole-v1", ckpt_path=tmp_path / "a.ckpt")
    assert again.global_step == 40
    assert again.num_updates == trainer.num_updates


def test_a_second_fit_goes_on():
    trainer = Trainer(max_steps=40, **quiet())
    module = RLModule(small_ppo())
    trainer.fit(module, "CartPole-v1")
    trainer.fit_loop.epoch_loop.max_steps = 80
    trainer.fit(module, "CartPole-v1")
    assert trainer.global_step == 80


def test_a_checkpoint_holds_only_plain_data_and_tensors(fitted, tmp_path):
    trainer, _ = fitted
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 200
    assert checkpoint["rl_lightning"]["agent"] == "PPO"


def test_module_without_an_agent():
    with pytest.raises(ConfigurationError, match="str is no agent"):
        RLModule("PPO")
