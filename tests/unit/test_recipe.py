"""How envs are made: from ids, specs, factories and live envs, in this process and in others."""

from __future__ import annotations

import copy
import functools
import os
import pickle
import subprocess
import sys
import threading
import types
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, RescaleAction, TimeLimit, TransformReward

from rl_lightning.envs import EnvRecipe, LockstepPool, SinglePool, SubprocessPool, VectorPool, as_recipe
from rl_lightning.types import ConfigurationError, EnvError
from tests.envs import GivesObservation, NeedsReset, OldReset, OldSeed, OldStep, ReusesMemory, Scripted, go


def doubled(env: gym.Env) -> gym.Env:
    return TransformReward(env, lambda reward: 2 * reward)


def plus_one(env: gym.Env) -> gym.Env:
    return TransformReward(env, lambda reward: reward + 1)


class Unrecorded(gym.Wrapper):
    """A wrapper that does not tell its env's spec how it was made."""


def layers(env: Any) -> list[type]:
    return [type(env)] + (layers(env.env) if isinstance(env, gym.Wrapper) else [])


@pytest.fixture
def registered():
    gym.register("Recipe/Scripted-v0", entry_point=Scripted, kwargs={"lengths": [3]}, max_episode_steps=50)
    yield "Recipe/Scripted-v0"
    del gym.registry["Recipe/Scripted-v0"]


# ---- what comes out --------------------------------------------------------------------------------------------------


def test_one_env_is_a_single_pool_without_gymnasiums_checker():
    pool = EnvRecipe("CartPole-v1").make()
    assert isinstance(pool, SinglePool) and pool.num_envs == 1
    assert not {PassiveEnvChecker, OrderEnforcing} & {*layers(pool.env)} and TimeLimit in layers(pool.env)
    assert pool.env.spec.max_episode_steps == 500 and type(gym.make(pool.env.spec)) is TimeLimit


def test_several_envs_are_a_sync_vector_env_in_lockstep():
    pool = EnvRecipe("CartPole-v1", num_envs=3).make()
    assert isinstance(pool, LockstepPool) and type(pool.env) is SyncVectorEnv and pool.num_envs == 3
    assert pool.env.metadata["autoreset_mode"] == AutoresetMode.DISABLED
    assert not any(PassiveEnvChecker in layers(env) for env in pool.env.envs)


def test_each_env_can_have_a_process_of_its_own():
    """A lambda as factory, with arguments: two steps an episode, each of reward 3."""
    recipe = EnvRecipe(
        lambda **kwargs: Scripted(**kwargs), 2, "async", {"lengths": [2], "reward": 3.0}, max_episode_len=9
    )
    pool = recipe.make()
    try:
        assert isinstance(pool, SubprocessPool) and pool.num_workers == 2
        assert pool.reset(0).tolist() == [[0.0, 0.0]] * 2
        steps = go(pool, 2)
        assert steps[1].reward.tolist() == [3.0, 3.0] and steps[1].terminated.all()
        assert steps[1].next_obs.tolist() == [[0.0, 2.0]] * 2 and pool.begin_episodes().tolist() == [[1.0, 0.0]] * 2
    finally:
        pool.close()


def test_async_with_one_env_still_has_its_own_process():
    pool = EnvRecipe("CartPole-v1", vectorization="async").make()
    try:
        assert isinstance(pool, SubprocessPool) and pool.num_envs == 1
    finally:
        pool.close()


def test_an_ids_own_vectorised_version():
    """Episodes cut off after 2 steps: NEXT_STEP, so the third only resets."""
    pool = EnvRecipe("CartPole-v1", 4, "vector_entry_point", max_episode_len=2).make()
    assert type(pool.env.unwrapped).__name__ == "CartPoleVectorEnv" and pool.num_envs == 4
    pool.reset(0)
    steps = go(pool, 3)
    assert [step.truncated.all() for step in steps] == [False, True, False]
    assert not steps[2].valid.any()


def test_env_kwargs_and_wrappers_reach_every_env():
    """Reward 1, doubled, plus one is 3; the other way round it would be 4."""
    for num_envs in (1, 2):
        pool = EnvRecipe(Scripted, num_envs, env_kwargs={"lengths": [5]}, wrappers=(doubled, plus_one)).make()
        pool.reset()
        assert pool.step(np.zeros(num_envs, int)).reward.tolist() == [3.0] * num_envs


def test_wrappers_may_change_the_spaces():
    one = np.ones(1, np.float32)
    rescale = functools.partial(RescaleAction, min_action=-one, max_action=one)
    pool = EnvRecipe("Pendulum-v1", 2, wrappers=(rescale,)).make()
    assert pool.action_space == spaces.Box(-1.0, 1.0, (1,), np.float32)


