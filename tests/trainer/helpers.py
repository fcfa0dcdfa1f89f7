"""Small agents and a callback that writes down what was called when."""

from typing import Any

import pytorch_lightning as pl

from rl_lightning import DQN, PPO


def small_ppo(**arguments: Any) -> PPO:
    """Rollouts of 8 steps, 2 epochs of 2 minibatches."""
    return PPO(**{"num_steps": 8, "num_epochs": 2, "num_minibatches": 2, "hidden_sizes": (16,), **arguments})


def small_dqn(**arguments: Any) -> DQN:
    """An update each env step, once `learning_starts` are stored."""
    defaults = {"buffer_size": 500, "batch_size": 8, "learning_starts": 20, "update_every": 1, "updates_per_step": 1.0}
    return DQN(**{**defaults, "hidden_sizes": (16,), **arguments})


def quiet(*callbacks: pl.Callback) -> dict[str, Any]:
    """Trainer arguments for a run that writes nothing."""
    return {
        "callbacks": list(callbacks),
        "logger": False,
        "enable_checkpointing": any(isinstance(callback, pl.callbacks.Checkpoint) for callback in callbacks),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
    }


class Recorder(pl.Callback):
    """Overrides the named hooks; `calls` holds (name, global_step) of each call."""

    def __init__(self, *names: str) -> None:
        self.calls: list[tuple[str, int]] = []
        for name in names:
            setattr(self, name, self._record(name))

    def _record(self, name: str) -> Any:
        def hook(trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
            self.calls.append((name, trainer.global_step))

        return hook

    def steps(self, name: str) -> list[int]:
        """The env steps at which one hook was called."""
        return [step for called, step in self.calls if called == name]
