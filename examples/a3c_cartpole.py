"""A3C with 2 workers on CartPole-v1: the same run as configs/a3c_cartpole.yaml, in Python.

python examples/a3c_cartpole.py
"""

from pytorch_lightning import seed_everything

from rl_lightning import A2C, RLModule, Trainer
from rl_lightning.callbacks import BestAgent, Evaluation, LinearInterpolation
from rl_lightning.envs import GymEnvModule
from rl_lightning.strategies import AsyncStrategy


def main(max_steps: int = 200_000, seed: int = 0, root: str = ".") -> float:
    """Train, then test the best agent. Returns its mean return over 20 episodes."""
    seed_everything(seed)
    trainer = Trainer(
        max_steps=max_steps,
        steps_per_epoch=20_000,
        default_root_dir=root,
        strategy=AsyncStrategy(num_workers=2),
        callbacks=[
            Evaluation(num_episodes=20),
            BestAgent(),
            LinearInterpolation("learning_rate", start_value=1e-3, stop_value=0.0),
        ],
    )
    trainer.fit(RLModule(A2C(lr=1e-3, num_steps=20, trace_decay=0.95)), GymEnvModule("CartPole-v1"))
    return trainer.test(ckpt_path="best")[0]["test/mean"]


if __name__ == "__main__":
    main()
