"""PPO on Pong: the network of Mnih et al. (2015), 8 envs x 128 steps, 4 epochs x 4 minibatches, the same for all.

Nothing is evaluated: a game takes longer than this. With so few env steps the start still counts: measure with
`atari_ppo=10240`.
"""

from __future__ import annotations

from typing import Any

from tests.benchmarks.atari import PLAIN, PONG, WRAPPERS, make_pong, register

UNIT = "env steps"
AMOUNT = 2_048
NUM_ENVS, NUM_STEPS, NUM_EPOCHS, NUM_MINIBATCHES = 8, 128, 4, 4
LR, DISCOUNT, TRACE_DECAY, CLIP_RANGE, ENTROPY, VALUE, MAX_NORM = 2.5e-4, 0.99, 0.95, 0.1, 0.01, 0.5, 0.5


def _agent() -> Any:
    from rl_lightning import PPO

    register()
    return PPO(
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
        hidden_sizes=(),
    )


def ours(steps: int) -> float:
    """`Trainer.fit` in gymnasium's envs."""
    from rl_lightning.envs import GymEnvModule
    from tests.benchmarks.ours import fit

    agent, envs = _agent(), GymEnvModule(PONG, NUM_ENVS, env_kwargs=PLAIN, wrappers=WRAPPERS)
    return fit(agent, envs, steps, evaluates=False)


def ours_in_the_vector_env(steps: int) -> float:
    """`Trainer.fit` in ale-py's own vector env, which preprocesses too, on as many threads as there are cores."""
    from ale_py.vector_env import AtariVectorEnv

    from tests.benchmarks.ours import fit

    def make() -> AtariVectorEnv:
        return AtariVectorEnv("pong", NUM_ENVS, reward_clipping=False, use_fire_reset=False)

    return fit(_agent(), make, steps, evaluates=False)


def sb3(steps: int) -> float:
    """Stable-Baselines3."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env

    from tests.benchmarks.peers import learn_sb3

    model = PPO(
        "CnnPolicy",
        make_vec_env(make_pong, n_envs=NUM_ENVS),
        learning_rate=LR,
        gamma=DISCOUNT,
        gae_lambda=TRACE_DECAY,
        n_steps=NUM_STEPS,
        batch_size=NUM_ENVS * NUM_STEPS // NUM_MINIBATCHES,
        n_epochs=NUM_EPOCHS,
        clip_range=CLIP_RANGE,
        ent_coef=ENTROPY,
        vf_coef=VALUE,
        max_grad_norm=MAX_NORM,
        device="cpu",
    )
    return learn_sb3(model, steps)


CONTENDERS = {"ours": ours, "ours, ALE's vector env": ours_in_the_vector_env, "SB3": sb3}