@pytest.mark.parametrize("num_envs", [1, 2])
def test_max_episode_len_cuts_episodes_off(num_envs):
    pool = EnvRecipe(lambda: Scripted((100,)), num_envs, max_episode_len=2).make()
    pool.reset()
    steps = go(pool, 4)
    assert [step.truncated.tolist() for step in steps] == [[False] * num_envs, [True] * num_envs] * 2
    assert not any(step.terminated.any() for step in steps)
    assert steps[1].next_obs.tolist() == [[0.0, 2.0]] * num_envs


@pytest.mark.parametrize("num_envs", [1, 2])
def test_an_episode_that_ends_by_itself_at_the_limit_is_both(num_envs):
    """Only `terminated` decides whether anything follows."""
    step = go(EnvRecipe(lambda: Scripted((2,)), num_envs, max_episode_len=2).make(), 2)[-1]
    assert step.terminated.tolist() == step.truncated.tolist() == [True] * num_envs


@pytest.mark.parametrize("num_envs", [1, 2])
def test_no_env_is_reset_before_its_next_episode_begins(num_envs):
    """Episode 0 is cut off by the limit, episode 1 ends by itself and is followed by a seeded one."""
    pool = EnvRecipe(lambda: Scripted((9, 1, 9)), num_envs, max_episode_len=2).make()
    envs = [env.unwrapped for env in pool.env.envs] if num_envs > 1 else [pool.env]
    pool.reset([4, 5][:num_envs])
    seeds = [[4], [5]][:num_envs]
    for begins in ([None, None], [7, 8]):
        go(pool, 2 if begins[0] is None else 1)
        assert [env.seeds for env in envs] == seeds
        pool.begin_episodes(begins[:num_envs]), pool.begin_episodes(begins[:num_envs])
        seeds = [[*mine, seed] for mine, seed in zip(seeds, begins, strict=False)]
        assert [env.seeds for env in envs] == seeds


@pytest.mark.parametrize("mode", AutoresetMode)
@pytest.mark.parametrize("live", [False, True])
def test_max_episode_len_cuts_off_in_a_users_vector_env_in_every_mode(mode, live):
    factory = functools.partial(SyncVectorEnv, [lambda: Scripted((100,))] * 2, autoreset_mode=mode)
    pool = EnvRecipe(factory() if live else factory, max_episode_len=2).make()
    steps = go(pool, 4)
    assert [step.truncated.tolist() for step in steps] == [[False] * 2, [True] * 2] * 2
    assert steps[2].next_obs.tolist() == [[1.0, 1.0]] * 2 and all(step.valid is None for step in steps)


def test_needs_reset_cuts_episodes_off_in_a_vector_env():
    pool = EnvRecipe(NeedsReset, 2).make()
    pool.reset()
    assert [step.truncated.tolist() for step in go(pool, 3)] == [[False] * 2, [True] * 2, [False] * 2]


def test_the_last_observation_survives_an_env_that_reuses_its_memory():
    pool = EnvRecipe(lambda: ReusesMemory((2,)), 2).make()
    pool.reset()
    step = go(pool, 2)[-1]
    assert pool.begin_episodes().tolist() == [[1.0, 0.0]] * 2
    assert step.next_obs.tolist() == [[0.0, 2.0]] * 2


@pytest.mark.parametrize("kind", [OldReset, OldSeed, OldStep])
@pytest.mark.parametrize("num_envs", [1, 2])
def test_the_old_api_is_named(kind, num_envs):
    pool = EnvRecipe(kind, num_envs).make()
    with pytest.raises(EnvError, match="old gym API"):
        pool.reset(0)
        pool.step(np.zeros(num_envs, int))


def test_a_misfit_is_named_in_a_vector_env_too():
    with pytest.raises(EnvError, match=r"shape \(3,\).*does not fit"):
        EnvRecipe(lambda: GivesObservation(np.zeros(3, np.float32)), 2).make().reset()


def test_a_factory_may_return_a_vector_env():
    factory = functools.partial(SyncVectorEnv, [Scripted] * 3)
    pool = EnvRecipe(factory).make()
    assert pool.num_envs == 3 and pool.env.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
    assert EnvRecipe(factory, num_envs=3).make().num_envs == 3
    pool.close()
    assert pool.env.closed


def test_a_new_pool_has_new_envs():
    recipe = EnvRecipe(Scripted)
    assert recipe.make().env is not recipe.make().env


def test_replace_changes_what_it_names():
    recipe = EnvRecipe("CartPole-v1", 4, max_episode_len=9).replace(num_envs=2)
    assert recipe == EnvRecipe("CartPole-v1", 2, max_episode_len=9)


