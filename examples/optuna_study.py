"""Twenty trials of PPO on CartPole-v1; Optuna ends the hopeless ones early, and `study.png` shows them all.

pip install "rl-lightning[optuna,plot]" && python examples/optuna_study.py
"""

from pathlib import Path

import optuna
from matplotlib.figure import Figure
from pytorch_lightning import seed_everything

from rl_lightning import PPO, Trainer
from rl_lightning.callbacks import Evaluation, OptunaPruner
from rl_lightning.envs import GymEnvModule


def main(max_steps: int = 20_000, seed: int = 0, root: str = ".", num_trials: int = 20) -> float:
    """Search, and draw the result. Returns the best trial's last mean return."""

    def train(trial: optuna.Trial) -> float:
        seed_everything(seed, verbose=False)
        agent = PPO(
            lr=trial.suggest_float("lr", 1e-5, 1e-1, log=True),
            trace_decay=trial.suggest_float("trace_decay", 0.8, 1.0),
            num_steps=trial.suggest_categorical("num_steps", [16, 32, 64]),
        )
        trainer = Trainer(
            max_steps=max_steps,
            callbacks=[Evaluation(num_episodes=10, every_n_steps=max_steps // 10), OptunaPruner(trial)],
            default_root_dir=root,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(agent, GymEnvModule("CartPole-v1", num_envs=8))
        return trainer.callback_metrics["eval/mean"].item()

    pruner = optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=max_steps // 4)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed), pruner=pruner)
    study.optimize(train, n_trials=num_trials, show_progress_bar=True)
    draw(study, Path(root) / "study.png")
    return study.best_value


def draw(study: optuna.Study, path: Path) -> None:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="env steps", ylabel="mean return", title="PPO on CartPole-v1")
    for trial in study.trials:
        style = "rx:" if trial.state == optuna.trial.TrialState.PRUNED else "b-"
        axes.plot(*zip(*trial.intermediate_values.items(), strict=True), style, alpha=0.5)
    best = study.best_trial.intermediate_values
    axes.plot(*zip(*best.items(), strict=True), "k-", linewidth=2.5, label=f"best: lr {study.best_params['lr']:.1e}")
    axes.plot([], [], "b-", label="complete")
    axes.plot([], [], "rx:", label="pruned")
    axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
