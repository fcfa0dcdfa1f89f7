"""Lightning's own strategies pass through: every rank gathers in batch, and gradients are averaged."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import pytorch_lightning as pl
import torch

from rl_lightning import TRPO, RLModule, Trainer
from rl_lightning.callbacks import BestAgent, Evaluation
from rl_lightning.envs import GymEnvModule
from tests.trainer.helpers import small_ppo

if __name__ == "__main__":
    torch.set_num_threads(1)
    pl.seed_everything(0)
    module = RLModule({agent})
    trainer = Trainer(
        max_steps=320,
        steps_per_epoch=160,
        strategy="ddp",
        devices=2,
        accelerator="cpu",
        enable_progress_bar=False,
        callbacks=[Evaluation(num_episodes=2), BestAgent()],
    )
    trainer.fit(module, GymEnvModule("CartPole-v1", num_envs=2))
    statistics = module.agent.normalization.state_dict().values()
    weights = torch.cat([tensor.detach().flatten() for tensor in (*module.parameters(), *statistics)])
    episodes = trainer.rl_strategy.episodes
    with open(f"rank{{trainer.global_rank}}", "w") as file:
        score = trainer.callback_metrics["eval/mean"]
        print(trainer.global_step, trainer.num_updates, weights.tolist(), score, file=file)
        print(list(episodes.recent_returns), file=file)
"""


@pytest.mark.parametrize(
    ("agent", "num_updates"),
    [
        ("small_ppo(normalize_obs=True)", 40),
        pytest.param("TRPO(num_steps=8, normalize_obs=True)", 10, marks=[pytest.mark.slow, pytest.mark.ci]),
    ],
)
def test_two_ranks_learn_the_same_weights_from_different_episodes(agent, num_updates, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT.format(agent=agent))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "script.py"], cwd=tmp_path, env=environment, timeout=110, check=True)
    first, second = ((tmp_path / f"rank{rank}").read_text().splitlines() for rank in (0, 1))
    assert first[0] == second[0]
    assert first[0].startswith(f"320 {num_updates} ")  # 160 steps a rank: 10 rollouts of 8 steps of 2 envs
    assert first[1] != second[1]
    count = float(first[0].split("[")[1].split("]")[0].split(", ")[-1])
    assert count == 320  # observations of both ranks
    assert len(list(tmp_path.rglob("best.ckpt"))) == 1