# ---- other processes -------------------------------------------------------------------------------------------------


def test_a_recipe_can_be_sent_to_another_process(registered):
    length = 4
    for source in (registered, gym.spec(registered), Scripted, lambda: Scripted((length,))):
        again = pickle.loads(pickle.dumps(EnvRecipe(source, 2, wrappers=(lambda env: env,))))
        assert again.num_envs == 2 and again.make().reset(0).shape == (2, 2)


@pytest.mark.parametrize("use", [lambda env_id: env_id, lambda env_id: lambda: gym.make(env_id)], ids=["id", "factory"])
def test_what_is_registered_here_is_known_in_another_process(registered, use):
    """Neither the script nor the module that registered it is imported there; what cannot be sent does not matter."""
    lock = threading.Lock()
    gym.register("Recipe/Unsendable-v0", entry_point=lambda: lock and Scripted())
    pool = EnvRecipe(use(registered), 1, "async").make()
    try:
        assert pool.reset(0).tolist() == [[0.0, 0.0]]
    finally:
        pool.close()
        del gym.registry["Recipe/Unsendable-v0"]


def test_a_factory_that_cannot_be_sent_says_so():
    lock = threading.Lock()
    with pytest.raises(ConfigurationError, match="cannot be sent to another process.*from scratch"):
        pickle.dumps(EnvRecipe(lambda: Scripted() if lock.acquire() else None))


def test_a_live_env_cannot_be_sent():
    with pytest.raises(ConfigurationError, match="freshly reset.*Give a gymnasium id"):
        pickle.dumps(as_recipe(gym.make("CartPole-v1")))


def test_a_copy_keeps_the_live_env():
    env = Scripted()
    assert copy.deepcopy({"recipe": as_recipe(env)})["recipe"].make().env is env


def test_making_envs_needs_no_lightning():
    code = "import sys; from rl_lightning.envs import EnvRecipe; EnvRecipe('CartPole-v1', 2).make().reset(0)"
    check = f"{code}; sys.exit('pytorch_lightning' in sys.modules)"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    assert subprocess.run([sys.executable, "-c", check], env=env, timeout=90).returncode == 0


# ---- live envs -------------------------------------------------------------------------------------------------------


def test_a_live_env_is_wrapped_and_left_open():
    env = Scripted()
    pool = as_recipe(env).make()
    pool.close()
    assert pool.env is env and env.closed == 0


def test_a_live_vector_env_is_wrapped_and_left_open():
    env = SyncVectorEnv([Scripted] * 2)
    recipe = as_recipe(env)
    pool = recipe.make()
    pool.close()
    assert pool.env is env and not env.closed and recipe.num_envs == 2


def test_evaluation_gets_another_env_like_a_live_one():
    env = TimeLimit(gym.make("CartPole-v1", sutton_barto_reward=True), 7)
    pool = as_recipe(env).evaluation().make()
    assert pool.env.unwrapped is not env.unwrapped and pool.env.unwrapped._sutton_barto_reward
    assert pool.env.spec.max_episode_steps == 7
    pool.close()


def test_evaluation_gets_another_vector_env_like_a_live_one():
    env = gym.make_vec("CartPole-v1", num_envs=3, vectorization_mode="sync")
    pool = as_recipe(env).evaluation().make()
    assert pool.env is not env and pool.num_envs == 3


def test_evaluation_keeps_the_limit_of_a_live_env(registered):
    assert EnvRecipe(gym.make(registered), max_episode_len=5).evaluation().max_episode_len == 5


def test_any_other_recipe_serves_evaluation_as_it_is():
    recipe = EnvRecipe("CartPole-v1", 4)
    assert recipe.evaluation() is recipe


@pytest.mark.parametrize(
    "env",
    [Scripted(), SyncVectorEnv([Scripted]), Unrecorded(gym.make("CartPole-v1"))],
    ids=["env", "vector", "wrapper"],
)
def test_evaluation_needs_to_know_how_a_live_env_was_made(env):
    with pytest.raises(ConfigurationError, match="an env of its own.*factory.*EnvModule"):
        as_recipe(env).evaluation()


