"""A new algorithm in one file: advantage-weighted regression (Peng et al., 2019, arXiv:1910.00177), on policy.

python examples/new_algorithm.py
"""

from typing import Any

import gymnasium
import torch
from pytorch_lightning import seed_everything
from torch import Tensor, nn

from rl_lightning import Agent, RLModule, Trainer
from rl_lightning.agents.on_policy import advantages_of_rollout, chosen_action, values_of_rollout
from rl_lightning.callbacks import BestAgent, Evaluation
from rl_lightning.envs import GymEnvModule
from rl_lightning.functional import normalize
from rl_lightning.memory import Memory, RolloutMemory
from rl_lightning.nn import ActorCritic
from rl_lightning.optim import Adam
from rl_lightning.types import Batch, Extras, Metrics, ObsTensor, StepFn


class AdvantageWeighted(Agent):
    """Imitate what was done in the last rollout, the more the better it went: weights exp(advantage / temp)."""

    max_grad_norm = 0.5

    def __init__(self, lr: float = 1e-3, discount: float = 0.99, num_steps: int = 128, temp: float = 0.5) -> None:
        super().__init__()
        self.lr, self.discount, self.num_steps, self.temp = lr, discount, num_steps, temp

    def build(self, observation_space: gymnasium.Space[Any], action_space: gymnasium.Space[Any]) -> None:
        self.network = ActorCritic(observation_space, action_space, hidden_sizes=(64, 64), activation="tanh")

    def act(self, obs: ObsTensor, *, explore: bool) -> tuple[Tensor, Extras]:
        return self.network.act(obs, explore=explore)

    @torch.no_grad()
    def prepare(self, rollout: Batch) -> Batch:
        """Add how much better than expected each action was, its weight, and the return that follows."""
        value = values_of_rollout(self.network, rollout)
        advantage = advantages_of_rollout(self.network, rollout, value, discount=self.discount, trace_decay=0.95)
        weight = (normalize(advantage) / self.temp).exp().clamp(max=20.0)
        return {**rollout, "weight": weight, "return": advantage + value}

    def update(self, batch: Batch, step: StepFn) -> Metrics:
        policy, value = self.network(batch["obs"])
        policy_loss = -(batch["weight"] * policy.log_prob(chosen_action(batch))).mean()
        value_loss = nn.functional.mse_loss(value, batch["return"])
        step("adam", policy_loss + 0.5 * value_loss)
        return {"policy_loss": policy_loss.detach(), "value_loss": value_loss.detach()}

    def configure_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"adam": Adam(self.parameters(), lr=self.lr)}

    def make_memory(self, num_envs: int) -> Memory:
        return RolloutMemory(self.num_steps, num_envs, num_epochs=4, num_minibatches=8, prepare=self.prepare)


def main(max_steps: int = 200_000, seed: int = 0, root: str = ".") -> float:
    """Train it like any other agent. Returns the best agent's mean return over 10 episodes."""
    seed_everything(seed)
    callbacks = [Evaluation(num_episodes=10), BestAgent()]
    trainer = Trainer(max_steps=max_steps, default_root_dir=root, callbacks=callbacks)
    trainer.fit(RLModule(AdvantageWeighted()), GymEnvModule("CartPole-v1", num_envs=8))
    return trainer.test(ckpt_path="best")[0]["test/mean"]


if __name__ == "__main__":
    main()
