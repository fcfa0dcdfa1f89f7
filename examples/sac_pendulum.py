"""SAC on Pendulum-v1: the same run as configs/sac_pendulum.yaml, in Python.

python examples/sac_pendulum.py
"""

from pytorch_lightning import seed_everything

from rl_lightning import SAC, RLModule, Trainer
from rl_lightning.callbacks import BestAgent, Evaluation


def main(max_steps: int = 20_000, seed: int = 0, root: str = ".") -> float:
    """Train, then test the best agent. Returns its mean return over 20 episodes."""
    seed_everything(seed)
    agent = SAC(lr=1e-3, learning_starts=100)
    trainer = Trainer(
        max_steps=max_steps,
        steps_per_epoch=2_000,
        default_root_dir=root,
        callbacks=[Evaluation(num_episodes=20), BestAgent()],
    )
    trainer.fit(RLModule(agent), "Pendulum-v1")
    return trainer.test(ckpt_path="best")[0]["test/mean"]


if __name__ == "__main__":
    main()
