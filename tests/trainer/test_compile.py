"""`Trainer(compile=True)`: one graph with the same results; where it cannot be, a warning, and training goes on."""

from __future__ import annotations

import os
import shutil

import pytest
import pytorch_lightning as pl
import torch
import torch._dynamo
from gymnasium import spaces

from rl_lightning import A2C, DDPG, DQN, PPO, REINFORCE, SAC, TD3, TRPO, NonFiniteError, RLModule, Trainer
from rl_lightning.callbacks import LinearInterpolation
from rl_lightning.envs import GymEnvModule
from rl_lightning.learning_graph import LearningGraph
from tests.trainer.helpers import quiet

pytestmark = [
    pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="torch compiles with a C++ compiler"),
    pytest.mark.timeout(300),  # the first compilation on a machine takes its compiler some seconds
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),  # torch's compiler imports its own old parts
]

TINY = {"batch_size": 16, "learning_starts": 40, "hidden_sizes": (16,)}
REPLAY = {
    **TINY,
    "epsilon": 1.0,  # what is learned does not decide what is done: rounding cannot grow
    "final_epsilon": 1.0,
    "target_update_every": 5,
    "num_atoms": 5,
}
RAINBOW = {"double": True, "dueling": True, "num_steps": 3, "prioritized": True, "noisy": True}
AGENTS = {
    "ppo": lambda: PPO(num_steps=16, num_minibatches=2, hidden_sizes=(16,), entropy_weight=0.01),
    "a2c": lambda: A2C(num_steps=8, hidden_sizes=(16,)),
    "dqn": lambda: DQN(**REPLAY),
    "rainbow": lambda: DQN(**REPLAY, **RAINBOW, distribution="categorical"),
    "implicit": lambda: DQN(**REPLAY, distribution="implicit"),
    "sac": lambda: SAC(**TINY),
    "sac, discrete": lambda: SAC(**TINY),
    "sac, normalised": lambda: SAC(**TINY, normalize_obs=True),
    "td3": lambda: TD3(**TINY),
    "ddpg": lambda: DDPG(**TINY),
}
ENVS = {"sac": "Pendulum-v1", "sac, normalised": "Pendulum-v1", "td3": "Pendulum-v1", "ddpg": "Pendulum-v1"}


def fit(agent, *, env="CartPole-v1", module=RLModule, **arguments):
    pl.seed_everything(0, verbose=False)
    trainer = Trainer(**{"max_steps": 120, **quiet(), **arguments})
    trainer.fit(module(agent), GymEnvModule(env, num_envs=2))
    return trainer


def weights(agent):
    return {name: parameter.detach().clone() for name, parameter in agent.named_parameters()}


@pytest.fixture
def is_compiled(monkeypatch):
    """How often something was compiled."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    return lambda: torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("name", AGENTS)
def test_the_same_weights_to_rounding(name, is_compiled):
    """Few steps, with a learning rate that falls: differences of rounding have not grown yet."""
    falling = {"callbacks": [LinearInterpolation("learning_rate", start_value=1e-3, stop_value=1e-4)]}
    plain, compiled, env = AGENTS[name](), AGENTS[name](), ENVS.get(name, "CartPole-v1")
    fit(plain, env=env, **falling)
    assert is_compiled() == 0
    falling = {"callbacks": [LinearInterpolation("learning_rate", start_value=1e-3, stop_value=1e-4)]}
    trainer = fit(compiled, env=env, compile=True, **falling)
    assert is_compiled() >= 1
    assert trainer.num_updates > 5
    torch.testing.assert_close(weights(compiled), weights(plain), rtol=1e-3, atol=1e-5)
    moments = [trainer.optimizers[0].state_dict()["state"][0][key] for key in ("step",)]
    assert [float(moment) for moment in moments] == [trainer.num_updates]


def test_it_goes_on_from_a_checkpoint_with_and_without(tmp_path, is_compiled):
    agents = [AGENTS["ppo"]() for _ in range(2)]
    for agent, compiled in zip(agents, (False, True), strict=True):
        trainer = fit(agent, max_steps=64, compile=compiled)
        trainer.save_checkpoint(tmp_path / f"{compiled}.ckpt")
    resumed = []
    for first in (False, True):
        for then in (False, True):
            agent = AGENTS["ppo"]()
            pl.seed_everything(0, verbose=False)
            trainer = Trainer(max_steps=128, compile=then, **quiet())
            module = RLModule(agent)
            trainer.fit(module, GymEnvModule("CartPole-v1", num_envs=2), ckpt_path=tmp_path / f"{first}.ckpt")
            resumed.append(weights(agent))
    for other in resumed[1:]:
        torch.testing.assert_close(other, resumed[0], rtol=1e-3, atol=1e-5)


class Watching(RLModule):
    def on_after_backward(self):
        self.seen = True


class Looking(pl.Callback):
    def on_before_optimizer_step(self, trainer, module, optimizer): ...


class Own(RLModule):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx)


class WithSGD(PPO):
    def configure_optimizers(self):
        return {"actor_critic": torch.optim.SGD(self.network.parameters(), lr=0.1)}


class Printing(PPO):
    """Reads a tensor's value in the middle, which no graph can hold."""

    def update(self, batch, step):
        if float(batch["advantage"].sum()) > 1e9:
            raise AssertionError
        return super().update(batch, step)


