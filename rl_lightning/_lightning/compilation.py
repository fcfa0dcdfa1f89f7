"""Whole learning steps of the Trainer as one compiled graph, where nothing keeps them from it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch._dynamo
from pytorch_lightning.plugins.precision import Precision
from pytorch_lightning.utilities.rank_zero import rank_zero_info, rank_zero_warn

from rl_lightning.learning_graph import Learned, LearningGraph
from rl_lightning.optim import PackedOptimizer
from rl_lightning.optimization import clip_limits
from rl_lightning.types import Batch, Metrics

if TYPE_CHECKING:
    from rl_lightning._lightning.hooks import Hooks
    from rl_lightning.optimization import Optimization
    from rl_lightning.trainer import Trainer


def why_not_compiled(trainer: Trainer, hooks: Hooks) -> str | None:
    """What keeps the learning step from being one graph; None if nothing does."""
    optimizers = trainer.lightning_module.named_optimizers()
    between = hooks.within_learning_steps()
    foreign = [name for name, optimizer in optimizers.items() if not isinstance(optimizer, PackedOptimizer)]
    own = trainer.lightning_module.agent.why_not_compiled
    reasons = {
        own or "": own is not None,
        f"{', '.join(between)} must run in its middle": bool(between),
        f"the optimizer {', '.join(foreign)} is none of rl_lightning.optim": bool(foreign),
        "the agent learns by itself": not optimizers,
        f"accumulate_grad_batches is {trainer.accumulate_grad_batches}": trainer.accumulate_grad_batches != 1,
        f"precision={trainer.precision!r} is not '32-true'": type(trainer.precision_plugin) is not Precision,
        "several processes average their gradients": trainer.world_size > 1,
        "detect_anomaly=True looks into it": trainer._detect_anomaly,
        f"torch {torch.__version__} cannot trace gradients": not hasattr(torch._dynamo.config, "trace_autograd_ops"),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


class CompiledLearning:
    """The place of `training_step`: a `LearningGraph`; what cannot be compiled is run by `eagerly`.

    Args:
        optimization: is told the losses.
        eagerly: the learning step as it would be without.
    """

    def __init__(self, trainer: Trainer, optimization: Optimization, eagerly: Callable[[Batch, int], Metrics]) -> None:
        module = trainer.lightning_module
        self._optimization = optimization
        self._eagerly = eagerly
        max_norm, max_value = clip_limits(trainer)
        on_gpu = trainer.strategy.root_device.type == "cuda"
        self._graph: LearningGraph | None = LearningGraph(
            module.agent,
            module.named_optimizers(),
            max_grad_norm=max_norm,
            max_grad_value=max_value,
            on_gpu=on_gpu,
        )
        self._has_run = False

    def close(self) -> None:
        """Give torch's compiler its own settings back. May be called twice."""
        if self._graph is not None:
            self._graph.close()

    def __call__(self, batch: Batch, batch_idx: int) -> Metrics:
        graph = self._graph
        if graph is None:
            return self._eagerly(batch, batch_idx)
        learned = graph(batch) if self._has_run else self._first_time(graph, batch)
        if learned is None:
            return self._eagerly(batch, batch_idx)
        metrics, losses = learned
        self._optimization.note(losses)
        return metrics

    def _first_time(self, graph: LearningGraph, batch: Batch) -> Learned | None:
        """Compile, and learn from the batch; None, with a warning, where torch cannot compile it."""
        start = time.perf_counter()
        try:
            learned = graph(batch)
        except torch._dynamo.exc.TorchDynamoException as error:  # nothing has run yet
            reason = " ".join(line.strip() for line in str(error).strip().splitlines()[:2])
            rank_zero_warn(f"compile=True: the learning step runs uncompiled, because torch could not: {reason}")
            graph.close()
            self._graph = None
            return None
        self._has_run = True
        rank_zero_info(f"compile=True: the learning step was compiled in {time.perf_counter() - start:.1f} s.")
        return learned
