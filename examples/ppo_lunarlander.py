"""PPO on LunarLander-v3 (extra box2d): the same run as configs/ppo_lunarlander.yaml, in Python.

python examples/ppo_lunarlander.py
"""

from pytorch_lightning import seed_everything

from rl_lightning import PPO, RLModule, Trainer
from rl_lightning.callbacks import BestAgent, Evaluation
from rl_lightning.envs import GymEnvModule


def main(max_steps: int = 1_000_000, seed: int = 0, root: str = ".") -> float:
    """Train, then test the best agent. Returns its mean return over 20 episodes."""
    seed_everything(seed)
    agent = PPO(
        num_steps=1024, num_epochs=4, num_minibatches=256, discount=0.999, trace_decay=0.98, entropy_weight=0.01
    )
    trainer = Trainer(
        max_steps=max_steps,
        steps_per_epoch=50_000,
        default_root_dir=root,
        callbacks=[Evaluation(num_episodes=20), BestAgent()],
    )
    trainer.fit(RLModule(agent), GymEnvModule("LunarLander-v3", num_envs=16))
    return trainer.test(ckpt_path="best")[0]["test/mean"]


if __name__ == "__main__":
    main()
