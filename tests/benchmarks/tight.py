"""What the tight loops share: plain PyTorch, not compiled, as tight as a good engineer writes it for one task."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn


def side_by_side(*networks: nn.Module) -> nn.Parameter:
    """One flat parameter that all parameters, and their gradients, become views of."""
    parameters = [parameter for network in networks for parameter in network.parameters()]
    flat = nn.Parameter(torch.cat([parameter.detach().reshape(-1) for parameter in parameters]))
    flat.grad = torch.zeros_like(flat)
    sizes = [parameter.numel() for parameter in parameters]
    for parameter, part, gradient in zip(parameters, flat.data.split(sizes), flat.grad.split(sizes), strict=True):
        parameter.data = part.view_as(parameter)
        parameter.grad = gradient.view_as(parameter)
    return flat


def minimise(loss: Tensor, flat: nn.Parameter, optimizer: torch.optim.Optimizer, max_norm: float) -> None:
    """One learning step, with the gradient clipped by norm."""
    gradient = flat.grad
    assert gradient is not None
    gradient.zero_()
    loss.backward()
    gradient.mul_((max_norm / (torch.linalg.vector_norm(gradient) + 1e-6)).clamp_(max=1.0))
    optimizer.step()


def tanh_network(outputs: int, gain: float) -> nn.Sequential:
    """4-64-64-outputs with orthogonal weights; the last layer's by `gain`."""
    network = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, outputs))
    for layer, layer_gain in zip(network[::2], (2**0.5, 2**0.5, gain), strict=True):
        nn.init.orthogonal_(layer.weight, layer_gain)
        nn.init.zeros_(layer.bias)
    return network


class Rollouts:
    """CartPoles that a policy acts in, T steps of B envs at a time.

    Attributes:
        obs: [T + 1, B, 4]; the last row is where the next rollout begins.
        action, reward, terminated, done: [T, B].
        last: the observations that no row follows on: where an episode ended, and those of the last row; by row.
    """

    def __init__(self, num_steps: int, num_envs: int) -> None:
        self.envs = [gym.make("CartPole-v1", disable_env_checker=True) for _ in range(num_envs)]
        shape = num_steps, num_envs
        self.obs = np.zeros((num_steps + 1, num_envs, 4), np.float32)
        self.obs[-1] = [env.reset(seed=i)[0] for i, env in enumerate(self.envs)]
        self.action, self.reward = np.zeros(shape, np.int64), np.zeros(shape, np.float32)
        self.terminated, self.done = np.zeros(shape, bool), np.zeros(shape, bool)
        self.last: list[Any] = []

    @torch.inference_mode()
    def collect(self, actor: nn.Module) -> None:
        """Act for one rollout."""
        num_steps, num_envs = self.action.shape
        noise = torch.empty(num_steps, num_envs, 2).exponential_().log_()  # minus Gumbel's: its argmax is a sample
        self.obs[0], self.last = self.obs[-1], []
        for t in range(num_steps):
            self.action[t] = (actor(torch.from_numpy(self.obs[t])) - noise[t]).argmax(-1).numpy()
            for i, action in enumerate(self.action[t].tolist()):
                after, reward, terminated, truncated, _ = self.envs[i].step(action)
                self.reward[t, i], self.terminated[t, i] = reward, terminated
                self.done[t, i] = done = terminated or truncated
                if done or t == num_steps - 1:
                    self.last.append(after)
                self.obs[t + 1, i] = self.envs[i].reset()[0] if done else after

    def advantage(self, value: Tensor, critic: nn.Module, discount: float, trace_decay: float) -> Tensor:
        """Generalised advantage estimates [T, B] for the values [T, B] of this rollout."""
        with torch.no_grad():
            last_value = critic(torch.from_numpy(np.stack(self.last)))[:, 0].numpy()
        now = value.detach().numpy()
        after, unfollowed = np.roll(now, -1, axis=0), self.done.copy()
        unfollowed[-1] = True
        after[unfollowed] = last_value
        advantage = self.reward + discount * after * ~self.terminated - now
        decay = discount * trace_decay * ~self.done
        for t in range(len(advantage) - 2, -1, -1):
            advantage[t] += decay[t] * advantage[t + 1]
        return torch.from_numpy(advantage)
