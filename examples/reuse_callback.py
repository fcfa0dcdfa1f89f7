"""A callback written for supervised learning, reused unchanged: it logs the norm of the gradients.

python examples/reuse_callback.py
"""

import pytorch_lightning as pl
import torch

from rl_lightning import PPO, RLModule, Trainer
from rl_lightning.callbacks import Evaluation
from rl_lightning.envs import GymEnvModule


class GradientNorm(pl.Callback):
    """Logs the L2 norm of all gradients before each optimizer step. Knows nothing of reinforcement learning."""

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        gradients = [parameter.grad for parameter in pl_module.parameters() if parameter.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack([gradient.norm() for gradient in gradients]))
        pl_module.log("gradient_norm", norm)


def main(max_steps: int = 20_000, root: str = ".") -> float:
    """Train with the callback. Returns the last norm logged."""
    pl.seed_everything(0)
    trainer = Trainer(max_steps=max_steps, default_root_dir=root, callbacks=[Evaluation(), GradientNorm()])
    trainer.fit(RLModule(PPO()), GymEnvModule("CartPole-v1", num_envs=8))
    return trainer.callback_metrics["gradient_norm"].item()


if __name__ == "__main__":
    main()