SMALL = {"num_steps": 16, "num_minibatches": 2, "hidden_sizes": (16,)}


@pytest.mark.parametrize(
    ("agent", "arguments", "reason"),
    [
        (PPO, {"module": Watching}, "on_after_backward must run in its middle"),
        (PPO, {"callbacks": [Looking()]}, "on_before_optimizer_step must run in its middle"),
        (PPO, {"module": Own}, "training_step must run in its middle"),
        (WithSGD, {}, "'?actor_critic'? is none of rl_lightning.optim"),
        (PPO, {"accumulate_grad_batches": 2}, "accumulate_grad_batches is 2"),
        (PPO, {"precision": "bf16-mixed"}, "bf16-mixed"),
        (Printing, {}, "because torch could not"),
    ],
)
def test_what_cannot_be_compiled_is_said_and_runs_without(agent, arguments, reason):
    with pytest.warns(UserWarning, match=f"compile=True: the learning step runs uncompiled.*{reason}"):
        trainer = fit(agent(**SMALL), compile=True, **arguments)
    assert trainer.num_updates == 24


@pytest.mark.parametrize(
    ("agent", "reason"),
    [
        (TRPO(num_steps=16), "a line search decides by what it has found"),
        (REINFORCE(num_episodes=1), "episodes have a length of their own"),
    ],
)
def test_agents_whose_learning_step_is_no_graph_say_why(agent, reason, is_compiled):
    with pytest.warns(UserWarning, match=f"compile=True: the learning step runs uncompiled.*{reason}"):
        trainer = fit(agent, compile=True)
    assert trainer.num_updates > 0 and is_compiled() == 0


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_the_trainer_s_clipping(algorithm, is_compiled):
    clipping = {"gradient_clip_val": 1e-3, "gradient_clip_algorithm": algorithm}
    plain, compiled = AGENTS["ppo"](), AGENTS["ppo"]()
    fit(plain, **clipping), fit(compiled, compile=True, **clipping)
    torch.testing.assert_close(weights(compiled), weights(plain), rtol=1e-3, atol=1e-5)


def test_a_loss_that_is_not_finite_is_an_error():
    class Diverging(PPO):
        def prepare(self, rollout):
            prepared = super().prepare(rollout)
            prepared["return"][:] = float("nan")
            return prepared

    with pytest.raises(NonFiniteError, match="the loss 'actor_critic' is nan at env step"):
        fit(Diverging(**SMALL), compile=True)


def test_the_compiler_s_own_settings_come_back():
    before = torch._dynamo.config.trace_autograd_ops
    fit(AGENTS["a2c"](), compile=True)
    assert torch._dynamo.config.trace_autograd_ops == before


def test_agents_of_different_sizes_in_one_process():
    for sizes in ((16,), (8,), (16, 16)):
        agent, plain = (A2C(num_steps=8, hidden_sizes=sizes) for _ in range(2))
        fit(agent, compile=True), fit(plain)
        torch.testing.assert_close(weights(agent), weights(plain), rtol=1e-3, atol=1e-5)


def test_an_agent_is_compiled_for_the_shapes_of_its_own_batches(monkeypatch):
    """Not for any shape, because the batches of another one were larger."""
    has_symbols = []

    def look(graph, inputs, **kwargs):
        has_symbols.append(any(isinstance(each, torch.SymInt) for each in inputs))
        return graph.forward

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **kwargs: real(function, backend=look, **kwargs))
    for num_rows in (8, 16, 32):
        agent = DQN(hidden_sizes=(4,))
        module = RLModule(agent)
        module.build(spaces.Box(-1.0, 1.0, (3,)), spaces.Discrete(2))
        graph = LearningGraph(agent, module.named_optimizers(), max_grad_norm=None, max_grad_value=None)
        batch = {
            "obs": torch.randn(num_rows, 3),
            "action": torch.zeros(num_rows, dtype=torch.int64),
            "reward": torch.ones(num_rows),
            "next_obs": torch.randn(num_rows, 3),
            "terminated": torch.zeros(num_rows, dtype=torch.bool),
        }
        graph(batch)
        graph.close()
    assert has_symbols == [False] * 3
