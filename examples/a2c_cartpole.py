"""A2C on CartPole-v1: the same run as configs/a2c_cartpole.yaml, in Python.

python examples/a2c_cartpole.py
"""

from pytorch_lightning import seed_everything

from rl_lightning import A2C, RLModule, Trainer
from rl_lightning.callbacks import BestAgent, Evaluation, LinearInterpolation
from rl_lightning.envs import GymEnvModule


def main(max_steps: int = 500_000, seed: int = 0, root: str = ".") -> float:
    """Train, then test the best agent. Returns its mean return over 20 episodes."""
    seed_everything(seed)
    trainer = Trainer(
        max_steps=max_steps,
        steps_per_epoch=25_000,
        default_root_dir=root,
        callbacks=[
            Evaluation(num_episodes=20),
            BestAgent(),
            LinearInterpolation("learning_rate", start_value=7e-4, stop_value=0.0),
        ],
    )
    trainer.fit(RLModule(A2C(lr=7e-4, num_steps=5)), GymEnvModule("CartPole-v1", num_envs=8))
    return trainer.test(ckpt_path="best")[0]["test/mean"]


if __name__ == "__main__":
    main()