@pytest.mark.parametrize(
    "settings", [{"num_envs": 2}, {"vectorization": "async"}, {"env_kwargs": {"a": 1}}, {"wrappers": (doubled,)}]
)
def test_a_live_env_takes_no_settings(settings):
    with pytest.raises(ConfigurationError, match="is one live env"):
        EnvRecipe(Scripted(), **settings)


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"num_envs": 0}, "num_envs=0: it must be"),
        ({"num_envs": 1.5}, "num_envs=1.5"),
        ({"max_episode_len": 0}, "max_episode_len=0"),
        ({"vectorization": "async", "restart_workers": -1}, "restart_workers=-1: it must be"),
        ({"vectorization": "async", "num_workers": 0}, "num_workers=0: it must be"),
        ({"num_workers": 2}, "num_workers=2, restart_workers=0 are for vectorization=.async., and it is 'sync'"),
        ({"restart_workers": 1}, "restart_workers=1 are for"),
        ({"vectorization": "threads"}, "vectorization='threads': one of sync, async, vector_entry_point"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, what):
    with pytest.raises(ConfigurationError, match=what):
        EnvRecipe("CartPole-v1", **settings)


@pytest.mark.parametrize("vectorization", ["sync", "async", "vector_entry_point"])
@pytest.mark.parametrize("env_id", ["CartPol-v1", "cartpole-v1", "CartPole-v7"])
def test_an_unknown_id_is_answered_with_the_nearest(env_id, vectorization):
    with pytest.raises(ConfigurationError, match="Nearest ids: .*CartPole-v1"):
        EnvRecipe(env_id, vectorization=vectorization).make()


def test_an_id_like_no_other_is_answered_with_where_to_look():
    with pytest.raises(ConfigurationError, match="pprint_registry"):
        EnvRecipe("Xyzzy/Qwrtzu-v0").make()


@pytest.mark.parametrize(
    ("env_id", "package", "extra"),
    [("LunarLander-v3", "Box2D", "box2d"), ("Hopper-v5", "mujoco", "mujoco"), ("ALE/Pong-v5", "ale_py", "atari")],
)
def test_a_missing_package_is_answered_with_the_extra(env_id, package, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    for name in [name for name in sys.modules if name.startswith(("gymnasium.envs.box2d", "gymnasium.envs.mujoco"))]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ConfigurationError, match=rf'pip install "rl-lightning\[{extra}\]"'):
        EnvRecipe(env_id).make()


def test_a_missing_package_of_the_users_own_is_named():
    with pytest.raises(ConfigurationError, match="No module named 'no_such_package'"):
        EnvRecipe("no_such_package:Env-v0").make()


def test_a_factory_that_returns_no_env_is_refused():
    with pytest.raises(ConfigurationError, match="builtins.dict is no env"):
        EnvRecipe(dict).make()


def test_an_env_of_the_old_package_is_refused():
    old = types.new_class("CartPoleEnv", exec_body=lambda body: body.update(__module__="gym.envs.classic_control"))()
    for give in (as_recipe, lambda env: EnvRecipe(lambda: env).make()):
        with pytest.raises(ConfigurationError, match="gym.envs.classic_control.CartPoleEnv.*old `gym` package.*shimmy"):
            give(old)


@pytest.mark.parametrize("settings", [{"num_envs": 2}, {"vectorization": "async"}, {"wrappers": (doubled,)}])
def test_a_factory_of_a_vector_env_takes_no_settings(settings):
    with pytest.raises(ConfigurationError, match="a vector env of 3 envs"):
        EnvRecipe(lambda: SyncVectorEnv([Scripted] * 3), **settings).make()


def test_a_vectorised_version_takes_no_wrappers_and_needs_an_id_that_has_one():
    with pytest.raises(ConfigurationError, match="no wrappers"):
        EnvRecipe("CartPole-v1", 2, "vector_entry_point", wrappers=(doubled,)).make()
    with pytest.raises(ConfigurationError, match="needs a gymnasium id"):
        EnvRecipe(Scripted, 2, "vector_entry_point").make()
    with pytest.raises(ConfigurationError, match="MountainCar-v0 has no vectorised version"):
        EnvRecipe("MountainCar-v0", 2, "vector_entry_point").make()


# ---- as_recipe -------------------------------------------------------------------------------------------------------


def test_whatever_makes_an_env_becomes_a_recipe():
    spec, recipe = gym.spec("CartPole-v1"), EnvRecipe("CartPole-v1", 3)
    assert as_recipe("CartPole-v1") == EnvRecipe("CartPole-v1")
    assert as_recipe(spec).source is spec and as_recipe(Scripted).source is Scripted
    assert as_recipe(recipe) is recipe


@pytest.mark.parametrize("env", [3, None, ["CartPole-v1"]])
def test_what_is_no_env_is_refused(env):
    with pytest.raises(ConfigurationError, match="is no env"):
        as_recipe(env)


def test_the_vector_entry_point_of_an_id_with_its_package():
    recipe = EnvRecipe("gymnasium.envs.classic_control:CartPole-v1", 2, "vector_entry_point")
    pool = recipe.make()
    assert isinstance(pool, VectorPool) and pool.num_envs == 2 and pool.reset(0).shape == (2, 4)
