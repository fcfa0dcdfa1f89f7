"""A3C on CartPole-v1: rollouts of 5 steps, shared RMSprop, 64-64 tanh, in one and in two processes, without evaluation.

The time that it takes to start the processes is left out for all.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym

from tests.benchmarks.tight import tanh_network

UNIT = "env steps"
AMOUNT = 40_000
NUM_STEPS, LR, ALPHA, EPS, DISCOUNT, ENTROPY, VALUE, MAX_NORM = 5, 7e-4, 0.99, 1e-5, 0.99, 0.01, 0.5, 0.5


def ours(steps: int, num_workers: int, *, compile: bool = False) -> float:
    """The whole `Trainer.fit`, without evaluation, from the first env steps on, which come after compiling."""
    from rl_lightning import A2C
    from tests.benchmarks.ours import fit_async

    agent = A2C(
        lr=LR,
        discount=DISCOUNT,
        num_steps=NUM_STEPS,
        entropy_weight=ENTROPY,
        value_weight=VALUE,
        max_grad_norm=MAX_NORM,
    )
    return fit_async(agent, "CartPole-v1", steps, num_workers, compile=compile)


def pfrl(steps: int, num_workers: int) -> float:
    """PFRL's `train_agent_async`, from the first env step on."""
    import pfrl as peer

    from tests.benchmarks.peers import pfrl_actor_critic
    from tests.experiments.peer import observation
    from tests.experiments.scripted import OldEnv

    network = pfrl_actor_critic(tanh_network)
    optimizer = peer.optimizers.SharedRMSpropEpsInsideSqrt(network.parameters(), lr=LR, alpha=ALPHA, eps=EPS)
    agent = peer.agents.A3C(
        network,
        optimizer,
        t_max=NUM_STEPS,
        gamma=DISCOUNT,
        beta=ENTROPY,
        v_loss_coef=VALUE,
        max_grad_norm=MAX_NORM,
        phi=observation,
    )
    started = multiprocessing.Value("d", 0.0)

    def note_start(env: Any, agent: Any, step: int) -> None:
        if step == 1:
            started.value = time.perf_counter()

    with tempfile.TemporaryDirectory() as outdir:
        peer.experiments.train_agent_async(
            outdir,
            num_workers,
            lambda process_idx, test: OldEnv(gym.make("CartPole-v1")),
            steps=steps,
            eval_interval=None,
            agent=agent,
            global_step_hooks=[note_start],
            random_seeds=list(range(num_workers)),  # its own default does not seed Python today
        )
        return time.perf_counter() - started.value


def _each(name: str, run: Callable[[int, int], float]) -> dict[str, Callable[[int], float]]:
    return {f"{name}, {n} process{'es' * (n > 1)}": partial(run, num_workers=n) for n in (1, 2)}


CONTENDERS = {
    **_each("ours", ours),
    **_each("ours, compiled", partial(ours, compile=True)),
    **_each("PFRL", pfrl),
}
