"""PPO on CartPole-v1: 8 envs x 128 steps, 4 epochs x 4 minibatches, 64-64 tanh, the same numbers for all.

PFRL standardises advantages over the rollout, the others over the minibatch.
"""

from __future__ import annotations

import time
from typing import Any

import gymnasium as gym
import torch

from tests.benchmarks.tight import Rollouts, minimise, side_by_side, tanh_network

UNIT = "env steps"
AMOUNT = 50_000
NUM_ENVS, NUM_STEPS, NUM_EPOCHS, NUM_MINIBATCHES = 8, 128, 4, 4
ROLLOUT, MINIBATCH = NUM_ENVS * NUM_STEPS, NUM_ENVS * NUM_STEPS // NUM_MINIBATCHES
LR, EPS, DISCOUNT, TRACE_DECAY, CLIP_RANGE, ENTROPY, VALUE, MAX_NORM = 3e-4, 1e-5, 0.99, 0.95, 0.2, 0.01, 0.5, 0.5


def _ours() -> tuple[Any, Any]:
    from rl_lightning import PPO
    from rl_lightning.envs import GymEnvModule

    agent = PPO(
        lr=LR,
        discount=DISCOUNT,
        trace_decay=TRACE_DECAY,
        num_steps=NUM_STEPS,
        num_epochs=NUM_EPOCHS,
        num_minibatches=NUM_MINIBATCHES,
        clip_range=CLIP_RANGE,
        entropy_weight=ENTROPY,
        value_weight=VALUE,
        max_grad_norm=MAX_NORM,
    )
    return agent, GymEnvModule("CartPole-v1", num_envs=NUM_ENVS)


def ours(steps: int) -> float:
    """The whole `Trainer.fit`."""
    from tests.benchmarks.ours import fit

    return fit(*_ours(), steps)


def ours_compiled(steps: int) -> float:
    """The same with `compile=True`, after two rollouts."""
    from tests.benchmarks.ours import fit_compiled

    return fit_compiled(*_ours(), steps, skip=2 * NUM_EPOCHS * NUM_MINIBATCHES)


def ours_without_evaluation(steps: int) -> float:
    """The same with nothing evaluated, as the peers do it."""
    from tests.benchmarks.ours import fit

    return fit(*_ours(), steps, evaluates=False)


