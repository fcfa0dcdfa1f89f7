"""PPO on Pendulum-v1: the same run as configs/ppo_pendulum.yaml, in Python.

python examples/ppo_pendulum.py
"""

from pytorch_lightning import seed_everything

from rl_lightning import PPO, RLModule, Trainer
from rl_lightning.callbacks import BestAgent, Evaluation
from rl_lightning.envs import GymEnvModule


def main(max_steps: int = 200_000, seed: int = 0, root: str = ".") -> float:
    """Train, then test the best agent. Returns its mean return over 20 episodes."""
    seed_everything(seed)
    agent = PPO(lr=1e-3, num_steps=1024, num_epochs=10, num_minibatches=64, discount=0.9, trace_decay=0.95)
    trainer = Trainer(
        max_steps=max_steps,
        steps_per_epoch=20_000,
        default_root_dir=root,
        callbacks=[Evaluation(num_episodes=20), BestAgent()],
    )
    trainer.fit(RLModule(agent), GymEnvModule("Pendulum-v1", num_envs=4))
    return trainer.test(ckpt_path="best")[0]["test/mean"]


if __name__ == "__main__":
    main()
