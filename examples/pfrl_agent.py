"""An agent of PFRL's trains unchanged, by its own words and under the Trainer.

pip install pfrl && python examples/pfrl_agent.py
"""

from datetime import datetime

import numpy as np
import pfrl
import torch
from torch import nn

from rl_lightning import Trainer
from rl_lightning.callbacks import BestAgent, Evaluation
from rl_lightning.experiments import LinearInterpolationHook, prepare_output_dir, train_agent_with_evaluation


def make_agent() -> pfrl.agent.Agent:
    head = pfrl.q_functions.DiscreteActionValueHead()
    network = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2), head)
    return pfrl.agents.DQN(
        network,
        torch.optim.Adam(network.parameters(), lr=1e-3),
        pfrl.replay_buffers.ReplayBuffer(100_000),
        0.99,
        pfrl.explorers.LinearDecayEpsilonGreedy(1.0, 0.05, 5_000, lambda: np.random.randint(2)),
        replay_start_size=500,
        target_update_interval=200,
    )


def set_learning_rate(env: object, agent: pfrl.agent.Agent, value: float) -> None:
    for group in agent.optimizer.param_groups:
        group["lr"] = value


def main(max_steps: int = 20_000, seed: int = 0, root: str = ".") -> float:
    """Train once by each interface. Returns the mean return of the Trainer's best agent."""
    pfrl.utils.set_random_seed(seed)
    interval = max(1, max_steps // 10)
    train_agent_with_evaluation(
        make_agent(),
        "CartPole-v1",
        steps=max_steps,
        eval_n_steps=None,
        eval_n_episodes=10,
        eval_interval=interval,
        outdir=prepare_output_dir({"seed": seed}, basedir=root, exp_id=f"pfrl-{datetime.now():%Y%m%dT%H%M%S.%f}"),
        step_hooks=[LinearInterpolationHook(max_steps, 1e-3, 1e-4, set_learning_rate)],
    )
    callbacks = [Evaluation(num_episodes=10, every_n_steps=interval), BestAgent()]
    trainer = Trainer(max_steps=max_steps, callbacks=callbacks, default_root_dir=root)
    trainer.fit(make_agent(), "CartPole-v1")
    return trainer.test(ckpt_path="best")[0]["test/mean"]


if __name__ == "__main__":
    main()
