"""What the contenders share that learn Pendulum-v1 from replay: 256-256 relu, batches of 256, a step each env step."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from tests.benchmarks.tight import side_by_side

LR, DISCOUNT, TAU, BATCH, STARTS, CAPACITY, SIZES = 1e-3, 0.99, 0.005, 256, 256, 100_000, (256, 256)
OURS = {
    "lr": LR,
    "discount": DISCOUNT,
    "tau": TAU,
    "batch_size": BATCH,
    "learning_starts": STARTS,
    "buffer_size": CAPACITY,
    "hidden_sizes": SIZES,
}


def make_env() -> gym.Env:
    """Pendulum-v1 with actions in -1..1, for what does not scale them."""
    return gym.wrappers.RescaleAction(gym.make("Pendulum-v1"), np.float32(-1.0), np.float32(1.0))


def network(inputs: int, outputs: int) -> nn.Sequential:
    """inputs-256-256-outputs."""
    return nn.Sequential(nn.Linear(inputs, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, outputs))


# --- ours ---


def ours(agent: str, steps: int, **more: Any) -> float:
    """Seconds of the whole `Trainer.fit`."""
    import rl_lightning
    from tests.benchmarks.ours import fit

    return fit(getattr(rl_lightning, agent)(**OURS, **more), "Pendulum-v1", steps)


def ours_compiled(agent: str, steps: int, **more: Any) -> float:
    """The same with `compile=True`: a learning step in each env step but the first, random ones, as in the others."""
    import rl_lightning
    from tests.benchmarks.ours import fit_compiled

    learner = getattr(rl_lightning, agent)(**OURS, **more)
    return fit_compiled(learner, "Pendulum-v1", steps, skip=50) * (steps - STARTS) / steps


# --- by hand ---


class Part:
    """Networks of which all parameters are one flat tensor, with Adam, and copies that follow them."""

    def __init__(self, *networks: nn.Module) -> None:
        self.networks, self.targets = networks, copy.deepcopy(networks)
        for target in self.targets:
            target.requires_grad_(False)
        self.flat, self.flat_target = side_by_side(*networks), side_by_side(*self.targets)
        self.optimizer = torch.optim.Adam([self.flat], lr=LR, fused=True)

    def minimise(self, loss: Tensor) -> None:
        """One learning step."""
        assert self.flat.grad is not None
        self.flat.grad.zero_()
        loss.backward()
        self.optimizer.step()

    def follow(self) -> None:
        """Move the targets."""
        self.flat_target.data.lerp_(self.flat.data, TAU)

    def values(self, obs: Tensor, action: Tensor, *, target: bool = False) -> list[Tensor]:
        """[N, 1] of each network, as critics."""
        x = torch.cat([obs, action], dim=1)
        return [critic(x) for critic in (self.targets if target else self.networks)]

    def frozen(self, *, is_frozen: bool) -> None:
        """Whether gradients of the weights are computed."""
        for critic in self.networks:
            critic.requires_grad_(not is_frozen)


def tight_loop(steps: int, act: Callable[[Tensor], Tensor], learn: Callable[[dict[str, Tensor]], None]) -> float:
    """Act in the env at random, then by `act`, keep what happens, and learn from a batch each step."""
    env, rng = gym.make("Pendulum-v1", disable_env_checker=True), np.random.default_rng(0)
    dtype = [("obs", "f4", 3), ("next_obs", "f4", 3), ("action", "f4", 1), ("reward", "f4", 1)]
    memory = np.zeros(CAPACITY, np.dtype(dtype, align=True))
    obs, _ = env.reset(seed=0)
    start = time.perf_counter()
    for step in range(steps):
        if step < STARTS:
            action = rng.uniform(-1, 1, size=1).astype(np.float32)
        else:
            with torch.inference_mode():
                action = act(torch.from_numpy(obs)).numpy()
        after, reward, _, truncated, _ = env.step(2 * action)
        memory[step % CAPACITY] = obs, after, action, reward
        obs = env.reset()[0] if truncated else after
        if step >= STARTS:
            rows = memory.take(rng.integers(min(step + 1, CAPACITY), size=BATCH))
            learn({name: torch.from_numpy(rows[name]) for name in memory.dtype.names})
    return time.perf_counter() - start


# --- peers ---


def sb3_arguments() -> dict[str, Any]:
    """Of Stable-Baselines3's SAC and TD3."""
    return {
        "learning_rate": LR,
        "gamma": DISCOUNT,
        "tau": TAU,
        "batch_size": BATCH,
        "learning_starts": STARTS,
        "buffer_size": CAPACITY,
        "train_freq": 1,
        "gradient_steps": 1,
        "policy_kwargs": {"net_arch": list(SIZES)},
        "device": "cpu",
    }


def pfrl_arguments() -> dict[str, Any]:
    """Of PFRL's SoftActorCritic and TD3, but for the policy: critics, their optimizers, the memory and the pace."""
    import pfrl

    critics = [nn.Sequential(pfrl.nn.ConcatObsAndAction(), *network(4, 1)) for _ in range(2)]
    return {
        "q_func1": critics[0],
        "q_func2": critics[1],
        "q_func1_optimizer": torch.optim.Adam(critics[0].parameters(), lr=LR),
        "q_func2_optimizer": torch.optim.Adam(critics[1].parameters(), lr=LR),
        "replay_buffer": pfrl.replay_buffers.ReplayBuffer(CAPACITY),
        "gamma": DISCOUNT,
        "replay_start_size": STARTS,
        "minibatch_size": BATCH,
        "soft_update_tau": TAU,
        "burnin_action_func": lambda: np.random.uniform(-1, 1, size=1).astype(np.float32),
    }


def tianshou_nets() -> Iterator[Any]:
    """Without end, networks of two hidden layers: of the observation first, then of observation and action."""
    from tianshou.utils.net.common import Net

    yield Net(state_shape=3, hidden_sizes=SIZES)
    while True:
        yield Net(state_shape=3, action_shape=1, hidden_sizes=SIZES, concat=True)


def run_tianshou_off_policy(algorithm: Any, steps: int) -> float:
    """Seconds of Tianshou's training, with its random start."""
    from tianshou.data import Collector, ReplayBuffer
    from tianshou.env import DummyVectorEnv
    from tianshou.trainer import OffPolicyTrainerParams

    from tests.benchmarks.peers import TIANSHOU_QUIET, run_tianshou

    envs = DummyVectorEnv([lambda: gym.make("Pendulum-v1")])
    collector = Collector(algorithm, envs, ReplayBuffer(CAPACITY), exploration_noise=True)
    collector.reset()
    parameters = OffPolicyTrainerParams(
        training_collector=collector,
        epoch_num_steps=steps - STARTS,
        collection_step_num_env_steps=1,
        batch_size=BATCH,
        **TIANSHOU_QUIET,
    )
    start = time.perf_counter()
    collector.collect(n_step=STARTS, random=True)
    return time.perf_counter() - start + run_tianshou(algorithm, parameters)