def tight(steps: int) -> float:
    """A plain loop."""
    rollouts, actor, critic = Rollouts(NUM_STEPS, NUM_ENVS), tanh_network(2, 0.01), tanh_network(1, 1.0)
    flat = side_by_side(actor, critic)
    optimizer = torch.optim.Adam([flat], lr=LR, eps=EPS, fused=True)
    start = time.perf_counter()
    for _ in range(-(-steps // ROLLOUT)):
        rollouts.collect(actor)
        obs, action = torch.from_numpy(rollouts.obs[:-1]), torch.from_numpy(rollouts.action)
        with torch.no_grad():
            old = actor(obs).log_softmax(-1).gather(-1, action[..., None])[..., 0]
            value = critic(obs)[..., 0]
        advantage = rollouts.advantage(value, critic, DISCOUNT, TRACE_DECAY)
        fields = [field.flatten(0, 1) for field in (obs, action, old, advantage, advantage + value)]
        for _ in range(NUM_EPOCHS):
            order = torch.randperm(ROLLOUT)
            for part in zip(*(field[order].chunk(NUM_MINIBATCHES) for field in fields), strict=True):
                minimise(_loss(actor, critic, *part), flat, optimizer, MAX_NORM)
    return time.perf_counter() - start


def _loss(actor: Any, critic: Any, obs: Any, action: Any, old: Any, advantage: Any, target: Any) -> torch.Tensor:
    log_probs = actor(obs).log_softmax(-1)
    ratio = (log_probs.gather(-1, action[:, None])[:, 0] - old).exp()
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    policy_loss = -torch.minimum(ratio * advantage, advantage + CLIP_RANGE * advantage.abs()).mean()
    value_loss = torch.nn.functional.mse_loss(critic(obs)[:, 0], target)
    entropy = -(log_probs.exp() * log_probs).sum(-1).mean()
    return policy_loss + VALUE * value_loss - ENTROPY * entropy


def sb3(steps: int) -> float:
    """Stable-Baselines3."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env

    from tests.benchmarks.peers import learn_sb3

    model = PPO(
        "MlpPolicy",
        make_vec_env("CartPole-v1", n_envs=NUM_ENVS),
        learning_rate=LR,
        gamma=DISCOUNT,
        gae_lambda=TRACE_DECAY,
        n_steps=NUM_STEPS,
        batch_size=MINIBATCH,
        n_epochs=NUM_EPOCHS,
        clip_range=CLIP_RANGE,
        ent_coef=ENTROPY,
        vf_coef=VALUE,
        max_grad_norm=MAX_NORM,
        device="cpu",
    )
    return learn_sb3(model, steps)


def pfrl(steps: int) -> float:
    """PFRL."""
    import pfrl as peer

    from tests.benchmarks.peers import pfrl_actor_critic, train_pfrl

    network = pfrl_actor_critic(tanh_network)
    agent = peer.agents.PPO(
        network,
        torch.optim.Adam(network.parameters(), lr=LR, eps=EPS),
        gamma=DISCOUNT,
        lambd=TRACE_DECAY,
        update_interval=ROLLOUT,
        minibatch_size=MINIBATCH,
        epochs=NUM_EPOCHS,
        clip_eps=CLIP_RANGE,
        entropy_coef=ENTROPY,
        value_func_coef=VALUE,
        max_grad_norm=MAX_NORM,
    )
    return train_pfrl(agent, lambda: gym.make("CartPole-v1"), steps, num_envs=NUM_ENVS)


def tianshou(steps: int) -> float:
    """Tianshou."""
    from tianshou.algorithm import PPO
    from tianshou.algorithm.modelfree.reinforce import DiscreteActorPolicy
    from tianshou.algorithm.optim import AdamOptimizerFactory
    from tianshou.data import Collector, VectorReplayBuffer
    from tianshou.env import DummyVectorEnv
    from tianshou.trainer import OnPolicyTrainerParams
    from tianshou.utils.net.common import Net
    from tianshou.utils.net.discrete import DiscreteActor, DiscreteCritic

    from tests.benchmarks.peers import TIANSHOU_QUIET, run_tianshou

    envs = DummyVectorEnv([lambda: gym.make("CartPole-v1") for _ in range(NUM_ENVS)])
    body = {"state_shape": 4, "hidden_sizes": (64, 64), "activation": torch.nn.Tanh}
    actor = DiscreteActor(preprocess_net=Net(**body), action_shape=2, softmax_output=False)
    policy = DiscreteActorPolicy(actor=actor, action_space=gym.make("CartPole-v1").action_space)
    algorithm = PPO(
        policy=policy,
        critic=DiscreteCritic(preprocess_net=Net(**body)),
        optim=AdamOptimizerFactory(lr=LR, eps=EPS),
        gamma=DISCOUNT,
        gae_lambda=TRACE_DECAY,
        eps_clip=CLIP_RANGE,
        ent_coef=ENTROPY,
        vf_coef=VALUE,
        max_grad_norm=MAX_NORM,
    )
    parameters = OnPolicyTrainerParams(
        training_collector=Collector(algorithm, envs, VectorReplayBuffer(ROLLOUT, NUM_ENVS)),
        epoch_num_steps=steps,
        collection_step_num_env_steps=ROLLOUT,
        batch_size=MINIBATCH,
        update_step_num_repetitions=NUM_EPOCHS,
        **TIANSHOU_QUIET,
    )
    return run_tianshou(algorithm, parameters)


CONTENDERS = {
    "ours": ours,
    "ours, compiled": ours_compiled,
    "ours, no evaluation": ours_without_evaluation,
    "tight loop": tight,
    "SB3": sb3,
    "PFRL": pfrl,
    "Tianshou": tianshou,
}
