"""DQN on CartPole-v1: the same run as configs/dqn_cartpole.yaml, in Python.

python examples/dqn_cartpole.py
"""

from pytorch_lightning import seed_everything

from rl_lightning import DQN, RLModule, Trainer
from rl_lightning.callbacks import BestAgent, Evaluation, LinearInterpolation


def main(max_steps: int = 50_000, seed: int = 0, root: str = ".") -> float:
    """Train, then test the best agent. Returns its mean return over 20 episodes."""
    seed_everything(seed)
    agent = DQN(
        lr=2.3e-3,
        hidden_sizes=(256, 256),
        buffer_size=100_000,
        batch_size=64,
        learning_starts=1_000,
        update_every=256,
        updates_per_step=0.5,
        target_update_every=128,
        final_epsilon=0.04,
        epsilon_steps=8_000,
    )
    trainer = Trainer(
        max_steps=max_steps,
        steps_per_epoch=5_000,
        default_root_dir=root,
        callbacks=[
            Evaluation(num_episodes=20),
            BestAgent(),
            LinearInterpolation("learning_rate", start_value=2.3e-3, stop_value=0.0),
        ],
    )
    trainer.fit(RLModule(agent), "CartPole-v1")
    return trainer.test(ckpt_path="best")[0]["test/mean"]


if __name__ == "__main__":
    main()
