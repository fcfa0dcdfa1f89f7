"""PPO on CartPole-v1: the same run as configs/ppo_cartpole.yaml, in Python.

python examples/ppo_cartpole.py
"""

from pytorch_lightning import seed_everything

from rl_lightning import PPO, RLModule, Trainer
from rl_lightning.callbacks import BestAgent, Evaluation, LinearInterpolation
from rl_lightning.envs import GymEnvModule


def main(max_steps: int = 100_000, seed: int = 0, root: str = ".") -> float:
    """Train, then test the best agent. Returns its mean return over 20 episodes."""
    seed_everything(seed)
    agent = PPO(lr=1e-3, num_steps=32, num_epochs=20, num_minibatches=1, discount=0.98, trace_decay=0.8)
    trainer = Trainer(
        max_steps=max_steps,
        steps_per_epoch=10_000,
        default_root_dir=root,
        callbacks=[
            Evaluation(num_episodes=20),
            BestAgent(),
            LinearInterpolation("learning_rate", start_value=1e-3, stop_value=0.0),
            LinearInterpolation("clip_range", start_value=0.2, stop_value=0.0),
        ],
    )
    trainer.fit(RLModule(agent), GymEnvModule("CartPole-v1", num_envs=8))
    return trainer.test(ckpt_path="best")[0]["test/mean"]


if __name__ == "__main__":
    main()
