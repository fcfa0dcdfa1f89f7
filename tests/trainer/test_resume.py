"""Training that goes on from a checkpoint ends as if it had never stopped: bit for bit."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from rl_lightning import A2C, DDPG, DQN, PPO, REINFORCE, SAC, TD3, TRPO, RLModule, Trainer
from rl_lightning.callbacks import BestAgent, Checkpoint, Evaluation
from rl_lightning.callbacks.evaluation import read_scores
from rl_lightning.envs import GymEnvModule
from rl_lightning.resume_check import final_state, first_difference

SMALL = {"hidden_sizes": (8,)}
REPLAY = {**SMALL, "buffer_size": 200, "batch_size": 8, "learning_starts": 40}
AGENTS = {
    "ppo": partial(
        PPO, num_steps=16, num_epochs=3, num_minibatches=4, normalize_obs=True, normalize_reward=True, **SMALL
    ),
    "a2c": partial(A2C, **SMALL),
    "trpo": partial(TRPO, num_steps=16, **SMALL),
    "reinforce": partial(REINFORCE, num_episodes=3, **SMALL),
    "dqn": partial(DQN, epsilon_steps=200, target_update_every=7, **REPLAY),
    "rainbow": partial(
        DQN,
        prioritized=True,
        noisy=True,
        dueling=True,
        double=True,
        num_steps=3,
        distribution="categorical",
        value_range=[0.0, 50.0],
        num_atoms=11,
        **REPLAY,
    ),
    "sac": partial(SAC, **REPLAY),
    "td3": partial(TD3, **REPLAY),
    "ddpg": partial(DDPG, noise="ornstein_uhlenbeck", **REPLAY),
}
CONTINUOUS = {"sac", "td3", "ddpg"}


class SaveAt(pl.callbacks.Checkpoint):
    """Save once, in one hook, as soon as the clock has reached a step."""

    def __init__(self, path, hook, step):
        self.path, self.hook, self.step, self.done = path, hook, step, False
        if hook is not None:
            setattr(self, hook, self.save)

    def save(self, trainer, module, *args):
        if not self.done and trainer.global_step >= self.step and not trainer.sanity_checking:
            self.done = True
            trainer.save_checkpoint(self.path)


class Rewards(pl.Callback):
    """What training sees."""

    def __init__(self):
        self.seen = []

    def on_env_step(self, trainer, module, transition):
        self.seen.append((trainer.global_step, transition.reward.tolist(), np.asarray(transition.action).tolist()))


def run(root, agent, env, *, max_steps, saver=None, ckpt_path=None, seed=3, **arguments):
    if ckpt_path is None:
        pl.seed_everything(seed, verbose=False)
    else:  # whatever they are, the checkpoint knows better
        torch.manual_seed(99)
        np.random.seed(99)
    module, rewards = RLModule(agent), Rewards()
    evaluation = Evaluation(2, every_n_steps=90)
    trainer = Trainer(
        max_steps=max_steps,
        default_root_dir=root,
        callbacks=[rewards, evaluation, *([saver] if saver is not None else [])],
        logger=pl.loggers.TensorBoardLogger(root, name="", version=""),
        enable_checkpointing=saver is not None,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        **{"steps_per_epoch": 150, "log_every_n_steps": 50, **arguments},
    )
    trainer.fit(module, env, ckpt_path=ckpt_path)
    return trainer, rewards.seen


def final(trainer):
    """All that is known at the end; but some generators within envs are never seeded, nor drawn from."""
    state = final_state(trainer)
    gathering = state["gathering"]
    return {**state, "gathering": {**gathering, "envs": gathering["envs"]["pool"]}}


def check(tmp_path, make_agent, env, hook="on_train_batch_end", step=170, max_steps=400, **arguments):
    straight, seen = run(tmp_path / "straight", make_agent(), env(), max_steps=max_steps, **arguments)
    saver = SaveAt(tmp_path / "saved.ckpt", hook, step)
    interrupted, _ = run(tmp_path / "other", make_agent(), env(), max_steps=max_steps, saver=saver, **arguments)
    assert saver.done
    assert first_difference(final(straight), final(interrupted)) is None  # saving leaves no trace
    resumed, seen_later = run(
        tmp_path / "other", make_agent(), env(), max_steps=max_steps, ckpt_path=saver.path, seed=4, **arguments
    )
    assert first_difference(final(straight), final(resumed)) is None
    assert len(seen_later) < len(seen)
    assert seen[len(seen) - len(seen_later) :] == seen_later
    return straight, resumed


def env_of(name, num_envs):
    return lambda: GymEnvModule("Pendulum-v1" if name in CONTINUOUS else "CartPole-v1", num_envs=num_envs)


MORE = (pytest.mark.slow, pytest.mark.ci)


@pytest.mark.parametrize("num_envs", [1, pytest.param(3, marks=MORE)])
@pytest.mark.parametrize("name", AGENTS)
def test_every_agent_goes_on_bit_for_bit(name, num_envs, tmp_path):
    check(tmp_path, AGENTS[name], env_of(name, num_envs))


HOOKS = ["on_env_step", "on_train_batch_end", "on_env_step_end", "on_validation_end", "on_train_epoch_end"]


@pytest.mark.parametrize("step", [150, *(pytest.param(step, marks=MORE) for step in (1, 90, 171))])
@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("name", ["ppo", pytest.param("dqn", marks=MORE)])
def test_wherever_it_was_saved(name, hook, step, tmp_path):
    check(tmp_path, AGENTS[name], env_of(name, 1), hook=hook, step=step)


@pytest.fixture
def rows_in_files(monkeypatch):
    """As if every replay memory were a large one."""
    monkeypatch.setattr("rl_lightning._lightning.resume.FEW_BYTES", 0)


@pytest.mark.usefixtures("rows_in_files")
@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("name", ["dqn", "rainbow", pytest.param("sac", marks=MORE)])
def test_memories_whose_rows_are_in_files(name, num_envs, tmp_path):
    check(tmp_path, AGENTS[name], env_of(name, num_envs), step=270)
    assert list((tmp_path / "memory").glob("rows-*.npy"))


@pytest.mark.parametrize("hook", ["on_env_step", "on_train_batch_end"])
def test_in_replay_warm_up_and_right_before_the_end(hook, tmp_path):
    check(tmp_path / "early", AGENTS["dqn"], env_of("dqn", 2), hook="on_env_step", step=20)
    check(tmp_path / "late", AGENTS["dqn"], env_of("dqn", 2), hook=hook, step=398)


def test_schedules_accumulated_gradients_and_short_epochs(tmp_path):
    check(tmp_path / "1", AGENTS["dqn"], env_of("dqn", 1), accumulate_grad_batches=4)
    check(tmp_path / "2", AGENTS["ppo"], env_of("ppo", 2), limit_train_batches=5)


IN_CI = {"td3", "ppo", "dqn"}


def some_in_ci(*names):
    return [pytest.param(name, marks=MORE if name.split(",")[0] in IN_CI else pytest.mark.slow) for name in names]


@pytest.mark.parametrize("num_envs", [1, 2])
@pytest.mark.parametrize("env_id", ["Pendulum-v1", "HalfCheetah-v5", "Hopper-v5"])
@pytest.mark.parametrize("name", some_in_ci("ppo", "a2c", "trpo", "reinforce", "sac", "td3", "ddpg"))
def test_continuous_control(name, env_id, num_envs, tmp_path):
    if env_id != "Pendulum-v1":
        pytest.importorskip("mujoco")
    check(tmp_path, AGENTS[name], lambda: GymEnvModule(env_id, num_envs=num_envs, max_episode_len=45))


@pytest.mark.slow
@pytest.mark.parametrize("num_envs", [1, 2])
def test_sac_with_discrete_actions(num_envs, tmp_path):
    check(tmp_path, AGENTS["sac"], lambda: GymEnvModule("CartPole-v1", num_envs=num_envs))


PIXELS = {"buffer_size": 300, "batch_size": 4, "learning_starts": 60, "update_every": 4, "updates_per_step": 0.25}
FROM_PIXELS = {
    "ppo": partial(PPO, num_steps=16, num_epochs=1, num_minibatches=2),
    "a2c": A2C,
    "trpo": partial(TRPO, num_steps=16),
    "reinforce": partial(REINFORCE, num_episodes=2),
    "dqn": partial(DQN, **PIXELS),
    "rainbow": partial(DQN, prioritized=True, noisy=True, num_steps=3, **PIXELS),
    "sac": partial(SAC, **PIXELS),
}
REPLAYING = ("dqn", "rainbow", "sac")


@pytest.mark.parametrize("num_envs", [1, 2])
@pytest.mark.parametrize("name", some_in_ci(*FROM_PIXELS, *(f"{name}, rows in files" for name in REPLAYING)))
def test_atari_with_stacked_frames(name, num_envs, tmp_path, monkeypatch):
    name, *in_files = name.split(", ")
    if in_files:
        monkeypatch.setattr("rl_lightning._lightning.resume.FEW_BYTES", 0)
    pytest.importorskip("ale_py")
    pytest.importorskip("cv2")
    wrappers = [
        partial(gym.wrappers.AtariPreprocessing, frame_skip=4, noop_max=10),
        partial(gym.wrappers.FrameStackObservation, stack_size=4),
    ]

    def env():
        return GymEnvModule(
            "ALE/Pong-v5", num_envs=num_envs, env_kwargs={"frameskip": 1}, wrappers=wrappers, max_episode_len=90
        )

    check(tmp_path, FROM_PIXELS[name], env, step=120, max_steps=200)


@pytest.mark.parametrize("vectorization", [pytest.param("async", marks=MORE), "vector_entry_point"])
def test_vectorizations(vectorization, tmp_path):
    check(tmp_path, AGENTS["ppo"], lambda: GymEnvModule("CartPole-v1", num_envs=2, vectorization=vectorization))


def test_scores_and_curves_of_both_runs_are_the_same(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    check(tmp_path, AGENTS["ppo"], env_of("ppo", 2), hook="on_validation_end", step=180)
    straight, resumed = (read_scores(tmp_path / name / "scores.txt") for name in ("straight", "other"))
    timeless = [[{k: v for k, v in row.items() if k != "elapsed"} for row in rows] for rows in (straight, resumed)]
    assert timeless[0] == timeless[1]
    assert len(straight) > 3
    curves = []
    for name in ("straight", "other"):
        events = EventAccumulator(str(tmp_path / name), size_guidance={"scalars": 0}).Reload()
        tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith(("time/", "hp_"))]
        curves.append({tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags})
    assert curves[0] == curves[1]


@pytest.mark.filterwarnings("ignore:Checkpoints cannot hold")
def test_envs_that_cannot_be_saved_begin_new_episodes(tmp_path):
    pytest.importorskip("Box2D")
    saver = SaveAt(tmp_path / "saved.ckpt", "on_env_step_end", 130)
    env = partial(GymEnvModule, "LunarLander-v3")
    with pytest.warns(UserWarning, match="cannot hold the state of the envs: .*LunarLander"):
        run(tmp_path / "a", AGENTS["dqn"](), env(), max_steps=200, saver=saver)
    saved = torch.load(saver.path, weights_only=True)["rl_lightning_run"]
    assert not saved["gathering"]["envs"]
    resumed, seen = run(tmp_path / "b", AGENTS["dqn"](), env(), max_steps=200, ckpt_path=saver.path)
    assert seen[0][0] == 131
    rows = resumed.memory.state_dict()["table"]["rows"]
    assert rows["truncated"][129].item()


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_the_best_agent_and_its_score_are_kept(tmp_path):
    def callbacks():
        return [
            Evaluation(2, every_n_steps=50),
            BestAgent(dirpath=tmp_path),
            Checkpoint(tmp_path, every_n_train_steps=100, save_top_k=-1),
        ]

    pl.seed_everything(0, verbose=False)
    arguments = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = Trainer(max_steps=300, callbacks=callbacks(), **arguments)
    trainer.fit(AGENTS["dqn"](), "CartPole-v1")

    def best(trainer):
        return next(callback for callback in trainer.callbacks if isinstance(callback, BestAgent)).best_model_score

    score = best(trainer)
    resumed = Trainer(max_steps=301, callbacks=callbacks(), **arguments)
    resumed.fit(AGENTS["dqn"](), "CartPole-v1", ckpt_path=sorted(tmp_path.glob("*step=*"))[-1])
    assert best(resumed) >= score


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_a_best_agent_that_is_damaged_does_not_keep_the_run_from_going_on(tmp_path):
    def run(max_steps, ckpt_path=None):
        best = BestAgent(dirpath=tmp_path)
        saving = Checkpoint(tmp_path, filename="last")
        arguments = {"logger": False, "enable_progress_bar": False, "accelerator": "cpu"}
        trainer = Trainer(max_steps=max_steps, callbacks=[Evaluation(1, every_n_steps=50), best, saving], **arguments)
        trainer.fit(AGENTS["dqn"](), "CartPole-v1", ckpt_path=ckpt_path)
        return Path(best.best_model_path)

    path = run(100)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.warns(UserWarning, match=rf"The best agent so far is lost: .*{path.name} cannot be read"):
        later = run(150, tmp_path / "last.ckpt")
    assert later.is_file()
